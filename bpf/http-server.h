/* What S sends: to C when it answers what the kernel brought, else to Envoy. */
#pragma once

/*
 * The answer that the message begins with, or the one behind an interim one. Where it ends in the message, or the message's
 * size; negative: a doubt.
 */
HTTP_GLOBAL int http_begin_answer(struct sk_msg_md *msg, struct http_socket *hs, bool to_head, bool trusted)
{
	if (!hs)
		return -HTTP_INCOMPLETE;
	__u32 at = 0, reader = (trusted ? HTTP_READS_ENVOYS_ANSWER : HTTP_READS_ANSWER) | (to_head ? HTTP_READS_TO_HEAD : 0);
	if (http_is_same_head(msg, hs, reader)) {
		at = hs->answer.end;
	} else {
		hs->reader = 0;
		for (int i = 0; i < 2; i++) {
			if (!http_copy_head(msg, &hs->scratch, at) || http_read_any_answer(&hs->scratch, to_head, &hs->answer, trusted))
				return -HTTP_INCOMPLETE;
			at += hs->answer.end;
			if (hs->answer.status >= 200 || at >= msg->size)
				break;
		}
		/* Not one that an interim one preceded: it is not where messages begin. */
		if (at == hs->answer.end && hs->answer.status >= 200)
			hs->reader = reader;
	}
	http_body_begin(&hs->body, hs->answer.framing, hs->answer.body_length);
	return hs->answer.framing == HTTP_UNTIL_CLOSE ? (int)msg->size : http_follow(msg, &hs->body, at);
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
		end = http_begin_answer(msg, hs, http_envoys_head(ch, cookie), false);
		if (end >= 0) {
			bounded = hs->answer.framing != HTTP_UNTIL_CLOSE && hs->answer.body_length <= HTTP_ANSWER_MAX;
			if (hs->answer.framing == HTTP_UNTIL_CLOSE)
				end = -1;
		}
	} else {
		end = http_follow(msg, &hs->body, 0);
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
	__u32 size = msg->size, status = hs->answer.status;
	int end = 0;
	bool done = false, unbounded = false;
	if (!ch->unknown) {
		if (!hs->begun) {
			end = hs->lost ? -HTTP_INCOMPLETE : http_begin_answer(msg, hs, ch->to_head, false);
			if (end >= 0) {
				hs->sent = 0;
				status = hs->answer.status;
				ch->status = status;
				unbounded = hs->answer.framing == HTTP_UNTIL_CLOSE || hs->answer.body_length > HTTP_ANSWER_MAX;
			}
		} else {
			end = http_follow(msg, &hs->body, 0);
		}
		hs->sent += size;
		unbounded |= hs->sent > HTTP_ANSWER_MAX || end < 0 || (__u32)end != size;
		if (unbounded) {
			count(COUNTER_HTTP_ANSWERS_UNBOUNDED);
			http_class_to_envoy(ch->class, ch->generation);
		}
		if (end < 0 || (__u32)end != size || hs->answer.framing == HTTP_UNTIL_CLOSE) {
			/* Moved all the same; what comes after it can't be told apart, so nothing does. */
			hs->lost = 1;
			http_mark_server(ch, cookie, HTTP_CLOSING, 0);
			ch->unknown = end >= 0 && hs->answer.framing == HTTP_UNTIL_CLOSE ? HTTP_UNKNOWN_UNTIL_CLOSE : HTTP_UNKNOWN_LOST;
		} else {
			done = http_body_done(&hs->body) && status >= 200;
			hs->begun = !http_body_done(&hs->body);
		}
	} else {
		hs->sent += size;
	}
	/* There is no way back by TCP: what its reader leaves is held here, up to a bound. */
	struct receiver other;
	read_receiver(ch->sock, &other);
	bool fits = ch->unknown != HTTP_ANSWERED && hs->sent <= HTTP_ANSWER_CAP && other.queued <= HTTP_ANSWER_CAP;
	if (!fits || written(ch->proxy_sock) != other.copied_seq || bpf_msg_redirect_hash(msg, &sockets, &client, BPF_F_INGRESS) != SK_PASS) {
		hs->lost = 1;
		http_mark_server(ch, cookie, HTTP_CLOSING, 0);
		http_lose(ch, COUNTER_HTTP_LOST_ANSWER);
		return http_pass_on(msg);
	}
	count_moved(state, size);
	ch->answer_bytes += size;
	if (!done)
		return SK_PASS;
	struct http_ended ended = {};
	bool early = false;
	__u64 now = bpf_ktime_get_ns();
	bpf_spin_lock(&ch->lock);
	if (ch->state == HTTP_FAST && ch->server == cookie) {
		ch->used_ns = now;
		/* Answered before it was asked whole: what is still to come of the request goes to this server alone. */
		early = ch->open;
		if (early) {
			http_copy(ch, &ended);
			ch->unknown = HTTP_ANSWERED;
		} else {
			http_take(ch, &ended, HTTP_IDLE);
		}
	}
	bpf_spin_unlock(&ch->lock);
	if (ended.state != HTTP_FAST)
		return SK_PASS;
	count(COUNTER_HTTP_ANSWERS_FAST);
	http_total(&ended, now, status, HTTP_WHOLE);
	if (!early)
		http_settle(&ended);
	if (status >= 500)
		http_class_to_envoy(ended.class, ended.generation);
	if (hs->answer.close) {
		http_mark_server(ch, cookie, HTTP_CLOSING, 0);
		http_end_client(ch, true);
	}
	return SK_PASS;
}
