/** DESIGN section 5, rules 1, 3, 4, 8 and 12: who is paired with whom, and who is left alone. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { run } from '../../common/process.js';
import { sleep, waitFor } from '../../common/retry.js';
import { KernelWorld } from './kernel-testing.js';

let w: KernelWorld;
before(async () => {
  w = await KernelWorld.create('pair', { pods: 3 });
});
after(() => w.close());

const ORDER = ['--bytes', '2000000'];

for (const [name, listen, connect] of [
  ['IPv4 client, IPv4 listener', 'ipv4', 'ipv4'],
  ['mapped client, IPv4 listener', 'ipv4', 'mapped'],
  ['IPv4 client, :: listener', 'any', 'ipv4'],
  ['mapped client, :: listener', 'any', 'mapped'],
  ['IPv6 client, IPv6 listener', 'ipv6', 'ipv6'],
] as const) {
  test(`pair: ${name}: every connection is short-circuited and every byte right`, async () => {
    w.put();
    const [a, b] = [w.world.pod(0), w.world.pod(1)];
    const address = { ipv4: b.ipv4, ipv6: b.ipv6, mapped: `::ffff:${b.ipv4}`, any: '::' };
    const server = { pod: b, address: address[listen] };
    const client = { pod: a, address: address[connect] };
    const order = await w.counted(() => w.world.probe('order', server, client, ORDER));
    assert.equal(order.result.ok, true, JSON.stringify(order.result));
    assert.equal(order.counters['connections_short_circuited'], 1);
    const churn = await w.counted(() => w.world.probe('churn', server, client, ['--count', '200']));
    assert.equal(churn.result.ok, true, JSON.stringify(churn.result));
    assert.equal(churn.counters['connections_short_circuited'], 200);
    // A first message that comes before the other end does goes by TCP: seen once in 2,000 where ksoftirqd had to run in between.
    const plain = Object.entries(churn.counters).filter(([counter]) => counter.startsWith('message_')).reduce((sum, [, count]) => sum + count, 0);
    const moved = churn.counters['messages_short_circuited'] ?? 0;
    assert.equal(moved + plain, 400, `each message was moved or is counted with its reason: ${JSON.stringify(churn.counters)}`);
    assert.ok(moved >= 380, `the first message of each connection is moved as well: ${moved} of 400`);
  });
}

test('pair: within one pod, by loopback and by the pod\'s own address', async () => {
  w.put();
  const a = w.world.pod(0);
  for (const address of ['127.0.0.1', '::1', a.ipv4, a.ipv6]) {
    const { result, counters } = await w.counted(() => w.world.probe('churn', { pod: a, address }, { pod: a }, ['--count', '50']));
    assert.equal(result.ok, true, JSON.stringify(result));
    assert.equal(counters['connections_short_circuited'], 50, address);
  }
});

test('pair: nothing is left in the tables when connections are gone', async () => {
  w.put();
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  await w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '300']);
  // Connections that were refused, never answered, or closed at once must leave nothing either.
  const tables = w.kernel.tables();
  assert.deepEqual([tables['establishing']?.entries, tables['peers']?.entries, tables['sockets']?.entries], [0, 0, 0]);
});

test('pair: a peer outside the hooks leaves the opener with plain TCP and no tuple behind', async () => {
  w.put();
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  const outside = w.world.proxyCgroup.replace(/\/proxy$/, '');
  const { result, counters } = await w.counted(() =>
    w.world.probe('churn', { pod: b, cgroup: outside, address: b.ipv4 }, { pod: a }, ['--count', '100', '--client-port', '0']),
  );
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(counters['connections_short_circuited'], undefined);
  assert.equal(counters['message_no_peer'], 100);
  assert.equal(w.kernel.tables()['establishing']?.entries, 0);
});

test('pair: an address that is no pod of this node is never short-circuited', async () => {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  w.put();
  w.kernel.removePod(w.podRecord(b).uid);
  const { result, counters } = await w.counted(() => w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '20']));
  assert.equal(result.ok, true);
  assert.equal(counters['connections_short_circuited'], undefined);
  assert.equal(counters['connection_not_local'], 20);
  w.put();
});

test('pair: acceleration off at either end, or globally, means plain TCP and a reason', async () => {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  const churn = () => w.counted(() => w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '10']));
  w.put();
  w.put({ acceleration: 'off' }, [b]);
  assert.equal((await churn()).counters['connection_pod_off'], 10);
  w.put();
  w.kernel.setGlobalAcceleration(false);
  const off = await churn();
  w.kernel.setGlobalAcceleration(true);
  assert.equal(off.counters['connection_switched_off'], 10);
  assert.equal(off.counters['bytes_short_circuited'], undefined);
  assert.equal((await churn()).counters['connections_short_circuited'], 10);
});

test('pair: the switch takes effect on connections that are paired already, with no byte lost', async () => {
  w.put();
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  const before = w.kernel.counters();
  const since = (name: string): bigint => (w.kernel.counters()[name] ?? 0n) - (before[name] ?? 0n);
  let ended = false;
  const running = w.counted(() => w.world.probe('order', { pod: b, address: b.ipv4 }, { pod: a }, ['--bytes', '300000000'])).finally(() => (ended = true));
  await waitFor('bytes to be moved', () => since('bytes_short_circuited') > 0n, { everyMs: 2 });
  for (let round = 1n; round <= 6n; round++) {
    w.kernel.setGlobalAcceleration(false);
    const seen = since('message_switched_off');
    await waitFor('messages to go by TCP', () => since('message_switched_off') > seen || ended, { everyMs: 2 });
    w.kernel.setGlobalAcceleration(true);
    await sleep(5);
  }
  const { result, counters } = await running;
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.ok((counters['message_switched_off'] ?? 0) > 0);
  assert.ok((counters['bytes_short_circuited'] ?? 0) > 0);
});

test('pair: pods whose connections iptables redirect are not paired by tuple', async () => {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  w.put();
  w.put({ redirected: true }, [a]);
  const { result, counters } = await w.counted(() => w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '10']));
  w.put();
  assert.equal(result.ok, true);
  assert.equal(counters['connection_behind_nat'], 10);
});

// Below the ephemeral ports: one of those may still be in TIME_WAIT after another test.
test('pair: two pods with the same client port towards 127.0.0.1:15001 never mix', async () => {
  w.put({ capture: true });
  const pods = [w.world.pod(0), w.world.pod(1), w.world.pod(2)];
  try {
    const { result, counters } = await w.counted(() =>
      Promise.all(
        pods.map((pod, index) =>
          w.world.probe('order', { pod, cgroup: w.world.proxyCgroup, address: '127.0.0.1' }, { pod, address: '192.0.2.1' }, [
            '--port', '15001', '--connect-port', '80', '--client-port', '23456', '--bytes', '30000000', '--seed', String(index + 1),
          ]),
        ),
      ),
    );
    for (const each of result) assert.equal(each.ok, true, JSON.stringify(each));
    assert.equal(counters['connections_short_circuited'], pods.length);
    assert.equal(counters['connections_captured'], pods.length);
  } finally {
    w.put();
  }
});

test('pair: a Fast Open connection is left alone, and right', async () => {
  w.put();
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  const [command, ...args] = w.world.inPod(b, ['sh', '-c', 'echo 3 > /proc/sys/net/ipv4/tcp_fastopen']) as [string, ...string[]];
  await run(command, args);
  const { result, counters } = await w.counted(() =>
    w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '20', '--fastopen']),
  );
  assert.equal(result.ok, true, JSON.stringify(result));
  // The first connection fetches the cookie and is an ordinary one.
  const total = (counters['connections_short_circuited'] ?? 0) + (counters['connection_fast_open'] ?? 0);
  assert.equal(total, 20, JSON.stringify(counters));
  assert.ok((counters['connection_fast_open'] ?? 0) >= 1, JSON.stringify(counters));
});

test('pair: MPTCP sockets are left alone', async () => {
  w.put();
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  const { result, counters } = await w.counted(() =>
    w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '10', '--mptcp']),
  );
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(counters['connections_short_circuited'], undefined, JSON.stringify(counters));
  assert.equal(counters['connection_mptcp'], 10, JSON.stringify(counters));
});

test('pair: a socket that takes kernel TLS is left alone from then on', async (t) => {
  w.put();
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  const { result, counters } = await w.counted(() =>
    w.world.probe('order', { pod: b, address: b.ipv4 }, { pod: a }, ['--bytes', '1000000', '--tls']),
  );
  if (String(result.failure).startsWith('switching kernel TLS on')) {
    t.skip(`this kernel has no TLS: ${result.failure}`);
    return;
  }
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.ok((counters['message_upper_layer'] ?? 0) > 0, JSON.stringify(counters));
});
