/*
 * L4 authorization: who may open a connection to a pod, by the opener's identity, its address, and the port. User space
 * evaluates principals and namespaces into classes of identities; what is left of a pod's policies is one list of terms, of
 * which the first that fits decides. The list is one map value, so that it changes at once.
 */
#pragma once

#define POLICY_TERMS 64
#define POLICY_PORTS 128
#define POLICY_CIDRS 128
/* Class 0: no identity. */
#define POLICY_CLASSES 64
#define POLICY_CLASS_UNKNOWN 255
#define POLICY_PLACES (MAX_PODS + 1)
/* Handshakes that are under way to pods with policy. What is pushed out has lost its identity, and is tried again. */
#define MAX_OPENINGS 16384
#define LOOPBACK_IFINDEX 1

struct policy_ports {
	__u16 first, last; /* host order, both included */
};

struct policy_cidr {
	struct address address, mask;
	__u32 ipv4; /* else IPv6: no block of one holds addresses of the other */
};

/* In one of the policy's two lists; no entries: the term does not ask. */
struct policy_span {
	__u16 first, count;
};

struct policy_term {
	__u64 classes; /* bit by class */
	struct policy_span ports, sources, not_sources, destinations, not_destinations;
	__u32 deny;
};

struct policy {
	__u64 write; /* no other write of any policy has this number */
	__u64 netns_cookie; /* the key once more */
	__u32 state;
	__u32 terms_used;
	__u64 version; /* for the agent that comes after the one that wrote it */
	__u8 allow_by_default;
	__u8 behind_proxy; /* what comes over the network is led to the proxy, which decides */
	__u8 class_of[POLICY_PLACES]; /* by pod.slot */
	__u8 reserved[5];
	struct policy_span judged; /* ports (none: no port) of which this list says all that the proxy would, of callers of this node */
	struct policy_term terms[POLICY_TERMS]; /* those that deny first */
	struct policy_ports ports[POLICY_PORTS];
	struct policy_cidr cidrs[POLICY_CIDRS];
};

/* By the network namespace that they protect. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PODS);
	__type(key, __u64);
	__type(value, struct policy);
} policies SEC(".maps");

/* Who really opens a connection of this node: the kernel's own word at the far end, which no forged packet has. */
struct opening {
	__u64 netns_cookie;
	__u32 slot; /* 0: the node itself */
	__u32 generation;
	__u32 sequence; /* of its SYN: a forged one with the addresses of a connection that there was has another */
	__u32 reserved;
	__u64 judged_ns; /* when connect() let it past the proxy; 0: it did not */
};

/* The key's netns_cookie is the destination's. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_OPENINGS);
	__type(key, struct tuple);
	__type(value, struct opening);
} openings SEC(".maps");

/* The node itself: what its processes open is exempt from policy and from redirection, but for the shared proxy's. */
struct host {
	__u64 netns_cookie; /* 0: not known */
	__u64 proxy_cgroup;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct host);
} hosts SEC(".maps");

struct policy_query {
	struct address source, destination;
	__u32 slot; /* of the opener; 0: it has no identity */
	__u16 port; /* host order */
	__u16 reserved;
};

/* Global functions: the verifier looks at each once, whatever calls it, and not once for each turn of a loop. */
__noinline int policy_has_port(const struct policy *policy, __u32 first, __u32 count, __u32 port)
{
	if (!policy)
		return 0;
	for (__u32 i = 0; i < POLICY_PORTS; i++) {
		if (i >= count)
			break;
		const struct policy_ports *range = &policy->ports[(first + i) & (POLICY_PORTS - 1)];
		if (port >= range->first && port <= range->last)
			return 1;
	}
	return 0;
}

__noinline int policy_has_address(const struct policy *policy, __u32 first, __u32 count, const struct address *address)
{
	if (!policy || !address)
		return 0;
	__u32 ipv4 = is_ipv4(address);
	for (__u32 i = 0; i < POLICY_CIDRS; i++) {
		if (i >= count)
			break;
		const struct policy_cidr *cidr = &policy->cidrs[(first + i) & (POLICY_CIDRS - 1)];
		__u32 differs = cidr->ipv4 ^ ipv4;
		differs |= (address->word[0] & cidr->mask.word[0]) ^ cidr->address.word[0];
		differs |= (address->word[1] & cidr->mask.word[1]) ^ cidr->address.word[1];
		differs |= (address->word[2] & cidr->mask.word[2]) ^ cidr->address.word[2];
		differs |= (address->word[3] & cidr->mask.word[3]) ^ cidr->address.word[3];
		if (!differs)
			return 1;
	}
	return 0;
}

