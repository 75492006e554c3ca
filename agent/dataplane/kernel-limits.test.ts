/** What one pod's fault, or malice, must not do to others: half-added pods, addresses without a listener, full tables. */
import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { waitFor } from '../../common/retry.js';
import { socketProbe } from '../../native/testing.js';
import { KernelWorld, TEST_BPFFS } from './kernel-testing.js';

/** VERDICTS_PER_POD in bpf/consts.h. */
const QUOTA = 64;

let w: KernelWorld;
before(async () => {
  w = await KernelWorld.create('limit');
});
after(() => w.close());

test('putPod: hooks that can\'t all be attached are taken off again, and the next try finds a clean place', async () => {
  const pinned = await KernelWorld.create('limit', { pinned: true });
  try {
    const a = pinned.world.pod(0);
    const record = pinned.podRecord(a);
    const links = join(TEST_BPFFS, pinned.world.name, 'links', 'pods');
    // A folder where the last but one link is to be pinned.
    mkdirSync(join(links, record.uid, 'connect4'), { recursive: true });
    assert.throws(() => pinned.kernel.putPod(record), /connect4/);
    assert.deepEqual([pinned.kernel.pods(), pinned.kernel.tables()['netns_of_address']?.entries, pinned.kernel.podCounters().size], [[], 0, 0]);
    assert.deepEqual(readdirSync(links), []);
    pinned.kernel.putPod(record);
    assert.equal(readdirSync(join(links, record.uid)).length, 10);
  } finally {
    await pinned.close();
  }
});

test('putPod: a table that is full is rolled back, an address is given back, and the pod can be added when there is room', async () => {
  const small = await KernelWorld.create('limit', { maxEntries: { pods: 1 } });
  try {
    const [a, b] = [small.world.pod(0), small.world.pod(1)];
    small.put({}, [a]);
    assert.throws(() => small.put({ addresses: [b.ipv4, a.ipv4] }, [b]), /pods/);
    assert.equal(small.kernel.tables()['netns_of_address']?.entries, 2);
    assert.deepEqual(small.kernel.pods().map(({ netnsCookie }) => netnsCookie), [a.netnsCookie]);
    const still = await small.counted(() => small.world.probe('churn', { pod: a, address: a.ipv4 }, { pod: a }, ['--count', '3']));
    assert.equal(still.counters['connections_short_circuited'], 3, 'its address is its own again');
    small.kernel.removePod(small.podRecord(a).uid);
    small.put({}, [b]);
    assert.equal(small.kernel.pods().length, 1);
    const { counters } = await small.counted(() => small.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: b }, ['--count', '3']));
    assert.equal(counters['connections_short_circuited'], 3);
  } finally {
    await small.close();
  }
});

test('capture: IPv6 of a pod without an IPv6 address is not led to a listener that is not there; mapped IPv4 is', async () => {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  w.put({ capture: true, addresses: [a.ipv4] }, [a]);
  w.put({}, [b]);
  const direct = await w.counted(() => w.world.probe('addresses', { pod: b, address: b.ipv6 }, { pod: a }));
  assert.equal(direct.result.ok, true, JSON.stringify(direct.result));
  assert.equal(direct.result['client_peer'], `[${b.ipv6}]:7777`);
  assert.equal(direct.counters['connections_captured'], undefined);
  assert.equal(direct.counters['connection_ipv6_not_captured'], 1);
  const mapped = await w.world.probe('addresses', { pod: a, cgroup: w.world.proxyCgroup, address: '127.0.0.1' }, { pod: a, address: '::ffff:198.51.100.7' }, [
    '--port', '15001', '--connect-port', '80',
  ]);
  assert.equal(mapped['original4'], '198.51.100.7:80');
});

test('verdicts: loopback listeners are one key per port, however many addresses there are', async () => {
  const a = w.world.pod(0);
  w.put({ acceleration: 'l4' });
  for (let last = 1; last <= 5; last++) await w.world.probe('churn', { pod: a, address: `127.0.0.${last}` }, { pod: a }, ['--count', '1']);
  await w.world.probe('churn', { pod: a, address: '::1' }, { pod: a }, ['--count', '1']);
  const listeners = w.kernel.probation().filter(({ kind }) => kind === 'listener');
  assert.deepEqual(listeners.map(({ key, seen }) => [key, seen]), [[`127.0.0.1:7777@${a.netnsCookie}`, 6]]);
});

test('verdicts: a pod with many executables and listeners takes no room from others, and gets its own back', async () => {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  for (const pod of [a, b]) w.kernel.removePod(w.podRecord(pod).uid);
  w.put({ acceleration: 'l4' });
  const folder = mkdtempSync(join(tmpdir(), 'up-limits-'));
  try {
    const churn = (port: number, program: string): Promise<unknown> =>
      w.world.probe('churn', { pod: a, address: a.ipv4 }, { pod: a }, ['--count', '1', '--port', String(port)], program);
    const { counters } = await w.counted(async () => {
      for (let index = 0; index < QUOTA + 6; index++) {
        const program = join(folder, `program-${index}`);
        copyFileSync(socketProbe, program);
        await churn(8000 + index, program);
      }
    });
    // Of programs or of listeners: room is made for both as soon as the first of either did not fit.
    assert.ok((counters['verdicts_quota'] ?? 0) >= 1, JSON.stringify(counters));
    assert.equal(counters['verdicts_full'], undefined);
    const own = (): number => w.kernel.probation().filter(({ key }) => key.endsWith(`@${a.netnsCookie}`)).length;
    // What was in probation only made room when the first one did not fit.
    await waitFor('room', () => own() <= QUOTA);
    assert.ok(w.kernel.probation().length <= 2 * QUOTA);
    await w.warm({ pod: b, address: b.ipv4 }, { pod: b });
    const other = w.kernel.probation().find(({ key }) => key.endsWith(`@${b.netnsCookie}`));
    assert.equal(other?.verdict, 'event-driven');
  } finally {
    rmSync(folder, { recursive: true });
  }
});
