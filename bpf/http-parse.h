/*
 * HTTP/1.1 heads and bodies, as strictly as it takes for two readers to agree: what is accepted here means the same to Envoy
 * and to a server, and all else is a doubt, which is Envoy's. For the kernel and for user space; docs/http-fast-path.md, "The
 * parser", has the reasons, test/fuzz/ compares with Envoy. Eight bytes at a time: 0x80 in a byte of a mask is that byte's answer.
 *
 *   http_read_request, http_read_answer   read `length` bytes of s->words; static functions, called with a map value's pointer
 *   http_find_header, http_same, http_copy_host   after a successful read, of the same scratch
 *   http_body_begin, http_body_advance, http_body_done   where a body ends, over messages
 *
 * State that a loop changes is in the scratch, not on the stack: there newer verifiers follow each value that it takes.
 */
#pragma once

#include "http-words.h"

#define HTTP_LINE_SLOTS 64 /* a power of two above HTTP_LINES_MAX + 1 */
#define HTTP_NAME_WORDS 7  /* longer names are Envoy's */
#define HTTP_TARGET_SLACK 9 /* " HTTP/1.1" */

enum http_framing {
	HTTP_NO_BODY = 0,
	HTTP_LENGTH = 1,
	HTTP_CHUNKED = 2,
	HTTP_UNTIL_CLOSE = 3,
};

enum http_doubt {
	HTTP_PLAIN = 0,
	HTTP_INCOMPLETE = 1,      /* the head's end is not among these bytes */
	HTTP_TOO_LONG = 2,
	HTTP_TOO_MANY_LINES = 3,
	HTTP_BAD_BYTE = 4,        /* NUL, other controls, DEL; in requests also 0x80 and above */
	HTTP_BAD_LINE_END = 5,    /* CR or LF alone */
	HTTP_BAD_METHOD = 6,
	HTTP_BAD_VERSION = 7,
	HTTP_BAD_TARGET = 8,      /* not origin-form, or one that Envoy might normalise */
	HTTP_BAD_NAME = 9,        /* also: a folded line, a blank before the colon */
	HTTP_BAD_HOST = 10,       /* also: none, two, or longer than HTTP_HOST_MAX */
	HTTP_BAD_LENGTH = 11,
	HTTP_BAD_CODING = 12,
	HTTP_BOTH_FRAMINGS = 13,
	HTTP_BODY_NOT_ALLOWED = 14, /* chunked with a method that has no body as a rule; a length in a 1xx or 204 */
	HTTP_BAD_CONNECTION = 15, /* other than one `keep-alive` or `close` */
	HTTP_SPECIAL = 16,        /* a header that asks something of a proxy */
	HTTP_RESERVED = 17,       /* x-envoy-…, x-underpass-… */
	HTTP_BAD_STATUS = 18,     /* also: 101 */
	HTTP_BAD_CHUNK = 19,      /* also: extensions and trailers */
};

struct http_scratch {
	__u64 words[HTTP_HEAD_MAX / 8 + 2]; /* the message's first bytes */
	__u32 length;  /* of them, <= HTTP_HEAD_MAX */
	/* From here on the parser's own. */
	__u32 lines;   /* the first line and the headers */
	__u32 start;   /* of the line that is being looked for */
	__u32 at, words_used; /* number of the word that is looked at, and of words */
	__u32 end;     /* of the head; 0: not found */
	__u32 doubt;
	__u32 answer;  /* this is one, not a request */
	__u32 trusted; /* by Envoy: only what says where it ends counts */
	__u32 seen;    /* HTTP_SEEN_ */
	__u32 close;
	__u64 carry;   /* what the word before left for this one's first bytes */
	__u64 carry_percent;
	__u64 body_length;
	__u32 left;    /* bytes of the target */
	__u32 found;
	__u16 host_at, host_length;
	__u16 path_length;
	__u16 found_line;
	__u32 trace;   /* enum http_trace */
	__u32 reserved;
	__u64 first_word[HTTP_LINE_SLOTS]; /* of the name, folded and padded */
	__u16 line_at[HTTP_LINE_SLOTS];
	__u16 name_length[HTTP_LINE_SLOTS];
};

