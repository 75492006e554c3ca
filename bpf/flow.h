/*
 * Telemetry of connections that no proxy sees. Each end of one tells its own side: the opener `source`, the accepting end
 * `destination`, into one entry of `flow_totals`. Nothing is counted by message: what TCP carried stands in the socket,
 * what was moved in its state, and both are looked at when it closes and when user space runs `settle_flows`.
 */
#pragma once

/* Set before loading. */
const volatile __u32 flows_per_pod = FLOWS_PER_POD;

#define FLOW_RTT_AGAIN_NS 60000000000ull

/* Filled with what a new entry starts with; too large for the stack. */
const volatile struct flow_totals no_totals;

static __always_inline bool flows_logged(void)
{
	__u32 zero = 0;
	struct settings *s = bpf_map_lookup_elem(&settings, &zero);
	return s && s->flow_log;
}

/* `owner`: the pod that an entry is charged to, a netns cookie. */
static __always_inline bool take_flow_quota(__u64 owner, __u32 most)
{
	__u32 none = 0;
	__u32 *taken = bpf_map_lookup_elem(&flow_quotas, &owner);
	if (!taken) {
		bpf_map_update_elem(&flow_quotas, &owner, &none, BPF_NOEXIST);
		taken = bpf_map_lookup_elem(&flow_quotas, &owner);
	}
	if (!taken || *taken >= most)
		return false;
	__sync_fetch_and_add(taken, 1);
	return true;
}

static __always_inline void give_flow_quota_back(__u64 owner)
{
	__u32 *taken = bpf_map_lookup_elem(&flow_quotas, &owner);
	if (taken)
		__sync_fetch_and_sub(taken, 1);
}

static __always_inline struct flow_totals *add_totals(const struct flow_key *key)
{
	bpf_map_update_elem(&flow_totals, key, (const void *)&no_totals, BPF_NOEXIST);
	return bpf_map_lookup_elem(&flow_totals, key);
}

/* The entry of this key; with none left for it the pod's entry for all else, and then everybody's: `key` says which. */
static __always_inline struct flow_totals *find_totals(struct flow_key *key, __u32 most)
{
	struct flow_totals *found = bpf_map_lookup_elem(&flow_totals, key);
	if (found)
		return found;
	__u64 client = key->client, server = client ? 0 : key->server;
	__u64 owner = client ? client : server;
	if (take_flow_quota(owner, most)) {
		found = add_totals(key);
		if (found)
			return found;
		give_flow_quota_back(owner);
	}
	count(COUNTER_FLOWS_FULL);
	__builtin_memset(key, 0, sizeof(*key));
	key->client = client;
	key->server = server;
	found = bpf_map_lookup_elem(&flow_totals, key);
	if (!found)
		found = add_totals(key);
	if (found)
		return found;
	key->client = 0;
	key->server = 0;
	return bpf_map_lookup_elem(&flow_totals, key);
}

/* What a count has grown by since somebody last asked. The one who asks at the same time on another CPU gets the rest. */
static __always_inline __u64 advance(__u64 *seen, __u64 now)
{
#pragma unroll
	for (int attempt = 0; attempt < 4; attempt++) {
		__u64 before = *(volatile __u64 *)seen;
		if (now <= before)
			return 0;
		if (__sync_val_compare_and_swap(seen, before, now) == before)
			return now - before;
	}
	return 0;
}

static __always_inline void observe_rtt(struct flow_side *side, __u32 microseconds)
{
	__u32 bucket = 0;
#pragma unroll
	for (int i = 0; i < FLOW_RTT_BUCKETS - 1; i++)
		if (microseconds > ((__u32)FLOW_RTT_FIRST_US << i))
			bucket = i + 1;
	__sync_fetch_and_add(&side->rtt[bucket & (FLOW_RTT_BUCKETS - 1)], 1);
	__sync_fetch_and_add(&side->rtt_sum_us, microseconds);
}

static __always_inline bool has_sock_flag(const struct tcp_sock *tp, __u64 flag)
{
	return tp->inet_conn.icsk_inet.sk.__sk_common.skc_flags & (1UL << flag);
}

/*
 * Nothing but SOCK_DESTROY sets this error: the agent ends what a policy forbids at the end that the policy protects. What the
 * application has closed already is left over of a pod that is gone.
 */
static __always_inline bool ended_by_agent(const struct tcp_sock *tp)
{
	return tp->inet_conn.icsk_inet.sk.sk_err == ECONNABORTED && !has_sock_flag(tp, bpf_core_enum_value(enum sock_flags, SOCK_DEAD));
}

