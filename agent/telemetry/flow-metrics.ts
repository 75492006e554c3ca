/** Istio's TCP metrics, and round-trip times, as Prometheus reads them. */
import { CONNECTIONS, NO_FLAGS, type IstioMetric } from '../../common/telemetry/istio-metrics.js';
import { MAX_CONNECTION_KEYS } from '../proxy/connection-log.js';
import { addSides, type FlowSide } from '../dataplane/kernel-flows.js';
import type { FlowLabels } from './flow-labels.js';
import { addConnections } from './envoy-connections.js';
import { NO_CONNECTIONS, type ConnectionTotals } from './envoy-connection-stats.js';
import { addEnvoyMetrics } from './envoy-metrics.js';
import { hashOf, type FlowReport } from './flow-series.js';
import type { ConnectionReport } from './flow-telemetry.js';
import { Overridden, type WorkloadOverrides } from './metric-overrides.js';
import { labelText, type PrometheusText } from './prometheus.js';
import { atOnce, inTurns } from './turns.js';

/** ztunnel's, where a connection came to another end than a close: https://github.com/istio/ztunnel/blob/master/src/proxy/metrics.rs */
const FLAGS: readonly { flag: string; of: (totals: FlowSide) => bigint }[] = [
  { flag: 'DENY', of: ({ denied }) => denied },
  { flag: 'CONNECT', of: ({ failed }) => failed },
];
const FAILED = { name: 'istio_tcp_connections_failed_total', help: 'The total number of TCP connections that failed to establish, or that policy ended.' };

const COUNTERS: readonly (IstioMetric & { of: (totals: ConnectionTotals) => bigint })[] = [
  { ...CONNECTIONS.opened, of: ({ opened }) => opened },
  { ...CONNECTIONS.closed, of: ({ closed }) => closed.get(NO_FLAGS) ?? 0n },
  { ...CONNECTIONS.received, of: ({ received }) => received },
  { ...CONNECTIONS.sent, of: ({ sent }) => sent },
];

const SERIES_A_TURN = 128;
const RTT_LABELS = ['reporter', 'source_workload', 'source_workload_namespace', 'destination_workload', 'destination_workload_namespace'] as const;

/** As `addFlowMetricsInTurns`, at once. */
export function addFlowMetrics(text: PrometheusText, report: ConnectionReport, overrides?: WorkloadOverrides): void {
  atOnce(flowMetrics(text, report, overrides));
}

export function addFlowMetricsInTurns(text: PrometheusText, report: ConnectionReport, overrides?: WorkloadOverrides): Promise<void> {
  return inTurns(flowMetrics(text, report, overrides));
}

function* flowMetrics(text: PrometheusText, { kernel, envoy }: ConnectionReport, overrides: WorkloadOverrides = new Map()): Generator<void> {
  const all = yield* sums({ kernel, envoy });
  // Where nobody has changed labels a series has one text, made once for all counters.
  const own: string[] = [];
  if (overrides.size === 0) for (const { labels } of all) if (own.push(labelText(labels)) % SERIES_A_TURN === 0) yield;
  let count = 0;
  for (const { name, help, of } of COUNTERS) {
    const told = new Overridden<bigint>(overrides, (a, b) => a + b);
    for (const [index, { labels, totals }] of all.entries()) {
      if (own[index] === undefined) told.take([name], labels, of(totals));
      else text.addLabelled(name, 'counter', help, of(totals), own[index]);
      if (++count % SERIES_A_TURN === 0) yield;
    }
    if (name === CONNECTIONS.closed.name) for (const { labels, totals } of all) for (const [flags, ended] of totals.closed) if (flags !== NO_FLAGS) told.take([name], { ...labels, response_flags: flags }, ended);
    for (const { labels, totals } of told.sums) text.addLabelled(name, 'counter', help, totals, labels);
    yield;
  }
  for (const { labels, totals } of kernel?.series ?? []) for (const { flag, of } of FLAGS) if (of(totals) > 0n) text.add(FAILED.name, 'counter', FAILED.help, of(totals), { ...labels, response_flags: flag });
  if (envoy) addEnvoyMetrics(text, 'connection', envoy, MAX_CONNECTION_KEYS);
  if (!kernel) return;
  const bounds = kernel.rttBoundsUs.map((us) => us / 1e6);
  for (const { labels, totals } of yield* roundTrips(kernel.series)) {
    text.addHistogram('underpass_tcp_rtt_seconds', 'Smoothed round-trip times of connections without a proxy: each at its end, and once a minute while it is open.', bounds, totals.rtt, Number(totals.rttSumUs) / 1e6, labels);
  }
  text.add('underpass_tcp_entries_held', 'gauge', 'Kernel entries that are in no series yet, since the control plane has not named one of their workloads.', kernel.held);
  text.add('underpass_tcp_retired_dropped_total', 'counter', 'Series that fell since there was no room to keep what pods that are gone had added.', kernel.dropped);
}

/** Of both, each series once. */
function* sums({ kernel, envoy }: ConnectionReport): Generator<void, { labels: FlowLabels; totals: ConnectionTotals }[]> {
  const all = new Map<string, { labels: FlowLabels; totals: ConnectionTotals }>();
  for (const { labels, totals } of kernel?.series ?? []) if (all.set(hashOf(labels), { labels, totals: ofKernel(totals) }).size % SERIES_A_TURN === 0) yield;
  for (const { hash, labels, totals } of envoy?.sums ?? []) {
    const before = all.get(hash);
    all.set(hash, { labels, totals: before ? addConnections(before.totals, totals) : totals });
  }
  return [...all.values()];
}

function ofKernel(side: FlowSide): ConnectionTotals {
  const flagged = FLAGS.filter(({ of }) => of(side) > 0n).map(({ flag, of }) => [flag, of(side)] as const);
  return { ...NO_CONNECTIONS, opened: side.opened, received: side.received, sent: side.sent, closed: new Map([[NO_FLAGS, side.closed], ...flagged]) };
}

/** Fewer labels, so that there are fewer histograms. */
function* roundTrips(series: FlowReport['series']): Generator<void, { labels: FlowLabels; totals: FlowSide }[]> {
  const merged = new Map<string, { labels: FlowLabels; totals: FlowSide }>();
  for (const [index, { labels, totals }] of series.entries()) {
    if (index % SERIES_A_TURN === 0) yield;
    const few = Object.fromEntries(RTT_LABELS.map((name) => [name, labels[name] ?? '']));
    const key = JSON.stringify(few);
    const before = merged.get(key);
    merged.set(key, { labels: few, totals: before ? addSides(before.totals, totals) : totals });
  }
  return [...merged.values()];
}
