/* bpf/http-parse.h in the kernel: that its verifier takes it, that it reads the same as in user space, and what it costs. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "structs.h"
#include "http-structs.h"
#include "http-parse.h"
#include "probe.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct parse_probe);
} probes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct http_scratch);
} scratches SEC(".maps");

static long again(__u32 i, struct parse_probe **p)
{
	probe_run(*p);
	return 0;
}

SEC("syscall")
int read_probe(void *context)
{
	__u32 key = 0;
	struct parse_probe *p = bpf_map_lookup_elem(&probes, &key);
	if (!p)
		return 1;
	__u64 before = bpf_ktime_get_ns();
	bpf_loop(p->times, again, &p, 0);
	p->nanoseconds = bpf_ktime_get_ns() - before;
	return 0;
}

/* As the data path uses it: the scratch in a socket's storage, the window on the stack. */
SEC("sk_msg")
int read_message(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct http_scratch *s = sk ? bpf_sk_storage_get(&scratches, sk, 0, BPF_SK_STORAGE_GET_F_CREATE) : 0;
	struct http_request request = {};
	struct http_answer answer = {};
	struct http_body body = {};
	__u64 host[8];
	__u8 window[HTTP_WINDOW] = {};
	if (!s)
		return SK_PASS;
	s->length = msg->size;
	if (http_read_request(s, &request) == 0) {
		http_copy_host(s, &request, host);
		http_body_begin(&body, request.framing, request.body_length);
	} else if (http_read_answer(s, false, &answer) == 0) {
		http_body_begin(&body, answer.framing, answer.body_length);
	}
	return http_body_advance(&body, window, HTTP_WINDOW, msg->size) < 0 ? SK_DROP : SK_PASS;
}

char _license[] SEC("license") = "GPL";
