/** DESIGN section 5, rule 4: a full map means plain TCP, counted, never an error for the app. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KernelWorld } from './kernel-testing.js';

const MANY_BYTES = ['--bytes', '1000000'];

test('a full sockhash means plain TCP', async () => {
  const w = await KernelWorld.create('full', { maxEntries: { sockets: 1 } });
  try {
    w.put();
    const [a, b] = [w.world.pod(0), w.world.pod(1)];
    const { result, counters } = await w.counted(() => w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '20']));
    assert.equal(result.ok, true, JSON.stringify(result));
    assert.equal(counters['connections_short_circuited'], undefined);
    assert.ok((counters['connection_sockets_full'] ?? 0) >= 20, JSON.stringify(counters));
    assert.equal(w.kernel.tables()['sockets']?.entries, 0);
  } finally {
    await w.close();
  }
});

test('a full table of connections being established means plain TCP', async () => {
  const w = await KernelWorld.create('full', { maxEntries: { establishing: 1 } });
  try {
    w.put();
    const [a, b] = [w.world.pod(0), w.world.pod(1)];
    // A server outside the hooks: its connection is never paired and keeps the one entry while it is open.
    const outside = w.world.proxyCgroup.replace(/\/proxy$/, '');
    await w.world.holding('addresses', { pod: b, cgroup: outside, address: b.ipv4 }, { pod: a }, ['--port', '7001'], async () => {
      assert.equal(w.kernel.tables()['establishing']?.entries, 1);
      const runs = await w.counted(() =>
        Promise.all([7002, 7003, 7004].map((port) => w.world.probe('order', { pod: b, address: b.ipv4 }, { pod: a }, ['--port', String(port), ...MANY_BYTES]))),
      );
      for (const each of runs.result) assert.equal(each.ok, true, JSON.stringify(each));
      assert.equal(runs.counters['connection_establishing_full'], 3, JSON.stringify(runs.counters));
      assert.equal(runs.counters['connections_short_circuited'], undefined);
    });
    assert.equal(w.kernel.tables()['establishing']?.entries, 0);
  } finally {
    await w.close();
  }
});
