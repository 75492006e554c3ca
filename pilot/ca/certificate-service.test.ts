/** Istio's certificate service over TLS, with real tokens and certificates. */
import assert from 'node:assert/strict';
import { generateKeyPairSync, X509Certificate } from 'node:crypto';
import { after, before, test } from 'node:test';
import { status as GrpcStatus } from '@grpc/grpc-js';
import 'reflect-metadata'; // @peculiar/x509 finds its parts through it
import * as x509 from '@peculiar/x509';
import { webcrypto } from 'node:crypto';
import { CertificateAuthority, createCertificateRequest } from '../../common/identity/ca.js';
import { TokenIssuer } from '../../common/identity/service-account-token.js';
import { CertificateService } from './certificate-service.js';
import { parseYaml } from '../../common/kube/yaml.js';
import { testMesh } from '../testing/model.js';
import { ModelNodes } from './model-nodes.js';
import { NodeProxies } from './node-proxies.js';
import { bearer, createCertificate, securePilot, type Outcome, type SecurePilot } from './testing.js';

const pod = (namespace: string, name: string, node: string, account: string): string =>
  `apiVersion: v1\nkind: Pod\nmetadata: {name: ${name}, namespace: ${namespace}, uid: uid-${name}}\nspec: {nodeName: ${node}, serviceAccountName: ${account}, containers: [{name: app}]}\nstatus: {phase: Running}\n---\n`;
const MESH = pod('istio-system', 'ztunnel-1', 'node-1', 'ztunnel') + pod('shop', 'web', 'node-1', 'web') + pod('shop', 'db', 'node-2', 'db');
const WEB = { namespace: 'shop', serviceAccount: 'web' };
const ZTUNNEL = { namespace: 'istio-system', serviceAccount: 'ztunnel', pod: { name: 'ztunnel-1', uid: 'uid-ztunnel-1' }, nodeName: 'node-1' };
const id = (namespace: string, serviceAccount: string): string => `spiffe://cluster.local/ns/${namespace}/sa/${serviceAccount}`;

let mesh: SecurePilot;
const sanOf = ({ chain, error }: Outcome): string | undefined => {
  assert.equal(error, undefined);
  return new X509Certificate(chain![0]!).subjectAltName;
};

async function ask(token: string, request: { names?: { trustDomain: string; namespace: string; serviceAccount: string }; csr?: string; seconds?: number; impersonate?: string } = {}): Promise<Outcome> {
  const csr = request.csr ?? (await createCertificateRequest(request.names)).requestPem;
  const metadata = request.impersonate === undefined ? {} : { metadata: { ImpersonatedIdentity: request.impersonate } };
  return createCertificate({ csr, validity_duration: BigInt(request.seconds ?? 0), ...metadata }, { address: mesh.address, rootPem: mesh.pilot.ca!.rootPem, metadata: bearer(token) });
}

before(async () => {
  mesh = await securePilot(MESH);
});
after(() => mesh.store.close());

test('a token gets a certificate of its own service account: 24 h, leaf first, root last', async () => {
  const outcome = await ask(await mesh.issuer.issue(WEB));
  assert.equal(sanOf(outcome), `URI:${id('shop', 'web')}`);
  const [leaf, root] = outcome.chain!.map((pem) => new X509Certificate(pem));
  assert.equal(outcome.chain!.length, 2);
  assert.ok(leaf!.verify(root!.publicKey) && root!.ca && !leaf!.ca);
  const hours = (Date.parse(leaf!.validTo) - Date.now()) / 3_600_000;
  assert.ok(hours > 23.9 && hours <= 24, `${hours} h`);
  assert.ok(Date.parse(leaf!.validFrom) < Date.now() - 60_000, 'it is dated back');
});

test('whether an identity runs on a node is known without a look at all pods, and follows them', () => {
  const { model } = testMesh(MESH);
  model.pods.values = () => assert.fail('all pods were looked at');
  const nodes = new ModelNodes(model);
  const db = { namespace: 'shop', serviceAccount: 'db' };
  assert.deepEqual([nodes.runsOnNode('node-1', WEB), nodes.runsOnNode('node-2', WEB), nodes.runsOnNode('node-2', db)], [true, false, true]);
  const move = (text: string): void => void model.apply(parseYaml(text, 'x').objects.map((loaded) => ({ key: loaded.key, loaded })));
  move(pod('shop', 'web', 'node-2', 'web'));
  assert.deepEqual([nodes.runsOnNode('node-1', WEB), nodes.runsOnNode('node-2', WEB)], [false, true]);
  move(pod('shop', 'web', 'node-2', 'web').replace('Running', 'Succeeded'));
  assert.equal(nodes.runsOnNode('node-2', WEB), false);
  model.apply([{ key: '/Pod/shop/db' }]);
  assert.equal(nodes.runsOnNode('node-2', db), false);
});

