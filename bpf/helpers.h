#pragma once

static __always_inline void count_n(enum counter which, __u64 n)
{
	__u32 key = which;
	__u64 *value = bpf_map_lookup_elem(&counters, &key);
	if (value)
		__sync_fetch_and_add(value, n); /* a softirq or another task may come between, even on one CPU */
}

static __always_inline void count(enum counter which)
{
	count_n(which, 1);
}

/* NULL when the slot has been given to another pod since. */
static __always_inline struct pod_counters *counters_of_slot(__u32 slot, __u32 generation)
{
	struct pod_counters *found = bpf_map_lookup_elem(&pod_counters, &slot);
	return found && found->generation == generation ? found : 0;
}

/* `owner`: a pod, or the state of one of its sockets. */
#define COUNT_POD(owner, field, n) do { \
	struct pod_counters *counters_ = counters_of_slot((owner)->slot, (owner)->generation); \
	if (counters_) \
		__sync_fetch_and_add(&counters_->field, (n)); \
} while (0)

static __always_inline void set_ipv4(struct address *out, __u32 ip)
{
	out->word[0] = 0;
	out->word[1] = 0;
	out->word[2] = bpf_htonl(0xffff);
	out->word[3] = ip;
}

/* These have one branch each, where a comparison of each word would have four: the verifier follows all ways through them, times those before. */
static __always_inline bool is_ipv4(const struct address *a)
{
	return !(a->word[0] | a->word[1] | (a->word[2] ^ bpf_htonl(0xffff)));
}

/* Also 0.0.0.0, to which connect() is one to loopback. */
static __always_inline bool is_unset(const struct address *a)
{
	/* The product is 0 where either factor is. */
	return !((a->word[0] | a->word[1] | a->word[3]) | (__u64)a->word[2] * (a->word[2] ^ bpf_htonl(0xffff)));
}

/* fe80::/10: means something together with an interface alone, which no proxy is told. */
static __always_inline bool is_link_local(const struct address *a)
{
	return (bpf_ntohl(a->word[0]) & 0xffc00000) == 0xfe800000;
}

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return !((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) | (a->word[3] ^ b->word[3]));
}

static __always_inline bool is_loopback(const struct address *a)
{
	__u32 either = a->word[0] | a->word[1];
	__u32 v4 = either | (a->word[2] ^ bpf_htonl(0xffff)) | ((a->word[3] & bpf_htonl(0xff000000)) ^ bpf_htonl(0x7f000000));
	__u32 v6 = either | a->word[2] | (a->word[3] ^ bpf_htonl(1));
	return !((__u64)v4 * v6);
}

static __always_inline bool acceleration_on(void)
{
	__u32 zero = 0;
	struct settings *s = bpf_map_lookup_elem(&settings, &zero);
	return s && s->acceleration;
}

static __always_inline void report(__u32 type, __u32 counter, const struct socket_state *state)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count(COUNTER_EVENTS_LOST);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->type = type;
	event->counter = counter;
	event->netns_cookie = state->netns_cookie;
	event->program = state->program;
	event->listener = state->listener;
	event->after_acceleration = !!(state->flags & SOCKET_IN_MAP);
	event->pid = state->pid;
	bpf_ringbuf_submit(event, 0);
}

static __always_inline void map_full(enum counter which, const struct socket_state *state)
{
	count(which);
	report(EVENT_MAP_FULL, which, state);
}

/*
 * MARK_NONE: still in probation. Both must have spoken: the kernel, which sees whether sockets block, and user space,
 * which sees what the program is. With no agent there to look, nothing new is ever short-circuited.
 */
static __always_inline __u32 decided(const struct verdict *v, const struct clearance *c)
{
	if (v->mark)
		return v->mark;
	if (!c)
		return MARK_NONE;
	if (c->kind != CLEARANCE_GIVEN)
		return MARK_SPLICED;
	return v->seen >= PROBATION_CONNECTIONS ? MARK_EVENT_DRIVEN : MARK_NONE;
}

static __always_inline __u32 client_verdict(const struct program_key *key)
{
	struct verdict *v = bpf_map_lookup_elem(&client_verdicts, key);
	__u32 verdict = v ? decided(v, bpf_map_lookup_elem(&client_clearances, key)) : MARK_NONE;
	if (verdict != MARK_NONE)
		return verdict;
	struct program_key anywhere = *key;
	anywhere.cgroup_id = 0;
	v = bpf_map_lookup_elem(&client_verdicts, &anywhere);
	return v ? v->mark : MARK_NONE;
}

static __always_inline __u32 listener_verdict(const struct listener_key *key)
{
	struct verdict *v = bpf_map_lookup_elem(&listener_verdicts, key);
	return v ? decided(v, bpf_map_lookup_elem(&listener_clearances, key)) : MARK_NONE;
}

/* A listener as the verdicts know it: all of 127.0.0.0/8 and ::1 are one, or a pod could make millions. */
static __always_inline void name_listener(struct listener_key *out, __u64 netns_cookie, const struct address *address, __u16 port)
{
	__builtin_memset(out, 0, sizeof(*out));
	out->netns_cookie = netns_cookie;
	out->port = port;
	if (is_loopback(address))
		set_ipv4(&out->address, bpf_htonl(0x7f000001));
	else
		out->address = *address;
}

