# The load generator of bench and demo.
TCP_BENCH_SOURCES := $(wildcard bench/tools/*.c)

native: build/tcp-bench

build/tcp-bench: $(TCP_BENCH_SOURCES) $(wildcard bench/tools/*.h)
	$(call msg,CC,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) -std=gnu11 -O2 -Wall -Wextra -Wno-missing-field-initializers -o $@ $(TCP_BENCH_SOURCES)
