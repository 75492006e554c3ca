/* What is asked of a head that http-parse.h has read, of the same scratch. Part of it. */
#pragma once

/* Whether the n bytes at `at` are those of `text`, which is padded with zeros; n <= 64. */
HTTP_FUNCTION bool http_same(const struct http_scratch *s, __u32 at, const __u64 *text, __u32 n)
{
	HTTP_UNROLL
	for (__u32 k = 0; k < 8; k++) {
		if (8 * k >= n)
			return true;
		if ((http_at(s, at + 8 * k) ^ text[k]) & http_mask(n - 8 * k))
			return false;
	}
	return n <= 64;
}

struct http_search {
	struct http_scratch *s;
	const __u64 *name;
	__u32 length;
};

static long http_try_header(__u32 i, struct http_search *p)
{
	struct http_scratch *s = p->s;
	__u32 line = i + 1, slot = http_slot(line);
	if (line >= s->lines)
		return 1;
	if (s->name_length[slot] != p->length || s->first_word[slot] != p->name[0])
		return 0;
	HTTP_UNROLL
	for (__u32 k = 1; k < HTTP_NAME_MAX / 8; k++) {
		if (8 * k >= p->length)
			break;
		if (http_folded(s, s->line_at[slot] + 8 * k, p->length - 8 * k) != p->name[k])
			return 0;
	}
	s->found_line = line;
	return ++s->found > 1;
}

/*
 * A header by its folded name (struct http_condition), HTTP_NAME_MAX bytes padded with zeros. 0: absent; 1: found, where its
 * value is, without the blanks around it; 2: found more than once, or among so many blanks that it is Envoy's to read.
 */
HTTP_FUNCTION int http_find_header(struct http_scratch *s, const __u64 *name, __u32 name_length, __u16 *at, __u16 *length)
{
	struct http_search search = { s, name, name_length };
	__u32 value_at = 0, value_length = 0;
	s->found = 0;
	http_loop(HTTP_LINES_MAX, http_try_header, &search);
	if (s->found != 1)
		return s->found ? 2 : 0;
	if (!http_value(s, s->found_line, &value_at, &value_length))
		return 2;
	*at = value_at;
	*length = value_length;
	return 1;
}

/* In small letters and padded, as keys have it. */
HTTP_INLINE void http_copy_host(const struct http_scratch *s, const struct http_request *r, __u64 *out)
{
	__u32 at = r->host_at, length = r->host_length;
	for (__u32 k = 0; k < HTTP_HOST_MAX / 8; k++) {
		__u64 w = http_at(s, at + 8 * k) & (8 * k < length ? http_mask(length - 8 * k) : 0);
		out[k] = w | (http_between(w, 'A', 'Z') >> 2);
	}
}
