/*
 * sockops of connections that are not established yet and meet no proxy. Where the endpoint was drawn, one that refuses, or leaves
 * its SYN unanswered, is left out for a time.
 */
#pragma once

static __always_inline struct socket_state *direct_opening(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	return state && (state->flags & SOCKET_CONNECTING) && !(state->flags & (SOCKET_CAPTURED | SOCKET_PROXY)) ? state : 0;
}

static __always_inline void watch_opening(struct bpf_sock_ops *ops)
{
	struct socket_state *state = direct_opening(ops);
	if (!state)
		return;
	int flags = ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG;
	if (state->flags & SOCKET_RESOLVED)
		flags |= BPF_SOCK_OPS_RTO_CB_FLAG;
	bpf_sock_ops_cb_flags_set(ops, flags);
}

static __always_inline void mark_outlier(const struct socket_state *state)
{
	struct service_key key = { .address = state->endpoint, .port = bpf_ntohs(state->rewritten_port) };
	__u64 until = bpf_ktime_get_ns() + OUTLIER_NS;
	bpf_map_update_elem(&outliers, &key, &until, BPF_ANY);
	count(COUNTER_ENDPOINTS_LEFT_OUT);
}

/* The first SYN went unanswered for as long as TCP waits: a second. */
static __always_inline int unanswered(struct bpf_sock_ops *ops)
{
	struct socket_state *state = ops->state == BPF_TCP_SYN_SENT ? direct_opening(ops) : 0;
	if (state && (state->flags & SOCKET_RESOLVED))
		mark_outlier(state);
	return 1;
}

/*
 * An application that gives up says nothing about the endpoint: then there is no error on the socket. Who refused has seen the
 * connection, who is silent may not have.
 */
static __always_inline void opening_failed(struct bpf_sock_ops *ops)
{
	if (ops->args[0] != BPF_TCP_SYN_SENT || ops->args[1] != BPF_TCP_CLOSE)
		return;
	struct socket_state *state = direct_opening(ops);
	struct bpf_sock *sk = ops->sk;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;
	if (!state || !tp || !tp->inet_conn.icsk_inet.sk.sk_err)
		return;
	if (state->flags & SOCKET_RESOLVED)
		mark_outlier(state);
	struct address endpoint = {};
	remote_address(&tp->inet_conn.icsk_inet.sk.__sk_common, &endpoint);
	__u64 own = state->netns_cookie;
	__u64 *other = bpf_map_lookup_elem(&netns_of_address, &endpoint);
	struct pod *pod = bpf_map_lookup_elem(&pods, &own);
	if (!other || *other == own || !pod || (pod->flags & POD_REDIRECTED))
		return;
	struct flow_key key = {};
	name_flow(&key, own, *other, &state->original, &endpoint, bpf_ntohs(tp->inet_conn.icsk_inet.sk.__sk_common.skc_dport));
	flow_refused(&key, false, tp->inet_conn.icsk_inet.sk.sk_err == ECONNREFUSED);
}
