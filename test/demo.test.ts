// The demo as a user runs it: every promise holds, a second one is told who holds the lab, and Ctrl-C leaves nothing.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { cgroup2Root } from '../common/cgroup.js';
import { projectRoot } from '../common/paths.js';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';

const underpass = join(projectRoot, 'bin', 'underpass');
const name = `up-demo-${process.pid}`;

function leftovers(): string[] {
  const names = (path: string): string[] => (existsSync(path) ? readdirSync(path).map((entry) => `${path}/${entry}`) : []);
  return ['/run/netns', '/run/underpass', '/run/underpass/lab', '/sys/fs/bpf/underpass', cgroup2Root(), tmpdir()].flatMap(names).filter((path) => path.includes(name));
}

test('underpass demo: each promise is kept; a second demo hears who holds the lab; nothing is left', async () => {
  const child = spawn(underpass, ['demo', '--no-bench', '--name', name], { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
  const exit = once(child, 'close') as Promise<[number]>;
  await waitFor('the demo to hold its lab', () => output.includes('[1/6]') || child.exitCode !== null, { timeoutMs: 60_000 });
  const second = await run(underpass, ['demo', '--no-bench', '--name', name], { okCodes: [1], timeoutMs: 30_000 });
  assert.match(second.stderr, new RegExp(`lab ${name} is held by process ${child.pid} \\(underpass demo\\) since 20\\d\\d-`));
  const [code] = await exit;
  assert.equal(code, 0, output);
  assert.ok(!output.includes('BROKEN'), output);
  for (const promise of ['Capture by BPF', 'user: jesse', 'underpass.io/mode=node', 'underpass.io/redirection=iptables', 'has taken over Envoy', 'requests in all, 0 failed']) assert.ok(output.includes(promise), `${promise}: ${output}`);
  assert.deepEqual(leftovers(), []);
});

for (const stage of ['[2/6]', '[4/6]']) {
  test(`underpass demo: Ctrl-C in step ${stage} ends it with 130 and leaves nothing`, async () => {
      const child = spawn(underpass, ['demo', '--no-bench', '--name', name], { stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    const exit = once(child, 'close') as Promise<[number]>;
    await waitFor(`step ${stage}`, () => output.includes(stage) || child.exitCode !== null, { timeoutMs: 90_000 });
    child.kill('SIGINT');
    const [code] = await exit;
    assert.equal(code, 130, output);
    assert.match(output, /interrupted; nothing of the demo is left/);
    assert.ok(!/\n\s+at .*\.js:\d+/.test(output), output);
    assert.deepEqual(leftovers(), []);
  });
}

test('underpass demo: a directory that is not there, and one without what it needs, are named', async () => {
  const missing = await run(underpass, ['demo', '--directory', '/nonexistent', '--name', name], { okCodes: [1] });
  assert.match(missing.stderr, /\/nonexistent does not exist/);
});
