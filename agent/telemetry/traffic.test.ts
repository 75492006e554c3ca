// Who speaks with whom by which way: out of the same sums as Istio's series, and without taking anything from a scrape.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TrafficReport } from '../../common/traffic.js';
import { Address, TunnelProtocol, Workload } from '../../proto/generated/istio/workload/workload.js';
import type { FlowSide } from '../dataplane/kernel-flows.js';
import type { HttpTotals } from '../dataplane/kernel-http-totals.js';
import { NO_CONNECTIONS } from './envoy-connection-stats.js';
import type { FlowLabels } from './flow-labels.js';
import type { ConnectionReport, RequestReport } from './flow-telemetry.js';
import { HTTP_BOUNDS } from './http-bounds.js';
import { Traffic } from './traffic.js';

const labels = (source: string, destination: string, more: Record<string, string> = {}): FlowLabels => ({
  source_workload: source, source_workload_namespace: 'shop', source_canonical_service: source, destination_workload: destination, destination_workload_namespace: 'shop', destination_canonical_service: destination,
  destination_canonical_revision: 'latest', destination_cluster: 'Kubernetes', destination_service_name: destination, destination_service_namespace: 'shop', request_protocol: 'http', response_code: '200', connection_security_policy: 'unknown', ...more,
});
const requests = (count: number): HttpTotals => ({ requests: BigInt(count), requestBytes: BigInt(count * 10), answerBytes: BigInt(count * 20), durationUs: 0n, duration: HTTP_BOUNDS.map((_, index) => BigInt(index === 2 ? count : 0)).concat(0n), request: [], answer: [] });
const side = (opened: number): FlowSide => ({ opened: BigInt(opened), closed: 0n, denied: 1n, failed: 1n, received: 5n, sent: 7n, rttSumUs: 0n, rtt: [0n, BigInt(opened), 0n] });

function workload(name: string, tunnel: TunnelProtocol): [string, { message: Address }] {
  const value = Workload.fromPartial({ uid: name, name, namespace: 'shop', workload_name: name, canonical_name: name, canonical_revision: 'latest', cluster_id: 'Kubernetes', tunnel_protocol: tunnel });
  return [name, { message: Address.fromPartial({ type: { $case: 'workload', value } }) }];
}
const workloads = { addresses: new Map([workload('far', TunnelProtocol.HBONE), workload('near', TunnelProtocol.NONE)]), synced: true, revision: 1 };

interface Told { connections?: Partial<ConnectionReport>; requests?: Partial<RequestReport> }

class World {
  constructor(readonly addresses: typeof workloads.addresses = workloads.addresses) {}

  readonly asked: unknown[] = [];
  refreshed = 0;
  now = 0;
  told: Told = {};
  readonly traffic = new Traffic({
    node: 'n1', now: () => this.now,
    telemetry: () => ({
      workloads: { ...workloads, addresses: this.addresses },
      refresh: async () => void this.refreshed++,
      report: async (reading) => (this.asked.push(reading), { kernel: undefined, envoy: undefined, ...this.told.connections }),
      httpReport: async (reading) => (this.asked.push(reading), { kernel: undefined, envoy: undefined, messages: undefined, ...this.told.requests }),
    }),
  });

  envoy(...sums: [reporter: 'source' | 'destination', labels: FlowLabels, count: number][]): RequestReport['envoy'] {
    return { sums: sums.map(([reporter, of, count]) => ({ reporter, hash: '', labels: of, totals: requests(count) })), isRead: true, keys: 0, held: 0, lost: 0n, dropped: 0 };
  }

  async short(): Promise<unknown[]> {
    return (await this.traffic.report()).edges.map(({ reporter, way, protocol, source, destination, totals: { count, failed } }) => [reporter, way, protocol, source.workload, destination.workload, count, failed]);
  }
}

test('what Envoy sent to a workload that takes HBONE and what did not arrive on this node left by HBONE; a caller that proved itself came by it', async () => {
  const world = new World();
  world.told = { requests: { envoy: world.envoy(['source', labels('a', 'far'), 10], ['destination', labels('a', 'far'), 4], ['source', labels('b', 'far'), 3], ['source', labels('a', 'near'), 2], ['destination', labels('c', 'far', { connection_security_policy: 'mutual_tls' }), 6], ['destination', labels('c', 'near', { connection_security_policy: 'mutual_tls' }), 1]) } };
  assert.deepEqual(await world.short(), [
    ['source', 'hbone', 'http', 'a', 'far', 6, 0], ['source', 'envoy', 'http', 'a', 'far', 4, 0], ['destination', 'envoy', 'http', 'a', 'far', 4, 0], ['source', 'hbone', 'http', 'b', 'far', 3, 0],
    ['source', 'envoy', 'http', 'a', 'near', 2, 0], ['destination', 'hbone', 'http', 'c', 'far', 6, 0], ['destination', 'envoy', 'http', 'c', 'near', 1, 0],
  ]);
});

