import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { EnvoyAdmin } from './envoy-admin.js';
import { boundLog, stopEnvoy } from './envoy.js';

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

describe('stopEnvoy', () => {
  it('leaves alone what has the process id of an Envoy that ended, and is fine without a state file', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'up-proxy-'));
    await stopEnvoy(folder);
    writeFileSync(join(folder, 'envoy.state.json'), JSON.stringify({ pid: process.pid, startTime: '1', binary: '', version: '' }));
    await stopEnvoy(folder);
    rmSync(folder, { recursive: true });
  });
});
