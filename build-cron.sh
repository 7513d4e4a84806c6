#!/usr/bin/env bash
# Build command of Render's native Python cron jobs: the dependencies and nothing else.
# (build.sh is the web service's: it also builds React and migrates.)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
python -m pip install --disable-pip-version-check --require-hashes -r requirements.txt
python -m compileall -q manage.py starview starview_app
