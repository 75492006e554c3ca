import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { test } from 'node:test';
import { CapturedConnection, pcapngHead, WholeBlocks } from './pcapng.js';

test('WholeBlocks: however a capture comes and wherever it ends, what goes on is its blocks, each whole', async () => {
  const blocks = [pcapngHead('underpass test', 'sockets of shop/web')];
  const end = { address: '10.0.0.1', port: 1 };
  new CapturedConnection(end, { ...end, port: 2 }, (block) => blocks.push(block)).open(1n, 'led to Envoy');
  const whole = Buffer.concat(blocks);
  for (const step of [1, 7, 64, whole.length]) {
    for (const cut of [0, 3]) {
      const [source, seen] = [new PassThrough(), [] as Buffer[]];
      const passed = pipeline(source, new WholeBlocks().on('data', (chunk: Buffer) => seen.push(chunk)), new PassThrough().resume());
      const input = Buffer.concat([whole, whole.subarray(0, cut * 5)]);
      for (let at = 0; at < input.length; at += step) source.write(input.subarray(at, at + step));
      source.end();
      await passed;
      assert.deepEqual(Buffer.concat(seen), whole);
    }
  }
});
