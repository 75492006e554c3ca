/*
 * sockops: two ends of one local connection find each other while it is established. The opener's callback runs first
 * (its ACK is what lets the other end exist) and leaves an entry under its tuple; the accepting end takes it away.
 */
#pragma once

/* The namespace at the other end; 0: not a pod of this node. A loopback address at either end means one's own. */
static __always_inline __u64 peer_netns(const struct tuple *t, __u64 own)
{
	if (is_loopback(&t->remote) || is_loopback(&t->local))
		return own;
	__u64 *cookie = bpf_map_lookup_elem(&netns_of_address, &t->remote);
	return cookie ? *cookie : 0;
}

static __always_inline enum counter client_reason(__u32 verdict)
{
	return verdict == MARK_BLOCKING  ? COUNTER_CONNECTION_CLIENT_BLOCKING
	       : verdict == MARK_SPLICED ? COUNTER_CONNECTION_CLIENT_SPLICED
					 : COUNTER_CONNECTION_CLIENT_PROBATION;
}

static __always_inline enum counter listener_reason(__u32 verdict)
{
	return verdict == MARK_BLOCKING  ? COUNTER_CONNECTION_LISTENER_BLOCKING
	       : verdict == MARK_SPLICED ? COUNTER_CONNECTION_LISTENER_SPLICED
					 : COUNTER_CONNECTION_LISTENER_PROBATION;
}

/* DESIGN rule 8: what another layer has its hands on is left alone. COUNTERS: nothing found. */
static __always_inline enum counter foreign_hands(const struct tcp_sock *tp)
{
	if (bpf_core_field_exists(tp->is_mptcp) && tp->is_mptcp)
		return COUNTER_CONNECTION_MPTCP;
	if (tp->inet_conn.icsk_ulp_ops)
		return COUNTER_CONNECTION_UPPER_LAYER;
	if (tp->inet_conn.icsk_inet.sk.sk_user_data)
		return COUNTER_CONNECTION_FOREIGN_PSOCK;
	if (sends_zero_copy(tp->inet_conn.icsk_inet.sk.__sk_common.skc_flags))
		return COUNTER_CONNECTION_ZERO_COPY;
	return COUNTERS;
}

/* Whether the opener may enter the map; COUNTERS: yes, otherwise why not. */
static __always_inline enum counter refuse_active(const struct pod *pod, struct socket_state *state, const struct tuple *t,
						  __u64 own, __u64 other, const struct tcp_sock *tp)
{
	bool captured = state->flags & SOCKET_CAPTURED;
	struct pod *remote = bpf_map_lookup_elem(&pods, &other);
	if (!acceleration_on())
		return COUNTER_CONNECTION_SWITCHED_OFF;
	if (!remote || remote->acceleration == ACCELERATION_OFF || pod->acceleration == ACCELERATION_OFF)
		return COUNTER_CONNECTION_POD_OFF;
	/* Speaks for a pod's own programs, not for a proxy in its namespace, which the other end of a captured one is. */
	if (((pod->flags & POD_SPLICES) && !(state->flags & SOCKET_PROXY)) || (!captured && (remote->flags & POD_SPLICES)))
		return COUNTER_CONNECTION_POD_SPLICED;
	if (!captured && !is_loopback(&t->remote)) {
		/* iptables lead the connection elsewhere than its tuple says. */
		if ((pod->flags & POD_REDIRECTED) && !(state->flags & SOCKET_PROXY))
			return COUNTER_CONNECTION_BEHIND_NAT;
		if (other != own && remote->mode == POD_MODE_SIDECAR && (remote->flags & (POD_CAPTURE | POD_REDIRECTED)))
			return COUNTER_CONNECTION_BEHIND_NAT;
	}
	enum counter hands = foreign_hands(tp);
	if (hands != COUNTERS)
		return hands;
	/* With data in its SYN (Fast Open) the other end was established before this one, and found no entry. */
	if (BPF_CORE_READ_BITFIELD(tp, syn_data))
		return COUNTER_CONNECTION_FAST_OPEN;
	/* `force` speaks for a pod's own programs only. */
	if (pod->acceleration == ACCELERATION_FORCE) {
		state->flags |= SOCKET_FORCED;
	} else if (!(state->flags & SOCKET_PROXY)) {
		/* A row of brief ones begins with verdicts that let them be joined. */
		if (will_be_brief(state))
			return COUNTER_CONNECTION_BRIEF;
		__u32 verdict = client_verdict(&state->program);
		if (verdict != MARK_EVENT_DRIVEN) {
			if (verdict == MARK_NONE)
				state->flags |= SOCKET_PROBED;
			return client_reason(verdict);
		}
	}
	/* The other end of a captured connection is an Envoy. */
	if (captured || remote->acceleration == ACCELERATION_FORCE)
		return COUNTERS;
	struct listener_key listener;
	name_listener(&listener, other, &t->remote, t->remote_port);
	__u32 verdict = listener_verdict(&listener);
	return verdict == MARK_EVENT_DRIVEN ? COUNTERS : listener_reason(verdict);
}

