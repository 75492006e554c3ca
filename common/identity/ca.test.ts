/** The CA itself: given intermediates, what is kept, what is issued when, and when certificates are renewed. */
import 'reflect-metadata'; // @peculiar/x509 finds its parts through it
import * as x509 from '@peculiar/x509';
import assert from 'node:assert/strict';
import { createPrivateKey, webcrypto, X509Certificate } from 'node:crypto';
import { chmodSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { ManualClock } from '../clock.js';
import { CertificateAuthority, createCertificateRequest, type CaMaterial, RootsChangedError, type RootStore, type StoredRoots } from './ca.js';
import { FileRootStore } from './root-store.js';
import { CertificateRotation, renewalDelayMs } from './rotation.js';
import { parseSpiffeId } from './spiffe.js';

const WEB = { namespace: 'shop', serviceAccount: 'web' };
const RSA = { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256', modulusLength: 2048, publicExponent: new Uint8Array([1, 0, 1]) };
const P384 = { name: 'ECDSA', namedCurve: 'P-384', hash: 'SHA-384' };

async function caCertificate(name: string, keys: webcrypto.CryptoKeyPair, issuer: { name: string; keys: webcrypto.CryptoKeyPair }, serial: string): Promise<string> {
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: serial,
    subject: `CN=${name}`,
    issuer: `CN=${issuer.name}`,
    notBefore: new Date(Date.now() - 60_000),
    notAfter: new Date(Date.now() + 3_600_000),
    signingAlgorithm: RSA,
    publicKey: keys.publicKey,
    signingKey: issuer.keys.privateKey,
    extensions: [new x509.BasicConstraintsExtension(true, undefined, true)],
  });
  return `${certificate.toString('pem').trimEnd()}\n`;
}

/** RSA root, RSA intermediate, P-384 or RSA issuing CA, as an organization would give one; the key in OpenSSL's old form. */
async function organization(algorithm: typeof RSA | typeof P384): Promise<CaMaterial> {
  const generate = (one: typeof RSA | typeof P384) => webcrypto.subtle.generateKey(one, true, ['sign', 'verify']) as Promise<webcrypto.CryptoKeyPair>;
  const [root, middle, own] = await Promise.all([generate(RSA), generate(RSA), generate(algorithm)]);
  const rootPem = await caCertificate('root', root, { name: 'root', keys: root }, '01');
  const middlePem = await caCertificate('middle', middle, { name: 'root', keys: root }, '02');
  const certificatePem = await caCertificate('own', own, { name: 'middle', keys: middle }, '03');
  const key = createPrivateKey({ key: Buffer.from(await webcrypto.subtle.exportKey('pkcs8', own.privateKey)), format: 'der', type: 'pkcs8' });
  const privateKeyPem = key.export({ type: algorithm === RSA ? 'pkcs1' : 'sec1', format: 'pem' }).toString();
  return { certificatePem, privateKeyPem, chainPem: certificatePem + middlePem + rootPem, rootPem };
}

for (const [name, algorithm] of [['RSA', RSA], ['P-384', P384]] as const) {
  test(`CertificateAuthority.from: an intermediate with an ${name} key signs; the chain leads from the leaf to the root`, async () => {
    const material = await organization(algorithm);
    const ca = await CertificateAuthority.from(material, 'test');
    const { requestPem } = await createCertificateRequest();
    const chain = [...(await ca.sign(requestPem, WEB)), ca.rootPem].map((pem) => new X509Certificate(pem));
    assert.deepEqual(chain.map(({ subject }) => subject), ['', 'CN=own', 'CN=middle', 'CN=root'].map((subject) => subject || chain[0]!.subject));
    for (let i = 0; i + 1 < chain.length; i++) assert.ok(chain[i]!.verify(chain[i + 1]!.publicKey), `${i}`);
    assert.ok(Date.parse(chain[0]!.validTo) <= Date.parse(chain[1]!.validTo), 'a leaf does not outlive its issuer');
  });
}

test('CertificateAuthority.from: what does not fit together is named, and no key is in the message', async () => {
  const [one, other] = await Promise.all([organization(P384), organization(P384)]);
  const cases: [Partial<CaMaterial>, RegExp][] = [
    [{ privateKeyPem: other.privateKeyPem }, /cacerts: ca-key\.pem: it is not the key of ca-cert\.pem/],
    [{ privateKeyPem: 'x' }, /ca-key\.pem: no private key/],
    [{ certificatePem: '' }, /ca-cert\.pem: no certificate/],
    [{ rootPem: other.rootPem }, /cert-chain\.pem: it does not lead/],
    [{ chainPem: '' }, /cert-chain\.pem: it does not lead/],
    [{ rootPem: '' }, /root-cert\.pem: no certificate/],
  ];
  for (const [part, expected] of cases) {
    await assert.rejects(CertificateAuthority.from({ ...one, ...part }, 'cacerts'), (error: Error) => {
      assert.match(error.message, expected);
      assert.ok(!error.message.includes('PRIVATE'));
      return true;
    });
  }
});

test('CertificateAuthority.replace: what is wrong leaves the CA of before in force', async () => {
  const one = await organization(P384);
  const ca = await CertificateAuthority.from(one, 'test');
  await assert.rejects(ca.replace({ ...one, privateKeyPem: 'x' }, 'test'));
  assert.equal(ca.rootPem, one.rootPem);
  const other = await organization(P384);
  await ca.replace(other, 'test');
  assert.equal(ca.rootPem, other.rootPem);
});

