// What the programs tell of single connections while somebody asks, by real sockets; and as tcpdump reads a capture of it.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { pino } from 'pino';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { CaptureStream } from '../telemetry/capture-stream.js';
import { TraceStream, type TraceLine } from '../telemetry/trace-stream.js';
import { KernelWorld } from './kernel-testing.js';
import type { Watched, WatchEvent } from './kernel-watch.js';

const w = await KernelWorld.create('watch');
const [a, b] = w.world.pods as [typeof w.world.pods[number], typeof w.world.pods[number]];
const folder = mkdtempSync(join(tmpdir(), 'up-watch-'));
before(() => w.put({ acceleration: 'force' }));
after(async () => {
  await w.close();
  rmSync(folder, { recursive: true, force: true });
});

const PORT = 7777;
const exchange = (count: number, size: number): Promise<unknown> => w.world.probe('ping-pong', { pod: b, address: b.ipv4 }, { pod: a }, ['--port', String(PORT), '--count', String(count), '--size', String(size)]);
const points = (events: readonly Watched[]): WatchEvent[] => events.filter((event): event is WatchEvent => event.what !== 'request' && event.what !== 'payload');
const names = {
  ofNetns: (cookie: bigint) => (cookie === a.netnsCookie ? { name: 'client', namespace: 'shop' } : cookie === b.netnsCookie ? { name: 'server', namespace: 'shop' } : undefined),
  ofAddress: () => undefined, isRedirected: () => false,
};

test('trace: a connection is told from connect() to its end, by both ends, with how each message went; only what was asked for', async () => {
  const events: Watched[] = [];
  w.kernel.watch.start('trace', { netnsCookie: a.netnsCookie, address: b.ipv4, port: PORT }, (event) => events.push(event));
  await exchange(2, 1000);
  await waitFor('both ends to close', () => points(events).filter(({ what }) => what === 'closed').length === 2, { everyMs: 10 });
  const of = (what: WatchEvent['what']): WatchEvent[] => points(events).filter((event) => event.what === what);
  assert.deepEqual(of('connect').map(({ reason, remote, netnsCookie }) => [reason, remote, netnsCookie]), [['no', { address: b.ipv4, port: PORT }, a.netnsCookie]]);
  const [opened] = of('opened'), [accepted] = of('accepted');
  assert.deepEqual([opened!.reason, opened!.remote, accepted!.peerCookie, accepted!.local], [undefined, { address: b.ipv4, port: PORT }, opened!.cookie, { address: b.ipv4, port: PORT }]);
  assert.deepEqual(of('moved').map(({ cookie, bytes }) => [cookie === opened!.cookie, bytes]), [[true, 1000], [false, 1000], [true, 1000], [false, 1000]]);
  events.length = 0;
  w.kernel.watch.start('trace', { port: PORT + 1 }, (event) => events.push(event));
  await exchange(1, 10);
  w.kernel.watch.stop('trace');
  await exchange(1, 10);
  assert.deepEqual(points(events).filter(({ what }) => what === 'connect' || what === 'opened' || what === 'moved'), []);
});

test('records that come faster than they are read keep nothing else from its turn, and none of them is left behind', async (context) => {
  let turns = 0;
  let isOver = false;
  const count = (): void => {
    turns++;
    if (!isOver) setImmediate(count);
  };
  context.after(() => (isOver = true));
  const ofTurn = new Map<number, number>();
  let moved = 0;
  w.kernel.watch.start('trace', { netnsCookie: a.netnsCookie, port: PORT }, ({ what }) => {
    ofTurn.set(turns, (ofTurn.get(turns) ?? 0) + 1);
    if (what === 'moved') moved++;
    const since = process.cpuUsage();
    for (let used = { user: 0, system: 0 }; used.user + used.system < 2_000; used = process.cpuUsage(since));
  });
  context.after(() => w.kernel.watch.stop('trace'));
  count();
  await exchange(60, 10);
  await waitFor('all of them', () => moved === 120, { everyMs: 10 });
  // Two milliseconds of CPU time each, of which other threads may have a part: of five milliseconds a turn.
  assert.ok(Math.max(...ofTurn.values()) <= 40, JSON.stringify([...ofTurn.values()]));
});