struct http_request {
	__u16 end;         /* behind the head's empty line */
	__u8 method;       /* enum http_method */
	__u8 framing;
	__u16 target_at;
	__u16 path_length; /* without '?' and what follows */
	__u16 target_length;
	__u16 host_at, host_length;
	__u16 reserved;
	__u32 close;       /* Connection: close */
	__u32 trace;       /* enum http_trace */
	__u64 body_length;
};

struct http_answer {
	__u16 end;
	__u16 status;      /* 1xx: another answer follows */
	__u8 framing;
	__u8 reserved[3];
	__u32 close;
	__u32 reserved2;
	__u64 body_length;
};

enum { HTTP_SEEN_HOST = 1, HTTP_SEEN_LENGTH = 2, HTTP_SEEN_CODING = 4, HTTP_SEEN_CONNECTION = 8 };

struct http_pass {
	struct http_scratch *s;
};

/* The eight bytes at any offset. */
HTTP_INLINE __u64 http_at(const struct http_scratch *s, __u32 offset)
{
	HTTP_FORGET(offset);
	return http_load((const __u8 *)s->words + (offset & (HTTP_HEAD_MAX - 1)));
}

HTTP_INLINE __u32 http_slot(__u32 line)
{
	HTTP_FORGET(line);
	return line & (HTTP_LINE_SLOTS - 1);
}

/* Up to eight of a name's bytes, or of a value to be compared with small letters. */
HTTP_INLINE __u64 http_folded(const struct http_scratch *s, __u32 offset, __u32 length)
{
	return (http_at(s, offset) | (HTTP_ONES * 0x20)) & http_mask(length);
}

#define HTTP_PLAIN_WORDS 8 /* that are passed over at once */

/*
 * Finds the lines, and the head's end; judges every byte as one of a value. Each turn passes over what has nothing but printable
 * bytes, and takes the word behind that; s->at: how far it is.
 */
static long http_scan_word(__u32 turn __attribute__((unused)), struct http_pass *p)
{
	struct http_scratch *s = p->s;
	__u32 i = s->at, words = s->words_used;
	__u64 carry = s->carry;
	for (__u32 k = 0; k < HTTP_PLAIN_WORDS; k++) {
		if (i >= words || i >= HTTP_HEAD_MAX / 8)
			return 1;
		__u64 w = s->words[i], low = w & ~HTTP_HIGH;
		if (carry || ~((low + HTTP_ONES * 0x60) & ~(low + HTTP_ONES) & ~w) & HTTP_HIGH)
			break;
		i++;
	}
	if (i >= words || i >= HTTP_HEAD_MAX / 8)
		return 1;
	s->at = i + 1;
	__u64 w = s->words[i];
	__u64 control = ~((w & ~HTTP_HIGH) + HTTP_ONES * 0x60) & ~w & HTTP_HIGH;
	__u64 bad = http_equal(w, 0x7f);
	if (!s->answer)
		bad |= w & HTTP_HIGH;
	__u64 cr = http_equal(w, '\r'), lf = http_equal(w, '\n');
	__u64 alone = ((cr << 8) | carry) ^ lf;
	bad |= (control & ~(cr | lf | http_equal(w, '\t'))) | alone;
	s->carry = cr >> 56;
	for (int k = 0; k < 4 && lf; k++) {
		__u64 lowest = lf & -lf;
		if (bad & (lowest | (lowest - 1)))
			break;
		__u32 at = i * 8 + http_index(lowest), lines = s->lines + 1;
		if (at == s->start + 1) {
			s->end = at + 1;
			return 1;
		}
		if (lines > HTTP_LINES_MAX) {
			s->doubt = HTTP_TOO_MANY_LINES;
			return 1;
		}
		s->lines = lines;
		s->start = at + 1;
		s->line_at[http_slot(lines)] = at + 1;
		lf &= lf - 1;
	}
	if (!bad)
		return 0;
	bad &= -bad;
	s->doubt = alone & bad ? HTTP_BAD_LINE_END : HTTP_BAD_BYTE;
	return 1;
}

