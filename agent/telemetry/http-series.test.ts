// Istio's HTTP series: labels out of what the control plane says, and totals that never fall while their labels are there.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { projectRoot } from '../../common/paths.js';
import { Address, Workload } from '../../proto/generated/istio/workload/workload.js';
import { addTotals, type HttpEnding, type HttpRequests, type HttpTotalEntry, type HttpTotals } from '../dataplane/kernel-http-totals.js';
import type { HttpService } from '../http/table.js';
import { FlowDirectory, type FlowPod } from './flow-labels.js';
import { HTTP_BOUNDS } from './http-bounds.js';
import { addHttpMetrics } from './http-metrics.js';
import { TOLD_MS } from './flow-series.js';
import { HttpSeriesSource, type HttpReport } from './http-series.js';
import { PrometheusText } from './prometheus.js';

const STORE: HttpService = { hostname: 'store.backend.svc', name: 'store', namespace: 'backend' };
const counts = (at: number, count: number): bigint[] => HTTP_BOUNDS.map((_, index) => BigInt(index === at ? count : 0)).concat(0n);
const totals = (requests: number): HttpTotals => ({
  requests: BigInt(requests), requestBytes: BigInt(requests * 30), answerBytes: BigInt(requests * 40), durationUs: BigInt(requests * 700), duration: counts(1, requests), request: counts(5, requests), answer: counts(5, requests),
});

/** The kernel's tables as plain data: what is tried here is the arithmetic above them. */
class Tables implements HttpRequests {
  readonly byId = new Map<string, HttpTotalEntry>();
  readonly kept = new Map<string, HttpTotals>();
  room = Infinity;

  put(id: string, client: bigint, requests: number, more: { service?: HttpService | undefined; status?: number; ending?: HttpEnding } = {}): void {
    this.byId.set(id, { id, client, server: 9n, service: STORE, status: 200, ending: 'answered', totals: totals(requests), ...more });
  }
  entries(): HttpTotalEntry[] {
    return [...this.byId.values()];
  }
  take(id: string): HttpTotalEntry | undefined {
    const entry = this.byId.get(id);
    this.byId.delete(id);
    return entry;
  }
  retired(): Map<string, HttpTotals> {
    return new Map(this.kept);
  }
  retire(hash: string, more: HttpTotals): boolean {
    const before = this.kept.get(hash);
    if (!before && this.kept.size >= this.room) return false;
    this.kept.set(hash, before ? addTotals(before, more) : more);
    return true;
  }
  dropRetired(hash: string): void {
    this.kept.delete(hash);
  }
}

function workload(name: string, address: string): [string, { message: Address }] {
  const value = Workload.fromPartial({ uid: name, name, namespace: 'shop', addresses: [Buffer.from(address.split('.').map(Number))], workload_name: name.replace(/-\d+$/, ''), service_account: 'buyer', canonical_name: name.replace(/-\d+$/, ''), cluster_id: 'Kubernetes' });
  return [name, { message: Address.fromPartial({ type: { $case: 'workload', value } }) }];
}

class World {
  readonly tables = new Tables();
  readonly addresses = new Map([workload('cart-1', '10.0.0.1'), workload('cart-2', '10.0.0.2'), workload('store-1', '10.0.0.9')]);
  synced = true;
  revision = 1;
  pods: FlowPod[] = [{ netnsCookie: 1n, addresses: ['10.0.0.1'] }, { netnsCookie: 2n, addresses: ['10.0.0.2'] }, { netnsCookie: 9n, addresses: ['10.0.0.9'] }];
  nowMs = 0;
  source = this.agent();

  /** As after a restart: the tables stay. */
  agent(): HttpSeriesSource {
    return new HttpSeriesSource({ requests: this.tables, pods: () => this.pods, directory: new FlowDirectory(this), now: () => this.nowMs });
  }

  /** A scrape. */
  told(): HttpReport {
    const report = this.source.report();
    this.source.forgetTold();
    return report;
  }

  /** And its time passes. */
  leave(cookie: bigint): void {
    this.pods = this.pods.filter(({ netnsCookie }) => netnsCookie !== cookie);
    this.source.sweep();
    this.nowMs += 6_000;
    this.source.sweep();
  }
}

const requests = ({ series }: HttpReport): bigint[] => series.map(({ totals: { requests: count } }) => count);

