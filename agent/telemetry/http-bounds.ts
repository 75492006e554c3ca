/**
 * Upper bounds of all buckets but the last, which Envoy has for milliseconds and bytes alike and Istio leaves as they are:
 * https://github.com/envoyproxy/envoy/blob/v1.40.0/source/common/stats/histogram_impl.cc. The kernel's http_bounds are these.
 */
export const HTTP_BOUNDS: readonly number[] = [0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000, 3_600_000];
