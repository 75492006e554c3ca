// Envoy's part of the request series: labels out of its keys, and sums that never fall, whoever starts anew.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { logger } from '../../common/log.js';
import { Address, Workload } from '../../proto/generated/istio/workload/workload.js';
import type { HttpService } from '../http/table.js';
import { KEY_SEPARATOR } from '../proxy/request-log.js';
import type { CountedPod, RequestView } from '../proxy/request-view.js';
import type { HttpTotals } from '../dataplane/kernel-http-totals.js';
import { EnvoyRequests } from './envoy-requests.js';
import type { EnvoyReport } from './envoy-sums.js';
import { TOLD_MS } from './flow-series.js';

const folder = mkdtempSync(join(tmpdir(), 'up-sums-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const WEB: HttpService = { hostname: 'web.shop.svc.cluster.local', name: 'web', namespace: 'shop' };
const WEB_V1 = 'web-v1;shop;web;v1;Kubernetes';

function workload(name: string, address: string, more: Partial<Workload> = {}): [string, { message: Address }] {
  const value = Workload.fromPartial({ uid: name, name, namespace: 'shop', addresses: [Buffer.from(address.split('.').map(Number))], workload_name: name, service_account: `of-${name}`, canonical_name: name, canonical_revision: 'latest', cluster_id: 'Kubernetes', ...more });
  return [name, { message: Address.fromPartial({ type: { $case: 'workload', value } }) }];
}

const outbound = ({ pod = 'client', cluster = 'outbound|80||web.shop.svc.cluster.local', to = WEB_V1, place = '', status = '200', flags = '-', protocol = 'http', grpc = '' } = {}): string => ['s', `/netns/${pod}`, cluster, to, place, status, flags, protocol, grpc].join(KEY_SEPARATOR);
const inbound = ({ caller = '', uid = 'web', principal = '', status = '200' } = {}): string => ['d', caller && `/netns/${caller}`, `pod/${uid}/inbound|8080||`, uid, principal, status, '-', 'http', ''].join(KEY_SEPARATOR);

/** Envoy's counts as plain data, in the form of its answer: what is tried here is the arithmetic above them. */
class World implements RequestView {
  envoy: string | undefined = '1 1';
  answers = true;
  counts = new Map<string, number>();
  synced = true;
  revision = 1;
  nowMs = 0;
  readonly addresses = new Map([workload('client', '10.0.0.1'), workload('web', '10.0.0.2', { workload_name: 'web-v1', canonical_revision: 'v1' }), workload('other', '10.0.0.3')]);
  known: CountedPod[] = ['client', 'web', 'other'].map((uid, index) => ({ uid, netnsPath: `/netns/${uid}`, addresses: [`10.0.0.${index + 1}`] }));
  readonly path = join(folder, `${Math.random()}.jsonl`);
  requests = this.agent();

  agent(): EnvoyRequests {
    return new EnvoyRequests({ view: this, workloads: this, path: this.path, logger: logger('test'), now: () => this.nowMs });
  }

  pods(): readonly CountedPod[] {
    return this.known;
  }

  serviceOf(cluster: string): HttpService | undefined {
    return cluster.includes('web') || cluster.includes('inbound') ? WEB : undefined;
  }

  async read(_path: string, onText: (text: string) => void): Promise<void> {
    if (!this.answers) throw new Error('no answer');
    const details = [...this.counts].flatMap(([key, count]) => (['duration', 'request', 'answer'] as const).map((name, index) => JSON.stringify({ name: `underpass_requests.${name}.k.${key}`, totals: [{ lower_bound: 7 + index, width: 0.1, count }], intervals: [], percentiles: [] })));
    onText(`{"stats":[{"histograms":{"supported_percentiles":[],"details":[${details.join()}]}}]}`);
  }

  /** A scrape some time later. */
  async told(isKernels: (hash: string) => boolean = () => false): Promise<EnvoyReport<HttpTotals>> {
    this.nowMs += 10_000;
    await this.requests.refresh();
    return this.requests.report(isKernels);
  }

  async numbers(): Promise<Record<string, number>> {
    return Object.fromEntries((await this.told()).sums.map(({ reporter, labels, totals }) => [`${reporter} ${labels['source_workload']} ${labels['destination_workload']} ${labels['response_code']}`, Number(totals.requests)]));
  }

  /** @param kill without the time to save */
  async restart({ kill = false } = {}): Promise<void> {
    if (!kill) await this.requests.close();
    this.requests = this.agent();
    await this.requests.open();
  }
}

test('EnvoyRequests: a key of the outbound side is one series of the source, and one of the destination where nobody else counts there', async () => {
  const w = new World();
  w.counts = new Map([[outbound(), 3], [outbound({ place: 'node', status: '404' }), 2], [outbound({ to: '', cluster: '', status: '404', flags: 'NR' }), 1]]);
  assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 3, 'source client web-v1 404': 2, 'destination client web-v1 404': 2, 'source client unknown 404': 1 });
  const { labels, totals } = (await w.told()).sums[0]!;
  assert.deepEqual(labels, {
    source_workload: 'client', source_workload_namespace: 'shop', source_canonical_service: 'client', source_canonical_revision: 'latest', source_app: 'client', source_version: 'latest', source_cluster: 'Kubernetes', source_principal: 'spiffe://cluster.local/ns/shop/sa/of-client',
    destination_workload: 'web-v1', destination_workload_namespace: 'shop', destination_canonical_service: 'web', destination_canonical_revision: 'v1', destination_app: 'web', destination_version: 'v1', destination_cluster: 'Kubernetes', destination_principal: 'spiffe://cluster.local/ns/shop/sa/of-web',
    destination_service: WEB.hostname, destination_service_name: 'web', destination_service_namespace: 'shop', request_protocol: 'http', response_code: '200', response_flags: '-', connection_security_policy: 'unknown',
  });
  assert.deepEqual([totals.durationUs, totals.requestBytes, totals.answerBytes], [21_000n, 24n, 27n]);
});