__noinline int policy_term_fits(const struct policy *policy, const struct policy_query *query, __u32 index)
{
	if (!policy || !query)
		return 0;
	const struct policy_term *term = &policy->terms[index & (POLICY_TERMS - 1)];
	struct address source = query->source, destination = query->destination;
	if (term->ports.count && !policy_has_port(policy, term->ports.first, term->ports.count, query->port))
		return 0;
	if (term->sources.count && !policy_has_address(policy, term->sources.first, term->sources.count, &source))
		return 0;
	if (term->not_sources.count && policy_has_address(policy, term->not_sources.first, term->not_sources.count, &source))
		return 0;
	if (term->destinations.count &&
	    !policy_has_address(policy, term->destinations.first, term->destinations.count, &destination))
		return 0;
	if (term->not_destinations.count &&
	    policy_has_address(policy, term->not_destinations.first, term->not_destinations.count, &destination))
		return 0;
	return 1;
}

/* Whether a pod's policy lets the connection in. What it can't judge it does not. */
__noinline int policy_allows(const struct policy *policy, const struct policy_query *query)
{
	if (!policy || !query || policy->state != POLICY_TERMS_DECIDE)
		return 0;
	__u32 class = 0, slot = query->slot;
	if (slot) {
		if (slot >= POLICY_PLACES)
			return 0;
		class = policy->class_of[slot];
		if (class >= POLICY_CLASSES)
			return 0;
	}
	for (__u32 i = 0; i < POLICY_TERMS; i++) {
		if (i >= policy->terms_used)
			break;
		const struct policy_term *term = &policy->terms[i];
		if (!((term->classes >> class) & 1))
			continue;
		if (policy_term_fits(policy, query, i))
			return !term->deny;
	}
	return policy->allow_by_default;
}

enum policy_answer {
	POLICY_NONE,
	POLICY_LET_IN,
	POLICY_LET_PAST, /* the proxy that others are led to */
	POLICY_PROXYS,   /* the proxy decides */
	POLICY_REFUSED,
};

enum policy_asker { POLICY_ASKED_AT_ARRIVAL, POLICY_ASKED_BY_NODE_POD, POLICY_ASKED_BY_OTHER_POD, POLICY_ASKED_WHO_JUDGES };

static __always_inline bool policy_judges(const struct policy *policy, __u16 port)
{
	return policy->judged.count && policy_has_port(policy, policy->judged.first, policy->judged.count, port);
}

static __always_inline enum policy_answer policy_answer_of(const struct policy *policy, const struct policy_query *query,
							   enum policy_asker asker)
{
	bool past = false;
	if (asker == POLICY_ASKED_WHO_JUDGES)
		return policy->behind_proxy && !policy_judges(policy, query->port) ? POLICY_PROXYS : POLICY_LET_PAST;
	if (asker != POLICY_ASKED_AT_ARRIVAL && policy->behind_proxy) {
		/* A sidecar speaks its mutual TLS with the proxy. */
		past = asker == POLICY_ASKED_BY_NODE_POD && policy_judges(policy, query->port);
		if (!past)
			return POLICY_PROXYS;
	}
	return !policy_allows(policy, query) ? POLICY_REFUSED : past ? POLICY_LET_PAST : POLICY_LET_IN;
}

/*
 * The kernel gives a value's memory to the next one that is written as soon as it is replaced, also while a program reads it,
 * and a look-up can miss a key that is just then replaced: an answer counts only if it came out of one write of this pod's.
 */
static __always_inline enum policy_answer policy_answers(__u64 *netns_cookie, const struct policy_query *query,
							 enum policy_asker asker)
{
#pragma unroll
	for (int attempt = 0; attempt < 3; attempt++) {
		struct policy *policy = bpf_map_lookup_elem(&policies, netns_cookie);
		if (!policy)
			policy = bpf_map_lookup_elem(&policies, netns_cookie);
		if (!policy)
			return POLICY_NONE;
		__u64 write = *(volatile __u64 *)&policy->write;
		asm volatile("" ::: "memory");
		enum policy_answer answer = policy_answer_of(policy, query, asker);
		asm volatile("" ::: "memory");
		if (*(volatile __u64 *)&policy->write == write && *(volatile __u64 *)&policy->netns_cookie == *netns_cookie)
			return answer;
	}
	return POLICY_REFUSED;
}