test('CertificateAuthority: a step that the store could not keep has not been taken, and nobody is told of it', async () => {
  let isFull = false;
  const ca = await CertificateAuthority.create({ store: { load: () => Promise.resolve(undefined), save: () => (isFull ? Promise.reject(new Error('no space left')) : Promise.resolve()) } });
  const before = ca.rootPem;
  let told = 0;
  ca.onChange(() => told++);
  isFull = true;
  await assert.rejects(ca.introduceRoot(), /no space left/);
  assert.deepEqual([ca.phase, ca.rootPem, told], ['steady', before, 0]);
  isFull = false;
  await ca.introduceRoot();
  assert.deepEqual([ca.phase, told], ['introduced', 1]);
});

test('CertificateAuthority: of several with one store the first makes the root, and what one does the others take over', async () => {
  let kept: StoredRoots | undefined;
  /** As an API server: who does not know the newest version is refused. */
  const store = (): RootStore => {
    let known: StoredRoots | undefined;
    return {
      load: () => Promise.resolve((known = kept)),
      save: (roots) => {
        if (known !== kept) return Promise.reject(new RootsChangedError());
        known = kept = roots;
        return Promise.resolve();
      },
    };
  };
  const [one, other] = await Promise.all([CertificateAuthority.create({ store: store() }), CertificateAuthority.create({ store: store() })]);
  assert.equal(one.rootPem, other.rootPem);
  await one.introduceRoot();
  await assert.rejects(other.introduceRoot(), RootsChangedError);
  assert.equal(other.phase, 'steady');
  let told = 0;
  other.onChange(() => told++);
  await other.adopt(kept!);
  await other.adopt(kept!);
  assert.deepEqual([other.rootPem, other.phase, other.since, told], [one.rootPem, 'introduced', one.since, 1]);
  await assert.rejects(other.adopt({ ...kept!, issuing: { ...kept!.issuing, privateKeyPem: 'x' }, since: 0 }), /ca-key\.pem/);
  assert.equal(other.rootPem, one.rootPem);
});

test('FileRootStore: a root and an exchange under way survive a restart, readable by the owner alone', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-root-'));
  try {
    const path = join(folder, 'state', 'root.json');
    const first = await CertificateAuthority.create({ store: new FileRootStore(path) });
    assert.equal(statSync(path).mode & 0o777, 0o600);
    await first.introduceRoot();
    const second = await CertificateAuthority.create({ store: new FileRootStore(path) });
    assert.deepEqual([second.rootPem, second.phase, second.since], [first.rootPem, 'introduced', first.since]);
    await second.switchRoot();
    const third = await CertificateAuthority.create({ store: new FileRootStore(path) });
    assert.deepEqual([third.rootPem, third.phase], [second.rootPem, 'retiring']);
    chmodSync(path, 0o644);
    await assert.rejects(CertificateAuthority.create({ store: new FileRootStore(path) }), /mode 644, expected 600/);
    writeFileSync(path, 'SECRET{', { mode: 0o600 });
    chmodSync(path, 0o600);
    await assert.rejects(CertificateAuthority.create({ store: new FileRootStore(path) }), (error: Error) => /no JSON/.test(error.message) && !error.message.includes('SECRET'));
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('renewalDelayMs: at half of the life, earlier by chance, never later', () => {
  const certificate = { notBefore: new Date(0), notAfter: new Date(100_000) };
  assert.equal(renewalDelayMs(certificate, 0, 0.1, () => 0), 50_000);
  assert.equal(renewalDelayMs(certificate, 0, 0.1, () => 1), 45_000);
});

test('renewalDelayMs: a life that is more than half over when it comes is renewed at half of what is left, and never in a loop', () => {
  const certificate = { notBefore: new Date(-120_000), notAfter: new Date(20_000) };
  assert.equal(renewalDelayMs(certificate, 0, 0.1, () => 0), 10_000);
  assert.equal(renewalDelayMs(certificate, 19_900, 0.1, () => 0), 1_000);
  assert.equal(renewalDelayMs(certificate, 30_000, 0.1, () => 0), 1_000);
});

test('CertificateRotation: renews by its clock, tries again after a failure, keeps the old one meanwhile, ends when closed', async () => {
  const clock = new ManualClock(0);
  let issued = 0;
  let broken = false;
  const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
  const errors: string[] = [];
  const renewed: string[] = [];
  const rotation = new CertificateRotation({
    clock,
    jitter: 0,
    issue: async () => {
      if (broken) throw new Error('away');
      return { chainPem: `${++issued}`, privateKeyPem: '', notBefore: new Date(clock.now()), notAfter: new Date(clock.now() + 86_400_000) };
    },
    onRenewed: ({ chainPem }) => renewed.push(chainPem),
    onError: ({ message }) => errors.push(message),
  });
  await rotation.start();
  assert.equal(clock.nextMs, 43_200_000);
  clock.advance(43_199_999);
  await settle();
  assert.deepEqual(renewed, []);
  clock.advance(1);
  await settle();
  assert.deepEqual(renewed, ['2']);
  broken = true;
  clock.advance(43_200_000);
  await settle();
  assert.deepEqual([errors, rotation.current.chainPem, clock.nextMs], [['renewing a certificate: away'], '2', 10_000]);
  broken = false;
  clock.advance(10_000);
  await settle();
  assert.deepEqual(renewed, ['2', '3']);
  rotation.close();
  assert.equal(clock.nextMs, undefined);
});

test('parseSpiffeId: only whole identities of workloads', () => {
  assert.deepEqual(parseSpiffeId('spiffe://td/ns/a/sa/b'), { trustDomain: 'td', namespace: 'a', serviceAccount: 'b' });
  for (const wrong of ['spiffe://td/ns/a/sa/b/c', 'spiffe://td/ns//sa/b', 'http://td/ns/a/sa/b', 'spiffe://td/ns/a/sa/b?x', 'spiffe://td/workload']) assert.equal(parseSpiffeId(wrong), undefined, wrong);
});