test('trace: what is not short-circuited says why, for each connection by its number; a second trace waits for the first one\'s end', async () => {
  const traces = new TraceStream({ watch: w.kernel.watch, names });
  const stream = traces.open({ port: PORT })!;
  assert.equal(traces.open({}), undefined);
  let seen = '';
  stream.on('data', (chunk: string) => (seen += chunk));
  w.put({ acceleration: 'off' });
  await exchange(1, 10);
  w.put({ acceleration: 'force' });
  await exchange(1, 10);
  await waitFor('the end of both', () => seen.split('"what":"closed"').length >= 4, { everyMs: 10 });
  const lines = seen.trim().split('\n').map((line) => JSON.parse(line) as TraceLine);
  assert.deepEqual(lines.filter(({ what }) => what === 'opened').map(({ connection, who, reason }) => [connection, who, reason]), [[1, 'shop/client', 'connection_pod_off'], [2, 'shop/client', null]]);
  assert.match(lines.find(({ connection, what }) => connection === 2 && what === 'moved')!.text, /^10 B moved/);
  stream.destroy();
  await waitFor('the next one to be let in', () => {
    const next = traces.open({});
    next?.destroy();
    return next !== undefined;
  }, { everyMs: 10 });
});

test('capture: tcpdump reads what two sockets told each other without TCP, with whole payload and right numbers; log and counts say whose it was', async () => {
  const lines: Record<string, unknown>[] = [];
  const logger = pino({ base: undefined, timestamp: false }, { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) });
  const captures = new CaptureStream({ watch: w.kernel.watch, logger });
  const pod = { name: 'client', namespace: 'shop', netnsCookie: a.netnsCookie, addresses: [a.ipv4, a.ipv6] };
  const stream = captures.open({ pod, seconds: 60, bytes: 60_000, bytesPerSecond: 8 << 20, by: 'a test' })!;
  assert.equal(captures.open({ pod, seconds: 1, bytes: 1, bytesPerSecond: 1, by: 'another' }), undefined);
  const chunks: Buffer[] = [];
  stream.on('data', (chunk: Buffer) => chunks.push(chunk));
  const ended = new Promise((resolve) => stream.once('end', resolve));
  await exchange(3, 10_000);
  await ended;
  const file = join(folder, 'a.pcapng');
  writeFileSync(file, Buffer.concat(chunks));
  const { stdout } = await run('tcpdump', ['-nn', '-vv', '-r', file]);
  assert.doesNotMatch(stdout, /incorrect|bad/);
  const { stdout: short } = await run('tcpdump', ['-nn', '-q', '-r', file, '-S']);
  assert.match(short, new RegExp(`IP ${a.ipv4}\\.\\d+ > ${b.ipv4}\\.${PORT}: tcp 4096`));
  const bytes = { in: 0, out: 0 };
  for (const [, from, size] of short.matchAll(/IP ([\d.]+)\.\d+ > [\d.]+: tcp (\d+)/g)) bytes[from === a.ipv4 ? 'out' : 'in'] += Number(size);
  assert.deepEqual(bytes, { in: 30_000, out: 30_000 });
  // Each segment begins where the one before it ended.
  const next = new Map<string, number>();
  for (const [, from, first, end] of stdout.matchAll(/([\d.]+) > [\d.]+: Flags \[P\.\].*? seq (\d+):(\d+)/g)) {
    if (next.has(from!)) assert.equal(Number(first), next.get(from!));
    next.set(from!, Number(end));
  }
  assert.equal(next.size, 2);
  assert.deepEqual(lines.map(({ pod: whose, by, bytes: payload, msg }) => [whose, by, payload, msg]), [['shop/client', 'a test', 60_000, 'capture of a pod\'s payload begins'], ['shop/client', 'a test', 60_000, 'capture of a pod\'s payload has ended']]);
  assert.deepEqual(captures.counts, { captures: 1, bytes: 60_000, bytesCut: 0 });
});

test('capture: what is over the rate is left out and counted, and the numbers go on behind it', async () => {
  const captures = new CaptureStream({ watch: w.kernel.watch, logger: pino({ level: 'silent' }) });
  const stream = captures.open({ pod: { name: 'client', namespace: 'shop', netnsCookie: a.netnsCookie, addresses: [a.ipv4] }, seconds: 60, bytes: 1 << 20, bytesPerSecond: 10_000, by: 'a test' })!;
  stream.resume();
  await exchange(50, 5_000);
  stream.destroy();
  await waitFor('its end', () => captures.counts.bytesCut > 0, { everyMs: 10 });
  assert.ok(captures.counts.bytes + captures.counts.bytesCut <= 500_000);
});
