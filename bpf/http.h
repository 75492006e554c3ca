/* sk_msg of the HTTP fast path: one program for each of the four ends, one for clients that pipeline, and the one that all messages meet. */
#pragma once

enum http_role {
	HTTP_ROLE_CLIENT,
	HTTP_ROLE_DOWNSTREAM,
	HTTP_ROLE_UPSTREAM,
	HTTP_ROLE_SERVER,
	HTTP_ROLE_PIPELINED, /* of a client */
	HTTP_ROLES,
};

/* Programs of their own, so that none is too large for the verifier; filled by native/src/object.cc. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, HTTP_ROLES);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} http_programs SEC(".maps");

#include "http-match.h"
#include "http-draw.h"
#include "http-read.h"
#include "http-client.h"
#include "http-pipeline.h"
#include "http-server.h"
#include "http-proxy.h"

static __always_inline __u32 http_role(const struct socket_state *state)
{
	if (state->flags & SOCKET_PROXY)
		return state->flags & SOCKET_ACCEPTED ? HTTP_ROLE_DOWNSTREAM : HTTP_ROLE_UPSTREAM;
	return state->flags & SOCKET_ACCEPTED ? HTTP_ROLE_SERVER : HTTP_ROLE_CLIENT;
}

struct tapping {
	struct sk_msg_md *msg;
	struct watch *watch;
	__u64 cookie, at_ns;
	__u32 size;
};

static long tap_chunk(__u32 index, void *context)
{
	struct tapping *tapping = context;
	struct sk_msg_md *msg = tapping->msg;
	__u32 at = index * WATCH_CHUNK, n = tapping->size - at;
	if (at >= tapping->size)
		return 1;
	if (n > WATCH_CHUNK)
		n = WATCH_CHUNK;
	if (bpf_msg_pull_data(msg, at, at + n, 0))
		return 1;
	struct watch_payload *payload = bpf_ringbuf_reserve(&watch_events, sizeof(*payload), 0);
	if (!payload) {
		count(COUNTER_WATCH_EVENTS_LOST);
		return 1;
	}
	payload->what = WATCH_PAYLOAD;
	payload->length = n;
	payload->at_ns = tapping->at_ns;
	payload->cookie = tapping->cookie;
	payload->at = at;
	payload->size = tapping->size;
	HTTP_FORGET(n);
	if (n > WATCH_CHUNK || bpf_probe_read_kernel(payload->data, n, msg->data)) {
		bpf_ringbuf_discard(payload, 0);
		return 1;
	}
	bpf_ringbuf_submit(payload, 0);
	return 0;
}

/* What the socket sends, before anything is added to it. */
HTTP_GLOBAL int tap(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	struct watch *watch = watch_of(WATCH_CAPTURE);
	if (!state || !watch)
		return 0;
	__u32 size = msg->size;
	if (__sync_fetch_and_add(&watch->left, -(__s64)size) < (__s64)size) {
		__sync_fetch_and_add(&watch->left, (__s64)size);
		tell_cut(state->cookie, size);
		return 0;
	}
	struct tapping tapping = { .msg = msg, .cookie = state->cookie, .at_ns = bpf_ktime_get_ns(), .size = size };
	for (__u32 i = 0; i < WATCH_CHUNKS; i++)
		if (tap_chunk(i, &tapping))
			break;
	return 0;
}

SEC("sk_msg")
int move_message(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	if (!state) {
		count(COUNTER_MESSAGE_NO_STATE);
		return SK_PASS;
	}
	if (state->flags & SOCKET_TAPPED)
		tap(msg);
	/* Goes on from here only where that program is not there. */
	if (state->flags & SOCKET_HTTP)
		bpf_tail_call(msg, &http_programs, http_role(state));
	return move(msg, sk, state);
}
