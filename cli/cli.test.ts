// What all commands share, as far as no agent is needed for it: output, exit codes, names, and the pages made from them.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { AdminServer } from '../agent/admin/server.js';
import type { AgentStatus } from '../agent/client.js';
import { editDistance, nearest } from '../common/nearest.js';
import { projectRoot } from '../common/paths.js';
import { run, type RunResult } from '../common/process.js';
import { findPod, type AgentAnswer } from './agents.js';
import { EXIT } from './exit-codes.js';
import { hasColour, paint } from './output.js';
import { buildProgram } from './program.js';
import { referencePages } from './reference.js';
import { tableText } from './table.js';

const CLI = join(projectRoot, 'dist', 'cli', 'main.js');
const cli = (args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<RunResult> =>
  run(process.execPath, [CLI, ...args], { okCodes: Array.from({ length: 256 }, (_, code) => code), env: { ...process.env, ...env }, timeoutMs: 60_000 });

test('what asks for no command loads none: `underpass --help` starts fast', async () => {
  const configured = async (wanted: string | undefined): Promise<string[]> => (await buildProgram(wanted)).commands.filter(({ options }) => options.length > 0).map((command) => command.name());
  assert.deepEqual([await configured(undefined), await configured('ps')], [[], ['ps']]);
});

test('docs/reference: the pages are as the commands say; `make docs` writes them', async () => {
  for (const [file, text] of Object.entries(await referencePages())) {
    assert.ok(existsSync(join(projectRoot, file)), `${file} is missing: make docs`);
    assert.equal(readFileSync(join(projectRoot, file), 'utf8'), text, `${file} is not current: make docs`);
  }
});

/** Names of chains and of variables in the environment, and what a development program alone says. */
const NO_CODES = new Set(['UNDERPASS_TABLE', 'UNDERPASS_INBOUND', 'UNDERPASS_OUTPUT', 'UNDERPASS_DEBUG', 'UNDERPASS_FIXTURES', 'UNDERPASS_LOG', 'UNDERPASS_SEED']);

test('docs/reference/errors.md has every code that the code throws, and no other', () => {
  const thrown = new Set<string>();
  for (const folder of ['agent', 'bench', 'cli', 'common', 'lab', 'native', 'pilot']) {
    for (const name of readdirSync(join(projectRoot, folder), { recursive: true }).map(String)) {
      if (!name.endsWith('.ts') || name.endsWith('.test.ts') || /testing/.test(name)) continue;
      for (const [, code] of readFileSync(join(projectRoot, folder, name), 'utf8').matchAll(/'(UNDERPASS_[A-Z0-9_]+)'/g)) if (!NO_CODES.has(code!)) thrown.add(code!);
    }
  }
  const written = [...readFileSync(join(projectRoot, 'docs/reference/errors.md'), 'utf8').matchAll(/^\| `(UNDERPASS_[A-Z0-9_]+)` \|/gm)].map(([, code]) => code!);
  assert.deepEqual(written.filter((code, index) => written.indexOf(code) !== index), [], 'written twice');
  assert.deepEqual([...thrown].filter((code) => !written.includes(code)).sort(), [], 'thrown, and missing from docs/reference/errors.md');
  assert.deepEqual(written.filter((code) => !thrown.has(code)), [], 'in docs/reference/errors.md, and thrown nowhere');
});

test('editDistance: added, removed, exchanged and swapped characters cost one each', () => {
  assert.deepEqual(['web', 'wbe', 'weeb', 'wb', 'wab', 'client'].map((word) => editDistance('web', word)), [0, 1, 1, 1, 1, 5]);
});

test('nearest: mistyped names of workloads find their pods, others nothing', () => {
  const names = ['client-69cc17610c-18bd0', 'nginx-v1-54884e3455-3597c', 'nginx-v2-b1786fd92d-6465e', 'reviews'];
  assert.deepEqual(nearest('clinet', names), ['client-69cc17610c-18bd0']);
  assert.deepEqual(nearest('nginx-v3', names), ['nginx-v1-54884e3455-3597c', 'nginx-v2-b1786fd92d-6465e']);
  assert.deepEqual(nearest('review', names), ['reviews']);
  assert.deepEqual(nearest('postgres', names), []);
});

const answers = [
  ['node-1', [['shop', 'client-1'], ['shop', 'web.v1'], ['other', 'same']]],
  ['node-2', [['plain', 'client-2'], ['shop', 'same'], ['shop', 'api-7f-a'], ['shop', 'api-7f-b']]],
].map(([node, pods]) => ({
  agent: { node, place: '', ask: () => Promise.reject(new Error('not asked')), follow: () => Promise.resolve(), open: () => Promise.reject(new Error('not asked')) },
  status: { node, pods: (pods as string[][]).map(([namespace, name]) => ({ namespace, name })) } as unknown as AgentStatus,
})) as AgentAnswer[];

test('findPod: by name, namespace/name, name.namespace and workload', () => {
  const found = (word: string, namespace?: string): string => {
    const { pod, status } = findPod(answers, word, namespace);
    return `${status.node} ${pod.namespace}/${pod.name}`;
  };
  assert.equal(found('client-1'), 'node-1 shop/client-1');
  assert.equal(found('pod/client-1'), 'node-1 shop/client-1');
  assert.equal(found('shop/same'), 'node-2 shop/same');
  assert.equal(found('same.other'), 'node-1 other/same');
  assert.equal(found('same', 'shop'), 'node-2 shop/same');
  assert.equal(found('web.v1'), 'node-1 shop/web.v1');
  assert.equal(found('deployment/api'), 'node-2 shop/api-7f-a');
});

test('findPod: two pods of one name are named both, a mistyped name brings the nearest', () => {
  assert.throws(() => findPod(answers, 'same'), { code: 'UNDERPASS_AMBIGUOUS_POD', message: /other\/same, shop\/same/ });
  assert.throws(() => findPod(answers, 'client'), { code: 'UNDERPASS_AMBIGUOUS_POD', message: /plain, shop/ });
  assert.throws(() => findPod(answers, 'shop/cleint-1'), { code: 'UNDERPASS_UNKNOWN_POD', message: /pod shop\/cleint-1: on none of 2 nodes/, hint: 'did you mean shop/client-1?' });
  assert.throws(() => findPod(answers, 'cleint-1.shop'), { code: 'UNDERPASS_UNKNOWN_POD', hint: 'did you mean shop/client-1?' });
  assert.throws(() => findPod(answers, 'postgres'), { code: 'UNDERPASS_UNKNOWN_POD', hint: /ps --all.*7 pods/ });
});

test('hasColour: on terminals alone, and not against NO_COLOR', () => {
  assert.equal(hasColour({ isTTY: true }, { TERM: 'xterm' }), true);
  assert.equal(hasColour({ isTTY: true }, { TERM: 'dumb' }), false);
  assert.equal(hasColour({ isTTY: true }, { TERM: 'xterm', NO_COLOR: '1' }), false);
  assert.equal(hasColour({ isTTY: true }, { TERM: 'xterm', NO_COLOR: '' }), true);
  assert.equal(hasColour({}, { TERM: 'xterm' }), false);
  assert.equal(paint('bad', 'x', {}), 'x');
});

test('tableText: colours take no width', () => {
  assert.equal(tableText(['A', 'B'], [['\u001b[31mred\u001b[39m', '1'], ['longer', '2']]), 'A       B\n\u001b[31mred\u001b[39m     1\nlonger  2\n');
});

test('exit codes: usage, no agent, no permission; no stack traces', async (context) => {
  const usage = await cli(['ps', '--no-such-option']);
  assert.equal(usage.code, EXIT.usage);
  assert.equal(usage.stdout, '');
  assert.equal((await cli(['no-such-command'])).code, EXIT.usage);

  const folder = mkdtempSync(join(tmpdir(), `up-cli-${process.pid}-`));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  const absent = await cli(['ps', '--run-dir', folder, '--instance', 'x']);
  assert.equal(absent.code, EXIT.unreachable);
  assert.match(absent.stderr, /UNDERPASS_AGENT_NOT_RUNNING.*\n {2}start it with/);
  assert.doesNotMatch(absent.stderr, /^\s+at /m);

  mkdirSync(join(folder, 'x'));
  chmodSync(folder, 0o755);
  const server = await AdminServer.listen(join(folder, 'x', 'agent.sock'), { '/v1/status': () => ({ body: {} }) });
  context.after(() => server.close());
  const forbidden = await run('setpriv', ['--reuid=65534', '--regid=65534', '--clear-groups', process.execPath, CLI, 'ps', '--run-dir', folder, '--instance', 'x'], { okCodes: [EXIT.forbidden], timeoutMs: 60_000 });
  assert.match(forbidden.stderr, /UNDERPASS_NO_PERMISSION.*\n {2}the socket is root's alone: run it as root/);
});

test('a kubeconfig that is not there, and a cluster that is away, say so', async () => {
  const missing = await cli(['ps', '--kubeconfig', '/nowhere/config']);
  assert.equal(missing.code, EXIT.failed);
  assert.match(missing.stderr, /UNDERPASS_KUBECONFIG/);
  const folder = mkdtempSync(join(tmpdir(), `up-cli-${process.pid}-`));
  const file = join(folder, 'config');
  try {
    await run('sh', ['-c', 'cat > "$1"', 'sh', file], { input: JSON.stringify({ 'current-context': 'a', contexts: [{ name: 'a', context: { cluster: 'c', user: 'u' } }], clusters: [{ name: 'c', cluster: { server: 'http://127.0.0.1:1' } }], users: [{ name: 'u', user: {} }] }) });
    const away = await cli(['ps', '--kubeconfig', file]);
    assert.equal(away.code, EXIT.unreachable);
    assert.match(away.stderr, /asking the API server 127\.0\.0\.1:1.*UNDERPASS_API_SERVER_UNREACHABLE/);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test('a reader that goes away early ends a command quietly, with 0', async () => {
  const child = spawn(process.execPath, [CLI, 'validate', '-o', 'json', join(projectRoot, 'examples', 'canary')], { stdio: ['ignore', 'pipe', 'pipe'] });
  child.stdout.destroy();
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve));
  assert.deepEqual({ code, stderr }, { code: 0, stderr: '' });
});
