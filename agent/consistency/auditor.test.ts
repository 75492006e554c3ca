// The pace of the rounds: by CPU time, so that a machine that is busy with others holds nothing up.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { logger } from '../../common/log.js';
import { sleep } from '../../common/retry.js';
import { Auditor } from './auditor.js';

test('a part that waits and computes nothing is followed by no pause', { timeout: 30_000 }, async () => {
  const waits = { name: 'waits', async *parts() { for (let part = 0; part < 3; part++) { await sleep(40); yield []; } } };
  const auditor = new Auditor({ checks: [waits], logger: logger('test'), share: 0.001, cpuMs: () => 0 });
  // By the time on the clock the pauses would be forty seconds each.
  await auditor.round(true);
  assert.deepEqual([auditor.status.rounds, auditor.status.busyMs], [1, 0]);
});

test('what it computes is followed by the pause that leaves it its share', async () => {
  let cpu = 0;
  const computes = { name: 'computes', async *parts() { await sleep(20); cpu += 5; yield []; } };
  const auditor = new Auditor({ checks: [computes], logger: logger('test'), share: 0.1, cpuMs: () => cpu });
  const startedMs = performance.now();
  await auditor.round(true);
  assert.ok(performance.now() - startedMs >= 5 / 0.1, 'five milliseconds at a tenth');
  assert.equal(auditor.status.busyMs, 5);
});

test('of more drifts than one round takes none is taken for repaired since it was not looked at, and what they are read from is ended', async () => {
  const drifts = Array.from({ length: 600 }, (_, index) => ({ kind: 'cds' as const, state: 'wrong' as const, name: `cluster-${index}`, unsafe: 'a test' }));
  let [isReversed, ended] = [false, 0];
  const check = { name: 'many', async *parts() { try { yield isReversed ? [...drifts].reverse() : drifts; yield []; } finally { ended++; } } };
  const auditor = new Auditor({ checks: [check], logger: logger('test').child({}, { level: 'silent' }) });
  await auditor.round();
  isReversed = true;
  await auditor.round();
  assert.deepEqual([auditor.status.drifting.length, auditor.status.recent.length, ended], [600, 0, 2]);
  drifts.length = 1;
  await auditor.round();
  assert.deepEqual([auditor.status.drifting.length, auditor.status.recent.length], [1, 50]);
});
