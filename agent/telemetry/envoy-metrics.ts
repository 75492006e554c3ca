/** How reading Envoy's part of the series goes. */
import type { EnvoyReport } from './envoy-sums.js';
import type { PrometheusText } from './prometheus.js';

/** @param what is counted @param maxKeys by which Envoy counts them */
export function addEnvoyMetrics(text: PrometheusText, what: 'request' | 'connection' | 'message', { isRead, keys, held, lost, dropped }: EnvoyReport<unknown>, maxKeys: number): void {
  text.add(`underpass_envoy_${what}s_read`, 'gauge', `Whether Envoy said how many ${what}s it had had when it was last asked; if not, its part of the series of ${what}s is what it was before.`, Number(isRead));
  text.add(`underpass_envoy_${what}_keys`, 'gauge', `Combinations of pods, services and endings by which Envoy counts ${what}s; at ${maxKeys} it counts none of others.`, keys);
  text.add(`underpass_envoy_${what}_keys_held`, 'gauge', 'Such combinations that are in no series yet, since the control plane has not named one of their workloads.', held);
  text.add(`underpass_envoy_${what}s_lost_total`, 'counter', `What Envoy counted of ${what}s and is in no series: nobody knew any more whose they were.`, lost);
  text.add('underpass_metrics_series_dropped_total', 'counter', 'Series of Istio\'s metrics that found no room and are added up in the one with otel_metric_overflow="true".', dropped, { of: `${what}s` });
}
