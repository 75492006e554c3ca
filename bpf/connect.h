/*
 * connect(), getpeername(), getsockname() and getsockopt() of pods: a connection is led to the proxy's listener in the
 * pod's own namespace, and everybody who asks is told the address it was opened to.
 */
#pragma once

/*
 * A local pod's own address on a port that no listener asks for: the proxy would only pass the bytes on, so the two
 * sockets are left to find each other. Any class's listener on the port counts, which errs towards the proxy.
 */
static __always_inline bool is_plain(const struct address *destination, __u16 port)
{
	__u32 zero = 0;
	struct settings *s = bpf_map_lookup_elem(&settings, &zero);
	return s && s->listener_ports_known && !bpf_map_lookup_elem(&listener_ports, &port) &&
	       !bpf_map_lookup_elem(&proxied_addresses, destination);
}

/* DESIGN section 4: who is led to which proxy. `destination` in mapped form, `port` in host order. */
static __always_inline enum capture capture_of(const struct pod *pod, __u64 netns_cookie, const struct address *destination,
					       __u16 port)
{
	if (!(pod->flags & POD_CAPTURE) || is_loopback(destination) || is_unset(destination) || is_link_local(destination))
		return CAPTURE_NO;
	__u64 *target = bpf_map_lookup_elem(&netns_of_address, destination);
	if (target && *target == netns_cookie)
		return CAPTURE_NO; /* the pod talks to itself */
	/* The proxy listens on [::1] only in pods that have an IPv6 address. */
	if (!is_ipv4(destination) && is_unset(&pod->ipv6)) {
		count(COUNTER_CONNECTION_IPV6_NOT_CAPTURED);
		return CAPTURE_NO;
	}
	if (pod->mode == POD_MODE_NODE)
		return target && is_plain(destination, port) ? CAPTURE_NO : CAPTURE_OUTBOUND;
	if ((__u32)bpf_get_current_uid_gid() != sidecar_uid)
		return CAPTURE_OUTBOUND;
	/* The sidecar itself, towards another pod's sidecar. */
	if (!target || INBOUND_EXEMPT(port) || port == INBOUND_PORT)
		return CAPTURE_NO;
	struct pod *other = bpf_map_lookup_elem(&pods, target);
	if (!other || other->mode != POD_MODE_SIDECAR || !(other->flags & POD_CAPTURE))
		return CAPTURE_NO;
	return CAPTURE_INBOUND;
}

/* What `call_pod` is told of the caller: its pod's flags, and these. */
#define CALLER_CANT_BE_LED (1u << 31)

/*
 * The own address of a pod whose policy the proxy judges. Left alone, the connection would arrive there in plaintext, and the
 * proxy could not say whose it is; so it is led to the caller's own side of the proxy, whatever its port, as if it were a
 * service's. A policy that could not be read, and a socket that can't be led there, are refused. A global function, so that the
 * verifier looks at it once. Returns CAPTURE_NO where nothing is to be done, and CAPTURE_RESOLVED where the kernel judges: passed on
 * by the proxy it would arrive without an identity, so the connection goes straight there, but never past a waypoint.
 */
__noinline int call_pod(const struct address *to, __u64 netns_cookie, __u32 port, __u32 caller)
{
	if (!to || !(caller & POD_CAPTURE) || !(caller & POD_CALLS_PODS) || port == INBOUND_PORT || port == HBONE_PORT)
		return CAPTURE_NO;
	struct address destination = *to;
	enum policy_answer judge = policy_judge_of(netns_cookie, &destination, port);
	if (judge == POLICY_NONE)
		return CAPTURE_NO;
	if (judge == POLICY_LET_PAST)
		return bpf_map_lookup_elem(&proxied_addresses, &destination) ? CAPTURE_NO : CAPTURE_RESOLVED;
	if (judge == POLICY_PROXYS && !(caller & CALLER_CANT_BE_LED))
		return CAPTURE_POD;
	count(COUNTER_POLICY_CONNECT_REFUSED);
	return CAPTURE_REFUSED;
}

