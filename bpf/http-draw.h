/* The draw of the fast path: a destination by weight, and one of its endpoints by weight and load among those that are not ejected. */
#pragma once

#define HTTP_DRAWS 64 /* until one is found that is not ejected; then the others are looked at in turn */

static __always_inline const struct http_split *http_draw_split(const struct http_class *class, __u32 *index)
{
	__u32 drawn = class->splits_used == 1 ? 0 : (__u32)(((__u64)bpf_get_prandom_u32() * class->total) >> 32);
#pragma unroll
	for (__u32 i = 0; i < HTTP_SPLITS; i++) {
		if (i >= class->splits_used)
			break;
		*index = i;
		if (drawn < class->splits[i].until)
			return &class->splits[i];
	}
	return 0;
}

static __always_inline struct http_endpoint *http_draw_row(const struct http_cluster *cluster, __u32 *index)
{
	__u32 rows = cluster->count, at = cluster->first + (rows == 1 ? 0 : (__u32)(((__u64)bpf_get_prandom_u32() * rows) >> 32));
	struct http_endpoint *row = bpf_map_lookup_elem(&http_endpoints, &at);
	if (row && row->keep != 0xffffffff && bpf_get_prandom_u32() >= row->keep) {
		at = cluster->first + row->alias;
		row = bpf_map_lookup_elem(&http_endpoints, &at);
	}
	*index = at;
	return row;
}

/* Whether the second has fewer requests under way. */
static __always_inline bool http_is_less_busy(const struct http_endpoint *one, const struct http_endpoint *other)
{
	__u32 a = one->load, b = other->load;
	struct http_load *load = bpf_map_lookup_elem(&http_loads, &a), *other_load = bpf_map_lookup_elem(&http_loads, &b);
	return load && other_load && other_load->under_way < load->under_way;
}

/* One of the cluster's endpoints, by weight; of two drawn the one with fewer requests under way. */
static __always_inline struct http_endpoint *http_draw_endpoint(const struct http_cluster *cluster, __u32 *index)
{
	if (!cluster->count)
		return 0;
	struct http_endpoint *one = http_draw_row(cluster, index);
	if (!one || cluster->balance != HTTP_LEAST_REQUEST || cluster->count < 2)
		return one;
	__u32 other_index = 0;
	struct http_endpoint *other = http_draw_row(cluster, &other_index);
	if (!other || other->load == one->load || !http_is_less_busy(one, other))
		return one;
	*index = other_index;
	return other;
}

static __always_inline bool http_is_out(const struct http_endpoint *row, __u64 now)
{
	__u32 index = row->monitor;
	const struct http_monitor *monitor = bpf_map_lookup_elem(&http_monitors, &index);
	return monitor && now < monitor->out_until_ns;
}

struct http_redraw {
	const struct http_cluster *cluster;
	__u64 now;
	__u32 at, found;
};

static long http_try_draw(__u32 i, struct http_redraw *draw)
{
	__u32 at = 0;
	const struct http_endpoint *row = http_draw_row(draw->cluster, &at);
	if (!row)
		return 1;
	draw->found = !http_is_out(row, draw->now);
	draw->at = at;
	return draw->found;
}

static long http_try_next(__u32 i, struct http_redraw *draw)
{
	__u32 first = draw->cluster->first, count = draw->cluster->count, at = draw->at + 1;
	if (at < first || at >= first + count)
		at = first;
	const struct http_endpoint *row = bpf_map_lookup_elem(&http_endpoints, &at);
	if (!row)
		return 1;
	draw->found = !http_is_out(row, draw->now);
	draw->at = at;
	return draw->found;
}

/* Index of one that is not ejected; HTTP_NOWHERE: none. */
static __always_inline __u32 http_draw_in(const struct http_cluster *cluster, __u64 now)
{
	struct http_redraw draw = { .cluster = cluster, .now = now };
	bpf_loop(HTTP_DRAWS, http_try_draw, &draw, 0);
	if (!draw.found)
		bpf_loop(cluster->count, http_try_next, &draw, 0);
	return draw.found ? draw.at : HTTP_NOWHERE;
}

/* The same of a cluster with outlier detection. Index in http_endpoints; HTTP_NOWHERE: its endpoints are Envoy's to choose. */
HTTP_GLOBAL __u32 http_draw_watched(__u32 of)
{
	const struct http_cluster *cluster = bpf_map_lookup_elem(&http_clusters, &of);
	__u32 detector = cluster ? cluster->detector : 0;
	struct http_ejections *ejections = bpf_map_lookup_elem(&http_ejections, &detector);
	if (!cluster || !ejections || !cluster->count)
		return HTTP_NOWHERE;
	__u32 index = 0;
	/* Another table's endpoints may be others. */
	if (ejections->out || ejections->cluster != of) {
		__u64 now = bpf_ktime_get_ns();
		if ((now >= ejections->look_ns || ejections->cluster != of) && !__sync_val_compare_and_swap(&ejections->busy, 0, 1)) {
			http_look(ejections, detector, of, cluster, now);
			__sync_lock_test_and_set(&ejections->busy, 0);
		}
		__u32 out = ejections->out;
		if (out && out < cluster->panic) {
			if (out > cluster->spare)
				return HTTP_NOWHERE;
			index = http_draw_in(cluster, now);
			if (index == HTTP_NOWHERE || cluster->balance != HTTP_LEAST_REQUEST)
				return index;
			__u32 other_index = http_draw_in(cluster, now);
			const struct http_endpoint *one = bpf_map_lookup_elem(&http_endpoints, &index);
			const struct http_endpoint *other = bpf_map_lookup_elem(&http_endpoints, &other_index);
			return one && other && http_is_less_busy(one, other) ? other_index : index;
		}
	}
	return http_draw_endpoint(cluster, &index) ? index : HTTP_NOWHERE;
}
