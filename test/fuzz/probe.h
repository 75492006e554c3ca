/* What the test's driver asks of the parser, in the kernel or beside it. */
#pragma once

enum probe_kind { PROBE_REQUEST = 0, PROBE_ANSWER = 1, PROBE_ANSWER_TO_HEAD = 2, PROBE_ENVOYS = 4 /* and: Envoy wrote it */ };

struct parse_probe {
	struct http_scratch scratch;
	struct http_request request;
	struct http_answer answer;
	__u64 host[8];
	__u64 name[HTTP_NAME_MAX / 8]; /* of a header to find, folded */
	__u64 prefix[8];               /* to compare the target with */
	__u64 nanoseconds;
	__u32 kind, times;
	__u32 name_length, prefix_length;
	__u32 doubt, found;
	__u32 same, reserved;
	__u16 value_at, value_length;
	__u32 reserved2;
};

static __attribute__((noinline)) int probe_run(struct parse_probe *p)
{
	__u32 kind = p->kind & ~PROBE_ENVOYS;
	if (kind == PROBE_REQUEST)
		p->doubt = http_read_any_request(&p->scratch, &p->request, p->kind & PROBE_ENVOYS);
	else
		p->doubt = http_read_any_answer(&p->scratch, kind == PROBE_ANSWER_TO_HEAD, &p->answer, p->kind & PROBE_ENVOYS);
	if (p->doubt)
		return 0;
	if (kind == PROBE_REQUEST) {
		http_copy_host(&p->scratch, &p->request, p->host);
		p->same = http_same(&p->scratch, p->request.target_at, p->prefix, p->prefix_length);
	}
	if (p->name_length)
		p->found = http_find_header(&p->scratch, p->name, p->name_length, &p->value_at, &p->value_length);
	return 0;
}