/* Room for one more verdict of this socket's pod. */
static __always_inline bool take_quota(const struct socket_state *state, bool accepted)
{
	__u64 netns_cookie = state->netns_cookie;
	struct verdict_quota *quota = bpf_map_lookup_elem(&verdict_quotas, &netns_cookie);
	if (!quota) {
		struct verdict_quota none = {};
		bpf_map_update_elem(&verdict_quotas, &netns_cookie, &none, BPF_NOEXIST);
		quota = bpf_map_lookup_elem(&verdict_quotas, &netns_cookie);
	}
	if (!quota)
		return false;
	__u32 *taken = accepted ? &quota->listeners : &quota->clients;
	if (*taken < VERDICTS_PER_POD) {
		__sync_fetch_and_add(taken, 1);
		return true;
	}
	count(COUNTER_VERDICTS_QUOTA);
	__u64 now = bpf_ktime_get_ns();
	if (!quota->reported_ns || now - quota->reported_ns > QUOTA_EVENT_AGAIN_NS) {
		quota->reported_ns = now;
		report(EVENT_VERDICT_QUOTA, 0, state);
	}
	return false;
}

/* The verdict on this socket's program, made when it is missing. */
static __always_inline struct verdict *verdict_of(const struct socket_state *state)
{
	bool accepted = state->flags & SOCKET_ACCEPTED;
	struct verdict *v = accepted ? bpf_map_lookup_elem(&listener_verdicts, &state->listener)
				     : bpf_map_lookup_elem(&client_verdicts, &state->program);
	if (v)
		return v;
	if (!take_quota(state, accepted))
		return 0;
	struct verdict fresh = { .netns_cookie = state->netns_cookie };
	long failed = accepted ? bpf_map_update_elem(&listener_verdicts, &state->listener, &fresh, BPF_NOEXIST)
			       : bpf_map_update_elem(&client_verdicts, &state->program, &fresh, BPF_NOEXIST);
	v = accepted ? bpf_map_lookup_elem(&listener_verdicts, &state->listener)
		     : bpf_map_lookup_elem(&client_verdicts, &state->program);
	if (!v && failed)
		map_full(COUNTER_VERDICTS_FULL, state);
	return v;
}

/* Makes user space look at the program of a socket in probation, unless it has. */
static __always_inline void ask_for_clearance(const struct socket_state *state, struct verdict *v)
{
	bool accepted = state->flags & SOCKET_ACCEPTED;
	if (accepted ? !!bpf_map_lookup_elem(&listener_clearances, &state->listener)
		     : !!bpf_map_lookup_elem(&client_clearances, &state->program))
		return;
	__u64 now = bpf_ktime_get_ns();
	if (v->asked_ns && now - v->asked_ns < CLEARANCE_AGAIN_NS)
		return;
	v->asked_ns = now;
	report(accepted ? EVENT_NEW_LISTENER : EVENT_NEW_CLIENT, 0, state);
}

/* Ends the socket's program's probation for good; `mark` is MARK_BLOCKING or MARK_SPLICED. */
static __always_inline void mark_program(const struct socket_state *state, __u32 mark)
{
	struct verdict *v = verdict_of(state);
	if (!v || v->mark != MARK_NONE)
		return;
	v->mark = mark;
	bool accepted = state->flags & SOCKET_ACCEPTED;
	report(mark == MARK_BLOCKING ? (accepted ? EVENT_BLOCKING_LISTENER : EVENT_BLOCKING_CLIENT)
				     : (accepted ? EVENT_ZERO_COPY_LISTENER : EVENT_ZERO_COPY_CLIENT),
	       0, state);
}

/* SO_ZEROCOPY: the completions of MSG_ZEROCOPY never come for a socket in a sockhash (seen on 6.18). */
static __always_inline bool sends_zero_copy(unsigned long sk_flags)
{
	return sk_flags & (1UL << bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY));
}

/* What the current task runs, for the connect hooks. `container`: it may not be called by its cgroup; 0: it is. */
static __always_inline void current_program(struct program_key *out, __u64 container)
{
	struct inode *inode = bpf_get_current_task_btf()->mm->exe_file->f_inode;
	out->cgroup_id = container ? container : bpf_get_current_cgroup_id();
	out->inode = inode->i_ino;
	out->device = inode->i_sb->s_dev;
	out->reserved = 0;
}

/* What a socket sent by TCP since this was last asked. */
static __always_inline void count_tcp(struct socket_state *state, const struct tcp_sock *tp)
{
	__u64 sent = tp->bytes_sent - tp->bytes_retrans;
	if (sent <= state->bytes_tcp)
		return;
	__u64 more = sent - state->bytes_tcp;
	state->bytes_tcp = sent;
	count_n(COUNTER_BYTES_TCP, more);
	COUNT_POD(state, bytes_tcp, more);
}
