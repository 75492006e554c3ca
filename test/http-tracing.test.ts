/**
 * Tracing with the HTTP fast path, as a user has it: Telemetry with a share of the requests, a Zipkin that takes the spans. What is
 * traced is the configured share, whole, and what is not is fast all the same.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { askAgent, instancePaths, type AgentFastPathStatus } from '../agent/index.js';
import { waitFor } from '../common/retry.js';
import { CURL, ECHO, FAST_NAMESPACE, fastPod, fastService } from './fast-world.js';
import { MeshWorld } from './mesh/world.js';

/** Takes spans as Zipkin does, and gives them back, and forgets them. */
const COLLECTOR = `
const spans = [];
require('node:http').createServer((q, r) => {
  if (q.method === 'DELETE') return spans.splice(0), r.end();
  if (q.method === 'GET') return r.end(JSON.stringify(spans.map(({ traceId, kind, name, tags, localEndpoint }) => ({ traceId, kind, name, service: tags['istio.canonical_service'], as: localEndpoint.serviceName, tags }))));
  let b = ''; q.on('data', (d) => b += d).on('end', () => { spans.push(...JSON.parse(b)); r.statusCode = 202; r.end(); });
}).listen(9411, '::');`;
/** Asks web, with the headers that Istio asks programs to hand on; /fresh: by a connection of its own. */
const MIDDLE = `
const http = require('node:http'); const agent = new http.Agent({ keepAlive: true });
const NAMES = ['x-request-id', 'x-b3-traceid', 'x-b3-spanid', 'x-b3-parentspanid', 'x-b3-sampled', 'x-b3-flags', 'b3', 'traceparent', 'tracestate'];
http.createServer({ keepAliveTimeout: 0 }, (q, r) => {
  const headers = Object.fromEntries(NAMES.filter((n) => q.headers[n] !== undefined).map((n) => [n, q.headers[n]]));
  http.get('http://web/', { agent: q.url === '/fresh' ? false : agent, headers }, (a) => { let b = ''; a.on('data', (d) => b += d).on('end', () => { r.writeHead(a.statusCode, { 'x-version': String(a.headers['x-version']), 'content-length': b.length }); r.end(b); }); })
    .on('error', () => { r.statusCode = 502; r.end(); });
}).listen(8080, '::');`;

const WORLD = `${FAST_NAMESPACE}${fastPod('client', CURL)}${fastPod('web', ECHO)}${fastPod('middle', `name: middle, image: node, command: [node, -e, ${JSON.stringify(MIDDLE)}], ports: [{name: http, containerPort: 8080}]`)}${fastService('web')}${fastService('middle')}apiVersion: v1
kind: Pod
metadata: {name: zipkin, namespace: outside, labels: {app: zipkin}}
spec: {containers: [{name: zipkin, image: node, command: [node, -e, ${JSON.stringify(COLLECTOR)}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: outside}
spec: {containers: [{name: curl, image: curl}]}
---
apiVersion: v1
kind: Service
metadata: {name: zipkin, namespace: outside}
spec: {selector: {app: zipkin}, ports: [{name: http, port: 9411}]}
`;
const telemetry = (percent: number): string => `apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders: [{name: zipkin, zipkin: {service: zipkin.outside.svc.cluster.local, port: 9411}}]
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: own, namespace: fast}
spec: {tracing: [{providers: [{name: zipkin}], randomSamplingPercentage: ${percent}}]}
`;
const traced = (percent: number): string => `${telemetry(percent)}---
# So web's inbound side is passed, which is traced as well.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secret, namespace: fast}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {paths: [/secret]}}]}]}
`;

const world = new MeshWorld('http-trace', { bare: true, outside: WORLD });
const socket = (): string => instancePaths({ instance: world.name }).adminSocket;
const counters = async (): Promise<Record<string, number>> => (JSON.parse(await askAgent(socket(), '/v1/counters')) as { node: Record<string, number> }).node;
const fastPath = async (): Promise<AgentFastPathStatus> => JSON.parse(await askAgent(socket(), '/v1/http-fast-path')) as AgentFastPathStatus;
const live = (): Promise<unknown> => waitFor('the pods to be live', async () => {
  const status = await fastPath();
  return status.on && status.pods.live >= 3 && status.pods.suspended === 0;
}, { timeoutMs: 60_000, everyMs: 20 }).catch(async (error: unknown) => {
  throw new Error(`${String(error)} ${JSON.stringify(await fastPath())} ${JSON.stringify((await world.agentStatus()).pods)}\n${world.agentLog().slice(-3000)}`);
});