test('codes, flags and revisions are one edge, of which 5xx, no answer and a gRPC status that is not 0 failed', async () => {
  const world = new World();
  world.told = { requests: { envoy: world.envoy(
    ['source', labels('a', 'near'), 5], ['source', labels('a', 'near', { response_code: '503', response_flags: 'UF' }), 2], ['source', labels('a', 'near', { response_code: '0', response_flags: 'DC' }), 1], ['source', labels('a', 'near', { response_code: '404' }), 4],
    ['source', labels('a', 'near', { request_protocol: 'grpc', grpc_response_status: '0' }), 7], ['source', labels('a', 'near', { request_protocol: 'grpc', grpc_response_status: '14' }), 3], ['source', { otel_metric_overflow: 'true' }, 9]) } };
  assert.deepEqual(await world.short(), [['source', 'envoy', 'http', 'a', 'near', 12, 3], ['source', 'envoy', 'grpc', 'a', 'near', 10, 3]]);
});

test('ends without a workload are what is known of them: the only workload of a proven account, the account of several, the service that was asked for, or outside', async () => {
  const of = (name: string, account: string): [string, { message: Address }] => [name, { message: Address.fromPartial({ type: { $case: 'workload', value: Workload.fromPartial({ uid: name, namespace: 'shop', workload_name: name, canonical_name: name, service_account: account }) } }) }];
  const world = new World(new Map([of('only', 'one'), of('first', 'two'), of('second', 'two')]));
  const from = (account: string): FlowLabels => labels('unknown', 'near', { source_workload_namespace: 'unknown', source_principal: `spiffe://cluster.local/ns/shop/sa/${account}`, connection_security_policy: 'mutual_tls' });
  const to = (service: string, namespace = 'shop'): FlowLabels => labels('only', 'unknown', { destination_workload_namespace: 'unknown', destination_service_name: service, destination_service_namespace: namespace });
  world.told = { requests: { envoy: world.envoy(
    ['destination', from('one'), 1], ['destination', from('two'), 2], ['destination', labels('unknown', 'near', { source_principal: 'unknown' }), 3], ['source', to('near'), 4], ['source', to('PassthroughCluster', 'unknown'), 5]) } };
  const ends = (await world.traffic.report()).edges.map(({ source, destination, totals: { count } }) => [[source, destination].map(({ what, namespace, workload }) => [what, namespace, workload].filter(Boolean).join(' ')).join(' > '), count]);
  assert.deepEqual(ends, [['shop only > shop near', 1], ['account shop two > shop near', 2], ['outside (outside) callers > shop near', 3], ['shop only > service shop near', 4], ['shop only > outside (outside) addresses', 5]]);
});

test('kernel, fast path and Envoy are ways of their own, with bounds for their times', async () => {
  const world = new World();
  world.told = {
    connections: { kernel: { series: [{ labels: labels('a', 'near', { reporter: 'source', request_protocol: 'tcp' }), totals: side(3) }], held: 0, dropped: 0, rttBoundsUs: [500, 1_000] }, envoy: { sums: [{ reporter: 'source', hash: '', labels: labels('a', 'near', { request_protocol: 'tcp' }), totals: { ...NO_CONNECTIONS, opened: 4n, closed: new Map([['-', 1n], ['DC', 1n], ['UF,URX', 1n]]) } }], isRead: true, keys: 0, held: 0, lost: 0n, dropped: 0 } },
    requests: { kernel: { series: [{ hash: '', labels: labels('a', 'near'), totals: requests(8) }], live: new Set(), held: 0, dropped: 0 } },
  };
  assert.deepEqual(await world.short(), [['source', 'kernel', 'tcp', 'a', 'near', 3, 2], ['source', 'envoy', 'tcp', 'a', 'near', 4, 1], ['source', 'fast-path', 'http', 'a', 'near', 8, 0]]);
  const report = await world.traffic.report();
  assert.deepEqual([report.roundTripBoundsMs, report.requestBoundsMs.length + 1], [[0.5, 1], report.edges[2]!.totals.times.length]);
});

test('a reading is no scrape, serves all who ask within a second, and asks Envoy less often; the answer in pieces is one JSON', async () => {
  const world = new World();
  world.told = { requests: { envoy: world.envoy(...Array.from({ length: 600 }, (_, index): ['source', FlowLabels, number] => ['source', labels(`w${index}`, 'near'), 1])) } };
  const { pieces } = await world.traffic.routes['/v1/traffic']!(new URLSearchParams());
  const report = JSON.parse([...(pieces as Iterable<string>)].join('')) as TrafficReport;
  assert.deepEqual([report.node, report.edges.length], ['n1', 600]);
  await world.traffic.report();
  assert.deepEqual(world.asked, [{ isPeek: true }, { isPeek: true }]);
  for (world.now of [1_000, 2_000, 3_000]) await world.traffic.report();
  assert.deepEqual([world.asked.length, world.refreshed], [8, 2]);
});