/* 0, or a doubt. */
HTTP_INLINE __u32 http_scan(struct http_scratch *s, bool answer)
{
	struct http_pass pass = { s };
	__u32 length = s->length, last = length >> 3;
	if (length > HTTP_HEAD_MAX)
		return HTTP_TOO_LONG;
	s->lines = s->start = s->end = s->doubt = s->seen = s->close = s->trace = 0;
	s->carry = s->body_length = 0;
	s->at = 0;
	s->words_used = (length + 7) >> 3;
	s->answer = answer;
	s->line_at[0] = 0;
	/* What is behind the message in its last word would be NULs, which are bad bytes. */
	__u64 kept = s->words[last & 0xff], mask = http_mask(length & 7);
	if (length & 7)
		s->words[last & 0xff] = (kept & mask) | (~mask & (HTTP_ONES * 'x'));
	http_loop((length + 7) >> 3, http_scan_word, &pass);
	if (length & 7)
		s->words[last & 0xff] = kept;
	if (s->doubt == HTTP_BAD_LINE_END && length && (http_at(s, length - 1) & 0xff) == '\r')
		return HTTP_INCOMPLETE; /* perhaps its LF is in the next message */
	if (s->doubt)
		return s->doubt;
	if (!s->end)
		return length == HTTP_HEAD_MAX ? HTTP_TOO_LONG : HTTP_INCOMPLETE;
	return s->lines ? 0 : HTTP_BAD_LINE_END;
}

/* A header's value without the blanks around it. More than seven blanks at an end are not looked behind: false. */
HTTP_INLINE bool http_value(const struct http_scratch *s, __u32 line, __u32 *value_at, __u32 *value_length)
{
	__u32 at = s->line_at[http_slot(line)] + s->name_length[http_slot(line)] + 1;
	__u32 end = s->line_at[http_slot(line + 1)] - 2;
	__u64 w = http_at(s, at), other = ~(http_equal(w, ' ') | http_equal(w, '\t')) & HTTP_HIGH;
	if (!other || end < 8)
		return false;
	at += http_index(other & -other);
	w = http_at(s, end - 8);
	for (int k = 0; k < 8 && end > at; k++) {
		__u8 c = w >> 56;
		if (c != ' ' && c != '\t')
			break;
		if (k == 7)
			return false;
		w <<= 8;
		end--;
	}
	*value_at = at;
	*value_length = end > at ? end - at : 0;
	return true;
}

#define HTTP_VALUE_IS(text) (length == sizeof(text) - 1 && http_folded(s, at, length) == HTTP_WORD(text, 0) && \
	(sizeof(text) <= 9 || http_folded(s, at + 8, length - 8) == HTTP_WORD(text, 8)))

/* Once, and 1 to 10 digits. */
HTTP_INLINE __u32 http_read_length(struct http_scratch *s, __u32 at, __u32 length)
{
	__u64 low = http_at(s, at), high = http_at(s, at + 8), value = 0;
	if (s->seen & HTTP_SEEN_LENGTH || length < 1 || length > 10)
		return HTTP_BAD_LENGTH;
	s->seen |= HTTP_SEEN_LENGTH;
	for (__u32 k = 0; k < 10; k++) {
		if (k >= length)
			break;
		__u32 digit = ((k < 8 ? low >> (8 * k) : high >> (8 * (k - 8))) & 0xff) - '0';
		if (digit > 9)
			return HTTP_BAD_LENGTH;
		value = value * 10 + digit;
	}
	s->body_length = value;
	return 0;
}

