#define _GNU_SOURCE
#include "http.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "tcp-bench.h"

#define MAX_HEAD (64 << 10)

void http_response_start(struct http_response *r, const char *tally_header, bool tally_body, bool no_body)
{
	r->part = HTTP_HEAD;
	r->line_size = r->head_size = r->tally_size = 0;
	r->seen_status = r->chunked = r->has_length = r->close = false;
	r->status = 0;
	r->left = 0;
	r->tally_header = tally_header;
	r->tally_body = tally_body;
	r->no_body = no_body;
	r->problem = NULL;
	r->tally[0] = 0;
}

static enum http_progress bad(struct http_response *r, const char *problem)
{
	r->problem = problem;
	return HTTP_BAD;
}

static enum http_progress status_line(struct http_response *r)
{
	if (sscanf(r->line, "HTTP/1.%*1[01] %3d", &r->status) != 1 || r->status < 100)
		return bad(r, "not an HTTP/1 status line");
	r->close = !strncmp(r->line, "HTTP/1.0", 8);
	r->seen_status = true;
	return HTTP_MORE;
}

static enum http_progress header_line(struct http_response *r)
{
	char *value = strchr(r->line, ':');
	if (!value)
		return bad(r, "a header without a colon");
	*value++ = 0;
	value += strspn(value, " \t");
	if (!strcasecmp(r->line, "content-length")) {
		r->left = strtoull(value, NULL, 10);
		r->has_length = true;
	} else if (!strcasecmp(r->line, "transfer-encoding")) {
		r->chunked = strcasestr(value, "chunked");
	} else if (!strcasecmp(r->line, "connection")) {
		r->close = strcasestr(value, "close");
	}
	if (r->tally_header && !strcasecmp(r->line, r->tally_header))
		snprintf(r->tally, sizeof r->tally, "%.*s", (int)sizeof r->tally - 1, value);
	return HTTP_MORE;
}

/* The empty line after a head: what follows? */
static enum http_progress head_end(struct http_response *r)
{
	if (r->status < 200 && r->status != 101) { /* interim: the answer proper follows */
		r->seen_status = false;
		return HTTP_MORE;
	}
	if (r->no_body || r->status == 204 || r->status == 304)
		return HTTP_DONE;
	if (r->chunked)
		r->part = HTTP_CHUNK_SIZE;
	else if (!r->has_length)
		r->part = HTTP_UNTIL_CLOSE;
	else if (!r->left)
		return HTTP_DONE;
	else
		r->part = HTTP_LENGTH;
	return HTTP_MORE;
}

static enum http_progress line_done(struct http_response *r)
{
	r->line[r->line_size] = 0;
	if (r->line_size && r->line[r->line_size - 1] == '\r')
		r->line[--r->line_size] = 0;
	size_t size = r->line_size;
	r->line_size = 0;
	switch (r->part) {
	case HTTP_HEAD:
		return !r->seen_status ? status_line(r) : size ? header_line(r) : head_end(r);
	case HTTP_CHUNK_SIZE: {
		if (!size)
			return HTTP_MORE; /* the break after a chunk's data */
		char *end;
		r->left = strtoull(r->line, &end, 16);
		if (end == r->line)
			return bad(r, "a chunk without a size");
		r->part = r->left ? HTTP_CHUNK_DATA : HTTP_TRAILER;
		return HTTP_MORE;
	}
	default:
		return size ? HTTP_MORE : HTTP_DONE;
	}
}

static void body(struct http_response *r, const unsigned char *data, size_t size)
{
	if (!r->tally_body)
		return;
	for (size_t i = 0; i < size && r->tally_size + 1 < sizeof r->tally; i++) {
		if (data[i] == '\n' || data[i] == '\r') {
			r->tally_body = false; /* the first line only */
			break;
		}
		r->tally[r->tally_size++] = data[i] >= ' ' && data[i] < 127 ? data[i] : '?';
	}
	r->tally[r->tally_size] = 0;
}

enum http_progress http_response_parse(struct http_response *r, const unsigned char *data, size_t size)
{
	while (size) {
		if (r->part == HTTP_LENGTH || r->part == HTTP_CHUNK_DATA) {
			size_t part = r->left < size ? r->left : size;
			body(r, data, part);
			r->left -= part;
			data += part;
			size -= part;
			if (r->left)
				continue;
			if (r->part == HTTP_LENGTH)
				return size ? bad(r, "data after the answer") : HTTP_DONE;
			r->part = HTTP_CHUNK_SIZE;
		} else if (r->part == HTTP_UNTIL_CLOSE) {
			body(r, data, size);
			size = 0;
		} else {
			const unsigned char *end = memchr(data, '\n', size);
			size_t part = end ? (size_t)(end - data) : size;
			r->head_size += part + 1;
			if (r->head_size > MAX_HEAD)
				return bad(r, "a head of more than 64 KiB");
			/* Of a line that is longer than what is looked at, the end is dropped. */
			size_t room = sizeof r->line - 1 - r->line_size, copied = part < room ? part : room;
			memcpy(r->line + r->line_size, data, copied);
			r->line_size += copied;
			if (!end)
				return HTTP_MORE;
			data = end + 1;
			size -= part + 1;
			enum http_progress progress = line_done(r);
			if (progress == HTTP_DONE && size)
				return bad(r, "data after the answer");
			if (progress != HTTP_MORE)
				return progress;
		}
	}
	return HTTP_MORE;
}

bool http_response_end(const struct http_response *r)
{
	return r->part == HTTP_UNTIL_CLOSE;
}

#define NUMBER_DIGITS 10

void http_request_make(struct http_request *r, const char *path)
{
	FILE *f = open_memstream(&r->text, &r->size);
	if (!f)
		die("allocating", "the request");
	fprintf(f, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: underpass-bench\r\nAccept: */*\r\n", options.method, path, options.authority);
	if (options.vary) {
		fprintf(f, "x-request-number: ");
		fflush(f);
		r->number_at = r->size;
		fprintf(f, "%0*d\r\n", NUMBER_DIGITS, 0);
	}
	for (int i = 0; i < options.header_count; i++)
		fprintf(f, "%s\r\n", options.headers[i]);
	if (options.body_bytes)
		fprintf(f, "Content-Length: %llu\r\n", (unsigned long long)options.body_bytes);
	if (options.new_connection_each)
		fprintf(f, "Connection: close\r\n");
	fprintf(f, "\r\n");
	for (uint64_t i = 0; i < options.body_bytes; i++)
		fputc('x', f);
	fclose(f);
}

void http_request_number(const struct http_request *r, unsigned char *copy, uint64_t number)
{
	for (int i = NUMBER_DIGITS; i--; number /= 10)
		copy[r->number_at + i] = '0' + number % 10;
}
