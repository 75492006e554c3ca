#!/usr/bin/env bash
# What `make test-dashboards` needs beside setup.sh. Prometheus is Debian's, unpacked into build/prometheus and not installed: a
# service of Debian's would be started at the machine's next boot.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

out=build/prometheus
stamp=$(sha256sum <scripts/setup-dashboards.sh | cut -d' ' -f1)
if [ "$(cat "$out/stamp" 2>/dev/null)" != "$stamp" ]; then
  say APT "prometheus into $out"
  rm -rf "$out"
  mkdir -p "$out"
  # Of the package alone: what it depends on is for its web pages.
  (cd "$out" && { apt-get download -qq -o APT::Sandbox::User=root prometheus || { apt-get update -qq && apt-get download -qq -o APT::Sandbox::User=root prometheus; }; }) >build/apt.log 2>&1 || {
    tail -20 build/apt.log >&2
    echo "setup: apt-get failed, the whole log is in build/apt.log" >&2
    exit 1
  }
  for archive in "$out"/*.deb; do dpkg-deb --extract "$archive" "$out"; done
  rm -f "$out"/*.deb
  for command in usr/bin/prometheus usr/bin/promtool; do
    [ -x "$out/$command" ] || { echo "setup: Debian's package brought no $command" >&2; exit 1; }
  done
  echo "$stamp" >"$out/stamp"
fi

# The browser of the dashboard's pages, and a font for it. CHROMIUM_BIN names another.
command -v "${CHROMIUM_BIN:-chromium}" >/dev/null || install_packages chromium fonts-dejavu-core
