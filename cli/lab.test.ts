import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { labDir } from '../common/lab-api.js';
import { projectRoot } from '../common/paths.js';
import { run, type RunResult } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { readHolder } from '../lab/lock.js';
import { labTraces, NO_TRACES } from '../lab/traces.js';
import { parseLabels } from './label.js';

const NAME = `up-lab-cli-${process.pid}`;
const CLI = join(projectRoot, 'dist', 'cli', 'main.js');
const WORLD = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: client, namespace: shop}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec: {containers: [{name: main, image: curl}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: web, image: nginx}]}
`;
let directory: string;

const anyCode = Array.from({ length: 256 }, (_, code) => code);
const cli = (args: string[], input = ''): Promise<RunResult> =>
  run(process.execPath, [CLI, ...args], { okCodes: anyCode, input, timeoutMs: 60_000 });

before(() => {
  directory = mkdtempSync(join(tmpdir(), 'underpass-lab-cli-'));
  writeFileSync(join(directory, 'world.yaml'), WORLD);
});

after(async () => {
  await cli(['lab', 'down', '--name', NAME]);
  rmSync(directory, { recursive: true, force: true });
});

test('parseLabels: key=value sets, key- removes, anything else is refused', () => {
  assert.deepEqual(parseLabels(['underpass.io/mode=node', 'a=', 'b-']), { 'underpass.io/mode': 'node', a: '', b: null });
  for (const word of ['a', '=b', '-']) assert.throws(() => parseLabels([word]), /expected key=value/);
});

test('underpass lab: up --detach, ps, exec, label, logs, a second up refused, down; nothing stays', async () => {
  const up = await cli(['lab', 'up', '-f', directory, '--name', NAME, '--detach']);
  assert.equal(up.code, 0, up.stderr);
  assert.match(up.stdout, /is ready; objects in /);

  const ps = await cli(['lab', 'ps', '--name', NAME]);
  assert.match(ps.stdout, /^shop +web +1\/1 +Running +0 +10\.244\./m);

  const exec = (command: string[], input = ''): Promise<RunResult> =>
    cli(['lab', 'exec', 'client', '-n', 'shop', '--name', NAME, '--', ...command], input);
  assert.deepEqual(await exec(['sh', '-c', 'cat; echo problem >&2; exit 42'], 'some input'), {
    code: 42,
    stdout: 'some input',
    stderr: 'problem\n',
  });
  assert.equal((await exec(['sh', '-c', 'kill -KILL $$'])).code, 137);
  const missing = await cli(['lab', 'exec', 'nobody', '-n', 'shop', '--name', NAME, '--', 'true']);
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, /looking for pod shop\/nobody: .*no such pod.*\n {2}in shop there are client-/);

  assert.equal((await cli(['label', 'pod', 'web', '-n', 'shop', 'a=b', '--name', NAME])).code, 0);
  const pods = JSON.parse((await cli(['lab', 'ps', '-o', 'json', '--name', NAME])).stdout) as {
    name: string;
    labels: Record<string, string>;
  }[];
  assert.equal(pods.find(({ name }) => name === 'web')?.labels['a'], 'b');
  assert.equal((await cli(['lab', 'logs', 'web', '-n', 'shop', '--name', NAME])).code, 0);

  const holder = readHolder(labDir(NAME));
  for (const extra of [[], ['--detach']]) {
    const second = await cli(['lab', 'up', '-f', directory, '--name', NAME, ...extra]);
    assert.equal(second.code, 1);
    assert.match(second.stderr, new RegExp(`held by process ${holder?.pid} \\(underpass lab up\\) since `));
    assert.doesNotMatch(second.stderr, /^\s+at /m, 'no stack trace');
  }

  const down = await cli(['lab', 'down', '--name', NAME]);
  assert.equal(down.code, 0, down.stderr);
  assert.deepEqual(labTraces(NAME), NO_TRACES);
  assert.match((await cli(['lab', 'down', '--name', NAME])).stdout, /is not running/);
});

test('underpass lab: commands for a lab that is not there say so', async () => {
  for (const args of [
    ['lab', 'ps'],
    ['label', 'namespace', 'shop', 'a=b'],
    ['lab', 'exec', 'x', '--', 'true'],
  ]) {
    const result = await cli([...args.slice(0, 2), '--name', `${NAME}-no`, ...args.slice(2)]);
    assert.equal(result.code, 1);
    assert.match(result.stderr, /UNDERPASS_LAB_NOT_RUNNING/);
    assert.match(result.stderr, /start one with `underpass lab up/);
  }
});

test('underpass lab up: SIGINT in the middle of the start, and when it is up, leaves nothing', async () => {
  for (const line of [/^node /m, / is ready; /]) {
    const child = spawn(process.execPath, [CLI, 'lab', 'up', '-f', directory, '--name', NAME], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    await waitFor(`the line ${line}`, () => line.test(output), { everyMs: 2 });
    child.kill('SIGINT');
    await waitFor('its end', () => child.exitCode !== null);
    assert.equal(child.exitCode, 0, output);
    assert.deepEqual(labTraces(NAME), NO_TRACES);
  }
});

test('underpass lab: after SIGKILL `lab clean` finds everything, and a new `up` cleans by itself', async () => {
  const crash = async (): Promise<void> => {
    assert.equal((await cli(['lab', 'up', '-f', directory, '--name', NAME, '--detach'])).code, 0);
    const pid = readHolder(labDir(NAME))?.pid as number;
    process.kill(pid, 'SIGKILL');
    await waitFor('the crash', () => labTraces(NAME).processes.every((line) => !line.startsWith(`${pid} `)));
    assert.ok(labTraces(NAME).namespaces.length > 0);
  };
  await crash();
  const other = `${NAME}-x`;
  assert.equal((await cli(['lab', 'up', '-f', directory, '--name', other, '--detach'])).code, 0);
  try {
    const clean = await cli(['lab', 'clean', '--name', NAME]);
    assert.match(clean.stdout, /removed \d+ network namespaces, its cgroup, its files/);
    assert.deepEqual(labTraces(NAME), NO_TRACES);
    assert.match((await cli(['lab', 'clean', '--name', other])).stdout, /is held by process \d+ .*left alone/);
    assert.ok(labTraces(other).namespaces.length > 0, 'a lab whose name begins the same is not touched');
  } finally {
    await cli(['lab', 'down', '--name', other]);
  }
  assert.deepEqual(labTraces(other), NO_TRACES);
  await crash();
  assert.equal((await cli(['lab', 'up', '-f', directory, '--name', NAME, '--detach'])).code, 0);
  assert.equal((await cli(['lab', 'down', '--name', NAME])).code, 0);
  assert.deepEqual(labTraces(NAME), NO_TRACES);
  assert.equal((await cli(['lab', 'clean', '--name', NAME])).code, 0);
});
