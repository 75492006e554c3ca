/**
 * Istio's request metrics of a node, each series one sum of the kernel's part and Envoy's: they come to what clients sent, by status
 * and for both reporters, whichever way requests took; and no series falls when Envoy or the agent starts anew.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { askAgent, instancePaths, type AgentFastPathStatus } from '../agent/index.js';
import { waitFor } from '../common/retry.js';
import { CURL, ECHO, FAST_NAMESPACE, fastPod, fastService } from './fast-world.js';
import { MeshWorld } from './mesh/world.js';

const WORLD = `${FAST_NAMESPACE}${fastPod('client', CURL)}${['web-v1', 'web-v2', 'guarded'].map((name) => fastPod(name, ECHO)).join('')}${fastService('web')}${fastService('guarded')}`;
/** Two versions by a header, and a server whose inbound chain is passed since it forbids a path. */
const ROUTES = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: fast}
spec:
  host: web
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: fast}
spec:
  hosts: [web]
  http:
  - match: [{headers: {x-canary: {exact: "yes"}}}]
    route: [{destination: {host: web, subset: v2}}]
  - route: [{destination: {host: web, subset: v1}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: guarded, namespace: fast}
spec:
  hosts: [guarded]
  http:
  - match: [{headers: {x-none: {exact: "yes"}}}]
    directResponse: {status: 418}
  - route: [{destination: {host: guarded}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secret, namespace: fast}
spec:
  selector: {matchLabels: {app: guarded}}
  action: DENY
  rules: [{to: [{operation: {paths: ["/secret"]}}]}]
`;

const world = new MeshWorld('http-sums', { bare: true, outside: WORLD });
const socket = (): string => instancePaths({ instance: world.name }).adminSocket;
const fastPath = async (): Promise<AgentFastPathStatus> => JSON.parse(await askAgent(socket(), '/v1/http-fast-path')) as AgentFastPathStatus;
const fastRequests = async (): Promise<number> => (JSON.parse(await askAgent(socket(), '/v1/counters')) as { node: Record<string, number> }).node['http_requests_fast'] ?? 0;

/** Series by name and labels. */
type Scrape = ReadonlyMap<string, number>;

/** All scrapes of this file, none of whose series may fall. */
let last: Scrape = new Map();

async function scrape(): Promise<Scrape> {
  const found = new Map((await world.agentMetrics()).split('\n').flatMap((line) => (line.startsWith('istio_requests_total{') || /^istio_re.*_(?:count|sum|bucket)\{/.test(line) ? [[line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ') + 1))] as const] : [])));
  for (const [series, value] of last) assert.ok((found.get(series) ?? -1) >= value, `${series} was ${value} and is ${found.get(series)}`);
  last = found;
  return found;
}

const label = (series: string, name: string): string => new RegExp(`[{,]${name}="([^"]*)"`).exec(series)?.[1] ?? '';

function grown(from: Scrape, to: Scrape, name = 'istio_requests_total'): Map<string, number> {
  return new Map([...to].flatMap(([series, value]) => (series.startsWith(`${name}{`) && value > (from.get(series) ?? 0) ? [[series, value - (from.get(series) ?? 0)] as const] : [])));
}

/** By status and server. */
function summed(series: ReadonlyMap<string, number>, reporter: string): Record<string, number> {
  const sums: Record<string, number> = {};
  for (const [key, value] of series) {
    if (label(key, 'reporter') !== reporter) continue;
    const what = `${label(key, 'response_code')} ${label(key, 'destination_workload')}`;
    sums[what] = (sums[what] ?? 0) + value;
  }
  return sums;
}

/** What `load` is to come to. */
const SENT = { '200 web-v1': 220, '404 web-v1': 40, '200 web-v2': 60, '200 guarded': 120, '403 guarded': 15 };
const ANSWERED_BY_ENVOY = { '418 unknown': 10 };

async function load(): Promise<void> {
  const ask = async (url: string, count: number, options: { headers?: Record<string, string>; keepAlive?: boolean } = {}): Promise<void> => {
    const { statuses } = await world.load('outside', url, count, { from: 'fast/client', ...options });
    assert.equal(Object.values(statuses).reduce((sum, some) => sum + some, 0), count);
  };
  await ask('http://web/', 200);
  await ask('http://web/', 20, { keepAlive: false });
  await ask('http://web/status/404', 40);
  await ask('http://web/', 60, { headers: { 'x-canary': 'yes' } });
  await ask('http://guarded/', 120);
  await ask('http://guarded/secret', 15);
  await ask('http://guarded/', 10, { headers: { 'x-none': 'yes' } });
}

const live = (): Promise<unknown> => waitFor('the pods to be live', async () => {
  const status = await fastPath();
  return status.on && status.pods.live >= 4 && status.pods.suspended === 0;
}, { timeoutMs: 60_000, everyMs: 20 });

/** Envoy merges what its threads counted every five seconds. */
async function counted(start: Scrape): Promise<Scrape> {
  let now = start;
  const all = { ...SENT, ...ANSWERED_BY_ENVOY };
  await waitFor('all requests to be counted', async () => {
    now = await scrape();
    return sum(summed(grown(start, now), 'source')) >= sum(all) && sum(summed(grown(start, now), 'destination')) >= sum(SENT);
  }, { timeoutMs: 120_000, everyMs: 500 }).catch((error: unknown) => {
    throw new Error(`${String(error)}: ${JSON.stringify([...grown(start, now)], undefined, 1)}`);
  });
  return now;
}

const sum = (of: Record<string, number>): number => Object.values(of).reduce((all, some) => all + some, 0);

async function loaded(): Promise<Map<string, number>> {
  const start = await scrape();
  await load();
  const end = await counted(start);
  const requests = grown(start, end);
  assert.deepEqual(summed(requests, 'source'), { ...SENT, ...ANSWERED_BY_ENVOY }, JSON.stringify([...requests], undefined, 1));
  assert.deepEqual(summed(requests, 'destination'), SENT, JSON.stringify([...requests], undefined, 1));
  for (const name of ['istio_request_duration_milliseconds', 'istio_request_bytes', 'istio_response_bytes']) {
    const counts = new Map([...grown(start, end, `${name}_count`)].map(([series, value]) => [series.replace(`${name}_count`, 'istio_requests_total'), value]));
    assert.deepEqual(counts, requests, name);
    const last_ = new Map([...grown(start, end, `${name}_bucket`)].filter(([series]) => label(series, 'le') === '+Inf').map(([series, value]) => [series.replace(`${name}_bucket`, 'istio_requests_total').replace(',le="+Inf"', ''), value]));
    assert.deepEqual(last_, requests, name);
  }
  return requests;
}

before(async () => {
  await world.up();
  // Before there is a policy: what is to be seen by it goes to a server through Envoy, which pools connections.
  for (const name of ['web-v1', 'web-v2', 'guarded']) await world.load('outside', `http://${world.lab.pod('fast', name).ips[0]}:8080/`, 12, { from: 'fast/client', keepAlive: false });
  await waitFor('the servers to be known as event-driven', async () => (await world.agentStatus()).probation.filter(({ kind, verdict }) => kind === 'listener' && verdict === 'event-driven').length >= 3, { timeoutMs: 60_000, everyMs: 100 });
  await sleep(1_500);
  await world.apply('mesh', ROUTES);
  await world.settled();
  await live();
  // What probation came to, by way of Envoy or not, is none of the loads'.
  await sleep(6_000);
});
after(() => world.down());

let byBoth = new Map<string, number>();

test('requests by both ways: the sums are what the client sent, by status and server, for both reporters, and histograms count as many', async () => {
  const fast = await fastRequests();
  byBoth = await loaded();
  const moved = (await fastRequests()) - fast;
  assert.ok(moved > 250 && moved < 455, `${moved} requests were fast: both ways are to have had some`);
});

test('with the fast path off the same load adds as much to the same series', async () => {
  await askAgent(socket(), '/v1/http-fast-path?on=false', { method: 'POST' });
  const fast = await fastRequests();
  try {
    const byEnvoy = await loaded();
    assert.equal(await fastRequests(), fast);
    assert.deepEqual([...byEnvoy].sort(), [...byBoth].sort());
  } finally {
    await askAgent(socket(), '/v1/http-fast-path?on=true', { method: 'POST' });
  }
});

test('labels are those that sidecars have', () => {
  const of = (code: string, workload: string, reporter: string): string[] => [...byBoth.keys()].filter((series) => label(series, 'response_code') === code && label(series, 'destination_workload') === workload && label(series, 'reporter') === reporter);
  const [series = '', ...others] = of('200', 'web-v1', 'source');
  assert.deepEqual(others, []);
  assert.deepEqual(Object.fromEntries(series.slice(series.indexOf('{') + 1, -1).split('",').map((pair) => pair.replaceAll('"', '').split('='))), {
    reporter: 'source', request_protocol: 'http', response_code: '200', response_flags: '-', connection_security_policy: 'unknown',
    source_workload: 'client', source_workload_namespace: 'fast', source_canonical_service: 'client', source_canonical_revision: 'latest', source_app: 'client', source_version: 'latest', source_cluster: 'Kubernetes', source_principal: 'spiffe://cluster.local/ns/fast/sa/client',
    destination_workload: 'web-v1', destination_workload_namespace: 'fast', destination_canonical_service: 'web', destination_canonical_revision: 'v1', destination_app: 'web', destination_version: 'v1', destination_cluster: 'Kubernetes', destination_principal: 'spiffe://cluster.local/ns/fast/sa/web',
    destination_service: 'web.fast.svc.cluster.local', destination_service_name: 'web', destination_service_namespace: 'fast',
  });
  for (const [code, workload] of [['200', 'web-v1'], ['403', 'guarded'], ['200', 'guarded']] as const) {
    const [source = '', destination = ''] = ['source', 'destination'].map((reporter) => of(code, workload, reporter)[0] ?? '');
    assert.equal(destination.replace('reporter="destination"', 'reporter="source"'), source);
  }
});

test('an agent that is killed, and one that is stopped: no series falls, and what Envoy counted meanwhile is in the sums', async () => {
  await live();
  for (const signal of ['SIGKILL', undefined] as const) {
    const start = await scrape();
    await world.stopAgent('node-1', signal);
    await load();
    await world.startAgent('node-1');
    await world.enrolled();
    assert.deepEqual(summed(grown(start, await counted(start)), 'source'), { ...SENT, ...ANSWERED_BY_ENVOY });
  }
});

test('an Envoy that dies: no series falls, and the next one adds to them', async () => {
  await live();
  const { pid } = (await world.agentStatus()).proxy.envoy;
  await scrape();
  process.kill(pid!, 'SIGKILL');
  await waitFor('another Envoy', async () => {
    await scrape();
    const { envoy } = (await world.agentStatus()).proxy;
    return envoy.pid !== undefined && envoy.pid !== pid && envoy.connected;
  }, { timeoutMs: 120_000, everyMs: 200 });
  await world.settled();
  await live();
  await loaded();
});
