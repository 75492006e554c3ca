/*
 * sk_msg: what a paired socket sends is moved into the other one's receive queue, as long as TCP could not tell.
 * sk_skb: what comes by TCP all the same goes into that queue too.
 */
#pragma once

static __always_inline bool nonblocking(const struct tcp_sock *tp)
{
	const struct socket *socket = tp->inet_conn.icsk_inet.sk.sk_socket;
	const struct file *file = socket ? socket->file : 0;
	return !file || (file->f_flags & O_NONBLOCK);
}

extern int LINUX_KERNEL_VERSION __kconfig;
extern void *bpf_rdonly_cast(const void *object, __u32 type) __ksym __weak;

/* What a message asks of the other end. */
struct receiver {
	const void *ulp;
	__u32 copied_seq, rcv_wup, rcv_wnd, rcv_nxt, queued, room;
};

/* Freed while we look it is still memory of the same kind, and then the redirect below finds no socket. */
static __always_inline void read_receiver(__u64 sock, struct receiver *out)
{
	if (LINUX_KERNEL_VERSION >= KERNEL_6_2) {
		const struct tcp_sock *tp = bpf_rdonly_cast((void *)sock, bpf_core_type_id_kernel(struct tcp_sock));
		out->ulp = tp->inet_conn.icsk_ulp_ops;
		out->copied_seq = tp->copied_seq;
		out->rcv_wup = tp->rcv_wup;
		out->rcv_wnd = tp->rcv_wnd;
		out->rcv_nxt = tp->rcv_nxt;
		out->queued = tp->inet_conn.icsk_inet.sk.sk_backlog.rmem_alloc.counter;
		out->room = tp->inet_conn.icsk_inet.sk.sk_rcvbuf;
		return;
	}
	const struct tcp_sock *tp = (void *)sock;
	out->ulp = BPF_CORE_READ(tp, inet_conn.icsk_ulp_ops);
	out->copied_seq = BPF_CORE_READ(tp, copied_seq);
	out->rcv_wup = BPF_CORE_READ(tp, rcv_wup);
	out->rcv_wnd = BPF_CORE_READ(tp, rcv_wnd);
	out->rcv_nxt = BPF_CORE_READ(tp, rcv_nxt);
	out->queued = BPF_CORE_READ(tp, inet_conn.icsk_inet.sk.sk_backlog.rmem_alloc.counter);
	out->room = BPF_CORE_READ(tp, inet_conn.icsk_inet.sk.sk_rcvbuf);
}

/* The partner, which the opener learns of at its first message. */
static __always_inline bool find_peer(struct socket_state *state)
{
	if (state->peer_cookie)
		return true;
	__u64 cookie = state->cookie;
	struct peer *peer = bpf_map_lookup_elem(&peers, &cookie);
	if (!peer)
		return false;
	state->peer_sock = peer->sock;
	state->peer_cookie = peer->cookie;
	if (peer->reports)
		state->flags |= SOCKET_PEER_REPORTS;
	bpf_map_delete_elem(&peers, &cookie);
	return true;
}

static __always_inline void count_moved(struct socket_state *state, __u32 size)
{
	state->bytes_moved += size;
	state->messages_moved++;
	count(COUNTER_MESSAGES_SHORT_CIRCUITED);
	count_n(COUNTER_BYTES_SHORT_CIRCUITED, size);
	struct pod_counters *pod = counters_of_slot(state->slot, state->generation);
	if (pod) {
		__sync_fetch_and_add(&pod->messages_short_circuited, 1);
		__sync_fetch_and_add(&pod->bytes_short_circuited, size);
	}
}

/* Into the partner, if TCP could not tell, which is COUNTERS; else why not. */
static __always_inline enum counter try_move(struct sk_msg_md *msg, struct bpf_sock *sk, struct socket_state *state)
{
	if (state->flags & (SOCKET_BLOCKING | SOCKET_TLS)) {
		return state->flags & SOCKET_TLS ? COUNTER_MESSAGE_UPPER_LAYER : COUNTER_MESSAGE_BLOCKING;
	}
	if (!acceleration_on()) {
		return COUNTER_MESSAGE_SWITCHED_OFF;
	}
	if (!find_peer(state)) {
		return COUNTER_MESSAGE_NO_PEER;
	}
	struct tcp_sock *self = bpf_skc_to_tcp_sock(sk);
	if (!self)
		return COUNTER_MESSAGE_NO_STATE;
	/* Rule 11: a program may have made its socket blocking since. */
	if (!(state->flags & (SOCKET_FORCED | SOCKET_PROXY)) && !nonblocking(self)) {
		state->flags |= SOCKET_BLOCKING;
		mark_program(state, MARK_BLOCKING);
		return COUNTER_MESSAGE_BLOCKING;
	}
	/* Too late for this connection, in time for the program's next. */
	if (sends_zero_copy(self->inet_conn.icsk_inet.sk.__sk_common.skc_flags))
		mark_program(state, MARK_SPLICED);
	struct receiver other;
	read_receiver(state->peer_sock, &other);
	/* Rule 8: kTLS may have been switched on since, at either end. */
	if (self->inet_conn.icsk_ulp_ops || other.ulp) {
		state->flags |= SOCKET_TLS;
		return COUNTER_MESSAGE_UPPER_LAYER;
	}
	/* Rule 2: moved bytes are read before TCP's, so all that went by TCP must have been read. */
	if (self->write_seq != other.copied_seq) {
		return COUNTER_MESSAGE_NOT_DRAINED;
	}
	/*
	 * Rule 7: moved bytes know no window, but fill the buffer that TCP needs for what its window still allows, and a segment
	 * without room is dropped. So there must be room for that too, at a quarter more than its payload; else TCP takes over,
	 * and its window holds the sender back.
	 */
	__u32 size = msg->size;
	__s32 window = other.rcv_wup + other.rcv_wnd - other.rcv_nxt;
	if (window < 0)
		window = 0;
	if (other.queued + size + (__u32)(window + window / 4) > other.room) {
		return COUNTER_MESSAGE_PEER_FULL;
	}
	__u64 target = state->peer_cookie;
	if (bpf_msg_redirect_hash(msg, &sockets, &target, BPF_F_INGRESS) != SK_PASS) {
		return COUNTER_MESSAGE_REDIRECT_FAILED;
	}
	count_moved(state, size);
	return COUNTERS;
}

static __always_inline int move(struct sk_msg_md *msg, struct bpf_sock *sk, struct socket_state *state)
{
	enum counter why = try_move(msg, sk, state);
	if (why != COUNTERS)
		count(why);
	trace_point(state, why == COUNTERS ? WATCH_MOVED : WATCH_BY_TCP, why, msg->size);
	return SK_PASS;
}

/*
 * ioctl(FIONREAD) of a socket in a sockhash counts that queue alone. A server that goes by it, as nginx does, would wait for
 * ever for bytes that TCP keeps in its own.
 */
SEC("sk_skb/stream_verdict")
int keep_segment(struct __sk_buff *skb)
{
	return SK_PASS;
}
