import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Memo } from './memo.js';

test('Memo: a value is made once an object, is another in another Memo, and does not go along with copies', () => {
  const [memo, other] = [new Memo<object, number>(), new Memo<object, number>()];
  const object = { a: 1 };
  let made = 0;
  for (let i = 0; i < 2; i++) assert.equal(memo.once(object, () => ++made), 1);
  memo.set(object, 7);
  assert.deepEqual([memo.get(object), other.get(object), memo.get({ ...object }), memo.get(structuredClone(object))], [7, undefined, undefined, undefined]);
  assert.deepEqual([Object.keys(object), JSON.stringify(object)], [['a'], '{"a":1}']);
  assert.deepEqual(object, { a: 1 });
});
