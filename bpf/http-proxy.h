/* What Envoy sends: D's answers, which end the exchanges that it has under way, and U's requests, which teach. */
#pragma once

/* Nobody behind Envoy is to see the header: with the line break before it it becomes blanks at the end of the one before. */
static __always_inline bool http_blank(struct sk_msg_md *msg, __u32 from, __u32 to)
{
	__u32 length = to - from;
	if (http_faults & HTTP_FAULT_BLANK)
		return true;
	if (length > HTTP_BLANKS || bpf_msg_pull_data(msg, from, to, 0))
		return false;
	__u8 *data = msg->data, *end = msg->data_end;
	for (__u32 i = 0; i < HTTP_BLANKS; i++) {
		if (i >= length || data + i + 1 > end)
			break;
		data[i] = ' ';
	}
	return true;
}

/*
 * What the drawn endpoint answered to a request that went through Envoy. An answer that Envoy had to try more than once for is
 * another's: the first try was the drawn one's, and failed. No try at all: Envoy's own answer, which says nothing of any endpoint.
 */
HTTP_GLOBAL int http_judge_envoys(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	struct http_socket *hs = sk ? bpf_sk_storage_get(&http_sockets, sk, 0, 0) : 0;
	if (!state || !hs)
		return 0;
	__u64 client = state->peer_cookie;
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &client);
	if (!ch)
		return 0;
	__u32 status = hs->answer.status;
	ch->status = status;
	__u16 at = 0, length = 0;
	static const __u64 name[HTTP_NAME_MAX / 8] = { HTTP_WORD("x-underp", 0), HTTP_WORD("ass-trie", 0), HTTP_WORD("d", 0), 0 };
	/* Behind an interim answer it is not known where in the message it is. */
	if (hs->reader && http_find_header(&hs->scratch, name, sizeof("x-underpass-tried") - 1, &at, &length) == 1) {
		__u32 line = hs->scratch.found_line & (HTTP_LINE_SLOTS - 1), from = hs->scratch.line_at[line], digit = http_at(&hs->scratch, at) & 0xff;
		if (line >= 1)
			http_blank(msg, from - 2, at + length);
		if (length == 1 && digit == '0')
			return 0;
		if (length != 1 || digit != '1')
			status = HTTP_UNAVAILABLE;
	}
	return http_judge_endpoint(ch->monitor, status);
}

SEC("sk_msg")
int http_downstream(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	if (!state)
		return SK_PASS;
	__u64 client = state->peer_cookie;
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &client);
	/* It would be taken for an answer to what the kernel had under way. */
	if (ch && ch->unknown == HTTP_CUT)
		return SK_DROP;
	if (!ch || ch->state == HTTP_LOST)
		return http_pass_on(msg);
	struct http_socket *hs = bpf_sk_storage_get(&http_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!hs || hs->lost || ch->state != HTTP_ENVOY) {
		http_lose(ch, COUNTER_HTTP_LOST_ENVOY_FIRST);
		return ch->unknown == HTTP_CUT ? SK_DROP : http_pass_on(msg);
	}
	int end = -1;
	if (hs->begun) {
		end = http_follow(msg, hs, 0);
	} else {
		end = http_begin_answer(msg, hs, 0, ch->to_head, true);
		if (end >= 0 && hs->answer.framing == HTTP_UNTIL_CLOSE)
			end = -1;
	}
	if (end < 0 || (__u32)end != msg->size) {
		hs->lost = 1;
		http_lose(ch, COUNTER_HTTP_LOST_ANSWER);
		return http_pass_on(msg);
	}
	if (ch->monitor && !hs->begun && hs->answer.status >= 200)
		http_judge_envoys(msg);
	hs->begun = !http_body_done(&hs->body);
	if (hs->begun || hs->answer.status < 200)
		return http_pass_on(msg);
	if (ch->open || hs->answer.close) {
		http_lose(ch, ch->open ? COUNTER_HTTP_LOST_ENVOY_FIRST : COUNTER_HTTP_LOST_CLOSE);
		return http_pass_on(msg);
	}
	struct http_ended ended = {};
	__u64 now = bpf_ktime_get_ns();
	bpf_spin_lock(&ch->lock);
	if (ch->state == HTTP_ENVOY) {
		ch->used_ns = now;
		http_take(ch, &ended, HTTP_IDLE);
	}
	bpf_spin_unlock(&ch->lock);
	http_settle(&ended);
	return http_pass_on(msg);
}

