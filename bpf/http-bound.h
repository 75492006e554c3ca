/*
 * How many connections there are that are one client's alone. Envoy opens them by taught clusters and keeps them, whether the
 * kernel has learnt of them or not; so they are counted as sockets, and no more are asked for beyond a bound. docs/http-fast-path.md
 */
#pragma once

/* Set before loading. A server's: what many programs have files for; the node's: eight times that. */
const volatile __u32 http_upstreams_per_server = 1024;
const volatile __u32 http_upstreams_per_node = 8192;

static __always_inline __u32 http_count_upstream(const struct http_upstream_key *key, __s32 n)
{
	__u32 *open = bpf_map_lookup_elem(&http_upstreams, key);
	if (!open && n > 0) {
		__u32 none = 0;
		bpf_map_update_elem(&http_upstreams, key, &none, BPF_NOEXIST);
		open = bpf_map_lookup_elem(&http_upstreams, key);
	}
	if (!open)
		return 1;
	return __sync_fetch_and_add(open, n) + n;
}

/* One of them was opened, or has ended; from sockops, which leaves little of the stack. */
HTTP_GLOBAL int http_upstream_changed(struct socket_state *state, bool opened)
{
	if (!state)
		return 0;
	struct http_upstream_key key = {};
	__s32 n = opened ? 1 : -1;
	http_count_upstream(&key, n);
	key.address = state->tuple.remote;
	key.port = state->tuple.remote_port;
	if (!http_count_upstream(&key, n))
		bpf_map_delete_elem(&http_upstreams, &key);
	return 0;
}

static __always_inline bool http_has_upstream(const struct http_channel *ch, const struct http_upstream_key *key)
{
#pragma unroll
	for (int i = 0; i < HTTP_LEARNT; i++) {
		const struct http_learnt *each = &ch->learnt[i];
		if (each->cookie && !(each->busy & HTTP_CLOSING) && each->tuple.remote_port == key->port && same_address(&each->tuple.remote, &key->address))
			return true;
	}
	return false;
}

/* Whether a request of this client's may make Envoy open one more to this endpoint. A few more than the bound may be under way at a time. */
HTTP_GLOBAL int http_may_open(__u64 client, __u32 endpoint_index)
{
	struct http_upstream_key key = {};
	__u32 *node = bpf_map_lookup_elem(&http_upstreams, &key);
	const struct http_endpoint *endpoint = bpf_map_lookup_elem(&http_endpoints, &endpoint_index);
	if (!endpoint)
		return 1;
	key.address = endpoint->address;
	key.port = bpf_ntohs(endpoint->port);
	__u32 *server = bpf_map_lookup_elem(&http_upstreams, &key);
	if ((!node || *node < http_upstreams_per_node) && (!server || *server < http_upstreams_per_server))
		return 1;
	const struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &client);
	return ch && http_has_upstream(ch, &key);
}
