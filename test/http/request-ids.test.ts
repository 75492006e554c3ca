/** Request ids that the kernel gives where a namespace asks for them, as Envoy gives them where it has the request. */
import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { answer, byEnvoy, client, closeAll, connection, exchanges, fast, request, server, tableId, tableOf, taught, text, w } from './exchange-testing.js';

exchanges(() => true, () => tableOf([undefined, { kind: 'w3c', sampled: 0 }]));
const ID_LINE = 56;
const asks = (requestIds: boolean): void => w.kernel.http.control.setPod(w.world.pod(0).netnsCookie, { table: tableId, state: 'live', requestIds });
beforeEach(() => asks(true));

/** What stands between the request line and the rest at the server. */
async function added(sent: string, port: number, bytes: number): Promise<string> {
  await client.do('send', 'c', sent);
  const got = text(await server.do('receive', `s${port}`, sent.length + bytes));
  await server.do('send', `s${port}`, answer('fast'));
  assert.equal(text(await client.do('receive', 'c', answer('fast').length)), answer('fast'));
  const at = sent.indexOf('\r\n') + 2;
  assert.equal(got.slice(0, at) + got.slice(at + bytes), sent);
  return got.slice(at, at + bytes);
}

test('each request that is fast gets an id of its own, a UUID of version 4', async () => {
  await taught('/a', 80, await connection());
  const ids = new Set<string>();
  for (let i = 0; i < 200; i++) {
    const [, id] = /^x-request-id: +([0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}) +\r\n$/.exec(await added(request(`/a/${i % 3}`), 80, ID_LINE)) ?? assert.fail('no id');
    ids.add(id!);
  }
  assert.equal(ids.size, 200);
  // Each digit that is random takes all values.
  for (let at = 0; at < 36; at++) {
    const values = new Set([...ids].map((id) => id[at])).size;
    assert.ok(values === ([8, 13, 14, 18, 19, 23].includes(at) ? 1 : 16), `${values} values at ${at}`);
  }
  await closeAll();
});

test('a request that has an id keeps it, whatever it is', async () => {
  await taught('/a', 80, await connection());
  for (const id of ['0aa5d0b4-4a3e-4e0e-9e6e-1f1f1f1f1f1f', 'mine', '']) assert.equal(await added(request('/a', `X-Request-Id: ${id}\r\n`), 80, 0), '');
  await closeAll();
});

test('beside it a traced class\'s servers are told that the request was not sampled', async () => {
  await taught('/b', 81, await connection());
  for (let i = 0; i < 20; i++) assert.match(await added(request('/b'), 81, ID_LINE + 72), /^traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-00 +\r\nx-request-id: +[0-9a-f-]{36} +\r\n$/);
  await closeAll();
});

test('what goes to Envoy gets none here, and nobody does who does not ask', async () => {
  await taught('/a', 80, await connection());
  assert.equal(await byEnvoy(request('/envoys')), false);
  await added(request('/a'), 80, ID_LINE);
  asks(false);
  await fast('/a', 80);
  await closeAll();
});
