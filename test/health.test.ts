// Health checks by the node's Envoy: a Service asks for them, the shared Envoy makes them inside the pods, every client hears of them.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { waitFor } from '../common/retry.js';
import { MeshWorld } from './mesh/world.js';

/** A file of this name makes a server's /ready fail; its other answers stay as they are. */
const folder = mkdtempSync(join(tmpdir(), 'up-health-flags-'));
const PROGRAM = `require('node:http').createServer((q, s) => { const bad = q.url === '/ready' && require('node:fs').existsSync(${JSON.stringify(folder)} + '/' + process.argv[1]); s.writeHead(bad ? 503 : 200, { 'content-type': 'application/json' }).end(JSON.stringify({ pod: process.argv[1], version: 'v' })); }).listen(8080, '::')`;

const mesh = new MeshWorld('health', {
  yaml: (namespace) =>
    ['a', 'b']
      .map((name) => `apiVersion: v1
kind: Pod
metadata: {name: checked-${name}, namespace: ${namespace}, labels: {app: checked}}
spec: {containers: [{name: app, image: busybox, command: [${JSON.stringify(process.execPath)}, -e, ${JSON.stringify(PROGRAM)}, ${namespace}-${name}], ports: [{containerPort: 8080}]}]}
`)
      .join('---\n') + `---
apiVersion: v1
kind: Service
metadata: {name: checked, namespace: ${namespace}, annotations: {underpass.io/health-check: "http /ready interval=200ms timeout=1s unhealthy=2"}}
spec: {selector: {app: checked}, ports: [{name: http, port: 80, targetPort: 8080}]}
`,
});

before(() => mesh.up());
after(async () => {
  await mesh.down();
  rmSync(folder, { recursive: true, force: true });
});

const pods = async (): Promise<string[]> => Object.keys((await mesh.load('node', 'http://checked/', 12)).pods).sort();

test('an endpoint whose check fails gets no requests, although Kubernetes calls it ready, and gets them again when it is well', async () => {
  assert.deepEqual(await pods(), ['node-a', 'node-b']);
  const flag = join(folder, 'node-a');
  writeFileSync(flag, '');
  await waitFor('requests to go to the other alone', async () => (await pods()).join() === 'node-b', { timeoutMs: 60_000, everyMs: 100 });
  assert.deepEqual(Object.keys((await mesh.load('sidecar', 'http://checked.node/', 12)).pods), ['node-b'], 'clients with a sidecar hear of it as well');
  rmSync(flag);
  await waitFor('requests to go to both again', async () => (await pods()).length === 2, { timeoutMs: 60_000, everyMs: 100 });
  assert.deepEqual(await mesh.nacks(), []);
});