/* Payload that arrived by TCP. A FIN counts as a byte there. */
static __always_inline __u64 tcp_received(const struct tcp_sock *tp)
{
	__u64 received = tp->bytes_received;
	bool fin = has_sock_flag(tp, bpf_core_enum_value(enum sock_flags, SOCK_DONE));
	return fin && received ? received - 1 : received;
}

static __always_inline __u64 tcp_sent(const struct tcp_sock *tp)
{
	return tp->bytes_sent - tp->bytes_retrans;
}

/* Adds what the connection has carried since. `final`: its last time. Without `state` it comes from elsewhere. */
static __always_inline void settle(struct flow *flow, const struct socket_state *state, const struct tcp_sock *tp, bool final)
{
	bool accepted = flow->flags & FLOW_ACCEPTED;
	bool reports = flow->flags & FLOW_REPORTS;
	bool peer_reports = state && (state->flags & SOCKET_PEER_REPORTS);
	if (!reports && !peer_reports)
		return;
	struct flow_key key = flow->key;
	struct flow_totals *totals = bpf_map_lookup_elem(&flow_totals, &key);
	if (!totals)
		return;
	struct flow_side *own = accepted ? &totals->destination : &totals->source;
	struct flow_side *other = accepted ? &totals->source : &totals->destination;
	/* Both sides learn of moved bytes from the sender: the receiver's socket does not count them. */
	__u64 moved = state ? advance(&flow->moved, state->bytes_moved) : 0;
	if (moved && peer_reports)
		__sync_fetch_and_add(accepted ? &other->sent : &other->received, moved);
	if (!reports)
		return;
	__u64 out = advance(&flow->out, tcp_sent(tp)) + moved;
	__u64 in = advance(&flow->in, tcp_received(tp));
	if (out)
		__sync_fetch_and_add(accepted ? &own->sent : &own->received, out);
	if (in)
		__sync_fetch_and_add(accepted ? &own->received : &own->sent, in);
	if (final)
		__sync_fetch_and_add(accepted && ended_by_agent(tp) ? &own->denied : &own->closed, 1);
	__u32 rtt = tp->srtt_us >> 3;
	if (!tp->srtt_us)
		return;
	if (!final) {
		__u64 now = bpf_ktime_get_ns(), last = flow->rtt_ns;
		if (now - last < FLOW_RTT_AGAIN_NS || __sync_val_compare_and_swap(&flow->rtt_ns, last, now) != last)
			return;
	}
	observe_rtt(own, rtt);
}

/* Both ends by what the client asked for; nothing in `service` when that is the accepting end itself. */
static __always_inline void name_flow(struct flow_key *key, __u64 client, __u64 server, const struct original_dst *asked,
				      const struct address *endpoint, __u16 endpoint_port)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->client = client;
	key->server = server;
	key->endpoint_port = endpoint_port;
	if (is_unset(&asked->address) || (asked->port == bpf_htons(endpoint_port) && same_address(&asked->address, endpoint)))
		return;
	key->service = asked->address;
	key->service_port = bpf_ntohs(asked->port);
}

/* Of the flow that its key names. A global function, which the verifier looks at once. */
__noinline int start_flow(struct flow *flow, __u32 flags, __u32 counted)
{
	if (!flow)
		return 0;
	struct flow_key key = flow->key;
	struct flow_totals *totals = counted ? find_totals(&key, flows_per_pod) : 0;
	if (!totals)
		flags &= ~FLOW_REPORTS;
	flow->key = key;
	flow->in = 0;
	flow->out = 0;
	flow->moved = 0;
	flow->reason = COUNTERS;
	flow->opened_ns = bpf_ktime_get_ns();
	flow->rtt_ns = flow->opened_ns;
	flow->flags = flags | FLOW_OPEN;
	if (totals && (flags & FLOW_REPORTS))
		__sync_fetch_and_add(flags & FLOW_ACCEPTED ? &totals->destination.opened : &totals->source.opened, 1);
	return 0;
}

/*
 * The opener's end is established; its state is complete. Returns what the accepting end has to know (enum tell). A captured
 * connection is the proxy's to report, what the shared proxy opens too, and what iptables lead there. A global function, too.
 */