/*
 * Rule 7: what was moved and what still may come by TCP share one receive buffer, so that is made as large as it may be and
 * the window small beside it; and a sender that fell back to TCP is stopped early, so that its receiver gets to the end.
 * Where the kernel refuses one of these, less is moved.
 */
static __always_inline void clamp_window(struct bpf_sock_ops *ops, const struct tcp_sock *tp)
{
	if (tp->window_clamp <= PAIRED_WINDOW)
		return;
	int window = PAIRED_WINDOW;
	bpf_setsockopt(ops, SOL_TCP, TCP_WINDOW_CLAMP, &window, sizeof(window));
}

static __always_inline void size_buffers(struct bpf_sock_ops *ops, const struct tcp_sock *tp)
{
	int receive = PAIRED_RCVBUF, unsent = PAIRED_NOTSENT;
	if (!(BPF_CORE_READ_BITFIELD(&tp->inet_conn.icsk_inet.sk, sk_userlocks) & SOCK_RCVBUF_LOCK))
		bpf_setsockopt(ops, SOL_SOCKET, SO_RCVBUF, &receive, sizeof(receive));
	if (!tp->notsent_lowat)
		bpf_setsockopt(ops, SOL_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent));
	clamp_window(ops, tp);
	/* The kernel lifts the clamp when it sees the first full segment. */
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
}

static __always_inline int sends_segment(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;
	if (tp)
		clamp_window(ops, tp);
	return 1;
}

/*
 * What the proxy is told of where a call of a pod's own address goes: by the addresses' form, since that is all that
 * SO_ORIGINAL_DST can say. Nobody captured asks for either form: 127.0.0.0/8 with the last three bytes of the address,
 * 100::/64 (RFC 6666) with the last eight; agent/proxy/pod-calls.ts knows whose they are.
 */
static __always_inline void mark_pod(struct address *address)
{
	if (is_ipv4(address)) {
		address->word[3] = bpf_htonl(0x7f000000) | (address->word[3] & bpf_htonl(0x00ffffff));
	} else {
		address->word[0] = bpf_htonl(0x01000000);
		address->word[1] = 0;
	}
}

