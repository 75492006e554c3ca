/*
 * The hooks at the root of the cgroup v2 hierarchy: place.h. Each begins with what is cheap and true of nearly every socket of the
 * machine, since all of them come here.
 */
#pragma once

/* A socket that hooks have seen, of a pod at the root; the caller is no proxy. */
static __always_inline bool is_known_at_root(struct bpf_sock *sk)
{
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	return state && is_rooted(state->netns_cookie) && !is_proxy_cgroup(bpf_get_current_cgroup_id());
}

SEC("sockops")
int root_sockops(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
	case BPF_SOCK_OPS_RTO_CB:
	case BPF_SOCK_OPS_STATE_CB:
		break;
	default:
		return 1;
	}
	if (!is_rooted(bpf_get_netns_cookie(ops)))
		return 1;
	struct tcp_sock *tp = opening_socket(ops);
	if (!tp || is_proxy_cgroup(BPF_CORE_READ(tp, inet_conn.icsk_inet.sk.sk_cgrp_data.cgroup, kn, id)))
		return 1;
	return on_sockops(ops, HOOK_ROOT);
}

SEC("cgroup_skb/egress")
int root_egress(struct __sk_buff *skb)
{
	return on_egress(skb, HOOK_ROOT);
}

SEC("cgroup_skb/ingress")
int root_ingress(struct __sk_buff *skb)
{
	return on_ingress(skb, HOOK_ROOT);
}

SEC("cgroup/getsockopt")
int root_getsockopt(struct bpf_sockopt *ctx)
{
	if (ctx->optname == SO_ORIGINAL_DST && (ctx->level == SOL_IP || ctx->level == SOL_IPV6) && !is_known_at_root(ctx->sk))
		return 1;
	return on_getsockopt(ctx, false);
}

SEC("cgroup/getpeername4")
int root_getpeername4(struct bpf_sock_addr *ctx)
{
	return is_known_at_root(ctx->sk) ? on_getpeername4(ctx) : 1;
}

SEC("cgroup/getpeername6")
int root_getpeername6(struct bpf_sock_addr *ctx)
{
	return is_known_at_root(ctx->sk) ? on_getpeername6(ctx) : 1;
}

SEC("cgroup/getsockname4")
int root_getsockname4(struct bpf_sock_addr *ctx)
{
	return is_known_at_root(ctx->sk) ? on_getsockname4(ctx) : 1;
}

SEC("cgroup/getsockname6")
int root_getsockname6(struct bpf_sock_addr *ctx)
{
	return is_known_at_root(ctx->sk) ? on_getsockname6(ctx) : 1;
}

SEC("cgroup/connect4")
int root_connect4(struct bpf_sock_addr *ctx)
{
	return on_connect4(ctx, HOOK_ROOT);
}

SEC("cgroup/connect6")
int root_connect6(struct bpf_sock_addr *ctx)
{
	return on_connect6(ctx, HOOK_ROOT);
}
