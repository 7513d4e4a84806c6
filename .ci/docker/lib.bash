# shellcheck shell=bash
# Shared by start-engine, base-images and service-images; sourced, never run.

# A mark on every image made here, so that nobody takes a stand-in for the real one:
#   docker image ls --filter label=starview.stand-in
# shellcheck disable=SC2034  # used by the scripts that source this file
STAND_IN_LABEL=starview.stand-in

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  say "error: $1"
  shift
  local line
  for line in "$@"; do printf '  %s\n' "$line" >&2; done
  exit 1
}

need_root() {
  [ "$(id -u)" = 0 ] || die "must run as root (it installs packages and makes system trees)" \
    "run it again with: sudo $0"
}

# apt_install COMMAND=PACKAGE...: installs the packages whose command is missing.
apt_install() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  need_root
  say "installing ${missing[*]}"
  # No questions, and no report on services to restart.
  export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
  # On a new machine the package lists are empty or old: without update nothing is found.
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null ||
    die "could not install ${missing[*]}" \
      "see what apt says: apt-get update && apt-get install ${missing[*]}"
}

# The Debian mirror that this machine's own apt uses. Never written down: machines differ.
debian_mirror() {
  local codename mirror
  # shellcheck source=/dev/null
  codename=$(. /etc/os-release && printf %s "${VERSION_CODENAME:-}")
  mirror=$(mirror_of "$codename")
  # apt lists only sources whose index it has.
  [ -n "$mirror" ] || { apt-get update -qq >/dev/null && mirror=$(mirror_of "$codename"); }
  [ -n "$mirror" ] || die "apt has no source for Debian '$codename' main, so the mirror is unknown" \
    "this needs a Debian machine; look at: apt-get indextargets"
  printf '%s\n' "${mirror%/}"
}

mirror_of() {
  # The $(...) are apt's own placeholders.
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(CREATED_BY) $(COMPONENT) $(RELEASE) $(REPO_URI)' |
    awk -v release="$1" '$1 == "Packages" && $2 == "main" && $3 == release && !seen++ { print $4 }'
}

have_image() { docker image inspect "$1" >/dev/null 2>&1; }

# Bounded, for a registry that never answers; one that cannot be resolved fails at once.
try_pull() {
  timeout "${PULL_TIMEOUT:-60}" docker pull --quiet "$1" >/dev/null 2>&1
}

need_engine() {
  docker info >/dev/null 2>&1 ||
    die "the Docker engine does not answer" "start it first: $(dirname "$0")/start-engine"
}