HTTP_INLINE __u32 http_read_host(struct http_scratch *s, __u32 at, __u32 length)
{
	if (s->seen & HTTP_SEEN_HOST || !length || length > HTTP_HOST_MAX)
		return HTTP_BAD_HOST;
	s->seen |= HTTP_SEEN_HOST;
	for (__u32 k = 0; k < HTTP_HOST_MAX / 8; k++) {
		if (8 * k >= length)
			break;
		__u64 w = http_at(s, at + 8 * k);
		__u64 good = http_name_bytes(w) | http_equal(w, '.') | http_equal(w, ':') | http_equal(w, '[') | http_equal(w, ']');
		if (~good & HTTP_HIGH & http_mask(length - 8 * k))
			return HTTP_BAD_HOST;
	}
	s->host_at = at;
	s->host_length = length;
	return 0;
}

#define HTTP_NAMED(text) (first == HTTP_WORD(text, 0) && \
	(sizeof(text) <= 9 || http_folded(s, name + 8, (__u32)(sizeof(text) - 9)) == HTTP_WORD(text, 8)) && \
	(sizeof(text) <= 17 || http_folded(s, name + 16, (__u32)(sizeof(text) - 17)) == HTTP_WORD(text, 16)))

/* A header that means something to more than its reader; `name` is where it begins, of `name_length` bytes. */
HTTP_INLINE __u32 http_judge(struct http_scratch *s, __u32 line, __u32 name, __u32 name_length, __u64 first)
{
	enum { NOTHING, HOST, LENGTH, CODING, CONNECTION, TE, SPECIAL, CONTENT_TYPE, PARENT, B3, B3_SAMPLED, REQUEST_ID, TRACE_ID } is = NOTHING;
	__u32 at = 0, length = 0;
	if (!s->trusted && (first == HTTP_WORD("x-envoy-", 0) || (first == HTTP_WORD("x-underp", 0) && http_folded(s, name + 8, 4) == HTTP_WORD("ass-", 0))))
		return HTTP_RESERVED;
	switch (name_length) {
	case 2:
		is = HTTP_NAMED("te") ? TE : HTTP_NAMED("b3") ? B3 : NOTHING;
		break;
	case 4:
		is = HTTP_NAMED("host") ? HOST : NOTHING;
		break;
	case 6:
		is = HTTP_NAMED("expect") ? SPECIAL : NOTHING;
		break;
	case 7:
		is = HTTP_NAMED("upgrade") || HTTP_NAMED("trailer") ? SPECIAL : NOTHING;
		break;
	case 10:
		is = HTTP_NAMED("connection") ? CONNECTION : HTTP_NAMED("early-data") || (HTTP_NAMED("keep-alive") && !s->answer) ? SPECIAL : NOTHING;
		break;
	case 11:
		is = HTTP_NAMED("traceparent") ? PARENT : NOTHING;
		break;
	case 12:
		is = HTTP_NAMED("content-type") ? CONTENT_TYPE : HTTP_NAMED("x-request-id") ? REQUEST_ID : HTTP_NAMED("x-b3-sampled") ? B3_SAMPLED
			: HTTP_NAMED("grpc-timeout") ? SPECIAL : NOTHING;
		break;
	case 14:
		is = HTTP_NAMED("content-length") ? LENGTH : HTTP_NAMED("http2-settings") ? SPECIAL : NOTHING;
		break;
	case 16:
		is = HTTP_NAMED("proxy-connection") ? SPECIAL : NOTHING;
		break;
	case 17:
		is = HTTP_NAMED("transfer-encoding") ? CODING : HTTP_NAMED("x-client-trace-id") ? TRACE_ID : NOTHING;
		break;
	case 19:
		is = HTTP_NAMED("proxy-authorization") ? SPECIAL : NOTHING;
		break;
	case 23: /* which Envoy takes away as a rule: its sender may say anything */
		is = HTTP_NAMED("x-forwarded-client-cert") ? SPECIAL : NOTHING;
		break;
	}
	if (is == NOTHING || (s->answer && is >= CONTENT_TYPE) || (s->trusted && is != HOST && is != LENGTH && is != CODING && is != CONNECTION))
		return 0;
	if (is == SPECIAL || !http_value(s, line, &at, &length))
		return HTTP_SPECIAL;
	switch (is) {
	case HOST:
		return s->answer ? 0 : http_read_host(s, at, length);
	case LENGTH:
		return http_read_length(s, at, length);
	case CODING:
		if (s->seen & HTTP_SEEN_CODING || !HTTP_VALUE_IS("chunked"))
			return HTTP_BAD_CODING;
		s->seen |= HTTP_SEEN_CODING;
		return 0;
	case CONNECTION:
		s->close = HTTP_VALUE_IS("close");
		if (s->seen & HTTP_SEEN_CONNECTION || !(s->close || HTTP_VALUE_IS("keep-alive")))
			return HTTP_BAD_CONNECTION;
		s->seen |= HTTP_SEEN_CONNECTION;
		return 0;
	case TE:
		return HTTP_VALUE_IS("trailers") ? 0 : HTTP_SPECIAL;
	case CONTENT_TYPE: /* gRPC has time limits and statistics of its own at Envoy */
		return http_folded(s, at, 8) == HTTP_WORD("applicat", 0) && http_folded(s, at + 8, 8) == HTTP_WORD("ion/grpc", 0) ? HTTP_SPECIAL : 0;
	case PARENT: { /* W3C trace context: 00-<32>-<16>-<flags>, of which bit 0 is "sampled" */
		__u8 last = http_at(s, at + 54);
		s->trace |= length == 55 && (http_at(s, at) & 0xffffff) == HTTP_WORD("00-", 0) && last >= '0' && last <= '9' && !(last & 1) ? HTTP_TRACE_W3C : HTTP_TRACE_W3C_ASKED;
		return 0;
	}
	case B3: { /* of one header: "0", or <trace>-<span>-0, or <trace>-<span>-0-<parent>, with a trace id of 64 or 128 bits */
		__u32 sampled = length == 35 || length == 52 ? 33 : length == 51 || length == 68 ? 49 : 0;
		s->trace |= HTTP_VALUE_IS("0") || (sampled && (http_at(s, at + sampled) & 0xffff) == HTTP_WORD("-0", 0)) ? HTTP_TRACE_B3 : HTTP_TRACE_B3_ASKED;
		return 0;
	}
	case B3_SAMPLED:
		s->trace |= HTTP_VALUE_IS("0") ? HTTP_TRACE_B3 : HTTP_TRACE_B3_ASKED;
		return 0;
	case REQUEST_ID: { /* Envoy keeps why it traces in a UUID's version: source/extensions/request_id/uuid/config.cc */
		__u8 version = http_at(s, at + 14);
		s->trace |= HTTP_TRACE_ID;
		if (length == 36 && (version == '9' || (version | 0x20) == 'a' || (version | 0x20) == 'b'))
			s->trace |= HTTP_TRACE_ASKED;
		return 0;
	}
	case TRACE_ID:
		s->trace |= HTTP_TRACE_ASKED;
		return 0;
	default:
		return 0;
	}
}

