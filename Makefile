# make demo: sets up, builds, shows the whole way once.   make test: sets up, builds, runs all tests but those of the targets test-….
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := build

ifeq ($(V),1)
Q :=
msg =
else
Q := @
msg = @printf '  %-9s %s\n' $(1) "$(patsubst $(CURDIR)/%,%,$(2))";
endif

.PHONY: all setup build typescript native test test-programs test-kube test-image test-ztunnel test-dashboards test-kernels fuzz soak demo bench bench-pilot bench-services bench-consistency bench-kube-client bench-scrape bench-dataplane docs chart lint clean distclean

all: build

setup:
	$(Q)./scripts/setup.sh

# The parts below need what `setup` installs, which make can only see in a second run of itself.
build: setup
	$(Q)$(MAKE) native typescript

-include native/build.mk
-include bench/build.mk
-include test/wasm/build.mk
-include test/fuzz/build.mk

PROTO_SOURCES := $(shell find proto -name '*.proto' -not -path 'proto/generated/*') proto/roots.txt proto/generate.sh
proto/generated/.stamp: $(PROTO_SOURCES) package-lock.json
	$(call msg,PROTO,$@)
	$(Q)./proto/generate.sh

typescript: proto/generated/.stamp
	$(call msg,TSC,dist)
	$(Q)node_modules/.bin/tsc -b

# ARGS: parts of test file names, e.g. `make test ARGS=pilot/`.
test: build
	$(Q)./scripts/setup-programs.sh
	$(Q)./scripts/setup-fuzz.sh
	$(Q)$(MAKE) build/http-fuzz
	$(Q)node test/run.mjs $(ARGS)

# Real programs with and without acceleration; those that `make test` runs, and programs in Go, which are built once.
test-programs: build
	$(Q)./scripts/setup-programs.sh go
	$(Q)node test/run.mjs $(or $(ARGS),test/programs/ test/programs/go)

# Against a real kube-apiserver, and on a real node (kubelet, containerd); Kubernetes is built once.
test-kube: build
	$(Q)./scripts/setup-kube.sh
	$(Q)./scripts/setup-kube-clients.sh
	$(Q)node test/run.mjs $(or $(ARGS),test/kube/)

# The Dockerfile's steps, in a Debian that debootstrap makes below build/ once.
test-image: build
	$(Q)./scripts/setup-image.sh
	$(Q)node test/run.mjs $(or $(ARGS),test/image/build.)

# Against a real ztunnel, which nothing here brings: ZTUNNEL_BIN is its path.
test-ztunnel: build
	$(Q)node test/run.mjs $(or $(ARGS),test/ztunnel/)

# Dashboards and rules of deploy/, with a real Prometheus that scrapes a lab; a lab's traces in a real Zipkin server.
test-dashboards: build
	$(Q)./scripts/setup-dashboards.sh
	$(Q)./scripts/setup-zipkin.sh
	$(Q)node test/run.mjs $(or $(ARGS),test/dashboards/)

# Debian's 6.1 and 6.12 kernels in qemu; ARGS: see `node dist/test/kernels/run.js --help`.
test-kernels: build
	$(Q)./scripts/setup-kernels.sh
	$(Q)node dist/test/kernels/run.js $(ARGS)

# The HTTP parser beside Envoy for FUZZ_SECONDS, default 300; what came of it goes into docs/results/fuzz.md.
fuzz: build
	$(Q)./scripts/setup-fuzz.sh
	$(Q)$(MAKE) build/http-fuzz
	$(Q)CLANG=$(CLANG) node dist/test/fuzz/run.js $(FUZZ_SECONDS)

# Real programs through the HTTP fast path for SOAK_SECONDS, default 600; what came of it goes into docs/results/soak.md. Then the
# batteries of `make test` that have a longer form.
soak: build
	$(Q)./scripts/setup-programs.sh
	$(Q)node dist/test/http/programs/run-soak.js $(SOAK_SECONDS)
	$(Q)UNDERPASS_ROUTE_CHANGES=40 node test/run.mjs test/http-fast-path.

demo: build
	$(Q)exec ./bin/underpass demo $(ARGS)

# BENCH_PILOT: options of its own, e.g. BENCH_PILOT='--services 1000 --endpoints 10000'.
bench-pilot: build
	$(Q)node dist/pilot/bench/run.js $(BENCH_PILOT)

# BENCH_SERVICES: services, endpoints and changes, default 10000 100000 100.
bench-services: build
	$(Q)node dist/agent/bench/services.js $(BENCH_SERVICES)
	$(Q)node dist/agent/bench/connects.js

# make bench-consistency BENCH_CONSISTENCY=5000
bench-consistency: build
	$(Q)node dist/agent/bench/consistency.js $(BENCH_CONSISTENCY)

# BENCH_SCRAPE: series and scrapes, default 10000 20.
bench-scrape: build
	$(Q)node dist/agent/bench/scrape.js $(BENCH_SCRAPE)

# BENCH_DATAPLANE: options of its own, e.g. BENCH_DATAPLANE='--services 1000 --pods 20'.
bench-dataplane: build
	$(Q)node dist/cli/bench/at-size.js $(BENCH_DATAPLANE)

# BENCH_KUBE: options of its own, e.g. BENCH_KUBE='--services 500 --pods 5000'.
bench-kube: build
	$(Q)./scripts/setup-kube.sh
	$(Q)node dist/test/kube/bench/run.js $(BENCH_KUBE)

# LIBRARY: a folder in which `@kubernetes/client-node` was installed, to compare with.
bench-kube-client: build
	$(Q)node dist/test/kube/bench/client.js

bench: build
	$(Q)exec ./bin/underpass bench $(ARGS)

# Pages that are made from the code; a test compares.
docs: typescript
	$(Q)node dist/pilot/validation/api-table.js
	$(Q)node dist/cli/reference.js

# The Helm chart and the manifests of deploy/, out of cli/install/; a test compares.
chart: typescript
	$(Q)node dist/cli/install/chart.js

clean:
	$(Q)rm -rf dist proto/generated build/bpf build/proto-tree build/proto-out build/*.node build/underpass-exec build/underpass-cni build/underpass-launcher build/underpass-fresh build/socket-probe build/socket-ends build/tcp-bench build/test-plugin.wasm build/self-tests build/http-parse build/http-fuzz

distclean: clean
	$(Q)rm -rf build node_modules
