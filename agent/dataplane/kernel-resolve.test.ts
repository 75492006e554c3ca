/** Services decided at connect(): real programs in pods connect to addresses that no pod has. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { after, before, beforeEach, test } from 'node:test';
import type { TestPod } from '../../native/testing.js';
import { run } from '../../common/process.js';
import { sleep, waitFor } from '../../common/retry.js';
import type { ServiceEndpoint } from './kernel-services.js';
import { KernelWorld, TEST_BPFFS } from './kernel-testing.js';

const VIP = '198.51.100.10';
const VIP6 = '2001:db8::10';
const PORT = 80;
const OUTLIER_MS = 5_000;

/** Answers each connection with its own address and port, and closes. */
const SERVER = `
const [, port] = process.argv;
require('node:net').createServer((socket) => { socket.on('error', () => {}); socket.end(socket.localAddress + ' ' + socket.localPort); }).listen({ port: +port, host: '::' }, () => console.log('up'));`;

/** Connects so many times, one after the other, and prints by whom it was answered, what it saw as its peer, and its errors. */
const CLIENT = `
const [, host, port, count] = process.argv;
const once = () => new Promise((resolve) => {
  const socket = require('node:net').connect({ host, port: +port });
  let text = '', peer, errno;
  socket.on('connect', () => (peer = socket.remoteAddress + ' ' + socket.remotePort));
  socket.on('data', (chunk) => (text += chunk)); socket.on('error', (error) => (errno = error.code));
  socket.on('close', () => resolve({ text, peer, errno }));
});
(async () => { const out = {}; for (let i = 0; i < +count; i++) { const { text, peer, errno } = await once(); const key = errno ?? text + ' as ' + peer; out[key] = (out[key] ?? 0) + 1; } console.log(JSON.stringify(out)); })();`;

let w: KernelWorld;
let pods: [TestPod, TestPod, TestPod];
let [client, one, two] = [] as unknown as [TestPod, TestPod, TestPod];
const servers: ChildProcess[] = [];

async function serve(pod: TestPod, port: number): Promise<ChildProcess> {
  const [command, ...args] = w.world.inPod(pod, [process.execPath, '-e', SERVER, String(port)]) as [string, ...string[]];
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  servers.push(child);
  await once(child.stdout, 'data');
  return child;
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill('SIGKILL');
  await once(child, 'exit');
}

/** How many connections had which end. */
async function connects(pod: TestPod, host: string, port: number, count: number): Promise<Record<string, number>> {
  const [command, ...args] = w.world.inPod(pod, [process.execPath, '-e', CLIENT, host, String(port), String(count)]) as [string, ...string[]];
  return JSON.parse((await run(command, args, { timeoutMs: 180_000 })).stdout) as Record<string, number>;
}

const endpoint = (pod: TestPod, weight = 1, port = 8080, address = pod.ipv4): ServiceEndpoint => ({ address, port, weight });
function service(endpoints: readonly ServiceEndpoint[], kind: 'tcp' | 'http' = 'tcp', address = VIP): void {
  assert.equal(w.kernel.services.apply([{ address, port: PORT, entry: { kind, endpoints } }]), 0);
}
const seen = (pod: TestPod, peer: string): string => `::ffff:${pod.ipv4} 8080 as ${peer}`;

before(async () => {
  w = await KernelWorld.create('resolve', { pods: 3 });
  pods = [w.world.pod(0), w.world.pod(1), w.world.pod(2)];
  [client, one, two] = pods;
  await Promise.all([serve(one, 8080), serve(two, 8080)]);
});
beforeEach(() => w.put({ capture: true, acceleration: 'off' }));
after(async () => {
  await Promise.all(servers.map(stop));
  await w.close();
});

test('a connection to a service goes to an endpoint of it, and the client sees the address that it asked for', async () => {
  service([endpoint(one)]);
  const { result, counters } = await w.counted(() => connects(client, VIP, PORT, 3));
  assert.deepEqual(result, { [seen(one, `${VIP} ${PORT}`)]: 3 });
  assert.equal(counters['connections_resolved'], 3);
  assert.equal(counters['connections_captured'], undefined);
});

test('of a pod that services are not decided for the connection is the proxy\'s, of others it is not', async () => {
  service([endpoint(one)]);
  const cookie = w.kernel.pods().find(({ addresses }) => addresses.includes(client.ipv4))!.netnsCookie;
  w.kernel.services.setForeign(new Set([cookie]));
  const { result, counters } = await w.counted(() => connects(client, VIP, PORT, 2));
  // Nothing listens for the proxy here.
  assert.deepEqual([result, counters['connections_resolved']], [{ ECONNREFUSED: 2 }, undefined]);
  assert.deepEqual(await connects(two, VIP, PORT, 2), { [seen(one, `${VIP} ${PORT}`)]: 2 });
  w.kernel.services.setForeign(new Set());
  assert.equal(w.kernel.services.isForeign(cookie), false);
  assert.deepEqual(await connects(client, VIP, PORT, 2), { [seen(one, `${VIP} ${PORT}`)]: 2 });
});