test('EnvoyRequests: a workload that is named at endpoints alone, and gRPC', async () => {
  const w = new World();
  w.counts = new Map([[outbound({ to: 'far;away;far-app;;elsewhere', protocol: 'grpc', grpc: '5' }), 1]]);
  const { labels } = (await w.told()).sums[0]!;
  assert.deepEqual(['destination_workload', 'destination_workload_namespace', 'destination_canonical_service', 'destination_canonical_revision', 'destination_cluster', 'destination_principal', 'request_protocol', 'grpc_response_status'].map((name) => labels[name]), ['far', 'away', 'far-app', 'latest', 'elsewhere', 'unknown', 'grpc', '5']);
});

test('EnvoyRequests: a key of the inbound side is of the destination; who called is the pod, or the principal that mutual TLS proved', async () => {
  const w = new World();
  w.counts = new Map([[inbound({ caller: 'client' }), 1], [inbound({ principal: 'spiffe://cluster.local/ns/far/sa/away', status: '201' }), 2], [inbound({ status: '202' }), 3]]);
  const rows = (await w.told()).sums.map(({ reporter, labels, totals }) => [reporter, labels['source_workload'], labels['source_principal'], labels['destination_workload'], labels['connection_security_policy'], Number(totals.requests)]);
  assert.deepEqual(rows, [
    ['destination', 'client', 'spiffe://cluster.local/ns/shop/sa/of-client', 'web-v1', 'unknown', 1],
    ['destination', 'unknown', 'spiffe://cluster.local/ns/far/sa/away', 'web-v1', 'mutual_tls', 2],
    ['destination', 'unknown', 'unknown', 'web-v1', 'none', 3],
  ]);
});

