/* Where an HTTP/1.1 body ends, over the messages that it comes in. Part of http-parse.h, which has enum http_doubt. */
#pragma once

#define HTTP_WINDOW 32

enum http_body_state {
	HTTP_BODY_DONE = 0,
	HTTP_BODY_DATA = 1,
	HTTP_BODY_SIZE = 2,     /* in a chunk's first line */
	HTTP_BODY_SIZE_LF = 3,
	HTTP_BODY_DATA_CR = 4,
	HTTP_BODY_DATA_LF = 5,
	HTTP_BODY_LAST_CR = 6,  /* behind the chunk of size 0, where a trailer would be */
	HTTP_BODY_LAST_LF = 7,
};

struct http_body {
	__u64 left;    /* of the data, or of the chunk */
	__u8 framing;
	__u8 state;    /* enum http_body_state */
	__u8 digits;   /* of the size so far */
	__u8 reserved[5];
};

HTTP_INLINE void http_body_begin(struct http_body *b, __u8 framing, __u64 length)
{
	b->left = framing == HTTP_LENGTH ? length : 0;
	b->framing = framing;
	b->digits = 0;
	b->state = framing == HTTP_CHUNKED ? HTTP_BODY_SIZE : framing == HTTP_UNTIL_CLOSE || b->left ? HTTP_BODY_DATA : HTTP_BODY_DONE;
}

HTTP_INLINE bool http_body_done(const struct http_body *b)
{
	return b->state == HTTP_BODY_DONE;
}

struct http_chunk_pass {
	struct http_body *b;
	const __u8 *window;
	__u32 n, used;
	__u32 doubt, reserved;
};

/* One byte of what is between chunks' data. */
static long http_chunk_byte(__u32 i, struct http_chunk_pass *p)
{
	struct http_body *b = p->b;
	if (i >= p->n || i >= HTTP_WINDOW)
		return 1;
	__u8 c = p->window[i & (HTTP_WINDOW - 1)];
	__u32 digit = c - '0', letter = (c | 0x20) - 'a', state = b->state;
	__u32 lf = state == HTTP_BODY_SIZE_LF || state == HTTP_BODY_DATA_LF || state == HTTP_BODY_LAST_LF;
	p->used = i + 1;
	if (state == HTTP_BODY_SIZE && (digit < 10 || letter < 6)) {
		if (b->digits >= 8) {
			p->doubt = HTTP_BAD_CHUNK;
			return 1;
		}
		b->digits++;
		b->left = (b->left << 4) | (digit < 10 ? digit : letter + 10);
		return 0;
	}
	if (c != (lf ? '\n' : '\r') || (state == HTTP_BODY_SIZE && !b->digits)) {
		p->doubt = HTTP_BAD_CHUNK;
		return 1;
	}
	if (!lf) {
		b->state = state == HTTP_BODY_SIZE ? HTTP_BODY_SIZE_LF : state + 1;
		return 0;
	}
	b->digits = 0;
	b->state = state == HTTP_BODY_SIZE_LF ? b->left ? HTTP_BODY_DATA : HTTP_BODY_LAST_CR
		: state == HTTP_BODY_DATA_LF ? HTTP_BODY_SIZE : HTTP_BODY_DONE;
	return b->state == HTTP_BODY_DATA || b->state == HTTP_BODY_DONE;
}

/*
 * Advances over what the next bytes of a message hold. `window`: n <= HTTP_WINDOW of them; `rest`: how many the message has
 * left, n of them included. Gives how many are the body's, at least one as long as it is not done and n is not 0, or a
 * negative doubt. Never goes beyond the body's end; of a chunked body one chunk's data at most, so it is to be called again.
 */
HTTP_FUNCTION int http_body_advance(struct http_body *b, const __u8 *window, __u32 n, __u32 rest)
{
	struct http_chunk_pass pass = { b, window, n, 0, 0, 0 };
	if (b->state == HTTP_BODY_DONE)
		return 0;
	if (b->framing == HTTP_UNTIL_CLOSE)
		return rest;
	if (b->state != HTTP_BODY_DATA) {
		http_loop(HTTP_WINDOW, http_chunk_byte, &pass);
		if (pass.doubt)
			return -(int)pass.doubt;
	}
	if (b->state != HTTP_BODY_DATA || pass.used > rest)
		return pass.used;
	__u64 taken = rest - pass.used;
	if (taken > b->left)
		taken = b->left;
	b->left -= taken;
	if (!b->left)
		b->state = b->framing == HTTP_CHUNKED ? HTTP_BODY_DATA_CR : HTTP_BODY_DONE;
	return pass.used + taken;
}