/* Remembers in the socket who opens it and where to. `chosen` is where CAPTURE_RESOLVED leads. */
static __always_inline enum capture on_connect(struct bpf_sock_addr *ctx, const struct address *destination, struct original_dst *chosen,
					       enum hook_place place)
{
	struct bpf_sock *sk = ctx->sk;
	if (!sk || ctx->protocol != IPPROTO_TCP)
		return CAPTURE_NO;
	__u64 netns_cookie = bpf_get_netns_cookie(ctx);
	struct pod *pod = bpf_map_lookup_elem(&pods, &netns_cookie);
	if (!pod || !serves(pod, place) || (place == HOOK_ROOT && is_proxy_cgroup(bpf_get_current_cgroup_id())))
		return CAPTURE_NO;
	__u16 port_be = ctx->user_port;
	enum capture capture = capture_of(pod, netns_cookie, destination, bpf_ntohs(port_be));
	/* Bound to a device (SO_BINDTODEVICE): loopback is out of its reach. */
	if (capture == CAPTURE_OUTBOUND && sk->bound_dev_if) {
		count(COUNTER_CONNECTION_BOUND_TO_DEVICE);
		capture = CAPTURE_NO;
	}
	if (capture != CAPTURE_INBOUND) {
		bool led = !sk->bound_dev_if && (is_ipv4(destination) || !is_unset(&pod->ipv6));
		int called = call_pod(destination, netns_cookie, bpf_ntohs(port_be), pod->flags | (led ? 0 : CALLER_CANT_BE_LED));
		if (called == CAPTURE_POD)
			capture = CAPTURE_POD;
		else if (called == CAPTURE_RESOLVED)
			capture = CAPTURE_NO;
		else if (called != CAPTURE_NO)
			return CAPTURE_REFUSED;
	}
	if (capture == CAPTURE_OUTBOUND && pod->mode == POD_MODE_NODE)
		capture = resolve(pod, netns_cookie, destination, bpf_ntohs(port_be), chosen);
	if (capture == CAPTURE_REFUSED)
		return capture;
	enum policy_answer answer = POLICY_NONE;
	if (capture == CAPTURE_RESOLVED || (capture == CAPTURE_NO && !(pod->flags & POD_REDIRECTED))) {
		struct original_dst asked = { .address = *destination, .port = port_be }, target = asked;
		if (capture == CAPTURE_RESOLVED)
			target = *chosen;
		answer = policy_at_connect(pod, netns_cookie, &asked, &target.address, bpf_ntohs(target.port));
	}
	if (answer == POLICY_REFUSED)
		return CAPTURE_REFUSED;
	/* What the proxy knows of this endpoint came since user space listed it. */
	if (answer == POLICY_PROXYS && capture == CAPTURE_RESOLVED)
		capture = CAPTURE_OUTBOUND;
	bool sidecar = pod->mode == POD_MODE_SIDECAR && (__u32)bpf_get_current_uid_gid() == sidecar_uid;
	bool redirected = (pod->flags & POD_REDIRECTED) && !sidecar;
	if (capture == CAPTURE_NO && !redirected && !is_loopback(destination) &&
	    !bpf_map_lookup_elem(&netns_of_address, destination)) {
		if (pod->acceleration != ACCELERATION_OFF)
			count(COUNTER_CONNECTION_NOT_LOCAL);
		/* An earlier connect() of this socket may have failed and left its state. */
		struct socket_state *old = bpf_sk_storage_get(&socket_states, sk, 0, 0);
		if (old)
			old->flags = 0;
		return CAPTURE_NO;
	}
	struct socket_state *state = bpf_sk_storage_get(&socket_states, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state) {
		count(COUNTER_CONNECTION_STORAGE_FAILED);
		return CAPTURE_NO; /* the original destination could not be handed over */
	}
	state->netns_cookie = netns_cookie;
	state->slot = pod->slot;
	state->generation = pod->generation;
	state->flags = SOCKET_CONNECTING;
	state->cookie = 0;
	state->peer_cookie = 0;
	state->peer_sock = 0;
	state->original.address = *destination;
	state->original.port = port_be;
	current_program(&state->program, place == HOOK_ROOT ? CONTAINER_BY_NETNS | netns_cookie : 0);
	state->pid = bpf_get_current_pid_tgid() >> 32;
	if (sidecar)
		state->flags |= SOCKET_PROXY;
	if (answer == POLICY_LET_PAST)
		state->flags |= SOCKET_LET_PAST;
	if (capture == CAPTURE_RESOLVED) {
		count(COUNTER_CONNECTIONS_RESOLVED);
		state->flags |= SOCKET_RESOLVED;
		state->endpoint = chosen->address;
		state->rewritten_port = chosen->port;
	} else if (capture != CAPTURE_NO) {
		state->flags |= SOCKET_CAPTURED;
		state->rewritten_port = bpf_htons(capture == CAPTURE_INBOUND ? INBOUND_PORT : OUTBOUND_PORT);
	}
	if (capture == CAPTURE_POD) {
		state->flags |= SOCKET_CALLS_POD;
		return CAPTURE_OUTBOUND;
	}
	return capture;
}

