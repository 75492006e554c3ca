/** Istio's HTTP metrics, each series the sum of the kernel's part of the requests and of Envoy's, as Prometheus reads them. */
import { MESSAGES, REQUEST_HISTOGRAMS, REQUESTS, type IstioMetric } from '../../common/telemetry/istio-metrics.js';
import { addTotals, type HttpTotals } from '../dataplane/kernel-http-totals.js';
import { MAX_MESSAGE_KEYS, MAX_REQUEST_KEYS } from '../proxy/request-log.js';
import { addEnvoyMetrics } from './envoy-metrics.js';
import { addMessages, type MessageTotals } from './envoy-messages.js';
import { HTTP_BOUNDS } from './http-bounds.js';
import type { RequestReport } from './flow-telemetry.js';
import type { FlowLabels } from './flow-labels.js';
import { Overridden, type WorkloadOverrides } from './metric-overrides.js';
import { labelText, type PrometheusText } from './prometheus.js';
import { atOnce, inTurns } from './turns.js';

const HISTOGRAMS: readonly (IstioMetric & { counts: (totals: HttpTotals) => bigint[]; sum: (totals: HttpTotals) => number })[] = [
  { ...REQUEST_HISTOGRAMS.duration, counts: ({ duration }) => duration, sum: ({ durationUs }) => Number(durationUs) / 1_000 },
  { ...REQUEST_HISTOGRAMS.request, counts: ({ request }) => request, sum: ({ requestBytes }) => Number(requestBytes) },
  { ...REQUEST_HISTOGRAMS.answer, counts: ({ answer }) => answer, sum: ({ answerBytes }) => Number(answerBytes) },
];

const REPORTERS = ['source', 'destination'] as const;
/** Series between two looks at whether it is others' turn. */
const SERIES_A_TURN = 32;

/** As `addHttpMetrics`, at once. */
export function addHttpMetrics(text: PrometheusText, report: RequestReport, overrides?: WorkloadOverrides): void {
  atOnce(httpMetrics(text, report, overrides));
}

/** Takes several turns: there may be thousands of series. */
export function addHttpMetricsInTurns(text: PrometheusText, report: RequestReport, overrides?: WorkloadOverrides): Promise<void> {
  return inTurns(httpMetrics(text, report, overrides));
}

type Tell<T> = (text: PrometheusText, totals: T, labels: string) => void;

/** By the metric's name. */
const OF_REQUESTS: ReadonlyMap<string, Tell<HttpTotals>> = new Map([
  [REQUESTS.name, (text: PrometheusText, totals: HttpTotals, labels: string) => text.addLabelled(REQUESTS.name, 'counter', REQUESTS.help, totals.requests, labels)],
  ...HISTOGRAMS.map(({ name, help, counts, sum }) => [name, (text: PrometheusText, totals: HttpTotals, labels: string) => text.addHistogram(name, help, HTTP_BOUNDS, counts(totals), sum(totals), labels)] as const),
]);
const OF_MESSAGES: ReadonlyMap<string, Tell<MessageTotals>> = new Map((['request', 'response'] as const).map((of) => [MESSAGES[of].name, (text: PrometheusText, totals: MessageTotals, labels: string) => text.addLabelled(MESSAGES[of].name, 'counter', MESSAGES[of].help, totals[of], labels)]));

function* told<T>(text: PrometheusText, all: Iterable<{ reporter: string; labels: FlowLabels; totals: T }>, metrics: ReadonlyMap<string, Tell<T>>, add: (a: T, b: T) => T, overrides: WorkloadOverrides): Generator<void> {
  let count = 0;
  const changed = overrides.size > 0 ? new Overridden(overrides, add) : undefined;
  for (const { reporter, labels, totals } of all) {
    if (changed) changed.take([...metrics.keys()], { reporter, ...labels }, totals);
    else {
      const own = labelText({ reporter, ...labels });
      for (const tell of metrics.values()) tell(text, totals, own);
    }
    if (++count % SERIES_A_TURN === 0) yield;
  }
  for (const { name, labels, totals } of changed?.sums ?? []) {
    metrics.get(name)!(text, totals, labels);
    if (++count % SERIES_A_TURN === 0) yield;
  }
}

function* httpMetrics(text: PrometheusText, { kernel, envoy, messages }: RequestReport, overrides: WorkloadOverrides = new Map()): Generator<void> {
  yield* told(text, sums({ kernel, envoy }), OF_REQUESTS, addTotals, overrides);
  yield* told(text, messages?.sums ?? [], OF_MESSAGES, addMessages, overrides);
  if (kernel) {
    text.add('underpass_http_entries_held', 'gauge', 'Kernel entries of requests that are in no series yet, since the control plane has not named one of their workloads.', kernel.held);
    text.add('underpass_http_retired_dropped_total', 'counter', 'Series of requests that fell since there was no room to keep what pods that are gone had added.', kernel.dropped);
  }
  if (envoy) addEnvoyMetrics(text, 'request', envoy, MAX_REQUEST_KEYS);
  if (messages) addEnvoyMetrics(text, 'message', messages, MAX_MESSAGE_KEYS);
}

/** The kernel counts for both reporters. */
function sums({ kernel, envoy }: Pick<RequestReport, 'kernel' | 'envoy'>): Iterable<{ reporter: string; labels: FlowLabels; totals: HttpTotals }> {
  const all = new Map<string, { reporter: string; labels: FlowLabels; totals: HttpTotals }>();
  for (const { hash, labels, totals } of kernel?.series ?? []) for (const reporter of REPORTERS) all.set(`${reporter} ${hash}`, { reporter, labels, totals });
  for (const { reporter, hash, labels, totals } of envoy?.sums ?? []) {
    const before = all.get(`${reporter} ${hash}`);
    all.set(`${reporter} ${hash}`, { reporter, labels, totals: before ? addTotals(before.totals, totals) : totals });
  }
  return all.values();
}