test('the same for IPv6, and for an IPv4 service asked for by a mapped address', async () => {
  service([endpoint(two, 1, 8080, two.ipv6)], 'tcp', VIP6);
  assert.deepEqual(await connects(client, VIP6, PORT, 2), { [`${two.ipv6} 8080 as ${VIP6} ${PORT}`]: 2 });
  service([endpoint(one)]);
  assert.deepEqual(await connects(client, `::ffff:${VIP}`, PORT, 2), { [seen(one, `::ffff:${VIP} ${PORT}`)]: 2 });
});

test('getpeername, getsockname and SO_ORIGINAL_DST tell the service and the own pod', async () => {
  service([endpoint(one, 1, 7_777)]);
  const result = await w.world.probe('addresses', { pod: one, address: one.ipv4 }, { pod: client, address: VIP }, ['--connect-port', String(PORT)]);
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.deepEqual([result['client_peer'], result['client_original4']], [`${VIP}:${PORT}`, `${VIP}:${PORT}`]);
  assert.match(String(result['client_name']), new RegExp(`^${client.ipv4.replaceAll('.', '\\.')}:\\d+$`));
  assert.match(String(result['server_peer']), new RegExp(`^${client.ipv4.replaceAll('.', '\\.')}:\\d+$`));
  service([endpoint(one, 1, 7_777, one.ipv6)], 'tcp', VIP6);
  const v6 = await w.world.probe('addresses', { pod: one, address: one.ipv6 }, { pod: client, address: VIP6 }, ['--connect-port', String(PORT)]);
  assert.deepEqual([v6['client_peer'], v6['client_original6']], [`[${VIP6}]:${PORT}`, `[${VIP6}]:${PORT}`]);
});

test('connections reach endpoints in proportion to their weights', async () => {
  service([endpoint(one, 3), endpoint(two, 1)]);
  const count = 600;
  const result = await connects(client, VIP, PORT, count);
  const first = result[seen(one, `${VIP} ${PORT}`)] ?? 0;
  assert.equal(first + (result[seen(two, `${VIP} ${PORT}`)] ?? 0), count);
  // Six standard deviations of a fair draw: 6 * sqrt(600 * 3/4 * 1/4) = 63.6.
  assert.ok(Math.abs(first - 450) < 64, `${first} of ${count}`);
});

test('with affinity a client keeps to one endpoint while others come and go, and changes over when its own is gone or dead', async () => {
  const keep = (endpoints: readonly ServiceEndpoint[]): void => void w.kernel.services.apply([{ address: VIP, port: PORT, entry: { kind: 'tcp', affinity: true, endpoints } }]);
  const drawn = async (): Promise<string> => {
    const found = Object.keys(await connects(client, VIP, PORT, 12));
    assert.equal(found.length, 1, `12 connections went to ${found.join(' and ')}`);
    return found[0]!;
  };
  keep([endpoint(one), endpoint(two, 1000)]);
  assert.equal(w.kernel.services.live({ address: VIP, port: PORT })!.affinity, true);
  const own = await drawn();
  keep([endpoint(two), endpoint(one, 1000)]);
  assert.equal(await drawn(), own, 'whatever the order and the weights');
  const [mine, other] = own === seen(one, `${VIP} ${PORT}`) ? [one, two] : [two, one];
  keep([endpoint(other)]);
  assert.equal(await drawn(), seen(other, `${VIP} ${PORT}`));
  keep([endpoint(other), endpoint(mine)]);
  assert.equal(await drawn(), own, 'it comes back to its own');
  // Dead ones are tried once each at most, until one answers.
  keep([...Array.from({ length: 8 }, (_, index) => endpoint(one, 1, 9_001 + index)), endpoint(two)]);
  const result = await connects(client, VIP, PORT, 20);
  assert.ok((result['ECONNREFUSED'] ?? 0) <= 8, JSON.stringify(result));
  assert.equal((result['ECONNREFUSED'] ?? 0) + result[seen(two, `${VIP} ${PORT}`)]!, 20, JSON.stringify(result));
});

test('a pod may be drawn by a connection of its own', async () => {
  service([endpoint(one)]);
  assert.deepEqual(await connects(one, VIP, PORT, 2), { [seen(one, `${VIP} ${PORT}`)]: 2 });
});

