import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chownSync, existsSync, lutimesSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, utimesSync } from 'node:fs';
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

test('removeSelfTestLeftovers: a link, and a folder of another user, are not ours, whatever their name', async () => {
  const outside = mkdtempSync(join(tmpdir(), 'up-leftovers-'));
  const suffix = outside.slice(-6);
  const link = join(tmpdir(), `underpass-self-test-${suffix}`);
  const foreign = mkdtempSync(join(tmpdir(), 'underpass-self-test-'));
  const cgroup = join(cgroup2Root(), `underpass-self-test-4194304-${suffix}`);
  const longAgo = new Date(Date.now() - 3_600_000);
  try {
    await createNetns(join(outside, 'netns'));
    symlinkSync(outside, link);
    lutimesSync(link, longAgo, longAgo);
    utimesSync(outside, longAgo, longAgo);
    chownSync(foreign, 65534, 65534);
    utimesSync(foreign, longAgo, longAgo);
    await removeSelfTestLeftovers();
    // Also not where a cgroup of a process that is gone names it.
    mkdirSync(cgroup);
    await removeSelfTestLeftovers();
    assert.equal(existsSync(cgroup), false);
    assert.ok(existsSync(link) && existsSync(foreign));
    assert.ok(readFileSync('/proc/self/mounts', 'utf8').includes(join(outside, 'netns')), 'the mount behind the link stays');
  } finally {
    unmount(join(outside, 'netns'));
    await removeCgroup(cgroup);
    for (const path of [link, foreign, outside]) rmSync(path, { recursive: true, force: true });
  }
});
