/**
 * DestinationRule's outlierDetection with the HTTP fast path, as a user has it: of two servers one begins to answer 503. The kernel
 * leaves it out for the ejection time, requests to the other stay fast, and then the first is asked again.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { askAgent, instancePaths, type AgentFastPathStatus } from '../agent/index.js';
import { waitFor } from '../common/retry.js';
import { CURL, ECHO, FAST_NAMESPACE, fastPod, fastService } from './fast-world.js';
import { MeshWorld } from './mesh/world.js';

/** Longer than a 5xx puts its class through Envoy. */
const EJECTION_MS = 20_000;

const WORLD = `${FAST_NAMESPACE}${fastPod('client', CURL)}${fastPod('web-v1', ECHO)}${fastPod('web-v2', ECHO)}${fastService('web')}`;
const RULE = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: fast}
spec:
  host: web
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 3, interval: 500ms, baseEjectionTime: ${EJECTION_MS / 1_000}s, maxEjectionPercent: 100}
`;
const CLUSTER = 'outbound|80||web.fast.svc.cluster.local';

const world = new MeshWorld('http-outlier', { bare: true, outside: WORLD });
const ask = async <T>(path: string): Promise<T> => JSON.parse(await askAgent(instancePaths({ instance: world.name }).adminSocket, path)) as T;
const counters = async (): Promise<Record<string, number>> => (await ask<{ node: Record<string, number> }>('/v1/counters')).node;
const fastPath = (): Promise<AgentFastPathStatus> => ask('/v1/http-fast-path');
const ejected = async (): Promise<string[]> => (await fastPath()).tables.outliers.clusters.flatMap((each) => each.ejected.map(({ address }) => address));
const address = (name: string): string => world.lab.pod('fast', name).ips[0]!;
const load = (count: number): ReturnType<MeshWorld['load']> => world.load('outside', 'http://web/', count, { from: 'fast/client' });
/** Past the mesh's routes, of the server itself. */
const tell = (name: string, method: string, path: string): Promise<string> => world.lab.exec('fast/client', ['curl', '-s', '-X', method, `http://${address(name)}:8080${path}`]).then(({ stdout }) => stdout);
const asked = async (name: string): Promise<number> => (JSON.parse(await tell(name, 'GET', '/count')) as { total: number }).total;

before(async () => {
  await world.up();
  await world.apply('mesh', RULE);
  for (const name of ['web-v1', 'web-v2']) await world.load('outside', `http://${address(name)}:8080/`, 12, { from: 'fast/client', keepAlive: false });
  await waitFor('the servers to be known as event-driven', async () => (await world.agentStatus()).probation.filter(({ kind, verdict }) => kind === 'listener' && verdict === 'event-driven').length >= 2, { timeoutMs: 60_000, everyMs: 100 });
  await sleep(1_500);
  await world.settled();
  await waitFor('the pods to be live', async () => {
    const { on, pods } = await fastPath();
    return on && pods.live >= 3 && pods.suspended === 0;
  }, { timeoutMs: 60_000, everyMs: 20 }).catch(async (error: unknown) => {
    throw new Error(`${String(error)} ${JSON.stringify(await fastPath())}\n${world.agentLog().slice(-3000)}`);
  });
});
after(() => world.down());

async function fastShare(count: number): Promise<{ fast: number; statuses: Record<string, number>; versions: Record<string, number>; grown: string }> {
  const start = await counters();
  const { statuses, versions } = await load(count);
  const end = await counters();
  const grown = (name: string): number => (end[name] ?? 0) - (start[name] ?? 0);
  return { fast: grown('http_requests_fast') + grown('http_switched_off'), statuses, versions, grown: JSON.stringify(Object.entries(end).filter(([name, value]) => name.startsWith('http_') && value !== start[name])) };
}

test('a server that fails is left out for its ejection time, and the other one stays fast; then it is asked again', async () => {
  const usual = await fastShare(200);
  assert.deepEqual(usual.statuses, { 200: 200 });
  assert.ok(usual.versions['v1']! > 20 && usual.versions['v2']! > 20, JSON.stringify(usual.versions));
  assert.ok(usual.fast >= 180, usual.grown);

  await tell('web-v1', 'PUT', '/fail/503');
  const failing = await load(60);
  // Istio's default retries leave a 503 as it is.
  assert.deepEqual(failing.statuses, { 200: 57, 503: 3 });
  const since = performance.now();
  assert.deepEqual(await ejected(), [address('web-v1')], JSON.stringify((await fastPath()).tables.outliers));
  const before_ = await asked('web-v1');
  const drawn = await load(100);
  assert.deepEqual([drawn.statuses, drawn.versions], [{ 200: 100 }, { v2: 100 }]);

  const { http } = await world.explain('fast/client', 'web', 80);
  assert.deepEqual(http?.ejected.map((each) => [each.cluster, each.address, each.port]), [[CLUSTER, address('web-v1'), 8080]], JSON.stringify(http));
  const metrics = await world.agentMetrics();
  assert.match(metrics, /^underpass_http_outlier_ejections_active\{cluster="outbound\|80\|\|web\.fast\.svc\.cluster\.local"\} 1$/m);
  assert.match(metrics, /^underpass_http_outlier_ejections_enforced_total\{cluster="outbound\|80\|\|web\.fast\.svc\.cluster\.local",type="consecutive_5xx"\} 1$/m);
  assert.match(world.agentLog(), /an endpoint is ejected/);

  // A 5xx puts its class through Envoy for ten seconds.
  await waitFor('requests to be fast again', async () => (await fastShare(20)).fast >= 18, { timeoutMs: 14_000, everyMs: 500 });
  const fast = await fastShare(200);
  assert.ok(performance.now() - since < EJECTION_MS, 'the machine is too slow for this test');
  assert.deepEqual([fast.statuses, fast.versions], [{ 200: 200 }, { v2: 200 }]);
  assert.ok(fast.fast >= 190, fast.grown);
  assert.equal(await asked('web-v1'), before_, 'nobody has asked it');

  await tell('web-v1', 'DELETE', '/fail');
  await waitFor('it to be asked again', async () => ((await load(20)).versions['v1'] ?? 0) > 0, { timeoutMs: 120_000, everyMs: 200 });
  // The test began to count a moment after the kernel did.
  assert.ok(performance.now() - since > EJECTION_MS - 2_000, `after ${performance.now() - since} ms`);
  const again = await fastShare(200);
  assert.deepEqual(again.statuses, { 200: 200 });
  assert.ok(again.versions['v1']! > 20 && again.fast >= 180, again.grown);
  assert.deepEqual(await ejected(), []);
});
