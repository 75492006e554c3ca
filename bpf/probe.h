/*
 * cgroup_skb/egress: counts what goes by TCP as it goes, and learns whether a program's sockets block, by looking at the
 * file's flags while it sends data (DESIGN rule 11). What user space must know about a program is asked for here too.
 */
#pragma once

/* TCP's own: no payload. Most packets of a short connection are, and looking up a socket's state costs more than this. */
static __always_inline bool is_bare(const struct __sk_buff *skb, const struct tcp_sock *tp)
{
	__u32 headers = (skb->protocol == bpf_htons(ETH_P_IPV6) ? IPV6_HEADER : IPV4_HEADER) + tp->tcp_header_len;
	return skb->len <= headers;
}

static __always_inline int on_egress(struct __sk_buff *skb, enum hook_place place)
{
	struct bpf_sock *sk = skb->sk;
	if (!sk)
		return EGRESS_ALLOW;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return EGRESS_ALLOW;
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (!tp || is_bare(skb, tp))
		return EGRESS_ALLOW;
	struct socket_state *state = bpf_sk_storage_get(&socket_states, sk, 0, 0);
	if (!state || !state->cookie)
		return EGRESS_ALLOW;
	if (place == HOOK_ROOT && (!is_rooted(state->netns_cookie) || is_proxy_cgroup(bpf_skb_cgroup_id(skb))))
		return EGRESS_ALLOW;
	count_tcp(state, tp);
	brief_goes_on(state, tp);
	if (!(state->flags & SOCKET_PROBED))
		return EGRESS_ALLOW;
	__u32 data_segments = tp->data_segs_out;
	if (data_segments == state->data_segments)
		return EGRESS_ALLOW; /* TCP's own: no payload in it */
	state->data_segments = data_segments;
	/* Closed already, or not accepted yet: no file. */
	struct file *file = BPF_CORE_READ(tp, inet_conn.icsk_inet.sk.sk_socket, file);
	if (!file)
		return EGRESS_ALLOW;
	if (!(BPF_CORE_READ(file, f_flags) & O_NONBLOCK)) {
		state->flags &= ~SOCKET_PROBED;
		mark_program(state, MARK_BLOCKING);
		return EGRESS_ALLOW;
	}
	if (sends_zero_copy(BPF_CORE_READ(tp, inet_conn.icsk_inet.sk.__sk_common.skc_flags))) {
		state->flags &= ~SOCKET_PROBED;
		mark_program(state, MARK_SPLICED);
		return EGRESS_ALLOW;
	}
	if (!(state->flags & SOCKET_PROBE_COUNTED)) {
		state->flags |= SOCKET_PROBE_COUNTED;
		struct verdict *v = verdict_of(state);
		if (v) {
			__sync_fetch_and_add(&v->seen, 1);
			ask_for_clearance(state, v);
		}
	}
	return EGRESS_ALLOW;
}

SEC("cgroup_skb/egress")
int probe_egress(struct __sk_buff *skb)
{
	return on_egress(skb, HOOK_POD);
}
