import assert from 'node:assert/strict';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { execFile } from 'node:child_process';

const MODULE = new URL('./spare-memory.js', import.meta.url).href;

/** Blocks of malloc's own arenas, of which one in fifty is still used at the end. */
const SCRIPT = `
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { SpareMemory } from ${JSON.stringify(MODULE)};
const mebibytes = () => Number(/^VmRSS:\\s+(\\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]) >> 10;
const spare = new SpareMemory({ everyMs: 100 });
let blocks = Array.from({ length: 3_000 }, () => Buffer.allocUnsafeSlow(40_000).fill(1));
const kept = blocks.filter((_, index) => index % 50 === 0);
const most = mebibytes();
blocks = undefined;
globalThis.gc();
let least = Infinity;
for (const until = Date.now() + 60_000; Date.now() < until && least > most - 80;) {
  await sleep(200);
  least = Math.min(least, mebibytes());
}
spare.close();
process.stdout.write(JSON.stringify({ most, least, kept: kept.length }));
`;

test('what was freed between blocks that are still used goes back once the process is idle', async () => {
  const { stdout } = await promisify(execFile)(process.execPath, ['--expose-gc', '--input-type=module', '-e', SCRIPT], { timeout: 120_000, env: { ...process.env, MALLOC_MMAP_THRESHOLD_: '1048576', MALLOC_TRIM_THRESHOLD_: '1073741824' } });
  const { most, least, kept } = JSON.parse(stdout) as { most: number; least: number; kept: number };
  assert.equal(kept, 60);
  assert.ok(least <= most - 80, `${most} MiB became ${least}`);
});

const FILES_SCRIPT = `
import { readFileSync } from 'node:fs';
import { trimMemory } from ${JSON.stringify(new URL('../../native/index.js', import.meta.url).href)};
const files = () => Number(/^RssFile:\\s+(\\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]) >> 10;
const before = files();
trimMemory();
const after = files();
// All of it goes on, from the page cache.
const sum = [3, 1, 2].sort().map((each) => new Intl.NumberFormat('de').format(each * 1000)).join();
process.stdout.write(JSON.stringify({ before, after, sum }));
`;

test('pages of programs and libraries that nobody needs at the time go, and come back when they are needed', async () => {
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', FILES_SCRIPT], { timeout: 60_000 });
  const { before, after, sum } = JSON.parse(stdout) as { before: number; after: number; sum: string };
  assert.ok(after < before / 2, `${before} MiB became ${after}`);
  assert.equal(sum, '1.000,2.000,3.000');
});

const HEAP_SCRIPT = `
import { setTimeout as sleep } from 'node:timers/promises';
import { SpareMemory } from ${JSON.stringify(MODULE)};
const spare = new SpareMemory({ everyMs: 100 });
let dead = Array.from({ length: 200_000 }, (_, index) => ({ index, text: 'x' + index }));
await sleep(20);
const most = process.memoryUsage().heapUsed;
dead = undefined;
let least = Infinity;
for (const until = Date.now() + 60_000; Date.now() < until && least > most - (5 << 20);) {
  await sleep(200);
  least = Math.min(least, process.memoryUsage().heapUsed);
}
spare.close();
process.stdout.write(JSON.stringify({ most, least }));
`;

test('what is dead in the heap goes once the process is idle, although nothing asks for room', async () => {
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', HEAP_SCRIPT], { timeout: 120_000 });
  const { most, least } = JSON.parse(stdout) as { most: number; least: number };
  assert.ok(least <= most - (5 << 20), `${most} bytes became ${least}`);
});
