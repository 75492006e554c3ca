/**
 * The node's traffic by who speaks with whom and by which way: the same sums that Istio's series are made of, before they are put
 * together. A reader of this takes nothing from a scrape.
 */
import type { TrafficEdge, TrafficProtocol, TrafficReport, TrafficTotals, TrafficWay } from '../../common/traffic.js';
import { TunnelProtocol } from '../../proto/generated/istio/workload/workload.js';
import type { AdminAnswer, AdminRoutes } from '../admin/server.js';
import type { FlowSide } from '../dataplane/kernel-flows.js';
import type { HttpTotals } from '../dataplane/kernel-http-totals.js';
import type { ConnectionTotals } from './envoy-connection-stats.js';
import { FlowDirectory, UNKNOWN, type FlowLabels, type KnownWorkloads } from './flow-labels.js';
import type { FlowTelemetry } from './flow-telemetry.js';
import { HTTP_BOUNDS } from './http-bounds.js';
import type { SidecarTraffic } from './sidecar-traffic.js';
import { TrafficEnds } from './traffic-ends.js';

/** How old an answer may be: more often nothing is counted up. */
const MAX_AGE_MS = 900;
/** Envoy merges its threads' counts every five seconds. */
const ASK_ENVOY_EVERY_MS = 2_500;
/** Series that are added up between two turns of everybody else. */
const SERIES_A_TURN = 256;
const PIECE_EDGES = 256;

export interface TrafficOptions {
  node: string;
  telemetry: () => (Pick<FlowTelemetry, 'refresh' | 'report' | 'httpReport'> & { readonly workloads: KnownWorkloads }) | undefined;
  /** Of pods with sidecars; absent: nobody asks them. */
  sidecars?: Pick<SidecarTraffic, 'series'>;
  now?: () => number;
}

/** Of one reporter and way, before it is known what of Envoy's part left the node in a tunnel. */
interface Sum {
  edge: TrafficEdge;
  /** Of the destination, as flow-labels.ts looks it up. */
  name: string;
  /** The caller proved who it is: it is not of this node. */
  isProven: boolean;
}

export class Traffic {
  readonly #options: TrafficOptions;
  readonly #now: () => number;
  #made: { at: number; report: Promise<TrafficReport> } | undefined;
  #askedAt = -Infinity;
  #directory: FlowDirectory | undefined;
  #ends: TrafficEnds | undefined;

