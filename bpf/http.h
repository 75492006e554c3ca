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

SEC("sk_msg")
int move_message(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	if (!state) {
		count(COUNTER_MESSAGE_NO_STATE);
		return SK_PASS;
	}
	/* Goes on from here only where that program is not there. */
	if (state->flags & SOCKET_HTTP)
		bpf_tail_call(msg, &http_programs, http_role(state));
	return move(msg, sk, state);
}
