/** DESIGN section 5, rules 2, 5, 6 and 7: order, endings, flow control and what applications ask a socket. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { buildDir } from '../../common/paths.js';
import { run } from '../../common/process.js';
import type { TestPod } from '../../native/testing.js';
import { KernelWorld } from './kernel-testing.js';

const tcpBench = join(buildDir, 'tcp-bench');
/** Far above the 2 MB that the bound allows for a fresh socket, far below the 960 MB without one. */
const MAX_QUEUED_BYTES = 16 << 20;

let w: KernelWorld;
before(async () => {
  w = await KernelWorld.create('flow');
  w.put();
});
after(() => w.close());

function ends(family: 'ipv4' | 'ipv6' = 'ipv4') {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  return { server: { pod: b, address: b[family] }, client: { pod: a } };
}

for (const family of ['ipv4', 'ipv6'] as const) {
  test(`order: 200 MB both ways at once in pieces of all sizes over ${family}: hashes are equal`, async () => {
    const { server, client } = ends(family);
    const { result, counters } = await w.counted(() => w.world.probe('order', server, client, ['--bytes', '200000000']));
    assert.equal(result.ok, true, JSON.stringify(result));
    assert.equal((counters['bytes_short_circuited'] ?? 0) + (counters['bytes_tcp'] ?? 0), 400_000_000, 'every byte went one way or the other');
    assert.ok((counters['bytes_short_circuited'] ?? 0) > 0);
  });
}

test('order: falling back to TCP in mid-stream and coming back loses and reorders nothing', async () => {
  const { server, client } = ends();
  // A reader that stops and goes on makes the sender change its way many times.
  const { result, counters } = await w.counted(() => w.world.probe('large-close', server, client, ['--count', '20', '--bytes', '8000000']));
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.ok((counters['message_peer_full'] ?? 0) > 0, JSON.stringify(counters));
  assert.ok((counters['message_not_drained'] ?? 0) > 0, JSON.stringify(counters));
});

test('slow reader: what the kernel takes for it stays bounded, and all of it arrives', async () => {
  const { server, client } = ends();
  const memory = (): number => Number(/^TCP: .* mem (\d+)$/m.exec(readFileSync('/proc/net/sockstat', 'utf8'))?.[1]) * 4096;
  const before = memory();
  let highest = 0;
  const sampler = setInterval(() => (highest = Math.max(highest, memory() - before)), 20);
  const { result } = await w.counted(() => w.world.probe('slow-reader', server, client, ['--bytes', String(300 << 20), '--delay', '400']));
  clearInterval(sampler);
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.ok(Number(result.queued) <= MAX_QUEUED_BYTES, `${result.queued} bytes queued`);
  assert.ok(process.memoryUsage().rss < 1 << 30);
  assert.ok(highest < 128 << 20, `TCP memory grew by ${highest}`);
});

test('slow reader: where nothing bounds what is moved, the measurement sees all of it', async () => {
  const { server, client } = ends();
  // So large a buffer stands for a kernel that does not charge the receiver: there is always room.
  const { result, counters } = await w.counted(() => w.world.probe('slow-reader', server, client, ['--bytes', String(48 << 20), '--delay', '150', '--rcvbuf', String(256 << 20)]));
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(result.queued, 48 << 20);
  assert.equal(counters['bytes_short_circuited'], (48 << 20) + 1, 'with the answer');
  assert.ok(Number(result['charged']) >= 48 << 20, JSON.stringify(result));
});

