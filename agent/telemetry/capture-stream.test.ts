// What a real kernel does seldom: messages of which a part is missing, and a reader that takes nothing.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import type { Watched, WatchEvent } from '../dataplane/kernel-watch.js';
import { CaptureStream } from './capture-stream.js';

const [CLIENT, SERVER, UPSTREAM] = [1n, 2n, 3n];
const pod = { name: 'client', namespace: 'shop', netnsCookie: 7n, addresses: ['10.0.0.1'] };

function capturing(): { captures: CaptureStream; stream: NonNullable<ReturnType<CaptureStream['open']>>; tell: (event: Partial<WatchEvent> & { what: WatchEvent['what'] }) => void; payload: (cookie: bigint, at: number, length: number, sizeBytes: number) => void; isOn: () => boolean } {
  let onEvent: ((event: Watched) => void) | undefined;
  const captures = new CaptureStream({ watch: { start: (_watcher, _filter, take) => (onEvent = take), stop: () => (onEvent = undefined) }, logger: pino({ level: 'silent' }) });
  const stream = captures.open({ pod, seconds: 600, bytes: 1 << 30, bytesPerSecond: 1 << 20, by: 'a test' })!;
  const tell: ReturnType<typeof capturing>['tell'] = (event) => onEvent?.({
    reason: undefined, atNs: 1n, cookie: 0n, peerCookie: 0n, netnsCookie: 7n, otherNetns: 8n, local: undefined, remote: undefined, asked: undefined, flags: new Set<string>(), pid: 0, bytes: 0, startedNs: 0n, ...event,
  });
  const [local, remote] = [{ address: '10.0.0.1', port: 40_000 }, { address: '10.0.0.2', port: 80 }];
  tell({ what: 'opened', cookie: CLIENT, local, remote });
  tell({ what: 'accepted', cookie: SERVER, peerCookie: CLIENT, local: remote, remote: local });
  tell({ what: 'opened', cookie: UPSTREAM, local: { address: '10.0.0.1', port: 40_001 }, remote });
  return { captures, stream, tell, payload: (cookie, at, length, sizeBytes) => onEvent?.({ what: 'payload', atNs: 1n, cookie, at, sizeBytes, data: Buffer.alloc(length, 'x') }), isOn: () => onEvent !== undefined };
}

/** Sequence numbers and lengths of what has payload, of one direction. */
function segments(file: Buffer, fromPort: number): [number, number][] {
  const found: [number, number][] = [];
  for (let at = 0; at < file.length; at += file.readUInt32LE(at + 4)) {
    if (file.readUInt32LE(at) !== 6) continue;
    const packet = file.subarray(at + 28, at + 28 + file.readUInt32LE(at + 20));
    if (packet.readUInt16BE(20) === fromPort && packet.length > 40) found.push([packet.readUInt32BE(24), packet.length - 40]);
  }
  return found;
}

test('capture: what is missing, of a message at its end or in the middle, or whole ones over the rate, is counted, and the numbers go on behind it', () => {
  const { captures, stream, tell, payload } = capturing();
  // The kernel tells 64 KiB of one message.
  for (let at = 0; at < 65_536; at += 4_096) payload(CLIENT, at, 4_096, 100_000);
  payload(CLIENT, 0, 4_096, 12_000);
  payload(CLIENT, 8_192, 3_808, 12_000);
  payload(CLIENT, 0, 10, 10);
  tell({ what: 'cut', cookie: CLIENT, bytes: 500 });
  payload(CLIENT, 0, 20, 20);
  tell({ what: 'closed', cookie: CLIENT });
  const sent = segments(stream.read() as Buffer, 40_000);
  assert.deepEqual(sent.slice(16), [[100_001, 4_096], [108_193, 3_808], [112_001, 10], [112_511, 20]]);
  stream.destroy();
  assert.deepEqual([captures.counts.bytes, captures.counts.bytesCut], [65_536 + 4_096 + 3_808 + 10 + 20, 34_464 + 4_096 + 500]);
});

test('capture: of a reader that takes nothing a bounded part is kept, also of what the HTTP fast path leads elsewhere; then it ends', () => {
  const { captures, stream, tell, payload, isOn } = capturing();
  const answer = (): void => {
    for (let at = 0; at < 65_536; at += 4_096) payload(SERVER, at, 4_096, 65_536);
    tell({ what: 'led', cookie: SERVER, peerCookie: UPSTREAM });
  };
  for (let index = 0; index < 400; index++) answer();
  assert.ok(stream.readableLength < 18 << 20, `${stream.readableLength} bytes`);
  assert.ok(captures.counts.bytesCut === 0 && isOn(), 'it goes on');
  // Heads are told on; long comments stand for many of them.
  const reason = 'x'.repeat(20_000);
  for (let index = 10; index < 10_000 && isOn(); index++) {
    tell({ what: 'opened', cookie: BigInt(index), reason, local: { address: '10.0.0.1', port: 1 }, remote: { address: '10.0.0.2', port: 80 } });
    tell({ what: 'closed', cookie: BigInt(index) });
  }
  assert.equal(isOn(), false);
  assert.ok(stream.readableLength < 33 << 20, `${stream.readableLength} bytes`);
  assert.ok(captures.counts.bytesCut > 15 << 20);
  stream.destroy();
});
