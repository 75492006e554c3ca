/** What the kernel counts of the requests that it moves, against what was sent, and the series that become of it: real sockets, programs and maps. */
import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { waitFor } from '../../common/retry.js';
import type { HttpService, HttpTable } from '../../agent/http/table.js';
import { encodeAddress } from '../../agent/dataplane/kernel-codec.js';
import type { HttpEnding, HttpTotalEntry } from '../../agent/dataplane/kernel-http-totals.js';
import { FlowDirectory } from '../../agent/telemetry/flow-labels.js';
import { HTTP_BOUNDS } from '../../agent/telemetry/http-bounds.js';
import { addHttpMetrics } from '../../agent/telemetry/http-metrics.js';
import { TOLD_MS } from '../../agent/telemetry/flow-series.js';
import { HttpSeriesSource } from '../../agent/telemetry/http-series.js';
import { PrometheusText } from '../../agent/telemetry/prometheus.js';
import { Address, Workload } from '../../proto/generated/istio/workload/workload.js';
import { anew, client, closeAll, connection, envoy, exchanges, line, server, taught as teach, text, w } from './exchange-testing.js';

const service = (name: string): HttpService => ({ hostname: `${name}.shop.svc.cluster.local`, name, namespace: 'shop' });

/** /a leads to the service a on port 80, all else to the service b on port 81. */
function tableOf(): HttpTable {
  const rule = (value: string, verdict: number) => ({ path: { kind: 'prefix', value, inverted: false } as const, methods: undefined, headers: [], verdict });
  return {
    ports: [{ address: undefined, port: 80, routes: 0 }], routes: [{ name: '80', hosts: [{ host: 'shop', virtualHost: 0 }] }],
    virtualHosts: [{ rules: [rule('/a', 0), rule('/', 1)], otherwise: -1 }],
    classes: [0, 1].map((cluster) => ({ ...w.kernel.http.tables.takeName()!, splits: [{ until: 1, cluster, text: line('x-weight', '0', 32) }] })),
    clusters: [['a', 80], ['b', 81]].map(([name, port]) => ({
      name: `outbound|80||${name}`, service: service(name as string), balance: 'least-request',
      endpoints: [{ address: w.world.pod(1).ipv4, port: port as number, policy: 'open', weight: 1, teachable: true, text: line('x-endpoint', `${w.world.pod(1).ipv4}:${port}`, 160) }],
    })),
    policies: [], findings: [], classOf: () => undefined,
  };
}

const request = (path: string, body = ''): string => `${body ? 'POST' : 'GET'} ${path} HTTP/1.1\r\nHost: shop\r\n${body ? `Content-Length: ${body.length}\r\n` : ''}\r\n${body}`;
const answer = (body: string, status = '200 OK'): string => `HTTP/1.1 ${status}\r\nContent-Length: ${body.length}\r\n\r\n${body}`;

exchanges(() => true, tableOf);
beforeEach(async () => {
  for (const { id } of w.kernel.http.totals.entries()) w.kernel.http.totals.take(id);
  await anew();
});

/** A connection of the client's; or one more server that it is taught. None of it is the kernel's to count. */
async function taught(path: string, port: number, ofClient?: number): Promise<number> {
  const clientPort = ofClient ?? (await connection());
  await teach(path, port, clientPort);
  return clientPort;
}

/** By the kernel, else the server would wait in vain. */
async function exchange(port: number, sent: string, ...answers: string[]): Promise<void> {
  await client.do('send', 'c', sent);
  assert.equal(text(await server.do('receive', `s${port}`, sent.length)), sent);
  for (const part of answers) await server.do('send', `s${port}`, part);
  assert.equal(text(await client.do('receive', 'c', answers.join('').length)), answers.join(''));
}

interface Counted {
  of: string | undefined;
  status: number;
  ending: HttpEnding;
  requests: number;
  bytes: [request: number, answer: number];
}

const counted = (): Counted[] => w.kernel.http.totals.entries()
  .map(({ service: of, status, ending, totals }): Counted => ({ of: of?.name, status, ending, requests: Number(totals.requests), bytes: [Number(totals.requestBytes), Number(totals.answerBytes)] }))
  .sort((x, y) => JSON.stringify(x) < JSON.stringify(y) ? -1 : 1);

