import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { KubeClient } from '../common/kube/client.js';
import { logger } from '../common/log.js';
import { processStartTime } from '../common/process-id.js';
import { waitFor } from '../common/retry.js';
import { isUninstalled, parseDaemonSet, ReadyFile } from './agent-pod.js';

const WAIT = { timeoutMs: 10_000, everyMs: 20 };
const log = logger('test').child({}, { level: 'silent' });

test('ReadyFile: there while another agent has the instance, then when this one has it and is ready', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-ready-'));
  const other = spawn('sleep', ['60']);
  const path = join(folder, 'ready');
  const held = (pid: number): void => writeFileSync(join(folder, 'agent.lock'), JSON.stringify({ pid, startTime: processStartTime(pid), purpose: 'test', since: '' }));
  let isReady = false;
  writeFileSync(path, 'of a former container');
  const ready = new ReadyFile(path, folder, () => isReady, log);
  try {
    assert.ok(!existsSync(path));
    held(other.pid!);
    await waitFor('the file of one that waits', () => existsSync(path), WAIT);
    held(process.pid);
    await waitFor('the end of waiting', () => !existsSync(path), WAIT);
    isReady = true;
    await waitFor('the file of one that is ready', () => existsSync(path), WAIT);
    ready.close();
    assert.ok(!existsSync(path));
  } finally {
    ready.close();
    other.kill();
    rmSync(folder, { recursive: true });
  }
});

test('isUninstalled: the DaemonSet is gone or going; refused, or without an answer, it is not known; an answer that comes late counts', async () => {
  const answers: [status: number, body: object][] = [];
  const server = createServer((_, response) => {
    const [status, body] = answers.length > 1 ? answers.shift()! : answers[0]!;
    response.writeHead(status).end(JSON.stringify(body));
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = new KubeClient({ url: new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}`), credentials: () => Promise.resolve({ headers: {}, rejectUnauthorized: true }) });
  const asked = (...given: typeof answers): Promise<boolean | undefined> => {
    answers.splice(0, Infinity, ...given);
    return isUninstalled(client, parseDaemonSet('a/b'), log, 1_500);
  };
  try {
    assert.equal(await asked([200, { metadata: { name: 'b' } }]), false);
    assert.equal(await asked([200, { metadata: { name: 'b', deletionTimestamp: '2026-01-01T00:00:00Z' } }]), true);
    assert.equal(await asked([404, { message: 'not found' }]), true);
    assert.equal(await asked([403, { message: 'forbidden' }]), undefined);
    assert.equal(await asked([401, { message: 'who' }]), undefined);
    assert.equal(await asked([503, { message: 'later' }], [503, {}], [404, {}]), true);
    assert.equal(await asked([503, { message: 'later' }]), undefined);
  } finally {
    client.close();
    server.close();
  }
  for (const wrong of ['a', 'a/', '/b', 'a/b/c']) assert.throws(() => parseDaemonSet(wrong), { code: 'UNDERPASS_BAD_OPTION' });
});
