import assert from 'node:assert/strict';
import { EventEmitter } from 'node:events';
import { test } from 'node:test';
import { status as GrpcStatus } from '@grpc/grpc-js';
import { ManualClock } from '../../common/clock.js';
import { rootLogger } from '../../common/log.js';
import type { PeerIdentity } from '../ca/peer-identity.js';
import { PushMetrics } from './metrics.js';
import { checkNames, DEFAULT_LIMITS, StreamGuard, StreamRefusal, type StreamLimits } from './stream-guard.js';

class Call extends EventEmitter {
  ended = false;
  cancelled = false;
  error: { code: GrpcStatus; details: string } | undefined;
  constructor(readonly peer = '10.0.0.1:1234') {
    super();
    this.on('error', (error: { code: GrpcStatus; details: string }) => (this.error = error));
  }
  getPeer = (): string => this.peer;
  end = (): void => {
    this.ended = true;
    this.emit('finish');
  };
}

function guard(limits: Partial<StreamLimits> = {}): { guard: StreamGuard; clock: ManualClock; refused: () => Promise<Record<string, number>> } {
  const clock = new ManualClock();
  const metrics = new PushMetrics();
  const refused = async (): Promise<Record<string, number>> => Object.fromEntries((await metrics.refusedStreams.get()).values.map(({ labels, value }) => [labels.reason, value]));
  return { guard: new StreamGuard({ limits: { ...DEFAULT_LIMITS, ...limits }, logger: rootLogger.child({}, { level: 'silent' }), refused: metrics.refusedStreams, clock }), clock, refused };
}
const nobody = { identity: undefined, local: false };
const web: PeerIdentity = { trustDomain: 'td', namespace: 'shop', serviceAccount: 'web', via: 'token' };

test('a stream that says nothing ends with DEADLINE_EXCEEDED; one that has asked does not', async () => {
  const { guard: streams, clock, refused } = guard({ firstRequestMs: 1_000 });
  const [silent, asking] = [new Call(), new Call()];
  const waiting = new Call();
  for (const call of [silent, asking, waiting]) assert.ok(streams.admit(call, nobody));
  for (const call of [silent, asking]) call.on('data', () => undefined);
  asking.emit('data');
  clock.advance(1_000);
  assert.deepEqual([silent.error?.code, asking.error, waiting.error], [GrpcStatus.DEADLINE_EXCEEDED, undefined, undefined], 'one that nobody has read from yet has not been silent');
  assert.deepEqual(await refused(), { no_request: 1 });
});

test('a peer has so many streams, by its address or by who it is; one that ends makes room, sockets are not counted', async () => {
  const { guard: streams, refused } = guard({ streamsPerPeer: 2 });
  const open = (call: Call, caller: Parameters<StreamGuard['admit']>[1] = nobody): boolean => streams.admit(call, caller);
  const first = new Call('10.0.0.1:1');
  assert.ok(open(first) && open(new Call('10.0.0.1:2')));
  const third = new Call('10.0.0.1:3');
  assert.equal(open(third), false);
  assert.equal(third.error?.code, GrpcStatus.RESOURCE_EXHAUSTED);
  assert.ok(open(new Call('10.0.0.2:3')));
  assert.ok(open(new Call('10.0.0.1:4'), { identity: web, local: false }));
  for (const port of [5, 6]) assert.ok(open(new Call(`10.0.0.${port}:5`), { identity: web, local: false }), 'an account of many pods');
  for (const port of [1, 2]) assert.ok(open(new Call(`10.0.0.${port}:5`), { identity: { ...web, pod: 'web-1' }, local: false }));
  assert.equal(open(new Call('10.0.0.3:5'), { identity: { ...web, pod: 'web-1' }, local: false }), false, 'one pod from wherever');
  for (const event of ['cancelled', 'close']) first.emit(event);
  assert.ok(open(new Call('10.0.0.1:6')));
  assert.equal(open(new Call('10.0.0.1:7')), false, 'a stream that ended is not counted off twice');
  for (let count = 0; count < 5; count++) assert.ok(open(new Call('unknown'), { identity: undefined, local: true }));
  assert.deepEqual(await refused(), { streams: 3 });
});

test('a stream that was cancelled before it is admitted does not begin, and takes no room', async () => {
  const { guard: streams, refused } = guard({ streamsPerPeer: 1 });
  const gone = new Call();
  gone.cancelled = true;
  assert.equal(streams.admit(gone, nobody), false);
  assert.ok(streams.admit(new Call(), nobody));
  assert.deepEqual(await refused(), {});
});

test('a stream ends without an error when it is old, a tenth sooner or later, and at once when its credentials expire', () => {
  const { guard: streams, clock } = guard({ streamAgeMs: 100_000 });
  const calls = Array.from({ length: 50 }, () => new Call());
  for (const call of calls) {
    streams.admit(call, nobody);
    call.on('data', () => undefined);
    call.emit('data');
  }
  const expiring = new Call();
  streams.admit(expiring, { identity: { ...web, expiresAt: clock.now() + 5_000 }, local: false });
  const local = new Call();
  streams.admit(local, { identity: undefined, local: true });
  clock.advance(5_000);
  assert.ok(expiring.ended);
  clock.advance(84_999);
  assert.equal(calls.filter(({ ended }) => ended).length, 0);
  clock.advance(10_001);
  const half = calls.filter(({ ended }) => ended).length;
  assert.ok(half > 0 && half < calls.length, `${half} of ${calls.length}`);
  clock.advance(10_000);
  assert.deepEqual([calls.filter(({ ended, error }) => ended && !error).length, local.ended], [calls.length, false]);
  assert.equal(clock.nextMs, undefined, 'no timer outlives its stream');
});

test('names are bounded in number and in length', () => {
  const refusal = (names: string[], total: number): GrpcStatus | undefined => {
    try {
      checkNames(names, total, 3);
      return undefined;
    } catch (error) {
      return (error as StreamRefusal).code;
    }
  };
  assert.deepEqual([refusal(['a'], 3), refusal(['a'], 4), refusal(['a'.repeat(2_000)], 1)], [undefined, GrpcStatus.RESOURCE_EXHAUSTED, GrpcStatus.INVALID_ARGUMENT]);
});
