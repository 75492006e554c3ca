/** Telemetry of connections without a proxy: what each side's totals say against what programs really sent. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { destroyTcpSockets, tcpSockets } from '../../native/index.js';
import { socketProbe, type TestPod } from '../../native/testing.js';
import { openOf, type FlowEntry, type FlowRecord, type FlowSide, type FlowSideName } from './kernel-flows.js';
import { KernelWorld } from './kernel-testing.js';
import type { Kernel, KernelPod } from './kernel.js';

let w: KernelWorld;
let a: TestPod;
let b: TestPod;
before(async () => {
  w = await KernelWorld.create('flows', { pinned: true });
  [a, b] = [w.world.pod(0), w.world.pod(1)];
  // What a killed client has left to send to a server that closed first is over when that one's end is forgotten, by default after a minute.
  const [command, ...args] = w.world.inPod(b, ['sh', '-c', 'echo 1 > /proc/sys/net/ipv4/tcp_fin_timeout']) as [string, ...string[]];
  await run(command, args);
});
after(() => w.close());

interface Sums {
  opened: number;
  closed: number;
  received: number;
  sent: number;
  rtts: number;
}

function sums(kernel: Kernel, side: FlowSideName, of: (entry: FlowEntry) => boolean = () => true): Sums {
  const all: Sums = { opened: 0, closed: 0, received: 0, sent: 0, rtts: 0 };
  for (const entry of kernel.flows.entries().filter(of)) {
    const { opened, closed, received, sent, rtt } = entry[side];
    all.opened += Number(opened);
    all.closed += Number(closed);
    all.received += Number(received);
    all.sent += Number(sent);
    all.rtts += Number(rtt.reduce((sum, count) => sum + count, 0n));
  }
  return all;
}

const both = (kernel: Kernel): Record<FlowSideName, Sums> => ({ source: sums(kernel, 'source'), destination: sums(kernel, 'destination') });

/** What both sides' totals grew by, read after `settle`, when as many connections were closed as were opened. */
async function grownBy(body: () => Promise<unknown>): Promise<Record<FlowSideName, Sums>> {
  w.kernel.flows.settle();
  const start = both(w.kernel);
  await body();
  const open = (): bigint => w.kernel.flows.entries().reduce((sum, { source, destination }) => sum + openOf(source) + openOf(destination), 0n);
  await waitFor('the connections to be closed', () => open() === 0n, { everyMs: 5 });
  w.kernel.flows.settle();
  const end = both(w.kernel);
  const difference = (side: FlowSideName): Sums => Object.fromEntries(Object.entries(end[side]).map(([name, value]) => [name, value - start[side][name as keyof Sums]])) as unknown as Sums;
  return { source: difference('source'), destination: difference('destination') };
}

const holding = (args: readonly string[], body: () => Promise<unknown>): Promise<unknown> => w.world.holding('ping-pong', { pod: b, address: b.ipv4 }, { pod: a }, args, body);
const probe = (which: string, args: readonly string[] = []): Promise<unknown> => w.world.probe(which, { pod: b, address: b.ipv4 }, { pod: a }, args);