test('a wish for a validity counts up to the maximum of 90 days', async () => {
  const token = await mesh.issuer.issue(WEB);
  const lifeOf = async (seconds: number): Promise<number> => (Date.parse(new X509Certificate((await ask(token, { seconds })).chain![0]!).validTo) - Date.now()) / 1000;
  assert.ok(Math.abs((await lifeOf(600)) - 600) < 30);
  assert.ok(Math.abs((await lifeOf(1e9)) - 90 * 86_400) < 30);
});

test('the certificate proves its owner for the next one, with no token', async () => {
  const first = mesh.pilot.ca!;
  const certificate = await first.issue(WEB);
  const outcome = await createCertificate({ csr: (await createCertificateRequest()).requestPem }, { address: mesh.address, rootPem: first.rootPem, certificate });
  assert.equal(sanOf(outcome), `URI:${id('shop', 'web')}`);
});

test('a request that names its own identity is fine, one that names another is refused and logged', async () => {
  const token = await mesh.issuer.issue(WEB);
  assert.equal(sanOf(await ask(token, { names: { trustDomain: 'cluster.local', ...WEB } })), `URI:${id('shop', 'web')}`);
  const logged = mesh.log.length;
  const { error } = await ask(token, { names: { trustDomain: 'cluster.local', namespace: 'shop', serviceAccount: 'db' } });
  assert.equal(error?.code, GrpcStatus.PERMISSION_DENIED);
  const lines = mesh.log.slice(logged).filter((line) => line.includes("somebody else's identity"));
  assert.equal(lines.length, 1);
  assert.ok(lines[0]!.includes(id('shop', 'db')) && lines[0]!.includes(id('shop', 'web')), lines[0]);
});

test('RSA and EC keys are signed, small RSA ones and what is no request are not', async () => {
  const token = await mesh.issuer.issue(WEB);
  const rsa = async (modulusLength: number): Promise<string> => {
    const algorithm = { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256', modulusLength, publicExponent: new Uint8Array([1, 0, 1]) };
    const keys = (await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])) as webcrypto.CryptoKeyPair;
    return (await x509.Pkcs10CertificateRequestGenerator.create({ name: '', keys, signingAlgorithm: algorithm })).toString('pem');
  };
  assert.equal(sanOf(await ask(token, { csr: await rsa(2048) })), `URI:${id('shop', 'web')}`);
  assert.equal((await ask(token, { csr: await rsa(1024) })).error?.code, GrpcStatus.INVALID_ARGUMENT);
  assert.equal((await ask(token, { csr: 'no request' })).error?.code, GrpcStatus.INVALID_ARGUMENT);
  assert.equal((await ask(token, { csr: 'x'.repeat(20_000) })).error?.code, GrpcStatus.INVALID_ARGUMENT);
});

test("a request whose signature does not fit is refused", async () => {
  const { requestPem } = await createCertificateRequest();
  const der = Buffer.from(x509.PemConverter.decode(requestPem)[0]!);
  der[der.length - 1]! ^= 1;
  const { error } = await ask(await mesh.issuer.issue(WEB), { csr: x509.PemConverter.encode(der, 'CERTIFICATE REQUEST') });
  assert.equal(error?.code, GrpcStatus.INVALID_ARGUMENT);
});

