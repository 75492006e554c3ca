/** Rates out of what agents have counted up: the difference of two readings of each, of all nodes put together. */
import type { Graph, GraphEdge, TrafficEdge, TrafficEnd, TrafficReport, TrafficTotals } from '../../common/traffic.js';

/** Envoy's threads are merged every five seconds: over less than this rates of steady traffic would go up and down. */
const WINDOW_MS = 15_000;
/** Of one node that are kept. */
const MAX_READINGS = 24;
const NOTHING: TrafficTotals = { count: 0, failed: 0, received: 0, sent: 0, times: [] };

interface Reading {
  atMs: number;
  totals: ReadonlyMap<string, TrafficTotals>;
}

interface NodeReadings {
  report: TrafficReport;
  edges: ReadonlyMap<string, TrafficEdge>;
  /** The oldest first. */
  readings: Reading[];
}

/** Each second, and ever since. */
interface Change {
  rate: TrafficTotals;
  total: number;
}

export class TrafficWindow {
  readonly #nodes = new Map<string, NodeReadings>();

  /** @param atMs of a clock that never goes back */
  add(report: TrafficReport, atMs: number): void {
    const edges = new Map(report.edges.map((edge) => [keyOf(edge), edge]));
    const readings = this.#nodes.get(report.node)?.readings ?? [];
    readings.push({ atMs, totals: new Map([...edges].map(([key, { totals }]) => [key, totals])) });
    // One that is older than the window stays, for rates of the whole of it.
    while (readings.length > MAX_READINGS || (readings.length > 2 && readings[1]!.atMs <= atMs - WINDOW_MS)) readings.shift();
    this.#nodes.set(report.node, { report, edges, readings });
  }

