/** What the kernel keeps of connections of the fast path is gone when they are. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { answer, anew, client, connection, ends, envoy, exchanges, request, server, taught, w } from './exchange-testing.js';

exchanges(() => false);

const post = (length: number): string => request('/a', `Content-Length: ${length}\r\n`).replace('GET', 'POST');
/** The map by that name of those that this process holds. */
const entries = (map: string): number => {
  const ids = new Set(readdirSync('/proc/self/fdinfo').flatMap((fd) => {
    try {
      return /^map_id:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1] ?? [];
    } catch {
      return [];
    }
  }));
  for (const id of ids) {
    const { name } = JSON.parse(execFileSync('bpftool', ['-j', 'map', 'show', 'id', id]).toString()) as { name?: string };
    if (name === map) return (JSON.parse(execFileSync('bpftool', ['-j', 'map', 'dump', 'id', id], { maxBuffer: 1 << 28 }).toString()) as unknown[]).length;
  }
  assert.fail(map);
};

test('nothing is left of connections that ended at any point', async () => {
  for (const how of ['reset', 'close']) for (const end of ['idle', 'open', 'answered half', 'pipelined', 'cut'] as const) {
    await taught('/a', 80, await connection());
    if (end !== 'idle') await client.do('send', 'c', end === 'open' ? post(10) : request('/a'));
    if (end === 'answered half') await server.do('send', 's80', answer('half').slice(0, -2));
    if (end === 'pipelined' || end === 'cut') await client.do('send', 'c', request(end === 'cut' ? '/b' : '/a'));
    assert.deepEqual(['http_channels', 'http_clients', 'http_servers'].map(entries), [1, 1, 1]);
    for (const [of, name] of [[client, 'c'], [envoy, 'd'], [envoy, 'u80'], [server, 's80']] as const) await of.do(how, name);
    await sleep(100);
    assert.deepEqual(['http_channels', 'http_clients', 'http_servers'].map(entries), [0, 0, 0], `${end} ${how}`);
    assert.equal(w.kernel.http.control.activity(w.world.pod(0).netnsCookie).underWay, 0n);
    ends.length = 0;
    await anew();
  }
});

// Last: its pods have no hooks from here on.
test('what is left of sockets that ended after their pod\'s hooks were gone is swept', async () => {
  const maps = ['http_channels', 'http_clients', 'http_servers'];
  await taught('/a', 80, await connection());
  await client.do('send', 'c', request('/a'));
  assert.equal(w.kernel.http.control.forgetGone(), 0);
  for (const { uid } of [w.podRecord(w.world.pod(0)), w.podRecord(w.world.pod(1))]) w.kernel.removePod(uid);
  for (const [of, name] of [[client, 'c'], [envoy, 'd'], [envoy, 'u80'], [server, 's80']] as const) await of.do('close', name);
  assert.deepEqual(maps.map(entries), [1, 1, 1]);
  assert.equal(w.kernel.http.control.forgetGone(), 2);
  assert.deepEqual(maps.map(entries), [0, 0, 0]);
});
