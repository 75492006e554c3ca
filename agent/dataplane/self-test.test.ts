import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { cgroup2Root } from '../../common/cgroup.js';
import { logger } from '../../common/log.js';
import { BpfObject } from '../../native/index.js';
import { selfTest } from './self-test.js';

/** What other processes' self-tests mount is theirs. */
const folder = mkdtempSync(join(tmpdir(), 'up-self-test-'));
process.env['TMPDIR'] = folder;
after(() => rmSync(folder, { recursive: true }));

function leftovers(): string[] {
  const mounts = readFileSync('/proc/self/mounts', 'utf8').split('\n').filter((line) => line.includes(folder));
  return [...mounts, ...readdirSync(cgroup2Root()).filter((name) => name.startsWith(`underpass-self-test-${process.pid}-`))];
}

test('selfTest says yes on this kernel, with its reasons, and leaves nothing behind', async () => {
  const verdict = await selfTest(logger('self-test'));
  assert.deepEqual(verdict.checks.filter((check) => !check.ok && !['blocking-recv', 'splice'].includes(check.name)), []);
  assert.equal(verdict.capture.ok, true);
  assert.equal(verdict.acceleration.ok, true);
  assert.equal(verdict.fastPath.ok, true);
  assert.equal(verdict.ok, true);
  assert.ok(verdict.checks.length >= 24);
  for (const name of verdict.restrictions) assert.equal(verdict.checks.find((check) => check.name === name)?.ok, false);
  assert.deepEqual(leftovers(), []);
  assert.equal(existsSync('/sys/fs/bpf/underpass/self-test'), false);
});

const FAULTS = {
  HTTP_FAULT_PUSH: 'http-draw', HTTP_FAULT_PUSH_LARGE: 'http-draw-large', HTTP_FAULT_BLANK: 'http-lesson', HTTP_FAULT_MOVE: 'http-exchange', HTTP_FAULT_ORDER: 'http-order', HTTP_FAULT_BOUND: 'http-bound',
  HTTP_FAULT_SERVER_END: 'http-server-reset', HTTP_FAULT_ORDERLY: 'http-server-end', HTTP_FAULT_CLIENT_END: 'http-client-end', HTTP_FAULT_SWITCH: 'http-switch',
};

test('each check of the HTTP fast path finds its own fault, and leaves nothing behind', async (context) => {
  const object = BpfObject.open({ pinDir: null, programs: [] });
  const bits = object.enumValues('http_fault');
  object.close();
  assert.deepEqual(Object.keys(bits).sort(), Object.keys(FAULTS).sort());
  for (const [fault, check] of Object.entries(FAULTS)) {
    await context.test(`${fault}: ${check}`, async () => {
      const verdict = await selfTest(logger('self-test'), { only: 'fastPath', faults: bits[fault]! });
      assert.deepEqual(verdict.checks.filter(({ ok }) => !ok).map(({ name }) => name), [check]);
      assert.equal(verdict.fastPath.ok, false);
      assert.match(verdict.fastPath.reason, new RegExp(`^${check}: .`));
      assert.deepEqual([verdict.capture.ok, verdict.acceleration.ok], [true, true]);
      assert.deepEqual(leftovers(), []);
    });
  }
});