/* As if nobody listened there; without a value of its own the kernel's would be EPERM. */
static __always_inline int refuse_connect(void)
{
	bpf_set_retval(-ECONNREFUSED);
	return CONNECT_REFUSE;
}

static __always_inline void trace_connecting(struct bpf_sock_addr *ctx, const struct address *to, __u32 port, enum capture capture, enum hook_place place)
{
	if (!watch_of(WATCH_TRACE) || ctx->protocol != IPPROTO_TCP)
		return;
	__u64 netns_cookie = bpf_get_netns_cookie(ctx);
	struct pod *pod = bpf_map_lookup_elem(&pods, &netns_cookie);
	if (pod && serves(pod, place))
		trace_connect(netns_cookie, to, port, capture, bpf_get_current_pid_tgid() >> 32);
}

static __always_inline int on_connect4(struct bpf_sock_addr *ctx, enum hook_place place)
{
	struct address destination;
	set_ipv4(&destination, ctx->user_ip4);
	struct original_dst chosen = {};
	__u32 port = bpf_ntohs(ctx->user_port);
	enum capture capture = on_connect(ctx, &destination, &chosen, place);
	trace_connecting(ctx, &destination, port, capture, place);
	if (capture == CAPTURE_OUTBOUND) {
		ctx->user_ip4 = bpf_htonl(0x7f000001);
		ctx->user_port = bpf_htons(OUTBOUND_PORT);
	} else if (capture == CAPTURE_INBOUND) {
		ctx->user_port = bpf_htons(INBOUND_PORT);
	} else if (capture == CAPTURE_RESOLVED) {
		ctx->user_ip4 = chosen.address.word[3];
		ctx->user_port = chosen.port;
	} else if (capture == CAPTURE_REFUSED) {
		return refuse_connect();
	}
	return CONNECT_ALLOW;
}

