#!/usr/bin/env bash
# Starts the container.
#   no arguments     run the schedule in ./crontab until the container is stopped
#   any arguments    run that command instead: python manage.py archive_audit_logs --dry-run
#   --help           say this
# It never migrates: the web service owns its tables.
set -euo pipefail

APP=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$APP"

# What the shell itself reads may come from a file as well: supercronic's format, and the
# address that the crontab passes on.
for name in LOG_FORMAT ADMIN_EMAIL; do
  file=${name}_FILE
  if [ -z "${!name:-}" ] && [ -r "${!file:-}" ]; then
    export "$name=$(<"${!file}")"
    unset "$file"
  fi
done

# Each line of stdin as one JSON object: supercronic and the jobs write such lines
# themselves, a shell that says "Killed" does not.
as_json() {
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    if [[ "$line" != '{'*'}' ]]; then
      line=${line//\\/\\\\}
      line=${line//\"/\\\"}
      line="{\"event\": \"output\", \"line\": \"${line//[[:cntrl:]]/ }\"}"
    fi
    printf '%s\n' "$line"
  done
}

say() {
  if [ "${LOG_FORMAT:-}" = json ]; then
    as_json <<<"$1" >&2
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
  if [ "${DEBUG:-}" = True ]; then
    say 'warning: DEBUG is True: archives would go to a folder of this container, mail to files'
  fi
  if [ -z "${ADMIN_EMAIL:-}" ]; then
    say 'warning: ADMIN_EMAIL is not set: the weekly e-mail report has nobody to go to and will fail'
  fi
}

# The build has read the image's own crontab over; one that is mounted over it, nobody.
# What supercronic cannot read at all, it refuses itself. With another time zone it and
# the jobs would disagree on what is due when.
check_schedule() {
  local report
  if ! report=$(python manage.py jobs check 2>&1); then
    printf '%s\n' "$report" >&2
    if [[ "$report" == *'all times are UTC'* ]]; then
      say 'error: the crontab has times of another zone HINT: write CRON_TZ=UTC and its times in UTC'
      exit 1
    fi
    say 'warning: the crontab has mistakes, see above; the schedule starts all the same'
  fi
}

wait_for_database() {
  python manage.py wait_for_database
}

# The processes of the jobs that supercronic ($1) has started. The shell that it runs
# each line with is left out while it waits for its command: it would die of the signal
# first, and supercronic would take the job for ended.
processes_of_jobs() {
  local stat line pid parent
  local -A children=()
  for stat in /proc/[0-9]*/stat; do
    { read -r line <"$stat"; } 2>/dev/null || continue
    # The name, in brackets, may hold blanks: the fields are read from behind it.
    read -r _ parent _ <<<"${line##*) }"
    children[$parent]+=" ${line%% *}"
  done
  local shells=${children[$1]:-} below=''
  for pid in $shells; do
    [ -n "${children[$pid]:-}" ] && below+=${children[$pid]} || below+=" $pid"
  done
  while [ -n "$below" ]; do
    printf '%s\n' "$below"
    shells=$below below=''
    for pid in $shells; do below+=${children[$pid]:-}; done
  done
}

# supercronic stops scheduling on SIGTERM but waits for its jobs without telling them.
stop_schedule() {
  local pid
  told=$1
  say "stopping: $1 goes to the running jobs"
  kill -TERM "$scheduler" 2>/dev/null || true
  for pid in $(processes_of_jobs "$scheduler"); do
    kill -TERM "$pid" 2>/dev/null || true
  done
}

run_schedule() {
  local options=(-passthrough-logs -no-reap)
  [ "${LOG_FORMAT:-}" = json ] && options+=(-json)
  # supercronic would send events of its own to SENTRY_DSN, by an old SDK, and no option
  # of it prevents that: the jobs find the value under another name. Times are UTC, also
  # where a crontab does not say so.
  export STARVIEW_SENTRY_DSN=${SENTRY_DSN:-}
  TZ=UTC env -u SENTRY_DSN supercronic "${options[@]}" crontab &
  scheduler=$!
  told=begin
  trap 'stop_schedule SIGTERM' TERM
  trap 'stop_schedule SIGINT' INT
  local status=143
  # A signal ends `wait` early, with its own number; then wait on, for the scheduler's.
  while [ "$status" -gt 128 ] && [ -n "$told" ]; do
    told='' status=0
    wait "$scheduler" || status=$?
  done
  return "$status"
}

# A command that works on the database, and not one that explains itself.
uses_database() {
  [[ "$1" == python* && "${2:-}" == *manage.py && -n "${3:-}" ]] || return 1
  case " $* " in
    *' -h '* | *' --help '* | *' --version '*) return 1 ;;
  esac
  case "$3" in
    check | help | version | wait_for_database) return 1 ;;
    # It waits for nothing else either: a health check has a time of its own.
    jobs) [[ "${4:-}" != check && "${4:-}" != health ]] ;;
  esac
}

start() {
  check_settings
  check_schedule
  wait_for_database
  run_schedule
}

# Ends only when the last line has been written.
start_as_json() {
  exec > >(as_json) 2>&1
  filter=$!
  trap 'status=$?; exec >&- 2>&-; wait "$filter" || true; exit "$status"' EXIT
  start
}

main() {
  case "${1:-}" in
    '')
      if [ "${LOG_FORMAT:-}" = json ]; then
        start_as_json
      else
        start
      fi
      ;;
    -h | --help) usage ;;
    *)
      if ! command -v "$1" >/dev/null; then
        say "error: no such command: $1; without arguments the schedule runs"
        exit 127
      fi
      if uses_database "$@"; then
        wait_for_database
      fi
      exec "$@"
      ;;
  esac
}

main "$@"