/* Who judges what a pod in mode `node` opens to another pod of this node: POLICY_PROXYS; POLICY_LET_PAST: the kernel; POLICY_NONE: nobody. `port` in host order. */
static __always_inline enum policy_answer policy_judge_of(__u64 netns_cookie, const struct address *destination, __u16 port)
{
	__u64 *target = bpf_map_lookup_elem(&netns_of_address, destination);
	if (!target || *target == netns_cookie)
		return POLICY_NONE;
	__u64 key = *target;
	struct policy_query query = { .destination = *destination, .port = port };
	return policy_answers(&key, &query, POLICY_ASKED_WHO_JUDGES);
}

/* connect() of a pod straight to another pod of this node, which it `asked` for by a service or as itself. `port` in host order. */
static __always_inline enum policy_answer policy_at_connect(const struct pod *pod, __u64 netns_cookie, const struct original_dst *asked,
							    const struct address *destination, __u16 port)
{
	__u64 *target = bpf_map_lookup_elem(&netns_of_address, destination);
	if (!target || *target == netns_cookie)
		return POLICY_NONE;
	/* Which of its addresses the connection gets is known once there is a route: it is judged where it arrives. */
	if (pod->flags & (is_ipv4(destination) ? POD_SEVERAL_IPV4 : POD_SEVERAL_IPV6))
		return POLICY_NONE;
	__u64 key = *target;
	struct policy_query query = {
		.source = is_ipv4(destination) ? pod->ipv4 : pod->ipv6, .destination = *destination, .slot = pod->slot, .port = port,
	};
	enum policy_answer answer =
		policy_answers(&key, &query, pod->mode == POD_MODE_NODE ? POLICY_ASKED_BY_NODE_POD : POLICY_ASKED_BY_OTHER_POD);
	if (answer == POLICY_LET_PAST)
		count(COUNTER_POLICY_CONNECT_LET_PAST);
	if (answer != POLICY_REFUSED)
		return answer;
	count(COUNTER_POLICY_CONNECT_REFUSED);
	struct flow_key flow = {};
	name_flow(&flow, netns_cookie, key, asked, destination, port);
	flow_refused(&flow, true, true);
	flow_denied(COUNTER_POLICY_CONNECT_REFUSED, &flow, &query.source, 0, destination);
	return answer;
}

static __always_inline struct tcp_sock *opening_socket(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	return sk ? bpf_skc_to_tcp_sock(sk) : 0;
}

/* Before the SYN is sent: who opens this, for the hook of the pod that it reaches. */
static __always_inline int policy_note_opening(struct bpf_sock_ops *ops)
{
	__u64 own = bpf_get_netns_cookie(ops);
	struct pod *pod = bpf_map_lookup_elem(&pods, &own);
	if (!pod)
		return 1;
	struct tuple key = {};
	read_tuple(ops, &key);
	__u64 *target = bpf_map_lookup_elem(&netns_of_address, &key.remote);
	if (!target || *target == own || !bpf_map_lookup_elem(&policies, target))
		return 1;
	key.netns_cookie = *target;
	struct tcp_sock *tp = opening_socket(ops);
	if (!tp)
		return 1;
	struct opening opening = { .netns_cookie = own, .slot = pod->slot, .generation = pod->generation, .sequence = tp->write_seq };
	struct bpf_sock *sk = ops->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	if (state && (state->flags & SOCKET_CONNECTING) && (state->flags & SOCKET_LET_PAST))
		opening.judged_ns = bpf_ktime_get_coarse_ns();
	if (!bpf_map_update_elem(&openings, &key, &opening, BPF_ANY) && state && (state->flags & SOCKET_CONNECTING))
		state->flags |= SOCKET_NOTED;
	return 1;
}

/*
 * The connection is established at its accepting end: no segment of it comes to a listener any more. Taken away here, the note does
 * not have to be pushed out by a later one, which costs ten times as much. `t` is the connection as its opener sees it.
 */
static __always_inline void policy_forget_opening(const struct tuple *t, __u64 own, __u32 first_byte)
{
	struct tuple key = *t;
	key.netns_cookie = own;
	struct opening *opening = bpf_map_lookup_elem(&openings, &key);
	if (opening && opening->sequence + 1 == first_byte)
		bpf_map_delete_elem(&openings, &key);
}

static __always_inline struct host *this_host(void)
{
	__u32 zero = 0;
	struct host *host = bpf_map_lookup_elem(&hosts, &zero);
	return host && host->netns_cookie ? host : 0;
}

/*
 * Of all sockets of the machine: those of the node's own namespace that open a connection to a pod leave a note, and take it away
 * when they close. Nothing else is touched.
 */
