import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { pino } from 'pino';
import { waitFor } from '../../common/retry.js';
import { TYPE } from '../generate/resource.js';
import { Pilot } from '../index.js';
import { TestClient } from '../testing/client.js';
import { podYaml, serviceYaml, sliceYaml } from '../testing/mesh.js';

const NODE = 'sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local';
const WEB = 'outbound|80||web.shop.svc.cluster.local';
const web = { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web' } };
const second = { name: 'web-2', ip: '10.0.0.2', labels: { app: 'web' } };
let folder: string;
let pilot: Pilot;
let client: TestClient;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-pilot-admin-'));
  writeFileSync(join(folder, 'world.yaml'), podYaml('shop', web) + podYaml('shop', second) + serviceYaml('shop', 'web', '10.96.0.1', [web, second]));
  writeFileSync(join(folder, 'secret.yaml'), 'apiVersion: v1\nkind: Secret\nmetadata: {name: cert, namespace: shop}\nstringData: {tls.key: do-not-show}\n');
  pilot = new Pilot({ sources: [folder], listen: ['127.0.0.1:0'], monitoringListen: '127.0.0.1:0', logger: pino({ level: 'silent' }), debounce: { quietMs: 20 } });
  await pilot.start();
  client = new TestClient(pilot.addresses[0]!, NODE);
  client.subscribe(TYPE.cluster);
  await client.nth(TYPE.cluster, 1);
  client.subscribe(TYPE.endpoint, [WEB]);
  await client.nth(TYPE.endpoint, 1);
});

after(async () => {
  client.close();
  await pilot.stop();
  rmSync(folder, { recursive: true, force: true });
});

async function get(path: string): Promise<{ code: number; text: string }> {
  const response = await fetch(`http://${pilot.monitoringAddress}${path}`);
  return { code: response.status, text: await response.text() };
}
const json = async <T>(path: string): Promise<T> => JSON.parse((await get(path)).text) as T;
const metric = (text: string, name: string): number => Number(new RegExp(`^${name.replaceAll(/[{}"]/g, '\\$&')} ([\\d.e+]+)$`, 'm').exec(text)?.[1] ?? Number.NaN);

test('/ready, /version and the index answer; other methods and paths are refused', async () => {
  assert.deepEqual(await get('/ready'), { code: 200, text: 'ready\n' });
  assert.match((await get('/version')).text, /^\d+\.\d+\.\d+\n$/);
  assert.match((await get('/debug')).text, /\/debug\/syncz: /);
  assert.equal((await get('/nothing')).code, 404);
  assert.equal((await fetch(`http://${pilot.monitoringAddress}/debug/syncz`, { method: 'POST' })).status, 405);
});

test('requests that do not wait for the answer before them end their connection: whoever reaches the port could have thousands of pages made at once', async () => {
  const [host = '', port] = pilot.monitoringAddress!.split(':');
  const socket = connect(Number(port), host).setEncoding('utf8').on('error', () => undefined);
  let text = '';
  socket.on('data', (chunk: string) => (text += chunk));
  const closed = new Promise((resolve) => socket.once('close', resolve));
  socket.write('GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n'.repeat(500));
  await closed;
  assert.ok(text.split('HTTP/1.1 200').length <= 2);
  assert.equal((await get('/metrics')).code, 200);
});

test('/debug/syncz: a client that has acknowledged all is synced; one that refused shows why', async () => {
  type Row = Record<'cds' | 'eds', { sent: string; acked: string; synced: boolean; nack?: { message: string } }> & { node: string };
  const row = await waitFor('all acknowledged', async () => {
    const [first] = await json<Row[]>('/debug/syncz');
    return first?.cds.synced && first.eds.synced ? first : undefined;
  }, { everyMs: 10 });
  assert.equal(row.node, NODE);
  assert.equal(row.cds.sent, row.cds.acked);
  client.autoAck = false;
  writeFileSync(join(folder, 'z-slice.yaml'), sliceYaml('shop', 'web', [web]));
  client.ack(await client.nth(TYPE.endpoint, 2), 'no thanks');
  await waitFor('the refusal', async () => (await json<Row[]>('/debug/syncz'))[0]?.eds.nack?.message === 'no thanks', { everyMs: 10 });
  client.autoAck = true;
});

test('/metrics: pushes by type, refusals, convergence and queue time under istiod\'s names', async () => {
  const before = (await get('/metrics')).text;
  rmSync(join(folder, 'z-slice.yaml'));
  await client.nth(TYPE.endpoint, 3);
  const after = await waitFor('the convergence', async () => {
    const { text } = await get('/metrics');
    return metric(text, 'pilot_proxy_convergence_time_count') > (metric(before, 'pilot_proxy_convergence_time_count') || 0) ? text : undefined;
  }, { everyMs: 10 });
  assert.equal(metric(after, 'pilot_xds_pushes{type="eds"}'), metric(before, 'pilot_xds_pushes{type="eds"}') + 1);
  assert.equal(metric(after, 'pilot_xds_pushes{type="cds"}'), metric(before, 'pilot_xds_pushes{type="cds"}'), 'an endpoint change pushes no clusters');
  assert.equal(metric(after, 'pilot_total_xds_rejects{type="eds"}'), 1);
  assert.equal(metric(after, 'pilot_services'), 1);
  assert.ok(metric(after, 'pilot_push_triggers{type="endpoint"}') >= 1);
  assert.equal(metric(after, 'pilot_inbound_updates{type="eds"}'), metric(before, 'pilot_inbound_updates{type="eds"}') + 1);
  assert.ok(metric(after, 'pilot_proxy_queue_time_count') >= 1);
  assert.match(after, /^pilot_xds\{version="[\d.]+"\} 1$/m);
});

test('/debug/endpointz, registryz, configz and config_dump show the mesh, and no Secret', async () => {
  const [service] = await json<{ svc: string; ep: { address: string; port: number }[] }[]>('/debug/endpointz?host=web.shop.svc.cluster.local');
  assert.deepEqual([service!.svc, service!.ep.map(({ address, port }) => `${address}:${port}`)], ['web.shop.svc.cluster.local:http', ['10.0.0.1:80', '10.0.0.2:80']]);
  assert.deepEqual((await json<{ host: string }[]>('/debug/registryz')).map(({ host }) => host), ['web.shop.svc.cluster.local']);
  const { text } = await get('/debug/configz');
  assert.match(text, /"name": "cert"/);
  assert.doesNotMatch(text, /do-not-show/);
  const dump = await json<{ cds: { name: string }[]; eds: { name: string }[]; lds: { name: string }[] }>('/debug/config_dump?proxyID=web-1.shop');
  assert.ok(dump.cds.some(({ name }) => name === WEB) && dump.lds.some(({ name }) => name === 'virtualInbound'));
  assert.deepEqual(dump.eds.map(({ name }) => name), [WEB]);
  const wrong = await get('/debug/config_dump?proxyID=nobody');
  assert.deepEqual([wrong.code, /expected type~ip~name/.test(wrong.text)], [400, true]);
});

test('on loopback a request by another name is refused: a web page could have led the browser here', async () => {
  const { hostname, port } = new URL(`http://${pilot.monitoringAddress}`);
  const code = (host: string) => new Promise<number | undefined>((resolve, reject) => request({ hostname, port, path: '/debug/syncz', headers: { host } }, (response) => resolve(response.resume().statusCode)).on('error', reject).end());
  assert.equal(await code(`evil.example:${port}`), 403);
  for (const host of [`localhost:${port}`, `127.0.0.1:${port}`, `[::1]:${port}`]) assert.equal(await code(host), 200);
});
