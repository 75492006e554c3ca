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
