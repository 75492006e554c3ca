import assert from 'node:assert/strict';
import { test } from 'node:test';
import { median, quantile, ratioPerRound, significant, summarise } from './statistics.js';

test('quantile: interpolates between ranks, and does not change its input', () => {
  const values = [4, 1, 3, 2];
  assert.equal(median(values), 2.5);
  assert.equal(quantile(values, 0), 1);
  assert.equal(quantile(values, 1), 4);
  assert.equal(quantile(values, 0.25), 1.75);
  assert.equal(median([7]), 7);
  assert.ok(Number.isNaN(median([])));
  assert.deepEqual(values, [4, 1, 3, 2]);
});

test('summarise: one disturbed round moves neither median nor quartiles much', () => {
  const summary = summarise([100, 101, 99, 100, 100, 102, 5]);
  assert.equal(summary?.median, 100);
  assert.equal(summary?.min, 5);
  assert.ok((summary?.q1 ?? 0) > 98);
  assert.equal(summary?.rounds, 7);
  assert.equal(summarise([]), undefined);
});

test('ratioPerRound: rounds are compared with themselves, not with the others', () => {
  // The machine was half as fast in the second round: the ratio is 2 in each all the same.
  assert.deepEqual(ratioPerRound([200, 100], [100, 50]), { median: 2, q1: 2, q3: 2, min: 2, max: 2, rounds: 2 });
  assert.equal(ratioPerRound([1, 2, 3], [1])?.rounds, 1);
  assert.equal(ratioPerRound([1], [0]), undefined);
  assert.equal(ratioPerRound([Number.NaN], [1]), undefined);
});

test('significant: keeps three digits that count', () => {
  assert.equal(significant(1.234), '1.23');
  assert.equal(significant(12.34), '12.3');
  assert.equal(significant(1234.4), '1234');
  assert.equal(significant(56_780), '56.8 k');
  assert.equal(significant(1_234_567), '1.23 M');
  assert.equal(significant(Number.NaN), '–');
});