static __always_inline int on_connect6(struct bpf_sock_addr *ctx, enum hook_place place)
{
	struct address destination = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };
	struct original_dst chosen = {};
	__u32 port = bpf_ntohs(ctx->user_port);
	enum capture capture = on_connect(ctx, &destination, &chosen, place);
	trace_connecting(ctx, &destination, port, capture, place);
	if (capture == CAPTURE_OUTBOUND) {
		bool mapped = is_ipv4(&destination);
		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = mapped ? bpf_htonl(0xffff) : 0;
		ctx->user_ip6[3] = mapped ? bpf_htonl(0x7f000001) : bpf_htonl(1);
		ctx->user_port = bpf_htons(OUTBOUND_PORT);
	} else if (capture == CAPTURE_INBOUND) {
		ctx->user_port = bpf_htons(INBOUND_PORT);
	} else if (capture == CAPTURE_RESOLVED) {
		ctx->user_ip6[0] = chosen.address.word[0];
		ctx->user_ip6[1] = chosen.address.word[1];
		ctx->user_ip6[2] = chosen.address.word[2];
		ctx->user_ip6[3] = chosen.address.word[3];
		ctx->user_port = chosen.port;
	} else if (capture == CAPTURE_REFUSED) {
		return refuse_connect();
	}
	return CONNECT_ALLOW;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return on_connect4(ctx, HOOK_POD);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return on_connect6(ctx, HOOK_POD);
}

/* The state of a captured or resolved client, when `ctx` shows the address it was led to. */
static __always_inline struct socket_state *captured_client(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	if (!sk || ctx->protocol != IPPROTO_TCP)
		return 0;
	struct socket_state *state = bpf_sk_storage_get(&socket_states, sk, 0, 0);
	if (!state || !(state->flags & (SOCKET_CAPTURED | SOCKET_RESOLVED)) || (state->flags & SOCKET_ACCEPTED))
		return 0;
	return state;
}

static __always_inline int on_getpeername4(struct bpf_sock_addr *ctx)
{
	struct address source;
	if (find_source(ctx, &source)) {
		if (is_ipv4(&source))
			ctx->user_ip4 = source.word[3];
		return 1;
	}
	struct socket_state *state = captured_client(ctx);
	if (state && (__u16)ctx->user_port == state->rewritten_port) {
		ctx->user_ip4 = state->original.address.word[3];
		ctx->user_port = state->original.port;
	}
	return 1;
}

static __always_inline int on_getpeername6(struct bpf_sock_addr *ctx)
{
	struct address source;
	if (find_source(ctx, &source)) {
		show_address6(ctx, &source);
		return 1;
	}
	struct socket_state *state = captured_client(ctx);
	if (state && (__u16)ctx->user_port == state->rewritten_port) {
		ctx->user_ip6[0] = state->original.address.word[0];
		ctx->user_ip6[1] = state->original.address.word[1];
		ctx->user_ip6[2] = state->original.address.word[2];
		ctx->user_ip6[3] = state->original.address.word[3];
		ctx->user_port = state->original.port;
	}
	return 1;
}

static __always_inline int on_getsockname4(struct bpf_sock_addr *ctx)
{
	if (!captured_client(ctx) || (bpf_ntohl(ctx->user_ip4) >> 24) != 127)
		return 1;
	__u64 netns_cookie = bpf_get_netns_cookie(ctx);
	struct pod *pod = bpf_map_lookup_elem(&pods, &netns_cookie);
	if (pod && !is_unset(&pod->ipv4))
		ctx->user_ip4 = pod->ipv4.word[3];
	return 1;
}

static __always_inline int on_getsockname6(struct bpf_sock_addr *ctx)
{
	struct address local = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };
	if (!captured_client(ctx) || !is_loopback(&local))
		return 1;
	__u64 netns_cookie = bpf_get_netns_cookie(ctx);
	struct pod *pod = bpf_map_lookup_elem(&pods, &netns_cookie);
	if (!pod)
		return 1;
	struct address own = is_ipv4(&local) ? pod->ipv4 : pod->ipv6;
	if (is_unset(&own))
		return 1;
	ctx->user_ip6[0] = own.word[0];
	ctx->user_ip6[1] = own.word[1];
	ctx->user_ip6[2] = own.word[2];
	ctx->user_ip6[3] = own.word[3];
	return 1;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return on_getpeername4(ctx);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return on_getpeername6(ctx);
}

SEC("cgroup/getsockname4")
int getsockname4(struct bpf_sock_addr *ctx)
{
	return on_getsockname4(ctx);
}

