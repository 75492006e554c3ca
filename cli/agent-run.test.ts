import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { LabelPatch } from '../common/lab-api.js';
import { podsOfLab } from './agent-home.js';
import { silencePods } from './agent-run.js';

test('silencePods: a pod that is gone meanwhile costs the others neither their word nor the time to hear of it', async (context) => {
  const folder = mkdtempSync(join(tmpdir(), 'up-labels-'));
  const labels = { 'security.istio.io/tlsMode': 'istio' };
  const annotations = { 'ambient.istio.io/redirection': 'enabled', other: 'stays' };
  const pods = ['gone', 'here', 'plain', 'elsewhere'].map((name) => ({ uid: name, namespace: 'shop', name, labels: name === 'plain' ? {} : labels, annotations: name === 'here' ? annotations : {} }));
  const patched: string[] = [];
  const lab = createServer((request, response) => {
    if (request.method === 'GET') return void response.end(JSON.stringify({ pods }));
    let body = '';
    request.on('data', (chunk: Buffer) => (body += chunk.toString()));
    request.on('end', () => {
      const { name, kind, namespace, ...set } = JSON.parse(body) as LabelPatch;
      assert.deepEqual([kind, namespace], ['Pod', 'shop']);
      if (name === 'gone') response.statusCode = 404;
      else patched.push(`${name} ${JSON.stringify(set)}`);
      response.end(JSON.stringify(name === 'gone' ? { message: 'no pod shop/gone' } : {}));
    });
  });
  const socket = join(folder, 'lab.sock');
  await new Promise<void>((resolve) => lab.listen(socket, resolve));
  context.after(() => {
    lab.close();
    lab.closeAllConnections();
    rmSync(folder, { recursive: true, force: true });
  });
  const start = performance.now();
  await assert.rejects(silencePods(podsOfLab(socket), new Set(['gone', 'here', 'plain'])), /no pod shop\/gone/);
  assert.deepEqual(patched, ['here {"labels":{"security.istio.io/tlsMode":null},"annotations":{"ambient.istio.io/redirection":null}}']);
  assert.ok(performance.now() - start > 1_900);
});
