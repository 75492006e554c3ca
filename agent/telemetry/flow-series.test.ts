// Istio's TCP series: labels out of what the control plane says, and totals that never fall while their labels are there.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Address, Service, Workload } from '../../proto/generated/istio/workload/workload.js';
import type { FlowEntry, FlowKey, Flows, FlowSide } from '../dataplane/kernel-flows.js';
import { addSides } from '../dataplane/kernel-flows.js';
import { addFlowMetrics } from './flow-metrics.js';
import { FlowSeriesSource, hashOf, TOLD_MS, type FlowReport, type FlowSeries } from './flow-series.js';
import type { FlowPod } from './flow-labels.js';
import { PrometheusText } from './prometheus.js';

const side = (opened: number, closed = opened, received = 0, sent = 0): FlowSide => ({
  opened: BigInt(opened), closed: BigInt(closed), denied: 0n, failed: 0n, received: BigInt(received), sent: BigInt(sent), rttSumUs: BigInt(opened) * 20n, rtt: [0n, BigInt(opened), 0n],
});

/** The kernel's tables as plain data: what is tried here is the arithmetic above them. */
class Tables implements Flows {
  readonly rttBoundsUs = [16, 32];
  readonly byId = new Map<string, FlowEntry>();
  readonly kept = new Map<string, FlowSide>();
  room = Infinity;

  put(id: string, key: Partial<FlowKey>, source: FlowSide, destination: FlowSide): void {
    this.byId.set(id, { id, key: { client: 0n, server: 0n, peer: undefined, service: undefined, endpointPort: 0, ...key }, source, destination });
  }
  settle(): void {}
  entries(): FlowEntry[] {
    return [...this.byId.values()];
  }
  take(id: string): FlowEntry | undefined {
    const entry = this.byId.get(id);
    this.byId.delete(id);
    return entry;
  }
  retired(): Map<string, FlowSide> {
    return new Map(this.kept);
  }
  retire(hash: string, totals: FlowSide): boolean {
    const before = this.kept.get(hash);
    if (!before && this.kept.size >= this.room) return false;
    this.kept.set(hash, before ? addSides(before, totals) : totals);
    return true;
  }
  dropRetired(hash: string): void {
    this.kept.delete(hash);
  }
}

const bytes = (address: string): Buffer => Buffer.from(address.split('.').map(Number));

function workload(name: string, address: string, changes: Partial<Workload> = {}): [string, { message: Address }] {
  const value = Workload.fromPartial({
    uid: `Kubernetes//Pod/shop/${name}`, name, namespace: 'shop', addresses: [bytes(address)], workload_name: name.replace(/-\d+$/, ''), service_account: 'buyer',
    trust_domain: 'cluster.local', canonical_name: name.replace(/-\d+$/, ''), canonical_revision: 'latest', cluster_id: 'Kubernetes', ...changes,
  });
  return [value.uid, { message: Address.fromPartial({ type: { $case: 'workload', value } }) }];
}

function service(hostname: string, address: string): [string, { message: Address }] {
  const [name = '', namespace = ''] = hostname.split('.');
  const value = Service.fromPartial({ name, namespace, hostname, addresses: [{ network: '', address: bytes(address) }], ports: [{ service_port: 80, target_port: 8080 }] });
  return [`${namespace}/${hostname}`, { message: Address.fromPartial({ type: { $case: 'service', value } }) }];
}

const NORTH: Partial<Workload> = { locality: { region: 'north', zone: 'north-1', subzone: 'rack' } };

class World {
  readonly tables = new Tables();
  readonly addresses = new Map<string, { message: Address }>();
  synced = true;
  revision = 1;
  pods: FlowPod[] = [{ netnsCookie: 1n, addresses: ['10.0.0.1'] }, { netnsCookie: 2n, addresses: ['10.0.0.2'] }, { netnsCookie: 9n, addresses: ['fd00::9', '10.0.0.9'] }];
  nowMs = 0;
  readonly source: FlowSeriesSource;