/** One for each of these values. */
function buckets(values: readonly number[]): bigint[] {
  const out = new Array<bigint>(HTTP_BOUNDS.length + 1).fill(0n);
  for (const value of values) {
    const at = HTTP_BOUNDS.findIndex((bound) => value <= bound);
    out[at < 0 ? HTTP_BOUNDS.length : at]!++;
  }
  return out;
}

const sum = (counts: readonly bigint[]): bigint => counts.reduce((total, count) => total + count, 0n);

test('each exchange counts once, by service and status, with all of its bytes and one bucket of each histogram', async () => {
  await taught('/b', 81, await taught('/a', 80));
  assert.deepEqual(counted(), []);
  const sent = ['', 'b', 'b'.repeat(40), 'b'.repeat(960), 'b'.repeat(5_000)].map((body) => request('/a', body));
  const answers = ['', 'a', 'a'.repeat(61), 'a'.repeat(212), 'a'.repeat(213), 'a'.repeat(20_000)].map((body) => answer(body));
  for (const each of sent) await exchange(80, each, answers[0]!);
  for (const each of answers) await exchange(80, sent[0]!, each);
  await exchange(80, request('/a/none'), answer('none', '404 Not Found'));
  await exchange(81, request('/b'), answer('ok').slice(0, -1), answer('ok').slice(-1));
  const requests = [...sent, ...answers.map(() => sent[0]!)].map(({ length }) => length);
  const replies = [...sent.map(() => answers[0]!), ...answers].map(({ length }) => length);
  const total = (sizes: readonly number[]): number => sizes.reduce((all, size) => all + size, 0);
  assert.deepEqual(counted(), [
    { of: 'a', status: 200, ending: 'answered', requests: 11, bytes: [total(requests), total(replies)] },
    { of: 'a', status: 404, ending: 'answered', requests: 1, bytes: [request('/a/none').length, answer('none', '404 Not Found').length] },
    { of: 'b', status: 200, ending: 'answered', requests: 1, bytes: [request('/b').length, answer('ok').length] },
  ]);
  const { client: from, server: to, totals } = w.kernel.http.totals.entries().find(({ status, service: of }) => status === 200 && of?.name === 'a')!;
  assert.deepEqual([from, to], [w.world.pod(0).netnsCookie, w.world.pod(1).netnsCookie]);
  assert.deepEqual(totals.request, buckets(requests));
  assert.deepEqual(totals.answer, buckets(replies));
  assert.equal(sum(totals.duration), 11n);
});

test('an exchange takes as long as its server does: sum and bucket', async () => {
  await taught('/a', 80);
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  const begin = performance.now();
  await sleep(120);
  const least = performance.now() - begin;
  await server.do('send', 's80', answer('late'));
  await client.do('receive', 'c', answer('late').length);
  const { totals } = w.kernel.http.totals.entries()[0]!;
  const ms = Number(totals.durationUs) / 1_000;
  assert.ok(ms >= least, `${ms} of ${least} ms`);
  assert.deepEqual(totals.duration, buckets([ms]));
});

test('how an exchange ends: an answer that the end of the connection delimits is one, a server or a client that goes is told apart', async () => {
  await taught('/a', 80);
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  const untilClose = 'HTTP/1.1 200 OK\r\n\r\nuntil close';
  await server.do('send', 's80', untilClose);
  await server.do('close', 's80');
  assert.deepEqual((await client.do('receive', 'c', 1_000)).end, true);
  assert.deepEqual(counted(), [{ of: 'a', status: 200, ending: 'answered', requests: 1, bytes: [request('/a').length, untilClose.length] }]);
  for (const [before, status] of [['', 0], ['HTTP/1.1 201 Created\r\nContent-Length: 10\r\n\r\nabc', 201]] as const) {
    for (const who of ['server', 'client'] as const) {
      await closeAll();
      await anew();
      await taught('/a', 80);
      const known = counted().length;
      await client.do('send', 'c', request('/a'));
      await server.do('receive', 's80', request('/a').length);
      if (before) await server.do('send', 's80', before);
      if (who === 'server') await server.do('reset', 's80');
      else await client.do('close', 'c');
      await waitFor('it to be counted', () => counted().length > known, { everyMs: 5 });
      assert.equal(counted().length, known + 1, `${who} after ${JSON.stringify(before)}: ${JSON.stringify(counted())}`);
      assert.deepEqual(counted().find((each) => each.status === status && each.ending === `${who}-ended`), { of: 'a', status, ending: `${who}-ended`, requests: 1, bytes: [request('/a').length, before.length] });
    }
  }
});

