/* What C sends: each request to whoever is to have it. */
#pragma once

/* As any other message goes on. */
HTTP_GLOBAL int http_pass_on(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	return state ? move(msg, sk, state) : SK_PASS;
}

/* Of one that does not go on: `move` marks the program of any other. */
HTTP_GLOBAL int http_mark_blocking(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	struct tcp_sock *self = sk ? bpf_skc_to_tcp_sock(sk) : 0;
	if (!state || !self || state->flags & (SOCKET_BLOCKING | SOCKET_TLS | SOCKET_FORCED) || nonblocking(self))
		return 0;
	state->flags |= SOCKET_BLOCKING;
	mark_program(state, MARK_BLOCKING);
	count(COUNTER_MESSAGE_BLOCKING);
	return 0;
}

static __always_inline __u32 written(__u64 sock)
{
	if (LINUX_KERNEL_VERSION >= KERNEL_6_2) {
		const struct tcp_sock *tp = bpf_rdonly_cast((void *)sock, bpf_core_type_id_kernel(struct tcp_sock));
		return tp->write_seq;
	}
	return BPF_CORE_READ((const struct tcp_sock *)sock, write_seq);
}

/* Rule 2: nothing that went by TCP to `sock` is still to be read there. */
static __always_inline bool http_drained(__u64 sock, __u64 its_peer)
{
	struct receiver other;
	if (http_faults & HTTP_FAULT_ORDER)
		return true;
	read_receiver(sock, &other);
	return !other.ulp && written(its_peer) == other.copied_seq;
}

/* The two lines that tell Envoy of the draw. */
static __always_inline bool http_draw_text(struct http_socket *hs, bool shared)
{
	__u32 index = hs->class, at = hs->endpoint, split = hs->split;
	const struct http_class *class = bpf_map_lookup_elem(&http_classes, &index);
	const struct http_endpoint *endpoint = bpf_map_lookup_elem(&http_endpoints, &at);
	if (!class || !endpoint || class->generation != hs->generation || split >= HTTP_SPLITS)
		return false;
	__builtin_memcpy(hs->text, class->splits[split].text, HTTP_WEIGHT_TEXT);
	if (hs->trace == HTTP_TRACE_ASKED)
		hs->text[HTTP_SAMPLED_AT] = HTTP_SAMPLED;
	__builtin_memcpy(hs->text + HTTP_WEIGHT_TEXT, endpoint->text, HTTP_ENDPOINT_TEXT);
	if (shared)
		hs->text[HTTP_WEIGHT_TEXT + HTTP_SHARED_AT] = HTTP_SHARED;
	return true;
}

/* The class of the request in hs, by its pod's routes. COUNTERS: it may be fast; anything else is why not. */
static __always_inline enum counter http_find_class(struct socket_state *state, struct http_socket *hs, __u64 now, struct http_class **found)
{
	__u64 netns_cookie = state->netns_cookie;
	hs->generation = 0;
	hs->trace = 0;
	hs->load = HTTP_NOWHERE;
	hs->monitor = 0;
	if (!http_on(now))
		return COUNTER_HTTP_SWITCHED_OFF;
	struct http_pod *pod = bpf_map_lookup_elem(&http_pods, &netns_cookie);
	if (!pod || pod->state != HTTP_POD_LIVE)
		return COUNTER_HTTP_POD_OFF;
	enum counter reason = http_seek_class(state, hs, pod->table);
	if (reason != COUNTERS)
		return reason;
	__u32 index = hs->found_class;
	struct http_class *class = index == HTTP_NOWHERE ? 0 : bpf_map_lookup_elem(&http_classes, &index);
	if (!class || !class->generation)
		return COUNTER_HTTP_NO_CLASS;
	if (!(class->flags & HTTP_CLASS_FAST))
		return COUNTER_HTTP_CLASS_ENVOY;
	__u32 kind = class->trace, context = hs->request.trace;
	if (kind && context & (kind << 2 | HTTP_TRACE_ASKED))
		return COUNTER_HTTP_TRACED;
	hs->class = index;
	hs->generation = class->generation;
	*found = class;
	return COUNTERS;
}

