import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AlikeBytes } from './alike-bytes.js';

/** Pseudo-random numbers below one, the same each time (a linear congruence of Numerical Recipes). */
function generator(seed: number): (below: number) => number {
  let state = seed;
  return (below) => Math.floor(((state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0) / 2 ** 32) * below);
}

const messageOf = (index: number, more = ''): Buffer => Buffer.from(`outbound|${80 + (index % 3)}||service-${index}.team-${index % 100}.svc.cluster.local ${'settings that all have, of some length; '.repeat(20)}${more} 10.${index >> 8}.${index & 255}.1:${index}`);

test('what is like others is held in a fraction of its bytes, and is what it was', () => {
  const alike = new AlikeBytes();
  let held = 0;
  let all = 0;
  for (let index = 0; index < 5_000; index++) {
    const bytes = messageOf(index);
    const squeezed = alike.squeeze(bytes);
    assert.ok(squeezed, `${index}`);
    assert.ok(alike.restore(squeezed, bytes.length).equals(bytes), `${index}`);
    all += bytes.length;
    held += squeezed.length;
  }
  assert.ok(held * 8 < all, `${held} bytes of ${all}`);
});

test('several kinds are each like their own, and what was squeezed before others came stays what it was', () => {
  const alike = new AlikeBytes();
  const random = generator(3);
  const noise = (length: number): Buffer => Buffer.from(Array.from({ length }, () => random(256)));
  const kinds = Array.from({ length: 6 }, () => noise(900));
  const kept: { bytes: Buffer; squeezed: Buffer }[] = [];
  for (let step = 0; step < 2_000; step++) {
    const bytes = Buffer.concat([kinds[random(6)]!.subarray(random(100)), noise(random(60)), kinds[random(6)]!.subarray(0, random(900))]);
    const squeezed = alike.squeeze(bytes);
    if (squeezed) kept.push({ bytes, squeezed: Buffer.from(squeezed) });
  }
  assert.ok(kept.length > 1_900, `${kept.length}`);
  for (const { bytes, squeezed } of kept) assert.ok(alike.restore(squeezed, bytes.length).equals(bytes));
});

test('what is like nothing, empty or larger than the base is left to whoever has it', () => {
  const alike = new AlikeBytes();
  const random = generator(5);
  let left = 0;
  for (const length of [0, 1, 5, 40, 100_000, ...Array.from({ length: 200 }, () => 1_000 + random(1_000))]) {
    const bytes = Buffer.from(Array.from({ length }, () => random(256)));
    const squeezed = alike.squeeze(bytes);
    if (squeezed) assert.ok(alike.restore(squeezed, length).equals(bytes));
    else left++;
  }
  assert.ok(left > 150, `${left}`);
});
