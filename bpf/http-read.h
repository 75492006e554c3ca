/* How the programs read a message: the head that it begins with, whether that is the one before once more, and where a body ends in it. */
#pragma once

#define HTTP_SHORT_HEAD 512 /* so much of a message is copied first, since most heads are shorter and many bodies long */

/* Whether the message's first n bytes, HTTP_HEAD_MAX at most, can be read as they are. */
static __always_inline bool http_in_one_piece(struct sk_msg_md *msg, __u32 n)
{
	HTTP_FORGET(msg); /* or the reads of all calls become one of a computed pointer, which the verifier refuses */
	const __u8 *data = msg->data, *data_end = msg->data_end;
	return data + n <= data_end;
}

/* The message's bytes from `at` on, HTTP_HEAD_MAX of them or as many as `most` says, for the parser. */
static __always_inline bool http_copy_head(struct sk_msg_md *msg, struct http_scratch *s, __u32 at, __u32 most)
{
	HTTP_FORGET(msg);
	__u32 n = msg->size - at;
	if (n > most)
		n = most;
	HTTP_FORGET(n);
	if (n > HTTP_HEAD_MAX)
		n = HTTP_HEAD_MAX;
	if ((at || !http_in_one_piece(msg, n)) && bpf_msg_pull_data(msg, at, at + n, 0))
		return false;
	/* Zeros behind what is not a whole word. */
	__u32 last = (n >> 3) & (HTTP_HEAD_MAX / 8 * 2 - 1);
	if (last > HTTP_HEAD_MAX / 8)
		return false;
	s->words[last] = 0;
	s->words[last + 1] = 0;
	s->length = n;
	return !bpf_probe_read_kernel(s->words, n, msg->data);
}

/* Set before loading: 0, and every head is read, also one that is the same as the one before. */
const volatile __u32 http_compares_heads = 1;

enum http_reader { HTTP_READS_REQUEST = 1, HTTP_READS_ENVOYS_REQUEST, HTTP_READS_ANSWER, HTTP_READS_ENVOYS_ANSWER, HTTP_READS_TO_HEAD = 8 };

#define HTTP_COMPARED 32 /* bytes at once */

static __always_inline bool http_differs(const __u8 *data, const __u8 *data_end, const struct http_scratch *s, __u32 at)
{
	const __u64 *words = (const void *)data;
	if (data + HTTP_COMPARED > data_end)
		return true;
	return (words[0] ^ http_at(s, at)) | (words[1] ^ http_at(s, at + 8)) | (words[2] ^ http_at(s, at + 16)) | (words[3] ^ http_at(s, at + 24));
}

/*
 * Whether the message begins with the very head that this socket's scratch holds, read in the same way: then all that is known
 * of that one holds for this one. Most of what a connection asks, and is answered, differs little or not at all.
 */
static __always_inline bool http_is_same_head(struct sk_msg_md *msg, const struct http_socket *hs, __u32 reader)
{
	const struct http_scratch *s = &hs->scratch;
	__u32 end = s->end;
	if (!http_compares_heads || hs->reader != reader || end < HTTP_COMPARED || end > HTTP_SAME_HEAD_MAX || msg->size < end)
		return false;
	if (!http_in_one_piece(msg, end) && bpf_msg_pull_data(msg, 0, end, 0))
		return false;
	HTTP_FORGET(msg);
	const __u8 *data = msg->data, *data_end = msg->data_end;
	for (__u32 at = 0; at < HTTP_SAME_HEAD_MAX; at += HTTP_COMPARED) {
		if (at + HTTP_COMPARED > end)
			break;
		if (http_differs(data + at, data_end, s, at))
			return false;
	}
	/* The last bytes, of which some have been compared already. */
	__u32 at = end - HTTP_COMPARED;
	HTTP_FORGET(at);
	return at <= HTTP_SAME_HEAD_MAX && !http_differs(data + at, data_end, s, at);
}

