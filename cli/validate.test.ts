import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { projectRoot } from '../common/paths.js';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';

const cli = join(projectRoot, 'dist', 'cli', 'main.js');
let folder: string;
before(() => {
  folder = mkdtempSync(join(tmpdir(), 'up-pilot-cli-'));
  writeFileSync(join(folder, 'good.yaml'), 'apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n');
  writeFileSync(
    join(folder, 'bad.yaml'),
    'apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop}\nspec:\n  hosts: [web]\n  http:\n    - rout:\n        - destination: {host: web}\n',
  );
});
after(() => rmSync(folder, { recursive: true, force: true }));

const underpass = async (...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> => run(process.execPath, [cli, ...args], { okCodes: [0, 1, 2], timeoutMs: 30_000 });

test('validate: exit 0 and a count when all is well', async () => {
  const { code, stdout } = await underpass('validate', join(folder, 'good.yaml'));
  assert.deepEqual([code, stdout], [0, '1 objects are valid, 0 errors, 0 warnings\n']);
});

test('validate: exit 1, file, line, column and field, in text and as JSON', async () => {
  const text = await underpass('validate', '-f', folder);
  assert.equal(text.code, 1);
  assert.ok(text.stdout.includes(`${join(folder, 'bad.yaml')}:7:7: VirtualService shop/web: spec.http[0].rout: unknown field; did you mean "route"?`), text.stdout);
  assert.equal(text.stderr, '');
  const json = await underpass('validate', folder, '-o', 'json');
  assert.equal(json.code, 1);
  const { valid, problems } = JSON.parse(json.stdout) as { valid: boolean; problems: { line: number; field: string }[] };
  assert.equal(valid, false);
  assert.deepEqual([problems[0]!.line, problems[0]!.field], [7, 'spec.http[0].rout']);
});

test('a reader that has seen enough ends no command with an error', async () => {
  const child = spawn(process.execPath, [cli, 'validate', join(folder, 'good.yaml')], { stdio: ['ignore', 'pipe', 'pipe'] });
  child.stdout.destroy();
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
  assert.deepEqual([...(await once(child, 'close')), stderr], [0, null, '']);
});

test('validate: every kind is looked at, and what objects refer to; --help says so', async () => {
  const mixed = join(folder, 'mixed');
  mkdirSync(mixed);
  writeFileSync(
    join(mixed, 'all.yaml'),
    `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec: {selector: {istio: nobody}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: SIMPLE, credentialName: cert}}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec: {action: DENY}
---
apiVersion: v1
kind: Secret
metadata: {name: pair, namespace: shop}
stringData: {tls.crt: not-for-your-eyes, tls.key: not-for-your-eyes}
`,
  );
  const { code, stdout } = await underpass('validate', mixed);
  assert.equal(code, 1);
  for (const part of ['spec.selector: warning: found istio=nobody', 'credentialName: warning: found "cert"', 'AuthorizationPolicy shop/deny: spec.rules: found no rule', 'Secret shop/pair: stringData["tls.key"]: found something that is no private key']) assert.ok(stdout.includes(part), stdout);
  assert.ok(!stdout.includes('not-for-your-eyes'));
  const { stdout: help } = await underpass('validate', '--help');
  assert.match(help, /certificates and\nkeys of Secrets/);
  assert.match(help, /--root-namespace/);
});

test('validate: a path that does not exist and a wrong format are said without a stack trace', async () => {
  const missing = await underpass('validate', join(folder, 'nope'));
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, /^underpass: checking .*nope: ENOENT.*\(UNDERPASS_SOURCE_MISSING\)\n$/);
  assert.equal((await underpass('validate', folder, '-o', 'xml')).code, 2);
});

test('pilot: says when it is ready, stops on SIGTERM with exit 0', async () => {
  const child = spawn(process.execPath, [cli, 'pilot', '--source', join(folder, 'good.yaml'), '--monitoring-listen', '127.0.0.1:0', '--listen', '127.0.0.1:0', '--listen', `unix:${join(folder, 'ads.sock')}`], { stdio: ['ignore', 'pipe', 'inherit'] });
  const exited = once(child, 'exit') as Promise<[number | null]>;
  try {
    let out = '';
    child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString('utf8')));
    await waitFor('the readiness line', () => out.includes('pilot is ready'));
    const ready = out.split('\n').find((line) => line.includes('pilot is ready'))!;
    const { addresses } = JSON.parse(ready) as { addresses: string[] };
    assert.match(addresses[0]!, /^127\.0\.0\.1:[1-9]\d*$/);
    assert.equal(addresses[1], `unix:${join(folder, 'ads.sock')}`);
  } finally {
    child.kill('SIGTERM');
  }
  assert.deepEqual((await exited)[0], 0);
});

test('pilot: a source that is missing ends it with a message and exit 1', async () => {
  const { code, stderr } = await underpass('pilot', '--source', join(folder, 'nope'), '--listen', '127.0.0.1:0');
  assert.equal(code, 1);
  assert.match(stderr, /reading source .*nope: ENOENT[^\n]*\(UNDERPASS_SOURCE_MISSING\)\n {2}give an existing directory/);
});
