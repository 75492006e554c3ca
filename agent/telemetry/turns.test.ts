import assert from 'node:assert/strict';
import { test } from 'node:test';
import { atOnce, inTurns } from './turns.js';

function* busy(steps: number, ms: number, atStep: () => void): Generator<void, string> {
  for (let step = 0; step < steps; step++) {
    const until = performance.now() + ms;
    while (performance.now() < until);
    atStep();
    yield;
  }
  return 'done';
}

test('inTurns: others have their turn between steps that take long, and what the last one returns comes out; atOnce: nobody has', async () => {
  let turns = 0;
  let isOver = false;
  const count = (): void => {
    turns++;
    if (!isOver) setImmediate(count);
  };
  count();
  const stepsOf = new Map<number, number>();
  const seen = (): void => void stepsOf.set(turns, (stepsOf.get(turns) ?? 0) + 1);
  assert.equal(await inTurns(busy(50, 2, seen)), 'done');
  // Two milliseconds each, however fast or slow the machine is: after the third five have passed.
  assert.ok(Math.max(...stepsOf.values()) <= 4, JSON.stringify([...stepsOf.values()]));
  stepsOf.clear();
  assert.equal(atOnce(busy(5, 2, seen)), 'done');
  isOver = true;
  assert.deepEqual([...stepsOf.values()], [5]);
});

test('inTurns: what a step throws is thrown', async () => {
  await assert.rejects(inTurns(busy(3, 0, () => assert.fail('a step'))), { message: 'a step' });
});