  /** What is not asked any more, or does not answer, has no traffic that anybody knows of. */
  keepOnly(nodes: ReadonlySet<string>): void {
    for (const node of this.#nodes.keys()) if (!nodes.has(node)) this.#nodes.delete(node);
  }

  graph(): Pick<Graph, 'seconds' | 'ends' | 'edges'> {
    const byEdge = new Map<string, { edge: TrafficEdge; of: Record<TrafficEdge['reporter'], Change> }>();
    let seconds = 0;
    let bounds: Pick<TrafficReport, 'requestBoundsMs' | 'roundTripBoundsMs'> = { requestBoundsMs: [], roundTripBoundsMs: [] };
    for (const { report, edges, readings } of this.#nodes.values()) {
      const [first, last] = [readings[0]!, readings.at(-1)!];
      const passed = (last.atMs - first.atMs) / 1_000;
      seconds = Math.max(seconds, passed);
      bounds = { requestBoundsMs: report.requestBoundsMs, roundTripBoundsMs: report.roundTripBoundsMs.length > 0 ? report.roundTripBoundsMs : bounds.roundTripBoundsMs };
      for (const [key, edge] of edges) {
        const name = endsOf(edge);
        let known = byEdge.get(name);
        if (!known) byEdge.set(name, (known = { edge, of: { source: { rate: NOTHING, total: 0 }, destination: { rate: NOTHING, total: 0 } } }));
        const change = known.of[edge.reporter];
        if (passed > 0) change.rate = plus(change.rate, rateOf(first.totals.get(key), edge.totals, passed));
        change.total += edge.totals.count;
      }
    }
    const ends: TrafficEnd[] = [];
    const indexes = new Map<string, number>();
    const indexOf = (end: TrafficEnd): number => {
      const name = nameOf(end);
      let index = indexes.get(name);
      if (index === undefined) indexes.set(name, (index = ends.push(end) - 1));
      return index;
    };
    const all = [...byEdge.values()];
    // Where the source's side is known it alone knows which way was taken; the other end's word would count all twice.
    const told = new Set(all.filter(({ of }) => of.source.total > 0).map(({ edge }) => pairOf(edge)));
    const toldOf = new Set(all.filter(({ of }) => of.source.total > 0).map(({ edge }) => callersOf(edge)));
    const carried = new Set(all.filter(({ edge, of }) => edge.way === 'hbone' && of.source.total > 0).map(({ edge }) => tunnelOf(edge)));
    const edges = all.flatMap(({ edge, of }): GraphEdge[] => {
      // The other end counts the tunnel, too, in which what the source tells of went.
      if (edge.way === 'hbone' && edge.protocol === 'tcp' && of.source.total === 0 && carried.has(tunnelOf(edge))) return [];
      // One of several workloads has called: the one that it was tells of it.
      if (edge.source.what === 'account' && toldOf.has(callersOf(edge))) return [];
      const { rate, total } = told.has(pairOf(edge)) ? of.source : of.destination;
      if (total === 0) return [];
      const times = edge.protocol === 'tcp' ? bounds.roundTripBoundsMs : bounds.requestBoundsMs;
      const [p50, p99] = [quantile(0.5, rate.times, times), quantile(0.99, rate.times, times)];
      const service = edge.service.name === 'unknown' ? '' : `${edge.service.namespace}/${edge.service.name}`;
      return [{
        from: indexOf(edge.source), to: indexOf(edge.destination), service, protocol: edge.protocol, way: edge.way, rate: rate.count, failed: rate.count > 0 ? Math.min(1, rate.failed / rate.count) : 0,
        received: rate.received, sent: rate.sent, ...(p50 === undefined ? {} : { p50 }), ...(p99 === undefined ? {} : { p99 }), total,
      }];
    });
    return { seconds, ends, edges };
  }
}

const nameOf = ({ what, namespace, workload, app }: TrafficEnd): string => `${what ?? ''}\0${namespace}\0${workload}\0${app}`;
const pairOf = ({ protocol, source, destination, service }: TrafficEdge): string => [protocol, nameOf(source), nameOf(destination), service.namespace, service.name].join('\0');
const tunnelOf = ({ source, destination }: TrafficEdge): string => `${nameOf(source)}\0${nameOf(destination)}`;
/** A namespace's callers of one destination. */
const callersOf = ({ protocol, source, destination }: TrafficEdge): string => [protocol, source.namespace, nameOf(destination)].join('\0');
const endsOf = (edge: TrafficEdge): string => `${edge.way}\0${pairOf(edge)}`;
const keyOf = (edge: TrafficEdge): string => `${edge.reporter}\0${endsOf(edge)}`;

/** What has fallen began anew: its agent did. */
function rateOf(before: TrafficTotals | undefined, now: TrafficTotals, seconds: number): TrafficTotals {
  const base = before && before.count <= now.count ? before : NOTHING;
  const of = (x: number, y: number): number => Math.max(0, x - y) / seconds;
  return { count: of(now.count, base.count), failed: of(now.failed, base.failed), received: of(now.received, base.received), sent: of(now.sent, base.sent), times: now.times.map((count, index) => of(count, base.times[index] ?? 0)) };
}

function plus(a: TrafficTotals, b: TrafficTotals): TrafficTotals {
  const times = Array.from({ length: Math.max(a.times.length, b.times.length) }, (_, index) => (a.times[index] ?? 0) + (b.times[index] ?? 0));
  return { count: a.count + b.count, failed: a.failed + b.failed, received: a.received + b.received, sent: a.sent + b.sent, times };
}

/** As Prometheus' histogram_quantile: between a bucket's bounds by its share; of the last bucket, which has no end, its beginning. */
export function quantile(share: number, counts: readonly number[], bounds: readonly number[]): number | undefined {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total <= 0) return undefined;
  let left = share * total;
  for (const [index, count] of counts.entries()) {
    const [low, high] = [bounds[index - 1] ?? 0, bounds[index]];
    if (high === undefined) return low;
    if (left <= count && count > 0) return low + (high - low) * (left / count);
    left -= count;
  }
  return bounds.at(-1);
}
