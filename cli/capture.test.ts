import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { instancePaths } from '../agent/client.js';
import { AdminServer } from '../agent/admin/server.js';
import { projectRoot } from '../common/paths.js';
import { run } from '../common/process.js';

const CLI = join(projectRoot, 'dist', 'cli', 'main.js');

test('capture: its file is its owner\'s alone, also where it was there and others could read it; one that can\'t be written ends the capture', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-capture-'));
  const instance = { runDir: folder, instance: 'a' };
  const socket = instancePaths(instance).adminSocket;
  mkdirSync(dirname(socket), { recursive: true });
  const server = await AdminServer.listen(socket, { '/v1/capture': () => ({ contentType: 'application/x-pcapng', pieces: ['some ', 'bytes'] }) });
  const capture = (file: string, codes: number[]): ReturnType<typeof run> => run(process.execPath, [CLI, 'capture', 'a/b', '-w', file, '--run-dir', folder, '--instance', 'a'], { okCodes: codes, timeoutMs: 60_000 });
  try {
    const file = join(folder, 'a.pcapng');
    writeFileSync(file, 'what was there before, and is longer', { mode: 0o644 });
    const { stderr } = await capture(file, [0]);
    assert.match(stderr, /^10 B of pcapng in /m);
    assert.deepEqual([readFileSync(file, 'utf8'), statSync(file).mode & 0o777], ['some bytes', 0o600]);
    assert.match((await capture(join(folder, 'nowhere', 'a.pcapng'), [1])).stderr, /ENOENT/);
  } finally {
    await server.close();
    rmSync(folder, { recursive: true, force: true });
  }
});