test('bulk: a receiver that falls behind makes the sender wait, and TCP never drops for want of room', async (t) => {
  const { server, client } = ends();
  const inPod = (pod: TestPod, argv: readonly string[]): ChildProcess => {
    const [command = '', ...args] = w.world.inPod(pod, argv);
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    t.after(() => child.kill('SIGKILL'));
    return child;
  };
  /** Sums over both ends. A segment without room: RcvPruned; what becomes of it: a stall of 200 ms, TCPTimeouts. */
  const losses = async (): Promise<Record<string, number>> => {
    const sums: Record<string, number> = {};
    for (const { pod } of [server, client]) {
      const [command = '', ...args] = w.world.inPod(pod, ['cat', '/proc/net/netstat']);
      const [names = [], values = []] = (await run(command, args)).stdout.split('\n').map((line) => line.split(' '));
      for (const name of ['RcvPruned', 'TCPRcvQDrop', 'TCPTimeouts']) sums[name] = (sums[name] ?? 0) + Number(values[names.indexOf(name)]);
    }
    return sums;
  };
  for (const size of ['16384', '65536', '131072']) {
    const receiver = inPod(server.pod, [tcpBench, 'server', '--port', '9000']);
    await once(receiver.stderr as NodeJS.ReadableStream, 'data');
    const before = await losses();
    const { counters } = await w.counted(async () => {
      const sender = inPod(client.pod, [tcpBench, 'bulk', '--connect', `${server.pod.ipv4}:9000`, '--size', size, '--duration', '0.8', '--connections', '1']);
      const ended = once(sender, 'exit');
      for (const signal of ['SIGSTOP', 'SIGCONT', 'SIGSTOP', 'SIGCONT'] as const) {
        await sleep(150);
        receiver.kill(signal);
      }
      assert.deepEqual(await ended, [0, null]);
    });
    assert.deepEqual(await losses(), before, `${size}: ${JSON.stringify(counters)}`);
    assert.ok((counters['message_peer_full'] ?? 0) > 0, `${size}: it did fall behind: ${JSON.stringify(counters)}`);
    assert.ok((counters['bytes_short_circuited'] ?? 0) > 0 && (counters['bytes_tcp'] ?? 0) > 0, `${size}: both ways were taken: ${JSON.stringify(counters)}`);
    receiver.kill('SIGTERM');
    await once(receiver, 'exit');
  }
});

test('half-close: a client that shuts its side down gets its answer', async () => {
  const { server, client } = ends();
  const { result, counters } = await w.counted(() => w.world.probe('half-close', server, client, ['--count', '200']));
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(counters['connections_short_circuited'], 200);
});

test('large answer then close: a FIN that overtakes moved bytes cuts nothing off', async () => {
  const { server, client } = ends();
  for (const bytes of ['100', '70000', '400000', '3000000']) {
    const { result, counters } = await w.counted(() => w.world.probe('large-close', server, client, ['--count', '20', '--bytes', bytes]));
    assert.equal(result.ok, true, `${bytes}: ${JSON.stringify(result)}`);
    assert.ok((counters['bytes_short_circuited'] ?? 0) > 0);
  }
});

test('FIONREAD tells how much of a moved message there is to read', async () => {
  const { server, client } = ends();
  for (const size of ['64', '1000', '30000']) {
    const { result } = await w.counted(() => w.world.probe('fionread', server, client, ['--size', size, '--count', '30']));
    assert.equal(result.ok, true, `${size}: ${JSON.stringify(result)}`);
  }
});

test('FIONREAD hides nothing of a stream that is moved in part and goes by TCP in part', async () => {
  const { server, client } = ends();
  const { result, counters } = await w.counted(() => w.world.probe('hidden', server, client, ['--bytes', '12000000', '--delay', '200', '--count', '1']));
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.ok((counters['bytes_short_circuited'] ?? 0) > 0 && (counters['message_peer_full'] ?? 0) > 0 && (counters['bytes_tcp'] ?? 0) > 65_536, JSON.stringify(counters));
});

test('counters: every byte is accounted once, per pod and in all', async () => {
  const { server, client } = ends();
  const uid = (index: number): string => w.podRecord(w.world.pod(index)).uid;
  const before = w.kernel.podCounters();
  const { counters } = await w.counted(() => w.world.probe('order', server, client, ['--bytes', '5000000']));
  const after = w.kernel.podCounters();
  const sums = [0, 1].map((index) => {
    const [x, y] = [before.get(uid(index)), after.get(uid(index))];
    assert.ok(x && y);
    return Number(y.bytes_short_circuited - x.bytes_short_circuited + y.bytes_tcp - x.bytes_tcp);
  });
  assert.deepEqual(sums, [5_000_000, 5_000_000]);
  assert.equal((counters['bytes_short_circuited'] ?? 0) + (counters['bytes_tcp'] ?? 0), 10_000_000);
});