test('a wrong, an expired, a foreign token and one for others get UNAUTHENTICATED, all in the same words; no log line holds a token', async () => {
  const now = Math.floor(Date.now() / 1000);
  const other = await TokenIssuer.create();
  const good = await mesh.issuer.issue(WEB);
  const tokens = [
    'rubbish',
    await mesh.issuer.issue(WEB, { nowSeconds: now - 7200, ttlSeconds: 3600 }),
    await mesh.issuer.issue(WEB, { audience: 'vault' }),
    await other.issue(WEB),
    `${good.slice(0, good.lastIndexOf('.'))}.${Buffer.alloc(64, 7).toString('base64url')}`,
    // A header that wants no signature to be looked at.
    `${Buffer.from('{"alg":"none"}').toString('base64url')}.${good.split('.')[1]}.`,
  ];
  const logged = mesh.log.length;
  for (const token of tokens) assert.deepEqual(await ask(token), { error: { code: GrpcStatus.UNAUTHENTICATED, details: 'authentication failed' } });
  const none = await createCertificate({ csr: (await createCertificateRequest()).requestPem }, { address: mesh.address, rootPem: mesh.pilot.ca!.rootPem });
  assert.equal(none.error?.code, GrpcStatus.UNAUTHENTICATED);
  const log = mesh.log.slice(logged).join('');
  assert.equal(mesh.log.slice(logged).filter((line) => line.includes('could not be authenticated')).length, tokens.length + 1);
  for (const token of tokens) for (const part of token.split('.').filter((each) => each.length > 5)) assert.ok(!log.includes(part), 'a part of a token was logged');
});

test("a certificate of another CA proves nobody", async () => {
  const stranger = await CertificateAuthority.create();
  const certificate = await stranger.issue(WEB);
  const outcome = await createCertificate({ csr: (await createCertificateRequest()).requestPem }, { address: mesh.address, rootPem: mesh.pilot.ca!.rootPem, certificate });
  assert.equal(outcome.error?.code, GrpcStatus.UNAUTHENTICATED);
});

test("a node's proxy gets the identities of its own node's pods, no others'", async () => {
  const token = await mesh.issuer.issue(ZTUNNEL);
  assert.equal(sanOf(await ask(token, { impersonate: id('shop', 'web') })), `URI:${id('shop', 'web')}`);
  for (const impersonate of [id('shop', 'db'), id('shop', 'nobody'), 'spiffe://other.domain/ns/shop/sa/web', 'web']) assert.equal((await ask(token, { impersonate })).error?.code, GrpcStatus.PERMISSION_DENIED, impersonate);
});

test('nobody else may ask for another identity, nor a proxy that does not say which pod it is, or a wrong one', async () => {
  const callers = [WEB, { namespace: 'istio-system', serviceAccount: 'ztunnel' }, { ...ZTUNNEL, pod: { name: 'ztunnel-1', uid: 'other' } }, { ...ZTUNNEL, pod: { name: 'web', uid: 'uid-web' } }, { ...ZTUNNEL, nodeName: 'node-2' }];
  for (const caller of callers) assert.equal((await ask(await mesh.issuer.issue(caller), { impersonate: id('shop', 'web') })).error?.code, GrpcStatus.PERMISSION_DENIED, JSON.stringify(caller));
});

test('CertificateService: a caller that asks too often is told so, others are not held up', async () => {
  const ca = mesh.pilot.ca!;
  const nodeProxies = new NodeProxies({ nodeOfPod: () => undefined, runsOnNode: () => false });
  let caller = { trustDomain: 'cluster.local', ...WEB, via: 'token' as const };
  const service = new CertificateService({ ca, authenticators: { identify: async () => caller } as never, nodeProxies, rate: { perSecond: 1, burst: 2 }, clock: { now: () => 0, after: () => () => undefined }, logger: { info() {}, warn() {} } as never });
  const call = async (): Promise<GrpcStatus | undefined> => {
    const csr = (await createCertificateRequest()).requestPem;
    return new Promise((resolve) => service.implementation.createCertificate({ request: { csr, validity_duration: 0n }, getPeer: () => 'x' } as never, (error) => resolve((error as { code?: GrpcStatus } | null)?.code)));
  };
  assert.deepEqual([await call(), await call(), await call()], [undefined, undefined, GrpcStatus.RESOURCE_EXHAUSTED]);
  caller = { ...caller, serviceAccount: 'db' };
  assert.equal(await call(), undefined);
});

test('keys of other kinds are refused by name', async () => {
  // Ed25519: neither Envoy nor Istio's agents ask with one.
  const { publicKey } = generateKeyPairSync('ed25519');
  assert.equal(publicKey.asymmetricKeyType, 'ed25519');
  const keys = (await webcrypto.subtle.generateKey({ name: 'Ed25519' }, true, ['sign', 'verify'])) as webcrypto.CryptoKeyPair;
  const csr = (await x509.Pkcs10CertificateRequestGenerator.create({ name: '', keys, signingAlgorithm: { name: 'Ed25519' } })).toString('pem');
  const { error } = await ask(await mesh.issuer.issue(WEB), { csr });
  assert.equal(error?.code, GrpcStatus.INVALID_ARGUMENT);
});
