import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SlotRanges } from './slot-ranges.js';

test('ranges do not overlap, and what was given back rests for the grace period', () => {
  let now = 0;
  const slots = new SlotRanges(10, 100, () => now);
  assert.deepEqual([slots.take(4), slots.take(4), slots.take(4)], [0, 4, undefined]);
  slots.give(0, 4);
  assert.equal(slots.used, 4);
  now = 99;
  assert.equal(slots.take(3), undefined);
  now = 100;
  assert.equal(slots.take(3), 0);
});

test('neighbours that rest no longer become one range', () => {
  let now = 0;
  const slots = new SlotRanges(9, 1, () => now);
  for (const start of [0, 3, 6]) assert.equal(slots.take(3), start);
  for (const start of [6, 0, 3]) slots.give(start, 3);
  now = 1;
  assert.equal(slots.take(9), 0);
});

test('what a former process had is taken once', () => {
  const slots = new SlotRanges(8, 0);
  assert.equal(slots.claim(2, 3), true);
  assert.equal(slots.claim(4, 1), false);
  assert.equal(slots.claim(7, 2), false);
  assert.deepEqual([slots.take(3), slots.take(2), slots.take(1)], [5, 0, undefined]);
  slots.give(2, 3);
  assert.equal(slots.take(3), 2);
});

test('a table that is filled, emptied and filled in another order loses no place', () => {
  let now = 0;
  const slots = new SlotRanges(1_000, 1, () => now);
  const held: { start: number; count: number }[] = [];
  for (let round = 0; round < 2_000; round++) {
    now++;
    const count = (round * 7) % 13 + 1;
    const start = slots.take(count);
    if (start !== undefined) held.push({ start, count });
    else for (const { start: from, count: length } of held.splice(0, 1 + (round % 5))) slots.give(from, length);
  }
  for (const { start, count } of held) slots.give(start, count);
  now += 2;
  assert.equal(slots.used, 0);
  assert.equal(slots.take(1_000), 0);
});
