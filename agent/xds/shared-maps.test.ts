import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedMaps } from './shared-maps.js';

const [a, b, c] = [{ is: 'a' }, { is: 'b' }, { is: 'b' }];

test('SharedMaps gives one map for equal ones, and another where a name, an object or their number differs', () => {
  const maps = new SharedMaps<object>();
  const first = new Map([['a', a], ['b', b]]);
  assert.equal(maps.like(first), first);
  assert.equal(maps.like(first), first);
  assert.equal(maps.like(new Map([['b', b], ['a', a]])), first);
  const others: Map<string, object>[] = [new Map([['a', a]]), new Map([['a', a], ['b', c]]), new Map([['a', a], ['c', b]]), new Map([['a', a], ['b', b], ['c', c]])];
  for (const other of others) assert.equal(maps.like(other), other);
  assert.equal(maps.like(new Map([['a', a], ['b', b]])), first);
});