test('EnvoyRequests: an Envoy that is started anew adds to what the one before had counted', async () => {
  const w = new World();
  w.counts.set(outbound(), 5);
  assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 5 });
  w.envoy = undefined;
  assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 5 });
  [w.envoy, w.counts] = ['2 2', new Map()];
  assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 5 });
  // As many as before: yet these are others.
  w.counts.set(outbound(), 5);
  assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 10 });
  w.envoy = '3 3';
  w.counts.set(outbound(), 7);
  assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 17 });
});

test('EnvoyRequests: what Envoy drops since it was not counted up stays, and begins anew', async () => {
  const w = new World();
  w.counts.set(outbound(), 5);
  await w.told();
  w.counts.delete(outbound());
  assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 5 });
  w.counts.set(outbound(), 2);
  assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 7 });
  // Not even seen to be gone.
  w.counts.set(outbound(), 1);
  assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 8 });
});

test('EnvoyRequests: an agent that is stopped or killed goes on with the sums, and adds what was counted meanwhile once', async () => {
  for (const kill of [false, true]) {
    const w = new World();
    w.counts.set(outbound(), 5);
    assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 5 });
    w.counts.set(outbound(), 8);
    assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 8 });
    await w.restart({ kill });
    w.counts.set(outbound(), 9);
    assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 9 });
    // And with an Envoy that is started anew meanwhile.
    await w.restart();
    [w.envoy, w.counts] = ['2 2', new Map([[outbound(), 4]])];
    assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 13 });
  }
});

test('EnvoyRequests: without an answer, with half of one, or before pods are known, everything stays as it was', async () => {
  const w = new World();
  w.counts.set(outbound(), 5);
  await w.told();
  w.answers = false;
  assert.deepEqual([await w.numbers(), (await w.told()).isRead], [{ 'source client web-v1 200': 5 }, false]);
  w.answers = true;
  const read = w.read.bind(w);
  w.read = (path, onText) => read(path, (text) => onText(text.slice(0, -5)));
  w.counts.set(outbound(), 6);
  assert.deepEqual([await w.numbers(), (await w.told()).isRead], [{ 'source client web-v1 200': 5 }, false]);
  w.read = read;
  await w.restart({ kill: true });
  const { known } = w;
  [w.known, w.envoy] = [[], undefined];
  await w.requests.sweep(() => false);
  [w.known, w.envoy] = [known, '1 1'];
  assert.deepEqual([await w.numbers(), (await w.told()).isRead], [{ 'source client web-v1 200': 6 }, true]);
});

test('EnvoyRequests: an answer of another Envoy than the one that was asked counts for nothing', async () => {
  const w = new World();
  w.counts.set(outbound(), 5);
  await w.told();
  const read = w.read.bind(w);
  w.read = async (path, onText) => {
    w.counts.set(outbound(), 3);
    await read(path, onText);
    w.envoy = '2 2';
  };
  assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 5 });
  w.read = read;
  assert.deepEqual(await w.numbers(), { 'source client web-v1 200': 8 });
});

test('EnvoyRequests: pods without a workload yet are held back; nothing of theirs is lost', async () => {
  const w = new World();
  const client = w.addresses.get('client')!;
  w.addresses.delete('client');
  w.counts.set(outbound(), 5);
  assert.deepEqual([await w.numbers(), (await w.told()).held], [{}, 1]);
  w.addresses.set('client', client);
  w.revision++;
  assert.deepEqual([await w.numbers(), (await w.told()).held], [{ 'source client web-v1 200': 5 }, 0]);
});

