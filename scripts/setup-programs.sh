#!/usr/bin/env bash
# Programs whose traffic the tests of test/programs/ compare with and without acceleration. They are unpacked into
# build/programs and not installed: a service of Debian's would be started at the machine's next boot.
#   setup-programs.sh        all but Go, for `make test`
#   setup-programs.sh go     Go too, and the programs written in it, for `make test-programs`
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

packages=(haproxy netcat-openbsd openssh-client openssh-server postgresql-15 postgresql-client-15 python3-gevent python3-gunicorn redis-server redis-tools rsync wget)
commands=(usr/sbin/haproxy bin/nc.openbsd usr/bin/ssh usr/sbin/sshd usr/lib/postgresql/15/bin/postgres
  usr/lib/postgresql/15/bin/psql usr/bin/redis-server usr/bin/redis-cli usr/bin/rsync usr/bin/wget)
modules=(gevent gunicorn)
out=build/programs

stamp=$(sha256sum <scripts/setup-programs.sh | cut -d' ' -f1)
if [ "$(cat "$out/stamp" 2>/dev/null)" != "$stamp" ]; then
  say APT "${packages[*]} into $out"
  rm -rf "$out"
  mkdir -p "$out/archives/partial"
  # The named ones also where they are installed, and what they need where it is not.
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends --reinstall --download-only \
    -o Dir::Cache::archives="$PWD/$out/archives" -o APT::Sandbox::User=root "${packages[@]}"; } >build/apt.log 2>&1 || {
    tail -20 build/apt.log >&2
    echo "setup: apt-get failed, the whole log is in build/apt.log" >&2
    exit 1
  }
  for archive in "$out"/archives/*.deb; do dpkg-deb --extract "$archive" "$out"; done
  rm -rf "$out/archives"
  for command in "${commands[@]}"; do
    [ -x "$out/$command" ] || { echo "setup: Debian's packages brought no $command" >&2; exit 1; }
  done
  for module in "${modules[@]}"; do
    [ -d "$out/usr/lib/python3/dist-packages/$module" ] || { echo "setup: Debian's packages brought no $module for Python" >&2; exit 1; }
  done
  echo "$stamp" >"$out/stamp"
fi

[ "${1:-}" = go ] || exit 0
command -v go >/dev/null || install_packages golang-go
source=test/programs/go
if [ ! -x "$out/go/http" ] || [ -n "$(find "$source" -newer "$out/go/http" -type f)" ]; then
  say GO "$out/go"
  mkdir -p "$out/go"
  # The standard library alone: nothing is downloaded.
  (cd "$source" && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=mod GOPROXY=off go build -p 1 -buildvcs=false -trimpath -o "$OLDPWD/$out/go/" ./...)
fi
