#!/usr/bin/env bash
# Put PgBouncer into a folder, for tests: get_pgbouncer.sh FOLDER
# Needs no root. Exits 1 with a clear message if it cannot be installed.
set -euo pipefail

folder=$(mkdir -p "$1" && cd "$1" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

runs() {
  "$1" --version >/dev/null 2>&1
}

from_path() {
  local found
  # Debian installs it in sbin; without the script that an earlier run made.
  found=$(PATH=":$PATH:/usr/sbin:" && PATH=${PATH//":$folder:"/:} && command -v pgbouncer) || return 1
  runs "$found" && ln -sf "$found" "$folder/pgbouncer"
}

# Debian's package, unpacked together with libraries that are rarely installed.
from_debian() {
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
  local libraries
  echo "Fetching pgbouncer, Debian's package"
  libraries=$(apt-cache depends pgbouncer | awk '/Depends: lib(event|c-?ares)/ { print $2 }')
  # shellcheck disable=SC2086 # several names
  (cd "$scratch" && apt-get download -qq -o APT::Sandbox::User=root pgbouncer $libraries) || return 1
  rm -rf "$folder/pgbouncer.unpacked"
  local package
  for package in "$scratch"/*.deb; do
    dpkg -x "$package" "$folder/pgbouncer.unpacked"
  done
  cat >"$folder/pgbouncer" <<END
#!/bin/sh
unpacked='$folder/pgbouncer.unpacked'
LD_LIBRARY_PATH=\$(echo "\$unpacked"/usr/lib/*-linux-gnu*) exec "\$unpacked/usr/sbin/pgbouncer" "\$@"
END
  chmod +x "$folder/pgbouncer"
}

main() {
  if runs "$folder/pgbouncer"; then
    return
  fi
  rm -f "$folder/pgbouncer"
  local way
  for way in from_path from_debian; do
    if "$way" && runs "$folder/pgbouncer"; then
      return
    fi
  done
  {
    echo "======================================================================"
    echo "NO PGBOUNCER: the tests of the locks behind a pooler will NOT run."
    echo "Tried: PATH; Debian's package. HINT: install it, or apt-get update."
    echo "======================================================================"
  } >&2
  return 1
}

main