const WAYS: { name: string; pod: Partial<KernelPod> }[] = [
  { name: 'short-circuited', pod: { acceleration: 'force' } },
  { name: 'in probation', pod: { acceleration: 'l4' } },
  { name: 'acceleration off', pod: { acceleration: 'off' } },
];
for (const { name, pod } of WAYS) {
  test(`flows: ${name}: both sides say the bytes that were sent, while the walk runs all the time`, async () => {
    w.put(pod);
    const walk = setInterval(() => w.kernel.flows.settle(), 1);
    try {
      const pings = await grownBy(() => probe('ping-pong', ['--count', '500', '--size', '1000']));
      const expected = { opened: 1, closed: 1, received: 500_000, sent: 500_000, rtts: 1 };
      assert.deepEqual(pings, { source: expected, destination: expected });
      const bulk = await grownBy(() => probe('order', ['--bytes', '3000000']));
      const bytes = { ...expected, received: 3_000_000, sent: 3_000_000 };
      assert.deepEqual(bulk, { source: bytes, destination: bytes });
    } finally {
      clearInterval(walk);
    }
  });

  test(`flows: ${name}: half-closed connections and large answers before a close are counted to the last byte`, async () => {
    w.put(pod);
    const half = { opened: 20, closed: 20, received: 60, sent: 120, rtts: 20 };
    assert.deepEqual(await grownBy(() => probe('half-close', ['--count', '20'])), { source: half, destination: half });
    const large = { opened: 3, closed: 3, received: 3, sent: 900_000, rtts: 3 };
    assert.deepEqual(await grownBy(() => probe('large-close', ['--count', '3', '--bytes', '300000'])), { source: large, destination: large });
  });

  test(`flows: ${name}: an open connection shows how far it is, and not again when it is closed`, async (t) => {
    if (!w.kernel.flows.tellsOpen) return t.skip('this kernel refuses tracing programs, iterators among them');
    w.put(pod);
    const start = both(w.kernel);
    let open: Record<FlowSideName, Sums> | undefined;
    const grown = await grownBy(() => holding(['--count', '100', '--size', '1000'], () => waitFor('all bytes while it is open', () => {
      w.kernel.flows.settle();
      open = both(w.kernel);
      return open.source.received - start.source.received >= 100_000 && open.destination.sent - start.destination.sent >= 100_000;
    }, { everyMs: 5 })));
    for (const side of ['source', 'destination'] as const) {
      assert.equal(open![side].closed, start[side].closed, `${side}: still open`);
      assert.deepEqual(grown[side], { opened: 1, closed: 1, received: 100_000, sent: 100_000, rtts: 1 });
    }
  });

  test(`flows: ${name}: a killed client's connection is closed on both sides, with no byte more than arrived`, async () => {
    w.put(pod);
    const grown = await grownBy(async () => {
      const start = sums(w.kernel, 'source').opened;
      const child = spawn(socketProbe, ['slow-reader', '--server-netns', b.netns, '--server-cgroup', b.cgroup, '--client-netns', a.netns, '--client-cgroup', a.cgroup,
        '--listen', b.ipv4, '--connect', b.ipv4, '--bytes', '200000000', '--delay', '60000', '--timeout', '60'], { stdio: 'ignore', detached: true });
      await waitFor('the connection', () => sums(w.kernel, 'source').opened > start, { everyMs: 2 });
      process.kill(-child.pid!, 'SIGKILL');
      await once(child, 'exit');
    });
    assert.deepEqual([grown.source.opened, grown.source.closed, grown.destination.opened, grown.destination.closed], [1, 1, 1, 1]);
    assert.ok(grown.destination.received <= grown.source.received, JSON.stringify(grown));
    assert.ok(grown.source.received < 200_000_000, JSON.stringify(grown));
  });
}

test('flows: IPv6 and a mapped address are the same client and server', async () => {
  w.put({ acceleration: 'force' });
  const expected = { opened: 1, closed: 1, received: 1000, sent: 1000, rtts: 1 };
  for (const address of [b.ipv6, `::ffff:${b.ipv4}`]) {
    const listen = address === b.ipv6 ? address : '::';
    const grown = await grownBy(() => w.world.probe('ping-pong', { pod: b, address: listen }, { pod: a, address }, ['--count', '1', '--size', '1000']));
    assert.deepEqual(grown, { source: expected, destination: expected }, address);
  }
  const named = w.kernel.flows.entries().filter(({ key }) => key.client !== 0n);
  assert.deepEqual(named.map(({ key }) => key), [{ client: a.netnsCookie, server: b.netnsCookie, peer: undefined, service: undefined, endpointPort: 7777 }]);
});

