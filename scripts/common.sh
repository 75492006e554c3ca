# What the set-up scripts share; sourced by them from the project's root.

say() { printf '  %-9s %s\n' "$1" "$2"; }

# Debian's packages, those that are there already left alone. Their daemons are not started.
install_packages() {
  local missing=() package
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    say APT "${missing[*]}"
    if [ "$(id -u)" != 0 ]; then
      echo "setup: root is needed to install: ${missing[*]}" >&2
      exit 1
    fi
    # Debian starts a daemon when its package is installed; nginx is wanted as a program only.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
      printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
      chmod 755 /usr/sbin/policy-rc.d
      trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    mkdir -p build
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >build/apt.log 2>&1 || {
      tail -20 build/apt.log >&2
      echo "setup: apt-get failed, the whole log is in build/apt.log" >&2
      exit 1
    }
  fi
}