  constructor() {
    for (const [name, resource] of [
      workload('cart-1', '10.0.0.1', NORTH), workload('cart-2', '10.0.0.2', NORTH),
      workload('store-1', '10.0.0.9', {
        namespace: 'backend', service_account: 'seller', canonical_revision: 'v2', trust_domain: '',
        services: { 'a-other/store.a-other.svc': { ports: [{ service_port: 80, target_port: 8080, app_protocol: 0 }] }, 'backend/store.backend.svc': { ports: [{ service_port: 80, target_port: 8080, app_protocol: 0 }] } },
      }),
      service('store.backend.svc', '10.96.0.7'), service('store.a-other.svc', '10.96.0.8'),
    ]) this.addresses.set(name, resource);
    this.source = this.agent();
  }

  /** As after a restart: the tables stay. */
  agent(): FlowSeriesSource {
    return new FlowSeriesSource({ flows: this.tables, pods: () => this.pods, workloads: this, now: () => this.nowMs });
  }

  leave(cookie: bigint): void {
    this.pods = this.pods.filter(({ netnsCookie }) => netnsCookie !== cookie);
  }
}

const opened = (series: readonly FlowSeries[], reporter = 'source'): bigint[] => series.filter(({ labels }) => labels['reporter'] === reporter).map(({ totals }) => totals.opened);

function scraped(source: FlowSeriesSource): FlowReport {
  const report = source.report();
  source.forgetTold();
  return report;
}

test('labels: a connection to a Service has the labels that Istio prints, at both sides', () => {
  const w = new World();
  w.tables.put('x', { client: 1n, server: 9n, service: { address: '10.96.0.7', port: 80 }, endpointPort: 8080 }, side(2, 1, 100, 200), side(2, 1, 100, 200));
  const { series, held } = scraped(w.source);
  const common = {
    source_workload: 'cart', source_canonical_service: 'cart', source_canonical_revision: 'latest', source_workload_namespace: 'shop',
    source_principal: 'spiffe://cluster.local/ns/shop/sa/buyer', source_app: 'cart', source_version: 'latest', source_cluster: 'Kubernetes',
    destination_service: 'store.backend.svc', destination_service_namespace: 'backend', destination_service_name: 'store',
    destination_workload: 'store', destination_canonical_service: 'store', destination_canonical_revision: 'v2', destination_workload_namespace: 'backend',
    destination_principal: 'spiffe://cluster.local/ns/backend/sa/seller', destination_app: 'store', destination_version: 'v2', destination_cluster: 'Kubernetes',
    request_protocol: 'tcp', response_flags: '-', connection_security_policy: 'unknown',
    source_region: 'north', source_zone: 'north-1', destination_region: 'unknown', destination_zone: 'unknown',
  };
  assert.deepEqual(series.map(({ labels }) => labels), [{ reporter: 'source', ...common }, { reporter: 'destination', ...common }]);
  assert.equal(held, 0);
});

test('labels: a client that asked for a pod\'s own address named no service; the server is taken for its own namespace\'s by its port', () => {
  const w = new World();
  w.tables.put('x', { client: 1n, server: 9n, endpointPort: 8080 }, side(1), side(1));
  w.tables.put('y', { client: 1n, server: 9n, endpointPort: 5000 }, side(1), side(1));
  assert.deepEqual(scraped(w.source).series.map(({ labels }) => [labels['reporter'], labels['destination_service']]), [['source', 'unknown'], ['destination', 'store.backend.svc'], ['destination', 'unknown']]);
});

test('labels: what found no room has the client\'s labels, or is the overflow of all; a side that nobody reports has no series', () => {
  const w = new World();
  w.tables.put('rest', { client: 1n }, side(3), side(0));
  w.tables.put('all', {}, side(5), side(7));
  const seen = scraped(w.source).series.map(({ labels, totals }) => [labels['reporter'], labels['source_workload'] ?? labels['otel_metric_overflow'], labels['destination_workload'], totals.opened]);
  assert.deepEqual(seen, [['source', 'cart', 'unknown', 3n], ['source', 'true', undefined, 5n], ['destination', 'true', undefined, 7n]]);
});

