// Real Envoys count requests and connections by keys that are what they say, and by nothing that a client or server can choose freely.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { pack, unpack } from '../../common/xds/any.js';
import { waitFor } from '../../common/retry.js';
import { CONNECTION_STATS_PATH, ConnectionStatsReader, type ConnectionTotals } from '../telemetry/envoy-connection-stats.js';
import { REQUEST_STATS_PATH, RequestStatsReader } from '../telemetry/envoy-stats.js';
import { requests, type TestNetns } from '../testing/netns.js';
import { ENDPOINT, ProxyWorld, SERVICE_CLUSTER, SERVICE_VIP } from '../testing/proxy-world.js';
import { assignment, edsCluster, tcpListener } from '../testing/resources.js';
import type { ProxyPod } from './proxy-pod.js';
import { EnvoyCounterReader } from '../telemetry/envoy-counters.js';
import { KEY_SEPARATOR, MESSAGE_STATS } from './request-log.js';

const WORKLOAD = 'web-v1;shop;web;v1;Kubernetes';
/** Any status, any grpc-status, that the request asks for; three messages of gRPC, each of nothing. */
const SERVER = `require('http').createServer((q, r) => { const { status, grpc } = q.headers; q.resume().on('end', () => { r.writeHead(Number(status ?? 200), grpc === undefined ? {} : { 'content-type': 'application/grpc', 'grpc-status': grpc }); r.end(grpc === undefined ? 'hello' : Buffer.alloc(15)); }); }).listen(80, () => console.log('ready'));`;
/** Says all back, and ends when the client has. */
const ECHO = `require('net').createServer({ allowHalfOpen: true }, (s) => s.on('error', () => {}).on('data', (d) => s.write(d)).on('end', () => s.end())).listen(9000, () => console.log('ready'));`;
const TCP_CLUSTER = 'outbound|9000||db.shop.svc.cluster.local';
const DEAD_CLUSTER = 'outbound|9001||db.shop.svc.cluster.local';

/** Connects, sends so much, half-closes and waits for the end. */
const talk = (port: number, bytes: number): string => `
  const s = require('net').connect(${port}, '${SERVICE_VIP}', () => s.end(Buffer.alloc(${bytes}))).on('data', () => {}).on('error', () => {}).on('close', () => console.log('null'));`;