test('a service without endpoints refuses at once', async () => {
  service([]);
  const { result, counters } = await w.counted(() => connects(client, VIP, PORT, 3));
  assert.deepEqual(result, { ECONNREFUSED: 3 });
  assert.equal(counters['connections_without_endpoint'], 3);
  service([], 'tcp', VIP6);
  assert.deepEqual(await connects(client, VIP6, PORT, 1), { ECONNREFUSED: 1 });
});

test('what has no entry, or an endpoint that is no pod of the node any more, is the proxy\'s', async () => {
  // Nobody listens on 15001 here, so the proxy's way is refused there, after it was captured.
  w.kernel.services.apply([{ address: VIP, port: PORT, entry: undefined }]);
  const { counters: none } = await w.counted(() => connects(client, VIP, PORT, 1));
  assert.equal(none['connections_resolved'], undefined);
  service([{ address: '10.77.0.200', port: 8080, weight: 1 }]);
  const { counters } = await w.counted(() => connects(client, VIP, PORT, 1));
  assert.deepEqual([counters['connection_endpoint_gone'], counters['connections_resolved']], [1, undefined]);
});

test('HTTP is decided for pods whose label says so alone', async () => {
  service([endpoint(one)], 'http');
  const { counters: always } = await w.counted(() => connects(client, VIP, PORT, 1));
  assert.equal(always['connections_resolved'], undefined);
  w.put({ capture: true, acceleration: 'off', l7Auto: true });
  assert.deepEqual(await connects(client, VIP, PORT, 2), { [seen(one, `${VIP} ${PORT}`)]: 2 });
});

test('a pod that is not captured, and UDP, are left alone', async () => {
  service([endpoint(one)]);
  w.put({ capture: false, acceleration: 'off' });
  const { counters: untouched } = await w.counted(() => w.world.probe('addresses', { pod: one, address: one.ipv4 }, { pod: client }));
  assert.equal(untouched['connections_resolved'], undefined);
  const script = `const socket = require('node:dgram').createSocket('udp4'); socket.connect(${PORT}, '${VIP}', () => { console.log(socket.remoteAddress().address); socket.close(); });`;
  const udp = w.world.inPod(client, [process.execPath, '-e', script]) as [string, ...string[]];
  w.put({ capture: true, acceleration: 'off' });
  const { result, counters } = await w.counted(() => run(udp[0], udp.slice(1), { timeoutMs: 60_000 }));
  assert.equal(result.stdout.trim(), VIP);
  assert.equal(counters['connections_resolved'], undefined);
});

test('no connection fails or finds a service empty while its endpoints change', async () => {
  service([endpoint(one), endpoint(two)]);
  const found: Record<string, number> = {};
  let changes = 0;
  let connections = 0;
  for (; changes <= 100; connections += 1_000) {
    let done = false;
    const load = connects(client, VIP, PORT, 1_000).finally(() => (done = true));
    for (; !done; changes++) {
      service(changes % 3 === 0 ? [endpoint(one)] : changes % 3 === 1 ? [endpoint(two, 5), endpoint(one)] : [endpoint(two)]);
      await sleep(1);
    }
    for (const [whom, count] of Object.entries(await load)) found[whom] = (found[whom] ?? 0) + count;
  }
  assert.equal(Object.values(found).reduce((sum, n) => sum + n, 0), connections);
  assert.deepEqual(Object.keys(found).sort(), [seen(one, `${VIP} ${PORT}`), seen(two, `${VIP} ${PORT}`)].sort());
});

test('both ends of a resolved connection pair', async () => {
  w.put({ capture: true, acceleration: 'force' });
  service([endpoint(one, 1, 7_777)]);
  const { result, counters } = await w.counted(() => w.world.probe('order', { pod: one, address: one.ipv4 }, { pod: client, address: VIP }, ['--connect-port', String(PORT)]));
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.ok((counters['connections_short_circuited'] ?? 0) > 0, JSON.stringify(counters));
  assert.ok((counters['bytes_short_circuited'] ?? 0) > 0, JSON.stringify(counters));
});

test('an endpoint that refuses is left out of draws at once, and comes back', async () => {
  const dead = await serve(one, 8081);
  service([endpoint(one, 1_000, 8081), endpoint(two)]);
  assert.deepEqual(await connects(client, VIP, PORT, 1), { [`::ffff:${one.ipv4} 8081 as ${VIP} ${PORT}`]: 1 });
  await stop(dead);
  const { result, counters } = await w.counted(() => connects(client, VIP, PORT, 20));
  // The weights make the dead one the first draw of nearly every connection.
  assert.deepEqual(result, { ECONNREFUSED: 1, [seen(two, `${VIP} ${PORT}`)]: 19 });
  assert.equal(counters['endpoints_left_out'], 1);
  assert.deepEqual(w.kernel.services.live({ address: VIP, port: PORT })?.endpoints.map(({ leftOut }) => leftOut), [true, false]);
  await serve(one, 8081);
  await sleep(OUTLIER_MS);
  assert.deepEqual(w.kernel.services.live({ address: VIP, port: PORT })?.endpoints.map(({ leftOut }) => leftOut), [false, false]);
  const back = await connects(client, VIP, PORT, 20);
  assert.ok((back[`::ffff:${one.ipv4} 8081 as ${VIP} ${PORT}`] ?? 0) > 0, JSON.stringify(back));
});

