#!/usr/bin/env bash
# What `make test-image` needs beside setup.sh: debootstrap, which makes the base of the Dockerfile.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

install_packages debootstrap