test('flows: what is captured, what the shared proxy opens and what stays within a pod is not counted', async () => {
  const none = { opened: 0, closed: 0, received: 0, sent: 0, rtts: 0 };
  const exchange = ['--count', '10', '--size', '1000'];
  for (const acceleration of ['force', 'off'] as const) {
    w.put({ capture: true, acceleration });
    const captured = await grownBy(() => w.world.probe('ping-pong', { pod: a, cgroup: w.world.proxyCgroup, address: '127.0.0.1' }, { pod: a, address: '198.51.100.7' }, ['--port', '15001', '--connect-port', '80', ...exchange]));
    assert.deepEqual(captured, { source: none, destination: none }, `captured, ${acceleration}`);
    w.put({ acceleration });
    const upstream = await grownBy(() => w.world.probe('ping-pong', { pod: b, address: b.ipv4 }, { pod: a, cgroup: w.world.proxyCgroup }, exchange));
    assert.deepEqual(upstream, { source: none, destination: none }, `opened by the proxy, ${acceleration}`);
    for (const address of ['127.0.0.1', a.ipv4]) {
      const own = await grownBy(() => w.world.probe('ping-pong', { pod: a, address }, { pod: a }, exchange));
      assert.deepEqual(own, { source: none, destination: none }, `within the pod by ${address}, ${acceleration}`);
    }
  }
});

test('flows: towards a pod with a sidecar only the client\'s side is told, from one only the server\'s; moved bytes too', async () => {
  const none = { opened: 0, closed: 0, received: 0, sent: 0, rtts: 0 };
  const exchange = { opened: 1, closed: 1, received: 10_000, sent: 10_000, rtts: 1 };
  w.put({ acceleration: 'force' }, [a]);
  w.put({ acceleration: 'force', mode: 'sidecar' }, [b]);
  const args = ['--count', '10', '--size', '1000'];
  assert.deepEqual(await grownBy(() => probe('ping-pong', args)), { source: exchange, destination: none });
  assert.deepEqual(await grownBy(() => w.world.probe('ping-pong', { pod: a, address: a.ipv4 }, { pod: b }, args)), { source: none, destination: exchange });
  w.put();
});

test('flows: with Fast Open the server\'s side is silent, since nobody could tell it that no proxy opened the connection', async () => {
  w.put({ acceleration: 'force' });
  const [command, ...args] = w.world.inPod(b, ['sh', '-c', 'echo 3 > /proc/sys/net/ipv4/tcp_fastopen']) as [string, ...string[]];
  await run(command, args);
  const { result, counters } = await w.counted(async () => grownBy(() => probe('churn', ['--count', '20', '--fastopen', '--size', '100'])));
  const fast = counters['connection_fast_open'] ?? 0;
  assert.ok(fast > 0, JSON.stringify(counters));
  assert.deepEqual(result.source, { opened: 20, closed: 20, received: 2000, sent: 2000, rtts: 20 });
  assert.deepEqual([result.destination.opened, result.destination.received, result.destination.sent], [20 - fast, (20 - fast) * 100, (20 - fast) * 100]);
});

test('flow log: what policy denies has a record, where a pod opens it and where it arrives', async () => {
  const other = await KernelWorld.create('flowdeny', { pods: 3 });
  try {
    const [x, y, z] = other.world.pods as [TestPod, TestPod, TestPod];
    other.put({ acceleration: 'off' }, [x, y]);
    // Policies that can't be read let nobody in.
    other.kernel.setPolicies(new Map([[other.podRecord(y).uid, { version: 1n, compiled: undefined, behindProxy: false }]]));
    const records: FlowRecord[] = [];
    other.kernel.flows.onRecord((record) => records.push(record));
    other.kernel.setFlowLog(true);
    const connect = async (from: TestPod): Promise<FlowRecord> => {
      assert.equal((await other.world.probe('ping-pong', { pod: y, address: y.ipv4 }, { pod: from }, ['--timeout', '1'])).ok, false);
      await waitFor('a record', () => records.length > 0, { everyMs: 5 });
      return records.splice(0)[0]!;
    };
    const facts = ({ way, reason, key, client, endpoint }: FlowRecord): unknown => [way, reason, key.client, key.server, key.endpointPort, client.address, endpoint];
    assert.deepEqual(facts(await connect(x)), ['denied', 'policy_connect_refused', x.netnsCookie, y.netnsCookie, 7777, x.ipv4, y.ipv4]);
    assert.deepEqual(facts(await connect(z)), ['denied', 'policy_arrival_refused', 0n, y.netnsCookie, 7777, z.ipv4, y.ipv4]);
  } finally {
    await other.close();
  }
});

