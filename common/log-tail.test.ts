import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LogTail } from './log-tail.js';

test('the newest lines are kept, within the bytes that there are for them, and a line that is longer than all is not', () => {
  const tail = new LogTail(100);
  for (let index = 0; index < 1_000; index++) tail.add(`${String(index).padStart(9, '0')}\n`);
  assert.deepEqual(tail.lines, Array.from({ length: 10 }, (_, index) => `${String(990 + index).padStart(9, '0')}\n`));
  tail.add(`${'ä'.repeat(60)}\n`);
  assert.deepEqual(tail.lines, []);
  tail.add('x\n');
  assert.deepEqual(tail.lines, ['x\n']);
});
