/** A pilot and clients that acknowledge when they are told to: which generation all have is known, and not said before they do. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { pino } from 'pino';
import { waitFor } from '../common/retry.js';
import { Pilot } from '../pilot/index.js';
import { TYPE } from '../pilot/generate/resource.js';
import { TestClient } from '../pilot/testing/client.js';
import { podYaml, serviceYaml } from '../pilot/testing/mesh.js';
import { Distributions } from './wait-generation.js';

test('wait --generation: not before every client has acknowledged what was made of it; later changes that others wait for do not hold it up', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-wait-'));
  const web = { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web' } };
  const routes = (generation: number, weight: number): void => writeFileSync(join(folder, 'routes.yaml'), `apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop, generation: ${generation}, resourceVersion: "${generation}00"}\nspec: {hosts: [web], http: [{route: [{destination: {host: web}}], timeout: ${weight}s}]}\n`);
  writeFileSync(join(folder, 'world.yaml'), podYaml('shop', web) + serviceYaml('shop', 'web', '10.96.0.1', [web]));
  routes(1, 1);
  const pilot = new Pilot({ sources: [folder], listen: ['127.0.0.1:0'], monitoringListen: '127.0.0.1:0', logger: pino({ level: 'silent' }), debounce: { quietMs: 20 } });
  await pilot.start();
  const client = new TestClient(pilot.addresses[0]!, 'sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local');
  const distributions = await Distributions.open([`http://${pilot.monitoringAddress}`], undefined);
  const missing = async (generation: number, more: { resourceVersion?: string } = {}): Promise<string> => (await distributions.missing('virtualservice/web.shop', { generation, ...more }, new AbortController().signal)).join();
  try {
    client.subscribe(TYPE.route, ['80']);
    await client.nth(TYPE.route, 1);
    assert.match(await missing(2), /it has generation 1/);
    assert.match(await missing(1, { resourceVersion: '101' }), /it has resource version 100/);
    assert.equal(await missing(1), '');
    client.autoAck = false;
    routes(2, 2);
    const second = await client.nth(TYPE.route, 2);
    await waitFor('pilot to have it', async () => /not acknowledged/.test(await missing(2)), { everyMs: 10 });
    client.ack(second);
    await waitFor('it to be with all', async () => (await missing(2, { resourceVersion: '150' })) === '', { everyMs: 10 });
    // Another object's change, which is not acknowledged.
    writeFileSync(join(folder, 'other.yaml'), 'apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: other, namespace: shop, generation: 1}\nspec: {hosts: [other.example], http: [{directResponse: {status: 410}}]}\n');
    await client.nth(TYPE.route, 3);
    assert.equal(await missing(2), '');
    assert.match((await distributions.missing('VirtualService/none.shop', { generation: 1 }, new AbortController().signal)).join(), /does not have the object/);
    await assert.rejects(distributions.missing('Service/web.shop', { generation: 1 }, new AbortController().signal), /without a generation/);
  } finally {
    await distributions.close();
    client.close();
    await pilot.stop();
    rmSync(folder, { recursive: true, force: true });
  }
});