interface Span {
  traceId: string;
  kind: 'CLIENT' | 'SERVER';
  name: string;
  service: string;
  /** As what the proxy names itself. */
  as: string;
  tags: Record<string, string>;
}
const zipkin = async (method: string): Promise<string> => (await world.lab.exec('outside/client', ['curl', '-s', '-X', method, 'http://zipkin.outside:9411/'])).stdout;

/** Envoy sends what it has every five seconds. */
async function settledSpans(): Promise<Span[]> {
  for (let before = -1, since = performance.now(); ; await sleep(200)) {
    const spans = JSON.parse(await zipkin('GET')) as Span[];
    if (spans.length !== before) [before, since] = [spans.length, performance.now()];
    else if (performance.now() - since > 6_500) return spans;
  }
}

interface Outcome {
  spans: Span[];
  /** What the kernel's counters grew by. */
  grown: Record<string, number>;
}

async function outcome(body: () => Promise<{ statuses: Record<string, number> }>, count: number): Promise<Outcome> {
  await settledSpans();
  await zipkin('DELETE');
  const start = await counters();
  const { statuses } = await body();
  const end = await counters();
  assert.deepEqual(statuses, { 200: count });
  return { spans: await settledSpans(), grown: Object.fromEntries(Object.entries(end).flatMap(([name, value]) => (name.startsWith('http_') && value !== start[name] ? [[name, value - (start[name] ?? 0)] as const] : []))) };
}

const load = (count: number, headers: Record<string, string> = {}, to = 'web') => world.load('outside', `http://${to}/`, count, { from: 'fast/client', headers, keepAlive: true });
/** Those that were not, since this process had no turn for a second, are none of the fast path's. */
const fastOf = (grown: Record<string, number>): number => (grown['http_requests_fast'] ?? 0) + (grown['http_switched_off'] ?? 0);
const of = (spans: readonly Span[], kind: Span['kind'], service: string): Span[] => spans.filter((span) => span.kind === kind && span.service === service);

before(async () => {
  await world.up();
  // Probation, as long as Envoy pools no connections to web: what is traced passes web's inbound side.
  for (const name of ['web', 'middle']) await world.load('outside', `http://${world.lab.pod('fast', name).ips[0]}:8080/`, 12, { from: 'fast/client', keepAlive: false });
  await world.load('outside', 'http://middle/fresh', 30, { from: 'fast/client', keepAlive: false });
  await waitFor('the servers to be known as event-driven', async () => (await world.agentStatus()).probation.filter(({ kind, verdict }) => kind === 'listener' && verdict === 'event-driven').length >= 2, { timeoutMs: 60_000, everyMs: 100 }).catch(async (error: unknown) => {
    throw new Error(`${String(error)} ${JSON.stringify((await world.agentStatus()).probation)}`);
  });
  await sleep(1_500);
  await world.apply('mesh', traced(20));
  await live();
});
after(() => world.down());

test('explain says that a route is repeated, and what share of it is traced', async () => {
  const { http } = await world.explain('fast/client', 'web', 80);
  assert.deepEqual(http?.routes.map(({ isFast, sampled }) => [isFast, sampled]), [[true, 0.2]], JSON.stringify(http));
});

for (const [percent, count] of [[20, 1_500], [1, 5_000]] as const) {
  test(`of ${count} requests ${percent} % are traced, by client and server, and the others are fast`, async (t) => {
    await world.apply('mesh', traced(percent));
    await live();
    await load(50);
    // The bounds of 99.9 % of a binomial distribution; one run in a thousand is outside by chance, two in a row are not.
    const share = percent / 100;
    const bound = 3.29 * Math.sqrt(count * share * (1 - share));
    for (let attempt = 0; ; attempt++) {
      const { spans, grown } = await outcome(() => load(count), count);
      const client = of(spans, 'CLIENT', 'client');
      const what = JSON.stringify({ spans: spans.length, client: client.length, grown });
      t.diagnostic(what);
      assert.equal(new Set(spans.map(({ traceId }) => traceId)).size, client.length, what);
      assert.equal(of(spans, 'SERVER', 'web').length, client.length, what);
      assert.ok(fastOf(grown) >= count - client.length - count * 0.02, what);
      if (Math.abs(client.length - count * share) <= bound) break;
      assert.equal(attempt, 0, what);
    }
  });
}

