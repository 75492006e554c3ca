/*
 * Services decided at connect(): one of the service's endpoints is drawn and the connection goes straight to it. User space
 * lists only ports for which no proxy has anything to do and whose endpoints are all enrolled pods of this node.
 */
#pragma once

struct service_key {
	struct address address;
	__u16 port; /* host order */
	__u16 reserved;
};

/*
 * `block` is what an update replaces, in one word, so that no reader sees half of it: where the endpoints begin in the low
 * 32 bits, how many they are in the next 23, whether clients keep to one of them in one, the kind in the last 8. No endpoints:
 * connect() is refused.
 */
#define SERVICE_AFFINITY (1ULL << 55)

struct service {
	__u64 block;
	struct address address; /* whose it is: a reader may come with an index that was given away meanwhile */
	__u16 port;
	__u16 reserved;
	__u32 reserved2;
};

/* One row of an alias table (Walker 1977, in Vose's form of 1991): this endpoint, or that of row `alias` of the same block. */
struct endpoint {
	struct address address;
	__u32 threshold; /* this row's own when a random number is not above it */
	__u32 alias;
	__u16 port;
	__u16 reserved;
	__u32 reserved2;
};

/* The index in `services` stays a service's own as long as the service is there. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_SERVICES);
	__type(key, struct service_key);
	__type(value, __u32);
} service_indexes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SERVICES);
	__type(key, __u32);
	__type(value, struct service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/* Pods, by netns cookie, to which a service's address may mean something else than `services` says: theirs is the proxy's way. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PODS);
	__type(key, __u64);
	__type(value, __u8);
} foreign_pods SEC(".maps");

/* Endpoints that did not answer, and until when (bpf_ktime_get_ns) they are left out. An entry lost is one more try. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_OUTLIERS);
	__type(key, struct service_key);
	__type(value, __u64);
} outliers SEC(".maps");

static __always_inline struct endpoint *endpoint_at(__u32 index)
{
	return bpf_map_lookup_elem(&endpoints, &index);
}

static __always_inline bool is_outlier(const struct endpoint *endpoint)
{
	struct service_key key = { .address = endpoint->address, .port = endpoint->port };
	__u64 *until = bpf_map_lookup_elem(&outliers, &key);
	return until && bpf_ktime_get_ns() < *until;
}

static __always_inline __u32 random_below(__u32 count)
{
	return ((__u64)bpf_get_prandom_u32() * count) >> 32;
}

/* By weight. */
static __always_inline __u32 draw(__u32 first, __u32 count)
{
	__u32 index = first + random_below(count);
	struct endpoint *endpoint = endpoint_at(index);
	return endpoint && bpf_get_prandom_u32() > endpoint->threshold ? first + endpoint->alias : index;
}

/* A global function, so that the verifier looks at it once, and has no branches to follow in the loop that calls it. */
__noinline int answers(__u32 index)
{
	struct endpoint *endpoint = endpoint_at(index);
	return endpoint && !is_outlier(endpoint);
}

/*
 * By weight among those that answer: a few draws, then one after the other, so that a dead endpoint with nearly all the
 * weight is passed over too. With none left that answers, whichever was drawn first. Global, too.
 */
__noinline __u32 pick(__u32 first, __u32 count)
{
	__u32 drawn = draw(first, count);
	if (answers(drawn))
		return drawn;
	for (int i = 0; i < OUTLIER_DRAWS; i++) {
		__u32 again = draw(first, count);
		if (answers(again))
			return again;
	}
	__u32 at = random_below(count);
	for (__u32 i = 0; i < OUTLIER_SCAN && i < count; i++) {
		if (answers(first + at))
			return first + at;
		at = at + 1 == count ? 0 : at + 1;
	}
	return drawn;
}

static __always_inline __u32 mix(__u32 value)
{
	value ^= value >> 16;
	value *= 0x7feb352d;
	value ^= value >> 15;
	value *= 0x846ca68b;
	return value ^ (value >> 16);
}

/*
 * `best`, or what the client and this endpoint come to, in its high half, with the endpoint's index, if that is more. Global as
 * `answers`.
 */
__noinline __u64 affinity_better(__u64 best, __u32 client, __u32 index)
{
	struct endpoint *endpoint = endpoint_at(index);
	if (!endpoint || is_outlier(endpoint))
		return best;
	__u64 number = mix(mix(client ^ endpoint->address.word[3]) ^ endpoint->address.word[2] ^ endpoint->port) | 1;
	__u64 own = number << 32 | index;
	return own > best ? own : best;
}

/*
 * The client's own endpoint: that with the highest number (rendezvous hashing, Thaler and Ravishankar 1998), so that a client
 * changes over only when its endpoint goes or does not answer, or a new one is more its own. Weights do not count.
 */
__noinline __u32 affinity_index(__u32 client, __u32 first, __u32 count)
{
	__u64 best = first;
	/* Of more than can be looked at each client has a stretch of its own. */
	__u32 start = count > AFFINITY_SCAN ? mix(client) : 0;
	for (__u32 i = 0; i < AFFINITY_SCAN; i++) {
		if (i >= count)
			break;
		best = affinity_better(best, client, first + (start + i) % count);
	}
	return best;
}

/* What is known of a destination; NULL: nothing, so it is the proxy's. */
static __always_inline struct service *service_of(const struct address *destination, __u16 port)
{
	struct service_key key = { .address = *destination, .port = port };
	__u32 *index = bpf_map_lookup_elem(&service_indexes, &key);
	struct service *service = index ? bpf_map_lookup_elem(&services, index) : 0;
	if (!service || service->port != port || !same_address(&service->address, destination))
		return 0;
	return service;
}

/* Fills in `chosen` for CAPTURE_RESOLVED; CAPTURE_OUTBOUND is the proxy's way. */
static __always_inline enum capture resolve(const struct pod *pod, __u64 netns_cookie, const struct address *destination, __u16 port,
					    struct original_dst *chosen)
{
	struct service *service = service_of(destination, port);
	if (!service || bpf_map_lookup_elem(&foreign_pods, &netns_cookie))
		return CAPTURE_OUTBOUND;
	__u64 block = *(volatile __u64 *)&service->block;
	__u32 first = block, count_ = (block >> 32) & 0x7fffff;
	if (block >> 56 == SERVICE_HTTP && !(pod->flags & POD_L7_AUTO))
		return CAPTURE_OUTBOUND;
	if (!count_) {
		count(COUNTER_CONNECTIONS_WITHOUT_ENDPOINT);
		return CAPTURE_REFUSED;
	}
	struct endpoint *endpoint = endpoint_at(
		block & SERVICE_AFFINITY ? affinity_index(pod->ipv4.word[3] ^ pod->ipv6.word[2] ^ pod->ipv6.word[3], first, count_) : pick(first, count_));
	__u64 *netns = endpoint ? bpf_map_lookup_elem(&netns_of_address, &endpoint->address) : 0;
	struct pod *server = netns ? bpf_map_lookup_elem(&pods, netns) : 0;
	/* It left since user space looked. */
	if (!server || server->mode != POD_MODE_NODE) {
		count(COUNTER_CONNECTION_ENDPOINT_GONE);
		return CAPTURE_OUTBOUND;
	}
	chosen->address = endpoint->address;
	chosen->port = bpf_htons(endpoint->port);
	return CAPTURE_RESOLVED;
}
