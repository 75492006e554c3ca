import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { issueServerCertificate, selfSignedRoot, type ServerCertificate } from '../../../common/identity/server-certificate.js';
import { formatPath, type Problem } from '../../../common/kube/schema.js';
import type { Secret } from '../../../common/kube/types.js';
import { checkSecret } from './certificates.js';

let first: ServerCertificate;
let second: ServerCertificate;
let rootPem: string;
before(async () => {
  const root = await selfSignedRoot('test');
  rootPem = root.root.toString('pem');
  [first, second] = await Promise.all(['a.example', 'b.example'].map((name) => issueServerCertificate(root, { dnsNames: [name] }))) as [ServerCertificate, ServerCertificate];
});

const secret = (entries: Record<string, string>, more: Partial<Secret> = {}): Secret => ({
  apiVersion: 'v1', kind: 'Secret', metadata: { name: 'cert', namespace: 'istio-system' },
  data: Object.fromEntries(Object.entries(entries).map(([key, value]) => [key, Buffer.from(value).toString('base64')])),
  ...more,
});
const said = (problems: readonly Problem[]): string[] => problems.map(({ severity, path, message }) => `${severity} ${formatPath(path)}: ${message}`);

test('checkSecret: a certificate with its own key passes, in either spelling, with a chain and CAs', () => {
  const pair = { 'tls.crt': first.certificatePem + rootPem, 'tls.key': first.privateKeyPem, 'ca.crt': rootPem };
  assert.deepEqual(checkSecret(secret(pair, { type: 'kubernetes.io/tls' })), []);
  assert.deepEqual(checkSecret(secret({ cert: first.certificatePem, key: first.privateKeyPem, cacert: rootPem })), []);
  assert.deepEqual(checkSecret({ ...secret({}), stringData: { 'tls.crt': first.certificatePem, 'tls.key': first.privateKeyPem } }), []);
});

test('checkSecret: a key of another certificate is refused, by its entry', () => {
  const [problem, ...others] = checkSecret(secret({ 'tls.crt': first.certificatePem, 'tls.key': second.privateKeyPem }));
  assert.deepEqual(others, []);
  assert.match(said([problem!])[0]!, /^error data\["tls\.key"\]: found a key that does not belong to the certificate in tls\.crt, expected the key of CN=a\.example/);
});

test('checkSecret: what is no certificate and no key is refused, what is missing too', () => {
  assert.deepEqual(said(checkSecret(secret({ 'tls.crt': 'hello', 'tls.key': first.privateKeyPem }))), ['error data["tls.crt"]: found something that is no certificate, expected one or more in PEM, the server\'s own first']);
  assert.deepEqual(said(checkSecret(secret({ cert: first.certificatePem, key: first.certificatePem }))), ['error data.key: found something that is no private key, expected one in PEM without a passphrase']);
  assert.match(said(checkSecret(secret({ 'tls.crt': first.certificatePem }, { type: 'kubernetes.io/tls' })))[0]!, /data\["tls\.key"\]: found nothing/);
  assert.match(said(checkSecret(secret({ 'tls.crt': first.certificatePem, 'tls.key': first.privateKeyPem, 'ca.crt': 'x' })))[0]!, /^error data\["ca\.crt"\]/);
});

test('checkSecret: a certificate out of its time is a warning', () => {
  const pair = secret({ 'tls.crt': first.certificatePem, 'tls.key': first.privateKeyPem });
  assert.match(said(checkSecret(pair, first.notAfter.getTime() + 1_000)).join(), /^warning data\["tls\.crt"\]: the certificate expired on/);
  assert.match(said(checkSecret(pair, first.notBefore.getTime() - 1_000)).join(), /^warning data\["tls\.crt"\]: the certificate is valid from/);
});

test('checkSecret: Secrets that are about something else are left alone', () => {
  assert.deepEqual(checkSecret(secret({ key: 'just a word', password: 'x' })), []);
  assert.deepEqual(checkSecret(secret({ 'ca.crt': 'anything' })), []);
});

test('checkSecret: nothing of a Secret is ever said', () => {
  const hidden = 'kept-to-itself';
  const all: Record<string, string>[] = [{ 'tls.crt': hidden, 'tls.key': hidden }, { cert: first.certificatePem, key: hidden }, { 'tls.crt': first.certificatePem, 'tls.key': second.privateKeyPem, 'ca.crt': hidden }];
  const text = all.flatMap((entries) => said(checkSecret(secret(entries)))).join('\n');
  assert.ok(text.length > 0);
  assert.ok(!text.includes(hidden) && !text.includes('PRIVATE KEY') && !text.includes(Buffer.from(hidden).toString('base64')), text);
});