/* Reads the request's head that begins at `at`, into hs->request. 0, or enum http_doubt. */
static __always_inline int http_read_head_at(struct sk_msg_md *msg, struct http_socket *hs, __u32 at, enum http_reader reader)
{
	__u32 size = msg->size;
	int doubt = HTTP_INCOMPLETE;
	hs->reader = 0;
	hs->judged = 0;
	for (__u32 most = HTTP_SHORT_HEAD; most <= HTTP_HEAD_MAX; most *= HTTP_HEAD_MAX / HTTP_SHORT_HEAD) {
		if (!http_copy_head(msg, &hs->scratch, at, most))
			return HTTP_INCOMPLETE;
		doubt = http_read_any_request(&hs->scratch, &hs->request, reader != HTTP_READS_REQUEST);
		if (doubt != HTTP_INCOMPLETE || size - at <= HTTP_SHORT_HEAD)
			break;
	}
	if (!doubt)
		hs->reader = reader;
	return doubt;
}

/* The one that the message begins with. */
static __always_inline int http_read_head(struct sk_msg_md *msg, struct http_socket *hs, enum http_reader reader)
{
	return http_is_same_head(msg, hs, reader) ? 0 : http_read_head_at(msg, hs, 0, reader);
}

struct http_following {
	struct sk_msg_md *msg;
	struct http_body *body;
	__u32 at, size;
	__s32 doubt;
	__u32 reserved;
	__u8 window[HTTP_WINDOW];
};

#define HTTP_STEPS 16384 /* of a chunked body in one message: servers gather what they write by bits; a byte at least is a step */

static long http_follow_step(__u32 i, struct http_following *f)
{
	__u32 at = f->at, rest = f->size - at, n = rest < HTTP_WINDOW ? rest : HTTP_WINDOW;
	if (!n || http_body_done(f->body))
		return 1;
	if (f->body->state != HTTP_BODY_DATA) {
		HTTP_FORGET(n); /* a bound that 6.1 sees */
		if (n > HTTP_WINDOW)
			return 1;
		if (bpf_msg_pull_data(f->msg, at, at + n, 0) || bpf_probe_read_kernel(f->window, n, f->msg->data)) {
			f->doubt = -HTTP_INCOMPLETE;
			return 1;
		}
	}
	int taken = http_body_advance(f->body, f->window, n, rest);
	if (taken <= 0) {
		f->doubt = taken ? taken : -HTTP_BAD_CHUNK;
		return 1;
	}
	f->at = at + taken;
	return 0;
}

/* As http_follow, of chunks. A global function, which the verifier looks at once. */
HTTP_GLOBAL int http_follow_chunks(struct sk_msg_md *msg, struct http_socket *hs, __u32 at)
{
	if (!hs)
		return -HTTP_INCOMPLETE;
	__u32 size = msg->size;
	struct http_body *body = &hs->body;
	struct http_following f = { .msg = msg, .body = body, .at = at, .size = size };
	bpf_loop(HTTP_STEPS, http_follow_step, &f, 0);
	if (f.doubt)
		return f.doubt;
	return f.at < size && !http_body_done(body) ? -HTTP_BAD_CHUNK : f.at;
}

/* Goes over the message from `at` on. Where the body ends in it, or its size; negative: a doubt. */
static __always_inline int http_follow(struct sk_msg_md *msg, struct http_socket *hs, __u32 at)
{
	struct http_body *body = &hs->body;
	if (body->framing == HTTP_LENGTH) {
		__u32 taken = msg->size - at;
		if (taken > body->left)
			taken = body->left;
		body->left -= taken;
		if (!body->left)
			body->state = HTTP_BODY_DONE;
		return at + taken;
	}
	return body->framing == HTTP_CHUNKED ? http_follow_chunks(msg, hs, at) : (int)at;
}

/* What the message has, from `at` on, of the body under way. */
HTTP_GLOBAL int http_continue(struct sk_msg_md *msg, struct http_socket *hs, __u32 at)
{
	return hs && at < msg->size ? http_follow(msg, hs, at) : -HTTP_INCOMPLETE;
}
