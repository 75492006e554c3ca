# The HTTP parser's driver and its fuzzer; included by the Makefile.
FUZZ_HEADERS := $(wildcard bpf/http-*.h) bpf/structs.h test/fuzz/probe.h

native: build/http-parse

build/bpf/http-parse.bpf.o: test/fuzz/http-parse.bpf.c $(FUZZ_HEADERS) build/bpf/vmlinux.h
	$(call msg,BPF,$@)
	$(Q)mkdir -p $(@D) && $(CLANG) $(BPF_CFLAGS) -Ibpf -c $< -o $@.tmp && mv $@.tmp $@

build/bpf/http-parse.skel.h: build/bpf/http-parse.bpf.o
	$(call msg,GEN-SKEL,$@)
	$(Q)$(BPFTOOL) gen skeleton $< name http_parse_bpf > $@

build/http-parse: test/fuzz/http-parse-driver.c build/bpf/http-parse.skel.h $(FUZZ_HEADERS)
	$(call msg,CC,$@)
	$(Q)$(CC) -std=gnu11 -O2 -g -Wall -Wextra -Ibpf -Ibuild/bpf $< -o $@.tmp -lbpf && mv $@.tmp $@

# Not of `build`: needs scripts/setup-fuzz.sh.
build/http-fuzz: test/fuzz/http-fuzz.c test/fuzz/tokens.h $(FUZZ_HEADERS)
	$(call msg,FUZZER,$@)
	$(Q)$(CLANG) -std=gnu11 -O2 -g -Wall -Wextra -Wno-missing-field-initializers -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
		-fprofile-instr-generate -fcoverage-mapping -Ibpf -Itest/fuzz $< -o $@.tmp && mv $@.tmp $@