#define HTTP_LESSON_LENGTH 34 /* of the fixed part: class, '-', netns cookie, '-' */

/* Eight hexadecimal digits, small ones. No branch for each: the verifier would follow all of them. */
static __always_inline bool http_read_hex(__u64 word, __u32 *out)
{
	__u64 digits = (word & (HTTP_ONES * 0x0f)) + ((word >> 6) & HTTP_ONES) * 9;
	__u32 value = 0;
#pragma unroll
	for (int i = 0; i < 8; i++)
		value = (value << 4) | ((digits >> (8 * i)) & 0x0f);
	*out = value;
	return (http_between(word, '0', '9') | http_between(word, 'a', 'f')) == HTTP_HIGH;
}

struct http_lesson {
	__u64 netns_cookie;
	__u32 class, generation, port;
};

static __always_inline bool http_read_lesson(const struct http_scratch *s, __u32 at, __u32 length, struct http_lesson *out)
{
	__u32 high = 0, low = 0, port = 0, digits_used = length - HTTP_LESSON_LENGTH;
	if (length <= HTTP_LESSON_LENGTH || length > HTTP_LESSON_LENGTH + 5)
		return false;
	bool good = http_read_hex(http_at(s, at), &out->class) && http_read_hex(http_at(s, at + 8), &out->generation) &&
		    http_read_hex(http_at(s, at + 17), &high) && http_read_hex(http_at(s, at + 25), &low);
	if (!good || (http_at(s, at + 16) & 0xff) != '-' || (http_at(s, at + 33) & 0xff) != '-')
		return false;
	__u64 digits = http_at(s, at + HTTP_LESSON_LENGTH);
	if (~http_between(digits, '0', '9') & HTTP_HIGH & http_mask(digits_used))
		return false;
	for (__u32 i = 0; i < 5; i++)
		if (i < digits_used)
			port = port * 10 + ((digits >> (8 * i)) & 0x0f);
	out->netns_cookie = (__u64)high << 32 | low;
	out->port = port;
	return true;
}

/* Whether the lesson counts: rule 1. The channel that it is for, or 0. */
static __always_inline struct http_channel *http_judge_lesson(const struct http_lesson *lesson, const struct socket_state *state, __u64 *client)
{
	struct http_client_key key = { .netns_cookie = lesson->netns_cookie, .port = lesson->port };
	__u64 *cookie = bpf_map_lookup_elem(&http_clients, &key);
	if (!cookie)
		return 0;
	*client = *cookie;
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, client);
	struct http_pod *pod = bpf_map_lookup_elem(&http_pods, &key.netns_cookie);
	if (!ch || !pod || pod->state != HTTP_POD_LIVE || ch->tuple.netns_cookie != lesson->netns_cookie)
		return 0;
	if (ch->state != HTTP_ENVOY || ch->class != lesson->class || !lesson->generation || ch->generation != lesson->generation)
		return 0;
	__u32 index = lesson->class;
	struct http_class *class = bpf_map_lookup_elem(&http_classes, &index);
	if (!class || class->generation != lesson->generation)
		return 0;
	index = ch->endpoint;
	struct http_endpoint *endpoint = bpf_map_lookup_elem(&http_endpoints, &index);
	if (!endpoint || !endpoint->teachable || !same_address(&endpoint->address, &state->tuple.remote) ||
	    endpoint->port != bpf_htons(state->tuple.remote_port))
		return 0;
	return ch;
}

