#!/usr/bin/env bash
# Brings what `make test-kube` needs beside setup.sh: etcd, the parts of Kubernetes, containerd with runc and CNI plugins, and the
# CRDs of Istio and of the Gateway API. Kubernetes is a Go module that is built here; whatever is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

# What k8s.io/kubernetes asks for in its go.mod, newest patch.
go_version=1.24.9
source=test/kube/binaries
out=build/kube
parts=(kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet)

packages=(etcd-server containerd runc containernetworking-plugins busybox-static)
command -v go >/dev/null || packages+=(golang-go)
install_packages "${packages[@]}"
mkdir -p "$out"

# NAME@VERSION SUM: the folder of a module, which has to be the one that was looked at.
module() {
  local answer sum
  answer=$(cd "$out" && GOFLAGS= go mod download -json "$1") || { echo "setup: $answer" >&2; exit 1; }
  sum=$(node -p 'JSON.parse(process.argv[1]).Sum' "$answer")
  [ "$sum" = "$2" ] || { echo "setup: $1 is $sum, expected $2" >&2; exit 1; }
  node -p 'JSON.parse(process.argv[1]).Dir' "$answer"
}

stamp=$(cat scripts/setup-kube.sh "$source"/go.* "$source"/*/*.go | sha256sum | cut -d' ' -f1)
complete() { local part; for part in "${parts[@]}"; do [ -x "$out/$part" ] || return 1; done; }
if ! complete || [ "$(cat "$out/stamp" 2>/dev/null)" != "$stamp" ]; then
  have=$(go env GOVERSION | sed 's/^go//')
  go=go
  if [ "$(printf '%s\n' "$go_version" "$have" | sort -V | head -1)" != "$go_version" ]; then
    # Debian's is older. Go's own releases are modules too, but for their executable bits.
    say GO "$go_version"
    toolchain=$(module "golang.org/toolchain@v0.0.1-go$go_version.linux-amd64" h1:XCaHFxbYbAFzirf0FlQ6XUJ3WM+yR7FdDHZvREoPVDI=)
    chmod a+x "$toolchain"/bin/* "$toolchain"/pkg/tool/*/*
    go=$toolchain/bin/go
  fi
  say GO "${parts[*]}, once (seven minutes on two CPUs)"
  (cd "$source" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly nice "$go" build -p 1 -buildvcs=false -trimpath -ldflags='-s -w' -o "$OLDPWD/$out/" "${parts[@]/#/./}") >"$out/go.log" 2>&1 || {
    tail -20 "$out/go.log" >&2
    echo "setup: building Kubernetes failed, the whole log is in $out/go.log" >&2
    exit 1
  }

  say CRDS "$out/crds"
  rm -rf "$out/crds"
  mkdir "$out/crds"
  istio=$(module istio.io/api@v1.32.0 h1:37mJvg9I0biYZAEQF+MATs4FNeCpXEIVO3LFpVb6iNM=)
  gateway_api=$(module sigs.k8s.io/gateway-api@v1.4.0 h1:ZwlNM6zOHq0h3WUX2gfByPs2yAEsy/EenYJB78jpQfQ=)
  install -m 644 "$istio"/kubernetes/customresourcedefinitions.gen.yaml "$out/crds/istio.yaml"
  # The experimental ones have TCPRoute and TLSRoute.
  install -m 644 "$gateway_api"/config/crd/experimental/gateway.networking.k8s.io_*.yaml "$out/crds/"
  echo "$stamp" >"$out/stamp"
fi