SEC("sockops")
int host_sockops(struct bpf_sock_ops *ops)
{
	bool opens = ops->op == BPF_SOCK_OPS_TCP_CONNECT_CB;
	if (!opens && (ops->op != BPF_SOCK_OPS_STATE_CB || ops->args[1] != BPF_TCP_CLOSE))
		return 1;
	struct host *host = this_host();
	__u64 own = bpf_get_netns_cookie(ops);
	if (!host || host->netns_cookie != own)
		return 1;
	struct tuple key = {};
	read_tuple(ops, &key);
	__u64 *target = bpf_map_lookup_elem(&netns_of_address, &key.remote);
	if (!target || *target == own)
		return 1;
	key.netns_cookie = *target;
	if (!opens) {
		struct opening *noted = bpf_map_lookup_elem(&openings, &key);
		if (noted && noted->netns_cookie == own)
			bpf_map_delete_elem(&openings, &key);
		return 1;
	}
	struct tcp_sock *tp = opening_socket(ops);
	if (!tp || BPF_CORE_READ(tp, inet_conn.icsk_inet.sk.sk_cgrp_data.cgroup, kn, id) == host->proxy_cgroup)
		return 1;
	struct opening opening = { .netns_cookie = own, .sequence = tp->write_seq };
	if (!bpf_map_update_elem(&openings, &key, &opening, BPF_ANY))
		bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	return 1;
}

/* A TCP segment: addresses and ports as its sender sees them. */
struct segment {
	__u32 sequence;
	bool opens;
};

/* Past its SYN a connection is held together by what its listener answered. */
static __always_inline struct opening *opening_of(const struct tuple *key, const struct segment *segment)
{
	struct opening *opening = bpf_map_lookup_elem(&openings, key);
	return opening && (!segment->opens || opening->sequence == segment->sequence) ? opening : 0;
}

static __always_inline bool opened_by_host(const struct tuple *key, const struct segment *segment)
{
	struct host *host = this_host();
	struct opening *opening = host ? opening_of(key, segment) : 0;
	return opening && !opening->slot && opening->netns_cookie == host->netns_cookie;
}

static __always_inline bool is_freshly_judged(const struct opening *opening)
{
	return opening->judged_ns && bpf_ktime_get_coarse_ns() - opening->judged_ns < JUDGED_NS;
}

/* Whether the proxy's place is passed: the pod's policy at this moment, or that of connect() a moment ago, judges instead. */
static __always_inline bool is_judged(const struct opening *opening, const struct tuple *key)
{
	if (!opening->judged_ns)
		return false;
	if (is_freshly_judged(opening))
		return true;
	__u64 own = key->netns_cookie;
	struct policy *policy = bpf_map_lookup_elem(&policies, &own);
	return policy && policy_judges(policy, key->remote_port);
}

struct opener {
	__u32 slot; /* 0: no identity */
	bool fresh; /* judged at connect() a moment ago */
};

static __always_inline struct opener policy_opener(const struct tuple *key, const struct segment *segment)
{
	struct opener none = {};
	struct opening *opening = opening_of(key, segment);
	if (!opening)
		return none;
	__u64 cookie = opening->netns_cookie;
	/* The note may be older than the address's present owner. */
	__u64 *owner = bpf_map_lookup_elem(&netns_of_address, &key->local);
	struct pod *pod = bpf_map_lookup_elem(&pods, &cookie);
	if (!owner || *owner != cookie || !pod || pod->slot != opening->slot || pod->generation != opening->generation)
		return none;
	struct opener found = { .slot = pod->slot, .fresh = is_freshly_judged(opening) };
	return found;
}

static __always_inline bool policy_read_segment(struct __sk_buff *skb, struct tuple *out, struct segment *segment)
{
	__u8 first;
	struct {
		__u16 ports[2];
		__u32 sequence, acknowledged;
		__u8 offset, flags;
	} tcp;
	__u32 at;
	if (bpf_skb_load_bytes(skb, 0, &first, sizeof(first)))
		return false;
	if (first >> 4 == 4) {
		__u32 pair[2];
		if (bpf_skb_load_bytes(skb, 12, pair, sizeof(pair)))
			return false;
		set_ipv4(&out->local, pair[0]);
		set_ipv4(&out->remote, pair[1]);
		at = (first & 15) * 4;
	} else {
		__u8 next;
		if (bpf_skb_load_bytes(skb, 6, &next, sizeof(next)) || next != IPPROTO_TCP ||
		    bpf_skb_load_bytes(skb, 8, &out->local, sizeof(out->local)) ||
		    bpf_skb_load_bytes(skb, 24, &out->remote, sizeof(out->remote)))
			return false;
		at = 40;
	}
	if (bpf_skb_load_bytes(skb, at, &tcp, TCP_HEAD))
		return false;
	out->local_port = bpf_ntohs(tcp.ports[0]);
	out->remote_port = bpf_ntohs(tcp.ports[1]);
	segment->sequence = bpf_ntohl(tcp.sequence);
	segment->opens = (tcp.flags & TCP_SYN_ACK) == TCP_SYN;
	return true;
}

