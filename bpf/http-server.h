/* What S sends: to C when it answers what the kernel brought, else to Envoy. */
#pragma once

/*
 * The answer that begins at `at`, or the one behind an interim one. Where it ends in the message, or the message's size;
 * negative: a doubt.
 */
HTTP_GLOBAL int http_begin_answer(struct sk_msg_md *msg, struct http_socket *hs, __u32 at, bool to_head, bool trusted)
{
	__u32 size = msg->size, begin = at, reader = (trusted ? HTTP_READS_ENVOYS_ANSWER : HTTP_READS_ANSWER) | (to_head ? HTTP_READS_TO_HEAD : 0);
	if (!hs || at >= size)
		return -HTTP_INCOMPLETE;
	if (!at && http_is_same_head(msg, hs, reader)) {
		at = hs->answer.end;
	} else {
		hs->reader = 0;
		for (int i = 0; i < 2; i++) {
			int doubt = HTTP_INCOMPLETE;
			for (__u32 most = HTTP_SHORT_HEAD; most <= HTTP_HEAD_MAX; most *= HTTP_HEAD_MAX / HTTP_SHORT_HEAD) {
				if (!http_copy_head(msg, &hs->scratch, at, most))
					return -HTTP_INCOMPLETE;
				doubt = http_read_any_answer(&hs->scratch, to_head, &hs->answer, trusted);
				if (doubt != HTTP_INCOMPLETE || size - at <= HTTP_SHORT_HEAD)
					break;
			}
			if (doubt)
				return -HTTP_INCOMPLETE;
			at += hs->answer.end;
			if (hs->answer.status >= 200 || at >= size)
				break;
		}
		/* Not one that an interim one preceded: it is not where messages begin. */
		if (at == begin + hs->answer.end && hs->answer.status >= 200)
			hs->reader = reader;
	}
	http_body_begin(&hs->body, hs->answer.framing, hs->answer.body_length);
	return hs->answer.framing == HTTP_UNTIL_CLOSE ? (int)msg->size : http_follow(msg, hs, at);
}

/* Whether what Envoy asked of S is HEAD: of S, since the channel's own exchange may be another one by now. */
static __always_inline bool http_envoys_head(const struct http_channel *ch, __u64 cookie)
{
	__u32 busy = 0;
#pragma unroll
	for (int i = 0; i < HTTP_LEARNT; i++)
		if (ch->learnt[i].cookie == cookie)
			busy |= ch->learnt[i].busy;
	return busy & HTTP_ENVOY_HEAD;
}

/* An answer that Envoy asked for: only followed, for what it tells of its class and when S is free again. */
static __always_inline void http_follow_envoys(struct sk_msg_md *msg, struct socket_state *state, struct http_socket *hs, struct http_channel *ch)
{
	__u64 cookie = state->cookie;
	int end = 0;
	bool bounded = true;
	if (hs->lost)
		return;
	if (!hs->begun) {
		hs->sent = 0;
		end = http_begin_answer(msg, hs, 0, http_envoys_head(ch, cookie), false);
		if (end >= 0) {
			bounded = hs->answer.framing != HTTP_UNTIL_CLOSE && hs->answer.body_length <= HTTP_ANSWER_MAX;
			if (hs->answer.framing == HTTP_UNTIL_CLOSE)
				end = -1;
		}
	} else {
		end = http_continue(msg, hs, 0);
	}
	hs->sent += msg->size;
	if (hs->sent > HTTP_ANSWER_MAX)
		bounded = false;
	if (!bounded || end < 0)
		http_class_to_envoy(ch->class, ch->generation);
	if (end < 0 || (__u32)end != msg->size) {
		hs->lost = 1;
		http_mark_server(ch, cookie, HTTP_CLOSING, 0);
		return;
	}
	hs->begun = !http_body_done(&hs->body) || hs->answer.status < 200;
	if (hs->answer.status < 200) {
		hs->begun = 0;
		return;
	}
	if (hs->answer.status >= 500)
		http_class_to_envoy(ch->class, ch->generation);
	if (!hs->begun)
		http_mark_server(ch, cookie, hs->answer.close ? HTTP_CLOSING : 0, HTTP_ENVOY_AWAITS | HTTP_ENVOY_HEAD);
}

