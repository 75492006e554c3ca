import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { pino } from 'pino';
import { waitFor } from '../common/retry.js';
import { TYPE } from './generate/resource.js';
import { Pilot } from './index.js';
import { TestClient } from './testing/client.js';

const WAIT = { everyMs: 5 };
const SERVICE = 'apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n';

test('drain: not ready at once, changes still arrive; then streams end without an error, bit by bit, and nobody is let in any more', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-drain-'));
  const file = join(folder, 'mesh.yaml');
  writeFileSync(file, SERVICE);
  const pilot = new Pilot({ sources: [folder], listen: ['127.0.0.1:0'], monitoringListen: '127.0.0.1:0', logger: pino({ level: 'silent' }), debounce: { quietMs: 5 } });
  await pilot.start();
  const page = async (path: string): Promise<string> => {
    const response = await fetch(`http://${pilot.monitoringAddress}${path}`);
    return `${response.status} ${(await response.text()).trim()}`;
  };
  const [address] = pilot.addresses as [string];
  const clients = ['1', '2', '3', '4'].map((n) => new TestClient(address, `sidecar~10.0.0.${n}~c${n}.shop~shop.svc.cluster.local`));
  try {
    assert.equal(await page('/ready'), '200 ready');
    for (const client of clients) client.subscribe(TYPE.cluster, ['*']);
    for (const client of clients) await client.nth(TYPE.cluster, 1);
    const drained = pilot.drain(6_000);
    assert.deepEqual([await page('/ready'), await page('/live')], ['503 stopping', '200 live']);
    writeFileSync(file, SERVICE.replaceAll('web', 'later') + '---\n' + SERVICE);
    await waitFor('the change', () => clients.every((client) => client.of(TYPE.cluster).some(({ resources }) => resources.some(({ name }) => name.includes('later')))), WAIT);
    assert.equal(pilot.status().ads.connections.length, 4);
    const seen = new Set<number>();
    await waitFor('the end of all', () => {
      const { length } = pilot.status().ads.connections;
      seen.add(length);
      return length === 0;
    }, WAIT);
    assert.ok(seen.size > 2, `streams at once: ${[...seen].join()}`);
    assert.deepEqual(clients.map(({ error }) => error), [undefined, undefined, undefined, undefined]);
    await drained;
    const late = new TestClient(address, 'sidecar~10.0.0.9~c9.shop~shop.svc.cluster.local');
    late.subscribe(TYPE.cluster, ['*']);
    await waitFor('the refusal', () => late.error, WAIT);
    late.close();
  } finally {
    for (const client of clients) client.close();
    await pilot.stop();
    rmSync(folder, { recursive: true, force: true });
  }
});
