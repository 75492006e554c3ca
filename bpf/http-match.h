/* The tables of the fast path: from a request's head to its class, its destination and that one's verdict. */
#pragma once

struct http_matching {
	struct http_socket *hs;
	__u32 first;
	__u32 verdict;
	__u32 found;
	__u32 doubt; /* a header that counts came twice */
};

static __always_inline bool http_host_is(const struct http_socket *hs, const struct http_condition *asked)
{
	const __u64 *have = (const void *)hs->host.host, *want = (const void *)asked->value;
	__u32 length = asked->value_length;
	if (asked->kind == HTTP_VALUE_EXACT ? hs->request.host_length != length : hs->request.host_length < length)
		return false;
#pragma unroll
	for (int i = 0; i < HTTP_VALUE_MAX / 8; i++) {
		__u32 at = i * 8;
		if (at >= length)
			break;
		__u64 mask = length - at >= 8 ? ~0ull : (1ull << (8 * ((length - at) & 7))) - 1;
		if ((have[i] ^ want[i]) & mask)
			return false;
	}
	return true;
}

/* 1: holds, 0: not, -1: not to be judged here. */
static __always_inline int http_condition_holds(struct http_socket *hs, const struct http_condition *asked)
{
	bool holds;
	if (!asked->name_length) {
		holds = asked->kind == HTTP_VALUE_PRESENT || http_host_is(hs, asked);
	} else {
		__u16 at = 0, length = 0;
		__u32 want = asked->value_length;
		int found = http_find_header(&hs->scratch, (const __u64 *)asked->name, asked->name_length, &at, &length);
		if (found > 1)
			return -1;
		HTTP_FORGET(want);
		if (want > HTTP_VALUE_MAX)
			return -1;
		holds = found && (asked->kind == HTTP_VALUE_PRESENT ||
				  ((asked->kind == HTTP_VALUE_EXACT ? length == want : length >= want) &&
				   http_same(&hs->scratch, at, (const __u64 *)asked->value, want)));
	}
	return holds != asked->inverted;
}

static __always_inline bool http_path_holds(struct http_socket *hs, const struct http_rule *rule)
{
	__u32 length = rule->path_length, have = hs->request.path_length, at = hs->request.target_at;
	if (rule->path_kind == HTTP_PATH_ANY)
		return true;
	if (rule->path_kind == HTTP_PATH_EXACT ? have != length : have < length)
		return false;
	if (!http_same(&hs->scratch, at, (const __u64 *)rule->path, length))
		return false;
	return rule->path_kind != HTTP_PATH_SEPARATED || have == length || (http_at(&hs->scratch, at + length) & 0xff) == '/';
}

static long http_try_rule(__u32 i, struct http_matching *search)
{
	struct http_socket *hs = search->hs;
	__u32 index = search->first + i;
	const struct http_rule *rule = bpf_map_lookup_elem(&http_rules, &index);
	if (!rule)
		return 1;
	if (rule->methods && !((rule->methods >> (hs->request.method & 15)) & 1))
		return 0;
	if (http_path_holds(hs, rule) == !!rule->path_inverted)
		return 0;
#pragma unroll
	for (int n = 0; n < HTTP_CONDITIONS; n++) {
		if (n >= rule->conditions_used)
			break;
		int holds = http_condition_holds(hs, &rule->conditions[n]);
		if (holds < 0) {
			search->doubt = 1;
			return 1;
		}
		if (!holds)
			return 0;
	}
	search->verdict = rule->verdict;
	search->found = 1;
	return 1;
}

/* The first rule's verdict that holds; HTTP_NOWHERE: none is to be told here. */
HTTP_GLOBAL __u32 http_search_list(struct http_socket *hs, const struct http_list *list)
{
	if (!hs || !list)
		return HTTP_NOWHERE;
	struct http_matching search = { .hs = hs, .first = list->first };
	__u32 count = list->count;
	if (count > HTTP_RULES_EACH)
		return HTTP_NOWHERE;
	bpf_loop(count, http_try_rule, &search, 0);
	return search.doubt ? HTTP_NOWHERE : search.found ? search.verdict : list->otherwise;
}

static __always_inline bool http_host_is_known(const struct http_socket *hs)
{
	const __u64 *host = (const void *)hs->host.host;
	__u64 differs = 0;
#pragma unroll
	for (int i = 0; i < HTTP_HOST_MAX / 8; i++)
		differs |= host[i] ^ hs->known_host[i];
	return !differs;
}

/* The virtual host of a request, which for one socket is mostly the one before. COUNTERS: found, as hs->vhost. */
static __always_inline enum counter http_find_host(struct socket_state *state, struct http_socket *hs, __u32 table)
{
	if (hs->request.host_length > HTTP_HOST_MAX)
		return COUNTER_HTTP_NO_HOST;
	http_copy_host(&hs->scratch, &hs->request, (void *)hs->host.host);
	if (table && hs->table == table && http_host_is_known(hs))
		return COUNTERS;
	hs->table = 0;
	hs->port.table = table;
	hs->port.port = bpf_ntohs(state->original.port);
	hs->port.reserved = 0;
	hs->port.address = state->original.address;
	struct http_port *port = bpf_map_lookup_elem(&http_ports, &hs->port);
	if (!port) {
		__builtin_memset(&hs->port.address, 0, sizeof(hs->port.address));
		port = bpf_map_lookup_elem(&http_ports, &hs->port);
	}
	if (!port)
		return COUNTER_HTTP_NO_ROUTES;
	hs->host.routes = port->routes;
	__u32 *vhost = bpf_map_lookup_elem(&http_hosts, &hs->host);
	if (!vhost) {
		hs->any.routes = port->routes;
		hs->any.host[0] = '*';
		vhost = bpf_map_lookup_elem(&http_hosts, &hs->any);
	}
	if (!vhost)
		return COUNTER_HTTP_NO_HOST;
	hs->vhost = *vhost;
	__builtin_memcpy(hs->known_host, hs->host.host, HTTP_HOST_MAX);
	hs->table = table;
	return COUNTERS;
}

/* The class of a request, as hs->found_class: what was found for this very head, or else by its host and the rules of that. */
static __always_inline enum counter http_seek_class(struct socket_state *state, struct http_socket *hs, __u32 table)
{
	if (table && hs->judged == table)
		return COUNTERS;
	hs->judged = 0;
	enum counter reason = http_find_host(state, hs, table);
	if (reason != COUNTERS)
		return reason;
	struct http_list *vhost = bpf_map_lookup_elem(&http_vhosts, &hs->vhost);
	if (!vhost)
		return COUNTER_HTTP_NO_HOST;
	hs->found_class = http_search_list(hs, vhost);
#pragma unroll
	for (int i = 0; i < HTTP_POLICIES_KNOWN; i++)
		hs->policies[i].policy = 0;
	hs->judged = table;
	return COUNTERS;
}

/* Whether the drawn endpoint's own policy lets this request of this client in. */
static __always_inline bool http_allowed(struct http_socket *hs, const struct http_endpoint *endpoint)
{
	__u32 policy = endpoint->policy;
	if (!policy || policy == HTTP_NOWHERE)
		return !policy;
	__u32 place = policy & (HTTP_POLICIES_KNOWN - 1);
	if (hs->policies[place].policy != policy) {
		struct http_list *list = bpf_map_lookup_elem(&http_policies, &policy);
		hs->policies[place].allowed = list && http_search_list(hs, list) == HTTP_ALLOWED;
		hs->policies[place].policy = policy;
	}
	return hs->policies[place].allowed;
}