/** `[opened, closed, denied, failed]` of both sides, by who calls. */
const ends = (kernel: Kernel): Record<string, Record<FlowSideName, number[]>> => Object.fromEntries(kernel.flows.entries().filter(({ key }) => key.server !== 0n).map((entry) => {
  const { client, peer, service, endpointPort } = entry.key;
  const of = ({ opened, closed, denied, failed }: FlowSide): number[] => [opened, closed, denied, failed].map(Number);
  return [[peer ?? client, ...(service ? [service.address] : []), endpointPort].join(' '), { source: of(entry.source), destination: of(entry.destination) }];
}));

test('flows: what policy denies is told as ztunnel tells it: denied at the destination, failed at the source, opened and closed at once', async () => {
  const other = await KernelWorld.create('flowpol', { pods: 3, rodata: { flows_per_pod: 4 } });
  try {
    const [x, y, z] = other.world.pods as [TestPod, TestPod, TestPod];
    other.put({ acceleration: 'off' }, [x, y]);
    // Policies that can't be read let nobody in.
    other.kernel.setPolicies(new Map([[other.podRecord(y).uid, { version: 1n, compiled: undefined, behindProxy: false }]]));
    const connect = async (from: TestPod, address = y.ipv4, timeout = '1'): Promise<void> => {
      const { ok } = await other.world.probe('ping-pong', { pod: y, address: y.ipv4 }, { pod: from, address }, ['--timeout', timeout]);
      assert.equal(ok, false);
    };
    await connect(x);
    assert.deepEqual(ends(other.kernel), { [`${x.netnsCookie} 7777`]: { source: [1, 0, 0, 1], destination: [1, 0, 1, 0] } });
    // Three seconds hold the first SYN and its repetitions after one second and, on some kernels, more.
    const before = other.kernel.counters()['policy_arrival_refused'] ?? 0n;
    await connect(z, y.ipv4, '3');
    assert.ok((other.kernel.counters()['policy_arrival_refused'] ?? 0n) - before >= 2n, 'its SYN came again');
    assert.deepEqual(ends(other.kernel)[`${z.ipv4} 7777`], { source: [0, 0, 0, 0], destination: [1, 0, 1, 0] });
    other.put({ acceleration: 'off', mode: 'sidecar' }, [x]);
    await connect(x);
    assert.deepEqual(ends(other.kernel)[`${x.netnsCookie} 7777`], { source: [1, 0, 0, 1], destination: [2, 0, 2, 0] }, 'a pod with a sidecar has its own telemetry');
  } finally {
    await other.close();
  }
});

test('flows: clients that policy refuses on arrival take at most half of a pod\'s room', async () => {
  const other = await KernelWorld.create('flowhalf', { pods: 4, rodata: { flows_per_pod: 2 } });
  try {
    const [x, y, z, later] = other.world.pods as [TestPod, TestPod, TestPod, TestPod];
    other.put({ acceleration: 'off' }, [x]);
    other.kernel.setPolicies(new Map([[other.podRecord(x).uid, { version: 1n, compiled: undefined, behindProxy: false }]]));
    for (const from of [y, z]) await other.world.probe('ping-pong', { pod: x, address: x.ipv4 }, { pod: from }, ['--timeout', '1']);
    other.kernel.setPolicies(new Map());
    assert.equal((await other.world.probe('ping-pong', { pod: x, address: x.ipv4 }, { pod: later }, ['--count', '1'])).ok, true);
    await waitFor('it to be closed', () => ends(other.kernel)[`${later.ipv4} 7777`]?.destination[1] === 1, { everyMs: 5 });
    assert.deepEqual(ends(other.kernel), {
      [`${y.ipv4} 7777`]: { source: [0, 0, 0, 0], destination: [1, 0, 1, 0] }, '0 0': { source: [0, 0, 0, 0], destination: [1, 0, 1, 0] },
      [`${later.ipv4} 7777`]: { source: [0, 0, 0, 0], destination: [1, 1, 0, 0] },
    });
  } finally {
    await other.close();
  }
});

