#!/usr/bin/env bash
# What `make test` and `make fuzz` need beside setup.sh for the fuzzer of the HTTP parser: libFuzzer and the sanitizers of the
# clang that builds the BPF objects. `make fuzz` reports covered lines too, for which it has the same version's llvm-cov.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

clang=$(for each in ${CLANG:-} clang-14 clang clang-15 clang-16 clang-17 clang-18 clang-19; do command -v "$each" && break; done)
version=$("$clang" -dumpversion)
install_packages "libclang-rt-${version%%.*}-dev" "llvm-${version%%.*}"
