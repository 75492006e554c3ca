// Telemetry with real traffic through real Envoys, by sidecars and by the node's proxy: access logs and traces.
import assert from 'node:assert/strict';
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { waitFor } from '../common/retry.js';
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
    await waitFor('a line in the log', () => lines().length > 0, { timeoutMs: 20_000, everyMs: 100 });
    assert.deepEqual(lines().map((line) => JSON.parse(line) as unknown), [{ status: 200, path: '/logged?a=b' }]);
    assert.deepEqual(await mesh.nacks(), []);
    await mesh.clear(mode);
  });

  test(`traces: a sampled request is a span at the collector, with Istio's tags and one's own (${mode})`, async () => {
    await mesh.apply(mode, telemetry('{tracing: [{providers: [{name: zipkin}], randomSamplingPercentage: 100, customTags: {mine: {header: {name: x-mine, defaultValue: none}}}}]}'));
    assert.equal((await mesh.curl(mode, 'http://web/traced', { headers: { 'x-mine': mode } })).status, 200);
    const spans = async (): Promise<Span[]> => (JSON.parse((await mesh.lab.exec('outside/client', ['curl', '-s', 'http://zipkin.outside:9411/'])).stdout) as Span[]).filter(({ tags }) => tags['mine'] === mode);
    await waitFor('a span at the collector', async () => (await spans()).length > 0, { timeoutMs: 30_000, everyMs: 200 });
    const [span] = await spans();
    assert.equal(span!.tags['istio.namespace'], mode);
    assert.match(span!.tags['http.url'] ?? '', /\/traced$/);
    assert.deepEqual(await mesh.nacks(), []);
    await mesh.clear(mode);
  });
}
