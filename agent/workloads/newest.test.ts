import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { newest } from './newest.js';

test('newest: a slow reader gets the first value and then only the newest', async () => {
  let release = (): void => undefined;
  async function* source(): AsyncGenerator<number, void> {
    yield 1;
    await turn();
    yield 2;
    yield 3;
    await new Promise<void>((resolve) => (release = resolve));
    yield 4;
    yield 5;
  }
  const seen: number[] = [];
  for await (const value of newest(source())) {
    seen.push(value);
    if (seen.length === 2) release();
    for (let i = 0; i < 20; i++) await turn();
  }
  assert.deepEqual(seen, [1, 3, 5]);
});

test('newest: the source\'s failure reaches the reader after the newest value', async () => {
  async function* source(): AsyncGenerator<number, void> {
    yield 1;
    throw new Error('gone');
  }
  const seen: number[] = [];
  await assert.rejects(async () => {
    for await (const value of newest(source())) seen.push(value);
  }, /gone/);
  assert.deepEqual(seen, [1]);
});