test('an endpoint whose SYN goes unanswered is left out, also when the application does not give up', async () => {
  const silence = (action: 'add' | 'del'): Promise<unknown> => {
    const [command, ...args] = w.world.inPod(one, ['ip', 'route', action, 'blackhole', `${client.ipv4}/32`]) as [string, ...string[]];
    return run(command, args, { timeoutMs: 60_000 });
  };
  service([endpoint(one), endpoint(two, 0.000_001)]);
  await silence('add');
  try {
    const waiting = connects(client, VIP, PORT, 1);
    await waitFor('the silent endpoint to be left out', () => w.kernel.services.live({ address: VIP, port: PORT })?.endpoints[0]?.leftOut, { timeoutMs: 60_000, everyMs: 20 });
    assert.deepEqual(await connects(client, VIP, PORT, 5), { [seen(two, `${VIP} ${PORT}`)]: 5 });
    await silence('del');
    assert.deepEqual(await waiting, { [seen(one, `${VIP} ${PORT}`)]: 1 });
  } catch (error) {
    await silence('del').catch(() => undefined);
    throw error;
  }
});

test('with no endpoint left that answers, one is tried all the same', async () => {
  service([endpoint(one, 1, 8_099), endpoint(two, 1, 8_099)]);
  assert.deepEqual(await connects(client, VIP, PORT, 6), { ECONNREFUSED: 6 });
});

test('what does not fit has no entry, is counted, and gets its place when there is room', async () => {
  const small = await KernelWorld.create('resolve-small', { pods: 1, maxEntries: { services: 2, service_indexes: 2, endpoints: 4 } });
  try {
    const table = small.kernel.services;
    const change = (last: number, count: number) => ({ address: `198.51.100.${last}`, port: PORT, entry: { kind: 'tcp' as const, endpoints: Array.from({ length: count }, (_, i) => ({ address: `10.0.0.${i + 1}`, port: 1, weight: 1 })) } });
    assert.equal(table.apply([change(1, 1), change(2, 1), change(3, 1)]), 1);
    assert.equal(table.live({ address: '198.51.100.3', port: PORT }), undefined);
    // Five endpoints do not fit; the service loses its entry rather than keep endpoints that are no longer its own.
    assert.equal(table.apply([change(1, 5)]), 1);
    assert.equal(table.live({ address: '198.51.100.1', port: PORT }), undefined);
    assert.deepEqual(table.status, { services: 1, endpoints: 1, maxServices: 2, maxEndpoints: 4, refused: 2 });
    await sleep(1_100);
    assert.equal(table.retryRefused(), 1);
    assert.equal(table.live({ address: '198.51.100.3', port: PORT })?.endpoints.length, 1);
  } finally {
    await small.close();
  }
});

test('the next agent takes entries over, and what it does not change keeps its place', async () => {
  const pinned = await KernelWorld.create('resolve-pin', { pods: 1, pinned: true, maxEntries: { services: 16, service_indexes: 16, endpoints: 64 } });
  try {
    const entry = { kind: 'http' as const, endpoints: [endpoint(one, 2), endpoint(two, 1)] };
    pinned.kernel.services.apply([{ address: VIP, port: PORT, entry }, { address: VIP6, port: 443, entry: { kind: 'tcp', endpoints: [] } }]);
    await pinned.kernel.close();
    const next = await pinned.open(TEST_BPFFS);
    assert.deepEqual(next.services.ports(), [{ address: VIP, port: PORT }, { address: VIP6, port: 443 }].sort((a, b) => (next.services.ports()[0]?.address === a.address ? -1 : 1)));
    assert.deepEqual(next.services.live({ address: VIP, port: PORT })?.endpoints.map(({ address, share }) => [address, Math.round(share * 1000)]), [[one.ipv4, 667], [two.ipv4, 333]]);
    assert.deepEqual(next.services.status, { services: 2, endpoints: 2, maxServices: 16, maxEndpoints: 64, refused: 0 });
    // Unchanged ones are not written: a removal and nothing else happens.
    assert.equal(next.services.apply([{ address: VIP, port: PORT, entry }, { address: VIP6, port: 443, entry: undefined }]), 0);
    assert.deepEqual([next.services.status.services, next.services.live({ address: VIP6, port: 443 })], [1, undefined]);
  } finally {
    await pinned.close();
  }
});
