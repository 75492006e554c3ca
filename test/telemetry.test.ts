// Telemetry with real traffic through real Envoys, by sidecars and by the node's proxy: access logs and flows.
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
import { CLI } from './agent-harness.js';
import { following, type Following } from './following.js';
import { COLLECTOR, collectedLogs, meshConfig, TRACERS } from './collector/world.js';
import type { CollectedLog } from './collector/collector.js';
import { MeshWorld, MODES } from './mesh/world.js';
import { JSON_FORMAT } from '../common/telemetry/access-log-format.js';

const folder = mkdtempSync(join(tmpdir(), 'up-telemetry-'));
chmodSync(folder, 0o777); // sidecars run as another user

/** So few that a test sees the bound; another test's lines are one by one. */
const LINES_A_SECOND = 50;
const mesh = new MeshWorld('telemetry', { outside: COLLECTOR, agentArgs: ['--access-log-rate', String(LINES_A_SECOND)] });
before(async () => {
  await mesh.up();
  const file = (mode: string): string => `{name: ${mode}, envoyFileAccessLog: {path: ${join(folder, `${mode}.log`)}, logFormat: {labels: {status: "%RESPONSE_CODE%", path: "%REQ(:PATH)%"}}}}, {name: ${mode}-text, envoyFileAccessLog: {path: ${join(folder, `${mode}.text`)}}}, {name: ${mode}-json, envoyFileAccessLog: {path: ${join(folder, `${mode}.json`)}, logFormat: {labels: {}}}}`;
  await mesh.apply('mesh', meshConfig(`extensionProviders: [${TRACERS}, ${MODES.map(file).join(', ')}, {name: otel, envoyOtelAls: {service: collector.outside.svc.cluster.local, port: 4317, logFormat: {text: "%RESPONSE_CODE% %REQ(:PATH)%", labels: {flags: "%RESPONSE_FLAGS%"}}}}, {name: als, envoyHttpAls: {service: collector.outside.svc.cluster.local, port: 9001, logName: mine}}]`));
});
after(async () => {
  await mesh.down();
  rmSync(folder, { recursive: true, force: true });
});

const telemetry = (spec: string): string => `apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: own}\nspec: ${spec}\n`;

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

  test(`access logs: Istio's own formats, text and JSON, of both sides of a request; the other side's name for what it was sent to (${mode})`, async () => {
    await mesh.apply(mode, telemetry(`{accessLogging: [{providers: [{name: ${mode}-text}, {name: ${mode}-json}]}]}`));
    assert.equal((await mesh.curl(mode, 'http://other/lines?a=b', { headers: { 'user-agent': 'agent "with" quotes' } })).status, 200);
    const lines = (kind: string): string[] => (existsSync(join(folder, `${mode}.${kind}`)) ? readFileSync(join(folder, `${mode}.${kind}`), 'utf8').split('\n').filter((line) => line.includes('/lines?a=b')) : []);
    await waitFor('lines of both sides in both logs', () => lines('text').length >= 2 && lines('json').length >= 2, { timeoutMs: 60_000, everyMs: 100 }).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${lines('text').join('\n')}\n${lines('json').join('\n')}`);
    });
    // Text: https://istio.io/latest/docs/tasks/observability/logs/access-log/, and behind it whose pod it is.
    const cluster = (side: string): string => (side === 'client' ? `outbound\\|80\\|\\|other\\.${mode}\\.svc\\.cluster\\.local` : 'inbound\\|8080\\|\\|');
    for (const [side, pod] of [['client', 'client'], ['server', 'other']] as const) {
      const owner = mode === 'node' ? ` "node/${pod}"` : '';
      const own = new RegExp(`^\\[[-\\d:.TZ]+\\] "GET /lines\\?a=b HTTP/1\\.1" 200 - via_upstream - "-" 0 \\d+ \\d+ \\d+ "[^"]*" "agent .*" "[-0-9a-f]{36}" "other" "[^"]+" ${cluster(side)} \\S+ \\S+ \\S+ \\S+ default${owner}$`);
      assert.equal(lines('text').filter((line) => own.test(line)).length, 1, `${own.source}\n${lines('text').join('\n')}`);
    }
    const parsed = lines('json').map((line) => JSON.parse(line) as Record<string, unknown>);
    assert.deepEqual(parsed.map(({ upstream_cluster }) => upstream_cluster).sort(), ['inbound|8080||', `outbound|80||other.${mode}.svc.cluster.local`]);
    for (const line of parsed) {
      assert.deepEqual([line['method'], line['path'], line['response_code'], line['response_code_details'], line['route_name'], line['user_agent'], typeof line['duration']], ['GET', '/lines?a=b', 200, 'via_upstream', 'default', 'agent "with" quotes', 'number'], JSON.stringify(line));
      assert.deepEqual(Object.keys(line).sort(), [...Object.keys(JSON_FORMAT), ...(mode === 'node' ? ['pod'] : [])].sort());
    }
    assert.deepEqual(await mesh.nacks(), []);
    await mesh.clear(mode);
  });

  test(`access logs: to services, by OpenTelemetry and by Envoy's own protocol (${mode})`, async () => {
    await mesh.apply(mode, telemetry('{accessLogging: [{match: {mode: CLIENT}, providers: [{name: otel}, {name: als}]}]}'));
    assert.equal((await mesh.curl(mode, `http://web/told/${mode}`)).status, 200);
    const found = async (): Promise<CollectedLog[]> => (await collectedLogs(mesh)).filter((log) => JSON.stringify(log).includes(`/told/${mode}`));
    await waitFor('a line of each', async () => new Set((await found()).map(({ by }) => by)).size === 2, { timeoutMs: 120_000, everyMs: 200 }).catch(async (error: unknown) => {
      throw new Error(`${String(error)}\n${JSON.stringify(await collectedLogs(mesh))}`);
    });
    const [otel, als] = ['otlp', 'als'].map((by) => found().then((all) => all.find((log) => log.by === by)!));
    assert.deepEqual([(await otel!).text, (await otel!).fields], [`200 /told/${mode}`, { flags: '-', ...(mode === 'node' ? { pod: 'node/client' } : {}) }]);
    assert.equal((await als!).name, 'mine');
    if (mode === 'node') assert.match(JSON.stringify((await als!).fields), /"pod":"node\/client"/);
    assert.deepEqual(await mesh.nacks(), []);
    await mesh.clear(mode);
  });
}

