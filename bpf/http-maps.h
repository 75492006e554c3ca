/* The tables of the HTTP fast path, which the agent writes (agent/dataplane/kernel-http.ts) and programs read. */
#pragma once

/* By netns cookie of the client. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PODS);
	__type(key, __u64);
	__type(value, struct http_pod);
} http_pods SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_HTTP_PORTS);
	__type(key, struct http_port_key);
	__type(value, struct http_port);
} http_ports SEC(".maps");

/* -> index in http_vhosts */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_HTTP_HOSTS);
	__type(key, struct http_host_key);
	__type(value, __u32);
} http_hosts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_HTTP_VHOSTS);
	__type(key, __u32);
	__type(value, struct http_list);
} http_vhosts SEC(".maps");

/* 0 is never used: it means allowed. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_HTTP_POLICIES);
	__type(key, __u32);
	__type(value, struct http_list);
} http_policies SEC(".maps");

/* Of virtual hosts and of policies. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_HTTP_RULES);
	__type(key, __u32);
	__type(value, struct http_rule);
} http_rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_HTTP_CLASSES);
	__type(key, __u32);
	__type(value, struct http_class);
} http_classes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_HTTP_CLUSTERS);
	__type(key, __u32);
	__type(value, struct http_cluster);
} http_clusters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_HTTP_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct http_endpoint);
} http_endpoints SEC(".maps");

/* The agent hands out places, programs count in them. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_HTTP_LOADS);
	__type(key, __u32);
	__type(value, struct http_load);
} http_loads SEC(".maps");

/* 0 is never used: it means that nobody is ejected. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_HTTP_DETECTORS);
	__type(key, __u32);
	__type(value, struct http_detector);
} http_detectors SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_HTTP_DETECTORS);
	__type(key, __u32);
	__type(value, struct http_ejections);
} http_ejections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_HTTP_MONITORS);
	__type(key, __u32);
	__type(value, struct http_monitor);
} http_monitors SEC(".maps");

/* The agent writes the first whole, again and again; the second is the programs'. Off while the two differ in `lost_events`. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct http_control);
} http_control SEC(".maps");

/* Kept by the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PODS);
	__type(key, __u64);
	__type(value, struct http_activity);
} http_activity SEC(".maps");

/* By the client socket's cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_HTTP_CHANNELS);
	__type(key, __u64);
	__type(value, struct http_channel);
} http_channels SEC(".maps");

/* To the client socket's cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_HTTP_CHANNELS);
	__type(key, struct http_client_key);
	__type(value, __u64);
} http_clients SEC(".maps");

/* A taught server's socket -> the client's. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_HTTP_CHANNELS * 2);
	__type(key, __u64);
	__type(value, __u64);
} http_servers SEC(".maps");

/* How many there are. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_HTTP_UPSTREAMS);
	__type(key, struct http_upstream_key);
	__type(value, __u32);
} http_upstreams SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_HTTP_TOTALS);
	__type(key, struct http_total_key);
	__type(value, struct http_total);
} http_totals SEC(".maps");

/* The agent's. Keys are given to one service only for as long as an entry of http_totals, or a class, has them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_HTTP_SERVICES);
	__type(key, __u32);
	__type(value, struct http_service);
} http_services SEC(".maps");

/* The agent's: what pods that are gone had added, by a hash of its labels. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_HTTP_TOTALS);
	__type(key, struct retired_key);
	__type(value, struct http_total);
} http_retired SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} http_events SEC(".maps");
