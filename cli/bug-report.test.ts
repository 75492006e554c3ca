import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { AdminServer } from '../agent/admin/server.js';
import { instancePaths } from '../agent/client.js';
import { projectRoot } from '../common/paths.js';
import { run } from '../common/process.js';

const CLI = join(projectRoot, 'dist', 'cli', 'main.js');

test('bug-report: nobody else can read the archive at any time, and none is left of one that failed', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-report-'));
  const socket = instancePaths({ runDir: folder, instance: 'a' }).adminSocket;
  for (const made of [dirname(socket), join(folder, 'bin')]) mkdirSync(made, { recursive: true });
  const server = await AdminServer.listen(socket, { '/v1/status': () => ({ body: {} }) });
  const [seen, archive] = [join(folder, 'seen'), join(folder, 'a.tar.gz')];
  const report = (codes: number[], what: string): ReturnType<typeof run> => {
    writeFileSync(join(folder, 'bin', 'tar'), `#!/bin/sh\nstat -c %a "$4" >${seen}\n${what}\n`, { mode: 0o755 });
    return run(process.execPath, [CLI, 'bug-report', '--file', archive, '--run-dir', folder, '--instance', 'a'], { okCodes: codes, timeoutMs: 60_000, env: { ...process.env, PATH: `${join(folder, 'bin')}:${process.env['PATH'] ?? ''}` } });
  };
  try {
    await report([1], 'exit 1');
    assert.deepEqual([readFileSync(seen, 'utf8').trim(), existsSync(archive)], ['600', false]);
    await report([0], 'exec /usr/bin/env -u PATH /bin/tar "$@"');
    assert.deepEqual([readFileSync(seen, 'utf8').trim(), statSync(archive).mode & 0o777], ['600', 0o600]);
  } finally {
    await server.close();
    rmSync(folder, { recursive: true, force: true });
  }
});
