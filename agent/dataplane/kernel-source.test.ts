/** What a proxy opens in a pod's namespace for somebody else: the pod's program sees whose it is. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { ProbeResult, TestPod } from '../../native/testing.js';
import { KernelWorld, TEST_BPFFS } from './kernel-testing.js';

/** `a` is called, `b` another pod, `c` the node. */
let w: KernelWorld;
const [A, B, NODE] = [0, 1, 2].map((i) => () => w.world.pod(i)) as [() => TestPod, () => TestPod, () => TestPod];
const CALLER = '198.51.100.9';
const CALLER6 = '2001:db8::9';

before(async () => {
  w = await KernelWorld.create('source', { pods: 3, pinned: true });
  await w.kernel.host.attach(NODE().netns, w.world.proxyCgroup);
  w.put({}, [A(), B()]);
});
after(() => w.close());

/** The proxy in a's namespace connects to a's own program, after it has bound its socket to the caller's address. */
function forCaller(bind: string | undefined, connect: string, options: { which?: string; listen?: string; cgroup?: string } = {}): Promise<ProbeResult> {
  return w.world.probe(options.which ?? 'addresses', { pod: A(), address: options.listen ?? connect }, { pod: A(), cgroup: options.cgroup ?? w.world.proxyCgroup, address: connect }, bind === undefined ? [] : ['--bind', bind]);
}

const portOf = (name: unknown): string => /:(\d+)$/.exec(String(name))?.[1] ?? assert.fail(String(name));

/** Host as accept() and getpeername() told it, each time the same; the port is that of the proxy's socket. */
function told(result: ProbeResult): string {
  assert.equal(result.ok, true, JSON.stringify(result));
  const { server_accepted: accepted, server_peer: peer, server_later: later, client_name: name } = result;
  assert.deepEqual([peer, later], [accepted, accepted]);
  assert.equal(portOf(accepted), portOf(name));
  assert.notEqual(portOf(accepted), '0');
  return String(accepted).replace(/:\d+$/, '');
}

for (const acceleration of ['force', 'l4', 'off'] as const) {
  test(`accept4() and getpeername() tell a pod's program whom its proxy calls for: IPv4, IPv6, IPv4 at a socket for both, mapped (acceleration ${acceleration})`, async () => {
    w.put({ acceleration }, [A()]);
    const { ipv4, ipv6 } = A();
    assert.equal(told(await forCaller(CALLER, ipv4)), CALLER);
    assert.equal(told(await forCaller(CALLER6, ipv6)), `[${CALLER6}]`);
    assert.equal(told(await forCaller(CALLER, ipv4, { listen: '::' })), `[::ffff:${CALLER}]`);
    assert.equal(told(await forCaller(`::ffff:${CALLER}`, `::ffff:${ipv4}`, { listen: ipv4 })), CALLER);
    assert.equal(told(await forCaller(`::ffff:${CALLER}`, ipv6)), `[::ffff:${CALLER}]`, 'an IPv4 caller of an IPv6 address');
    assert.equal(told(await forCaller(B().ipv4, ipv4)), B().ipv4, 'another pod of the node');
    assert.equal(told(await forCaller(CALLER, '127.0.0.1')), CALLER, 'a program that listens on loopback alone');
  });
}

test('the connection itself is the pod\'s own, as if nobody had been named', async () => {
  const result = await forCaller(CALLER, A().ipv4);
  assert.match(String(result['client_name']), new RegExp(`^${A().ipv4.replaceAll('.', '\\.')}:\\d+$`));
  assert.equal(result['client_peer'], `${A().ipv4}:7777`);
  assert.doesNotMatch(String(result['original4']), new RegExp(CALLER));
});

test('such connections are short-circuited, and every byte arrives', async () => {
  w.put({ acceleration: 'force' }, [A()]);
  for (const [bind, address] of [[CALLER, A().ipv4], [CALLER6, A().ipv6]] as const) {
    const { result, counters } = await w.counted(() => forCaller(bind, address, { which: 'order' }));
    assert.equal(result.ok, true, JSON.stringify(result));
    assert.equal(counters['connections_short_circuited'], 1);
    assert.ok((counters['bytes_short_circuited'] ?? 0) > 0);
  }
});

test('a connection of nobody else\'s after such a one shows the pod itself, and no entry is left', async () => {
  assert.equal(told(await forCaller(CALLER, A().ipv4)), CALLER);
  assert.equal(told(await forCaller(undefined, A().ipv4)), A().ipv4);
  assert.equal(told(await forCaller(A().ipv4, A().ipv4)), A().ipv4, 'the pod calls itself');
  assert.equal(w.kernel.tables()['establishing']!.entries, 0);
});

test('a pod\'s own program can name nobody', async () => {
  for (const [bind, address] of [[CALLER, A().ipv4], [CALLER6, A().ipv6]] as const) {
    const result = await forCaller(bind, address, { cgroup: A().cgroup });
    assert.match(String(result.failure), /binding the client: Cannot assign/);
  }
});

test('the node\'s namespace is left alone; in one that is no pod\'s of the mesh the connection works, and shows the pod itself', async () => {
  const own = { pod: NODE(), cgroup: w.world.proxyCgroup, address: A().ipv4 };
  const bound = await w.world.probe('addresses', { pod: A(), address: A().ipv4 }, own, ['--bind', NODE().ipv4]);
  assert.deepEqual([bound.ok, String(bound['client_name']).split(':')[0], String(bound['server_peer']).split(':')[0]], [true, NODE().ipv4, NODE().ipv4]);
  const foreign = await w.world.probe('addresses', { pod: A(), address: A().ipv4 }, own, ['--bind', CALLER]);
  assert.match(String(foreign.failure), /Cannot assign/);
  w.kernel.removePod(w.podRecord(A()).uid);
  assert.equal(told(await forCaller(CALLER, A().ipv4)), A().ipv4);
  w.put({}, [A()]);
  assert.equal(told(await forCaller(CALLER, A().ipv4)), CALLER);
});

test('the agent is replaced: between the two, and after, programs are told as before', async () => {
  await w.kernel.close();
  assert.equal(told(await forCaller(CALLER6, A().ipv6, { listen: '::' })), `[${CALLER6}]`);
  w.kernel = await w.open(TEST_BPFFS);
  assert.equal(told(await forCaller(CALLER, A().ipv4)), CALLER);
});
