#!/usr/bin/env bash
# Starts the container.
#   no arguments     run the schedule in ./crontab until the container is stopped
#   any arguments    run that command instead: python manage.py archive_audit_logs --dry-run
#   --help           say this
# It never migrates: the web service owns its tables.
set -euo pipefail

APP=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$APP"

# DATABASE_WAIT_SECONDS: how long to wait for a database that is starting.
wait_seconds=${DATABASE_WAIT_SECONDS:-60}
json=
[ "${LOG_FORMAT:-}" = json ] && json=1

say() {
  if [ -n "$json" ]; then
    # The messages below hold neither quotes nor backslashes.
    printf '{"event": "entrypoint", "line": "%s"}\n' "$1" >&2
  else
    printf '%s\n' "$1" >&2
  fi
}

usage() {
  sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p}' "${BASH_SOURCE[0]}"
}

check_settings() {
  local report
  # Quiet when all is well; otherwise every missing or wrong variable in one error.
  if ! report=$(python manage.py check --deploy 2>&1); then
    printf '%s\n' "$report" >&2
    exit 1
  fi
  if [ -z "${ADMIN_EMAIL:-}" ]; then
    say 'warning: ADMIN_EMAIL is not set: the weekly e-mail report has nobody to go to and will fail'
  fi
}

wait_for_database() {
  python manage.py wait_for_database --timeout-seconds="$wait_seconds"
}

# The jobs that supercronic ($1) has started: its children, each a process group.
jobs_of() {
  local stat fields
  for stat in /proc/[0-9]*/stat; do
    # The name in the second field may hold blanks: read what follows its bracket.
    fields=$(cat "$stat" 2>/dev/null) || continue
    read -r _ parent _ <<<"${fields##*) }"
    [ "$parent" = "$1" ] && printf '%s\n' "${stat//[!0-9]/}"
  done
  return 0
}

# supercronic stops scheduling on SIGTERM but waits for its jobs without telling them.
stop_schedule() {
  local job
  say "stopping: $1 goes to the running jobs"
  kill -TERM "$scheduler" 2>/dev/null || true
  for job in $(jobs_of "$scheduler"); do
    kill -TERM -- "-$job" 2>/dev/null || true
  done
}

run_schedule() {
  local options=(-passthrough-logs -no-reap)
  [ -n "$json" ] && options+=(-json)
  supercronic "${options[@]}" crontab &
  scheduler=$!
  trap 'stop_schedule SIGTERM' TERM
  trap 'stop_schedule SIGINT' INT
  local status=0
  # A signal ends `wait` early; wait on until the scheduler itself has ended.
  while kill -0 "$scheduler" 2>/dev/null; do
    status=0
    wait "$scheduler" || status=$?
  done
  return "$status"
}

# For HEALTHCHECK: the scheduler lives, or this container runs a command of its own.
healthy() {
  local name
  for name in /proc/[0-9]*/comm; do
    [ "$(cat "$name" 2>/dev/null)" = supercronic ] && return 0
  done
  ! tr '\0' ' ' </proc/1/cmdline | grep -q 'entrypoint\.sh *$'
}

# A command that works on the database, and not one that explains itself.
uses_database() {
  [[ "$1" == python* && "${2:-}" == manage.py && -n "${3:-}" ]] || return 1
  case " $* " in
    *' -h '* | *' --help '* | *' --version '*) return 1 ;;
  esac
  case "$3" in
    check | help | version | wait_for_database) return 1 ;;
  esac
}

main() {
  case "${1:-}" in
    '')
      check_settings
      wait_for_database
      run_schedule
      ;;
    -h | --help) usage ;;
    --healthy) healthy ;;
    *)
      if uses_database "$@"; then
        wait_for_database
      fi
      exec "$@"
      ;;
  esac
}

main "$@"