test('labels: a client from elsewhere is a workload of another node by its address, with no principal, or unknown; its server\'s labels are whole', () => {
  const w = new World();
  const [name, resource] = workload('scout-1', '10.1.0.5', { node: 'other' });
  w.addresses.set(name, resource);
  w.tables.put('x', { server: 9n, peer: '10.1.0.5', endpointPort: 8080 }, side(0), side(1));
  w.tables.put('y', { server: 9n, peer: '192.0.2.1', endpointPort: 8080 }, side(0), side(2));
  w.tables.put('z', { server: 9n, peer: '192.0.2.2', endpointPort: 8080 }, side(0), side(3));
  const seen = scraped(w.source).series.map(({ labels, totals }) => [labels['source_workload'], labels['source_principal'], labels['destination_workload'], labels['destination_service'], totals.opened]);
  assert.deepEqual(seen, [
    ['scout', 'unknown', 'store', 'store.backend.svc', 1n], ['unknown', 'unknown', 'store', 'store.backend.svc', 5n],
  ]);
});

test('series: an address from elsewhere that changes hands takes nothing of its first owner\'s along', () => {
  const w = new World();
  const [name, resource] = workload('scout-1', '10.1.0.5');
  w.addresses.set(name, resource);
  w.tables.put('x', { server: 9n, peer: '10.1.0.5' }, side(0), side(4, 3));
  const told = (): unknown => scraped(w.source).series.map(({ labels, totals }) => [labels['source_workload'], totals.opened]);
  assert.deepEqual(told(), [['scout', 4n]]);
  const [next, other] = workload('miner-1', '10.1.0.5');
  w.addresses.delete(name);
  w.addresses.set(next, other);
  w.revision++;
  assert.deepEqual(told(), [['scout', 4n]], 'a connection is still open');
  w.tables.put('x', { server: 9n, peer: '10.1.0.5' }, side(0), side(4, 4));
  for (let reader = 0; reader < 3; reader++) assert.deepEqual(told(), [['scout', 4n]]);
  w.nowMs += TOLD_MS + 1;
  assert.deepEqual(told(), [['scout', 4n]], 'for the last time');
  w.tables.put('x', { server: 9n, peer: '10.1.0.5' }, side(0), side(1));
  assert.deepEqual(told(), [['miner', 1n]]);
});

test('series: a client from elsewhere that has had no connection for five minutes makes room, and its workload\'s series stays while others are there', () => {
  const w = new World();
  w.tables.put('x', { server: 9n, peer: '192.0.2.1' }, side(0), side(1));
  w.tables.put('y', { server: 9n, peer: '192.0.2.2' }, side(0), side(2, 1));
  w.source.sweep();
  w.nowMs += 301_000;
  assert.deepEqual(opened(scraped(w.source).series, 'destination'), [3n]);
  assert.deepEqual([...w.tables.byId.keys()], ['y']);
  assert.deepEqual(opened(scraped(w.source).series, 'destination'), [3n]);
});

test('series: pods of one workload add up to one series', () => {
  const w = new World();
  w.tables.put('x', { client: 1n, server: 9n }, side(2), side(2));
  w.tables.put('y', { client: 2n, server: 9n }, side(3), side(3));
  assert.deepEqual(opened(scraped(w.source).series), [5n]);
});

test('series: nothing is told before the control plane has spoken, nor of a workload that it has not named yet', () => {
  const w = new World();
  w.synced = false;
  w.tables.put('x', { client: 1n, server: 9n }, side(2), side(2));
  assert.deepEqual(scraped(w.source).series, []);
  w.synced = true;
  const store = w.addresses.get('Kubernetes//Pod/shop/store-1')!;
  w.addresses.delete('Kubernetes//Pod/shop/store-1');
  w.revision++;
  assert.deepEqual([scraped(w.source).series, scraped(w.source).held], [[], 1]);
  w.addresses.set('Kubernetes//Pod/shop/store-1', store);
  w.revision++;
  const { series, held } = scraped(w.source);
  assert.deepEqual([opened(series), held], [[2n], 0]);
});

test('series: a pod that is gone does not make its workload\'s series fall, over an agent\'s restart neither', () => {
  const w = new World();
  w.tables.put('x', { client: 1n, server: 9n }, side(2), side(2));
  w.tables.put('y', { client: 2n, server: 9n }, side(3), side(3));
  w.source.sweep();
  w.leave(1n);
  w.addresses.delete('Kubernetes//Pod/shop/cart-1');
  w.revision++;
  assert.deepEqual(opened(scraped(w.source).series), [5n]);
  assert.deepEqual([...w.tables.byId.keys()], ['y']);
  assert.deepEqual(opened(scraped(w.source).series), [5n]);
  const restarted = w.agent();
  restarted.sweep();
  assert.deepEqual([opened(scraped(restarted).series), opened(scraped(restarted).series)], [[5n], [5n]]);
});

