/** What Telemetry's `metrics` say of a proxy's metrics: the more specific one counts, by metric, side and label. */
import type { Telemetry, TelemetryMetrics } from '../../common/kube/types.js';
import { CONNECTIONS, MESSAGES, REQUEST_HISTOGRAMS, REQUESTS } from '../../common/telemetry/istio-metrics.js';
import { SERIES_LABELS, tagTerms, type TagTerm } from '../../common/telemetry/metric-tags.js';
import type { MeshConfig } from '../model/mesh.js';
import { meant, type Side } from './layers.js';
import type { MetricOverride } from './metrics.js';

/** Istio's words for its metrics. */
const NAMES: Readonly<Record<string, string>> = {
  REQUEST_COUNT: REQUESTS.name, REQUEST_DURATION: REQUEST_HISTOGRAMS.duration.name, REQUEST_SIZE: REQUEST_HISTOGRAMS.request.name, RESPONSE_SIZE: REQUEST_HISTOGRAMS.answer.name,
  TCP_OPENED_CONNECTIONS: CONNECTIONS.opened.name, TCP_CLOSED_CONNECTIONS: CONNECTIONS.closed.name, TCP_SENT_BYTES: CONNECTIONS.sent.name, TCP_RECEIVED_BYTES: CONNECTIONS.received.name,
  GRPC_REQUEST_MESSAGES: MESSAGES.request.name, GRPC_RESPONSE_MESSAGES: MESSAGES.response.name,
};

/** Istio's built-in provider of this name needs no definition. */
const PROMETHEUS = 'prometheus';

/** What a node's agent is told: by the metric's name. A list's parts are joined; a `label` is the series' own. */
export type MetricsNote = Readonly<Record<string, 'off' | Readonly<Record<string, string | null | readonly (string | { label: string })[]>>>>;

interface Merged {
  isOff: boolean;
  tags: Record<string, readonly TagTerm[] | null>;
}

/** @param layers from the least specific to the most @returns undefined: Prometheus is given no metrics */
export function metricOverrides({ defaultMetricsProviders, extensionProviders }: MeshConfig, layers: readonly Telemetry[], side: Side): Readonly<Record<string, MetricOverride>> | undefined {
  const isPrometheus = (name: string): boolean => name === PROMETHEUS || extensionProviders.some((provider) => provider.name === name && provider.prometheus !== undefined);
  let isAsked = defaultMetricsProviders.some(isPrometheus);
  const merged = new Map<string, Merged>();
  for (const { spec } of layers) {
    const entries = spec?.metrics ?? [];
    const providers = entries.flatMap((entry) => entry.providers ?? []);
    if (providers.length > 0) isAsked = providers.some(({ name }) => isPrometheus(name));
    for (const entry of entries) if (!entry.providers?.length || entry.providers.some(({ name }) => isPrometheus(name))) merge(merged, entry, side);
  }
  if (!isAsked) return undefined;
  return Object.fromEntries([...merged].map(([name, { isOff, tags }]) => [name, isOff ? 'off' as const : tags]));
}

function merge(merged: Map<string, Merged>, { overrides = [] }: TelemetryMetrics, side: Side): void {
  for (const { match, disabled, tagOverrides = {} } of overrides) {
    if (match?.customMetric || !meant(match?.mode, side)) continue;
    const names = match?.metric && match.metric !== 'ALL_METRICS' ? [NAMES[match.metric] ?? match.metric] : Object.values(NAMES);
    for (const name of names) {
      let found = merged.get(name);
      if (!found) merged.set(name, (found = { isOff: false, tags: {} }));
      if (disabled !== undefined) found.isOff = disabled;
      for (const [tag, { operation = 'UPSERT', value = '' }] of Object.entries(tagOverrides)) {
        const terms = operation === 'REMOVE' ? undefined : tagTerms(value);
        if (operation === 'REMOVE') found.tags[tag] = null;
        // What can't be said stays as it is; the object's problems name it.
        else if (terms) found.tags[tag] = terms;
      }
    }
  }
}

/** For the node's agent, which makes labels itself and knows of single requests what their series say: metrics that are off, and labels that are made of texts and of that, or are left out. */
export function forAgents(overrides: Readonly<Record<string, MetricOverride>> | undefined): MetricsNote {
  if (!overrides) return Object.fromEntries(Object.values(NAMES).map((name) => [name, 'off']));
  const told = Object.entries(overrides).map(([name, override]) => {
    if (override === 'off') return [name, override] as const;
    const tags = Object.entries(override).flatMap(([tag, terms]) => {
      const value = terms && noted(terms);
      return value === undefined ? [] : [[tag, value] as const];
    });
    return [name, Object.fromEntries(tags)] as const;
  });
  return Object.fromEntries(told.filter(([, override]) => override === 'off' || Object.keys(override).length > 0));
}

/** Undefined: the agent can't know it. */
function noted(terms: readonly TagTerm[]): string | (string | { label: string })[] | undefined {
  const parts = terms.map((term) => ('text' in term ? term.text : SERIES_LABELS[term.command]));
  if (parts.some((part) => part === undefined)) return undefined;
  return parts.every((part) => typeof part === 'string') ? parts.join('') : (parts as (string | { label: string })[]);
}