test('a class whose place another takes keeps its sums', async () => {
  const clientPort = await taught('/a', 80);
  await exchange(80, request('/a'), answer('before'));
  const [{ id }] = w.kernel.http.totals.entries() as [HttpTotalEntry];
  await anew();
  await envoy.do('close', 'u80');
  await server.do('close', 's80');
  await taught('/a', 80, clientPort);
  await exchange(80, request('/a'), answer('behind'));
  assert.deepEqual(w.kernel.http.totals.entries().map((entry) => [entry.id, entry.totals.requests, entry.service]), [[id, 2n, service('a')]]);
});

const bytes = (address: string): Buffer => encodeAddress(address).subarray(12);

function workload(name: string, address: string): [string, { message: Address }] {
  const value = Workload.fromPartial({ uid: name, name, namespace: 'shop', addresses: [bytes(address)], workload_name: name, service_account: name, trust_domain: 'cluster.local', canonical_name: name, canonical_revision: 'v1', cluster_id: 'Kubernetes' });
  return [name, { message: Address.fromPartial({ type: { $case: 'workload', value } }) }];
}

test('series: what a scrape reads is what was sent, at both reporters; it stays when its pod goes, and by the map for two minutes more', async () => {
  const [web, store] = [w.world.pod(0), w.world.pod(1)];
  let nowMs = 0;
  let pods = [web, store].map(({ netnsCookie, ipv4 }) => ({ netnsCookie, addresses: [ipv4] }));
  const known = { addresses: new Map([workload('web', web.ipv4), workload('store', store.ipv4)]), synced: true, revision: 1 };
  const source = new HttpSeriesSource({ requests: w.kernel.http.totals, pods: () => pods, directory: new FlowDirectory(known), now: () => nowMs });
  const scrape = (): string[] => {
    const out = new PrometheusText();
    addHttpMetrics(out, { kernel: source.report(), envoy: undefined, messages: undefined });
    source.forgetTold();
    return out.toString().split('\n').filter((each) => each.startsWith('istio_'));
  };
  await taught('/a', 80);
  for (let i = 0; i < 5; i++) await exchange(80, request('/a'), answer('fast'));
  const lines = scrape();
  const labels = (reporter: string): string => `reporter="${reporter}",source_workload="web",source_canonical_service="web",source_canonical_revision="v1",source_workload_namespace="shop",source_principal="spiffe://cluster.local/ns/shop/sa/web",source_app="web",source_version="v1",source_cluster="Kubernetes",` +
    'destination_service="a.shop.svc.cluster.local",destination_service_namespace="shop",destination_service_name="a",' +
    'destination_workload="store",destination_canonical_service="store",destination_canonical_revision="v1",destination_workload_namespace="shop",destination_principal="spiffe://cluster.local/ns/shop/sa/store",destination_app="store",destination_version="v1",destination_cluster="Kubernetes",' +
    'request_protocol="http",response_code="200",response_flags="-",connection_security_policy="unknown"';
  for (const reporter of ['source', 'destination']) {
    const of = labels(reporter);
    for (const expected of [
      `istio_requests_total{${of}} 5`, `istio_request_bytes_sum{${of}} ${5 * request('/a').length}`, `istio_request_bytes_count{${of}} 5`, `istio_response_bytes_sum{${of}} ${5 * answer('fast').length}`,
      `istio_response_bytes_bucket{${of},le="25"} 0`, `istio_response_bytes_bucket{${of},le="50"} 5`, `istio_response_bytes_bucket{${of},le="+Inf"} 5`, `istio_request_duration_milliseconds_count{${of}} 5`,
      `istio_request_duration_milliseconds_bucket{${of},le="3600000"} 5`,
    ]) assert.ok(lines.includes(expected), `${expected}\n${lines.filter((each) => each.startsWith(expected.slice(0, 25))).join('\n')}`);
  }
  assert.equal(lines.length, 2 * (1 + 3 * (HTTP_BOUNDS.length + 3)));
  pods = pods.slice(1);
  source.sweep();
  nowMs = 6_000;
  source.sweep();
  assert.deepEqual(w.kernel.http.totals.entries(), []);
  for (let reader = 0; reader < 2; reader++) assert.deepEqual(scrape(), lines, 'kept by its labels, to the last bucket');
  nowMs += TOLD_MS + 1;
  assert.deepEqual(scrape(), lines, 'for the last time');
  assert.deepEqual(scrape(), []);
});