static long http_read_header(__u32 i, struct http_pass *p)
{
	struct http_scratch *s = p->s;
	__u32 line = i + 1;
	if (line >= s->lines)
		return 1;
	line = http_slot(line);
	__u32 at = s->line_at[line], length = 0;
	__u64 first = 0, colon = 0;
	for (__u32 k = 0; k < HTTP_NAME_WORDS; k++) {
		__u64 w = http_at(s, at + 8 * k), bad = ~http_name_bytes(w) & HTTP_HIGH;
		if (!k)
			first = w;
		if (!bad)
			continue;
		bad &= -bad; /* the first that is no name's has to be the colon */
		colon = bad & http_equal(w, ':');
		length = 8 * k + http_index(bad);
		break;
	}
	if (!colon || !length) {
		s->doubt = HTTP_BAD_NAME;
		return 1;
	}
	first = (first | (HTTP_ONES * 0x20)) & http_mask(length);
	s->first_word[line] = first;
	s->name_length[line] = length;
	s->doubt = http_judge(s, line, at, length, first);
	return s->doubt != 0;
}

HTTP_INLINE __u32 http_read_headers(struct http_scratch *s)
{
	struct http_pass pass = { s };
	http_loop(HTTP_LINES_MAX, http_read_header, &pass);
	if (s->doubt)
		return s->doubt;
	return (s->seen & (HTTP_SEEN_LENGTH | HTTP_SEEN_CODING)) == (HTTP_SEEN_LENGTH | HTTP_SEEN_CODING) ? HTTP_BOTH_FRAMINGS : 0;
}