test('series: those of pods that are gone are told to several readers for two minutes and dropped; unread ones after five minutes; the next pod starts anew', () => {
  const w = new World();
  w.tables.put('x', { client: 1n, server: 9n }, side(2), side(2));
  w.source.sweep();
  w.leave(1n);
  for (let reader = 0; reader < 3; reader++) assert.deepEqual(opened(scraped(w.source).series), [2n]);
  w.nowMs += TOLD_MS + 1;
  assert.deepEqual(opened(scraped(w.source).series), [2n]);
  assert.deepEqual([scraped(w.source).series, w.tables.kept.size, w.tables.byId.size], [[], 0, 0]);
  w.tables.put('y', { client: 2n, server: 9n }, side(1), side(1));
  assert.deepEqual(opened(scraped(w.source).series), [1n]);
  w.leave(2n);
  w.source.sweep();
  w.nowMs += 299_000;
  w.source.sweep();
  assert.equal(w.tables.kept.size, 2);
  w.nowMs += 2_000;
  w.source.sweep();
  assert.equal(w.tables.kept.size, 0);
});

test('series: an entry whose client is gone waits for the server\'s connections to be closed, half a minute at most', () => {
  const w = new World();
  w.tables.put('x', { client: 1n, server: 9n }, side(2, 2), side(2, 0));
  w.source.sweep();
  w.leave(1n);
  w.source.sweep();
  assert.deepEqual([w.tables.byId.size, opened(scraped(w.source).series, 'destination')], [1, [2n]]);
  w.nowMs += 31_000;
  w.source.sweep();
  assert.equal(w.tables.byId.size, 0);
});

test('series: what there is no room to keep is counted', () => {
  const w = new World();
  w.tables.room = 1;
  w.tables.put('x', { client: 1n, server: 9n }, side(2), side(2));
  w.source.sweep();
  w.leave(1n);
  assert.equal(scraped(w.source).dropped, 1);
});

test('series: nothing that was kept is dropped while a workload is not named yet, since it may have the same labels', () => {
  const w = new World();
  const gone = hashOf({ reporter: 'source' });
  w.tables.retire(gone, side(4));
  w.tables.put('x', { client: 1n, server: 9n }, side(2), side(2));
  const cart = w.addresses.get('Kubernetes//Pod/shop/cart-1')!;
  w.addresses.delete('Kubernetes//Pod/shop/cart-1');
  w.source.sweep();
  assert.equal(w.tables.kept.size, 1);
  w.addresses.set('Kubernetes//Pod/shop/cart-1', cart);
  w.revision++;
  w.source.sweep();
  assert.equal(w.tables.kept.size, 0);
});

test('series: an entry whose client is gone does not wait for what never was, or was ended by policy', () => {
  const w = new World();
  w.tables.put('x', { client: 1n, server: 9n }, { ...side(2, 1), failed: 1n }, { ...side(3, 1), denied: 1n, failed: 1n });
  w.source.sweep();
  w.leave(1n);
  w.source.sweep();
  assert.equal(w.tables.byId.size, 0);
  const { series } = scraped(w.source);
  assert.deepEqual(series.map(({ labels, totals }) => [labels['reporter'], totals.opened, totals.closed, totals.denied, totals.failed]), [['source', 2n, 1n, 0n, 1n], ['destination', 3n, 1n, 1n, 1n]]);
});

