/*
 * libFuzzer target: heads and bodies for bpf/http-parse.h. An input is a byte that says what it is (a request, an answer, an
 * answer to HEAD) and a message. What the parser accepts is completed by a body of the length that it read and written, once
 * each, to descriptor FUZZ_OUT: "KIND HEX", KIND as the driver has it, for Envoy to read the same. With FUZZ_HOSTILE in the
 * environment everything that has an empty line in it is written instead, whatever the parser says: for Envoy to pass on.
 */
#define _GNU_SOURCE
#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "structs.h"
#include "http-structs.h"
#include "http-parse.h"
#include "tokens.h"

#define BODY_MAX 2048
#define SEEN_BITS 24

static const char *const kinds[] = { "request", "request", "answer", "answer-to-head" };
static FILE *out;
static bool hostile;
static uint8_t *seen;

#define COUNT(a) (sizeof(a) / sizeof *(a))

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	const char *fd = getenv("FUZZ_OUT");
	(void)argc, (void)argv;
	hostile = getenv("FUZZ_HOSTILE") != 0;
	seen = calloc(1, (1 << SEEN_BITS) / 8);
	out = fd ? fdopen(atoi(fd), "w") : 0;
	if (out)
		setvbuf(out, 0, _IOFBF, 1 << 16);
	return 0;
}

static bool is_new(const uint8_t *message, size_t size, uint8_t kind)
{
	uint64_t hash = 0xcbf29ce484222325ull ^ kind;
	for (size_t i = 0; i < size; i++)
		hash = (hash ^ message[i]) * 0x100000001b3ull;
	hash = (hash ^ hash >> 29) & ((1 << SEEN_BITS) - 1);
	bool was = seen[hash / 8] >> (hash % 8) & 1;
	seen[hash / 8] |= 1 << (hash % 8);
	return !was;
}

struct reading {
	int doubt;
	struct http_request request;
	struct http_answer answer;
};

/* `trusted`: as what Envoy wrote. */
static struct reading read_head(struct http_scratch *s, unsigned kind, const uint8_t *message, size_t size, bool trusted)
{
	struct reading r;
	memset(&r, 0, sizeof r);
	memset(s, 0xa5, sizeof *s);
	memset(s->words, 0, sizeof s->words);
	s->length = size < HTTP_HEAD_MAX ? size : HTTP_HEAD_MAX;
	memcpy(s->words, message, s->length);
	r.doubt = kind < 2 ? http_read_any_request(s, &r.request, trusted) : http_read_any_answer(s, kind == 3, &r.answer, trusted);
	return r;
}

/* How much of `message` is the body's, given `piece` bytes at a time; -1: it does not end, or is a doubt. */
static long read_body(uint8_t framing, uint64_t length, const uint8_t *message, size_t size, size_t piece)
{
	struct http_body b;
	size_t at = 0;
	http_body_begin(&b, framing, length);
	while (!http_body_done(&b)) {
		uint8_t window[HTTP_WINDOW] = { 0 };
		size_t rest = size - at < piece ? size - at : piece, n = rest < HTTP_WINDOW ? rest : HTTP_WINDOW;
		if (!rest)
			return -1;
		memcpy(window, message + at, n);
		int used = http_body_advance(&b, window, n, rest);
		if (used < 0)
			return -1;
		if (!used || (size_t)used > rest)
			abort();
		at += used;
	}
	return at;
}

static void write_once(unsigned kind, const uint8_t *message, size_t size)
{
	if (!out || !is_new(message, size, kind < 2 ? 0 : kind))
		return;
	fprintf(out, "%s ", kinds[kind]);
	for (size_t i = 0; i < size; i++)
		fprintf(out, "%02x", message[i]);
	fputc('\n', out);
}

