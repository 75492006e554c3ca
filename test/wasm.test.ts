// WasmPlugins with a real module in real Envoys: from a file and over HTTP, in order, with configuration and metrics; a module that is not what it should be.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildDir } from '../common/paths.js';
import { waitFor } from '../common/retry.js';
import { MODES, MeshWorld, type Mode } from './mesh/world.js';

const MODULE = join(buildDir, 'test-plugin.wasm');
const SHA256 = createHash('sha256').update(readFileSync(MODULE)).digest('hex');
/** Whatever is asked for, the module; a path of its own is a module of its own to Envoy's cache. */
const SERVER = `require('node:http').createServer((q, r) => require('node:fs').createReadStream(${JSON.stringify(MODULE)}).pipe(r)).listen(8080, '::')`;
const MODULES = `
apiVersion: v1
kind: Pod
metadata: {name: modules, namespace: outside, labels: {app: modules}}
spec: {containers: [{name: server, command: [${process.execPath}, -e, ${JSON.stringify(SERVER)}], ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: modules, namespace: outside}
spec: {selector: {app: modules}, ports: [{name: http, port: 80, targetPort: 8080}]}
`;

const mesh = new MeshWorld('wasm', { outside: MODULES });
before(() => mesh.up());
after(() => mesh.down());

const plugin = (name: string, spec: string): string => `
---
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: ${name}}
spec: {selector: {matchLabels: {app: web}}, ${spec}}
`;
const FILE = `url: "file://${MODULE}"`;
const remote = (path: string, sha256: string): string => `url: "http://modules.outside.svc.cluster.local/${path}", sha256: ${sha256}`;
const config = (word: string): string => `pluginConfig: {word: ${word}}`;

interface Seen {
  status: number;
  request: string;
  response: string | undefined;
}
async function ask(mode: Mode, host = 'web'): Promise<Seen> {
  const { status, headers, body } = await mesh.curl(mode, `http://${host}/`);
  return { status, request: String(body['headers']?.['x-wasm-order'] ?? ''), response: headers['x-wasm'] };
}
const becomes = async (mode: Mode, what: string, test: (seen: Seen) => boolean): Promise<Seen> => {
  let seen: Seen | undefined;
  await waitFor(what, async () => test((seen = await ask(mode))), { timeoutMs: 60_000, everyMs: 50 }).catch((error: unknown) => {
    throw new Error(`${String(error)}: ${JSON.stringify(seen)}`);
  });
  return seen!;
};
const word = (...words: string[]): string => words.map((text) => JSON.stringify({ word: text })).join(', ');

for (const mode of MODES) {
  test(`WasmPlugin from a file: plugins run by phase, then priority; each sees its configuration (${mode})`, async () => {
    await mesh.apply(mode, plugin('a', `${FILE}, phase: STATS, ${config('last')}`) + plugin('b', `${FILE}, phase: AUTHN, priority: 1, ${config('second')}`) + plugin('c', `${FILE}, phase: AUTHN, priority: 10, ${config('first')}`) + plugin('d', `${FILE}, phase: AUTHZ, ${config('third')}`));
    assert.deepEqual(await mesh.nacks(), []);
    const { status, request } = await becomes(mode, 'all plugins', ({ request: order }) => order.includes('last'));
    assert.deepEqual([status, request], [200, word('first', 'second', 'third', 'last')]);
    assert.equal((await ask(mode, 'other')).request, '', 'of other workloads nothing is changed');
  });

  test(`WasmPlugin: a plugin's counter is among the proxy's statistics (${mode})`, async () => {
    await mesh.apply(mode, plugin('counting', `${FILE}, ${config('counting')}`));
    await becomes(mode, 'the plugin', ({ request }) => request === word('counting'));
    const total = async (): Promise<number> => {
      const proxies = mode === 'sidecar' ? ['web-v1', 'web-v2'] : ['web-v1'];
      const texts = await Promise.all(proxies.map((name) => mesh.proxyAdmin(`${mode}/${name}`, '/stats?filter=wasm_test_requests')));
      return texts.flatMap((text) => [...text.matchAll(/wasm_test_requests: (\d+)/g)]).reduce((sum, [, count]) => sum + Number(count), 0);
    };
    const earlier = await total();
    let expected = 0;
    // A connection of before may still have the plugins of before.
    for (let i = 0; i < 5; i++) expected += (await ask(mode)).request.split('word').length - 1;
    assert.ok(expected >= 5);
    assert.equal((await total()) - earlier, expected);
  });

  test(`WasmPlugin over HTTP: fetched from a Service, by checksum (${mode})`, async () => {
    await mesh.apply(mode, plugin('fetched', `${remote(`good-${mode}.wasm`, SHA256)}, ${config('fetched')}`));
    assert.deepEqual(await mesh.nacks(), []);
    const { status, response } = await becomes(mode, 'the plugin', ({ request }) => request === word('fetched'));
    assert.deepEqual([status, response], [200, word('fetched')]);
  });

  for (const [strategy, expected] of [['FAIL_CLOSE', 503], ['FAIL_OPEN', 200]] as const) {
    test(`WasmPlugin with a wrong checksum: its workload's requests ${expected === 200 ? 'go on without it' : 'are refused'} as ${strategy} says, others' are served (${mode})`, async () => {
      await mesh.apply(mode, plugin('wrong', `${remote(`${strategy}-${mode}.wasm`, 'a'.repeat(64))}, failStrategy: ${strategy}`) + plugin('right', `${FILE}, ${config('right')}`));
      const { request } = await becomes(mode, 'the refusal', ({ status, request: order }) => status === expected && (expected !== 200 || order.includes('right')));
      if (expected === 200) assert.equal(request, word('right'));
      assert.equal((await ask(mode, 'other')).status, 200);
      await mesh.apply(mode, plugin('right', `${FILE}, ${config('again')}`));
      await becomes(mode, 'the end of it', ({ status, request: order }) => status === 200 && order === word('again'));
    });
  }

  test(`WasmPlugin for clients: requests carry what the plugin of their client's workload adds (${mode})`, async () => {
    const client = plugin('client', `${FILE}, match: [{mode: CLIENT}], ${config('client')}`).replace('app: web', 'app: client');
    const order = async (): Promise<unknown> => (await mesh.curl(mode, 'http://other/')).body['headers']?.['x-wasm-order'];
    await mesh.apply(mode, client);
    assert.deepEqual(await mesh.nacks(), []);
    await waitFor('the plugin', async () => (await order()) === word('client'), { timeoutMs: 120_000, everyMs: 50 });
    await mesh.apply(mode, plugin('fetched', `${remote(`${mode}.wasm`, SHA256)}, match: [{mode: CLIENT}], ${config('fetched')}`).replace('app: web', 'app: client'));
    assert.deepEqual(await mesh.nacks(), []);
    await waitFor('the fetched plugin', async () => (await order()) === word('fetched'), { timeoutMs: 120_000, everyMs: 50 });
    await mesh.apply(mode, plugin('wrong', remote(`wrong-${mode}.wasm`, 'b'.repeat(64))).replace('app: web', 'app: client'));
    await waitFor('the refusal', async () => (await mesh.curl(mode, 'http://other/')).status === 503, { timeoutMs: 120_000, everyMs: 50 });
    assert.equal((await mesh.curl(mode, 'http://other/', { from: `${mode}/web-v1` })).status, 200, 'clients of other workloads are served');
    await mesh.clear(mode);
    await waitFor('the end of it', async () => (await order()) === undefined, { timeoutMs: 120_000, everyMs: 50 });
  });
}
