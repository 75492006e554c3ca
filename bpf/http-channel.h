/*
 * What the kernel knows of one client connection of the fast path, and how its exchanges begin and end. docs/http-fast-path.md
 * has the names: C the client's socket, D and U Envoy's, S the server's.
 */
#pragma once

#define HTTP_POLICIES_KNOWN 2 /* a power of two */

struct http_whole {
	__u32 status, bytes, close;
};

/* Of one socket: where it is in what it sends. */
struct http_socket {
	struct http_scratch scratch;
	struct http_request request;
	struct http_answer answer;
	struct http_body body;
	__u64 channel; /* cookie of C; of C itself: 0 */
	__u64 sent;    /* bytes of the message under way */
	__u8 begun;    /* its head has been read, and it goes on */
	__u8 lost;     /* nobody knows any more where messages begin */
	__u8 fast;     /* of C: what goes on was begun with a server, and is none of Envoy's */
	__u8 traced;   /* of C: SOCKET_TRACED */
	__u8 trace;    /* of C's request at hand, enum http_trace: drawn to be traced, or the kind in which it is to be said that it was not */
	__u32 reader; /* enum http_reader, of the head in the scratch; 0: it could not be read */
	/* Of S: what the message at hand completes. */
	__u32 answered, at, unbounded;
	struct http_whole whole[HTTP_PIPELINED + 1];
	/* What C's request at hand is led to. */
	__u32 table; /* whose routes these are; 0: not looked up yet */
	__u32 routes, vhost;
	__u32 class, generation;
	__u32 split; /* of the class */
	__u32 endpoint;
	__u32 load, service;
	__u32 monitor;
	struct http_host_key host, any; /* of `any` only the first byte of the name is ever set */
	struct http_port_key port;
	__u64 known_host[HTTP_HOST_MAX / 8]; /* whose vhost that is */
	/* What a table says of the head in the scratch; no row of one changes while it has its number. */
	__u32 judged;      /* the table; 0: not asked yet */
	__u32 found_class; /* HTTP_NOWHERE: none */
	struct {
		__u32 policy; /* 0: none asked yet */
		__u32 allowed;
	} policies[HTTP_POLICIES_KNOWN];
	__u8 text[HTTP_DRAW_TEXT]; /* what Envoy is told of the draw */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct http_socket);
} http_sockets SEC(".maps");

/* What a new channel starts with; too large for the stack. */
const volatile struct http_channel no_channel;

/* Set before loading: enum http_fault. 0, and the verifier leaves out all that asks for it. */
const volatile __u32 http_faults;

static __always_inline bool http_agent_lives(const struct http_control *control, __u64 now)
{
	return (__s64)(now - control->heartbeat_ns) < (__s64)HTTP_HEARTBEAT_NS;
}

static __always_inline bool http_on(__u64 now)
{
	if (http_faults & HTTP_FAULT_SWITCH)
		return true;
	__u32 agents = 0, own = 1;
	struct http_control *control = bpf_map_lookup_elem(&http_control, &agents), *ours = bpf_map_lookup_elem(&http_control, &own);
	return control && ours && control->on && control->lost_events == ours->lost_events && acceleration_on() && http_agent_lives(control, now);
}

/*
 * Of a client whose connection is about to be ended. No program expects that its send is refused (EACCES, which SK_DROP is); so
 * the kernel keeps what it sends, as if more had to come before it can go on, and frees it with the socket: the program sees its
 * connection reset. Refused all the same is what is too much to be kept, and all where there is no agent to end the connection.
 */
static __always_inline int http_swallow(struct sk_msg_md *msg)
{
	__u32 agents = 0;
	struct http_control *control = bpf_map_lookup_elem(&http_control, &agents);
	if (control && http_agent_lives(control, bpf_ktime_get_ns()))
		bpf_msg_cork_bytes(msg, HTTP_SWALLOWED);
	return SK_DROP;
}

/* The rest of what was begun with a server. */
static __always_inline int http_refuse(struct sk_msg_md *msg, const struct http_channel *ch)
{
	return ch->unknown == HTTP_CUT ? http_swallow(msg) : SK_DROP;
}

