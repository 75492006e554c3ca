/*
 * What comes over the network to a pod whose policy needs the proxy is led to the proxy's listener in the pod's namespace: as the
 * kernel looks for the listening socket, with no rewriting, so that the accepted socket has the addresses that the caller used.
 */
#pragma once

/* `family`: of the listening socket. */
struct inbound_key {
	__u64 netns_cookie;
	__u32 family;
	__u32 reserved;
};

/* The kernel takes out a socket that closes. Of several on one port each stands for all: the kernel then chooses as their SO_REUSEPORT says. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, MAX_PODS * 2);
	__type(key, struct inbound_key);
	__type(value, __u64);
} inbound_listeners SEC(".maps");

/* sockops of a proxy. */
static __always_inline int note_listener(struct bpf_sock_ops *ops)
{
	if (ops->local_port != INBOUND_PORT)
		return 1;
	struct inbound_key key = { .netns_cookie = bpf_get_netns_cookie(ops), .family = ops->family };
	bpf_sock_hash_update(ops, &inbound_listeners, &key, BPF_ANY);
	return 1;
}

/* Who goes to the application itself: the node, and whom the kernel judges instead of the proxy. */
static __always_inline bool passes_proxy(const struct tuple *key)
{
	struct host *host = this_host();
	struct opening *opening = bpf_map_lookup_elem(&openings, key);
	if (!opening)
		return false;
	return (host && !opening->slot && opening->netns_cookie == host->netns_cookie) || is_judged(opening, key);
}

/* Attached only to namespaces of pods that need it; what it drops is answered with a reset. */
SEC("sk_lookup")
int steer_inbound(struct bpf_sk_lookup *ctx)
{
	__u32 port = ctx->local_port;
	if (ctx->protocol != IPPROTO_TCP || port == INBOUND_PORT || port == HBONE_PORT)
		return SK_PASS;
	struct tuple key = { .local_port = bpf_ntohs(ctx->remote_port), .remote_port = port };
	if (ctx->family == AF_INET) {
		set_ipv4(&key.local, ctx->remote_ip4);
		set_ipv4(&key.remote, ctx->local_ip4);
	} else {
		key.local.word[0] = ctx->remote_ip6[0];
		key.local.word[1] = ctx->remote_ip6[1];
		key.local.word[2] = ctx->remote_ip6[2];
		key.local.word[3] = ctx->remote_ip6[3];
		key.remote.word[0] = ctx->local_ip6[0];
		key.remote.word[1] = ctx->local_ip6[1];
		key.remote.word[2] = ctx->local_ip6[2];
		key.remote.word[3] = ctx->local_ip6[3];
	}
	/* The pod itself, and the proxy in its namespace. Such a packet from elsewhere is a martian, or its answer stays in the pod. */
	if (is_loopback(&key.remote) || same_address(&key.local, &key.remote))
		return SK_PASS;
	struct inbound_key place = { .family = ctx->family };
	__u64 *own = bpf_map_lookup_elem(&netns_of_address, &key.remote);
	if (own) {
		key.netns_cookie = place.netns_cookie = *own;
		__u64 *source = bpf_map_lookup_elem(&netns_of_address, &key.local);
		if ((source && *source == *own) || passes_proxy(&key))
			return SK_PASS;
		struct bpf_sock *listener = bpf_map_lookup_elem(&inbound_listeners, &place);
		if (listener) {
			long failed = bpf_sk_assign(ctx, listener, 0);
			bpf_sk_release(listener);
			if (!failed) {
				count(COUNTER_INBOUND_STEERED);
				return SK_PASS;
			}
		}
	}
	count(COUNTER_INBOUND_UNSERVED);
	return SK_DROP;
}
