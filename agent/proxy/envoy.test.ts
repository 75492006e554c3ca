import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { logger } from '../../common/log.js';
import { buildDir, envoyBinary } from '../../common/paths.js';
import { isRunning, processStartTime } from '../../common/process-id.js';
import { sleep } from '../../common/retry.js';
import { EnvoyAdmin } from './envoy-admin.js';
import { fileIdentity, readState, stopEnvoy, writeState } from './envoy-process.js';
import { Envoy, boundLog } from './envoy.js';

describe('boundLog', () => {
  it('cuts a log that its writer holds open, keeping the part before', () => {
    const folder = mkdtempSync(join(tmpdir(), 'up-proxy-'));
    const path = join(folder, 'envoy.log');
    const writer = openSync(path, 'a');
    writeSync(writer, 'x'.repeat(100));
    boundLog(path, 100);
    assert.equal(readFileSync(path, 'utf8').length, 100);
    writeSync(writer, 'y');
    boundLog(path, 100);
    writeSync(writer, 'after');
    assert.equal(readFileSync(path, 'utf8'), 'after');
    assert.equal(readFileSync(`${path}.1`, 'utf8'), `${'x'.repeat(100)}y`);
    closeSync(writer);
    rmSync(folder, { recursive: true });
  });
});

describe('EnvoyAdmin', () => {
  it('names the socket and the question when nobody answers', async () => {
    await assert.rejects(new EnvoyAdmin('/nonexistent/admin.sock').serverInfo(), { code: 'UNDERPASS_ENVOY_ADMIN', message: /\/nonexistent\/admin\.sock.*\/server_info.*ENOENT/ });
  });
});

describe('Envoy', () => {
  for (const [name, answersAfterMs] of [['answers late', 6_500], ['does not answer at all', undefined]] as const) {
    it(`is adopted, not ended, when it ${name}`, { timeout: 60_000 }, async () => {
      const runDir = mkdtempSync(join(tmpdir(), 'up-proxy-'));
      const options = { nodeName: 'n', runDir, envoyPath: envoyBinary(), cgroupPath: undefined, concurrency: 1, logger: logger('test'), adoptTimeoutMs: answersAfterMs ?? 1 };
      const first = new Envoy(options);
      const second = new Envoy(options);
      try {
        await first.start();
        const { pid } = first.status;
        assert.ok(pid !== undefined);
        first.close();
        process.kill(pid, 'SIGSTOP');
        const adoption = second.start();
        await sleep(answersAfterMs ?? 100);
        if (answersAfterMs !== undefined) process.kill(pid, 'SIGCONT');
        await adoption;
        assert.deepEqual([second.status.pid, second.status.adopted], [pid, true]);
        assert.notEqual(processStartTime(pid), undefined);
      } finally {
        if (first.status.pid !== undefined) process.kill(first.status.pid, 'SIGCONT');
        await second.stop();
        await first.stop();
        rmSync(runDir, { recursive: true, force: true });
      }
    });
  }

  it('that an agent left before it knew its version has it written down by the next, so that it can be replaced by hot restart later', { timeout: 60_000 }, () =>
    succession(async (start, runDir) => {
      const first = await start();
      first.close();
      writeState(runDir, { ...readState(runDir)!, version: '' });
      const second = await start();
      assert.deepEqual([second.status.pid, second.status.adopted], [first.status.pid, true]);
      assert.equal(second.status.version, first.status.version);
      assert.equal(readState(runDir)?.version, first.status.version);
    }));

  it('serves until the next has taken over, when the one that was to do so can not be adopted: its agent died while it started it', { timeout: 60_000 }, () =>
    succession(async (start, runDir) => {
      const first = await start();
      first.close();
      // What is written down first is the parent of the Envoy to come.
      const starting = spawn(join(buildDir, 'underpass-exec'), ['--stay', '3', '--', 'sleep', '60'], { stdio: ['ignore', 'ignore', 'ignore', 'pipe'] });
      const ended = once(starting, 'exit');
      const former = readState(runDir)!;
      const pid = starting.pid!;
      writeState(runDir, { pid, startTime: processStartTime(pid)!, binary: fileIdentity(`/proc/${pid}/exe`)!, version: '', epoch: 1, launch: 'of the agent that died', isLive: false, former });
      const second = await start();
      await ended;
      assert.ok(isRunning(former), 'it is the only one that listens');
      assert.deepEqual([second.status.adopted, second.status.draining], [false, former.pid]);
    }));
});

/** Several supervisors of one run directory, one after the other. */
async function succession(body: (start: () => Promise<Envoy>, runDir: string) => Promise<void>): Promise<void> {
  const runDir = mkdtempSync(join(tmpdir(), 'up-proxy-'));
  const all: Envoy[] = [];
  try {
    await body(async () => {
      const envoy = new Envoy({ nodeName: 'n', runDir, envoyPath: envoyBinary(), cgroupPath: undefined, concurrency: 1, logger: logger('test') });
      all.push(envoy);
      await envoy.start();
      return envoy;
    }, runDir);
  } finally {
    for (const envoy of all.reverse()) await envoy.stop();
    rmSync(runDir, { recursive: true, force: true });
  }
}

describe('stopEnvoy', () => {
  it('leaves alone what has the process id of an Envoy that ended, and is fine without a state file', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'up-proxy-'));
    await stopEnvoy(folder);
    writeFileSync(join(folder, 'envoy.state.json'), JSON.stringify({ pid: process.pid, startTime: '1', binary: '', version: '' }));
    await stopEnvoy(folder);
    rmSync(folder, { recursive: true });
  });
});
