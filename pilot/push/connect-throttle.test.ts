import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sleep, waitFor } from '../../common/retry.js';
import { ConnectThrottle } from './connect-throttle.js';

const NEVER_MS = 1 << 30;

/** Clients that note when they are let in, and may speak at once. */
function clients(throttle: ConnectThrottle, count: number, speak = false, peer = 'peer'): { admitted: number[]; admits: (() => void)[] } {
  const admitted: number[] = [];
  const admits = Array.from({ length: count }, (_, index) => {
    const admit = (): void => {
      admitted.push(index);
      if (speak) throttle.heard(admit);
    };
    return admit;
  });
  for (const admit of admits) throttle.enter(admit, peer);
  return { admitted, admits };
}

test('ConnectThrottle: so many at once, the others in the order in which they came, each once', () => {
  const throttle = new ConnectThrottle(2, NEVER_MS);
  const { admitted, admits } = clients(throttle, 6);
  assert.deepEqual(admitted, [0, 1]);
  throttle.heard(admits[0]!);
  throttle.leave(admits[0]!);
  throttle.leave(admits[0]!);
  assert.deepEqual(admitted, [0, 1, 2], 'leaving twice makes room once');
  throttle.leave(admits[3]!);
  throttle.leave(admits[1]!);
  throttle.leave(admits[2]!);
  assert.deepEqual(admitted, [0, 1, 2, 4, 5], 'who went before its turn is passed over');
});

test('ConnectThrottle: clients that connect and say nothing keep nobody out, one that has spoken keeps its place', async () => {
  const throttle = new ConnectThrottle(2, 1);
  const first = clients(throttle, 1, true);
  const silent = clients(throttle, 5);
  const second = clients(throttle, 1, true);
  // The throttle's own timers keep no process alive.
  await waitFor('all to be let in past the silent', () => second.admitted.length === 1, { everyMs: 5 });
  const late = clients(throttle, 1);
  await sleep(20);
  assert.deepEqual([silent.admitted.length, late.admitted], [5, []], 'both places are of clients that wait for their answer');
  throttle.leave(first.admits[0]!);
  assert.deepEqual(late.admitted, [0]);
});

test('ConnectThrottle: a peer that opens many streams does not make another wait for all of them', () => {
  const throttle = new ConnectThrottle(1, NEVER_MS);
  const many = clients(throttle, 1_000, false, '10.0.0.1');
  const other = clients(throttle, 2, false, '10.0.0.2');
  throttle.leave(many.admits[0]!);
  assert.deepEqual([many.admitted, other.admitted], [[0, 1], []]);
  throttle.leave(many.admits[1]!);
  assert.deepEqual([many.admitted, other.admitted], [[0, 1], [0]]);
  throttle.leave(other.admits[0]!);
  throttle.leave(many.admits[2]!);
  assert.deepEqual([many.admitted, other.admitted], [[0, 1, 2], [0, 1]]);
});
