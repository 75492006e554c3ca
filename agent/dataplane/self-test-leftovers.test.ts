import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { cgroup2Root, removeCgroup } from '../../common/cgroup.js';
import { createNetns, unmount } from '../../native/index.js';
import { removeSelfTestLeftovers } from './self-test-leftovers.js';

test('removeSelfTestLeftovers: takes what a killed process left, and nothing of one that runs', async () => {
  const child = spawn('sleep', ['60'], { stdio: 'ignore' });
  await once(child, 'spawn');
  const folder = mkdtempSync(join(tmpdir(), 'underpass-self-test-'));
  const cgroup = join(cgroup2Root(), `underpass-self-test-${child.pid}-${folder.slice(-6)}`);
  try {
    await createNetns(join(folder, 'netns'));
    mkdirSync(join(cgroup, 'pod'), { recursive: true });
    await removeSelfTestLeftovers();
    assert.ok(existsSync(folder) && existsSync(cgroup));
    child.kill('SIGKILL');
    await once(child, 'exit');
    await removeSelfTestLeftovers();
    assert.equal(existsSync(folder) || existsSync(cgroup), false);
    assert.equal(readFileSync('/proc/self/mounts', 'utf8').includes(folder), false);
  } finally {
    unmount(join(folder, 'netns'));
    await removeCgroup(cgroup);
  }
  assert.ok(readdirSync(tmpdir()).every((name) => !name.endsWith(folder.slice(-6))));
});
