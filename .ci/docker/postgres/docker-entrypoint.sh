#!/usr/bin/env bash
# Makes the database on the first start, then runs the server as the user postgres.
set -euo pipefail

[ "${1:0:1}" != - ] || set -- postgres "$@"
[ "${1:-}" = postgres ] || exec "$@"

if [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA"
  chown -R postgres:postgres "$PGDATA" /var/run/postgresql
  chmod 700 "$PGDATA"
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

make_database() {
  local user=${POSTGRES_USER:-postgres}
  local database=${POSTGRES_DB:-$user}
  local password=${POSTGRES_PASSWORD:-}
  [ -z "${POSTGRES_PASSWORD_FILE:-}" ] || password=$(<"$POSTGRES_PASSWORD_FILE")
  local method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
  if [ -z "$password" ] && [ "$method" != trust ]; then
    echo "error: the superuser has no password: set POSTGRES_PASSWORD" >&2
    exit 1
  fi

  local arguments=() scratch
  scratch=$(mktemp -d)
  # Several options in one variable, as the official image takes them.
  read -ra arguments <<<"${POSTGRES_INITDB_ARGS:-}"
  if [ -n "$password" ]; then
    printf '%s\n' "$password" >"$scratch/password"
    arguments+=(--pwfile="$scratch/password")
  fi
  initdb --username="$user" --auth=trust ${arguments[@]+"${arguments[@]}"}
  echo "host all all all $method" >>"$PGDATA/pg_hba.conf"
  echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"

  # Its socket is where no client looks, so pg_isready says yes only to the real server.
  pg_ctl -w start -o "-c listen_addresses= -c unix_socket_directories=$scratch" >/dev/null
  export PGHOST=$scratch PGUSER=$user
  [ "$database" = postgres ] ||
    psql -X -q -v ON_ERROR_STOP=1 -v name="$database" -d postgres <<<'CREATE DATABASE :"name";'
  local file
  for file in /docker-entrypoint-initdb.d/*; do
    case $file in
      *.sql) psql -X -q -v ON_ERROR_STOP=1 -d "$database" -f "$file" ;;
      *.sh) PGDATABASE=$database bash "$file" ;;
    esac
  done
  unset PGHOST PGUSER
  pg_ctl -w -m fast stop >/dev/null
  rm -rf "$scratch"
}

[ -s "$PGDATA/PG_VERSION" ] || make_database
exec "$@"
