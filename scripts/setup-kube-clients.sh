#!/usr/bin/env bash
# Brings kubectl and Helm for `make test-kube`; test/kube/helm/ pins Helm and all that it is made of, and it is built once.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

command -v kubectl >/dev/null || install_packages kubernetes-client

source=test/kube/helm
out=build/kube
stamp=$(cat scripts/setup-kube-clients.sh "$source"/* | sha256sum | cut -d' ' -f1)
[ ! -x "$out/helm" ] || [ "$(cat "$out/helm.stamp" 2>/dev/null)" != "$stamp" ] || exit 0

go=go
# Where Debian's Go is too old setup-kube.sh, which runs before, has brought a newer one.
newer=$(go env GOMODCACHE)/golang.org/toolchain@v0.0.1-go1.24.9.linux-amd64/bin/go
[ ! -x "$newer" ] || go=$newer
say GO "helm, once (four minutes on two CPUs)"
mkdir -p "$out"
(cd "$source" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly nice "$go" build -p 1 -buildvcs=false -trimpath -ldflags='-s -w' -o "$OLDPWD/$out/helm" helm.sh/helm/v3/cmd/helm) >"$out/helm.log" 2>&1 || {
  tail -20 "$out/helm.log" >&2
  echo "setup: building helm failed, the whole log is in $out/helm.log" >&2
  exit 1
}
echo "$stamp" >"$out/helm.stamp"