/* What the message has, from `at` on, of one answer to the kernel's. Where that ends; negative: a doubt. */
static __always_inline int http_next_answer(struct sk_msg_md *msg, struct http_socket *hs, __u32 at, bool to_head)
{
	int end = -HTTP_INCOMPLETE;
	if (!hs->begun)
		hs->sent = 0;
	if (!hs->lost)
		end = hs->begun ? http_continue(msg, hs, at) : http_begin_answer(msg, hs, at, to_head, false);
	if (end >= 0)
		hs->begun = !http_body_done(&hs->body);
	hs->sent += (end >= 0 ? (__u32)end : msg->size) - at;
	return end;
}

/* The next one that the message holds a part of. False: nothing more is to be told of the message. */
static __always_inline bool http_read_one(struct sk_msg_md *msg, struct http_socket *hs, struct http_channel *ch)
{
	__u32 at = hs->at, answered = hs->answered;
	/* More than was asked: then where the last one ends is not known, either. */
	if (answered > ch->waiting || answered > HTTP_PIPELINED) {
		hs->answered = answered - 1;
		return false;
	}
	bool begins = !hs->begun;
	int end = http_next_answer(msg, hs, at, answered ? (ch->heads >> ((answered - 1) & 31)) & 1 : ch->to_head);
	if (end <= (int)at)
		return false;
	__u32 status = hs->answer.status;
	ch->status = status;
	if (begins && ch->monitor && status >= 200)
		http_judge_endpoint(ch->monitor, status);
	if (hs->answer.framing == HTTP_UNTIL_CLOSE) {
		ch->unknown = HTTP_UNKNOWN_UNTIL_CLOSE;
		return false;
	}
	hs->unbounded |= hs->sent > HTTP_ANSWER_MAX || hs->answer.body_length > HTTP_ANSWER_MAX;
	ch->answer_bytes += end - at;
	hs->at = end;
	if (!hs->begun && status >= 200) {
		struct http_whole *whole = &hs->whole[answered];
		whole->status = status;
		whole->close = hs->answer.close;
		whole->bytes = ch->answer_bytes;
		ch->answer_bytes = 0;
		if (answered < ch->waiting)
			ch->status = 0;
		hs->answered = answered + 1;
	}
	return true;
}

/*
 * The answers that the message completes, into hs->whole; more than one if the client pipelines. Whether one of them, or the
 * one that goes on, is longer than it may be or has no end. Of one whose end can't be told all is moved on all the same; what
 * comes after it can't be told apart, so nothing does.
 */
static __always_inline bool http_read_answers(struct sk_msg_md *msg, struct http_socket *hs, struct http_channel *ch)
{
	__u32 size = msg->size;
	hs->answered = 0;
	hs->at = 0;
	hs->unbounded = 0;
	if (ch->unknown) {
		hs->sent += size;
		ch->answer_bytes += size;
		return false;
	}
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i <= HTTP_PIPELINED; i++)
		if (hs->at >= size || !http_read_one(msg, hs, ch))
			break;
	if (hs->at < size) {
		ch->answer_bytes += size - hs->at;
		hs->lost = 1;
		if (!ch->unknown)
			ch->unknown = HTTP_UNKNOWN_LOST;
	}
	return hs->unbounded || hs->lost;
}

/* With the lock held: the next one of those that wait is answered from now on. */
static __always_inline void http_shift(struct http_channel *ch, __u64 now)
{
	ch->to_head = ch->heads & 1;
	ch->request_bytes = ch->sizes[0];
	ch->started_ns = now;
	ch->heads >>= 1;
	ch->waiting--;
#pragma unroll
	for (int i = 0; i < HTTP_PIPELINED - 1; i++)
		ch->sizes[i] = ch->sizes[i + 1];
}

/* The server, which ends its connection, does not answer what waits behind its last answer. */
HTTP_GLOBAL int http_leave_waiting(__u64 client, __u64 server)
{
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &client);
	if (!ch)
		return 0;
	struct http_ended ended = {};
	bpf_spin_lock(&ch->lock);
	if (ch->state == HTTP_FAST && ch->server == server)
		http_take(ch, &ended, HTTP_LOST);
	bpf_spin_unlock(&ch->lock);
	if (ended.state != HTTP_FAST)
		return 0;
	http_settle(&ended);
	return 1;
}

