import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { cgroup2Root } from '../../common/cgroup.js';
import { logger } from '../../common/log.js';
import { selfTest } from './self-test.js';

function leftovers(): string[] {
  const mounts = readFileSync('/proc/self/mounts', 'utf8').split('\n').filter((line) => line.includes(`underpass-self-test-`));
  return [...mounts, ...readdirSync(cgroup2Root()).filter((name) => name.startsWith(`underpass-self-test-${process.pid}-`))];
}

test('selfTest says yes on this kernel, with its reasons, and leaves nothing behind', async () => {
  const verdict = await selfTest(logger('self-test'));
  assert.deepEqual(verdict.checks.filter((check) => !check.ok && !['blocking-recv', 'splice'].includes(check.name)), []);
  assert.equal(verdict.capture.ok, true);
  assert.equal(verdict.acceleration.ok, true);
  assert.equal(verdict.ok, true);
  assert.ok(verdict.checks.length >= 12);
  for (const name of verdict.restrictions) assert.equal(verdict.checks.find((check) => check.name === name)?.ok, false);
  assert.deepEqual(leftovers(), []);
  assert.equal(existsSync('/sys/fs/bpf/underpass/self-test'), false);
});