static __always_inline int established_active(struct bpf_sock_ops *ops, enum hook_place place)
{
	bool proxy_cgroup = place == HOOK_PROXY;
	struct bpf_sock *sk = ops->sk;
	if (!sk)
		return 1;
	__u64 own = bpf_get_netns_cookie(ops);
	struct pod *pod = bpf_map_lookup_elem(&pods, &own);
	if (!pod || !serves(pod, place))
		return 1;
	struct tuple t = { .netns_cookie = own };
	read_tuple(ops, &t);
	struct socket_state *state = bpf_sk_storage_get(&socket_states, sk, 0, 0);
	bool known = state && (state->flags & SOCKET_CONNECTING);
	__u32 sourced = proxy_cgroup && state ? state->flags & SOCKET_SOURCED : 0;
	__u64 other = peer_netns(&t, own);
	if (!known && !(other && proxy_cgroup)) {
		/* A pod's own connection without state leaves the node, or is older than its hooks: left alone. */
		if (!other && proxy_cgroup && pod->acceleration != ACCELERATION_OFF)
			count(COUNTER_CONNECTION_NOT_LOCAL);
		return 1;
	}
	if (!known) {
		state = bpf_sk_storage_get(&socket_states, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (!state) {
			count(COUNTER_CONNECTION_STORAGE_FAILED);
			return 1;
		}
		state->flags = SOCKET_PROXY | sourced;
		state->netns_cookie = own;
		state->slot = pod->slot;
		state->generation = pod->generation;
		state->pid = 0;
		state->peer_cookie = 0;
	}
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 1;
	state->flags &= ~SOCKET_CONNECTING;
	state->cookie = bpf_get_socket_cookie(ops);
	state->sock = (__u64)tp;
	state->bytes_moved = 0;
	state->messages_moved = 0;
	state->brevity = 0;
	state->bytes_tcp = 0;
	state->data_segments = 0;
	state->tuple = t;
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	if (proxy_cgroup && other && sk->mark == HTTP_TAUGHT_MARK) {
		state->flags |= SOCKET_UPSTREAM;
		http_upstream_changed(state, true);
	}
	if (!other) {
		/* By its tuple it leaves the node, but iptables lead it to the proxy: only its bytes are counted. */
		enum counter why = pod->flags & POD_REDIRECTED ? COUNTER_CONNECTION_BEHIND_NAT : COUNTER_CONNECTION_NOT_LOCAL;
		count(why);
		watch_established(state, &t, 0, &state->original, WATCH_OPENED, why);
		return 1;
	}
	bool captured = state->flags & SOCKET_CAPTURED;
	enum counter refusal = refuse_active(pod, state, &t, own, other, tp);
	if (captured) {
		count(COUNTER_CONNECTIONS_CAPTURED);
		COUNT_POD(state, connections_captured, 1);
		state->flags |= SOCKET_COUNTED_LIVE;
	}
	if (refusal == COUNTERS) {
		/* The state says so before the socket can send. */
		state->flags |= SOCKET_IN_MAP;
		if (bpf_sock_hash_update(ops, &sockets, &state->cookie, BPF_NOEXIST)) {
			state->flags &= ~SOCKET_IN_MAP;
			refusal = COUNTER_CONNECTION_SOCKETS_FULL;
			map_full(refusal, state);
		} else {
			size_buffers(ops, tp);
		}
	} else {
		count(refusal);
		COUNT_POD(state, connections_plain, 1);
		if (refusal == COUNTER_CONNECTION_BRIEF)
			state->flags |= SOCKET_BRIEF;
		else
			state->brevity = 0;
	}
	watch_established(state, &t, other, &state->original, WATCH_OPENED, refusal);
	bool accelerated = state->flags & SOCKET_IN_MAP;
	__u32 tell = known ? flow_opened(pod, state, own, other, refusal) : 0;
	if (!captured && !accelerated && !tell && !sourced && refusal != COUNTER_CONNECTION_BRIEF)
		return 1;
	struct establishing entry = {
		.cookie = state->cookie,
		.sock = (__u64)tp,
		.original = state->original,
		.sequence = tp->write_seq,
		.captured = captured,
		.accelerated = accelerated,
		.tell = tell,
		.brief = refusal == COUNTER_CONNECTION_BRIEF,
		.brevity = state->brevity,
		.noted = !!(state->flags & SOCKET_NOTED),
	};
	/* Both ends in the map, or neither. */
	if (accelerated && (captured ? pod->acceleration == ACCELERATION_L7 && !(state->flags & SOCKET_CALLS_POD) : proxy_cgroup && sk->mark == HTTP_TAUGHT_MARK)) {
		state->flags |= SOCKET_HTTP;
		entry.http = 1;
	}
	if (sourced)
		entry.source = state->source;
	if (state->flags & SOCKET_CALLS_POD)
		mark_pod(&entry.original.address);
	if (bpf_map_update_elem(&establishing, &t, &entry, BPF_ANY))
		map_full(COUNTER_CONNECTION_ESTABLISHING_FULL, state);
	return 1;
}

static __always_inline int established_passive(struct bpf_sock_ops *ops, enum hook_place place)
{
	bool proxy_cgroup = place == HOOK_PROXY;
	struct bpf_sock *sk = ops->sk;
	if (!sk)
		return 1;
	__u64 own = bpf_get_netns_cookie(ops);
	struct pod *pod = bpf_map_lookup_elem(&pods, &own);
	if (!pod || !serves(pod, place))
		return 1;
	struct tuple mine = { .netns_cookie = own };
	read_tuple(ops, &mine);
	__u64 other = peer_netns(&mine, own);
	if (!other) {
		if (!proxy_cgroup && flow_arrived(sk, pod, own, &mine))
			bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
		return 1;
	}
	struct tuple t = {
		.netns_cookie = other,
		.local = mine.remote, .remote = mine.local,
		.local_port = mine.remote_port, .remote_port = mine.local_port,
	};
	struct establishing *found = bpf_map_lookup_elem(&establishing, &t);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 1;
	struct establishing entry = {};
	if (found) {
		entry = *found;
		bpf_map_delete_elem(&establishing, &t);
		if (entry.sequence != tp->copied_seq) {
			count(COUNTER_CONNECTION_STALE_TUPLE);
			__builtin_memset(&entry, 0, sizeof(entry));
		} else if (entry.noted) {
			policy_forget_opening(&t, own, entry.sequence);
		}
	}
	bool proxy = proxy_cgroup || (pod->mode == POD_MODE_SIDECAR &&
				      (mine.local_port == OUTBOUND_PORT || mine.local_port == INBOUND_PORT));
	struct socket_state *state = bpf_sk_storage_get(&socket_states, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state) {
		count(COUNTER_CONNECTION_STORAGE_FAILED);
		return 1;
	}
	state->flags = SOCKET_ACCEPTED | (proxy ? SOCKET_PROXY : 0);
	state->netns_cookie = own;
	state->slot = pod->slot;
	state->generation = pod->generation;
	state->pid = 0;
	state->cookie = bpf_get_socket_cookie(ops);
	state->sock = (__u64)tp;
	state->peer_cookie = 0;
	state->bytes_moved = 0;
	state->messages_moved = 0;
	state->brevity = entry.brevity;
	state->bytes_tcp = 0;
	state->data_segments = 0;
	name_listener(&state->listener, own, &mine.local, mine.local_port);
	if (entry.captured) {
		state->flags |= SOCKET_CAPTURED;
		state->original = entry.original;
	}
	if (!is_unset(&entry.source)) {
		state->flags |= SOCKET_SOURCED;
		state->source = entry.source;
	}
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	state->peer_cookie = entry.cookie;
	watch_established(state, &mine, other, &entry.original, WATCH_ACCEPTED, COUNTERS);
	state->peer_cookie = 0;
	flow_accepted(pod, state, other, &entry, &mine);
	if (entry.brief)
		state->flags |= SOCKET_BRIEF;
	if (!entry.accelerated) {
		if (!entry.brief && !proxy && pod->acceleration != ACCELERATION_OFF && pod->acceleration != ACCELERATION_FORCE && listener_verdict(&state->listener) == MARK_NONE)
			state->flags |= SOCKET_PROBED;
		return 1;
	}
	enum counter hands = foreign_hands(tp);
	if (hands != COUNTERS) {
		count(hands);
		return 1;
	}
	if (pod->acceleration == ACCELERATION_FORCE)
		state->flags |= SOCKET_FORCED;
	state->peer_cookie = entry.cookie;
	state->peer_sock = entry.sock;
	state->flags |= SOCKET_IN_MAP | (entry.http ? SOCKET_HTTP : 0);
	if (bpf_sock_hash_update(ops, &sockets, &state->cookie, BPF_NOEXIST)) {
		state->flags &= ~SOCKET_IN_MAP;
		map_full(COUNTER_CONNECTION_SOCKETS_FULL, state);
		return 1;
	}
	size_buffers(ops, tp);
	/* Last: from here on the opener moves its messages. */
	struct peer self = { .cookie = state->cookie, .sock = (__u64)tp, .netns_cookie = other, .reports = !!(state->flow.flags & FLOW_REPORTS) };
	if (bpf_map_update_elem(&peers, &entry.cookie, &self, BPF_ANY)) {
		map_full(COUNTER_CONNECTION_PEERS_FULL, state);
	}
	count(COUNTER_CONNECTIONS_SHORT_CIRCUITED);
	COUNT_POD(state, connections_short_circuited, 1);
	if (other != own) {
		struct pod *opener = bpf_map_lookup_elem(&pods, &other);
		if (opener)
			COUNT_POD(opener, connections_short_circuited, 1);
	}
	return 1;
}

static __always_inline int closed(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;
	bool known = state && state->cookie;
	if (tp && known)
		count_tcp(state, tp);
	if (tp && state)
		flow_closed(state, known, tp);
	if (!known)
		return 1;
	trace_point(state, WATCH_CLOSED, COUNTERS, state->bytes_moved);
	if (tp)
		brief_closed(state, tp);
	if (state->flags & SOCKET_COUNTED_LIVE)
		COUNT_POD(state, captured_closed, 1);
	if (state->flags & SOCKET_UPSTREAM)
		http_upstream_changed(state, false);
	if (!(state->flags & SOCKET_ACCEPTED)) {
		struct tuple t = state->tuple;
		__u64 cookie = state->cookie;
		struct establishing *left = bpf_map_lookup_elem(&establishing, &t);
		if (left && left->cookie == cookie)
			bpf_map_delete_elem(&establishing, &t);
		if ((state->flags & SOCKET_IN_MAP) && !state->peer_cookie)
			bpf_map_delete_elem(&peers, &cookie);
	} else if (state->peer_cookie) {
		/* The opener may have closed just before this end put the entry there. */
		__u64 opener = state->peer_cookie;
		bpf_map_delete_elem(&peers, &opener);
	}
	/* A socket can be connected anew after connect(AF_UNSPEC). */
	state->flags = 0;
	state->cookie = 0;
	state->peer_cookie = 0;
	return 1;
}

/* Before `closed`, which forgets the socket. */
static __always_inline void http_state_changed(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct socket_state *state = sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
	if (!state || !state->cookie || !(state->flags & SOCKET_HTTP))
		return;
	int monitor = http_failing(state, ops->args[1]);
	http_socket_state(state, ops->args[1]);
	if (monitor > 0)
		http_judge_endpoint(monitor, HTTP_UNAVAILABLE);
}

static __always_inline int on_sockops(struct bpf_sock_ops *ops, enum hook_place place)
{
	bool proxy_cgroup = place == HOOK_PROXY;
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		watch_opening(ops);
		return policy_note_opening(ops);
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		return proxy_cgroup ? note_listener(ops) : 1;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		return established_active(ops, place);
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		return established_passive(ops, place);
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		return sends_segment(ops);
	case BPF_SOCK_OPS_RTO_CB:
		return unanswered(ops);
	case BPF_SOCK_OPS_STATE_CB:
		opening_failed(ops);
		if (!proxy_cgroup)
			http_state_changed(ops);
		return ops->args[1] == BPF_TCP_CLOSE ? closed(ops) : 1;
	}
	return 1;
}

SEC("sockops")
int pod_sockops(struct bpf_sock_ops *ops)
{
	return on_sockops(ops, HOOK_POD);
}

SEC("sockops")
int proxy_sockops(struct bpf_sock_ops *ops)
{
	return on_sockops(ops, HOOK_PROXY);
}
