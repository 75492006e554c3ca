/*
 * Reads heads and bodies by bpf/http-parse.h, here or (--kernel) by the BPF program with the same text, for the tests.
 * A line each of standard input, fields apart by blanks, bytes in hexadecimal, "-" for none:
 *   request HEAD NAME PREFIX      NAME: a header to find; PREFIX: to compare the target with
 *   answer HEAD NAME, answer-to-head HEAD NAME
 *   envoys-request …, envoys-answer …, envoys-answer-to-head …   the same, as what Envoy wrote
 *   body FRAMING LENGTH MESSAGE…  always here
 *   time HEAD TIMES               nanoseconds for one reading
 * and answers each by one line of key=value.
 */
#include <linux/types.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include "structs.h"
#include "http-structs.h"
#include "http-parse.h"
#include "probe.h"
#include "http-parse.skel.h"

#define LINE_MAX_BYTES (1 << 20)

static const char *const doubts[] = {
#define NAME(x) [HTTP_##x] = #x
	NAME(PLAIN), NAME(INCOMPLETE), NAME(TOO_LONG), NAME(TOO_MANY_LINES), NAME(BAD_BYTE), NAME(BAD_LINE_END), NAME(BAD_METHOD),
	NAME(BAD_VERSION), NAME(BAD_TARGET), NAME(BAD_NAME), NAME(BAD_HOST), NAME(BAD_LENGTH), NAME(BAD_CODING), NAME(BOTH_FRAMINGS),
	NAME(BODY_NOT_ALLOWED), NAME(BAD_CONNECTION), NAME(SPECIAL), NAME(RESERVED), NAME(BAD_STATUS), NAME(BAD_CHUNK),
};

static struct http_parse_bpf *kernel;

static size_t unhex(const char *text, unsigned char *out, size_t room)
{
	size_t n = 0;
	unsigned byte;
	if (!text || !strcmp(text, "-"))
		return 0;
	for (; n < room && sscanf(text + 2 * n, "%2x", &byte) == 1; n++)
		out[n] = byte;
	return n;
}

static void run(struct parse_probe *p)
{
	if (!kernel) {
		struct timespec before, after;
		clock_gettime(CLOCK_MONOTONIC, &before);
		for (__u32 i = 0; i < p->times; i++)
			probe_run(p);
		clock_gettime(CLOCK_MONOTONIC, &after);
		p->nanoseconds = (after.tv_sec - before.tv_sec) * 1000000000ull + after.tv_nsec - before.tv_nsec;
		return;
	}
	__u32 key = 0;
	LIBBPF_OPTS(bpf_test_run_opts, options);
	int map = bpf_map__fd(kernel->maps.probes);
	if (bpf_map_update_elem(map, &key, p, BPF_ANY) || bpf_prog_test_run_opts(bpf_program__fd(kernel->progs.read_probe), &options)
		|| options.retval || bpf_map_lookup_elem(map, &key, p)) {
		perror("http-parse: running the program");
		exit(1);
	}
}

static void show(const char *key, const void *bytes, size_t n)
{
	printf(" %s=", key);
	for (size_t i = 0; i < n; i++)
		printf("%02x", ((const unsigned char *)bytes)[i]);
}

static void head(const char *kind, char *rest, __u32 times)
{
	static struct parse_probe p;
	const char *text = strtok(rest, " \n"), *name = strtok(0, " \n"), *prefix = times ? 0 : strtok(0, " \n");
	unsigned char *bytes = (unsigned char *)p.scratch.words;
	memset(&p, 0, sizeof p);
	memset(&p.scratch, 0xa5, sizeof p.scratch); /* what another head left */
	memset(p.scratch.words, 0, sizeof p.scratch.words);
	p.scratch.length = unhex(text, bytes, HTTP_HEAD_MAX);
	bool envoys = !strncmp(kind, "envoys-", 7);
	if (envoys)
		kind += 7;
	p.kind = !strcmp(kind, "answer") ? PROBE_ANSWER : !strcmp(kind, "answer-to-head") ? PROBE_ANSWER_TO_HEAD : PROBE_REQUEST;
	bool request = p.kind == PROBE_REQUEST;
	p.kind |= envoys ? PROBE_ENVOYS : 0;
	p.times = times ? times : 1;
	p.name_length = times ? 0 : unhex(name, (unsigned char *)p.name, HTTP_NAME_MAX);
	for (__u32 i = 0; i < p.name_length; i++)
		((unsigned char *)p.name)[i] |= 0x20;
	p.prefix_length = unhex(prefix, (unsigned char *)p.prefix, 64);
	run(&p);
	if (times) {
		printf("nanoseconds=%.1f doubt=%s\n", (double)p.nanoseconds / times, doubts[p.doubt]);
		return;
	}
	printf("doubt=%s", doubts[p.doubt]);
	if (!p.doubt && request) {
		printf(" end=%u method=%u framing=%u close=%u trace=%u length=%llu same=%u", p.request.end, p.request.method, p.request.framing,
			p.request.close, p.request.trace, (unsigned long long)p.request.body_length, p.same);
		show("target", bytes + p.request.target_at, p.request.target_length);
		show("path", bytes + p.request.target_at, p.request.path_length);
		show("host", p.host, 64);
	} else if (!p.doubt) {
		printf(" end=%u status=%u framing=%u close=%u length=%llu", p.answer.end, p.answer.status, p.answer.framing, p.answer.close,
			(unsigned long long)p.answer.body_length);
	}
	if (!p.doubt && p.name_length) {
		printf(" found=%u", p.found);
		if (p.found == 1)
			show("value", bytes + p.value_at, p.value_length);
	}
	printf("\n");
}

/* Each message's bytes that are the body's, then whether it is done. */
static void body(char *rest)
{
	static unsigned char bytes[LINE_MAX_BYTES / 2];
	struct http_body b;
	const char *framing = strtok(rest, " \n"), *length = strtok(0, " \n"), *text;
	http_body_begin(&b, framing ? atoi(framing) : 0, length ? strtoull(length, 0, 10) : 0);
	printf("used=");
	while ((text = strtok(0, " \n"))) {
		__u32 n = unhex(text, bytes, sizeof bytes), at = 0;
		while (at < n && !http_body_done(&b)) {
			__u8 window[HTTP_WINDOW] = { 0 };
			__u32 rest_bytes = n - at, valid = rest_bytes < HTTP_WINDOW ? rest_bytes : HTTP_WINDOW;
			memcpy(window, bytes + at, valid);
			int used = http_body_advance(&b, window, valid, rest_bytes);
			if (used < 0) {
				printf(" doubt=%s\n", doubts[-used]);
				return;
			}
			if (!used || (__u32)used > rest_bytes) {
				printf(" doubt=NO_STEP\n");
				return;
			}
			at += used;
		}
		printf("%u,", at);
	}
	printf(" done=%d\n", http_body_done(&b));
}

int main(int argc, char **argv)
{
	static char line[2 * LINE_MAX_BYTES];
	if (argc > 1 && !strcmp(argv[1], "--kernel") && !(kernel = http_parse_bpf__open_and_load())) {
		perror("http-parse: loading the programs");
		return 1;
	}
	while (fgets(line, sizeof line, stdin)) {
		char *space = strchr(line, ' ');
		if (!space)
			return 2;
		*space = 0;
		if (!strcmp(line, "body"))
			body(space + 1);
		else if (!strcmp(line, "time")) {
			char *times = strchr(space + 1, ' ');
			head("request", space + 1, times ? atoi(times) : 1);
		} else
			head(line, space + 1, 0);
		fflush(stdout);
	}
	return 0;
}
