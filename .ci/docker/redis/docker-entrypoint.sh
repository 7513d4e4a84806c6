#!/bin/sh
# Runs redis-server as the user redis, open to other containers like the official image.
set -eu

case "${1:-}" in
  -* | *.conf) set -- redis-server "$@" ;;
esac
[ "${1:-}" = redis-server ] || exec "$@"

# The official image is built with protected mode off; Debian's Redis has it on and would
# refuse every client that is not in the same container.
set -- "$@" --protected-mode no
if [ "$(id -u)" = 0 ]; then
  chown -R redis:redis /data
  exec setpriv --reuid=redis --regid=redis --init-groups "$@"
fi
exec "$@"
