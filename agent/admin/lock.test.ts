import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { processStartTime } from '../../common/process-id.js';
import { InstanceLock, instanceHolder } from './lock.js';

function folder(context: { after(fn: () => void): void }): string {
  const path = mkdtempSync(join(tmpdir(), `up-agent-${process.pid}-`));
  context.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

test('InstanceLock: the second hears who holds it and since when; after close it is free', (context) => {
  const path = folder(context);
  const lock = InstanceLock.acquire(path, 'blue', 'underpass node');
  assert.throws(() => InstanceLock.acquire(path, 'blue', 'underpass agent'), (error: Error & { code?: string }) => {
    assert.equal(error.code, 'UNDERPASS_AGENT_HELD');
    assert.match(error.message, new RegExp(`instance blue is held by process ${process.pid} \\(underpass node\\) since ${lock.holder.since}`));
    return true;
  });
  assert.equal(instanceHolder(path)?.pid, process.pid);
  lock.close();
  assert.equal(instanceHolder(path), undefined);
  InstanceLock.acquire(path, 'blue', 'underpass agent').close();
  assert.deepEqual(readdirSync(path), []);
});

test('InstanceLock: a lock of a process that was killed does not block, even when its pid lives again', async (context) => {
  const path = folder(context);
  const child = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'], { stdio: 'ignore' });
  await once(child, 'spawn');
  const holder = { pid: child.pid ?? 0, startTime: processStartTime(child.pid ?? 0) ?? '', purpose: 'x', since: '2026-01-01T00:00:00Z' };
  writeFileSync(join(path, 'agent.lock'), JSON.stringify(holder));
  assert.throws(() => InstanceLock.acquire(path, 'blue', 'x'), { code: 'UNDERPASS_AGENT_HELD' });
  child.kill('SIGKILL');
  await once(child, 'exit');
  InstanceLock.acquire(path, 'blue', 'x').close();
  writeFileSync(join(path, 'agent.lock'), JSON.stringify({ ...holder, pid: process.pid, startTime: '1' }));
  InstanceLock.acquire(path, 'blue', 'x').close();
  writeFileSync(join(path, 'agent.lock'), '{"pid":');
  InstanceLock.acquire(path, 'blue', 'x').close();
  assert.deepEqual(readdirSync(path), []);
});