/*
 * What the tables say of the request in hs. COUNTERS: it may be fast, by the class and endpoint in hs; anything else is why
 * not, and `drawn` whether Envoy is to be told of the draw.
 */
static __always_inline enum counter http_decide(struct socket_state *state, struct http_socket *hs, __u64 now, bool *drawn)
{
	struct http_class *class = 0;
	*drawn = false;
	enum counter reason = http_find_class(state, hs, now, &class);
	if (reason != COUNTERS || !class)
		return reason;
	__u32 kind = class->trace;
	/* Before anything else that leads to Envoy, which is told of it with the draw. */
	hs->trace = hs->request.trace & kind ? 0 : class->sampled && bpf_get_prandom_u32() < class->sampled ? HTTP_TRACE_ASKED : kind;
	const struct http_split *split = http_draw_split(class, &hs->split);
	__u32 cluster_index = split ? split->cluster : HTTP_NOWHERE;
	struct http_cluster *cluster = split ? bpf_map_lookup_elem(&http_clusters, &cluster_index) : 0;
	struct http_endpoint *endpoint;
	if (cluster && cluster->detector) {
		hs->endpoint = http_draw_watched(cluster_index);
		__u32 at = hs->endpoint;
		endpoint = bpf_map_lookup_elem(&http_endpoints, &at);
		if (!endpoint)
			return cluster->count ? COUNTER_HTTP_EJECTED : COUNTER_HTTP_NO_ENDPOINT;
		hs->monitor = endpoint->monitor;
	} else {
		endpoint = cluster ? http_draw_endpoint(cluster, &hs->endpoint) : 0;
		if (!endpoint)
			return COUNTER_HTTP_NO_ENDPOINT;
	}
	hs->load = endpoint->load;
	hs->service = split->service;
	*drawn = true;
	if (!http_allowed(hs, endpoint))
		return COUNTER_HTTP_POLICY_ENVOY;
	if (!endpoint->teachable)
		return COUNTER_HTTP_NOT_TEACHABLE;
	if (class->envoy_until_ns && class->envoy_until_ns > now)
		return COUNTER_HTTP_CLASS_PAUSED;
	if (hs->request.framing == HTTP_CHUNKED || hs->request.body_length > HTTP_REQUEST_BODY_MAX)
		return COUNTER_HTTP_BODY;
	if (hs->request.close)
		return COUNTER_HTTP_CLOSE;
	if (hs->trace == HTTP_TRACE_ASKED)
		return COUNTER_HTTP_SAMPLED;
	return COUNTERS;
}

enum http_pushed { HTTP_PUSHED, HTTP_NOT_PUSHED, HTTP_PUSHED_NOTHING /* room is made, and nothing stands there: the kernel's memory is nobody's to read */ };

/* Puts so many bytes of hs->text behind the request line. */
static __always_inline enum http_pushed http_push(struct sk_msg_md *msg, struct http_socket *hs, const __u32 bytes)
{
	__u32 at = hs->scratch.line_at[1];
	if (bpf_msg_push_data(msg, at, bytes, 0))
		return HTTP_NOT_PUSHED;
	if (bpf_msg_pull_data(msg, at, at + bytes, 0))
		return HTTP_PUSHED_NOTHING;
	__u64 *to = msg->data, *end = msg->data_end;
	const __u64 *from = (const void *)hs->text;
	if (to + bytes / 8 > end)
		return HTTP_PUSHED_NOTHING;
#pragma unroll
	for (__u32 i = 0; i < bytes / 8; i++)
		to[i] = from[i];
	if (http_faults & (msg->size > HTTP_HEAD_MAX ? HTTP_FAULT_PUSH_LARGE : HTTP_FAULT_PUSH)) {
		__u8 *behind = bpf_msg_pull_data(msg, at + HTTP_DRAW_TEXT, at + HTTP_DRAW_TEXT + 1, 0) ? 0 : msg->data;
		if (behind && behind + 1 <= (__u8 *)msg->data_end)
			*behind = '?';
	}
	return HTTP_PUSHED;
}