/* s->start: where the target begins, s->left: how much of it is to come, s->close: its query has begun. */
static long http_read_target(__u32 i, struct http_pass *p)
{
	struct http_scratch *s = p->s;
	__u32 left = s->left;
	if (!left)
		return 1;
	__u64 w = http_at(s, s->start + 8 * i), valid = http_mask(left) & HTTP_HIGH, path = s->close ? 0 : valid, good = http_path_bytes(w);
	s->doubt = HTTP_BAD_TARGET;
	if (!s->close) {
		__u64 mark = http_equal(w, '?') & valid;
		if (mark) {
			mark &= -mark;
			path = valid & (mark - 1);
			s->path_length = 8 * i + http_index(mark);
			s->close = 1;
		}
		__u64 slash = http_equal(w, '/') & path;
		if (~good & path || ((slash << 8) | s->carry) & (slash | (http_equal(w, '.') & path)))
			return 1;
		s->carry = slash >> 56;
	}
	__u64 query = valid & ~path;
	if (query) {
		__u64 percent = http_equal(w, '%') & query, before = s->carry_percent;
		if (~(good | percent | http_equal(w, '?')) & query)
			return 1;
		/* Two digits behind each. */
		if (((percent << 8) | (percent << 16) | (before >> 56) | (before >> 48)) & ~(http_hex_bytes(w) & valid) & HTTP_HIGH)
			return 1;
		s->carry_percent = percent;
	}
	s->left = left > 8 ? left - 8 : 0;
	if (!s->left && s->carry_percent >> 48)
		return 1;
	s->doubt = 0;
	return 0;
}

HTTP_GLOBAL int http_read_any_request(struct http_scratch *s, struct http_request *out, bool trusted)
{
	if (!s || !out)
		return HTTP_INCOMPLETE;
	struct http_pass pass = { s };
	s->trusted = trusted;
	__u32 doubt = http_scan(s, false);
	if (doubt)
		return doubt;
	__u64 w = s->words[0];
	__u32 at, end = s->line_at[1] - 2;
	if ((__u32)w == (__u32)HTTP_WORD("GET ", 0))
		out->method = HTTP_GET, at = 4;
	else if ((w & http_mask(5)) == HTTP_WORD("POST ", 0))
		out->method = HTTP_POST, at = 5;
	else if ((__u32)w == (__u32)HTTP_WORD("PUT ", 0))
		out->method = HTTP_PUT, at = 4;
	else if ((w & http_mask(7)) == HTTP_WORD("DELETE ", 0))
		out->method = HTTP_DELETE, at = 7;
	else if ((w & http_mask(6)) == HTTP_WORD("PATCH ", 0))
		out->method = HTTP_PATCH, at = 6;
	else if ((w & http_mask(5)) == HTTP_WORD("HEAD ", 0))
		out->method = HTTP_HEAD, at = 5;
	else if (w == HTTP_WORD("OPTIONS ", 0))
		out->method = HTTP_OPTIONS, at = 8;
	else
		return HTTP_BAD_METHOD;
	if (end <= at + HTTP_TARGET_SLACK)
		return HTTP_BAD_VERSION;
	end -= HTTP_TARGET_SLACK;
	if ((http_at(s, end) & 0xff) != ' ' || http_at(s, end + 1) != HTTP_WORD("HTTP/1.1", 0))
		return HTTP_BAD_VERSION;
	if ((http_at(s, at) & 0xff) != '/')
		return HTTP_BAD_TARGET;
	out->target_at = s->start = at;
	out->target_length = s->left = s->path_length = end - at;
	s->carry = s->carry_percent = 0;
	http_loop(HTTP_HEAD_MAX / 8, http_read_target, &pass);
	if (s->doubt)
		return s->doubt;
	s->close = 0;
	doubt = http_read_headers(s);
	if (doubt)
		return doubt;
	if (!(s->seen & HTTP_SEEN_HOST))
		return HTTP_BAD_HOST;
	if (s->seen & HTTP_SEEN_CODING && !(1u << out->method & (1u << HTTP_POST | 1u << HTTP_PUT | 1u << HTTP_PATCH)))
		return HTTP_BODY_NOT_ALLOWED;
	out->end = s->end;
	out->path_length = s->path_length;
	out->host_at = s->host_at;
	out->host_length = s->host_length;
	out->close = s->close;
	out->trace = s->trace;
	out->body_length = s->body_length;
	out->framing = s->seen & HTTP_SEEN_CODING ? HTTP_CHUNKED : s->body_length ? HTTP_LENGTH : HTTP_NO_BODY;
	return 0;
}

