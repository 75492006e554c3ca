/*
 * Connections that serve one request are not worth joining: what the sockhash takes for each of them is more than it saves.
 * Whether one will be brief is not known when it opens, and later the kernel lets no socket in (docs/kernel-rules.md, rule 3),
 * so it is told by those before it: of the same program, to the same destination, one right after the other.
 */
#pragma once

/* Set before loading. So many brief ones in a row, and the next are not joined; 0: all are. */
const volatile __u32 brief_streak = BRIEF_STREAK;
const volatile __u64 brief_gap_ns = BRIEF_GAP_NS;

/* By a hash of program and destination. One that meets another's place waits until that one has been still for a while. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BRIEF_PLACES);
	__type(key, __u32);
	__type(value, struct brevity);
} brevities SEC(".maps");

static __always_inline __u64 stir(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
	return hash ^ (hash >> 29);
}

/* Never 0. */
static __always_inline __u64 brevity_name(const struct socket_state *state)
{
	const struct address *to = &state->original.address;
	__u64 hash = stir(state->program.cgroup_id, state->program.inode);
	hash = stir(hash, (__u64)state->program.device << 32 | state->original.port);
	hash = stir(hash, (__u64)to->word[0] << 32 | to->word[1]);
	hash = stir(hash, (__u64)to->word[2] << 32 | to->word[3]);
	return hash | 1ull << 63;
}

static __always_inline struct brevity *brevity_of(__u64 name)
{
	__u32 place = (name >> 32) & (BRIEF_PLACES - 1);
	return bpf_map_lookup_elem(&brevities, &place);
}

/* At establishment of an opener, unless it is a proxy's: those are not told apart, and pool their connections. */
static __always_inline bool will_be_brief(struct socket_state *state)
{
	if (!brief_streak)
		return false;
	state->brevity = brevity_name(state);
	struct brevity *known = brevity_of(state->brevity);
	return known && known->name == state->brevity && known->streak >= brief_streak && bpf_ktime_get_coarse_ns() - known->ended_ns < brief_gap_ns;
}

/* By what this end sent. */
static __always_inline bool is_brief(const struct socket_state *state, const struct tcp_sock *tp)
{
	return state->messages_moved + tp->data_segs_out <= BRIEF_MESSAGES && state->bytes_moved + tp->bytes_sent <= BRIEF_BYTES;
}

static __always_inline void not_brief(const struct socket_state *state)
{
	struct brevity *known = brevity_of(state->brevity);
	if (known && known->name == state->brevity)
		known->streak = 0;
}

/* An end of a connection that would have been joined, or was, is closed. The opener counts it, either end may object. */
static __always_inline void brief_closed(const struct socket_state *state, const struct tcp_sock *tp)
{
	if (!state->brevity)
		return;
	if (!is_brief(state, tp)) {
		not_brief(state);
		return;
	}
	if (state->flags & SOCKET_ACCEPTED)
		return;
	struct brevity *known = brevity_of(state->brevity);
	if (!known)
		return;
	__u64 now = bpf_ktime_get_coarse_ns();
	bool paused = now - known->ended_ns >= brief_gap_ns;
	if (known->name != state->brevity) {
		if (!paused)
			return;
		known->name = state->brevity;
	}
	if (paused)
		known->streak = 1;
	else
		__sync_fetch_and_add(&known->streak, 1);
	known->ended_ns = now;
}

/* One that was taken for brief sends more: those after it are joined again. */
static __always_inline void brief_goes_on(struct socket_state *state, const struct tcp_sock *tp)
{
	if (!(state->flags & SOCKET_BRIEF) || is_brief(state, tp))
		return;
	state->flags &= ~SOCKET_BRIEF;
	count(COUNTER_CONNECTIONS_OUTLASTED);
	not_brief(state);
}