/* For `iptables -m bpf`, before a pod's connections are redirected: whether the node itself opens this one. */
SEC("socket")
int match_host(struct __sk_buff *skb)
{
	struct tuple key = {};
	struct segment segment = {};
	__u8 version, protocol;
	if (bpf_skb_load_bytes(skb, 0, &version, sizeof(version)))
		return 0;
	/* IPv6 is looked at where its header is read. */
	if (version >> 4 == 4 && (bpf_skb_load_bytes(skb, 9, &protocol, sizeof(protocol)) || protocol != IPPROTO_TCP))
		return 0;
	if (!policy_read_segment(skb, &key, &segment))
		return 0;
	__u64 *target = bpf_map_lookup_elem(&netns_of_address, &key.remote);
	if (!target)
		return 0;
	key.netns_cookie = *target;
	return opened_by_host(&key, &segment);
}

/* Of a SYN that is sent again and again. What was no readable segment has no tuple either. */
static __always_inline bool is_first_refusal(const struct tuple *key, const struct segment *segment)
{
	if (!segment->opens)
		return false;
	__u32 sequence = segment->sequence;
	__u32 *told = bpf_map_lookup_elem(&refusals, key);
	if (told && *told == sequence)
		return false;
	bpf_map_update_elem(&refusals, key, &sequence, BPF_ANY);
	return true;
}

/* What comes over the network to a program of the pod that listens: nobody else has judged it. */
static __always_inline int on_ingress(struct __sk_buff *skb, enum hook_place place)
{
	struct bpf_sock *sk = skb->sk;
	if (!sk || skb->ifindex == LOOPBACK_IFINDEX)
		return INGRESS_ALLOW;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->protocol != IPPROTO_TCP || sk->state != BPF_TCP_LISTEN)
		return INGRESS_ALLOW;
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return INGRESS_ALLOW;
	struct tuple key = {};
	key.netns_cookie = BPF_CORE_READ(tp, inet_conn.icsk_inet.sk.__sk_common.skc_net.net, net_cookie);
	__u64 own = key.netns_cookie;
	if (place == HOOK_ROOT && (!is_rooted(own) || is_proxy_cgroup(bpf_skb_cgroup_id(skb))))
		return INGRESS_ALLOW;
	if (!bpf_map_lookup_elem(&policies, &own) && !bpf_map_lookup_elem(&policies, &own))
		return INGRESS_ALLOW;
	struct opener opener = {};
	struct segment segment = {};
	if (policy_read_segment(skb, &key, &segment)) {
		if (opened_by_host(&key, &segment)) {
			count(COUNTER_POLICY_HOST_LET_IN);
			return INGRESS_ALLOW;
		}
		opener = policy_opener(&key, &segment);
		/* What changed since is for whoever ends connections that it forbids: dropped, this one would hang. Its ACK comes here, too. */
		if (opener.fresh)
			return INGRESS_ALLOW;
		struct policy_query query = {
			.source = key.local, .destination = key.remote, .slot = opener.slot, .port = key.remote_port,
		};
		if (policy_answers(&own, &query, POLICY_ASKED_AT_ARRIVAL) != POLICY_REFUSED)
			return INGRESS_ALLOW;
	}
	count(COUNTER_POLICY_ARRIVAL_REFUSED);
	__u64 *client = opener.slot ? bpf_map_lookup_elem(&netns_of_address, &key.local) : 0;
	struct flow_key flow = { .client = client ? *client : 0, .server = key.netns_cookie, .endpoint_port = key.remote_port };
	if (!flow.client)
		flow.peer = key.local;
	if (is_first_refusal(&key, &segment))
		flow_refused(&flow, true, true);
	flow_denied(COUNTER_POLICY_ARRIVAL_REFUSED, &flow, &key.local, key.local_port, &key.remote);
	return INGRESS_REFUSE;
}

SEC("cgroup_skb/ingress")
int police_ingress(struct __sk_buff *skb)
{
	return on_ingress(skb, HOOK_POD);
}
