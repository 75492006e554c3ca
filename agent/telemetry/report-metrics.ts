/** How reports fare: spans, lines of access logs, captures. */
import type { ReportCounts } from '../proxy/envoy-reports.js';
import type { CaptureCounts } from './capture-stream.js';
import type { PrometheusText } from './prometheus.js';

export interface Reports {
  /** Of Envoy's; undefined: it never said. */
  envoy?: { readonly counts: ReportCounts | undefined; refresh(): Promise<void> };
  captures: CaptureCounts | undefined;
}

export function addReportMetrics(text: PrometheusText, { envoy, captures }: Reports): void {
  const counts = envoy?.counts;
  if (counts) {
    for (const [tracer, value] of counts.spans) text.add('underpass_envoy_spans_total', 'counter', 'Spans that the shared Envoy sent, or gave up to send.', value, { tracer });
    for (const [tracer, value] of counts.spansDropped) text.add('underpass_envoy_spans_dropped_total', 'counter', 'Spans of the shared Envoy that were dropped before they were sent, since too many waited.', value, { tracer });
    for (const [result, value] of Object.entries(counts.batches)) text.add('underpass_envoy_span_batches_total', 'counter', 'Batches of spans (of Zipkin at most five) by what became of them: taken by the collector, failed, or dropped since too many were on their way.', value, { result });
    for (const [reason, value] of Object.entries(counts.linesDropped)) text.add('underpass_envoy_access_log_dropped_total', 'counter', 'Lines of access logs that the shared Envoy dropped: over the rate, or no room on the way to a log service.', value, { reason });
  }
  text.add('underpass_captures_total', 'counter', 'Captures of pods\' payload that were begun.', captures?.captures ?? 0);
  text.add('underpass_capture_bytes_total', 'counter', 'Bytes of payload in captures that have ended.', captures?.bytes ?? 0);
  text.add('underpass_capture_bytes_cut_total', 'counter', 'Bytes of payload that captures left out: over their rate, or nobody read.', captures?.bytesCut ?? 0);
}