__noinline __u32 flow_opened(const struct pod *pod, struct socket_state *state, __u64 own, __u64 other, __u32 refusal)
{
	if (!pod || !state)
		return 0;
	bool captured = state->flags & SOCKET_CAPTURED, proxy = state->flags & SOCKET_PROXY, logged = flows_logged();
	if (captured ? !logged : other == own || ((pod->flags & POD_REDIRECTED) && !proxy))
		return 0;
	struct pod *remote = bpf_map_lookup_elem(&pods, &other);
	bool reports = !captured && !proxy && pod->mode == POD_MODE_NODE;
	bool peer = !captured && remote && remote->mode == POD_MODE_NODE;
	if (!reports && !peer && !captured)
		return 0;
	struct flow *flow = &state->flow;
	name_flow(&flow->key, own, captured ? 0 : other, &state->original, &state->tuple.remote, state->tuple.remote_port);
	if (captured)
		flow->key.endpoint_port = 0;
	start_flow(flow, (reports ? FLOW_REPORTS : 0) | (logged ? FLOW_LOGGED : 0), !captured);
	flow->reason = refusal;
	return (captured ? 0 : TELL_DIRECT) | (flow->flags & FLOW_REPORTS ? TELL_REPORTS : 0);
}

/* The accepting end is established. Whom nobody told that the opener is no proxy stays silent: better that than told twice. Global, too. */
__noinline int flow_accepted(const struct pod *pod, struct socket_state *state, __u64 other, const struct establishing *entry, const struct tuple *mine)
{
	if (!pod || !state || !entry || !mine)
		return 0;
	if (entry->tell & TELL_REPORTS)
		state->flags |= SOCKET_PEER_REPORTS;
	bool reports = (entry->tell & TELL_DIRECT) && !(state->flags & SOCKET_PROXY) && pod->mode == POD_MODE_NODE;
	/* What this end moves has to be told to the opener's side, and to the log. */
	bool moves = entry->accelerated && ((entry->tell & TELL_REPORTS) || flows_logged());
	if (!reports && !moves)
		return 0;
	name_flow(&state->flow.key, other, entry->captured ? 0 : state->netns_cookie, &entry->original, &mine->local, mine->local_port);
	if (entry->captured)
		state->flow.key.endpoint_port = 0;
	start_flow(&state->flow, FLOW_ACCEPTED | (reports ? FLOW_REPORTS : 0) | (entry->accelerated && flows_logged() ? FLOW_LOGGED : 0),
		   !entry->captured);
	return 0;
}

/* A connection from a client that is no pod of this node's mesh, accepted by a pod's own program. */
static __always_inline bool flow_arrived(struct bpf_sock *sk, const struct pod *pod, __u64 own, const struct tuple *mine)
{
	if (pod->mode != POD_MODE_NODE)
		return false;
	struct flow_key key = { .server = own, .peer = mine->remote, .endpoint_port = mine->local_port };
	struct socket_state *state = bpf_sk_storage_get(&socket_states, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state) {
		count(COUNTER_CONNECTION_STORAGE_FAILED);
		return false;
	}
	state->flow.key = key;
	start_flow(&state->flow, FLOW_ACCEPTED | FLOW_REPORTS | (flows_logged() ? FLOW_LOGGED : 0), true);
	state->flow.reason = COUNTER_CONNECTION_NOT_LOCAL;
	return true;
}

static __always_inline void local_address(const struct sock_common *common, struct address *out)
{
	if (common->skc_family == AF_INET)
		set_ipv4(out, common->skc_rcv_saddr);
	else
		__builtin_memcpy(out, &common->skc_v6_rcv_saddr, sizeof(*out));
}

static __always_inline void remote_address(const struct sock_common *common, struct address *out)
{
	if (common->skc_family == AF_INET)
		set_ipv4(out, common->skc_daddr);
	else
		__builtin_memcpy(out, &common->skc_v6_daddr, sizeof(*out));
}

/*
 * One record a connection. Of a pair each end knows only what it moved itself: the one that closes first leaves that, the
 * other one reports.
 */
