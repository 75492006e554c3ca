/* Reads HTTP/1.1 answers as they come, in whatever parts. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum http_progress { HTTP_MORE, HTTP_DONE, HTTP_BAD };

struct http_response {
	enum { HTTP_HEAD, HTTP_LENGTH, HTTP_CHUNK_SIZE, HTTP_CHUNK_DATA, HTTP_TRAILER, HTTP_UNTIL_CLOSE } part;
	char line[1024];
	size_t line_size, head_size;
	bool seen_status, chunked, has_length, close, no_body, tally_body;
	int status;
	uint64_t left;
	const char *tally_header, *problem;
	char tally[96];
	size_t tally_size;
};

void http_response_start(struct http_response *r, const char *tally_header, bool tally_body, bool no_body);
enum http_progress http_response_parse(struct http_response *r, const unsigned char *data, size_t size);
/* Whether an orderly end of stream completes the answer. */
bool http_response_end(const struct http_response *r);

struct http_request {
	char *text;
	size_t size, number_at; /* where the digits of --vary are */
};
/* Head and body as the options describe them. */
void http_request_make(struct http_request *r, const char *path);
/* Writes the number into a copy of the text, where --vary asks for it. */
void http_request_number(const struct http_request *r, unsigned char *copy, uint64_t number);