test('the kernel\'s bounds are those of the series', () => {
  const [, list = ''] = /http_bounds\[[^\]]*\] = \{([^}]*)\}/.exec(readFileSync(join(projectRoot, 'bpf/http-channel.h'), 'utf8')) ?? [];
  assert.deepEqual(list.split(',').map((each) => each.trim().replace(/u$/, '')).filter((each) => each !== '').map((each) => Number(each) / 1_000), HTTP_BOUNDS);
});

test('labels: service, status and how it ended; no name of a service is unknown', () => {
  const w = new World();
  w.tables.put('x', 1n, 3);
  w.tables.put('y', 1n, 1, { status: 0, ending: 'server-ended' });
  w.tables.put('z', 1n, 1, { status: 404, service: undefined });
  const labels = w.told().series.map(({ labels: each }) => [each['source_workload'], each['destination_workload'], each['destination_service'], each['destination_service_name'], each['destination_service_namespace'], each['response_code'], each['response_flags'], each['request_protocol'], each['reporter']]);
  assert.deepEqual(labels, [
    ['cart', 'store', 'store.backend.svc', 'store', 'backend', '200', '-', 'http', undefined],
    ['cart', 'store', 'store.backend.svc', 'store', 'backend', '0', 'UC', 'http', undefined],
    ['cart', 'store', 'unknown', 'unknown', 'unknown', '404', '-', 'http', undefined],
  ]);
});

test('pods of one workload are one series, which does not fall when one of them goes, also for the next agent', () => {
  const w = new World();
  w.tables.put('x', 1n, 3);
  w.tables.put('y', 2n, 4);
  assert.deepEqual(requests(w.told()), [7n]);
  w.leave(1n);
  assert.deepEqual([requests(w.told()), w.tables.byId.size], [[7n], 1]);
  w.source = w.agent();
  assert.deepEqual(requests(w.told()), [7n]);
  w.leave(2n);
  for (const reader of ['Prometheus', 'the other one', '`underpass top`']) assert.deepEqual(requests(w.told()), [7n], reader);
  w.nowMs += TOLD_MS + 1;
  assert.deepEqual(requests(w.told()), [7n], 'for the last time');
  assert.deepEqual([requests(w.told()), w.tables.kept.size], [[], 0]);
});

test('what nobody reads is dropped in time; what has no room is counted', () => {
  const w = new World();
  w.tables.put('x', 1n, 3);
  w.source.sweep();
  w.leave(1n);
  assert.equal(w.tables.kept.size, 1);
  w.nowMs += 301_000;
  w.source.sweep();
  assert.equal(w.tables.kept.size, 0);
  w.tables.put('y', 2n, 4);
  w.source.sweep();
  w.tables.room = 0;
  w.leave(2n);
  assert.deepEqual([w.told().dropped, w.tables.byId.size], [1, 0]);
});

test('held until the control plane has named both ends; meanwhile nothing that is kept is dropped', () => {
  const w = new World();
  w.tables.put('x', 1n, 3);
  w.source.sweep();
  w.leave(1n);
  w.addresses.delete('cart-2');
  w.revision++;
  w.tables.put('y', 2n, 4);
  const report = w.told();
  assert.deepEqual([requests(report), report.held], [[3n], 1]);
  w.addresses.set(...workload('cart-2', '10.0.0.2'));
  w.revision++;
  assert.deepEqual(requests(w.told()), [7n]);
});

test('metrics: both reporters, and each histogram with its buckets, sum and count', () => {
  const w = new World();
  w.tables.put('x', 1n, 3);
  const text = new PrometheusText();
  addHttpMetrics(text, { kernel: w.told(), envoy: undefined, messages: undefined });
  const lines = text.toString().split('\n');
  const of = (start: string): string[] => lines.filter((line) => line.startsWith(`${start}{`)).map((line) => `${/reporter="(\w+)"/.exec(line)?.[1]} ${line.split(' ').at(-1)}`);
  assert.deepEqual(of('istio_requests_total'), ['source 3', 'destination 3']);
  assert.deepEqual(of('istio_request_duration_milliseconds_sum'), ['source 2.1', 'destination 2.1']);
  assert.deepEqual(of('istio_request_bytes_sum'), ['source 90', 'destination 90']);
  assert.deepEqual(of('istio_response_bytes_count'), ['source 3', 'destination 3']);
  assert.deepEqual(of('istio_request_duration_milliseconds_bucket').slice(0, 3), ['source 0', 'source 3', 'source 3']);
  assert.ok(lines.includes('# TYPE istio_request_duration_milliseconds histogram') && lines.includes('# TYPE istio_requests_total counter'));
});
