#!/usr/bin/env bash
# Starts the container.
#   no arguments     run the schedule in ./crontab until the container is stopped
#   any arguments    run that command instead: python manage.py archive_audit_logs --dry-run
#   --help           say this
# It never migrates: the web service owns its tables.
set -euo pipefail

APP=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$APP"

# Variables that the shell reads may also come from a file: supercronic's log format, and
# the address that the crontab passes on.
for name in LOG_FORMAT ADMIN_EMAIL; do
  file=${name}_FILE
  if [ -z "${!name:-}" ] && [ -r "${!file:-}" ]; then
    export "$name=$(<"${!file}")"
    unset "$file"
  fi
done

# From here on each line of output is one JSON object, even from a shell or from a program
# that does not know LOG_FORMAT.
write_json() {
  local end=end-of-output-$$-$RANDOM$RANDOM$RANDOM
  exec > >(exec python -m starview.output "$end") 2>&1
  filter=$!
  # This script waits until the filter has written the last line. The filter ends at the
  # mark, since a process that was left behind may never close its output.
  trap 'status=$?; printf "\0%s\n" '"$end"' || true; wait "$filter" || true; exit "$status"' EXIT
}

say() {
  printf '%s\n' "$1" >&2
}

usage() {
  sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p}' "${BASH_SOURCE[0]}"
}

check_settings() {
  local report
  # Prints nothing if all is well, otherwise all missing or wrong variables in one error.
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

# The build has checked the image's own crontab, but not one that is mounted in its place.
# supercronic itself refuses what it cannot read. With another time zone supercronic and the
# jobs would disagree on when a job is due.
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
  run stop_command python manage.py wait_for_database
}

child=''
# Reads the parent of every process.
declare -A children_of=()
read_processes() {
  local stat line pid parent
  children_of=()
  for stat in /proc/[0-9]*/stat; do
    { read -r line <"$stat"; } 2>/dev/null || continue
    pid=${line%% *}
    # The name, in brackets, may have blanks, so the fields after it are read.
    read -r _ parent _ <<<"${line##*) }"
    children_of[$parent]+=" $pid"
  done
}

# The children of the processes $1.
children() {
  local pid
  for pid in $1; do printf '%s' "${children_of[$pid]:-}"; done
}

# The processes $1 and all their descendants.
descendants() {
  local found=$1
  while [[ "$found" == *[0-9]* ]]; do
    printf '%s ' "$found"
    found=$(children "$found")
  done
}

# The processes of the jobs that supercronic has started, without the shell of each line
# while it waits for its command: the signal would kill the shell first, and supercronic
# would think that the job has ended.
processes_of_jobs() {
  local pid
  for pid in ${children_of[$child]:-}; do
    descendants "${children_of[$pid]:-$pid}"
  done
}

# The processes that `docker exec` has started in this container, and those that they left
# behind. Outside of a container this script does not touch other processes.
processes_beside() {
  local pid
  if [ $$ != 1 ]; then
    [ "$PPID" = 1 ] || return 0
    case "$(</proc/1/comm)" in tini | docker-init) ;; *) return 0 ;; esac
  fi
  for pid in ${children_of[0]:-} ${children_of[1]:-}; do
    case "$pid" in 1 | "$$" | "$child" | "${filter:-}") continue ;; esac
    # If the containers of a pod share their processes: only those of this container.
    [ "/proc/$pid/ns/mnt" -ef /proc/self/ns/mnt ] && descendants "$pid"
  done
}

is_ours() {
  local words
  { mapfile -d '' -t words <"/proc/$1/cmdline"; } 2>/dev/null || return 1
  [[ " ${words[*]} " == *manage.py* ]]
}

# When this script ends, the container and all its processes are killed.
wait_for_processes_beside() {
  local pid quiet=0
  # A process whose parent ends during a look can be missing from it: look twice.
  while [ "$quiet" -lt 2 ]; do
    [ "$quiet" = 0 ] || sleep 0.1
    quiet=$((quiet + 1))
    read_processes
    for pid in $(processes_beside); do
      ! is_ours "$pid" || quiet=0
    done
    [ "$quiet" -gt 0 ] || sleep 0.1
  done
}

# `docker exec` may have started something before the schedule begins: it ends well, too.
give_up() {
  local pid
  read_processes
  for pid in $(processes_beside); do
    kill -TERM "$pid" 2>/dev/null || true
  done
  wait_for_processes_beside
  exit "$1"
}

stop_early() {
  say "stopping: $1 came before the schedule had begun"
  give_up 143
}

# On SIGTERM supercronic stops scheduling, but waits for its jobs without a signal to them.
stop_schedule() {
  local pid
  signalled=$1
  say "stopping: $1 goes to the running jobs"
  kill -TERM "$child" 2>/dev/null || true
  read_processes
  for pid in $(processes_of_jobs) $(processes_beside); do
    kill -TERM "$pid" 2>/dev/null || true
  done
}

stop_command() {
  signalled=$1
  kill -TERM "$child" 2>/dev/null || true
}

# Run a command to its end; $1 is called with the name of a signal.
run() {
  local handler=$1 status=143
  shift
  "$@" <&0 &
  child=$!
  signalled=begin
  # The trap is expanded now, with this function's variables.
  # shellcheck disable=SC2064
  trap "$handler SIGTERM" TERM
  # shellcheck disable=SC2064
  trap "$handler SIGINT" INT
  # A signal ends `wait` early, with the signal's number; then wait again for the command.
  while [ "$status" -gt 128 ] && [ -n "$signalled" ]; do
    signalled='' status=0
    wait "$child" || status=$?
  done
  return "$status"
}

run_schedule() {
  local options=(-passthrough-logs -no-reap) status=0
  [ "${LOG_FORMAT:-}" != json ] || options+=(-json)
  # supercronic would send its own events to SENTRY_DSN, with an old SDK, and has no option
  # against that; so the jobs get the value under another name. Times are UTC, even if a
  # crontab does not say so.
  export STARVIEW_SENTRY_DSN=${SENTRY_DSN:-}
  run stop_schedule env -u SENTRY_DSN TZ=UTC supercronic "${options[@]}" crontab || status=$?
  wait_for_processes_beside
  return "$status"
}

# Whether a command works on the database, as opposed to printing its help.
uses_database() {
  [[ "$1" == python* && "${2:-}" == *manage.py && -n "${3:-}" ]] || return 1
  case " $* " in
    *' -h '* | *' --help '* | *' --version '*) return 1 ;;
  esac
  case "$3" in
    check | export_schedule | help | version | wait_for_database) return 1 ;;
    # Without a wait for the database, since a health check has its own time limit.
    jobs) [[ "${4:-}" != check && "${4:-}" != health ]] ;;
  esac
}

main() {
  [ "${LOG_FORMAT:-}" != json ] || write_json
  case "${1:-}" in
    '')
      trap 'stop_early SIGTERM' TERM
      trap 'stop_early SIGINT' INT
      check_settings
      check_schedule
      wait_for_database || give_up "$?"
      trap 'stop_early SIGTERM' TERM
      trap 'stop_early SIGINT' INT
      run_schedule
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
      if [ "${LOG_FORMAT:-}" = json ]; then
        run stop_command "$@"
      else
        exec "$@"
      fi
      ;;
  esac
}

main "$@"
