import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { test } from 'node:test';
import { instancePaths } from '../agent/client.js';
import { AdminServer } from '../agent/admin/server.js';
import { pcapngHead } from '../common/pcapng.js';
import { projectRoot } from '../common/paths.js';
import { run } from '../common/process.js';

const CLI = join(projectRoot, 'dist', 'cli', 'main.js');

test('capture: its file is whole blocks and its owner\'s alone, also where it was there and others could read it; one that can\'t be written ends the capture', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-capture-'));
  const instance = { runDir: folder, instance: 'a' };
  const socket = instancePaths(instance).adminSocket;
  mkdirSync(dirname(socket), { recursive: true });
  const head = pcapngHead('underpass test', 'sockets of a/b');
  const server = await AdminServer.listen(socket, { '/v1/capture': () => ({ contentType: 'application/x-pcapng', pieces: Readable.from([head.subarray(0, 9), head.subarray(9), head.subarray(0, 7)]) }) });
  const capture = (file: string, codes: number[]): ReturnType<typeof run> => run(process.execPath, [CLI, 'capture', 'a/b', '-w', file, '--run-dir', folder, '--instance', 'a'], { okCodes: codes, timeoutMs: 60_000 });
  try {
    const file = join(folder, 'a.pcapng');
    writeFileSync(file, 'what was there before, and is longer', { mode: 0o644 });
    const { stderr } = await capture(file, [0]);
    assert.match(stderr, new RegExp(`^${head.length} B of pcapng in `, 'm'));
    assert.deepEqual([readFileSync(file, 'latin1'), statSync(file).mode & 0o777], [head.toString('latin1'), 0o600]);
    assert.match((await capture(join(folder, 'nowhere', 'a.pcapng'), [1])).stderr, /ENOENT/);
  } finally {
    await server.close();
    rmSync(folder, { recursive: true, force: true });
  }
});
