import assert from 'node:assert/strict';
import { test } from 'node:test';
import { heldBytes } from './held-bytes.js';

test('heldBytes gives copies that have no memory in common, whatever their size', () => {
  const sizes = [0, 1, 700, 2_047, 2_048, 2_049, 5_000, 100_000];
  const copies = Array.from({ length: 50 }, (_, turn) => sizes.map((size) => ({ size, turn, copy: heldBytes(Buffer.alloc(size, turn)) }))).flat();
  for (const { size, turn, copy } of copies) assert.deepEqual(copy, Buffer.alloc(size, turn));
  const source = Buffer.from('source');
  const copy = heldBytes(source);
  source.fill(0);
  assert.equal(copy.toString(), 'source');
});

test('heldBytes shares its memory with no other buffers', () => {
  const copies: Buffer[] = [];
  const others: Buffer[] = [];
  for (let i = 0; i < 1_000; i++) {
    copies.push(heldBytes(Buffer.alloc(500)));
    others.push(Buffer.from('x'.repeat(500)));
  }
  const memory = new Set(copies.map(({ buffer }) => buffer));
  assert.equal(others.some(({ buffer }) => memory.has(buffer)), false);
  assert.ok([...memory].reduce((sum, { byteLength }) => sum + byteLength, 0) < 1_000 * 500 * 1.1);
});
