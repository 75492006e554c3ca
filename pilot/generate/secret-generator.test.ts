import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { parseYaml } from '../../common/kube/yaml.js';
import { Secret } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import { Model } from '../model/model.js';
import { parseProxy, type Proxy } from '../model/proxy.js';
import { SecretGenerator, type SecretProblem } from './secret-generator.js';

const gateway = (namespace: string, isTrusted = true): Proxy => ({ ...parseProxy(`router~10.0.0.1~gw.${namespace}~${namespace}.svc.cluster.local`), isTrusted });
const secretYaml = (name: string, namespace: string, data: Record<string, string>): string =>
  JSON.stringify({ apiVersion: 'v1', kind: 'Secret', metadata: { name, namespace }, data: Object.fromEntries(Object.entries(data).map(([key, value]) => [key, Buffer.from(value).toString('base64')])) });

function world(): { apply: (yaml: string) => ReturnType<Model['apply']>; remove: (key: string) => ReturnType<Model['apply']>; generator: SecretGenerator; problems: SecretProblem[] } {
  const model = new Model();
  const problems: SecretProblem[] = [];
  const generator = new SecretGenerator(model, (problem) => problems.push(problem));
  return { generator, problems, remove: (key) => model.apply([{ key, loaded: undefined }]), apply: (yaml) => model.apply(parseYaml(yaml, 'x').objects.map((loaded) => ({ key: loaded.key, loaded }))) };
}

test('SecretGenerator: certificate, key and authority under the names that gateways ask by', async () => {
  const ca = await CertificateAuthority.create();
  const { chainPem, privateKeyPem } = await ca.issue({ namespace: 'edge', serviceAccount: 'gw' });
  const { apply, generator } = world();
  const change = apply(secretYaml('site', 'edge', { 'tls.crt': chainPem, 'tls.key': privateKeyPem, 'ca.crt': ca.rootPem }));
  for (const name of ['kubernetes://site', 'kubernetes://edge/site', 'kubernetes-gateway://edge/site']) {
    const { type, name: own } = Secret.decode(generator.one(gateway('edge'), name)!.body.value);
    assert.ok(type?.$case === 'tls_certificate');
    assert.equal(own, name);
    assert.equal(Buffer.from(type.value.private_key!.specifier!.value as Uint8Array).toString(), privateKeyPem);
  }
  const { type } = Secret.decode(generator.one(gateway('edge'), 'kubernetes://site-cacert')!.body.value);
  assert.ok(type?.$case === 'validation_context');
  assert.deepEqual([...generator.affected(gateway('edge'), change, new Set(['kubernetes://site', 'kubernetes://site-cacert', 'kubernetes://other']))], ['kubernetes://site', 'kubernetes://site-cacert']);
});

test('SecretGenerator: nothing for another namespace, for whom is not trusted, or for what is no such name', async () => {
  const ca = await CertificateAuthority.create();
  const { chainPem, privateKeyPem } = await ca.issue({ namespace: 'edge', serviceAccount: 'gw' });
  const { apply, generator } = world();
  apply(secretYaml('site', 'edge', { 'tls.crt': chainPem, 'tls.key': privateKeyPem }));
  assert.equal(generator.one(gateway('else'), 'kubernetes://edge/site'), undefined);
  assert.equal(generator.one(gateway('edge', false), 'kubernetes://site'), undefined);
  assert.equal(generator.one(gateway('edge'), 'default'), undefined);
  apply(JSON.stringify({ apiVersion: 'gateway.networking.k8s.io/v1beta1', kind: 'ReferenceGrant', metadata: { name: 'other', namespace: 'edge' }, spec: { from: [{ group: 'gateway.networking.k8s.io', kind: 'Gateway', namespace: 'else' }], to: [{ group: 'vault.example.com', kind: 'Secret' }] } }));
  assert.equal(generator.one(gateway('else'), 'kubernetes://edge/site'), undefined, 'another kind of Secret');
  apply(JSON.stringify({ apiVersion: 'gateway.networking.k8s.io/v1beta1', kind: 'ReferenceGrant', metadata: { name: 'g', namespace: 'edge' }, spec: { from: [{ group: 'gateway.networking.k8s.io', kind: 'Gateway', namespace: 'else' }], to: [{ group: '', kind: 'Secret', name: 'site' }] } }));
  assert.ok(generator.one(gateway('else'), 'kubernetes://edge/site'));
  assert.equal(generator.one(gateway('third'), 'kubernetes://edge/site'), undefined);
});