test('access logs: the shared Envoy writes so many lines in a second and no more, says how many it left out, and answers all requests', async () => {
  const path = join(folder, 'node.log');
  const written = (): number => (existsSync(path) ? readFileSync(path, 'utf8').split('\n').length - 1 : 0);
  const before = written();
  await mesh.apply('node', telemetry('{accessLogging: [{match: {mode: CLIENT}, providers: [{name: node}]}]}'));
  const began = performance.now();
  assert.deepEqual((await mesh.load('node', 'http://web/rate', 2_000)).statuses, { 200: 2_000 });
  const dropped = async (): Promise<number> => Number(/^underpass_envoy_access_log_dropped_total\{reason="over_rate"\} (\d+)$/m.exec(await mesh.agentMetrics())?.[1] ?? 0);
  const lines = (): number => written() - before;
  await waitFor('each line to be written or counted', async () => lines() + (await dropped()) >= 2_000, { timeoutMs: 60_000, everyMs: 500 }).catch(async (error: unknown) => {
    throw new Error(`${String(error)} ${lines()} ${await dropped()}`);
  });
  assert.equal(lines() + (await dropped()), 2_000);
  // A burst, and what the time has had room for.
  assert.ok(lines() <= LINES_A_SECOND * (2 + (performance.now() - began) / 1_000), `${lines()} lines`);
  await mesh.clear('node');
});

/** `underpass flows -f -o json`, once the agent listens with it. */
async function followingFlows(...args: string[]): Promise<{ flows: Flow[] } & Pick<Following<Flow>, 'child' | 'end'>> {
  const { lines, child, end } = following<Flow>('flows', '-f', '-o', 'json', '--instance', mesh.name, ...args);
  await waitFor('Envoy to be told', async () => (await isTold()) === '100', { timeoutMs: 60_000, everyMs: 100 });
  return { flows: lines, child, end };
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
  const { flows, end } = await followingFlows('--from', 'node/client');
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
  const killed = await followingFlows();
  await killed.end('SIGKILL');
  await waitFor('nobody to listen', async () => (await isTold()) === '0', { timeoutMs: 60_000, everyMs: 100 });
  const cut = await followingFlows();
  cut.child.stdout!.destroy();
  await waitFor('its end', async () => {
    await mesh.curl('node', 'http://web/cut');
    return cut.child.exitCode !== null;
  }, { timeoutMs: 120_000, everyMs: 200 });
  assert.equal(cut.child.exitCode, 0);
  await waitFor('nobody to listen', async () => (await isTold()) === '0', { timeoutMs: 60_000, everyMs: 100 });
  // As a cluster's agents are followed: the API server ends the standard input of what it executes for one who goes away.
  const executed = spawn(process.execPath, [CLI, 'request', '/v1/flows?follow=true', '--follow', '--instance', mesh.name], { stdio: ['pipe', 'pipe', 'inherit'] });
  await waitFor('Envoy to be told', async () => (await isTold()) === '100', { timeoutMs: 60_000, everyMs: 100 });
  executed.stdin.end();
  const [code] = (await once(executed, 'exit')) as [number];
  assert.equal(code, 0);
  await waitFor('nobody to listen', async () => (await isTold()) === '0', { timeoutMs: 60_000, everyMs: 100 });
});