/* A random number in hexadecimal digits. */
static __always_inline __u64 http_random_digits(void)
{
	__u64 x = bpf_get_prandom_u32();
	x = (x | x << 16) & 0x0000ffff0000ffffull;
	x = (x | x << 8) & 0x00ff00ff00ff00ffull;
	x = (x | x << 4) & (HTTP_ONES * 0x0f);
	return x + HTTP_ONES * '0' + (((x + HTTP_ONES * 6) >> 4) & HTTP_ONES) * ('a' - '0' - 10);
}

/* As Envoy makes them: a UUID of random digits, version 4. */
static __always_inline enum http_pushed http_give_id(struct sk_msg_md *msg, struct http_socket *hs)
{
	__u64 *text = (void *)hs->text, a = http_random_digits(), b = http_random_digits(), c = http_random_digits();
	text[0] = HTTP_WORD("x-reques", 0);
	text[1] = HTTP_WORD("t-id:   ", 0);
	text[2] = http_random_digits();
	text[3] = HTTP_WORD("-\0\0\0\0-4", 0) | (a & 0xffffffff) << 8 | a >> 32 << 56;
	text[4] = HTTP_WORD("\0\0-8\0\0\0-", 0) | (a >> 40 & 0xffff) | (b & 0xffffff) << 32;
	text[5] = b >> 24 | c << 40;
	text[6] = (c >> 24 & 0xffffffff) | HTTP_WORD("  \r\n", 0) << 32;
	return http_push(msg, hs, 56);
}

/*
 * What Envoy would have told the server: not to be traced. Else whoever the server calls next would draw anew, and most traces
 * would begin in the middle.
 */
static __always_inline enum http_pushed http_tell_untraced(struct sk_msg_md *msg, struct http_socket *hs)
{
	__u64 *text = (void *)hs->text;
	if (hs->trace == HTTP_TRACE_B3) {
		text[0] = HTTP_WORD("x-b3-sam", 0);
		text[1] = HTTP_WORD("pled: 0 ", 0);
		text[2] = HTTP_WORD("      \r\n", 0);
		return http_push(msg, hs, 24);
	}
	/* Of a trace that nobody writes; it has to have a name all the same. */
	__u64 first = http_random_digits(), second = http_random_digits();
	text[0] = HTTP_WORD("tracepar", 0);
	text[1] = HTTP_WORD("ent: 00-", 0);
	for (int i = 2; i < 6; i++)
		text[i] = http_random_digits();
	text[6] = '-' | first << 8;
	text[7] = first >> 56 | second << 8;
	text[8] = second >> 56 | HTTP_WORD("-00  \r\n", 0) << 8;
	return http_push(msg, hs, 72);
}

static __always_inline int http_drop(struct sk_msg_md *msg, struct http_socket *hs, struct http_channel *ch)
{
	hs->lost = 1;
	http_lose(ch, COUNTER_HTTP_REDIRECT_FAILED);
	http_end_client(ch, false);
	return http_swallow(msg);
}

/* What Envoy and the node's settings add to a head: one that gets longer than what is read of it would bring its lesson to the server. */
#define HTTP_HEAD_ADDED 512
#define HTTP_LINES_ADDED 12

static __always_inline bool http_has_room(const struct http_socket *hs)
{
	return hs->request.end <= HTTP_HEAD_MAX - HTTP_HEAD_ADDED && hs->scratch.lines <= HTTP_LINES_MAX - HTTP_LINES_ADDED;
}

/* What went to `server` in place of the socket's own peer. */
static __always_inline void http_tell_fast(const struct socket_state *state, __u64 server, __u32 size)
{
	if (state->flags & SOCKET_TRACED)
		tell_point(WATCH_FAST, COUNTERS, state->cookie, server, size);
	if (state->flags & SOCKET_TAPPED)
		tell_led(state->cookie, server);
}

