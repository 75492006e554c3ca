/** Connections that serve one request: which are joined, which are not, and that none of it can be told by what arrives. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { sleep } from '../../common/retry.js';
import { BpfObject } from '../../native/index.js';
import { socketProbe, type ProbeResult, type TestPod } from '../../native/testing.js';
import { executable } from './kernel.js';
import { KernelWorld, TEST_BPFFS } from './kernel-testing.js';

/** Fewer than BRIEF_STREAK in bpf/consts.h, and a gap that no slow machine makes by itself. */
const STREAK = 16;
const GAP_MS = 3_000;
const RODATA = { brief_streak: STREAK, brief_gap_ns: GAP_MS * 1_000_000 };
const PORT = 7777;

let w: KernelWorld;
let a: TestPod;
let b: TestPod;
let c: TestPod;
let maps: BpfObject;
before(async () => {
  w = await KernelWorld.create('brief', { pods: 3, rodata: RODATA, pinned: true });
  maps = BpfObject.open({ pinDir: join(TEST_BPFFS, w.world.name), programs: [] });
  [a, b, c] = [w.world.pod(0), w.world.pod(1), w.world.pod(2)];
  w.kernel.markProgram(executable(socketProbe), 'event-driven');
  for (const server of [b, c]) for (const address of [server.ipv4, server.ipv6]) w.kernel.markListener({ netnsCookie: server.netnsCookie, address, port: PORT }, 'event-driven');
});
/** As if nothing had been seen. */
function forget(): void {
  const brevities = maps.map('brevities');
  const places = Buffer.from(Uint32Array.from({ length: brevities.maxEntries }, (_, place) => place).buffer);
  brevities.setMany(places, Buffer.alloc(brevities.maxEntries * brevities.valueSize));
}
beforeEach(() => {
  w.put({ acceleration: 'l4' });
  forget();
});
after(async () => {
  maps.close();
  await w.close();
});

interface Run {
  result: ProbeResult;
  /** What changed, to be read when a test fails. */
  counters: string;
  joined: number;
  brief: number;
  outlasted: number;
}
async function run(which: string, args: readonly string[], server = b, address = server.ipv4): Promise<Run> {
  const { result, counters } = await w.counted(() => w.world.probe(which, { pod: server, address }, { pod: a }, args));
  assert.equal(result.ok, true, JSON.stringify(result));
  return { result, counters: JSON.stringify(counters), joined: counters['connections_short_circuited'] ?? 0, brief: counters['connection_brief'] ?? 0, outlasted: counters['connections_outlasted'] ?? 0 };
}
const churn = (count: number, size = 64, server = b, address = server.ipv4): Promise<Run> => run('churn', ['--count', String(count), '--size', String(size)], server, address);
/** A connection's end is seen when both ends have closed it; by then the next one, or two, may be open. */
function isStreak(joined: number): void {
  assert.ok(joined >= STREAK && joined <= STREAK + 2, `${joined} joined`);
}
const tables = (): unknown[] => ['establishing', 'peers', 'sockets'].map((name) => w.kernel.tables()[name]?.entries);

test('brief: after so many connections of one exchange each the next are not joined, and all are right', async () => {
  const { joined, brief } = await churn(300);
  isStreak(joined);
  assert.equal(joined + brief, 300);
  assert.deepEqual(tables(), [0, 0, 0]);
});

test('brief: the same for IPv6; another destination and `force` are joined all the while', async () => {
  isStreak((await churn(40, 64, b, b.ipv6)).joined);
  assert.equal((await churn(5, 64, b, b.ipv4)).joined, 5, 'another address');
  assert.equal((await churn(5, 64, c)).joined, 5, 'another pod');
  w.put({ acceleration: 'force' });
  assert.equal((await churn(40, 64, b, b.ipv6)).joined, 40);
});

test('brief: after a pause connections are joined again', async () => {
  assert.ok((await churn(STREAK + 10)).brief > 0);
  await sleep(GAP_MS + 100);
  assert.deepEqual((({ joined, brief }) => [joined, brief])(await churn(STREAK)), [STREAK, 0]);
});

test('brief: one that goes on is seen, at both ends, and those after it are joined, though it is not', async () => {
  await churn(STREAK);
  const long = await run('ping-pong', ['--count', '50', '--size', '64']);
  assert.deepEqual([long.joined, long.brief, long.outlasted], [0, 1, 2]);
  assert.deepEqual((({ joined, brief }) => [joined, brief])(await churn(STREAK)), [STREAK, 0]);
});

test('brief: connections of one large message each, either way, are joined', async () => {
  const up = await churn(40, 20_000);
  assert.deepEqual([up.joined, up.brief], [40, 0]);
  forget();
  const down = await run('large-close', ['--count', '40', '--bytes', '60000']);
  assert.deepEqual([down.joined, down.brief], [40, 0]);
});

test('brief: one connection at a time with several messages each is joined', async () => {
  await churn(STREAK - 1);
  // Any other doubt about a connection may leave one plain.
  let joined = 0;
  const seen: string[] = [];
  for (let i = 0; i < 8; i++) {
    const one = await run('ping-pong', ['--count', '8', '--size', '64']);
    assert.equal(one.brief, 0, `connection ${i}: ${one.counters}`);
    joined += one.joined;
    if (!one.joined) seen.push(one.counters);
  }
  assert.ok(joined >= 7, `${joined} of 8 joined; the others: ${seen.join(' ')}`);
});

test('brief: thousands of connections around the limits, joined and not by turns: every byte is right, and nothing is left', async () => {
  let joined = 0, brief = 0;
  for (const size of [4, 64, 5_000, 16_000, 16_383, 16_384, 16_385, 17_000, 40_000]) {
    for (const count of [STREAK - 1, 3 * STREAK, 200]) {
      const result = await churn(count, size);
      joined += result.joined;
      brief += result.brief;
      assert.equal(result.joined + result.brief, count, `${count} of ${size} B`);
    }
    await run('ping-pong', ['--count', '20', '--size', String(size)]);
    await run('half-close', ['--count', '20', '--delay', '1']);
  }
  assert.ok(joined > 500 && brief > 500, `${joined} joined, ${brief} not`);
  assert.deepEqual(tables(), [0, 0, 0]);
});

test('brief: what a connection carries is counted whole, joined or not', async () => {
  const { counters } = await w.counted(() => w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '200', '--size', '100']));
  assert.equal((counters['bytes_short_circuited'] ?? 0) + (counters['bytes_tcp'] ?? 0), 2 * 200 * 100);
  assert.equal(counters['bytes_short_circuited'], 2 * (counters['connections_short_circuited'] ?? 0) * 100);
  isStreak(counters['connections_short_circuited'] ?? 0);
});

test('brief: with a streak of 0 every connection is joined', async () => {
  const always = await KernelWorld.create('brief', { rodata: { ...RODATA, brief_streak: 0 } });
  try {
    const [x, y] = [always.world.pod(0), always.world.pod(1)];
    always.put({ acceleration: 'l4' });
    always.kernel.markProgram(executable(socketProbe), 'event-driven');
    always.kernel.markListener({ netnsCookie: y.netnsCookie, address: y.ipv4, port: PORT }, 'event-driven');
    const { result, counters } = await always.counted(() => always.world.probe('churn', { pod: y, address: y.ipv4 }, { pod: x }, ['--count', '100']));
    assert.equal(result.ok, true);
    assert.equal(counters['connections_short_circuited'], 100);
  } finally {
    await always.close();
  }
});