test('SecretGenerator: a pair that does not fit leaves the last good one, and is said once by name without its contents', async () => {
  const ca = await CertificateAuthority.create();
  const [one, two] = await Promise.all([ca.issue({ namespace: 'edge', serviceAccount: 'gw' }), ca.issue({ namespace: 'edge', serviceAccount: 'gw' })]);
  const { apply, generator, problems } = world();
  apply(secretYaml('site', 'edge', { 'tls.crt': one!.chainPem, 'tls.key': one!.privateKeyPem }));
  const good = generator.one(gateway('edge'), 'kubernetes://site');
  for (const data of [{ 'tls.crt': two!.chainPem, 'tls.key': one!.privateKeyPem }, { 'tls.crt': 'nonsense', 'tls.key': one!.privateKeyPem }, { 'tls.crt': two!.chainPem }]) {
    apply(secretYaml('site', 'edge', data as Record<string, string>));
    assert.equal(generator.one(gateway('edge'), 'kubernetes://site'), good);
    assert.equal(generator.one(gateway('edge'), 'kubernetes://site'), good);
  }
  assert.deepEqual(problems.map(({ secret, message }) => `${secret}: ${message}`), ['edge/site: certificate and private key do not match', 'edge/site: the certificate is no PEM certificate', 'edge/site: found no private key, expected tls.key (or key)']);
  apply(secretYaml('site', 'edge', { 'tls.crt': two!.chainPem, 'tls.key': two!.privateKeyPem }));
  assert.notEqual(generator.one(gateway('edge'), 'kubernetes://site')!.version, good!.version);
});

test('SecretGenerator: nothing is left in force of a Secret that was deleted, also when a broken one comes under its name', async () => {
  const ca = await CertificateAuthority.create();
  const { chainPem, privateKeyPem } = await ca.issue({ namespace: 'edge', serviceAccount: 'gw' });
  const { apply, remove, generator } = world();
  apply(secretYaml('site', 'edge', { 'tls.crt': chainPem, 'tls.key': privateKeyPem }));
  assert.ok(generator.one(gateway('edge'), 'kubernetes://site'));
  generator.invalidate(remove('/Secret/edge/site'));
  assert.equal(generator.one(gateway('edge'), 'kubernetes://site'), undefined);
  generator.invalidate(apply(secretYaml('site', 'edge', { 'tls.crt': 'nonsense', 'tls.key': privateKeyPem })));
  assert.equal(generator.one(gateway('edge'), 'kubernetes://site'), undefined);
});

test('SecretGenerator: an authority that is in the certificate\'s own Secret is followed, though the list of revoked stands in another', async () => {
  const [one, two] = await Promise.all([CertificateAuthority.create(), CertificateAuthority.create()]);
  const { apply, generator } = world();
  const authority = (): string => {
    const { type } = Secret.decode(generator.one(gateway('edge'), 'kubernetes://site-cacert')!.body.value);
    assert.ok(type?.$case === 'validation_context');
    return Buffer.from(type.value.trusted_ca!.specifier!.value as Uint8Array).toString();
  };
  apply(secretYaml('site-cacert', 'edge', { 'ca.crl': 'revoked' }));
  apply(secretYaml('site', 'edge', { 'ca.crt': one!.rootPem }));
  assert.equal(authority(), one!.rootPem);
  apply(secretYaml('site', 'edge', { 'ca.crt': two!.rootPem }));
  assert.equal(authority(), two!.rootPem);
});
