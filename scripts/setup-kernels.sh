#!/usr/bin/env bash
# Brings what `make test-kernels` needs beside setup.sh: qemu, busybox, and Debian's kernels, which are unpacked below
# build/kernels, never installed. Each SERIES.kernel there holds a kernel image and the modules that the checks load; a
# series that the machine's archives don't have gets a file that says so.
# Debian's archives keep only the newest versions of a series, so these can't be pinned: the newest is taken, what apt's
# signed lists vouch for, and its version is printed.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

series=(6.1 6.12)
# Of pods' namespaces, kernel TLS, ending sockets, and iptables' redirection; what these depend on comes along.
modules=(bridge veth tls tcp_diag crc32c_generic nft_compat nft_chain_nat xt_nat xt_REDIRECT xt_tcpudp xt_owner xt_mark xt_comment xt_addrtype xt_conntrack)
out=build/kernels

install_packages qemu-system-x86 busybox-static cpio xz-utils
mkdir -p "$out"
if [ "$(uname -m)" != x86_64 ]; then
  echo "setup: the kernels of the matrix are for x86_64, this machine is $(uname -m)" >&2
  exit 1
fi

# SERIES: "VERSION PACKAGE", newest last, of the cloud kernels that apt can fetch.
candidates() {
  local names
  names=$(apt-cache search --names-only "^linux-image-${1//./\\.}\.[0-9].*-cloud-amd64\$" | cut -d' ' -f1)
  [ -z "$names" ] || apt-cache show --no-all-versions $names 2>/dev/null |
    awk '/^Package:/ { package = $2 } /^Version:/ { print $2, package }' | sort -V
}

# FOLDER MODULE: numbered in the order in which they can be loaded. Built in, or of another name in this series: left out.
add_module() {
  local file to dependency
  [ -z "$(find "$1/new/modules" -name "*-$2.ko")" ] || return 0
  file=$(find "$1/deb/lib/modules" -name "${2//_/[-_]}.ko*" | head -1)
  [ -n "$file" ] || return 0
  case $file in
    *.xz) xz -dc "$file" >"$1/$2.ko" ;;
    *) cp "$file" "$1/$2.ko" ;;
  esac
  # Of the module's own description, as modinfo would print it.
  for dependency in $(tr '\0' '\n' <"$1/$2.ko" | sed -n 's/^depends=//p' | tr ',' ' '); do add_module "$1" "$dependency"; done
  mv "$1/$2.ko" "$1/new/modules/$number-$2.ko"
  number=$((number + 1))
}

# A list that is older than the archive names versions that are no longer there.
[ -e "$out/${series[0]}.kernel/vmlinuz" ] || apt-get update -qq

for each in "${series[@]}"; do
  into=$out/$each.kernel
  newest=$(candidates "$each" | tail -1)
  if [ -z "$newest" ]; then
    # A kernel that is there already is as good as one that can be fetched.
    [ -e "$into/vmlinuz" ] || { mkdir -p "$into" && echo "no linux-image-$each.*-cloud-amd64 in this machine's apt archives (bookworm-security and bookworm-backports have had it)" >"$into/missing"; }
    continue
  fi
  read -r version package <<<"$newest"
  stamp="$package $version $(sha256sum scripts/setup-kernels.sh | cut -d' ' -f1)"
  [ "$(cat "$into/stamp" 2>/dev/null)" = "$stamp" ] && continue
  say KERNEL "$package $version"
  part=$PWD/$out/part
  rm -rf "$part"
  mkdir "$part"
  (cd "$part" && apt-get download -qq -o APT::Sandbox::User=root "$package=$version") >"$out/apt.log" 2>&1 || {
    tail -5 "$out/apt.log" >&2
    echo "setup: fetching $package $version failed" >&2
    exit 1
  }
  mkdir "$part/deb" "$part/new" "$part/new/modules"
  dpkg-deb -x "$part"/*.deb "$part/deb"
  cp "$part"/deb/boot/vmlinuz-* "$part/new/vmlinuz"
  number=10
  for module in "${modules[@]}"; do add_module "$part" "$module"; done
  echo "$version" >"$part/new/version"
  echo "$stamp" >"$part/new/stamp"
  rm -rf "$into"
  mv "$part/new" "$into"
  rm -rf "$part"
done
