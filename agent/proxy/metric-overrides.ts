/** What Telemetry says of the metrics of a node's pods: the control plane tells it in the metadata of the listeners of a pod's class (pilot/telemetry/telemetry-generator.ts). */
import type { SidecarState } from '../xds/sidecar-stream.js';

/** Of a metric: not told; or labels in place of its own, null: without that one; a list is joined, with what another label of the series says. */
export type MetricOverride = 'off' | Readonly<Record<string, string | null | readonly (string | { label: string })[]>>;
/** By the metric's name. */
export type MetricOverrides = Readonly<Record<string, MetricOverride>>;

const METADATA = 'underpass.metrics';
const LISTENERS = { source: 'virtualOutbound', destination: 'virtualInbound' } as const;

/** @param states of the pod's class @param reporter what the pod is to those metrics */
export function overridesOf(states: readonly SidecarState[], reporter: keyof typeof LISTENERS): MetricOverrides | undefined {
  for (const { listeners } of states) {
    const found: unknown = listeners.get(LISTENERS[reporter])?.message.metadata?.filter_metadata[METADATA];
    if (typeof found === 'object' && found !== null) return found as MetricOverrides;
  }
  return undefined;
}