test('EnvoyRequests: a pod that is gone is told with all that it had, for two minutes and to several readers, also by the next agent; an address that another pod has now is not mixed up', async () => {
  for (const restarts of [false, true]) {
    const w = new World();
    w.counts.set(outbound({ pod: 'other' }), 5);
    await w.told();
    w.known = w.known.filter(({ uid }) => uid !== 'other').concat({ uid: 'new', netnsPath: '/netns/new', addresses: ['10.0.0.3'] });
    w.addresses.delete('other');
    w.addresses.set(...workload('new', '10.0.0.3'));
    w.revision++;
    if (restarts) await w.restart();
    w.counts.set(outbound({ pod: 'other' }), 6);
    w.counts.set(outbound({ pod: 'new' }), 1);
    for (let reader = 0; reader < 3; reader++) assert.deepEqual(await w.numbers(), { 'source other web-v1 200': 6, 'source new web-v1 200': 1 });
    w.nowMs += TOLD_MS;
    assert.deepEqual(await w.numbers(), { 'source other web-v1 200': 6, 'source new web-v1 200': 1 });
    assert.deepEqual(await w.numbers(), { 'source new web-v1 200': 1 });
    assert.equal((await w.told()).lost, 0n);
  }
});

test('EnvoyRequests: of a pod that nobody knows requests are lost, and said to be', async () => {
  const w = new World();
  w.counts.set(outbound({ pod: 'stranger' }), 5);
  assert.deepEqual([await w.numbers(), (await w.told()).lost], [{}, 5n]);
  w.counts.set(outbound({ pod: 'stranger' }), 7);
  assert.equal((await w.told()).lost, 7n);
});

test("EnvoyRequests: a series stays while a pod of its workload is here, or the kernel has a part of it", async () => {
  const w = new World();
  w.counts.set(outbound({ pod: 'other', place: 'node' }), 5);
  const { sums } = await w.told();
  w.known = w.known.filter(({ uid }) => uid === 'client');
  const [hash] = sums.map(({ hash: each }) => each);
  for (let round = 0; round < 3; round++) assert.equal((await w.told((each) => each === hash)).sums.length, 2);
  w.nowMs += TOLD_MS;
  assert.equal((await w.told()).sums.length, 2);
  assert.equal((await w.told()).sums.length, 0);
  assert.equal(w.requests.labelsOf(hash!), undefined);
});

test('EnvoyRequests: room for so many series; what is beyond is one more, that says so and stays, and nothing is lost', async () => {
  const w = new World();
  w.counts = new Map(Array.from({ length: 8_200 }, (_, index) => [outbound({ status: `${index}` }), 2]));
  const { sums, lost, keys, dropped } = await w.told();
  assert.deepEqual([sums.length, lost, keys, dropped], [8_193, 0n, 8_200, 8]);
  const overflow = async () => (await w.told()).sums.filter(({ labels }) => labels['otel_metric_overflow'] === 'true').map(({ reporter, labels, totals }) => [reporter, labels, Number(totals.requests)]);
  const labels = { reporter: 'source', otel_metric_overflow: 'true' };
  assert.deepEqual(await overflow(), [['source', labels, 16]]);
  w.counts.set(outbound({ status: '8199' }), 5);
  w.known = w.known.filter(({ uid }) => uid !== 'other');
  assert.deepEqual(await overflow(), [['source', labels, 19]]);
  // The series that had room go on, and no key is dropped twice.
  w.counts.set(outbound({ status: '7' }), 3);
  const after = await w.told();
  assert.deepEqual([after.sums.length, after.dropped, Number(after.sums.find(({ labels: each }) => each['response_code'] === '7')!.totals.requests)], [8_193, 8, 3]);
});

test('EnvoyRequests: a file that can not be read is no reason not to start; it names the line', async () => {
  const w = new World();
  w.counts.set(outbound(), 5);
  await w.told();
  await w.requests.close();
  const text = readFileSync(w.path, 'utf8');
  for (const [bad, line] of [[text.slice(0, -20), 3], ['{}\n', 1], ['{"version":99}', 1], [text.replace('"5"', '"five"'), 2]] as const) {
    writeFileSync(w.path, bad);
    const warned: string[] = [];
    const requests = new EnvoyRequests({ view: w, workloads: w, path: w.path, logger: { warn: ({ reason }: { reason: string }) => warned.push(reason) } as never });
    await requests.open();
    assert.match(warned.join(), new RegExp(`line ${line}:`));
    assert.equal(requests.report(() => false).sums.length, 0);
  }
});
