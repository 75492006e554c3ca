import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { processStartTime } from '../../common/process-id.js';
import { logger } from '../../common/log.js';
import { sleep, waitFor } from '../../common/retry.js';
import { InstanceLock, instanceHolder, instanceWaiters } from './lock.js';

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

test('InstanceLock: who waits is shown, and has it as soon as the holder lets go or is killed; of two one', async (context) => {
  const path = folder(context);
  const holder = spawn(process.execPath, ['--input-type=module', '-e', `const { InstanceLock } = await import(${JSON.stringify(new URL('lock.js', import.meta.url).href)}); InstanceLock.acquire(${JSON.stringify(path)}, 'blue', 'first'); console.log('held'); setInterval(() => {}, 1000);`], { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(holder.stdout, 'data');
  const stop = new AbortController();
  const wait = (signal: AbortSignal): Promise<InstanceLock> => InstanceLock.wait(path, 'blue', 'second', { signal, logger: logger('test') });
  await assert.rejects(wait(AbortSignal.timeout(100)), { name: 'AbortError' });
  assert.deepEqual(instanceWaiters(path), []);
  const waiting = wait(stop.signal);
  await waitFor('the one that waits to be shown', () => instanceWaiters(path).length === 1);
  assert.equal(instanceHolder(path)?.pid, holder.pid);
  await sleep(300);
  assert.equal(instanceHolder(path)?.purpose, 'first');
  holder.kill('SIGKILL');
  const lock = await waiting;
  assert.equal(instanceHolder(path)?.purpose, 'second');
  const next = wait(stop.signal);
  await waitFor('the next one to wait', () => instanceWaiters(path).length === 1);
  assert.equal(instanceWaiters(path)[0]?.purpose, 'second');
  lock.close();
  (await next).close();
  assert.deepEqual(readdirSync(path), []);
});

test('InstanceLock: a lock file that its holder takes away while another has it open is not the lock', async (context) => {
  const path = folder(context);
  for (let round = 0; round < 20; round++) {
    const first = InstanceLock.acquire(path, 'blue', 'x');
    const waiters = [1, 2].map(() => InstanceLock.wait(path, 'blue', 'y', { signal: AbortSignal.timeout(60_000), logger: logger('test') }));
    first.close();
    let held = 0;
    await Promise.all(waiters.map(async (waiter) => {
      const lock = await waiter;
      assert.equal(++held, 1);
      await sleep(1);
      held--;
      lock.close();
    }));
  }
});