/* To Envoy, as the exchange that it has under way. */
static __always_inline int http_to_envoy(struct sk_msg_md *msg, struct http_socket *hs, struct http_channel *ch, __u64 now, bool drawn, enum counter why)
{
	bool open = hs->begun, taken = false;
	count(why);
	if (hs->traced)
		tell_point(WATCH_TO_ENVOY, why, ch->cookie, ch->tuple.netns_cookie, msg->size);
	if (drawn) {
		bool taught = why != COUNTER_HTTP_NOT_TEACHABLE, shared = taught && !http_may_open(ch->cookie, hs->endpoint);
		if (shared)
			count(COUNTER_HTTP_CONNECTIONS_BOUND);
		enum http_pushed pushed = (taught && !shared && !http_has_room(hs)) || !http_draw_text(hs, shared) ? HTTP_NOT_PUSHED : http_push(msg, hs, HTTP_DRAW_TEXT);
		if (pushed == HTTP_PUSHED_NOTHING)
			return http_drop(msg, hs, ch);
		if (pushed == HTTP_NOT_PUSHED) {
			drawn = false;
			hs->generation = 0;
		}
	}
	count(drawn ? COUNTER_HTTP_REQUESTS_DRAWN : COUNTER_HTTP_REQUESTS_ENVOY);
	__u32 load = drawn ? hs->load : HTTP_NOWHERE;
	bpf_spin_lock(&ch->lock);
	if (ch->state == HTTP_IDLE) {
		taken = true;
		ch->state = HTTP_ENVOY;
		ch->server = 0;
		ch->class = hs->class;
		ch->generation = drawn ? hs->generation : 0;
		ch->endpoint = hs->endpoint;
		ch->load = load;
		ch->monitor = drawn ? hs->monitor : 0;
		ch->status = 0;
		ch->open = open;
		ch->to_head = hs->request.method == HTTP_HEAD;
		ch->started_ns = now;
		ch->used_ns = now;
	}
	bpf_spin_unlock(&ch->lock);
	if (taken)
		http_load_add(load, 1);
	return http_pass_on(msg);
}

/* Index of the learnt server; HTTP_LEARNT: none. */
static __always_inline __u32 http_find_learnt(const struct http_channel *ch, const struct http_socket *hs, bool *busy)
{
	__u32 place = http_place(hs->class, hs->endpoint);
#pragma unroll
	for (int i = 0; i < 2; i++, place ^= 1) {
		const struct http_learnt *each = &ch->learnt[place & (HTTP_LEARNT - 1)];
		if (!each->cookie || each->class != hs->class || each->generation != hs->generation || each->endpoint != hs->endpoint ||
		    each->busy & HTTP_CLOSING)
			continue;
		if (!each->busy)
			return place;
		*busy = true;
	}
	return HTTP_LEARNT;
}

/* A request that the kernel has under way has been sent whole: the exchange's end, if it has been answered before. */
static __always_inline void http_asked_whole(struct http_channel *ch)
{
	struct http_ended ended = {};
	bpf_spin_lock(&ch->lock);
	if (ch->state == HTTP_FAST) {
		ch->open = 0;
		if (ch->unknown == HTTP_ANSWERED)
			http_take(ch, &ended, HTTP_IDLE);
	}
	bpf_spin_unlock(&ch->lock);
	if (ended.state == HTTP_FAST)
		http_settle(&ended);
}

/* `now`: of the request, by which its answer is found. */
HTTP_GLOBAL int http_tell_request(struct sk_msg_md *msg, __u64 now, __u64 server_netns)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	struct http_socket *hs = sk ? bpf_sk_storage_get(&http_sockets, sk, 0, 0) : 0;
	if (!state || !hs)
		return 0;
	struct watch_request *request = bpf_ringbuf_reserve(&watch_events, sizeof(*request), 0);
	if (!request) {
		count(COUNTER_WATCH_EVENTS_LOST);
		return 0;
	}
	request->what = WATCH_REQUEST;
	request->size = msg->size;
	request->at_ns = now;
	request->cookie = state->cookie;
	request->netns_cookie = state->netns_cookie;
	request->server_netns = server_netns;
	request->service = hs->service;
	request->length = hs->request.end < WATCH_HEAD ? hs->request.end : WATCH_HEAD;
	bpf_probe_read_kernel(request->head, WATCH_HEAD, hs->scratch.words);
	bpf_ringbuf_submit(request, 0);
	return 0;
}