static bool has_empty_line(const uint8_t *message, size_t size)
{
	return memmem(message, size, "\r\n\r\n", 4) || memmem(message, size, "\n\n", 2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct http_scratch s, other;
	static uint8_t whole[HTTP_HEAD_MAX + BODY_MAX];
	if (size < 2 || size > HTTP_HEAD_MAX + BODY_MAX)
		return 0;
	unsigned kind = data[0] & 3;
	const uint8_t *message = data + 1;
	size_t n = size - 1;
	struct reading r = read_head(&s, kind, message, n, false), trusted = read_head(&other, kind, message, n, true);
	if (hostile) {
		if (has_empty_line(message, n))
			write_once(kind, message, n);
		return 0;
	}
	if (r.doubt)
		return 0;
	/* Whoever wrote it, a head that is taken means the same; what Envoy says of traces nobody asks. */
	trusted.request.trace = r.request.trace;
	if (memcmp(&trusted, &r, sizeof r))
		abort();
	size_t end = kind < 2 ? r.request.end : r.answer.end;
	uint8_t framing = kind < 2 ? r.request.framing : r.answer.framing;
	uint64_t length = kind < 2 ? r.request.body_length : r.answer.body_length;

	/* Readers of the same scratch stay inside what was read, and see the target as it is. */
	const __u64 name = 0x702d78; /* x-p */
	__u64 text[8] = { 0 }, names[HTTP_NAME_MAX / 8] = { name };
	uint16_t value_at = 0, value_length = 0;
	if (http_find_header(&s, names, 3, &value_at, &value_length) == 1 && value_at + value_length + 4u > end)
		abort();
	if (kind < 2) {
		size_t target = r.request.target_length < sizeof text ? r.request.target_length : sizeof text;
		http_copy_host(&s, &r.request, text);
		if (strnlen((char *)text, sizeof text) != r.request.host_length)
			abort();
		memset(text, 0, sizeof text);
		memcpy(text, message + r.request.target_at, target);
		bool same = http_same(&s, r.request.target_at, text, target);
		((char *)text)[target - 1] ^= 1;
		if (!same || http_same(&s, r.request.target_at, text, target))
			abort();
	}

	/* A beginning of it is not yet one, and what follows has no say. */
	if (end < 4 || end > n || read_head(&other, kind, message, end - 1 - message[end / 2] % 4, false).doubt == 0)
		abort();
	memcpy(whole, message, end);
	memset(whole + end, 0, 64);
	struct reading again = read_head(&other, kind, whole, end + 64 < HTTP_HEAD_MAX ? end + 64 : end, false);
	if (memcmp(&again, &r, sizeof r))
		abort();

	long body = 0;
	if (framing == HTTP_LENGTH) {
		if (length > BODY_MAX)
			return 0;
		body = length;
		memset(whole + end, 'b', length);
		memcpy(whole + end, message + end, n - end < length ? n - end : length);
		if (read_body(framing, length, whole + end, sizeof whole - end, 7) != body)
			abort();
	} else if (framing == HTTP_CHUNKED) {
		body = read_body(framing, 0, message + end, n - end, SIZE_MAX);
		if (read_body(framing, 0, message + end, n - end, 1) != body || read_body(framing, 0, message + end, n - end, 33) != body)
			abort();
		if (body < 0)
			return 0;
		memcpy(whole + end, message + end, body);
	} else if (framing == HTTP_UNTIL_CLOSE) {
		body = n - end < BODY_MAX ? n - end : BODY_MAX;
		memcpy(whole + end, message + end, body);
	}
	write_once(kind, whole, end + body);
	return 0;
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);

static uint32_t state;

static uint32_t below(uint32_t n)
{
	state = state * 1664525 + 1013904223;
	return n ? (uint32_t)((uint64_t)(state ^ state >> 15) * n >> 32) : 0;
}

/* Puts text over `cut` bytes at `at`. */
static size_t put(uint8_t *data, size_t size, size_t max, size_t at, size_t cut, const char *text, size_t length)
{
	if (at > size || cut > size - at || size - cut + length > max)
		return size;
	memmove(data + at + length, data + at + cut, size - at - cut);
	memcpy(data + at, text, length);
	return size - cut + length;
}

/* Whole lines, and the tricks of tokens.h, besides libFuzzer's own bytes: what is left of a head is more often one. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	size_t starts[64], lines = 0, head = size;
	state = seed;
	if (size < 2 || below(4) == 0)
		return LLVMFuzzerMutate(data, size, max);
	for (size_t i = 1; i + 1 < size && lines < COUNT(starts); i++) {
		if (i == 1 || (data[i - 1] == '\n' && data[i - 2] == '\r'))
			starts[lines++] = i;
		if (i > 1 && i + 1 < size && data[i - 1] == '\n' && data[i] == '\r') {
			head = i;
			break;
		}
	}
	for (uint32_t times = 1 + below(3); times; times--) {
		size_t line = lines ? below(lines) : 0, at = lines ? starts[line] : 1, next = line + 1 < lines ? starts[line + 1] : head;
		char copy[256];
		const struct token *token = &header_lines[below(COUNT(header_lines))];
		switch (below(10)) {
		case 0: case 1: /* one more header */
			return put(data, size, max, line ? at : next, 0, token->text, token->length);
		case 2: /* another one */
			return line ? put(data, size, max, at, next - at, token->text, token->length) : put(data, size, max, next, 0, token->text, token->length);
		case 3: /* one again, or away */
			if (next <= at || next - at > sizeof copy || !line)
				break;
			memcpy(copy, data + at, next - at);
			return below(2) ? put(data, size, max, at, 0, copy, next - at) : put(data, size, max, at, next - at, "", 0);
		case 4: /* a trick anywhere in the head */
			token = &pieces[below(COUNT(pieces))];
			size = put(data, size, max, 1 + below(head), 0, token->text, token->length);
			return size;
		case 5: /* one byte */
			data[1 + below(head - 1)] = interesting[below(sizeof interesting - 1)];
			break;
		case 6: /* the first line */
			token = &first_lines[below(COUNT(first_lines))];
			return put(data, size, max, 1, (lines > 1 ? starts[1] : head) - 1, token->text, token->length);
		case 7: /* the body */
			token = &bodies[below(COUNT(bodies))];
			return head + 2 <= size ? put(data, size, max, head + 2, below(2) ? size - head - 2 : 0, token->text, token->length) : size;
		case 8: /* an upper or lower letter for the other */
			data[1 + below(head - 1)] ^= 0x20;
			break;
		case 9:
			data[0] = below(2) ? data[0] : below(4);
			if (head > 1)
				data[1 + below(head - 1)] = 0x21 + below(0x5e);
			break;
		}
	}
	return size;
}
