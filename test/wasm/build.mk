# The plugin for proxies that test/wasm.test.ts loads.
native: build/test-plugin.wasm

build/test-plugin.wasm: test/wasm/plugin.c
	$(call msg,WASM,$@)
	$(Q)mkdir -p $(@D) && $(CLANG) --target=wasm32 -O2 -nostdlib -Wall -Wextra -Wno-unused-parameter -Wl,--no-entry -Wl,--strip-all -o $@.tmp $< && mv $@.tmp $@