static __always_inline bool http_report(__u32 type, bool orderly, __u64 cookie, __u64 netns_cookie, const struct tuple *of_peer)
{
	if (http_faults & (type == HTTP_END_CLIENT ? HTTP_FAULT_SERVER_END : HTTP_FAULT_CLIENT_END))
		return false;
	struct http_event *event = bpf_ringbuf_reserve(&http_events, sizeof(*event), 0);
	if (!event) {
		__u32 own = 1;
		struct http_control *control = bpf_map_lookup_elem(&http_control, &own);
		if (control)
			__sync_fetch_and_add(&control->lost_events, 1);
		return false;
	}
	event->type = type;
	event->orderly = orderly && !(http_faults & HTTP_FAULT_ORDERLY);
	event->cookie = cookie;
	event->netns_cookie = netns_cookie;
	event->tuple.netns_cookie = netns_cookie;
	event->tuple.local = of_peer->remote;
	event->tuple.remote = of_peer->local;
	event->tuple.local_port = of_peer->remote_port;
	event->tuple.remote_port = of_peer->local_port;
	event->tuple.reserved = 0;
	bpf_ringbuf_submit(event, 0);
	return true;
}

/* C's connection is to end, from Envoy's side of it. */
static __always_inline void http_end_client(struct http_channel *ch, bool orderly)
{
	count(orderly ? COUNTER_HTTP_CLIENTS_CLOSED : COUNTER_HTTP_CLIENTS_RESET);
	if (!http_report(HTTP_END_CLIENT, orderly, ch->proxy_cookie, ch->tuple.netns_cookie, &ch->tuple))
		ch->untold = orderly ? HTTP_UNTOLD_ORDERLY : HTTP_UNTOLD_RESET;
}

static __always_inline void http_load_add(__u32 index, __s32 n)
{
	struct http_load *load = index == HTTP_NOWHERE ? 0 : bpf_map_lookup_elem(&http_loads, &index);
	if (load)
		__sync_fetch_and_add(&load->under_way, n);
}

static __always_inline void http_activity_add(__u64 netns_cookie, __s64 n)
{
	struct http_activity *activity = bpf_map_lookup_elem(&http_activity, &netns_cookie);
	/* What ends when its pod is gone makes no entry, which nobody would take away. */
	if (!activity && n > 0) {
		struct http_activity none = {};
		bpf_map_update_elem(&http_activity, &netns_cookie, &none, BPF_NOEXIST);
		activity = bpf_map_lookup_elem(&http_activity, &netns_cookie);
	}
	if (!activity)
		return;
	__sync_fetch_and_add(&activity->under_way, n);
	if (n > 0)
		__sync_fetch_and_add(&activity->started, n);
}

/* What was under way, as it was when it ended. */
struct http_ended {
	__u64 server, started_ns, netns_cookie, server_netns, request_bytes, answer_bytes;
	__u32 state, load, class, generation, service, status, waiting;
	bool counted; /* when its answer came, before the request was whole */
};

/* With the lock held. */
static __always_inline void http_copy(const struct http_channel *ch, struct http_ended *out)
{
	out->state = ch->state;
	out->server = ch->server;
	out->started_ns = ch->started_ns;
	out->netns_cookie = ch->tuple.netns_cookie;
	out->server_netns = ch->server_netns;
	out->load = ch->load;
	out->class = ch->class;
	out->generation = ch->generation;
	out->service = ch->service;
	out->status = ch->status;
	out->waiting = ch->waiting;
	out->counted = ch->unknown == HTTP_ANSWERED;
	out->request_bytes = ch->request_bytes;
	out->answer_bytes = ch->answer_bytes;
}

/* With the lock held. `state`: what the channel is from now on. */
static __always_inline void http_take(struct http_channel *ch, struct http_ended *out, __u32 state)
{
	http_copy(ch, out);
	/* Its connection is to end. Envoy has not seen how the request began, nor is it to answer another in place of it. */
	ch->unknown = state == HTTP_LOST && (ch->state == HTTP_FAST || ch->unknown == HTTP_CUT) ? HTTP_CUT : 0;
	ch->state = state;
	ch->load = HTTP_NOWHERE;
	ch->generation = 0;
	ch->server = 0;
	ch->open = 0;
}

static __always_inline void http_settle(const struct http_ended *ended)
{
	__s32 n = 1 + (ended->state == HTTP_FAST ? ended->waiting : 0);
	if (ended->state == HTTP_FAST)
		http_activity_add(ended->netns_cookie, -n);
	http_load_add(ended->load, -n);
}

