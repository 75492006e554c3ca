# The BPF object, its skeleton, the addon and the helper programs; included by the Makefile.
CLANG ?= $(firstword $(shell command -v clang-14 clang clang-15 clang-16 clang-17 clang-18 clang-19 2>/dev/null) clang)
BPFTOOL ?= $(firstword $(shell command -v bpftool 2>/dev/null) /usr/sbin/bpftool)
CXX ?= g++
CC ?= cc
BPF_ARCH := $(shell uname -m | sed 's/x86_64/x86/; s/aarch64/arm64/')
# Node's own headers lie beside its binary: Debian's libnode-dev, a tarball, the official image.
NODE_INCLUDE := $(shell node -p 'require("path").join(require("path").dirname(process.execPath), "..", "include", "node")' 2>/dev/null)
NODE_ADDON_API := node_modules/node-addon-api
BTF ?= /sys/kernel/btf/vmlinux

BPF_OBJECT := build/bpf/underpass.bpf.o
BPF_SKELETON := build/bpf/underpass.skel.h
NATIVE_TARGETS := build/underpass.node build/underpass-exec build/underpass-cni build/underpass-launcher build/underpass-fresh build/socket-probe build/socket-ends

BPF_CFLAGS := -g -O2 -target bpf -mcpu=v3 -D__TARGET_ARCH_$(BPF_ARCH) -Wall -Wextra -Werror -Wno-unused-parameter -Ibuild/bpf
ADDON_CXXFLAGS := -std=c++17 -O2 -g -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unused-parameter \
	-DNAPI_VERSION=8 -DNODE_ADDON_API_CPP_EXCEPTIONS -DNODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS -DBUILDING_NODE_EXTENSION \
	-I$(NODE_INCLUDE) -I$(NODE_ADDON_API) -Ibuild/bpf
ADDON_SOURCES := $(wildcard native/src/*.cc)
ADDON_OBJECTS := $(ADDON_SOURCES:native/src/%.cc=build/native/%.o)

.PHONY: native
native: $(NATIVE_TARGETS)

# CO-RE: only the layout of what user space sees is fixed here, fields are relocated when the object is loaded.
build/bpf/vmlinux.h:
	$(call msg,BTF,$@)
	$(Q)mkdir -p $(@D) && $(BPFTOOL) btf dump file $(BTF) format c > $@

$(BPF_OBJECT): bpf/underpass.bpf.c $(wildcard bpf/*.h) build/bpf/vmlinux.h
	$(call msg,BPF,$@)
	$(Q)mkdir -p $(@D) && $(CLANG) $(BPF_CFLAGS) -c $< -o $@.tmp && mv $@.tmp $@

$(BPF_SKELETON): $(BPF_OBJECT)
	$(call msg,GEN-SKEL,$@)
	$(Q)$(BPFTOOL) gen skeleton $< name underpass_bpf > $@

build/native/%.o: native/src/%.cc $(wildcard native/src/*.h) bpf/structs.h bpf/http-structs.h $(BPF_SKELETON)
	$(call msg,CXX,$@)
	$(Q)mkdir -p $(@D) && $(CXX) $(ADDON_CXXFLAGS) -c $< -o $@

build/underpass.node: $(ADDON_OBJECTS)
	$(call msg,LINK,$@)
	$(Q)$(CXX) -shared -o $@.tmp $^ -lbpf && mv $@.tmp $@

# Static: they run on the host, in containers and in pods, whatever libraries those have.
STATIC_TARGETS := build/underpass-exec build/underpass-cni build/underpass-fresh build/underpass-launcher
build/underpass-exec: native/exec/underpass-exec.c
build/underpass-cni: native/cni/underpass-cni.c
build/underpass-fresh: native/fresh/underpass-fresh.c
build/underpass-launcher: native/launcher/underpass-launcher.c
$(STATIC_TARGETS):
	$(call msg,CC,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O2 -g -Wall -Wextra -static $< -o $@.tmp && mv $@.tmp $@

build/socket-probe: native/probe/socket-probe.c native/probe/sockets.h native/probe/cases.h
	$(call msg,CC,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O2 -g -Wall -Wextra -pthread $< -o $@.tmp && mv $@.tmp $@

build/socket-ends: native/probe/socket-ends.c native/probe/sockets.h
	$(call msg,CC,$@)
	$(Q)mkdir -p $(@D) && $(CC) -O2 -g -Wall -Wextra -Wno-unused-function $< -o $@.tmp && mv $@.tmp $@