SEC("sk_msg")
int http_upstream(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	if (!state)
		return SK_PASS;
	struct http_socket *hs = bpf_sk_storage_get(&http_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!hs || hs->lost || !find_peer(state))
		return http_pass_on(msg);
	__u64 server = state->peer_cookie, client = hs->channel;
	struct http_channel *ch = client ? bpf_map_lookup_elem(&http_channels, &client) : 0;
	int end = -1;
	bool first = !hs->begun;
	if (!first) {
		end = http_follow(msg, hs, 0);
	} else if (!http_read_head(msg, hs, HTTP_READS_ENVOYS_REQUEST)) {
		http_body_begin(&hs->body, hs->request.framing, hs->request.body_length);
		end = http_follow(msg, hs, hs->request.end);
	}
	if (end < 0 || (__u32)end != msg->size) {
		/* Nothing is known any more of what this server is asked. */
		hs->lost = 1;
		if (ch)
			http_mark_server(ch, server, HTTP_CLOSING, 0);
		return http_pass_on(msg);
	}
	hs->begun = !http_body_done(&hs->body);
	if (!first) {
		if (ch && !hs->begun)
			http_mark_server(ch, server, 0, HTTP_ENVOY_ASKS);
		return http_pass_on(msg);
	}
	__u32 busy = HTTP_ENVOY_AWAITS | (hs->begun ? HTTP_ENVOY_ASKS : 0) | (hs->request.method == HTTP_HEAD ? HTTP_ENVOY_HEAD : 0);
	if (ch)
		http_mark_server(ch, server, busy, 0);
	__u16 at = 0, length = 0;
	static const __u64 name[HTTP_NAME_MAX / 8] = { HTTP_WORD("x-underp", 0), HTTP_WORD("ass-less", 0), HTTP_WORD("on", 0), 0 };
	int found = http_find_header(&hs->scratch, name, sizeof("x-underpass-lesson") - 1, &at, &length);
	if (!found)
		return http_pass_on(msg);
	struct http_lesson lesson = {};
	struct http_channel *taught = 0;
	__u64 taught_client = 0;
	if (found == 1) {
		__u32 line = hs->scratch.found_line & (HTTP_LINE_SLOTS - 1), from = hs->scratch.line_at[line];
		if (line >= 2 && http_blank(msg, from - 2, at + length) && http_read_lesson(&hs->scratch, at, length, &lesson))
			taught = http_judge_lesson(&lesson, state, &taught_client);
	}
	/* Whose it is holds whether the lesson counts or not: when that client is gone, nobody has a use for this connection. */
	if (!client && taught_client && !bpf_map_update_elem(&http_servers, &server, &taught_client, BPF_NOEXIST))
		client = hs->channel = taught_client;
	if (!taught || client != taught_client) {
		count(COUNTER_HTTP_LESSONS_REFUSED);
		if (taught && ch)
			http_mark_server(ch, server, HTTP_CLOSING, 0);
		return http_pass_on(msg);
	}
	__u64 netns_cookie = peer_netns(&state->tuple, state->netns_cookie);
	__u64 own = (__u64)state->sock, peer = state->peer_sock;
	struct tuple tuple = state->tuple;
	bool learnt = false;
	bpf_spin_lock(&taught->lock);
	if (taught->state == HTTP_ENVOY && taught->generation == lesson.generation && taught->class == lesson.class) {
		__u32 slot = http_place(lesson.class, taught->endpoint), closing = 0;
		const struct http_learnt *held = &taught->learnt[slot & (HTTP_LEARNT - 1)], *other = &taught->learnt[(slot ^ 1) & (HTTP_LEARNT - 1)];
		bool is_held = held->cookie && !(held->class == lesson.class && held->endpoint == taught->endpoint);
		bool is_others = other->class == lesson.class && other->generation == lesson.generation && other->endpoint == taught->endpoint;
		/* What is there is kept if the other place is free, or this one's already; else the two take turns. */
		if (is_held && (!other->cookie || is_others || (taught->next++ & 1)))
			slot ^= 1;
		slot &= HTTP_LEARNT - 1;
#pragma unroll
		for (int i = 0; i < HTTP_LEARNT; i++)
			if (taught->learnt[i].cookie == server)
				closing |= taught->learnt[i].busy & HTTP_CLOSING;
		taught->learnt[slot].cookie = server;
		taught->learnt[slot].sock = peer;
		taught->learnt[slot].proxy_sock = own;
		taught->learnt[slot].netns_cookie = netns_cookie;
		taught->learnt[slot].class = lesson.class;
		taught->learnt[slot].generation = lesson.generation;
		taught->learnt[slot].endpoint = taught->endpoint;
		taught->learnt[slot].busy = busy | closing;
		taught->learnt[slot].tuple = tuple;
		learnt = true;
	}
	bpf_spin_unlock(&taught->lock);
	count(learnt ? COUNTER_HTTP_LESSONS : COUNTER_HTTP_LESSONS_REFUSED);
	return http_pass_on(msg);
}
