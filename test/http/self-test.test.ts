/** A node whose kernel does wrong what only the HTTP fast path needs: requests go through Envoy, connections are short-circuited all the same. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { askAgent, instancePaths, type AgentFastPathStatus } from '../../agent/index.js';
import { projectRoot } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { BpfObject } from '../../native/index.js';
import { CLI } from '../agent-harness.js';
import { MeshWorld } from '../mesh/world.js';

const echo = (name: string): string => `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: fast, labels: {app: ${name}}}
spec: {serviceAccountName: ${name}, containers: [{${name === 'client' ? 'name: curl, image: curl' : 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}]'}}]}
---
`;
const WORLD = `apiVersion: v1
kind: Namespace
metadata: {name: fast, labels: {underpass.io/mode: node, underpass.io/acceleration: l7}}
---
${echo('client')}${echo('web')}apiVersion: v1
kind: Service
metadata: {name: web, namespace: fast}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
`;
/** So that HTTP is Envoy's to route. */
const ROUTES = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: fast}
spec:
  hosts: [web]
  http: [{match: [{uri: {prefix: /}}], route: [{destination: {host: web}}]}]
`;

function bitOf(fault: string): number {
  const object = BpfObject.open({ pinDir: null, programs: [] });
  try {
    return object.enumValues('http_fault')[fault]!;
  } finally {
    object.close();
  }
}

const world = new MeshWorld('http-self', {
  bare: true, outside: WORLD,
  agentEnv: { NODE_OPTIONS: `--import=${pathToFileURL(join(projectRoot, 'dist/test/http/faulty-self-test.js')).href}`, UNDERPASS_TEST_FAULT: String(bitOf('HTTP_FAULT_ORDER')) },
});
const ask = async <T>(path: string): Promise<T> => JSON.parse(await askAgent(instancePaths({ instance: world.name }).adminSocket, path)) as T;
const counters = async (): Promise<Record<string, number>> => (await ask<{ node: Record<string, number> }>('/v1/counters')).node;

before(async () => {
  await world.up();
  await world.apply('mesh', ROUTES);
});
after(() => world.down());

test('requests are answered through Envoy, whose connections are short-circuited, and none is fast', async () => {
  // The first of them end the client's probation.
  for (const count of [12, 200]) {
    const before = await counters();
    const { statuses } = await world.load('outside', 'http://web/', count, { from: 'fast/client', headers: {}, keepAlive: count > 12 });
    const after = await counters();
    const grown = (name: string): number => (after[name] ?? 0) - (before[name] ?? 0);
    assert.deepEqual(statuses, { 200: count });
    assert.equal(after['http_requests_fast'] ?? 0, 0);
    if (count > 12) assert.ok(grown('http_switched_off') >= 190 && grown('messages_short_circuited') >= 190, JSON.stringify(after));
  }
});

test('the reason is in the status, the metrics, the log and `underpass fast-path`, which can not switch it on', async () => {
  const status = await world.agentStatus();
  assert.deepEqual([status.acceleration.on, status.redirection.bpfProblem], [true, undefined]);
  assert.match(status.httpFastPath?.reason ?? '', /^the self-test failed: http-order: /);
  await askAgent(instancePaths({ instance: world.name }).adminSocket, '/v1/http-fast-path?on=true', { method: 'POST' });
  assert.equal((await ask<AgentFastPathStatus>('/v1/http-fast-path')).on, false);
  const { stdout } = await run(process.execPath, [CLI, 'fast-path', '--instance', world.name]);
  assert.match(stdout, /^HTTP fast path off - the self-test failed: http-order: /m);
  const metrics = await world.agentMetrics();
  assert.match(metrics, /^underpass_http_fast_path_on\{reason="the self-test failed: http-order: .*"\} 0$/m);
  assert.match(metrics, /^underpass_self_test_passed\{check="http-order"\} 0$/m);
  assert.match(metrics, /^underpass_acceleration_on 1$/m);
  assert.match(world.agentLog(), /self-test: the HTTP fast path is off, all requests go through Envoy/);
});
