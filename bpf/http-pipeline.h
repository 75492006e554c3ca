/*
 * Requests that C sends before it has been answered. Without a mesh the server would take them; Envoy can't, since its answer
 * might come before those that are under way. So they go to the same server, if they may, or nowhere.
 */
#pragma once

/* Whether the request in hs is of the class that is under way, and let in by the endpoint that serves it: without a draw. */
static __always_inline bool http_goes_the_same_way(struct socket_state *state, struct http_socket *hs, const struct http_channel *ch)
{
	struct http_class *class = 0;
	__u32 index = ch->endpoint;
	if (http_find_class(state, hs, bpf_ktime_get_coarse_ns(), &class) != COUNTERS || !class || hs->class != ch->class || hs->generation != ch->generation)
		return false;
	const struct http_endpoint *endpoint = bpf_map_lookup_elem(&http_endpoints, &index);
	return endpoint && endpoint->teachable && http_allowed(hs, endpoint) && hs->request.framing != HTTP_CHUNKED &&
	       hs->request.body_length <= HTTP_REQUEST_BODY_MAX;
}

/* The request that begins at `at`, as one of those under way. Where it ends; negative: it is none. */
HTTP_GLOBAL int http_pipeline(struct sk_msg_md *msg, __u32 at)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	/* Not the caller's: 6.1 takes no keys of maps from an argument. */
	struct http_socket *hs = sk ? bpf_sk_storage_get(&http_sockets, sk, 0, 0) : 0;
	if (!hs || !state || at >= msg->size)
		return -1;
	__u64 cookie = state->cookie, netns_cookie = state->netns_cookie;
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &cookie);
	if (!ch)
		return -1;
	if (http_read_head_at(msg, hs, at, HTTP_READS_REQUEST))
		return -1;
	http_body_begin(&hs->body, hs->request.framing, hs->request.body_length);
	int end = at + hs->request.end;
	/* A call, for the stack's sake. */
	if (!http_body_done(&hs->body))
		end = http_continue(msg, hs, end);
	if (end <= 0 || !http_body_done(&hs->body) || !http_goes_the_same_way(state, hs, ch))
		return -1;
	__u32 load = HTTP_NOWHERE, size = end - at;
	bool joined = false;
	/* As for the first one: count, then look. */
	http_activity_add(netns_cookie, 1);
	struct http_pod *pod = bpf_map_lookup_elem(&http_pods, &netns_cookie);
	bool live = pod && pod->state == HTTP_POD_LIVE && pod->table == hs->judged;
	bpf_spin_lock(&ch->lock);
	__u32 place = ch->waiting;
	if (live && ch->state == HTTP_FAST && !ch->open && !ch->unknown && ch->pipelines != HTTP_PIPELINES_LAST && place < HTTP_PIPELINED) {
		joined = true;
		load = ch->load;
		ch->waiting = place + 1;
		ch->heads |= (__u32)(hs->request.method == HTTP_HEAD) << place;
		ch->sizes[place & (HTTP_PIPELINED - 1)] = size;
		ch->pipelines = hs->request.close ? HTTP_PIPELINES_LAST : HTTP_PIPELINES;
	}
	bpf_spin_unlock(&ch->lock);
	if (!joined) {
		http_activity_add(netns_cookie, -1);
		return -1;
	}
	http_load_add(load, 1);
	count(COUNTER_HTTP_REQUESTS_FAST);
	count(COUNTER_HTTP_REQUESTS_PIPELINED);
	return end;
}

/* A function of its own, for the stack's sake. What is to become of the message; `read` of its bytes are requests that joined. */
HTTP_GLOBAL int http_pipeline_lost(struct sk_msg_md *msg, __u32 read)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	if (!state)
		return SK_DROP;
	__u64 cookie = state->cookie;
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &cookie);
	if (!ch)
		return SK_DROP;
	http_lose(ch, read == msg->size ? COUNTER_HTTP_REDIRECT_FAILED : COUNTER_HTTP_LOST_PIPELINED);
	/* What was under way may have been answered in the meantime: then it is Envoy's from the message's beginning. */
	return read || ch->unknown == HTTP_CUT ? http_refuse(msg, ch) : http_pass_on(msg);
}

/* A program of its own, for the stack's sake. */
SEC("sk_msg")
int http_pipelined(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	struct http_socket *hs = sk ? bpf_sk_storage_get(&http_sockets, sk, 0, 0) : 0;
	if (!state || !hs)
		return SK_DROP;
	__u64 cookie = state->cookie;
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &cookie);
	if (!ch)
		return SK_DROP;
	__u64 server = ch->server;
	__u32 at = 0, size = msg->size;
#pragma clang loop unroll(disable)
	for (int i = 0; i < HTTP_PIPELINED; i++) {
		int end = at < size ? http_pipeline(msg, at) : 0;
		if (end <= 0)
			break;
		at = end;
	}
	if (at != size || !server || bpf_msg_redirect_hash(msg, &sockets, &server, BPF_F_INGRESS) != SK_PASS) {
		hs->lost = 1;
		return http_pipeline_lost(msg, at);
	}
	count_moved(state, size);
	return SK_PASS;
}
