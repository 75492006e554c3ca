/** What the counters say about bytes while connections are open, and whose they are. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import type { KernelPod } from './kernel.js';
import { grown, KernelWorld } from './kernel-testing.js';

let w: KernelWorld;
before(async () => {
  w = await KernelWorld.create('acct');
});
after(() => w.close());

const EXCHANGES = 500;
const SIZE = 1000;
const BYTES = 2 * EXCHANGES * SIZE;
const VIRTUAL = '198.51.100.7';

/** One connection with a known number of bytes each way, counted while it is still open; and its remainder at the end. */
async function counts(server: 'proxy' | 'pod', connect: string): Promise<{ open: Record<string, number>; closed: Record<string, number>; pods: number }> {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  const podBytes = (): number => [...w.kernel.podCounters().values()].reduce((sum, pod) => sum + Number(pod.bytes_short_circuited + pod.bytes_tcp), 0);
  const [start, podStart] = [w.kernel.counters(), podBytes()];
  const to = server === 'proxy' ? { pod: a, cgroup: w.world.proxyCgroup, address: '127.0.0.1' } : { pod: b, address: b.ipv4 };
  const sum = (counters: Record<string, number>): number => (counters['bytes_short_circuited'] ?? 0) + (counters['bytes_tcp'] ?? 0);
  let open: Record<string, number> = {};
  let pods = 0;
  const args = [...(server === 'proxy' ? ['--port', '15001', '--connect-port', '80'] : []), '--count', String(EXCHANGES), '--size', String(SIZE)];
  const { ok } = await w.world.holding('ping-pong', to, { pod: a, address: connect }, args, async () => {
    await waitFor('all bytes to be counted', () => sum((open = grown(start, w.kernel.counters()))) >= BYTES, { everyMs: 10 });
    assert.equal(sum(open), BYTES, JSON.stringify(open));
    pods = podBytes() - podStart;
  });
  assert.equal(ok, true);
  return { open, closed: grown(start, w.kernel.counters()), pods };
}

const cases: { name: string; pod: Partial<KernelPod>; server: 'proxy' | 'pod'; moved: boolean }[] = [
  { name: 'captured and short-circuited', pod: { capture: true, acceleration: 'force' }, server: 'proxy', moved: true },
  { name: 'captured, acceleration off', pod: { capture: true, acceleration: 'off' }, server: 'proxy', moved: false },
  { name: 'captured, in probation', pod: { capture: true, acceleration: 'l4' }, server: 'proxy', moved: false },
  { name: 'redirected by iptables', pod: { redirected: true, acceleration: 'l4' }, server: 'proxy', moved: false },
  { name: 'redirected by iptables, acceleration off', pod: { redirected: true, acceleration: 'off' }, server: 'proxy', moved: false },
  { name: 'pod to pod, short-circuited', pod: { acceleration: 'force' }, server: 'pod', moved: true },
  { name: 'pod to pod, acceleration off', pod: { acceleration: 'off' }, server: 'pod', moved: false },
];
for (const { name, pod, server, moved } of cases) {
  test(`bytes: ${name}: every byte is counted while the connection is open, and once`, async () => {
    w.put(pod);
    const rule = ['-p', 'tcp', '-d', VIRTUAL, '-j', 'REDIRECT', '--to-ports', '15001'];
    const iptables = async (action: string): Promise<void> => {
      const [command, ...args] = w.world.inPod(w.world.pod(0), ['iptables', '-t', 'nat', action, 'OUTPUT', ...rule]) as [string, ...string[]];
      await run(command, args);
    };
    if (pod.redirected) await iptables('-A');
    try {
      const { open, closed, pods } = await counts(server, server === 'proxy' ? VIRTUAL : w.world.pod(1).ipv4);
      assert.equal((open['bytes_short_circuited'] ?? 0) > 0, moved, JSON.stringify(open));
      assert.equal((open['bytes_tcp'] ?? 0) > 0, !moved, JSON.stringify(open));
      assert.equal(pods, BYTES, 'and as a pod\'s own');
      assert.equal((closed['bytes_short_circuited'] ?? 0) + (closed['bytes_tcp'] ?? 0), BYTES, 'not again when it is closed');
    } finally {
      if (pod.redirected) await iptables('-D');
    }
  });
}

test('slots: what a removed pod\'s connections still do is not the next pod\'s', async () => {
  const small = await KernelWorld.create('slot', { maxEntries: { pod_counters: 3 } });
  try {
    const [x, y] = [small.world.pod(0), small.world.pod(1)];
    small.put({ capture: true }, [x]);
    const held = await small.world.holding('addresses', { pod: x, cgroup: small.world.proxyCgroup, address: '127.0.0.1' }, { pod: x, address: VIRTUAL }, ['--port', '15001', '--connect-port', '80'], async () => {
      const old = small.podRecord(x).uid;
      assert.equal(small.kernel.liveConnections(old), 1);
      // Off before it is forgotten, so that the socket's hooks stay: they are on the cgroup, under another name.
      small.kernel.removePod(old);
      small.kernel.putPod(small.podRecord(x, { uid: 'other', capture: true }));
      // Both slots that there are have been given out since.
      small.kernel.putPod(small.podRecord(y, { uid: 'third' }));
      small.kernel.removePod('other');
      small.kernel.putPod(small.podRecord(x, { uid: 'fourth', capture: true }));
    });
    assert.equal(held.ok, true);
    for (const uid of ['third', 'fourth']) {
      const counters = small.kernel.podCounters().get(uid);
      assert.deepEqual([counters?.captured_closed, counters?.bytes_tcp, counters?.bytes_short_circuited], [0n, 0n, 0n], uid);
      assert.equal(small.kernel.liveConnections(uid), 0, uid);
    }
  } finally {
    await small.close();
  }
});