SEC("sk_msg")
int http_client(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	if (!state)
		return SK_PASS;
	struct http_socket *hs = bpf_sk_storage_get(&http_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	__u64 cookie = state->cookie;
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &cookie);
	if (ch && ch->unknown == HTTP_CUT)
		return http_swallow(msg);
	if (!hs || hs->lost || !find_peer(state))
		return http_pass_on(msg);
	if (!ch) {
		ch = http_open(state);
		if (!ch) {
			hs->lost = 1;
			return http_pass_on(msg);
		}
		count(COUNTER_HTTP_CHANNELS);
	}
	struct tcp_sock *self = bpf_skc_to_tcp_sock(sk);
	if (!self || (state->flags & (SOCKET_BLOCKING | SOCKET_TLS)) || (!(state->flags & SOCKET_FORCED) && !nonblocking(self))) {
		hs->lost = 1;
		http_lose(ch, COUNTER_HTTP_LOST_BLOCKING);
		if (ch->unknown != HTTP_CUT)
			return http_pass_on(msg);
		http_mark_blocking(msg);
		return http_swallow(msg);
	}
	__u32 owner = ch->state, size = msg->size;
	if (hs->begun) {
		int end = http_follow(msg, hs, 0);
		if (end < 0 || (__u32)end != size) {
			hs->lost = 1;
			http_lose(ch, end < 0 ? COUNTER_HTTP_LOST_DOUBT : COUNTER_HTTP_LOST_PIPELINED);
			return hs->fast ? http_refuse(msg, ch) : http_pass_on(msg);
		}
		bool whole = http_body_done(&hs->body);
		if (whole)
			hs->begun = 0;
		if (!hs->fast) {
			if (whole) {
				bpf_spin_lock(&ch->lock);
				ch->open = 0;
				bpf_spin_unlock(&ch->lock);
			}
			return http_pass_on(msg);
		}
		__u64 server = ch->server;
		ch->request_bytes += size;
		if (owner != HTTP_FAST || !server || bpf_msg_redirect_hash(msg, &sockets, &server, BPF_F_INGRESS) != SK_PASS) {
			hs->lost = 1;
			http_lose(ch, COUNTER_HTTP_REDIRECT_FAILED);
			return http_refuse(msg, ch);
		}
		count_moved(state, size);
		http_tell_fast(state, server, size);
		if (whole)
			http_asked_whole(ch);
		return SK_PASS;
	}
	/* A request before the answer to the one before it. */
	if (owner == HTTP_FAST) {
		bpf_tail_call(msg, &http_programs, HTTP_ROLE_PIPELINED);
		return SK_DROP;
	}
	if (owner == HTTP_ENVOY) {
		hs->lost = 1;
		http_lose(ch, COUNTER_HTTP_LOST_PIPELINED);
		return ch->unknown == HTTP_CUT ? http_swallow(msg) : http_pass_on(msg);
	}
	if (owner == HTTP_LOST) {
		hs->lost = 1;
		return http_pass_on(msg);
	}
	int doubt = http_read_head(msg, hs, HTTP_READS_REQUEST);
	int end = -1;
	if (!doubt) {
		http_body_begin(&hs->body, hs->request.framing, hs->request.body_length);
		end = http_follow(msg, hs, hs->request.end);
	}
	if (end < 0 || (__u32)end != size) {
		hs->lost = 1;
		http_lose(ch, end < 0 ? COUNTER_HTTP_LOST_DOUBT : COUNTER_HTTP_LOST_PIPELINED);
		return http_pass_on(msg);
	}
	hs->begun = !http_body_done(&hs->body);
	hs->fast = 0;
	hs->traced = !!(state->flags & SOCKET_TRACED);
	bool drawn = false, busy = false, taken = false;
	__u64 now = bpf_ktime_get_ns();
	enum counter why = http_decide(state, hs, now, &drawn);
	if (why != COUNTERS)
		return http_to_envoy(msg, hs, ch, now, drawn, why);
	__u32 index = http_find_learnt(ch, hs, &busy);
	if (index >= HTTP_LEARNT)
		return http_to_envoy(msg, hs, ch, now, true, busy ? COUNTER_HTTP_BUSY : COUNTER_HTTP_NOT_LEARNT);
	struct http_learnt *learnt = &ch->learnt[index & (HTTP_LEARNT - 1)];
	__u64 target = learnt->cookie, netns_cookie = state->netns_cookie;
	/* The answer is moved into C: what Envoy answered before has to be read there, too. */
	if (!http_drained(learnt->sock, learnt->proxy_sock) || (written(state->peer_sock) != self->copied_seq && !(http_faults & HTTP_FAULT_ORDER)))
		return http_to_envoy(msg, hs, ch, now, true, COUNTER_HTTP_NOT_DRAINED);
	/* User space suspends a pod and then looks whether anything is under way: count first, then look. */
	http_activity_add(netns_cookie, 1);
	struct http_pod *pod = bpf_map_lookup_elem(&http_pods, &netns_cookie);
	if (!pod || pod->state != HTTP_POD_LIVE || pod->table != hs->judged) {
		http_activity_add(netns_cookie, -1);
		hs->generation = 0;
		return http_to_envoy(msg, hs, ch, now, false, COUNTER_HTTP_POD_OFF);
	}
	enum http_pushed told = pod->request_ids && !(hs->request.trace & HTTP_TRACE_ID) ? http_give_id(msg, hs) : HTTP_PUSHED;
	if (told == HTTP_PUSHED && hs->trace)
		told = http_tell_untraced(msg, hs);
	if (told != HTTP_PUSHED) {
		http_activity_add(netns_cookie, -1);
		return told == HTTP_NOT_PUSHED ? http_to_envoy(msg, hs, ch, now, true, COUNTER_HTTP_REDIRECT_FAILED) : http_drop(msg, hs, ch);
	}
	bpf_spin_lock(&ch->lock);
	if (ch->state == HTTP_IDLE && learnt->cookie == target && !learnt->busy) {
		taken = true;
		ch->state = HTTP_FAST;
		ch->server = target;
		ch->server_netns = learnt->netns_cookie;
		ch->class = hs->class;
		ch->generation = hs->generation;
		ch->endpoint = hs->endpoint;
		ch->load = hs->load;
		ch->monitor = hs->monitor;
		ch->open = hs->begun;
		ch->to_head = hs->request.method == HTTP_HEAD;
		ch->unknown = 0;
		ch->service = hs->service;
		ch->status = 0;
		ch->request_bytes = size;
		ch->answer_bytes = 0;
		ch->waiting = 0;
		ch->heads = 0;
		ch->pipelines = 0;
		ch->started_ns = now;
		ch->used_ns = now;
	}
	bpf_spin_unlock(&ch->lock);
	if (!taken) {
		http_activity_add(netns_cookie, -1);
		return http_to_envoy(msg, hs, ch, now, true, COUNTER_HTTP_BUSY);
	}
	http_load_add(hs->load, 1);
	hs->fast = 1;
	if (watch_of(WATCH_REQUESTS))
		http_tell_request(msg, now, ch->server_netns);
	if (bpf_msg_redirect_hash(msg, &sockets, &target, BPF_F_INGRESS) != SK_PASS) {
		struct http_ended ended = {};
		bpf_spin_lock(&ch->lock);
		if (ch->state == HTTP_FAST)
			http_take(ch, &ended, HTTP_IDLE);
		bpf_spin_unlock(&ch->lock);
		if (ended.state != HTTP_FAST)
			return http_refuse(msg, ch);
		hs->fast = 0;
		http_settle(&ended);
		http_mark_server(ch, target, HTTP_CLOSING, 0);
		return http_to_envoy(msg, hs, ch, now, true, COUNTER_HTTP_REDIRECT_FAILED);
	}
	count(COUNTER_HTTP_REQUESTS_FAST);
	count_moved(state, size);
	http_tell_fast(state, target, size);
	return SK_PASS;
}
