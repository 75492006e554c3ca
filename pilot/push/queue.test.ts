import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { sleep } from '../../common/retry.js';
import { ChangeSet } from '../model/changes.js';
import { Debouncer } from './debounce.js';
import { PushQueue, type PushTarget } from './queue.js';

class Target implements PushTarget {
  ready = true;
  readonly pushed: string[][] = [];
  constructor(readonly log: Target[] = []) {}
  push(change: ChangeSet): void {
    this.pushed.push([...change.endpoints]);
    this.log.push(this);
  }
}

const changeOf = (...hosts: string[]): ChangeSet => {
  const change = new ChangeSet();
  for (const host of hosts) change.endpoints.add(host);
  return change;
};

/** The queue works in turns of its own; time has no part in it. */
const turn = async (): Promise<void> => {
  for (let turns = 0; turns < 20; turns++) await nextTurn();
};

test('PushQueue: one entry a target, merged while it waits', async () => {
  const queue = new PushQueue(() => assert.fail());
  const target = new Target();
  target.ready = false;
  for (const host of ['a', 'b', 'a']) queue.enqueue(target, changeOf(host));
  await turn();
  assert.deepEqual([queue.length, target.pushed], [1, []]);
  target.ready = true;
  queue.wake(target);
  await turn();
  assert.deepEqual([queue.length, target.pushed], [0, [['a', 'b']]]);
});

test('PushQueue: a target that is not ready holds nobody up, one that fails is reported', async () => {
  const failures: unknown[] = [];
  const log: Target[] = [];
  const queue = new PushQueue((_target, error) => failures.push(error));
  const [slow, broken, good] = [new Target(log), new Target(log), new Target(log)];
  slow.ready = false;
  broken.push = () => {
    throw new Error('broken');
  };
  for (const target of [slow, broken, good]) queue.enqueue(target, changeOf('a'));
  await turn();
  assert.deepEqual([log, failures.length, queue.has(slow)], [[good], 1, true]);
  queue.remove(slow);
  slow.ready = true;
  queue.wake(slow);
  await turn();
  assert.deepEqual([slow.pushed, queue.length], [[], 0]);
});

test('PushQueue: the change that is merged into is not the one that was given', async () => {
  const queue = new PushQueue(() => assert.fail());
  const [a, b] = [new Target(), new Target()];
  a.ready = b.ready = false;
  const shared = changeOf('x');
  for (const target of [a, b]) queue.enqueue(target, shared);
  queue.enqueue(a, changeOf('y'));
  a.ready = b.ready = true;
  for (const target of [a, b]) queue.wake(target);
  await turn();
  assert.deepEqual([a.pushed, b.pushed], [[['x', 'y']], [['x']]]);
});

test('Debouncer: changes within the quiet time come as one, none waits longer than the cap', async () => {
  const fired: string[] = [];
  const debouncer = new Debouncer<string>({ quietMs: 60, maxMs: 200 }, (a, b) => a + b, (merged) => fired.push(merged));
  debouncer.add('a');
  debouncer.add('b');
  await sleep(150);
  assert.deepEqual(fired, ['ab']);
  // A change every 20 ms never leaves 60 ms of quiet: only the cap lets them through.
  for (let i = 0; i < 20; i++) {
    debouncer.add('c');
    await sleep(20);
  }
  assert.ok(fired.length >= 2, String(fired));
  debouncer.close();
  debouncer.add('d');
  const count = fired.length;
  await sleep(100);
  assert.equal(fired.length, count);
});