test('flows: where nobody listens both sides say that it failed, by the service that was asked for; in silence the source alone', async () => {
  const other = await KernelWorld.create('flowfail', { pods: 2 });
  try {
    const [x, y] = [other.world.pod(0), other.world.pod(1)];
    other.put({ acceleration: 'force', capture: true });
    const connect = async (address: string, port: number): Promise<string> => {
      const script = `require('node:net').connect({ host: '${address}', port: ${port} }).on('error', ({ code }) => console.log(code)).on('connect', () => console.log('connected'))`;
      const [command, ...args] = other.world.inPod(x, [process.execPath, '-e', script]);
      return (await run(command!, args)).stdout.trim();
    };
    other.kernel.setListenerPorts([]);
    for (const address of [y.ipv4, y.ipv6]) assert.equal(await connect(address, 7001), 'ECONNREFUSED');
    other.kernel.services.apply([{ address: '10.96.0.7', port: 80, entry: { kind: 'tcp', endpoints: [{ address: y.ipv4, port: 7002, weight: 1 }] } }]);
    assert.equal(await connect('10.96.0.7', 80), 'ECONNREFUSED');
    const cookie = String(x.netnsCookie);
    assert.deepEqual(ends(other.kernel), {
      [`${cookie} 7001`]: { source: [2, 0, 0, 2], destination: [2, 0, 0, 2] }, [`${cookie} 10.96.0.7 7002`]: { source: [1, 0, 0, 1], destination: [1, 0, 0, 1] },
    });
    const [sysctl, ...args] = other.world.inPod(x, ['sh', '-c', 'cd /proc/sys/net/ipv4 && echo 1 > tcp_syn_retries && { [ ! -e tcp_syn_linear_timeouts ] || echo 0 > tcp_syn_linear_timeouts; }']) as [string, ...string[]];
    await run(sysctl, args);
    const [drop, ...rest] = other.world.inPod(y, ['ip', 'route', 'add', 'blackhole', `${x.ipv4}/32`]) as [string, ...string[]];
    await run(drop, rest);
    assert.equal(await connect(y.ipv4, 7003), 'ETIMEDOUT');
    assert.deepEqual(ends(other.kernel)[`${cookie} 7003`], { source: [1, 0, 0, 1], destination: [0, 0, 0, 0] });
  } finally {
    await other.close();
  }
});

test('flows: a connection that the agent ends is denied at the end that it ended, and closed at the other', async () => {
  w.put({ acceleration: 'force' });
  const start = both(w.kernel);
  const denied = (): number => w.kernel.flows.entries().reduce((sum, { destination }) => sum + Number(destination.denied), 0);
  assert.equal(denied(), 0);
  await holding(['--count', '200', '--size', '1000'], () => waitFor('an ended socket', async () => {
    const accepted = (await tcpSockets(b.netns)).filter(({ listening, localPort }) => !listening && localPort === 7777);
    return (await destroyTcpSockets(b.netns, accepted.map(({ id }) => id))) === 1;
  }, { everyMs: 5 }));
  await waitFor('both to be told', () => denied() === 1 && sums(w.kernel, 'source').closed === start.source.closed + 1, { everyMs: 5 });
  assert.equal(sums(w.kernel, 'destination').closed, start.destination.closed);
});

