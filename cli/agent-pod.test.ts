import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { KubeClient } from '../common/kube/client.js';
import { logger } from '../common/log.js';
import { buildDir } from '../common/paths.js';
import { processStartTime } from '../common/process-id.js';
import { waitFor } from '../common/retry.js';
import { isUninstalled, parseDaemonSet, ProbeFile, readiness } from './agent-pod.js';

const WAIT = { everyMs: 20 };
const log = logger('test').child({}, { level: 'silent' });

test('readiness: there while another agent has the instance, then when this one has it and is ready', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-ready-'));
  const other = spawn('sleep', ['60']);
  const path = join(folder, 'ready');
  const held = (pid: number): void => writeFileSync(join(folder, 'agent.lock'), JSON.stringify({ pid, startTime: processStartTime(pid), purpose: 'test', since: '' }));
  let isReady = false;
  writeFileSync(path, 'of a former container');
  const ready = new ProbeFile(path, readiness({ folder, get isReady() { return isReady; } }), log);
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

test('ProbeFile: that of a process that hangs grows old for underpass-fresh, and is young again when it goes on', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-alive-'));
  const path = join(folder, 'alive');
  const script = `import { ProbeFile } from ${JSON.stringify(join(import.meta.dirname, 'agent-pod.js'))}; new ProbeFile(${JSON.stringify(path)}, () => true, console); console.log('started');`;
  const hanging = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  const asked = (seconds: string, file = path): { status: number | null; stderr: string } => spawnSync(join(buildDir, 'underpass-fresh'), [file, seconds], { encoding: 'utf8' });
  try {
    await once(hanging.stdout, 'data');
    assert.equal(asked('30').status, 0);
    hanging.kill('SIGSTOP');
    await waitFor('the file to be old', () => asked('3').status === 1, WAIT);
    assert.match(asked('1').stderr, /alive: written \d+ s ago, expected at most 1/);
    hanging.kill('SIGCONT');
    await waitFor('it to be written again', () => asked('3').status === 0, WAIT);
    assert.deepEqual([asked('3', join(folder, 'none')).status, asked('0').status, asked('3s').status], [1, 2, 2]);
  } finally {
    hanging.kill('SIGKILL');
    rmSync(folder, { recursive: true });
  }
});

test('isUninstalled: the DaemonSet is gone or going; refused, told that something else is not found, or without an answer, it is not known; an answer that comes late counts', async () => {
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
    const gone = (name: string, kind = 'daemonsets'): object => ({ kind: 'Status', status: 'Failure', reason: 'NotFound', message: 'not found', details: { name, group: 'apps', kind } });
    assert.equal(await asked([404, gone('b')]), true);
    for (const other of [{ message: 'not found' }, {}, { kind: 'Status', reason: 'NotFound', details: {}, message: 'the server could not find the requested resource' }, gone('c'), gone('b', 'namespaces')]) assert.equal(await asked([404, other]), undefined, JSON.stringify(other));
    assert.equal(await asked([403, { message: 'forbidden' }]), undefined);
    assert.equal(await asked([401, { message: 'who' }]), undefined);
    assert.equal(await asked([503, { message: 'later' }], [404, {}], [404, gone('b')]), true);
    assert.equal(await asked([503, { message: 'later' }]), undefined);
  } finally {
    client.close();
    server.close();
  }
  for (const wrong of ['a', 'a/', '/b', 'a/b/c']) assert.throws(() => parseDaemonSet(wrong), { code: 'UNDERPASS_BAD_OPTION' });
});