/* The first of two places for what is learnt of an endpoint: one look, not sixteen. */
static __always_inline __u32 http_place(__u32 class, __u32 endpoint)
{
	return (class * 2 + endpoint) & (HTTP_LEARNT - 1);
}

/* Upper bounds in thousandths, of milliseconds as of bytes, as Envoy's histograms have them; the last bucket has none. */
static const __u32 http_bounds[HTTP_BUCKETS - 1] = {
	500, 1000, 5000, 10000, 25000, 50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000, 30000000, 60000000, 300000000, 600000000, 1800000000, 3600000000u,
};

const volatile struct http_total no_http_total;

HTTP_GLOBAL int http_bucket(__u64 thousandths)
{
	for (int i = 0; i < HTTP_BUCKETS - 1; i++)
		if (thousandths <= http_bounds[i])
			return i;
	return HTTP_BUCKETS - 1;
}

static __always_inline void http_observe(__u64 *buckets, __u64 thousandths)
{
	__u32 bucket = http_bucket(thousandths);
	if (bucket < HTTP_BUCKETS)
		__sync_fetch_and_add(&buckets[bucket], 1);
}

/* `how`: status << 32 | ending << 48 | service; `bytes`: request << 32 | answer, which are bounded far below that. */
HTTP_GLOBAL int http_total_add(__u64 client, __u64 server, __u64 how, __u64 us, __u64 bytes)
{
	struct http_total_key key = { .client = client, .server = server, .service = (__u32)how, .status = (__u16)(how >> 32), .ending = (__u16)(how >> 48) };
	struct http_total *total = bpf_map_lookup_elem(&http_totals, &key);
	if (!total) {
		bpf_map_update_elem(&http_totals, &key, (const void *)&no_http_total, BPF_NOEXIST);
		total = bpf_map_lookup_elem(&http_totals, &key);
	}
	if (!total) {
		count(COUNTER_HTTP_TOTALS_FULL);
		return 0;
	}
	__u64 request = bytes >> 32, answer = (__u32)bytes;
	__sync_fetch_and_add(&total->requests, 1);
	__sync_fetch_and_add(&total->request_bytes, request);
	__sync_fetch_and_add(&total->answer_bytes, answer);
	__sync_fetch_and_add(&total->duration_us, us);
	http_observe(total->duration, us);
	http_observe(total->request, request * 1000);
	http_observe(total->answer, answer * 1000);
	return 0;
}

/* An exchange that was the kernel's. Numbers go over, since a pointer would keep all of `ended` on the stack. */
static __always_inline void http_total(const struct http_ended *ended, __u64 now, __u32 status, __u32 ending)
{
	http_total_add(ended->netns_cookie, ended->server_netns, ended->service | (__u64)status << 32 | (__u64)ending << 48, (now - ended->started_ns) / 1000,
	               ended->request_bytes << 32 | (__u32)ended->answer_bytes);
}

/* What was still to be answered when a channel ended: nobody writes there any more. */
HTTP_GLOBAL int http_total_waiting(__u64 client, __u32 ending)
{
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &client);
	if (!ch)
		return 0;
	/* The one before them may have been answered by the connection's end. */
	if (ending == HTTP_WHOLE)
		ending = HTTP_UPSTREAM_ENDED;
	for (__u32 i = 0; i < HTTP_PIPELINED && i < ch->waiting; i++)
		http_total_add(ch->tuple.netns_cookie, ch->server_netns, ch->service | (__u64)ending << 48, 0, (__u64)ch->sizes[i] << 32);
	return 0;
}

/* From here on all that C sends is Envoy's; what the kernel had under way can't be ended well. */
static __always_inline void http_lose(struct http_channel *ch, enum counter why)
{
	struct http_ended ended = {};
	bpf_spin_lock(&ch->lock);
	http_take(ch, &ended, HTTP_LOST);
	bpf_spin_unlock(&ch->lock);
	if (ended.state == HTTP_LOST)
		return;
	count(why);
	count(COUNTER_HTTP_CHANNELS_LOST);
	http_settle(&ended);
	if (ended.state != HTTP_FAST)
		return;
	if (!ended.counted)
		http_total(&ended, bpf_ktime_get_ns(), ended.status, HTTP_RESET_HERE);
	if (ended.waiting)
		http_total_waiting(ch->cookie, HTTP_RESET_HERE);
	http_end_client(ch, false);
}