test('flows: of a client that is no pod of this mesh the server\'s side is told, by the client\'s address, but not of what a proxy accepts', async () => {
  const other = await KernelWorld.create('flowout', { pods: 2, rodata: { flows_per_pod: 2 } });
  try {
    const [x, y] = [other.world.pod(0), other.world.pod(1)];
    other.put({ acceleration: 'force' }, [x]);
    const records: FlowRecord[] = [];
    other.kernel.flows.onRecord((record) => records.push(record));
    other.kernel.setFlowLog(true);
    const send = (address: string, port: number, cgroup = x.cgroup): Promise<unknown> =>
      other.world.probe('ping-pong', { pod: x, cgroup, address }, { pod: y }, ['--port', String(port), '--count', '10', '--size', '1000']);
    await send(x.ipv4, 7001, other.world.proxyCgroup);
    await send(x.ipv4, 7001);
    await send(x.ipv6, 7001);
    await send(x.ipv4, 7002);
    await waitFor('the connections to be closed', () => sums(other.kernel, 'destination').closed === 3, { everyMs: 5 });
    assert.deepEqual(both(other.kernel), { source: { opened: 0, closed: 0, received: 0, sent: 0, rtts: 0 }, destination: { opened: 3, closed: 3, received: 30_000, sent: 30_000, rtts: 3 } });
    const keys = other.kernel.flows.entries().filter(({ key }) => key.server !== 0n).map(({ key }) => [key.client, key.peer, key.endpointPort]);
    assert.deepEqual(new Set(keys.map(String)), new Set([[0n, y.ipv4, 7001], [0n, y.ipv6, 7001], [0n, undefined, 0]].map(String)), 'the third has no room of its own');
    await waitFor('records', () => records.length === 3, { everyMs: 5 });
    const [first] = records;
    assert.deepEqual([first?.way, first?.reason, first?.client.address, first?.endpoint, first?.received, first?.sent], ['plain', 'connection_not_local', y.ipv4, x.ipv4, 10_000n, 10_000n]);
  } finally {
    await other.close();
  }
});

test('flows: totals stay over an agent\'s restart, and a connection that is open meanwhile is counted once', async () => {
  w.put({ acceleration: 'force' });
  const grown = await grownBy(() => holding(['--count', '200', '--size', '1000'], async () => {
    w.kernel.flows.settle();
    const before = both(w.kernel);
    await w.kernel.close();
    w.kernel = await w.open('/sys/fs/bpf/underpass');
    w.kernel.flows.settle();
    const after = both(w.kernel);
    for (const side of ['source', 'destination'] as const) {
      assert.ok(after[side].received >= before[side].received && before[side].opened > 0, JSON.stringify([before, after]));
    }
  }));
  const expected = { opened: 1, closed: 1, received: 200_000, sent: 200_000, rtts: 1 };
  assert.deepEqual(grown, { source: expected, destination: expected });
});

test('flows: with the table full all is counted under one entry', async () => {
  const small = await KernelWorld.create('flowfull', { maxEntries: { flow_totals: 3 } });
  try {
    small.put({ acceleration: 'force' });
    const [x, y] = [small.world.pod(0), small.world.pod(1)];
    for (const port of [7001, 7002, 7003, 7004]) await small.world.probe('ping-pong', { pod: y, address: y.ipv4 }, { pod: x }, ['--port', String(port), '--count', '10', '--size', '1000']);
    await waitFor('the connections to be closed', () => sums(small.kernel, 'destination').closed === 4, { everyMs: 5 });
    const all = { opened: 4, closed: 4, received: 40_000, sent: 40_000, rtts: 4 };
    assert.deepEqual(both(small.kernel), { source: all, destination: all });
    const entries = small.kernel.flows.entries();
    assert.equal(entries.length, 3);
    const other = entries.find(({ key }) => key.client === 0n);
    assert.deepEqual([other?.source.opened, other?.destination.sent], [2n, 20_000n]);
    assert.ok((small.kernel.counters()['flows_full'] ?? 0n) >= 2n);
  } finally {
    await small.close();
  }
});

test('flows: connections that found the whole table full take nothing of their client\'s part', async () => {
  const small = await KernelWorld.create('flowgive', { pods: 3, maxEntries: { flow_totals: 3 }, rodata: { flows_per_pod: 2 } });
  try {
    small.put({ acceleration: 'off' });
    const [x, y, late] = [small.world.pod(0), small.world.pod(1), small.world.pod(2)];
    const connect = (client: TestPod, port: number): Promise<unknown> => small.world.probe('ping-pong', { pod: y, address: y.ipv4 }, { pod: client }, ['--port', String(port), '--count', '1', '--size', '100']);
    const of = (client: TestPod): FlowEntry[] => small.kernel.flows.entries().filter(({ key }) => key.client === client.netnsCookie);
    for (const port of [7001, 7002]) await connect(x, port);
    for (const port of [7003, 7004]) await connect(late, port);
    await waitFor('the connections to be closed', () => sums(small.kernel, 'destination').closed === 4, { everyMs: 5 });
    assert.deepEqual([of(x).length, of(late).length], [2, 0]);
    for (const { id } of of(x)) small.kernel.flows.take(id);
    await connect(late, 7005);
    assert.deepEqual(of(late).map(({ key }) => key.endpointPort), [7005]);
  } finally {
    await small.close();
  }
});