/* An answer has been moved to C whole. Verified once, not for each place in a message: that is too much for 6.1. */
HTTP_GLOBAL int http_answered(__u64 client, __u64 cookie, __u32 status, __u32 bytes, bool close)
{
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &client);
	if (!ch)
		return 0;
	struct http_ended ended = {};
	bool early = false, lost = false, waits = false;
	__u64 now = bpf_ktime_get_ns();
	bpf_spin_lock(&ch->lock);
	if (ch->state == HTTP_FAST && ch->server == cookie) {
		ch->used_ns = now;
		http_copy(ch, &ended);
		if (ch->waiting) {
			waits = true;
			http_shift(ch, now);
		} else if (ch->open) {
			/* Answered before it was asked whole: what is still to come of the request goes to this server alone. */
			early = true;
			ch->unknown = HTTP_ANSWERED;
		} else {
			http_take(ch, &ended, HTTP_IDLE);
			close |= ch->pipelines == HTTP_PIPELINES_LAST;
			lost = ch->pipelines;
			if (lost)
				ch->state = HTTP_LOST;
		}
	}
	bpf_spin_unlock(&ch->lock);
	if (ended.state != HTTP_FAST)
		return 0;
	count(COUNTER_HTTP_ANSWERS_FAST);
	if (watch_of(WATCH_REQUESTS))
		tell_answer(client, ended.started_ns, status, bytes);
	ended.waiting = 0;
	ended.answer_bytes = bytes;
	http_total(&ended, now, status, HTTP_WHOLE);
	if (!early)
		http_settle(&ended);
	if (lost) {
		count(COUNTER_HTTP_LOST_PIPELINED);
		count(COUNTER_HTTP_CHANNELS_LOST);
	}
	if (status >= 500)
		http_class_to_envoy(ended.class, ended.generation);
	if (!close)
		return 0;
	if (waits && http_leave_waiting(ch->cookie, cookie)) {
		http_total_last(ch->cookie, HTTP_UPSTREAM_ENDED);
		http_total_waiting(ch->cookie, HTTP_UPSTREAM_ENDED);
	}
	http_mark_server(ch, cookie, HTTP_CLOSING, 0);
	http_end_client(ch, true);
	return 0;
}

SEC("sk_msg")
int http_server(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	if (!state)
		return SK_PASS;
	struct http_socket *hs = bpf_sk_storage_get(&http_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!hs)
		return http_pass_on(msg);
	__u64 cookie = state->cookie;
	if (!hs->channel) {
		__u64 *client = bpf_map_lookup_elem(&http_servers, &cookie);
		if (!client)
			return http_pass_on(msg);
		hs->channel = *client;
	}
	__u64 client = hs->channel;
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &client);
	if (!ch)
		return http_pass_on(msg);
	if (ch->state != HTTP_FAST || ch->server != cookie) {
		http_follow_envoys(msg, state, hs, ch);
		return http_pass_on(msg);
	}
	__u32 size = msg->size;
	bool unbounded = http_read_answers(msg, hs, ch);
	if (unbounded) {
		count(COUNTER_HTTP_ANSWERS_UNBOUNDED);
		http_class_to_envoy(ch->class, ch->generation);
	}
	if (hs->lost)
		http_mark_server(ch, cookie, HTTP_CLOSING, 0);
	/* There is no way back by TCP: what its reader leaves is held here, up to a bound. */
	struct receiver other;
	read_receiver(ch->sock, &other);
	bool fits = ch->unknown != HTTP_ANSWERED && ((hs->sent <= HTTP_ANSWER_CAP && other.queued <= HTTP_ANSWER_CAP) || http_faults & HTTP_FAULT_BOUND);
	if (http_faults & HTTP_FAULT_MOVE)
		return SK_DROP;
	if (!fits || written(ch->proxy_sock) != other.copied_seq || bpf_msg_redirect_hash(msg, &sockets, &client, BPF_F_INGRESS) != SK_PASS) {
		hs->lost = 1;
		http_mark_server(ch, cookie, HTTP_CLOSING, 0);
		http_lose(ch, COUNTER_HTTP_LOST_ANSWER);
		return http_pass_on(msg);
	}
	count_moved(state, size);
	if (state->flags & SOCKET_TAPPED)
		tell_led(cookie, client);
	if (state->flags & SOCKET_TRACED)
		tell_point(WATCH_ANSWERED, hs->answer.status, cookie, client, size);
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i <= HTTP_PIPELINED; i++) {
		if (i >= hs->answered)
			break;
		http_answered(client, cookie, hs->whole[i].status, hs->whole[i].bytes, hs->whole[i].close);
	}
	return SK_PASS;
}
