// Telemetry with real traffic through real Envoys, by sidecars and by the node's proxy: access logs and traces.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import type { Flow } from '../agent/index.js';
import { MeshWorld, MODES } from './mesh/world.js';

const folder = mkdtempSync(join(tmpdir(), 'up-telemetry-'));
chmodSync(folder, 0o777); // sidecars run as another user

/** Takes spans as Zipkin does, and gives them back. */
const COLLECTOR = `
const spans = [];
require('node:http').createServer((q, r) => { if (q.method === 'GET') return r.end(JSON.stringify(spans)); let b = ''; q.on('data', (d) => b += d).on('end', () => { spans.push(...JSON.parse(b)); r.statusCode = 202; r.end(); }); }).listen(9411, '::');`;

const mesh = new MeshWorld('telemetry', {
  outside: `apiVersion: v1
kind: Pod
metadata: {name: zipkin, namespace: outside, labels: {app: zipkin}}
spec: {containers: [{name: zipkin, image: node, command: [node, -e, ${JSON.stringify(COLLECTOR)}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: zipkin, namespace: outside}
spec: {selector: {app: zipkin}, ports: [{name: http, port: 9411}]}
`,
});
before(async () => {
  await mesh.up();
  await mesh.apply('mesh', `apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
      - {name: zipkin, zipkin: {service: zipkin.outside.svc.cluster.local, port: 9411}}
      - {name: sidecar, envoyFileAccessLog: {path: ${join(folder, 'sidecar.log')}, logFormat: {labels: {status: "%RESPONSE_CODE%", path: "%REQ(:PATH)%"}}}}
      - {name: node, envoyFileAccessLog: {path: ${join(folder, 'node.log')}, logFormat: {labels: {status: "%RESPONSE_CODE%", path: "%REQ(:PATH)%"}}}}
`);
});
after(async () => {
  await mesh.down();
  rmSync(folder, { recursive: true, force: true });
});

const telemetry = (spec: string): string => `apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: own}\nspec: ${spec}\n`;

interface Span {
  kind: string;
  tags: Record<string, string>;
}

for (const mode of MODES) {
  test(`access logs: a provider's file has a line for each request that its filter takes (${mode})`, async () => {
    const path = join(folder, `${mode}.log`);
    await mesh.apply(mode, telemetry(`{accessLogging: [{match: {mode: CLIENT}, providers: [{name: ${mode}}], filter: {expression: "request.url_path.startsWith('/logged')"}}]}`));
    assert.equal((await mesh.curl(mode, 'http://web/other')).status, 200);
    assert.equal((await mesh.curl(mode, 'http://web/logged?a=b')).status, 200);
    const lines = (): string[] => (existsSync(path) ? readFileSync(path, 'utf8').trim().split('\n').filter((line) => line !== '') : []);
    await waitFor('a line in the log', () => lines().length > 0, { timeoutMs: 60_000, everyMs: 100 });
    // The node's Envoy writes for all of its pods.
    assert.deepEqual(lines().map((line) => JSON.parse(line) as unknown), [{ status: 200, path: '/logged?a=b', ...(mode === 'node' ? { pod: 'node/client' } : {}) }]);
    assert.deepEqual(await mesh.nacks(), []);
    await mesh.clear(mode);
  });

  test(`traces: a sampled request is a span at the collector, with Istio's tags and one's own (${mode})`, async () => {
    await mesh.apply(mode, telemetry('{tracing: [{providers: [{name: zipkin}], randomSamplingPercentage: 100, customTags: {mine: {header: {name: x-mine, defaultValue: none}}}}]}'));
    assert.equal((await mesh.curl(mode, 'http://web/traced', { headers: { 'x-mine': mode } })).status, 200);
    const spans = async (): Promise<Span[]> => (JSON.parse((await mesh.lab.exec('outside/client', ['curl', '-s', 'http://zipkin.outside:9411/'])).stdout) as Span[]).filter(({ tags }) => tags['mine'] === mode);
    await waitFor('a span at the collector', async () => (await spans()).length > 0, { timeoutMs: 120_000, everyMs: 200 });
    const [span] = await spans();
    assert.equal(span!.tags['istio.namespace'], mode);
    assert.match(span!.tags['http.url'] ?? '', /\/traced$/);
    assert.deepEqual(await mesh.nacks(), []);
    await mesh.clear(mode);
  });
}

const CLI = join(import.meta.dirname, '../cli/main.js');

