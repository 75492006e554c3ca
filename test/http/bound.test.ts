/** No more connections of single clients are asked for than there may be: beyond that requests go by connections that clients share, and teach nothing. */
import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { TAUGHT_MARK } from '../../agent/http/names.js';
import { waitFor } from '../../common/retry.js';
import { answer, client, closeAll, connection, DRAWN, envoy, exchanges, fast, request, tableOf, taught, text, upstream, VIP, w } from './exchange-testing.js';

exchanges(undefined, tableOf, { http_upstreams_per_server: 2, http_upstreams_per_node: 3 });

const upstreams = (): { open: number; most: number } => w.kernel.http.control.upstreams();
const none = (): Promise<unknown> => waitFor('connections to be gone', async () => upstreams().open === 0, { everyMs: 5 });
beforeEach(none);

/** By which pool a request of this client goes; `endpoint` is the name that makes Envoy open one for it, `ondpoint` the shared one's. */
async function drawn(sent: string, c = 'c', d = 'd'): Promise<string | undefined> {
  await client.do('send', c, sent);
  const got = text(await envoy.do('receive', d, sent.length + DRAWN));
  await envoy.do('send', d, answer('by Envoy'));
  assert.equal(text(await client.do('receive', c, answer('by Envoy').length)), answer('by Envoy'));
  return /\r\nx-(\w+): [\d.:]+ *\r\nHost/.exec(got)?.[1];
}

const chunked = (path: string): string => `${request(path, 'Transfer-Encoding: chunked\r\n').replace('GET', 'POST')}0\r\n\r\n`;

/** A second client, for as long as `body` takes. */
async function beside(body: () => Promise<void>): Promise<void> {
  await client.do('connect', 'c2', VIP, 80);
  await envoy.do('accept', 'd2', 'listener');
  await body();
  await client.do('close', 'c2');
  await envoy.do('close', 'd2');
}

test('a server that has as many as it may: other clients\' requests are drawn all the same, and go by the pool that all share; who has one keeps it', async () => {
  await taught('/a', 80, await connection());
  assert.deepEqual(upstreams(), { open: 1, most: 1 });
  // One whose lesson never came is Envoy's for a client all the same.
  await upstream(80, TAUGHT_MARK, '80b');
  assert.deepEqual(upstreams(), { open: 2, most: 2 });
  await fast('/a', 80);
  assert.equal(await drawn(chunked('/a')), 'endpoint');
  await beside(async () => {
    const { counters } = await w.counted(async () => {
      assert.equal(await drawn(request('/a'), 'c2', 'd2'), 'ondpoint');
      assert.equal(await drawn(chunked('/a'), 'c2', 'd2'), 'ondpoint');
      assert.equal(await drawn(request('/b'), 'c2', 'd2'), 'endpoint', 'another server');
    });
    assert.deepEqual([counters['http_connections_bound'], counters['http_requests_drawn']], [2, 3], JSON.stringify(counters));
    await envoy.do('close', 'u80b');
    await waitFor('it to be gone', async () => upstreams().open === 1, { everyMs: 5 });
    assert.equal(await drawn(request('/a'), 'c2', 'd2'), 'endpoint');
    await fast('/a', 80);
  });
});

test('the same of all servers of the node together', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  await upstream(81, TAUGHT_MARK, '81b');
  await beside(async () => {
    assert.equal(await drawn(request('/a'), 'c2', 'd2'), 'endpoint');
    await upstream(81, TAUGHT_MARK, '81c');
    assert.deepEqual(upstreams(), { open: 3, most: 2 });
    assert.equal(await drawn(request('/a'), 'c2', 'd2'), 'ondpoint');
  });
  assert.equal(await drawn(request('/b')), 'ondpoint', 'it has one to the other server');
  await fast('/a', 80);
});

test('what Envoy opens otherwise does not count, and what ends by a reset is gone', async () => {
  await connection();
  await upstream(80, null, '80p');
  assert.deepEqual(upstreams(), { open: 0, most: 0 });
  for (const how of ['close', 'reset'] as const) {
    await upstream(80, TAUGHT_MARK, '80r');
    assert.equal(upstreams().open, 1);
    await envoy.do(how, 'u80r');
    await none();
  }
  await closeAll();
});
