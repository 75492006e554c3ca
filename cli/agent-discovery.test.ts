// Files by which the agent and its control plane know each other, while they are exchanged.
import assert from 'node:assert/strict';
import { mkdtempSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { CertificateAuthority } from '../common/identity/ca.js';
import { TokenIssuer } from '../common/identity/service-account-token.js';
import { clientCertificateOf, discoveryTls, rootsOf } from './agent-discovery.js';

const AGENT = { namespace: 'underpass-system', serviceAccount: 'underpass-agent' };

function folder(context: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'up-discovery-'));
  context.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

test('rootsOf: a ConfigMap that is exchanged behind its link is read anew, what is half written is not', async (context) => {
  const [first, second] = [(await CertificateAuthority.create()).rootPem, (await CertificateAuthority.create()).rootPem];
  const path = folder(context);
  const target = (name: string, pem: string): void => {
    writeFileSync(join(path, name), pem);
    symlinkSync(name, join(path, 'new'));
    renameSync(join(path, 'new'), join(path, 'root-cert.pem'));
  };
  target('one', first);
  const roots = rootsOf('--discovery-root', join(path, 'root-cert.pem'), 'istiod:15012');
  assert.equal(roots(), first);
  target('two', '');
  assert.equal(roots(), first);
  rmSync(join(path, 'root-cert.pem'));
  assert.equal(roots(), first);
  target('three', second);
  assert.equal(roots(), second);
});

test('rootsOf: without roots to begin with the option is named', (context) => {
  const path = join(folder(context), 'none.pem');
  assert.throws(() => rootsOf('--discovery-root', path, 'istiod:15012'), { code: 'UNDERPASS_BAD_OPTION', message: /^--discovery-root: reading the roots that istiod:15012 is verified by: ENOENT/ });
  writeFileSync(path, 'no certificate');
  assert.throws(() => rootsOf('--ca-root', path, 'istiod:15012'), /^UnderpassError: --ca-root: /);
});

test('discoveryTls: the account is the token\'s, which is read anew; without TLS there is nothing to show', async (context) => {
  const path = folder(context);
  const issuer = await TokenIssuer.create();
  const [caToken, discoveryRoot] = [join(path, 'token'), join(path, 'root.pem')];
  writeFileSync(discoveryRoot, (await CertificateAuthority.create()).rootPem);
  const options = { discovery: 'istiod:15012', discoveryRoot, caToken, clusterId: 'west' };
  await assert.rejects(discoveryTls(options), /--ca-token: reading the token that istiod:15012 is shown: ENOENT/);
  writeFileSync(caToken, `${await issuer.issue(AGENT)}\n`);
  const tls = await discoveryTls(options);
  assert.deepEqual([tls?.account, tls?.clusterId], [AGENT, 'west']);
  writeFileSync(caToken, 'another');
  assert.equal(await tls?.token(), 'another');
  assert.equal((await discoveryTls(options))?.account, undefined, 'a token of somebody else\'s kind');
  assert.equal(await discoveryTls({ caToken }), undefined);
});

test('clientCertificateOf: the pair that belongs together, by its SPIFFE id', async (context) => {
  const path = folder(context);
  const ca = await CertificateAuthority.create();
  const files = { discoveryCert: join(path, 'cert.pem'), discoveryKey: join(path, 'key.pem') };
  const write = ({ chainPem, privateKeyPem }: { chainPem: string; privateKeyPem: string }): void => {
    writeFileSync(files.discoveryCert, chainPem);
    writeFileSync(files.discoveryKey, privateKeyPem);
  };
  const [first, second] = [await ca.issue(AGENT), await ca.issue(AGENT)];
  write(first);
  const certificate = clientCertificateOf(files)!;
  writeFileSync(files.discoveryCert, second.chainPem);
  assert.equal(certificate().chainPem, first.chainPem, 'not yet whole');
  assert.throws(() => clientCertificateOf(files), /the key is another certificate's/);
  write(second);
  assert.equal(certificate().chainPem, second.chainPem);
  writeFileSync(join(path, 'root.pem'), ca.rootPem);
  const { account } = (await discoveryTls({ ...files, discovery: 'istiod:15012', discoveryRoot: join(path, 'root.pem'), caToken: join(path, 'none') }))!;
  assert.deepEqual([account?.namespace, account?.serviceAccount], [AGENT.namespace, AGENT.serviceAccount]);
  assert.throws(() => clientCertificateOf({ discoveryCert: files.discoveryCert }), /found one of them, expected both/);
});