SEC("cgroup/getsockname6")
int getsockname6(struct bpf_sock_addr *ctx)
{
	return on_getsockname6(ctx);
}

/* A connection that was steered to a proxy's listener has kept its addresses. */
static __always_inline bool read_steered(const struct bpf_sock *sk, struct original_dst *out)
{
	__u32 port = sk->src_port;
	if (port == OUTBOUND_PORT || port == INBOUND_PORT || port == HBONE_PORT)
		return false;
	struct address own = { { sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3] } };
	__u32 ipv4 = sk->src_ip4;
	/* Read in two branches the two become one by a computed pointer, which the verifier refuses. */
	asm volatile("" : "+r"(ipv4), "+r"(own.word[3])::"memory");
	if (sk->family == AF_INET)
		set_ipv4(&own, ipv4);
	out->address = own;
	out->port = bpf_htons(port);
	return !is_loopback(&out->address);
}

/*
 * SO_ORIGINAL_DST of what a proxy accepted, as conntrack would answer after a REDIRECT; and of a client's own socket that was
 * led to a proxy or to an endpoint, as it would after a DNAT.
 */
static __always_inline int on_getsockopt(struct bpf_sockopt *ctx, bool proxy_cgroup)
{
	bool v4 = ctx->level == SOL_IP, v6 = ctx->level == SOL_IPV6;
	if (ctx->optname != SO_ORIGINAL_DST || !(v4 || v6)) {
		if (ctx->optlen > GETSOCKOPT_BUFFER_MAX)
			ctx->optlen = 0; /* else the kernel fails the call, as it does not copy so much in */
		return 1;
	}
	struct bpf_sock *sk = ctx->sk;
	if (!sk)
		return 1;
	struct socket_state *state = bpf_sk_storage_get(&socket_states, sk, 0, 0);
	bool accepted = state && (state->flags & SOCKET_ACCEPTED) && (state->flags & SOCKET_CAPTURED);
	bool opened = state && !(state->flags & SOCKET_ACCEPTED) && (state->flags & (SOCKET_CAPTURED | SOCKET_RESOLVED));
	struct original_dst original = {};
	if (accepted || opened)
		original = state->original;
	else if (!proxy_cgroup || !read_steered(sk, &original))
		return 1;
	void *end = ctx->optval_end;
	if (v4) {
		struct sockaddr_in *out = ctx->optval;
		if (!is_ipv4(&original.address) || (void *)(out + 1) > end)
			return 1;
		__builtin_memset(out, 0, sizeof(*out));
		out->sin_family = AF_INET;
		out->sin_port = original.port;
		out->sin_addr.s_addr = original.address.word[3];
		ctx->optlen = sizeof(*out);
	} else {
		struct sockaddr_in6 *out = ctx->optval;
		if ((void *)(out + 1) > end)
			return 1;
		__builtin_memset(out, 0, sizeof(*out));
		out->sin6_family = AF_INET6;
		out->sin6_port = original.port;
		out->sin6_addr.in6_u.u6_addr32[0] = original.address.word[0];
		out->sin6_addr.in6_u.u6_addr32[1] = original.address.word[1];
		out->sin6_addr.in6_u.u6_addr32[2] = original.address.word[2];
		out->sin6_addr.in6_u.u6_addr32[3] = original.address.word[3];
		ctx->optlen = sizeof(*out);
	}
	/* Merged with the store above by the compiler, this one is refused by the verifier. */
	asm volatile("" ::: "memory");
	ctx->retval = 0;
	return 1;
}

SEC("cgroup/getsockopt")
int getsockopt(struct bpf_sockopt *ctx)
{
	return on_getsockopt(ctx, false);
}

SEC("cgroup/getsockopt")
int proxy_getsockopt(struct bpf_sockopt *ctx)
{
	return on_getsockopt(ctx, true);
}
