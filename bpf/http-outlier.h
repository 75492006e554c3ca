/*
 * Outlier detection of the fast path, by Envoy's rules: source/common/upstream/outlier_detection_impl.cc of 1.40. Envoy's sweep
 * at each `interval` is reckoned, not run: an endpoint comes back at the first multiple of the interval behind its time, and
 * each whole interval behind that takes one from its factor.
 */
#pragma once

#define HTTP_NOWHERE 0xffffffffu
#define HTTP_UNAVAILABLE 503

struct http_looking {
	__u64 now, first_ns;
	__u32 first, detector;
	__u32 out, reserved;
};

static long http_look_at(__u32 i, struct http_looking *look)
{
	__u32 at = look->first + i;
	const struct http_endpoint *row = bpf_map_lookup_elem(&http_endpoints, &at);
	__u32 index = row ? row->monitor : 0;
	const struct http_monitor *monitor = row ? bpf_map_lookup_elem(&http_monitors, &index) : 0;
	if (!monitor)
		return 1;
	__u64 until = monitor->out_until_ns;
	if (monitor->detector != look->detector || look->now >= until)
		return 0;
	look->out++;
	if (until < look->first_ns)
		look->first_ns = until;
	return 0;
}

/* Counts those of the cluster that are out. By whoever holds `busy`. */
static __always_inline void http_look(struct http_ejections *ejections, __u32 detector, __u32 of, const struct http_cluster *cluster, __u64 now)
{
	struct http_looking look = { .now = now, .first_ns = ~0ull, .first = cluster->first, .detector = detector };
	bpf_loop(cluster->count, http_look_at, &look, 0);
	ejections->look_ns = look.first_ns;
	ejections->out = look.out;
	ejections->cluster = of;
}

/* If so many may be out. By whoever holds `busy`. */
static __always_inline void http_eject(struct http_ejections *ejections, const struct http_detector *detector, struct http_monitor *monitor, __u32 index, __u64 now, bool gateway)
{
	__u64 interval = detector->interval_ns, until = monitor->out_until_ns;
	__u32 out = ejections->out;
	if ((__u64)(out + 1) * 100 > (__u64)detector->most_percent * detector->hosts && (out || !detector->always_one)) {
		ejections->overflows++;
		return;
	}
	if (!interval || !detector->base_ns)
		return;
	if (until) {
		__u64 quiet = (now - until) / interval;
		monitor->times = quiet < monitor->times ? monitor->times - quiet : 0;
	}
	if (monitor->times * detector->base_ns < detector->longest_ns + detector->base_ns)
		monitor->times++;
	__u64 span = monitor->times * detector->base_ns;
	if (span > detector->longest_ns)
		span = detector->longest_ns;
	until = (now + span + interval - 1) / interval * interval;
	monitor->ejections++;
	monitor->ejected = 1;
	monitor->out_until_ns = until;
	ejections->out = out + 1;
	if (!out || until < ejections->look_ns)
		ejections->look_ns = until;
	if (gateway)
		ejections->by_gateway++;
	else
		ejections->by_5xx++;
	/* One that finds no room is missing in the log alone. */
	struct http_event *event = bpf_ringbuf_reserve(&http_events, sizeof(*event), 0);
	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->type = HTTP_EJECTED;
	event->orderly = gateway ? HTTP_EJECTED_FOR_GATEWAY : HTTP_EJECTED_FOR_5XX;
	event->cookie = index;
	bpf_ringbuf_submit(event, 0);
}

/* An endpoint has answered, or an exchange with it failed, which is HTTP_UNAVAILABLE. `index`: in http_monitors, not 0. */
HTTP_GLOBAL int http_judge_endpoint(__u32 index, __u32 status)
{
	struct http_monitor *monitor = index ? bpf_map_lookup_elem(&http_monitors, &index) : 0;
	if (!monitor)
		return 0;
	/* Nearly always. */
	if (status < 500 && !monitor->failures && !monitor->gateway_failures)
		return 0;
	__u64 now = bpf_ktime_get_ns();
	if (monitor->ejected && now >= monitor->out_until_ns) {
		monitor->ejected = 0;
		monitor->failures = 0;
		monitor->gateway_failures = 0;
	}
	bool gateway = status >= 502 && status <= 504;
	if (!gateway && monitor->gateway_failures)
		monitor->gateway_failures = 0;
	if (status < 500) {
		if (monitor->failures)
			monitor->failures = 0;
		return 0;
	}
	__sync_fetch_and_add(&monitor->failures, 1);
	if (gateway)
		__sync_fetch_and_add(&monitor->gateway_failures, 1);
	if (monitor->ejected)
		return 0;
	__u32 of = monitor->detector;
	const struct http_detector *detector = of ? bpf_map_lookup_elem(&http_detectors, &of) : 0;
	struct http_ejections *ejections = bpf_map_lookup_elem(&http_ejections, &of);
	if (!detector || !ejections)
		return 0;
	bool for_gateway = detector->consecutive_gateway && monitor->gateway_failures >= detector->consecutive_gateway;
	bool for_5xx = detector->consecutive_5xx && monitor->failures >= detector->consecutive_5xx;
	if (!for_gateway && !for_5xx)
		return 0;
	__u32 row = detector->cluster;
	const struct http_cluster *cluster = bpf_map_lookup_elem(&http_clusters, &row);
	/* Whoever comes too early is judged at the next failure. */
	if (!cluster || cluster->detector != of || __sync_val_compare_and_swap(&ejections->busy, 0, 1))
		return 0;
	http_look(ejections, of, row, cluster, now);
	if (for_gateway)
		monitor->gateway_failures = 0;
	if (for_5xx)
		monitor->failures = 0;
	http_eject(ejections, detector, monitor, index, now, for_gateway);
	__sync_lock_test_and_set(&ejections->busy, 0);
	return 0;
}
