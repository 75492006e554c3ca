/* sockops of a connection whose endpoint was drawn: one that is refused, or whose SYN is not answered, is left out for a time. */
#pragma once

static __always_inline struct socket_state *resolved_opening(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	return state && (state->flags & SOCKET_RESOLVED) && (state->flags & SOCKET_CONNECTING) ? state : 0;
}

static __always_inline void watch_opening(struct bpf_sock_ops *ops)
{
	if (resolved_opening(ops))
		bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTO_CB_FLAG);
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
	struct socket_state *state = ops->state == BPF_TCP_SYN_SENT ? resolved_opening(ops) : 0;
	if (state)
		mark_outlier(state);
	return 1;
}

/* An application that gives up says nothing about the endpoint: then there is no error on the socket. */
static __always_inline void opening_failed(struct bpf_sock_ops *ops)
{
	if (ops->args[0] != BPF_TCP_SYN_SENT || ops->args[1] != BPF_TCP_CLOSE)
		return;
	struct socket_state *state = resolved_opening(ops);
	struct bpf_sock *sk = ops->sk;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;
	if (state && tp && tp->inet_conn.icsk_inet.sk.sk_err)
		mark_outlier(state);
}