test('flows: a client that took its part of the table has one entry for the rest, and room again when entries are taken out', async () => {
  const small = await KernelWorld.create('flowpart', { rodata: { flows_per_pod: 2 } });
  try {
    small.put({ acceleration: 'off' });
    const [x, y] = [small.world.pod(0), small.world.pod(1)];
    const connect = (port: number): Promise<unknown> => small.world.probe('ping-pong', { pod: y, address: y.ipv4 }, { pod: x }, ['--port', String(port), '--count', '1', '--size', '100']);
    const ports = (): number[] => small.kernel.flows.entries().filter(({ key }) => key.client === x.netnsCookie).map(({ key }) => key.endpointPort).sort();
    for (const port of [7001, 7002, 7003, 7004]) await connect(port);
    await waitFor('the connections to be closed', () => sums(small.kernel, 'destination').closed === 4, { everyMs: 5 });
    assert.deepEqual(ports(), [0, 7001, 7002]);
    const rest = small.kernel.flows.entries().find(({ key }) => key.client === x.netnsCookie && key.server === 0n)!;
    assert.deepEqual([rest.source.opened, rest.source.closed, rest.destination.received], [2n, 2n, 200n]);
    const first = small.kernel.flows.entries().find(({ key }) => key.endpointPort === 7001)!;
    assert.equal(small.kernel.flows.take(first.id)?.source.sent, 100n);
    assert.equal(small.kernel.flows.take(first.id), undefined);
    await connect(7005);
    assert.deepEqual(ports(), [0, 7002, 7005]);
  } finally {
    await small.close();
  }
});

test('flow log: one record a connection, with its way, its reason and the bytes of both directions', async () => {
  const records: FlowRecord[] = [];
  w.kernel.flows.onRecord((record) => records.push(record));
  w.kernel.setFlowLog(true);
  const next = async (): Promise<FlowRecord> => {
    await waitFor('a record', () => records.length > 0, { everyMs: 5 });
    return records.shift()!;
  };
  const facts = ({ key, client, endpoint, way, reason, received, sent, moved }: FlowRecord): unknown => ({ service: key.service, endpointPort: key.endpointPort, client: client.address, endpoint, way, reason, received, sent, moved });
  const exchange = ['--count', '10', '--size', '1000'];
  const pair = { service: undefined, endpointPort: 7777, client: a.ipv4, endpoint: b.ipv4, received: 10_000n, sent: 10_000n };
  w.put({ acceleration: 'force' });
  await probe('ping-pong', exchange);
  assert.deepEqual(facts(await next()), { ...pair, way: 'short-circuited', reason: undefined, moved: 20_000n });
  w.put({ acceleration: 'off' });
  await probe('ping-pong', exchange);
  assert.deepEqual(facts(await next()), { ...pair, way: 'plain', reason: 'connection_pod_off', moved: 0n });
  w.put({ capture: true, acceleration: 'force' });
  await w.world.probe('ping-pong', { pod: a, cgroup: w.world.proxyCgroup, address: '127.0.0.1' }, { pod: a, address: '198.51.100.7' }, ['--port', '15001', '--connect-port', '80', ...exchange]);
  assert.deepEqual(facts(await next()), { ...pair, service: { address: '198.51.100.7', port: 80 }, endpointPort: 0, client: '127.0.0.1', endpoint: '127.0.0.1', way: 'proxy', reason: undefined, moved: 20_000n });
  w.kernel.setFlowLog(false);
  await probe('ping-pong', exchange);
  await run('sleep', ['0.1']);
  assert.deepEqual(records, []);
});
