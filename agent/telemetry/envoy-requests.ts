/** Envoy's part of Istio's HTTP series, out of what it counts by the keys of proxy/request-log.ts. */
import { addTotals, type HttpTotals } from '../dataplane/kernel-http-totals.js';
import { REQUEST_STATS_PATH, RequestStatsReader } from './envoy-stats.js';
import { EnvoySums, type Counted, type EnvoySumsOptions, type KeyEnds } from './envoy-sums.js';
import { UNKNOWN, type FlowDirectory, type FlowLabels } from './flow-labels.js';
import { HTTP_BOUNDS } from './http-bounds.js';

const REQUESTS: Counted<HttpTotals> = {
  what: 'request',
  path: REQUEST_STATS_PATH,
  reader: () => new RequestStatsReader(),
  add: addTotals,
  grown: (now, before) => {
    // What Envoy has dropped in the meantime begins anew.
    const last = before && !isLess(now, before) ? before : undefined;
    if (last && last.requests === now.requests) return { base: last, last, growth: undefined };
    return { base: last, last: now, growth: last ? minus(now, last) : now };
  },
  count: ({ requests }) => requests,
  labels: requestLabels,
  pack: packed,
  unpack: unpacked,
};

export class EnvoyRequests extends EnvoySums<HttpTotals> {
  constructor(options: EnvoySumsOptions) {
    super(options, REQUESTS);
  }
}

export function requestLabels(directory: FlowDirectory, { source, destination, service, security, more }: KeyEnds, [status = '', flags = '', protocol = 'http', grpcStatus = '']: readonly string[]): FlowLabels {
  const grpc: Record<string, string> = grpcStatus === '' ? {} : { grpc_response_status: grpcStatus };
  return directory.requestLabels({ source, destination, service }, { status: Number(status), flags, protocol, security: security ?? UNKNOWN, more: { ...more, ...grpc } });
}

const BUCKETS = HTTP_BOUNDS.length + 1;

function packed({ requests, requestBytes, answerBytes, durationUs, duration, request, answer }: HttpTotals): string[] {
  return [requests, requestBytes, answerBytes, durationUs, ...duration, ...request, ...answer].map(String);
}

function unpacked(values: readonly string[]): HttpTotals {
  if (values.length !== 4 + 3 * BUCKETS) throw new Error(`${values.length} numbers instead of ${4 + 3 * BUCKETS}`);
  const [requests = 0n, requestBytes = 0n, answerBytes = 0n, durationUs = 0n, ...buckets] = values.map(BigInt);
  return { requests, requestBytes, answerBytes, durationUs, duration: buckets.slice(0, BUCKETS), request: buckets.slice(BUCKETS, 2 * BUCKETS), answer: buckets.slice(2 * BUCKETS) };
}

function isLess(now: HttpTotals, last: HttpTotals): boolean {
  const changed = now.durationUs !== last.durationUs || now.requestBytes !== last.requestBytes || now.answerBytes !== last.answerBytes;
  if (now.requests < last.requests || (now.requests === last.requests && changed)) return true;
  return (['duration', 'request', 'answer'] as const).some((of) => now[of].some((count, index) => count < last[of][index]!));
}

function minus(a: HttpTotals, b: HttpTotals): HttpTotals {
  // Sums are of bins' middles and bins grow only; should a sum ever be less all the same, it does not fall.
  const less = (x: bigint, y: bigint): bigint => (x > y ? x - y : 0n);
  const each = (of: 'duration' | 'request' | 'answer'): bigint[] => a[of].map((count, index) => less(count, b[of][index] ?? 0n));
  return {
    requests: less(a.requests, b.requests), requestBytes: less(a.requestBytes, b.requestBytes), answerBytes: less(a.answerBytes, b.answerBytes), durationUs: less(a.durationUs, b.durationUs),
    duration: each('duration'), request: each('request'), answer: each('answer'),
  };
}