static __always_inline void log_flow(const struct flow *flow, const struct socket_state *state, const struct tcp_sock *tp)
{
	bool accepted = flow->flags & FLOW_ACCEPTED;
	__u32 flags = state ? state->flags : 0;
	__u64 moved = state ? state->bytes_moved : 0, partner = state ? state->peer_cookie : 0, other_moved = 0;
	__u64 opener = accepted || !state ? partner : state->cookie;
	bool paired = partner || (!accepted && (flags & SOCKET_IN_MAP) && bpf_map_lookup_elem(&peers, &opener));
	if (paired) {
		__u64 *left = bpf_map_lookup_elem(&flow_leavers, &opener);
		if (!left) {
			bpf_map_update_elem(&flow_leavers, &opener, &moved, BPF_ANY);
			return;
		}
		other_moved = *left;
		bpf_map_delete_elem(&flow_leavers, &opener);
	} else if (accepted && state) {
		return; /* the opener's to tell */
	}
	struct flow_record *record = bpf_ringbuf_reserve(&flow_records, sizeof(*record), 0);
	if (!record) {
		count(COUNTER_FLOW_RECORDS_LOST);
		return;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->key = flow->key;
	const struct sock_common *common = &tp->inet_conn.icsk_inet.sk.__sk_common;
	local_address(common, accepted ? &record->endpoint : &record->client);
	remote_address(common, accepted ? &record->client : &record->endpoint);
	record->client_port = accepted ? bpf_ntohs(common->skc_dport) : common->skc_num;
	record->way = flags & SOCKET_CAPTURED ? FLOW_PROXY : flags & SOCKET_IN_MAP ? FLOW_SHORT_CIRCUITED : FLOW_PLAIN;
	record->reason = flow->reason;
	if (flags & (SOCKET_BLOCKING | SOCKET_TLS))
		record->reason = flags & SOCKET_TLS ? COUNTER_MESSAGE_UPPER_LAYER : COUNTER_MESSAGE_BLOCKING;
	__u64 out = tcp_sent(tp) + moved, in = tcp_received(tp) + other_moved;
	record->received = accepted ? in : out;
	record->sent = accepted ? out : in;
	record->moved = moved + other_moved;
	record->duration_ns = bpf_ktime_get_ns() - flow->opened_ns;
	record->rtt_us = tp->srtt_us >> 3;
	bpf_ringbuf_submit(record, 0);
}

static __always_inline bool is_told(__u64 netns_cookie)
{
	struct pod *pod = bpf_map_lookup_elem(&pods, &netns_cookie);
	return pod && pod->mode == POD_MODE_NODE;
}

/*
 * A connection that never was. As between two ztunnels the source knows only that it failed, the destination why: policy, or that
 * nobody listens. `destination` false: it has seen nothing of it. A global function, which the verifier looks at once.
 */
__noinline int flow_refused(const struct flow_key *asked, __u32 by_policy, __u32 destination)
{
	if (!asked)
		return 0;
	struct flow_key key = *asked;
	bool source = key.client && is_told(key.client);
	destination = destination && is_told(key.server);
	if (!source && !destination)
		return 0;
	/* Anybody can send a SYN from any address: those that came to a connection are to keep room. */
	struct flow_totals *totals = find_totals(&key, key.client ? flows_per_pod : flows_per_pod / 2);
	if (!totals)
		return 0;
	if (source) {
		__sync_fetch_and_add(&totals->source.opened, 1);
		__sync_fetch_and_add(&totals->source.failed, 1);
	}
	if (destination) {
		__sync_fetch_and_add(&totals->destination.opened, 1);
		__sync_fetch_and_add(by_policy ? &totals->destination.denied : &totals->destination.failed, 1);
	}
	return 0;
}

/* The log's line of it. `client_port` 0: it has none yet. */
static __always_inline void flow_denied(enum counter reason, const struct flow_key *key, const struct address *client, __u16 client_port,
					const struct address *endpoint)
{
	trace_denied(reason, key, client, client_port, endpoint);
	if (!flows_logged())
		return;
	struct flow_record *record = bpf_ringbuf_reserve(&flow_records, sizeof(*record), 0);
	if (!record) {
		count(COUNTER_FLOW_RECORDS_LOST);
		return;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->key = *key;
	record->client = *client;
	record->client_port = client_port;
	record->endpoint = *endpoint;
	record->way = FLOW_DENIED;
	record->reason = reason;
	bpf_ringbuf_submit(record, 0);
}

/* Before the rest of its state, if it is `known`, forgets the connection. */
static __always_inline void flow_closed(struct socket_state *holder, bool known, const struct tcp_sock *tp)
{
	struct flow *flow = &holder->flow;
	const struct socket_state *state = known ? holder : 0;
	if (!(flow->flags & FLOW_OPEN))
		return;
	settle(flow, state, tp, true);
	if (flow->flags & FLOW_LOGGED)
		log_flow(flow, state, tp);
	flow->flags = 0;
}

/* Run by user space before it reads `flow_totals`, so that long connections show how far they are. */
SEC("iter/bpf_sk_storage_map")
int settle_flows(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;
	if (!sk || !ctx->value)
		return 0;
	struct socket_state *state = bpf_sk_storage_get(&socket_states, sk, 0, 0);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (state && tp && (state->flow.flags & FLOW_OPEN))
		settle(&state->flow, state, tp, false);
	return 0;
}