/* Sets and clears bits of enum http_use in all entries that lead to this socket. */
static __always_inline void http_mark_server(struct http_channel *ch, __u64 cookie, __u32 set, __u32 clear)
{
	bpf_spin_lock(&ch->lock);
#pragma unroll
	for (int i = 0; i < HTTP_LEARNT; i++)
		if (ch->learnt[i].cookie == cookie)
			ch->learnt[i].busy = (ch->learnt[i].busy | set) & ~clear;
	bpf_spin_unlock(&ch->lock);
}

/* For a while requests of this class go through Envoy. */
static __always_inline void http_class_to_envoy(__u32 index, __u32 generation)
{
	struct http_class *class = generation ? bpf_map_lookup_elem(&http_classes, &index) : 0;
	if (class && class->generation == generation)
		class->envoy_until_ns = bpf_ktime_get_ns() + HTTP_ENVOY_NS;
}

/* The channel of C, at its first message. */
static __always_inline struct http_channel *http_open(const struct socket_state *state)
{
	__u64 cookie = state->cookie;
	struct http_client_key key = { .netns_cookie = state->netns_cookie, .port = state->tuple.local_port };
	if (bpf_map_update_elem(&http_channels, &cookie, (const void *)&no_channel, BPF_NOEXIST)) {
		count(COUNTER_HTTP_CHANNELS_FULL);
		return 0;
	}
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &cookie);
	if (!ch)
		return 0;
	ch->cookie = cookie;
	ch->sock = state->sock;
	ch->proxy_sock = state->peer_sock;
	ch->proxy_cookie = state->peer_cookie;
	ch->tuple = state->tuple;
	ch->load = HTTP_NOWHERE;
	/* Sockets of two local addresses may share a port, and lessons name the port alone: the first one's. An entry of this very address is of one that is gone. */
	__u64 *known = bpf_map_lookup_elem(&http_clients, &key), of = known ? *known : 0;
	struct http_channel *other = known ? bpf_map_lookup_elem(&http_channels, &of) : 0;
	bool foreign = other && of != cookie && !same_address(&other->tuple.local, &state->tuple.local);
	if (foreign || bpf_map_update_elem(&http_clients, &key, &cookie, known ? BPF_ANY : BPF_NOEXIST)) {
		bpf_map_delete_elem(&http_channels, &cookie);
		count(COUNTER_HTTP_CHANNELS_FULL);
		return 0;
	}
	return ch;
}

/*
 * C or S goes; from sockops, with `state` still as it was. Functions of their own, one after the other, since sockops leaves
 * little of the stack. What they return: 1 + enum http_ending of the exchange that ended by it; 0: none.
 */
HTTP_GLOBAL int http_client_closing(struct socket_state *state)
{
	if (!state)
		return 0;
	__u64 cookie = state->cookie;
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &cookie);
	if (!ch)
		return 0;
	struct http_ended ended = {};
	struct tuple tuple = {};
	__u64 netns_cookie = 0;
	bpf_spin_lock(&ch->lock);
#pragma unroll
	for (int i = 0; i < HTTP_LEARNT; i++)
		if (ch->server && ch->learnt[i].cookie == ch->server) {
			tuple = ch->learnt[i].tuple;
			netns_cookie = ch->learnt[i].netns_cookie;
		}
	http_take(ch, &ended, HTTP_LOST);
	bpf_spin_unlock(&ch->lock);
	http_settle(&ended);
	if (ended.state != HTTP_FAST)
		return 0;
	count(COUNTER_HTTP_SERVERS_RESET);
	http_report(HTTP_END_SERVER, false, ended.server, netns_cookie, &tuple);
	return ended.counted ? 0 : 1 + HTTP_DOWNSTREAM_ENDED;
}

