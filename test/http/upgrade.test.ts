/** An agent whose maps have another layout takes the place of one in the middle of exchanges: all of them end well, or are ended. */
import assert from 'node:assert/strict';
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { TEST_BPFFS } from '../../agent/dataplane/kernel-testing.js';
import { executable } from '../../agent/dataplane/kernel.js';
import { buildDir } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { BpfObject, openPinnedMap, tcpSockets } from '../../native/index.js';
import { anew, answer, byEnvoy, client, closeAll, connection, ends, envoy, exchanges, fast, listen, request, server, startBeat, stopBeat, taught, text, w } from './exchange-testing.js';

exchanges(() => true, undefined, {}, { pinned: true, maxEntries: { http_programs: 9 } });

const DRAIN_MS = 1_500;
const pins = (): string => join(TEST_BPFFS, w.world.name);
const setAside = (): string[] => readdirSync(pins()).filter((name) => name.startsWith('maps_'));
const post = (length: number, body = ''): string => request('/a', `Content-Length: ${length}\r\n`, body).replace('GET', 'POST');

/** What says that the maps are another version's: what is kept in them, or which there are. */
const CHANGES = {
  'a layout of the same size': () => {
    const object = BpfObject.open({ pinDir: pins(), programs: [] });
    const settings = object.map('settings');
    const layout = settings.get(Buffer.alloc(4))!;
    const { offset } = object.layout('settings').fields['layout']!;
    layout.writeUInt32LE((layout.readUInt32LE(offset) ^ 1) >>> 0, offset);
    settings.set(Buffer.alloc(4), layout);
    object.close();
  },
  'a map more': () => rmSync(join(pins(), 'maps', 'http_services')),
};

/** @param before while there is no agent */
async function upgrade(change: () => void = CHANGES['a layout of the same size'], before: () => Promise<unknown> = () => Promise.resolve()): Promise<void> {
  stopBeat();
  await w.kernel.close();
  await before();
  change();
  w.kernel = await w.open(TEST_BPFFS, undefined, undefined, { formerDrainMs: DRAIN_MS });
  assert.deepEqual(w.kernel.pods(), [], 'it has maps of its own');
  w.kernel.setGlobalAcceleration(true);
  w.kernel.attachProxy(w.world.proxyCgroup);
  w.put({ capture: true, acceleration: 'l7' }, [w.world.pod(0)]);
  await w.kernel.httpPrograms?.want();
  w.put({ acceleration: 'force' }, [w.world.pod(1)]);
  w.kernel.markProgram(executable(join(buildDir, 'socket-ends')), 'event-driven');
  listen();
  startBeat();
  await anew();
}

/** The next connection is as fast as ever, and nothing is left of the former maps. */
async function goesOn(): Promise<void> {
  await w.kernel.http.former!.settled();
  assert.deepEqual(setAside(), []);
  await closeAll();
  ends.length = 0;
  await taught('/a', 80, await connection());
  await fast('/a', 80);
  await closeAll();
}

test('an array of programs that has another size is not taken over', async () => {
  await taught('/a', 80, await connection());
  await upgrade(() => undefined);
  assert.equal(await byEnvoy(request('/a')), false);
  await goesOn();
});

for (const [what, change] of Object.entries(CHANGES)) {
  test(`${what}: a connection on which nothing is under way goes on through Envoy`, async () => {
    await taught('/a', 80, await connection());
    await fast('/a', 80);
    await upgrade(change);
    for (let turn = 0; turn < 3; turn++) assert.equal(await byEnvoy(request('/a')), false);
    await w.kernel.http.former!.settled();
    for (let turn = 0; turn < 3; turn++) assert.equal(await byEnvoy(request('/a')), false);
    assert.deepEqual(ends, []);
    await goesOn();
  });

  test(`${what}: an exchange that is under way ends with the server that it is at, whole, and the next one is Envoy's`, async () => {
    await taught('/a', 80, await connection());
    const [body, whole] = ['b'.repeat(40), answer('in two writes')];
    await client.do('send', 'c', post(body.length, body.slice(0, 10)));
    await upgrade(change);
    await client.do('send', 'c', body.slice(10));
    assert.equal(text(await server.do('receive', 's80', post(body.length, body).length)), post(body.length, body));
    assert.equal((await envoy.do('receive', 'd', 1, 0.1)).data, '', 'the rest of a body is no request');
    await server.do('send', 's80', whole.slice(0, -5));
    await server.do('send', 's80', whole.slice(-5));
    assert.equal(text(await client.do('receive', 'c', whole.length)), whole);
    assert.equal(await byEnvoy(request('/a')), false);
    await w.kernel.http.former!.settled();
    assert.equal(await byEnvoy(request('/a')), false);
    await goesOn();
  });
}

test('an exchange that does not end in time is ended: nobody waits for ever, and the rest of a request goes nowhere', async () => {
  for (const how of ['the server is silent', 'the server went away'] as const) {
    await taught('/a', 80, await connection());
    const head = post(30);
    await client.do('send', 'c', head);
    await server.do('receive', 's80', head.length);
    await upgrade();
    if (how === 'the server went away') await server.do('close', 's80');
    const got = await client.do('receive', 'c', 1, 5);
    assert.match(String(got.error), /reset/, JSON.stringify([how, got]));
    assert.equal((await envoy.do('receive', 'd', 1, 0.1)).data, '');
    await goesOn();
  }
});

test('a server that went away while no agent was there: its client is told at once', async () => {
  await taught('/a', 80, await connection());
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  await upgrade(undefined, () => server.do('reset', 's80'));
  const got = await client.do('receive', 'c', 1, DRAIN_MS / 1_500);
  assert.match(String(got.error), /reset/, JSON.stringify(got));
  await goesOn();
});

test("what Envoy has under way goes on, and a former client's own upstream connection is told as nobody's behind that", async () => {
  await taught('/a', 80, await connection());
  assert.equal(await byEnvoy(request('/a/secret'), null), true);
  await upgrade();
  await envoy.do('send', 'd', answer('by Envoy'));
  assert.equal(text(await client.do('receive', 'c', answer('by Envoy').length)), answer('by Envoy'));
  await w.kernel.http.former!.settled();
  const known = new Set(w.kernel.http.former!.orphans());
  const sockets = await tcpSockets(w.world.pod(1).netns);
  assert.equal(sockets.filter(({ cookie, listening }) => !listening && known.has(cookie)).length, 1);
  await goesOn();
});

test('an agent that ends before they have leaves them to the next', async () => {
  await taught('/a', 80, await connection());
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  await upgrade();
  await upgrade();
  assert.equal(setAside().length, 2);
  await server.do('send', 's80', answer('late'));
  assert.equal(text(await client.do('receive', 'c', answer('late').length)), answer('late'));
  await goesOn();
});

test('openPinnedMap: layouts as the map itself tells them; undefined where there is none', () => {
  const found = openPinnedMap(join(pins(), 'maps', 'http_channels'))!;
  assert.equal(found.map.name, 'http_channels');
  assert.deepEqual(found.value?.fields['tuple.local']?.sizeBytes, 16);
  assert.equal(found.value?.fields['learnt[].cookie']?.sizeBytes, 8);
  found.map.close();
  assert.equal(openPinnedMap(join(pins(), 'maps', 'http_services'))?.value?.sizeBytes, 384);
  assert.equal(openPinnedMap(join(pins(), 'none')), undefined);
});
