/*
 * Where a pod's hooks are: on its own cgroup, or, of a pod whose runtime made none, on the root of the hierarchy, one set of them for
 * all such pods. These see every socket of the machine, so they go by the network namespace; what a proxy's socket does there is
 * the business of the hooks on the proxy's cgroup.
 */
#pragma once

enum hook_place { HOOK_POD, HOOK_PROXY, HOOK_ROOT };

/* In the cgroup_id of a program of a pod at the root: the rest is its namespace's cookie. */
#define CONTAINER_BY_NETNS (1ull << 63)

/* The cgroup of the shared proxy; 0: not known. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} proxy_cgroups SEC(".maps");

static __always_inline bool is_proxy_cgroup(__u64 cgroup_id)
{
	__u32 zero = 0;
	__u64 *known = bpf_map_lookup_elem(&proxy_cgroups, &zero);
	return known && *known == cgroup_id;
}

/* A pod that moves from one place to the other has both hooks for a moment; a connection is to meet one of them. */
static __always_inline bool serves(const struct pod *pod, enum hook_place place)
{
	return place == HOOK_PROXY || (place == HOOK_ROOT) == (pod->cgroup_id == root_cgroup_id);
}

/* By the cookie of a network namespace: whether it is a pod's at the root. */
static __always_inline bool is_rooted(__u64 netns_cookie)
{
	struct pod *pod = bpf_map_lookup_elem(&pods, &netns_cookie);
	return pod && serves(pod, HOOK_ROOT);
}
