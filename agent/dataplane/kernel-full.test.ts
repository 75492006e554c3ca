/** DESIGN section 5, rule 4: a full map means plain TCP, counted, never an error for the app. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KernelWorld } from './kernel-testing.js';

const HOLD = ['--bytes', '1000000'];

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

test('full tables of connections being established mean plain TCP', async () => {
  for (const [map, counter] of [['establishing', 'connection_establishing_full'], ['peers', 'connection_peers_full']] as const) {
    const w = await KernelWorld.create('full', { maxEntries: { [map]: 1 } });
    try {
      w.put();
      const [a, b] = [w.world.pod(0), w.world.pod(1)];
      // Servers outside the hooks hold the one entry, by a connection that stays open and is never paired.
      const outside = w.world.proxyCgroup.replace(/\/proxy$/, '');
      const holder =
        map === 'establishing'
          ? w.world.probe('addresses', { pod: b, cgroup: outside, address: b.ipv4 }, { pod: a }, ['--port', '7001', '--hold', '1500'])
          : undefined;
      if (holder) await new Promise((resolve) => setTimeout(resolve, 500));
      const runs = await w.counted(() =>
        Promise.all([7002, 7003, 7004].map((port) => w.world.probe('order', { pod: b, address: b.ipv4 }, { pod: a }, ['--port', String(port), ...HOLD]))),
      );
      await holder;
      for (const each of runs.result) assert.equal(each.ok, true, JSON.stringify(each));
      if (map === 'establishing') assert.ok((runs.counters[counter] ?? 0) >= 3, JSON.stringify(runs.counters));
    } finally {
      await w.close();
    }
  }
});
