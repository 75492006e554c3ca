/*
 * What `underpass trace`, `underpass capture` and `underpass flows -f` are told of single connections, messages and requests. Off, a
 * socket's flags say so, which each message reads anyway. Nothing waits for a reader: what finds no room is counted.
 */
#pragma once

static __always_inline struct watch *watch_of(enum watcher which)
{
	__u32 key = which;
	struct watch *watch = bpf_map_lookup_elem(&watches, &key);
	return watch && watch->on ? watch : 0;
}

/* Either end or both are what is watched. `asked`: what the opener asked for, if that is known. */
static __always_inline bool watched(const struct watch *watch, __u64 own, __u64 other, const struct address *local, __u16 local_port,
				    const struct address *remote, __u16 remote_port, const struct original_dst *asked)
{
	if (watch->netns_cookie && watch->netns_cookie != own && watch->netns_cookie != other)
		return false;
	__u16 asked_port = bpf_ntohs(asked->port);
	if (watch->port && watch->port != local_port && watch->port != remote_port && watch->port != asked_port)
		return false;
	return is_unset(&watch->address) || same_address(&watch->address, remote) || same_address(&watch->address, local) ||
	       same_address(&watch->address, &asked->address);
}

static __always_inline struct watch_event *new_event(enum watch_what what)
{
	struct watch_event *event = bpf_ringbuf_reserve(&watch_events, sizeof(*event), 0);
	if (!event) {
		count(COUNTER_WATCH_EVENTS_LOST);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->what = what;
	event->at_ns = bpf_ktime_get_ns();
	return event;
}

/* A point that a socket comes by; its addresses were told when it was established. A global function, which the verifier looks at once. */
__noinline int tell_point(__u32 what, __u32 reason, __u64 cookie, __u64 netns_cookie, __u64 bytes)
{
	struct watch_event *event = watch_of(WATCH_TRACE) ? new_event(what) : 0;
	if (!event)
		return 0;
	event->reason = reason;
	event->cookie = cookie;
	event->netns_cookie = netns_cookie;
	event->bytes = bytes;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

static __always_inline void trace_point(const struct socket_state *state, __u32 what, __u32 reason, __u64 bytes)
{
	if (state->flags & SOCKET_TRACED)
		tell_point(what, reason, state->cookie, state->netns_cookie, bytes);
}

/* What connect() asked for, and what becomes of it: `led` is enum capture. */
__noinline int trace_connect(__u64 netns_cookie, const struct address *to, __u32 port, __u32 led, __u32 pid)
{
	struct watch *watch = watch_of(WATCH_TRACE);
	if (!watch || !to)
		return 0;
	struct original_dst asked = { .address = *to, .port = bpf_htons(port) };
	if (!watched(watch, netns_cookie, 0, to, 0, to, port, &asked))
		return 0;
	struct watch_event *event = new_event(WATCH_CONNECT);
	if (!event)
		return 0;
	event->reason = led;
	event->netns_cookie = netns_cookie;
	event->remote = asked.address;
	event->remote_port = port;
	event->pid = pid;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* Refused by policy, at connect() or as it arrives; `client_port` 0: it has none yet. */
static __always_inline void trace_denied(enum counter reason, const struct flow_key *key, const struct address *client, __u16 client_port,
					 const struct address *endpoint)
{
	struct watch *watch = watch_of(WATCH_TRACE);
	if (!watch)
		return;
	struct original_dst asked = { .address = key->service, .port = bpf_htons(key->service_port) };
	if (!watched(watch, key->client, key->server, client, client_port, endpoint, key->endpoint_port, &asked))
		return;
	struct watch_event *event = new_event(WATCH_DENIED);
	if (!event)
		return;
	event->reason = reason;
	event->netns_cookie = key->client;
	event->other_netns = key->server;
	event->local = *client;
	event->local_port = client_port;
	event->remote = *endpoint;
	event->remote_port = key->endpoint_port;
	bpf_ringbuf_submit(event, 0);
}

/*
 * A socket is established: from here on its flags say who watches it. `asked` all zero: not known here. `reason`: why it is not
 * paired, COUNTERS: it is, or will be.
 */
__noinline int tell_established(struct socket_state *state, const struct tuple *t, __u64 other, const struct original_dst *asked, __u32 what_and_reason)
{
	if (!state || !t || !asked)
		return 0;
	struct watch *trace = watch_of(WATCH_TRACE), *capture = watch_of(WATCH_CAPTURE);
	if (trace && watched(trace, t->netns_cookie, other, &t->local, t->local_port, &t->remote, t->remote_port, asked))
		state->flags |= SOCKET_TRACED;
	if (capture && watched(capture, t->netns_cookie, other, &t->local, t->local_port, &t->remote, t->remote_port, asked))
		state->flags |= SOCKET_TAPPED;
	if (!(state->flags & (SOCKET_TRACED | SOCKET_TAPPED)))
		return 0;
	struct watch_event *event = new_event(what_and_reason & 0xff);
	if (!event)
		return 0;
	event->reason = what_and_reason >> 8;
	event->cookie = state->cookie;
	event->peer_cookie = state->peer_cookie;
	event->netns_cookie = t->netns_cookie;
	event->other_netns = other;
	event->local = t->local;
	event->remote = t->remote;
	event->local_port = t->local_port;
	event->remote_port = t->remote_port;
	event->flags = state->flags;
	event->asked = *asked;
	event->pid = state->pid;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* By a global function, which has five arguments at most. */
static __always_inline void watch_established(struct socket_state *state, const struct tuple *t, __u64 other, const struct original_dst *asked, __u32 what, __u32 reason)
{
	tell_established(state, t, other, asked, what | reason << 8);
}

__noinline int tell_led(__u64 cookie, __u64 to)
{
	struct watch_event *event = watch_of(WATCH_CAPTURE) ? new_event(WATCH_LED) : 0;
	if (!event)
		return 0;
	event->cookie = cookie;
	event->peer_cookie = to;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* Of a request that was told with the same `started_ns`. */
__noinline int tell_answer(__u64 client, __u64 started_ns, __u32 status, __u32 bytes)
{
	struct watch_event *event = new_event(WATCH_ANSWER);
	if (!event)
		return 0;
	event->cookie = client;
	event->started_ns = started_ns;
	event->reason = status;
	event->bytes = bytes;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

__noinline int tell_cut(__u64 cookie, __u64 bytes)
{
	struct watch_event *event = new_event(WATCH_CUT);
	if (!event)
		return 0;
	event->cookie = cookie;
	event->bytes = bytes;
	bpf_ringbuf_submit(event, 0);
	return 0;
}