describe('requests and connections as Envoy counts them', () => {
  const world = new ProxyWorld();
  let pod: ProxyPod;
  let netns: TestNetns;
  let lasting: Promise<unknown> = Promise.resolve();
  let finish = (): void => undefined;

  before(async () => {
    await world.start();
    const endpoints = unpack(ClusterLoadAssignment, assignment(SERVICE_CLUSTER, [`${ENDPOINT}:80`]))!;
    for (const { lb_endpoints } of endpoints.endpoints) for (const each of lb_endpoints) each.metadata = { filter_metadata: { istio: { workload: WORKLOAD } }, typed_filter_metadata: {} };
    world.controlPlane.set(pack(ClusterLoadAssignment, endpoints), SERVICE_CLUSTER);
    for (const [cluster, port] of [[TCP_CLUSTER, 9000], [DEAD_CLUSTER, 9001]] as const) {
      const of = unpack(ClusterLoadAssignment, assignment(cluster, [`${ENDPOINT}:${port}`]))!;
      for (const { lb_endpoints } of of.endpoints) for (const each of lb_endpoints) each.metadata = { filter_metadata: { istio: { workload: WORKLOAD } }, typed_filter_metadata: {} };
      world.controlPlane.set(pack(ClusterLoadAssignment, { ...of, cluster_name: cluster }), cluster);
      world.controlPlane.set(edsCluster(cluster), cluster);
      world.controlPlane.set(tcpListener(SERVICE_VIP, port, cluster), `${SERVICE_VIP}_${port}`);
    }
    // The endpoint is this very pod: a pod of the node.
    ({ pod, netns } = await world.pod('pod-a', { ips: ['10.0.1.1', ENDPOINT] }));
    await netns.serve(SERVER);
    await netns.serve(ECHO);
    world.running.setPods([pod]);
    await world.ready(pod);
    await world.settled();
  });
  after(() => world.close());

  async function counted(): Promise<Map<string, number>> {
    const reader = new RequestStatsReader();
    await world.running.envoy.admin.read(REQUEST_STATS_PATH, (text) => reader.read(text), { maxBytes: 1 << 20 });
    return new Map([...reader.end()].map(([key, { requests: count }]) => [key, Number(count)]));
  }

  const outbound = (...rest: string[]): string => ['s', pod.netnsPath, ...rest].join(KEY_SEPARATOR);

  it('nothing yet is nothing, and no error', async () => assert.equal((await counted()).size, 0));

  it('by client, cluster, workload, place, status, flags and protocol', async () => {
    const ask = (headers: Record<string, string>, count = 1) => Array.from({ length: count }, () => ({ url: `http://${SERVICE_VIP}/`, headers: { host: 'web', ...headers } }));
    await netns.script(requests([
      ...ask({}, 3), ...ask({ status: '404' }, 2), ...ask({ host: 'nobody' }),
      ...ask({ 'content-type': 'application/grpc', grpc: '5' }), ...ask({ 'content-type': 'application/grpc+proto', grpc: '0' }), ...ask({ 'content-type': 'application/grpc', grpc: '4242' }),
      // Of what it likes.
      ...ask({ 'content-type': 'a\\tb', 'x-envoy-x': 'y', 'user-agent': 'z' }, 2),
    ]));
    const of = (status: string, protocol: string, grpc: string): string => outbound(SERVICE_CLUSTER, WORKLOAD, 'node', status, '-', protocol, grpc);
    const wanted = new Map([
      [of('200', 'http', ''), 5], [of('404', 'http', ''), 2], [of('200', 'grpc', '5'), 1], [of('200', 'grpc', '0'), 1], [of('200', 'grpc', ''), 1],
      [outbound('', '', '', '404', 'NR', 'http', ''), 1],
    ]);
    let found = new Map<string, number>();
    await waitFor('Envoy to merge what its threads counted', async () => {
      found = await counted();
      return [...found.values()].reduce((sum, count) => sum + count, 0) >= 11;
    }, { everyMs: 200 }).catch(() => undefined);
    assert.deepEqual([...found].sort(), [...wanted].sort());
  });

  it('messages of gRPC by the same keys', async () => {
    const found: Record<string, number> = {};
    const reader = new EnvoyCounterReader((name, value) => (found[name] = Number(value)));
    await world.running.envoy.admin.read(`/stats?format=json&filter=${MESSAGE_STATS}`, (text) => reader.read(text), { maxBytes: 1 << 20 });
    reader.end();
    // The client sent none.
    assert.deepEqual(found, Object.fromEntries(['5', '0', ''].map((grpc) => [`underpass_messages.calls.k.${outbound(SERVICE_CLUSTER, WORKLOAD, 'node', '200', '-', 'grpc', grpc, '0,3')}`, 1])));
  });

  it('with their sizes, heads and bodies, and in buckets', async () => {
    const reader = new RequestStatsReader();
    await world.running.envoy.admin.read(REQUEST_STATS_PATH, (text) => reader.read(text), { maxBytes: 1 << 20 });
    const totals = reader.end().get(outbound(SERVICE_CLUSTER, WORKLOAD, 'node', '404', '-', 'http', ''))!;
    for (const buckets of [totals.duration, totals.request, totals.answer]) assert.equal(buckets.reduce((sum, count) => sum + count, 0n), 2n);
    assert.ok(totals.requestBytes > 60n && totals.requestBytes < 1_000n && totals.answerBytes > 60n && totals.answerBytes < 1_000n, JSON.stringify([`${totals.requestBytes}`, `${totals.answerBytes}`]));
    // Each is of 51 to 250 bytes.
    assert.equal(totals.answer[6]! + totals.answer[7]!, 2n);
  });

  async function connections(): Promise<ReadonlyMap<string, ConnectionTotals>> {
    const reader = new ConnectionStatsReader();
    await world.running.envoy.admin.read(CONNECTION_STATS_PATH, (text) => reader.read(text), { maxBytes: 1 << 20 });
    return reader.end();
  }

  const bytesOf = async (key: string): Promise<string> => {
    const { received = 0n, sent = 0n, openReceived = 0n, openSent = 0n } = (await connections()).get(key) ?? {};
    return [received, sent, openReceived, openSent].join(' ');
  };

  it('connections by client, cluster, workload and place, with how they ended, and what they carried', async () => {
    // It goes on until the test after this: Envoy tells of it after a while.
    lasting = netns.script(`const s = require('net').connect(9000, '${SERVICE_VIP}', () => s.write(Buffer.alloc(500))).once('data', () => console.log()).on('data', () => {}).on('close', () => console.log('null')); process.stdin.on('end', () => s.end()).resume();`, {
      onOutput: () => new Promise((resolve) => (finish = resolve)),
    });
    for (const bytes of [1_000, 2_000]) await netns.script(talk(9000, bytes));
    await netns.script(talk(9001, 10));
    const [live, dead] = [TCP_CLUSTER, DEAD_CLUSTER].map((cluster) => outbound(cluster, WORKLOAD, 'node'));
    await waitFor('the connections that have ended', async () => [...(await connections()).values()].reduce((sum, { closed }) => sum + [...closed.values()].reduce((a, b) => a + b, 0n), 0n) >= 3n, { everyMs: 20 }).catch(() => undefined);
    const found = [...await connections()].map(([key, { opened, closed, received, sent }]) => [key, Number(opened), Object.fromEntries([...closed].map(([flags, count]) => [flags, Number(count)])), Number(received), Number(sent)]);
    const wanted = [
      [`${live}\topened`, 3, {}, 0, 0], [`${live}\tbytes`, 0, {}, 3_000, 3_000], [`${live}\tclosed\t-`, 0, { '-': 2 }, 0, 0],
      // Never up: what says that it ended says that it began.
      [`${dead}\tfailed\tUF,URX`, 1, { 'UF,URX': 1 }, 0, 0],
    ];
    assert.deepEqual(found.sort(), wanted.sort());
  });

  it('what a connection that lasts has carried is told while it is open, and once', async () => {
    const key = `${outbound(TCP_CLUSTER, WORKLOAD, 'node')}\tbytes`;
    await waitFor('the connection to be told of', async () => await bytesOf(key) === '3000 3000 500 500', { everyMs: 100 });
    finish();
    await lasting;
    await waitFor('its end', async () => await bytesOf(key) === '3500 3500 0 0', { everyMs: 20 });
  });

  it('an answer that is longer than the bound is an error, not memory', async () => {
    await assert.rejects(world.running.envoy.admin.read(REQUEST_STATS_PATH, () => undefined, { maxBytes: 100 }), /longer than 100 bytes/);
  });

  it("a listener's new version goes on with what the one before had counted", async () => {
    const start = await counted();
    pod = { ...pod, labels: { app: 'other' } };
    world.running.setPods([pod]);
    await world.ready(pod);
    await world.settled();
    await netns.script(requests([{ url: `http://${SERVICE_VIP}/`, headers: { host: 'web' } }]));
    const key = outbound(SERVICE_CLUSTER, WORKLOAD, 'node', '200', '-', 'http', '');
    await waitFor('one more', async () => (await counted()).get(key) === start.get(key)! + 1, { everyMs: 200 });
  });
});