/* 0, or enum http_doubt: why it is Envoy's. */
HTTP_INLINE int http_read_request(struct http_scratch *s, struct http_request *out)
{
	return http_read_any_request(s, out, false);
}

/* One that Envoy wrote: headers that a client may not send are nothing special in it. */
HTTP_INLINE int http_read_envoys_request(struct http_scratch *s, struct http_request *out)
{
	return http_read_any_request(s, out, true);
}

/* 0, or enum http_doubt. `to_head`: it answers a HEAD request. */
HTTP_GLOBAL int http_read_any_answer(struct http_scratch *s, bool to_head, struct http_answer *out, bool trusted)
{
	if (!s || !out)
		return HTTP_INCOMPLETE;
	s->trusted = trusted;
	__u32 doubt = http_scan(s, true);
	if (doubt)
		return doubt;
	if (s->words[0] != HTTP_WORD("HTTP/1.1", 0))
		return HTTP_BAD_VERSION;
	__u64 w = s->words[1]; /* " 200 …" */
	__u32 hundreds = ((w >> 8) & 0xff) - '0', tens = ((w >> 16) & 0xff) - '0', ones = ((w >> 24) & 0xff) - '0';
	if (s->line_at[1] < 15 || (w & 0xff) != ' ' || ((w >> 32) & 0xff) != ' ' || hundreds < 1 || hundreds > 5 || tens > 9 || ones > 9)
		return HTTP_BAD_STATUS;
	__u32 status = hundreds * 100 + tens * 10 + ones;
	if (status == 101)
		return HTTP_BAD_STATUS;
	doubt = http_read_headers(s);
	if (doubt)
		return doubt;
	bool never = hundreds == 1 || status == 204;
	if (never && s->seen & (HTTP_SEEN_LENGTH | HTTP_SEEN_CODING))
		return HTTP_BODY_NOT_ALLOWED;
	out->end = s->end;
	out->status = status;
	out->close = s->close;
	out->body_length = 0;
	if (never || status == 304 || to_head)
		out->framing = HTTP_NO_BODY;
	else if (s->seen & HTTP_SEEN_CODING)
		out->framing = HTTP_CHUNKED;
	else if (s->seen & HTTP_SEEN_LENGTH) {
		out->body_length = s->body_length;
		out->framing = s->body_length ? HTTP_LENGTH : HTTP_NO_BODY;
	} else
		out->framing = HTTP_UNTIL_CLOSE;
	return 0;
}

HTTP_FUNCTION int http_read_answer(struct http_scratch *s, bool to_head, struct http_answer *out)
{
	return http_read_any_answer(s, to_head, out, false);
}

/* What Envoy answers: it tells clients of itself in headers that are nobody else's. */
HTTP_FUNCTION int http_read_envoys_answer(struct http_scratch *s, bool to_head, struct http_answer *out)
{
	return http_read_any_answer(s, to_head, out, true);
}

#include "http-lookup.h"
#include "http-body.h"
