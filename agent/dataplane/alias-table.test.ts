import assert from 'node:assert/strict';
import { test } from 'node:test';
import { aliasTable } from './alias-table.js';

/** What each row is drawn with, as the kernel draws. */
function shares(weights: readonly number[]): number[] {
  const rows = aliasTable(weights);
  const out = new Array<number>(rows.length).fill(0);
  rows.forEach(({ threshold, alias }, index) => {
    const own = (threshold + 1) / 2 ** 32;
    out[index]! += own / rows.length;
    out[alias]! += (1 - own) / rows.length;
  });
  return out;
}

test('each row is drawn in proportion to its weight', () => {
  for (const weights of [[1], [1, 1], [3, 1], [1, 1_000_000], [5, 0.5, 7, 1, 1], Array.from({ length: 1_000 }, (_, index) => (index % 17) + 1)]) {
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    shares(weights).forEach((share, index) => assert.ok(Math.abs(share - weights[index]! / total) < 1e-7, `${weights.slice(0, 8).join()}: row ${index} has ${share}`));
  }
});

test('rows stay within the table and their thresholds within 32 bits', () => {
  for (const { threshold, alias } of aliasTable([0.1, 1e9, 3, 3, 3])) {
    assert.ok(Number.isInteger(threshold) && threshold >= 0 && threshold <= 0xffff_ffff);
    assert.ok(alias >= 0 && alias < 5);
  }
  assert.deepEqual(aliasTable([]), []);
});