/* `orderly`: the server has ended its side by a FIN, and all that it wrote has been moved. */
HTTP_GLOBAL int http_server_closing(__u64 cookie, __u64 client, bool orderly)
{
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &client);
	if (!ch)
		return 0;
	struct http_ended ended = {};
	bool until_close = false;
	http_mark_server(ch, cookie, HTTP_CLOSING, 0);
	bpf_spin_lock(&ch->lock);
	if (ch->state == HTTP_FAST && ch->server == cookie) {
		until_close = ch->unknown == HTTP_UNKNOWN_UNTIL_CLOSE || ch->unknown == HTTP_ANSWERED;
		http_take(ch, &ended, HTTP_LOST);
	}
	bpf_spin_unlock(&ch->lock);
	if (ended.state != HTTP_FAST)
		return 0;
	http_settle(&ended);
	http_end_client(ch, orderly && until_close);
	return ended.counted ? 0 : 1 + (orderly && until_close ? HTTP_WHOLE : HTTP_UPSTREAM_ENDED);
}

/* The last exchange of a channel that is LOST by its end: nobody writes there any more. */
HTTP_GLOBAL int http_total_last(__u64 client, __u32 ending)
{
	struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &client);
	if (!ch)
		return 0;
	http_total_add(ch->tuple.netns_cookie, ch->server_netns, ch->service | (__u64)ch->status << 32 | (__u64)ending << 48, (bpf_ktime_get_ns() - ch->started_ns) / 1000,
	               ch->request_bytes << 32 | (__u32)ch->answer_bytes);
	return 0;
}

/*
 * Whether an exchange fails by this change of a socket's state, of which `state` knows nothing yet: C is ended by Envoy in the
 * middle of its answer, or S ends. Place of the monitor that is to be told (http_judge_endpoint); 0: none. Not part of
 * http_socket_state, which has no room for it on the stack.
 */
HTTP_GLOBAL int http_failing(struct socket_state *state, __u32 next)
{
	if (!state || state->flags & SOCKET_PROXY)
		return 0;
	bool accepted = state->flags & SOCKET_ACCEPTED, orderly = next == BPF_TCP_FIN_WAIT1 || next == BPF_TCP_LAST_ACK;
	__u64 cookie = state->cookie, client = cookie;
	__u64 *known = accepted ? bpf_map_lookup_elem(&http_servers, &cookie) : &client;
	if (!known)
		return 0;
	client = *known;
	const struct http_channel *ch = bpf_map_lookup_elem(&http_channels, &client);
	if (!ch || !ch->monitor)
		return 0;
	/* S is in CLOSE_WAIT when Envoy has ended first. */
	bool fails = accepted ? next != BPF_TCP_CLOSE_WAIT && ch->state == HTTP_FAST && ch->server == cookie && ch->unknown != HTTP_ANSWERED && !(orderly && ch->unknown == HTTP_UNKNOWN_UNTIL_CLOSE)
			      : next == BPF_TCP_CLOSE_WAIT && ch->state == HTTP_ENVOY && ch->status;
	return fails ? ch->monitor : 0;
}

/* From sockops, of a socket with SOCKET_HTTP. */
HTTP_GLOBAL int http_socket_state(struct socket_state *state, __u32 next)
{
	if (!state)
		return 0;
	bool accepted = state->flags & SOCKET_ACCEPTED, proxy = state->flags & SOCKET_PROXY, closed = next == BPF_TCP_CLOSE;
	if (proxy || next == BPF_TCP_ESTABLISHED)
		return 0;
	__u64 cookie = state->cookie, client = cookie;
	int ended;
	if (!accepted) {
		ended = http_client_closing(state);
	} else {
		__u64 *known = bpf_map_lookup_elem(&http_servers, &cookie);
		if (!known)
			return 0;
		client = *known;
		ended = http_server_closing(cookie, client, next == BPF_TCP_FIN_WAIT1 || next == BPF_TCP_LAST_ACK);
	}
	if (ended > 0) {
		http_total_last(client, ended - 1);
		http_total_waiting(client, ended - 1);
	}
	if (!closed)
		return 0;
	if (accepted) {
		bpf_map_delete_elem(&http_servers, &cookie);
		return 0;
	}
	if (!bpf_map_lookup_elem(&http_channels, &cookie))
		return 0;
	struct http_client_key key = { .netns_cookie = state->netns_cookie, .port = state->tuple.local_port };
	__u64 *known = bpf_map_lookup_elem(&http_clients, &key);
	if (known && *known == cookie)
		bpf_map_delete_elem(&http_clients, &key);
	bpf_map_delete_elem(&http_channels, &cookie);
	return 0;
}
