/** Istio's HTTP metrics of the kernel's part of the requests, as Prometheus reads them. */
import type { HttpTotals } from '../dataplane/kernel-http-totals.js';
import type { HttpReport } from './http-series.js';
import type { PrometheusText } from './prometheus.js';

/**
 * Upper bounds of all buckets but the last, which Envoy has for milliseconds and bytes alike and Istio leaves as they are:
 * https://github.com/envoyproxy/envoy/blob/v1.40.0/source/common/stats/histogram_impl.cc. The kernel's http_bounds are these.
 */
export const HTTP_BOUNDS: readonly number[] = [0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000, 3_600_000];

/** https://istio.io/latest/docs/reference/config/metrics/ */
const HISTOGRAMS: readonly { name: string; help: string; counts: (totals: HttpTotals) => bigint[]; sum: (totals: HttpTotals) => number }[] = [
  { name: 'istio_request_duration_milliseconds', help: 'The duration of requests, from their head to the end of their answer.', counts: ({ duration }) => duration, sum: ({ durationUs }) => Number(durationUs) / 1_000 },
  { name: 'istio_request_bytes', help: 'The size of requests, heads and bodies.', counts: ({ request }) => request, sum: ({ requestBytes }) => Number(requestBytes) },
  { name: 'istio_response_bytes', help: 'The size of answers, heads and bodies.', counts: ({ answer }) => answer, sum: ({ answerBytes }) => Number(answerBytes) },
];

export function addHttpMetrics(text: PrometheusText, { series, held, dropped }: HttpReport): void {
  for (const { labels, totals } of series) {
    for (const reporter of ['source', 'destination']) {
      const all = { reporter, ...labels };
      text.add('istio_requests_total', 'counter', 'The total number of requests: of those that the kernel moved past Envoy.', totals.requests, all);
      for (const { name, help, counts, sum } of HISTOGRAMS) text.addHistogram(name, help, HTTP_BOUNDS, counts(totals), sum(totals), all);
    }
  }
  text.add('underpass_http_entries_held', 'gauge', 'Kernel entries of requests that are in no series yet, since the control plane has not named one of their workloads.', held);
  text.add('underpass_http_retired_dropped_total', 'counter', 'Series of requests that fell since there was no room to keep what pods that are gone had added.', dropped);
}