  constructor(options: TrafficOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  readonly routes: AdminRoutes = {
    '/v1/traffic': async (): Promise<AdminAnswer> => ({ contentType: 'application/json', pieces: pieces(await this.report()) }),
  };

  /** Who asks while it is young has the same one. */
  async report(): Promise<TrafficReport> {
    const now = this.#now();
    if (!this.#made || now - this.#made.at >= MAX_AGE_MS) {
      const made = { at: now, report: this.#make() };
      this.#made = made;
      made.report.catch(() => {
        if (this.#made === made) this.#made = undefined;
      });
    }
    return this.#made.report;
  }

  async #make(): Promise<TrafficReport> {
    const telemetry = this.#options.telemetry();
    const nothing: TrafficReport = { node: this.#options.node, requestBoundsMs: HTTP_BOUNDS, roundTripBoundsMs: [], edges: [] };
    if (!telemetry) return nothing;
    if (this.#now() - this.#askedAt >= ASK_ENVOY_EVERY_MS) {
      this.#askedAt = this.#now();
      await telemetry.refresh();
    }
    const sums = new Map<string, Sum>();
    const ends = (this.#ends ??= new TrafficEnds(telemetry.workloads));
    const connections = await telemetry.report({ isPeek: true });
    const requests = await telemetry.httpReport({ isPeek: true });
    let turn = 0;
    const take = async (reporter: string, way: TrafficWay, labels: FlowLabels, totals: TrafficTotals): Promise<void> => {
      add(sums, ends, reporter, way, labels, totals);
      if (++turn % SERIES_A_TURN === 0) await new Promise(setImmediate);
    };
    for (const { labels, totals } of connections.kernel?.series ?? []) await take(labels['reporter'] ?? '', 'kernel', labels, ofSide(totals));
    for (const { reporter, labels, totals } of connections.envoy?.sums ?? []) await take(reporter, 'envoy', labels, ofConnections(totals));
    // The kernel counts for both reporters, and one of them is enough.
    for (const { labels, totals } of requests.kernel?.series ?? []) await take('source', 'fast-path', labels, ofRequests(totals, labels));
    for (const { reporter, labels, totals } of requests.envoy?.sums ?? []) await take(reporter, 'envoy', labels, ofRequests(totals, labels));
    for (const { reporter, labels, totals } of (await this.#options.sidecars?.series()) ?? []) await take(reporter, 'sidecar', labels, totals);
    return { ...nothing, roundTripBoundsMs: (connections.kernel?.rttBoundsUs ?? []).map((us) => us / 1_000), edges: this.#split([...sums.values()], telemetry.workloads) };
  }

  /**
   * Envoy counts what it sends through a tunnel as all else. What stayed on the node it counted at both ends, so that of what was sent
   * to a workload that takes HBONE the rest left by it.
   */
  #split(sums: readonly Sum[], workloads: KnownWorkloads): TrafficEdge[] {
    const ofEnvoy = sums.filter(({ edge }) => edge.way === 'envoy');
    const arrived = new Map(ofEnvoy.filter(({ edge, isProven }) => edge.reporter === 'destination' && !isProven).map((sum) => [endsOf(sum.edge), sum.edge.totals]));
    this.#directory ??= new FlowDirectory(workloads);
    if (ofEnvoy.length > 0 && workloads.synced) this.#directory.prepare([], new Set(ofEnvoy.map(({ name }) => name)));
    const takesHbone = ({ name }: Sum): boolean => this.#directory?.named(name)?.tunnel_protocol === TunnelProtocol.HBONE;
    const edges: TrafficEdge[] = [];
    for (const sum of sums) {
      const { edge } = sum;
      if (edge.way !== 'envoy' || !takesHbone(sum)) edges.push(edge);
      else if (edge.reporter === 'destination') edges.push(sum.isProven ? { ...edge, way: 'hbone' } : edge);
      else {
        const stayed = arrived.get(endsOf(edge));
        const left = stayed ? minus(edge.totals, stayed) : edge.totals;
        if (isSome(left)) edges.push({ ...edge, way: 'hbone', totals: left });
        if (stayed) edges.push({ ...edge, totals: isSome(left) ? minus(edge.totals, left) : edge.totals });
      }
    }
    return edges;
  }
}

function add(sums: Map<string, Sum>, ends: TrafficEnds, reporter: string, way: TrafficWay, labels: FlowLabels, totals: TrafficTotals): void {
  const label = (name: string): string => labels[name] ?? UNKNOWN;
  // What found no room in the series has no ends.
  if (labels['otel_metric_overflow'] !== undefined || (reporter !== 'source' && reporter !== 'destination')) return;
  const isProven = way === 'envoy' && reporter === 'destination' && label('connection_security_policy') === 'mutual_tls';
  const protocol = label('request_protocol');
  const edge: TrafficEdge = {
    reporter, way, protocol: protocol === 'tcp' || protocol === 'grpc' ? protocol : 'http', source: ends.of('source', labels), destination: ends.of('destination', labels),
    service: { namespace: label('destination_service_namespace'), name: label('destination_service_name') }, totals,
  };
  const key = `${reporter}\0${way}\0${isProven}\0${endsOf(edge)}`;
  const before = sums.get(key);
  if (before) before.edge.totals = plus(before.edge.totals, totals);
  else {
    const known = (name: string): string => (label(name) === UNKNOWN ? '' : label(name));
    sums.set(key, { edge, isProven, name: ['destination_workload', 'destination_workload_namespace', 'destination_canonical_service', 'destination_canonical_revision', 'destination_cluster'].map(known).join(';') });
  }
}

function endsOf({ protocol, source, destination, service }: TrafficEdge): string {
  return [protocol, source.what, source.namespace, source.workload, source.app, destination.what, destination.namespace, destination.workload, destination.app, service.namespace, service.name].join('\0');
}

function ofSide({ opened, denied, failed, received, sent, rtt }: FlowSide): TrafficTotals {
  return { count: Number(opened), failed: Number(denied + failed), received: Number(received), sent: Number(sent), times: rtt.map(Number) };
}

/** Of Envoy's flags those that say how a connection ended that had come about: one of both ends closed it, or was told to. */
export const ENDINGS: ReadonlySet<string> = new Set(['', '-', 'DC', 'DR', 'DT', 'LR', 'SI', 'UC', 'UR']);

function ofConnections({ opened, received, sent, closed }: ConnectionTotals): TrafficTotals {
  let failed = 0;
  for (const [flags, count] of closed) if (!flags.split(',').every((flag) => ENDINGS.has(flag))) failed += Number(count);
  return { count: Number(opened), failed, received: Number(received), sent: Number(sent), times: [] };
}

function ofRequests({ requests, requestBytes, answerBytes, duration }: HttpTotals, labels: FlowLabels): TrafficTotals {
  const [status, grpcStatus] = [Number(labels['response_code']), labels['grpc_response_status']];
  const hasFailed = status >= 500 || status === 0 || (grpcStatus !== undefined && grpcStatus !== '' && grpcStatus !== '0');
  return { count: Number(requests), failed: hasFailed ? Number(requests) : 0, received: Number(requestBytes), sent: Number(answerBytes), times: duration.map(Number) };
}

function combine(a: TrafficTotals, b: TrafficTotals, of: (x: number, y: number) => number): TrafficTotals {
  const times = Array.from({ length: Math.max(a.times.length, b.times.length) }, (_, index) => of(a.times[index] ?? 0, b.times[index] ?? 0));
  return { count: of(a.count, b.count), failed: of(a.failed, b.failed), received: of(a.received, b.received), sent: of(a.sent, b.sent), times };
}
const plus = (a: TrafficTotals, b: TrafficTotals): TrafficTotals => combine(a, b, (x, y) => x + y);
const minus = (a: TrafficTotals, b: TrafficTotals): TrafficTotals => combine(a, b, (x, y) => Math.max(0, x - y));
/** Bytes alone are of heads that the two ends see differently. */
const isSome = ({ count }: TrafficTotals): boolean => count > 0;

function* pieces({ edges, ...rest }: TrafficReport): Generator<string> {
  yield `${JSON.stringify(rest).slice(0, -1)},"edges":[`;
  for (let at = 0; at < edges.length; at += PIECE_EDGES) yield `${at === 0 ? '' : ','}${edges.slice(at, at + PIECE_EDGES).map((edge) => JSON.stringify(edge)).join()}`;
  yield ']}\n';
}
