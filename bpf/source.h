/*
 * Who really calls, for the application behind a proxy: the proxy binds what it opens in a pod's namespace to its caller's
 * address, the bind hooks keep that and let the kernel choose the pod's own, so that no route or rule has to lead foreign
 * addresses; the end that accepts is told as both are established, and answers its peer's name by it.
 */
#pragma once

/* bind() of a proxy: true when the address is a caller's, and not one that this socket is to have. */
static __always_inline bool keep_source(struct bpf_sock_addr *ctx, const struct address *wanted)
{
	struct bpf_sock *sk = ctx->sk;
	if (!sk || ctx->protocol != IPPROTO_TCP || ctx->user_port || is_unset(wanted) || is_loopback(wanted))
		return false;
	if (is_ipv4(wanted) && !wanted->word[3])
		return false;
	__u64 netns_cookie = bpf_get_netns_cookie(ctx);
	struct host *host = this_host();
	if (host && host->netns_cookie == netns_cookie)
		return false;
	__u64 *owner = bpf_map_lookup_elem(&netns_of_address, wanted);
	if (owner && *owner == netns_cookie)
		return false; /* the pod calls itself */
	/* Nobody will tell the other end; the connection is not to fail for that. */
	if (!bpf_map_lookup_elem(&pods, &netns_cookie))
		return true;
	struct socket_state *state = bpf_sk_storage_get(&socket_states, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state) {
		count(COUNTER_CONNECTION_STORAGE_FAILED);
		return true; /* the application sees its own pod's address */
	}
	state->flags = SOCKET_SOURCED;
	state->cookie = 0;
	state->peer_cookie = 0;
	state->source = *wanted;
	return true;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	struct address wanted;
	set_ipv4(&wanted, ctx->user_ip4);
	if (keep_source(ctx, &wanted))
		ctx->user_ip4 = 0;
	return 1;
}

static __always_inline void show_address6(struct bpf_sock_addr *ctx, const struct address *address)
{
	ctx->user_ip6[0] = address->word[0];
	ctx->user_ip6[1] = address->word[1];
	ctx->user_ip6[2] = address->word[2];
	ctx->user_ip6[3] = address->word[3];
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	struct address wanted = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };
	struct address any = {};
	if (keep_source(ctx, &wanted))
		show_address6(ctx, &any);
	return 1;
}

/* getpeername() and accept() of a program that a proxy stands before. The port stays that of the proxy's socket. */
static __always_inline bool find_source(struct bpf_sock_addr *ctx, struct address *out)
{
	struct bpf_sock *sk = ctx->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	if (!state || (state->flags & (SOCKET_SOURCED | SOCKET_ACCEPTED)) != (SOCKET_SOURCED | SOCKET_ACCEPTED))
		return false;
	*out = state->source;
	return true;
}