test('a request that comes as sampled is always traced, one that comes as not sampled never, and is fast', async () => {
  await world.apply('mesh', traced(20));
  await live();
  await load(50);
  const ids = { 'x-b3-traceid': '4bf92f3577b34da6a3ce929d0e0e4736', 'x-b3-spanid': '00f067aa0ba902b7' };
  const sampled = await outcome(() => load(100, { ...ids, 'x-b3-sampled': '1' }), 100);
  assert.deepEqual([of(sampled.spans, 'CLIENT', 'client').length, of(sampled.spans, 'SERVER', 'web').length], [100, 100], JSON.stringify(sampled.grown));
  assert.deepEqual([...new Set(sampled.spans.map(({ traceId }) => traceId))], [ids['x-b3-traceid']]);
  // As without the fast path, and as of sidecars: nothing of its copies of clusters shows.
  const seen = new Set(sampled.spans.map(({ kind, name, as, tags }) => JSON.stringify([kind, as, name, tags['upstream_cluster'], tags['upstream_cluster.name'], tags['node_id'], tags['http.status_code'], tags['response_flags'], tags['component']])));
  const node = (pod: string): string => `sidecar~${world.lab.pod('fast', pod).ips[0]}~${pod}.fast~fast.svc.cluster.local`;
  assert.deepEqual([...seen].map((text) => JSON.parse(text) as unknown).sort(), [
    ['CLIENT', 'client.fast', 'web.fast.svc.cluster.local:80/*', 'outbound|80||web.fast.svc.cluster.local', 'outbound|80||web.fast.svc.cluster.local;', node('client'), '200', '-', 'proxy'],
    ['SERVER', 'web.fast', 'web.fast.svc.cluster.local:80/*', 'inbound|8080||', 'inbound|8080||;', node('web'), '200', '-', 'proxy'],
  ]);
  const not = await outcome(() => load(300, { ...ids, 'x-b3-sampled': '0' }), 300);
  assert.deepEqual(not.spans, []);
  assert.ok(fastOf(not.grown) >= 290, JSON.stringify(not.grown));
});

test('with the label for it each request has an id of its own at the server, whoever had it; without it those that are fast have none', async () => {
  const script = `
    const http = require('node:http'); const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const one = () => new Promise((resolve, reject) => http.get('http://web/', { agent }, (a) => { let b = ''; a.on('data', (d) => b += d).on('end', () => resolve(JSON.parse(b).headers['x-request-id'] ?? '')); }).on('error', reject));
    (async () => { const ids = []; for (let i = 0; i < 200; i++) ids.push(await one()); agent.destroy(); console.log(JSON.stringify(ids)); })();`;
  const ids = async (): Promise<string[]> => JSON.parse((await world.lab.exec('fast/client', [process.execPath, '-e', script], { timeoutMs: 30_000 })).stdout) as string[];
  const label = (value: string | null): Promise<unknown> => world.lab.label({ kind: 'Pod', namespace: 'fast', name: 'client', labels: { 'underpass.io/request-id': value } });
  assert.ok((await ids()).filter((id) => id === '').length > 100);
  await label('true');
  const start = await counters();
  let last: string[] = [];
  await waitFor('the label to be in force', async () => (last = await ids()).every((id) => id !== '') && (await fastPath()).pods.live >= 3, { timeoutMs: 60_000, everyMs: 50 });
  assert.equal(new Set(last).size, 200);
  for (const id of last) assert.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-[49][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  await live();
  assert.ok((await ids()).every((id) => id !== '') && fastOf(await counters()) - fastOf(start) > 100);
  await label(null);
  await waitFor('the label to be gone', async () => (await ids()).some((id) => id === ''), { timeoutMs: 60_000, everyMs: 50 });
  await live();
});

test('through a service that hands its headers on: as many traces as the client\'s share, each of them whole, none that begins in the middle', async (t) => {
  await load(50, {}, 'middle');
  const count = 1_000;
  const { spans, grown } = await outcome(() => load(count, {}, 'middle'), count);
  const what = JSON.stringify({ spans: spans.length, grown });
  t.diagnostic(what);
  const traces = new Map<string, string[]>();
  for (const { traceId, kind, service } of spans) traces.set(traceId, [...(traces.get(traceId) ?? []), `${service} ${kind}`]);
  for (const parts of traces.values()) assert.deepEqual(parts.sort(), ['client CLIENT', 'middle CLIENT', 'middle SERVER', 'web SERVER'], what);
  assert.ok(Math.abs(traces.size - count * 0.2) <= 3.9 * Math.sqrt(count * 0.2 * 0.8), what);
  // Both hops.
  assert.ok(fastOf(grown) >= 2 * (count - traces.size) - 60, what);
});