/** `underpass flows -f -o json`, once the agent listens with it. */
async function following(...args: string[]): Promise<{ flows: Flow[]; child: ReturnType<typeof spawn>; end: (signal: NodeJS.Signals) => Promise<number | null> }> {
  const child = spawn(process.execPath, [CLI, 'flows', '-f', '-o', 'json', '--instance', mesh.name, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  const flows: Flow[] = [];
  let rest = '';
  child.stdout.on('data', (chunk: Buffer) => {
    const lines = (rest + chunk.toString()).split('\n');
    rest = lines.pop() ?? '';
    flows.push(...lines.map((line) => JSON.parse(line) as Flow));
  });
  await waitFor('Envoy to be told', async () => (await isTold()) === '100', { timeoutMs: 60_000, everyMs: 100 });
  const end = async (signal: NodeJS.Signals): Promise<number | null> => {
    child.kill(signal);
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    return child.exitCode;
  };
  return { flows, child, end };
}

/** What Envoy's runtime has for the flows' logger. */
async function isTold(): Promise<string | undefined> {
  return (JSON.parse(await mesh.nodeProxyAdmin('/runtime')) as { entries: Record<string, { final_value: string } | undefined> }).entries['underpass.flows']?.final_value;
}

const ends = ({ source, destination }: Flow): unknown[] => [source.namespace, source.pod, destination.namespace, destination.pod];

test('underpass flows -f: requests through Envoy, connections without a proxy and what policy denies are one stream, and nobody is told once it has ended', async () => {
  await mesh.apply('node', `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {paths: ["/denied"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: other}
spec: {selector: {matchLabels: {app: other}}, action: DENY, rules: [{to: [{operation: {ports: ["9000"]}}]}]}
`);
  const { flows, end } = await following('--from', 'node/client');
  assert.equal((await mesh.curl('node', 'http://web/flows?a=b')).status, 200);
  assert.equal((await mesh.curl('node', 'http://web/denied')).status, 403);
  await mesh.lab.exec('node/client', ['curl', '-s', '-m', '5', 'telnet://other:9000']);
  const seen = (path: string, reporter: Flow['reporter']): Flow | undefined => flows.find((flow) => flow.path === path && flow.reporter === reporter);
  await waitFor('both requests, seen on both sides, and the connection', () => (['source', 'destination'] as const).every((side) => seen('/flows?a=b', side) && seen('/denied', side)) && flows.some(({ kind, verdict }) => kind === 'connection' && verdict === 'denied'), { timeoutMs: 120_000, everyMs: 100 }).catch((error: unknown) => {
    throw new Error(`${String(error)}\n${JSON.stringify(flows, undefined, 1)}`);
  });
  const request = seen('/flows?a=b', 'source')!;
  assert.deepEqual([request.kind, request.verdict, request.way, request.method, request.response_code, request.authority], ['request', 'allowed', 'envoy', 'GET', 200, 'web']);
  assert.deepEqual(ends(request).slice(0, 3), ['node', 'client', 'node']);
  assert.match(request.destination.pod ?? '', /^web-v[12]$/);
  assert.deepEqual(ends(seen('/flows?a=b', 'destination')!), ends(request));
  assert.deepEqual([seen('/denied', 'destination')!.verdict, seen('/denied', 'destination')!.response_code], ['denied', 403]);
  const denied = flows.find(({ kind, verdict }) => kind === 'connection' && verdict === 'denied')!;
  assert.deepEqual([ends(denied), denied.destination.port, denied.method], [['node', 'client', 'node', 'other'], 9000, null]);
  await end('SIGINT');
  await waitFor('Envoy to be told that nobody listens', async () => (await isTold()) === '0', { timeoutMs: 60_000, everyMs: 100 });
  const known = (await run(process.execPath, [CLI, 'flows', '--instance', mesh.name, '--verdict', 'denied', '--to', 'other'])).stdout;
  assert.match(known, /^TIME +VERDICT +WAY .*\n[\d:.]+ +denied +- +client +node\/client +node\/other:9000 +connection/);
  await mesh.clear('node');
});

test('underpass flows -f: a listener that is killed, or whose reader has seen enough, is no listener any more', async () => {
  const killed = await following();
  await killed.end('SIGKILL');
  await waitFor('nobody to listen', async () => (await isTold()) === '0', { timeoutMs: 60_000, everyMs: 100 });
  const cut = await following();
  cut.child.stdout!.destroy();
  await waitFor('its end', async () => {
    await mesh.curl('node', 'http://web/cut');
    return cut.child.exitCode !== null;
  }, { timeoutMs: 120_000, everyMs: 200 });
  assert.equal(cut.child.exitCode, 0);
  await waitFor('nobody to listen', async () => (await isTold()) === '0', { timeoutMs: 60_000, everyMs: 100 });
});
