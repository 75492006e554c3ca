import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ResourceLists } from './resource-list.js';
import type { Resource } from './resource.js';

const resource = (name: string, version: string): Resource => ({ name, version, body: { type_url: 't', value: Buffer.alloc(0) } });

test('ResourceLists: the same resources are one list, others and another order are not; of one name the last counts', () => {
  const lists = new ResourceLists();
  const [a, b, again] = [resource('a', '1'), resource('b', '1'), resource('a', '2')];
  const list = lists.intern([a, b]);
  assert.equal(lists.intern([a, b]), list);
  for (const other of [[b, a], [a], [again, b]]) assert.notEqual(lists.intern(other), list);
  assert.deepEqual(lists.intern([a, b, again]).resources, [again, b]);
  assert.deepEqual([...list.versions], [['a', '1'], ['b', '1']]);
});

test('ResourceLists: of lists without end the newest are kept', () => {
  const lists = new ResourceLists();
  const resources = Array.from({ length: 1_000 }, (_, index) => resource(`r${index}`, '1'));
  const made = resources.map((one) => lists.intern([one]));
  assert.equal(lists.intern([resources.at(-1)!]), made.at(-1));
  assert.notEqual(lists.intern([resources[0]!]), made[0]);
});

test('ResourceLists: after a change the same resources are the same list; one that was not made again since is forgotten', () => {
  const lists = new ResourceLists();
  const [a, b] = [resource('a', '1'), resource('b', '1')];
  const list = lists.intern([a, b]);
  lists.renew();
  assert.equal(lists.intern([a, b]), list);
  lists.renew();
  lists.renew();
  assert.notEqual(lists.intern([a, b]), list);
});