test('metrics: what policy denied and what was not reached is closed under ztunnel\'s response flags, and failed', () => {
  const w = new World();
  w.tables.put('x', { client: 1n, server: 9n }, { ...side(9, 2), failed: 4n }, { ...side(9, 2), denied: 3n, failed: 1n });
  w.tables.put('y', { client: 1n }, side(1), side(0));
  const text = new PrometheusText();
  addFlowMetrics(text, { kernel: scraped(w.source), envoy: undefined });
  const lines = text.toString().split('\n').filter((line) => /^istio_tcp_connections_(closed|failed)_total\{/.test(line));
  const facts = lines.map((line) => [/connections_(\w+)_total/, /reporter="(\w+)"/, /destination_workload="(\w+)"/, /response_flags="([^"]+)"/, /(\d+)$/].map((part) => part.exec(line)?.[1]).join(' '));
  assert.deepEqual(facts, [
    'closed source store - 2', 'closed destination store - 2', 'closed source unknown - 1',
    'closed source store CONNECT 4', 'closed destination store DENY 3', 'closed destination store CONNECT 1',
    'failed source store CONNECT 4', 'failed destination store DENY 3', 'failed destination store CONNECT 1',
  ]);
  assert.equal(text.toString().split('\n').filter((line) => line.startsWith('# TYPE istio_tcp_connections_closed_total')).length, 1);
});

test('metrics: four counters with Istio\'s names, and round-trip times as a histogram whose buckets add up', () => {
  const w = new World();
  w.tables.put('x', { client: 1n, server: 9n, service: { address: '10.96.0.7', port: 80 }, endpointPort: 8080 }, side(2, 1, 100, 200), side(0));
  const text = new PrometheusText();
  addFlowMetrics(text, { kernel: scraped(w.source), envoy: undefined });
  const lines = text.toString().split('\n');
  const value = (name: string): string[] => lines.filter((line) => line.startsWith(`${name}{`)).map((line) => line.split(' ').at(-1) ?? '');
  assert.deepEqual(['opened_total', 'closed_total'].map((name) => value(`istio_tcp_connections_${name}`)), [['2'], ['1']]);
  assert.deepEqual(['received', 'sent'].map((name) => value(`istio_tcp_${name}_bytes_total`)), [['100'], ['200']]);
  assert.deepEqual(lines.filter((line) => line.startsWith('underpass_tcp_rtt_seconds')).map((line) => line.replace(/\{.*?(le="[^"]*")?\} /, ' $1 ')), [
    'underpass_tcp_rtt_seconds_bucket le="0.000016" 0', 'underpass_tcp_rtt_seconds_bucket le="0.000032" 2', 'underpass_tcp_rtt_seconds_bucket le="+Inf" 2',
    'underpass_tcp_rtt_seconds_sum  0.00004', 'underpass_tcp_rtt_seconds_count  2',
  ]);
});

test('FlowSeriesSource: the kernel\'s entry for all that found no room is the series that Envoy\'s part has for that, too', () => {
  const w = new World();
  w.tables.put('other', {}, side(5), side(3));
  w.tables.put('own', { client: 1n, server: 9n, endpointPort: 80 }, side(2), side(2));
  const { series } = w.source.report();
  const found = series.filter(({ labels }) => labels['otel_metric_overflow'] !== undefined).map(({ labels, totals }) => [labels, totals.opened]);
  assert.deepEqual(found, [[{ reporter: 'source', otel_metric_overflow: 'true' }, 5n], [{ reporter: 'destination', otel_metric_overflow: 'true' }, 3n]]);
  const text = new PrometheusText();
  addFlowMetrics(text, { kernel: w.source.report(), envoy: { sums: [{ reporter: 'source', hash: hashOf(found[0]![0] as Record<string, string>), labels: { reporter: 'source', otel_metric_overflow: 'true' }, totals: { opened: 10n, received: 0n, sent: 0n, openReceived: 0n, openSent: 0n, closed: new Map([['-', 10n]]) } }], isRead: true, keys: 0, held: 0, lost: 0n, dropped: 0 } });
  assert.match(text.toString(), /^istio_tcp_connections_opened_total\{reporter="source",otel_metric_overflow="true"\} 15$/m);
});

test('FlowSeriesSource: a report of many entries is made in steps, between which nothing that it says is lost or told twice', () => {
  const w = new World();
  for (let index = 0; index < 2_000; index++) w.tables.put(`${index}`, { client: 1n, server: 9n, endpointPort: 1 + index }, side(1), side(1));
  const steps = w.source.reporting();
  let count = 0;
  for (;;) {
    const { done, value } = steps.next();
    if (done === true) {
      assert.deepEqual(value.series.map(({ totals }) => totals.opened), [2_000n, 2_000n]);
      break;
    }
    count++;
  }
  // No more than 256 entries each.
  assert.ok(count >= 2_000 / 256, `${count} steps`);
});
