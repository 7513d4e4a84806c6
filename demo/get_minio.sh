#!/usr/bin/env bash
# Build MinIO into a folder, from source: get_minio.sh FOLDER
# Needs no root. Exits 1 with a clear message if it cannot be built.
set -euo pipefail

# The version that `latest` meant when this was written (the project is archived). The
# commit of its last release is not in the module proxy.
readonly GO_MODULE=github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c

folder=$(mkdir -p "$1" && cd "$1" && pwd)

if [ -x "$folder/minio" ] && [ "$(cat "$folder/minio.version" 2>/dev/null)" = "$GO_MODULE" ]; then
  exit
fi
if command -v go >/dev/null; then
  echo "Building MinIO with Go; the first time takes minutes"
  # Static, so that it runs in any image.
  if GOBIN=$folder CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "$GO_MODULE"; then
    echo "$GO_MODULE" >"$folder/minio.version"
    exit
  fi
fi
echo "NO MINIO. Tried: go install. HINT: install Go 1.24 or newer; is the module proxy reachable?" >&2
exit 1
