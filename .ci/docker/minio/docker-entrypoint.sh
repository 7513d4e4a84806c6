#!/bin/sh
# `server /data` means `minio server /data`, as in the real image.
set -eu
[ "${1:-}" = minio ] || set -- minio "$@"
exec "$@"
