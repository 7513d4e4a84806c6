#!/usr/bin/env bash
# Put supercronic, the scheduler of the image, into a folder: get_supercronic.sh FOLDER
# Needs no root. Exits 1 with a clear message if it cannot be installed.
set -euo pipefail

readonly GO_MODULE=github.com/aptible/supercronic@v0.2.45
readonly DEBIAN_SUITE=forky # the first that has the package

folder=$(mkdir -p "$1" && cd "$1" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

runs() {
  "$1" -version >/dev/null 2>&1
}

from_path() {
  local found
  # Without the link that an earlier run made.
  found=$(PATH=":$PATH:" && PATH=${PATH//":$folder:"/:} && command -v supercronic) || return 1
  runs "$found" && ln -sf "$found" "$folder/supercronic"
}

from_go() {
  command -v go >/dev/null || return 1
  echo "Building supercronic with Go"
  GOBIN=$folder go install "$GO_MODULE"
}

# Gets Debian's package with apt, with separate package lists and the machine's mirror.
from_debian() {
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
  local mirror apt=(
    apt-get -qq
    -o "Dir::State=$scratch/state" -o "Dir::State::status=$scratch/status"
    -o "Dir::Cache=$scratch/cache"
    -o "Dir::Etc::sourcelist=$scratch/sources.list" -o Dir::Etc::sourceparts=-
    -o APT::Sandbox::User=root # no other user could write into the scratch folder
  )
  mirror=$(debian_mirror)
  [ -n "$mirror" ] || return 1
  echo "Fetching supercronic, Debian's package in $DEBIAN_SUITE"
  mkdir -p "$scratch/state/lists/partial" "$scratch/cache/archives/partial"
  : >"$scratch/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror" \
    "$DEBIAN_SUITE main" >"$scratch/sources.list"
  (
    cd "$scratch"
    # The clean-up hooks of a container image fail without root.
    { "${apt[@]}" update && "${apt[@]}" download supercronic; } 2>log || {
      cat log >&2
      exit 1
    }
    dpkg -x supercronic_*.deb unpacked
  ) || return 1
  cp "$scratch/unpacked/usr/bin/supercronic" "$folder/supercronic"
}

# Prints the first of the machine's sources that is Debian, but not its security updates.
debian_mirror() {
  # apt replaces these placeholders.
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(SIGNED_BY)' 'Created-By: Packages' |
    awk '$2 ~ /^[a-z]+$/ && $1 !~ /security|ubuntu/ { print $1; exit }'
}

main() {
  if runs "$folder/supercronic"; then
    return
  fi
  rm -f "$folder/supercronic"
  local way
  for way in from_path from_go from_debian; do
    if "$way" && runs "$folder/supercronic"; then
      return
    fi
  done
  {
    echo "======================================================================"
    echo "NO SUPERCRONIC: the tests of the schedule will NOT run."
    echo "Tried: PATH; go install; Debian's package. HINT: install it or Go."
    echo "======================================================================"
  } >&2
  return 1
}

main
