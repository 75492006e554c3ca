/*
 * The plugin of test/wasm.test.ts, on the ABI 0.2.1 of proxy-wasm without a library: adds its configuration's text as a value
 * of the request header x-wasm-order and of the answer's x-wasm, and counts requests as `wasm_test_requests`.
 * The ABI: https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1
 */
#include <stddef.h>
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(#name)))
#define IMPORT(name) __attribute__((import_module("env"), import_name(#name)))

enum { REQUEST_HEADERS = 0, RESPONSE_HEADERS = 2, PLUGIN_CONFIGURATION = 7, COUNTER = 0, CONTINUE = 0 };

IMPORT(proxy_get_buffer_bytes) uint32_t get_buffer_bytes(uint32_t kind, uint32_t start, uint32_t length, const char **data, uint32_t *size);
IMPORT(proxy_add_header_map_value) uint32_t add_header(uint32_t map, const char *key, uint32_t key_size, const char *value, uint32_t value_size);
IMPORT(proxy_define_metric) uint32_t define_metric(uint32_t kind, const char *name, uint32_t size, uint32_t *id);
IMPORT(proxy_increment_metric) uint32_t increment_metric(uint32_t id, int64_t by);

#define HEAP_BYTES 65536
static _Alignas(16) char heap[HEAP_BYTES];
static uint32_t used;

/* What the host gives stays: only configurations come, a few bytes each. */
EXPORT(malloc) void *allocate(uint32_t size) {
  uint32_t rounded = (size + 15u) & ~15u;
  if (rounded > HEAP_BYTES - used) return NULL;
  void *block = heap + used;
  used += rounded;
  return block;
}

#define MAX_CONTEXTS 16
static struct { uint32_t root, size; const char *text; } configurations[MAX_CONTEXTS];
static uint32_t configured;
/* Of the stream contexts that are open the root's number: a ring is enough, a plugin is asked about a stream while it lives. */
#define MAX_STREAMS 1024
static uint32_t root_of[MAX_STREAMS];
static uint32_t requests;

EXPORT(proxy_abi_version_0_2_1) void abi_version(void) {}

EXPORT(proxy_on_context_create) void on_context_create(uint32_t context, uint32_t parent) {
  if (parent != 0) root_of[context % MAX_STREAMS] = parent;
}

EXPORT(proxy_on_vm_start) uint32_t on_vm_start(uint32_t root, uint32_t size) { return 1; }

EXPORT(proxy_on_configure) uint32_t on_configure(uint32_t root, uint32_t size) {
  static const char name[] = "wasm_test_requests";
  if (configured == MAX_CONTEXTS) return 0;
  const char *text = NULL;
  uint32_t length = 0;
  if (size > 0 && get_buffer_bytes(PLUGIN_CONFIGURATION, 0, size, &text, &length) != 0) return 0;
  configurations[configured].root = root;
  configurations[configured].text = text;
  configurations[configured++].size = length;
  return define_metric(COUNTER, name, sizeof name - 1, &requests) == 0;
}

static uint32_t add(uint32_t context, uint32_t map, const char *key, uint32_t size) {
  for (uint32_t i = 0; i < configured; i++)
    if (configurations[i].root == root_of[context % MAX_STREAMS]) add_header(map, key, size, configurations[i].text, configurations[i].size);
  return CONTINUE;
}

EXPORT(proxy_on_request_headers) uint32_t on_request_headers(uint32_t context, uint32_t count, uint32_t end) {
  increment_metric(requests, 1);
  return add(context, REQUEST_HEADERS, "x-wasm-order", 12);
}

EXPORT(proxy_on_response_headers) uint32_t on_response_headers(uint32_t context, uint32_t count, uint32_t end) { return add(context, RESPONSE_HEADERS, "x-wasm", 6); }
EXPORT(proxy_on_done) uint32_t on_done(uint32_t context) { return 1; }
EXPORT(proxy_on_log) void on_log(uint32_t context) {}
EXPORT(proxy_on_delete) void on_delete(uint32_t context) {}
