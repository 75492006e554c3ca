// A real API server asks pilot: its webhooks about Pods and configuration, and pilot asks it about its callers' tokens.
import assert from 'node:assert/strict';
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { status as GrpcStatus } from '@grpc/grpc-js';
import { decodeJwt, importPKCS8, SignJWT } from 'jose';
import { stringify } from 'yaml';
import { createCertificateRequest } from '../../common/identity/ca.js';
import { KubeClient } from '../../common/kube/client.js';
import { inClusterServer, parseKubeconfig } from '../../common/kube/kubeconfig.js';
import { waitFor } from '../../common/retry.js';
import type { KubeObject, Pod } from '../../common/kube/types.js';
import { bearer, createCertificate, type Outcome } from '../../pilot/ca/testing.js';
import { freePorts, KubeCluster } from './cluster.js';
import { pilotKubeconfig, startPilot, type KubePilot } from './pilot.js';

const WAIT = { everyMs: 50 };

let folder: string;
let cluster: KubeCluster;
let kubeconfig: string;
let port: number;
let kube: KubePilot;

const start = async (): Promise<void> => {
  kube = await startPilot(kubeconfig, {
    leaseTimes: { leaseMs: 3_000, renewMs: 2_000, retryMs: 200 },
    security: { listen: ['127.0.0.1:0'], hosts: ['localhost'], tokenReview: new KubeClient(parseKubeconfig(kubeconfig, { place: 'of the test' })) },
    webhooks: { listen: `127.0.0.1:${port}`, url: `https://127.0.0.1:${port}`, configurationsFile: join(folder, 'webhooks.yaml') },
  });
};
/** Pilot has told the API server whom to trust. */
const trusted = async (): Promise<void> => {
  for (const [kind, name] of [['MutatingWebhookConfiguration', 'underpass-sidecar-injector'], ['ValidatingWebhookConfiguration', 'underpass-validator']] as const) {
    await waitFor(`the CA in ${name}`, async () => {
      const found = await cluster.get<KubeObject & { webhooks: { clientConfig: { caBundle?: string } }[] }>('admissionregistration.k8s.io/v1', kind, { name });
      return found?.webhooks.every(({ clientConfig }) => Buffer.from(clientConfig.caBundle ?? '', 'base64').toString() === kube.pilot.ca!.rootPem);
    }, WAIT);
  }
};

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-kube-admission-'));
  cluster = await KubeCluster.start();
  kubeconfig = await pilotKubeconfig(cluster);
  [port] = (await freePorts(1)) as [number];
  await cluster.namespace('shop', { 'istio-injection': 'enabled' });
  await cluster.namespace('node', { 'istio-injection': 'enabled', 'underpass.io/mode': 'node' });
  await cluster.namespace('plain');
  await start();
  await cluster.apply(readFileSync(join(folder, 'webhooks.yaml'), 'utf8').replaceAll(/ *caBundle: .*\n/g, ''));
  await trusted();
});
after(async () => {
  await kube?.pilot.stop();
  await cluster?.close();
  rmSync(folder, { recursive: true, force: true });
});

const virtualService = (regex: string): string => stringify({ apiVersion: 'networking.istio.io/v1', kind: 'VirtualService', metadata: { name: 'web', namespace: 'shop' }, spec: { hosts: ['web'], http: [{ match: [{ uri: { regex } }], route: [{ destination: { host: 'web' } }] }] } });
const pod = (name: string, namespace = 'shop', more: { annotations?: object; labels?: object } = {}): string => stringify({ apiVersion: 'v1', kind: 'Pod', metadata: { name, namespace, ...more }, spec: { containers: [{ name: 'app', image: 'app', ports: [{ containerPort: 8080 }] }] } });
const create = async (yaml: string): Promise<Pod> => (await cluster.apply(yaml))[0] as Pod;
const containers = ({ spec }: Pod): string[] => [...(spec.initContainers ?? []), ...spec.containers].map(({ name }) => name);

test('a Pod that is created gets its sidecar, in a shape that the API server takes; a Pod that has it gets no second one', async () => {
  const created = await create(pod('web'));
  assert.deepEqual(containers(created), ['istio-init', 'app', 'istio-proxy']);
  assert.ok(created.spec.volumes?.some(({ name }) => name === 'istio-token'));
  const { name: _name, ...kept } = created.metadata;
  const again = await create(stringify({ apiVersion: 'v1', kind: 'Pod', metadata: { name: 'again', namespace: 'shop', labels: kept.labels, annotations: kept.annotations }, spec: created.spec }));
  assert.deepEqual(containers(again), containers(created));
});

test("namespaces in mode=node and Pods that say no are left alone; a wrong annotation refuses the Pod by its name", async () => {
  assert.deepEqual(containers(await create(pod('web', 'node'))), ['app']);
  assert.deepEqual(containers(await create(pod('web', 'plain'))), ['app']);
  assert.deepEqual(containers(await create(pod('no', 'shop', { labels: { 'sidecar.istio.io/inject': 'false' } }))), ['app']);
  assert.ok(containers(await create(pod('asks', 'plain', { labels: { 'sidecar.istio.io/inject': 'true' } }))).includes('istio-proxy'));
  await assert.rejects(create(pod('wrong', 'shop', { annotations: { 'traffic.sidecar.istio.io/excludeOutboundPorts': 'x' } })), /excludeOutboundPorts/);
});

test('a VirtualService that pilot would refuse is refused when it is applied, by field; a good one passes, in every version', async () => {
  // The API server begins to call a webhook a moment after its configuration was stored.
  await waitFor('the validator', () => cluster.apply(virtualService('(')).then(() => false, () => true), WAIT);
  await assert.rejects(cluster.apply(virtualService('(')), (error: Error) => /validation\.istio\.io.*denied the request.*spec\.http\[0\]\.match\[0\]\.uri\.regex/.test(error.message));
  assert.equal(await cluster.get('networking.istio.io/v1', 'VirtualService', { namespace: 'shop', name: 'web' }), undefined);
  for (const version of ['v1', 'v1beta1', 'v1alpha3']) await cluster.apply(virtualService('/a.*').replace('istio.io/v1', `istio.io/${version}`));
  await assert.rejects(cluster.apply(virtualService('/a.*').replace('networking.istio.io/v1', 'networking.istio.io/v1alpha3').replace('/a.*', '[')), /regex/);
  await waitFor('the good one in force', () => kube.pilot.object('networking.istio.io/VirtualService/shop/web'), WAIT);
});

test("without pilot no Pod starts half-captured: creation fails where injection is on, and goes on elsewhere; a pilot with another CA is trusted once it has said so", async () => {
  await kube.pilot.stop();
  await assert.rejects(create(pod('lost')), /sidecar-injector\.istio\.io/);
  assert.deepEqual(containers(await create(pod('fine', 'plain'))), ['app']);
  // With no pilot to write it again its CA is lost.
  await cluster.delete('v1', 'Secret', { namespace: 'istio-system', name: 'underpass-ca' });
  const before = kube.pilot.ca!.rootPem;
  await start();
  assert.notEqual(kube.pilot.ca!.rootPem, before);
  await trusted();
  const created = await waitFor('an injected Pod', () => create(pod('lost')).catch(() => undefined), WAIT);
  assert.ok(containers(created).includes('istio-proxy'));
});

async function ask(token: string, impersonated?: string): Promise<Outcome> {
  const { requestPem } = await createCertificateRequest();
  return createCertificate({ csr: requestPem, ...(impersonated === undefined ? {} : { metadata: { ImpersonatedIdentity: impersonated } }) }, { address: kube.pilot.secureAddresses[0]!.replace('127.0.0.1', 'localhost'), rootPem: kube.pilot.ca!.rootPem, metadata: bearer(token) });
}
const isRefused = async (token: string): Promise<void> => assert.deepEqual((await ask(token)).error, { code: GrpcStatus.UNAUTHENTICATED, details: 'authentication failed' });

test("a Pod's projected token of audience istio-ca gets a certificate of its service account", async () => {
  const bound = await create(pod('bound', 'plain'));
  const { chain, error } = await ask(await cluster.token('plain', 'default', { audience: 'istio-ca', pod: bound }));
  assert.equal(error, undefined);
  assert.equal(new X509Certificate(chain![0]!).subjectAltName, 'URI:spiffe://cluster.local/ns/plain/sa/default');
});

test("a node's proxy gets certificates for the accounts of its own node's pods, by the token that the API server binds to its pod", async () => {
  await cluster.apply('{apiVersion: v1, kind: ServiceAccount, metadata: {name: ztunnel, namespace: istio-system}}');
  const on = (name: string, namespace: string, account: string, nodeName: string): string => stringify({ apiVersion: 'v1', kind: 'Pod', metadata: { name, namespace, labels: { 'sidecar.istio.io/inject': 'false' } }, spec: { serviceAccountName: account, nodeName, containers: [{ name: 'app', image: 'app' }] } });
  for (const account of ['near', 'far']) await cluster.apply(`{apiVersion: v1, kind: ServiceAccount, metadata: {name: ${account}, namespace: plain}}`);
  const proxy = await create(on('ztunnel-1', 'istio-system', 'ztunnel', 'node-1'));
  await create(on('near', 'plain', 'near', 'node-1'));
  await create(on('far', 'plain', 'far', 'node-2'));
  await waitFor('the pods', () => kube.pilot.object('/Pod/istio-system/ztunnel-1') && kube.pilot.object('/Pod/plain/near') && kube.pilot.object('/Pod/plain/far'), WAIT);
  const token = await cluster.token('istio-system', 'ztunnel', { audience: 'istio-ca', pod: proxy });
  const { chain, error } = await ask(token, 'spiffe://cluster.local/ns/plain/sa/near');
  assert.equal(error, undefined);
  assert.equal(new X509Certificate(chain![0]!).subjectAltName, 'URI:spiffe://cluster.local/ns/plain/sa/near');
  assert.equal((await ask(token, 'spiffe://cluster.local/ns/plain/sa/far')).error?.code, GrpcStatus.PERMISSION_DENIED);
  assert.equal((await ask(await cluster.token('istio-system', 'ztunnel', { audience: 'istio-ca' }), 'spiffe://cluster.local/ns/plain/sa/near')).error?.code, GrpcStatus.PERMISSION_DENIED, 'a token of no pod');
});

test('tokens of another audience, of a Pod that is gone, that have expired, or that somebody else signed are refused, and are in no log', async () => {
  const gone = await create(pod('gone', 'plain'));
  const token = await cluster.token('plain', 'default', { audience: 'istio-ca', pod: gone });
  const accounts = createPrivateKey(readFileSync(join(cluster.folder, 'accounts.key')));
  const claims = decodeJwt(token);
  const { alg, kid } = JSON.parse(Buffer.from(token.split('.')[0]!, 'base64url').toString()) as { alg: string; kid: string };
  const signed = async (change: object, key = accounts): Promise<string> => new SignJWT({ ...claims, ...change }).setProtectedHeader({ alg, kid }).sign(await importPKCS8(key.export({ format: 'pem', type: 'pkcs8' }) as string, alg));
  assert.equal((await ask(await signed({}))).error, undefined, 'the copy is as good');
  const hourAgo = Math.floor(Date.now() / 1_000) - 3_600;
  const { privateKeyPem } = await createCertificateRequest();
  const bad = [
    await cluster.token('plain', 'default'),
    await cluster.token('plain', 'default', { audience: 'other' }),
    await signed({ iat: hourAgo - 600, nbf: hourAgo - 600, exp: hourAgo }),
    await signed({}, createPrivateKey(privateKeyPem)),
  ];
  for (const one of bad) await isRefused(one);
  await cluster.delete('v1', 'Pod', { namespace: 'plain', name: 'gone' });
  await waitFor('its end', async () => (await ask(token)).error?.code === GrpcStatus.UNAUTHENTICATED, WAIT);
  for (const one of [...bad, token]) assert.ok(!kube.log.some((line) => line.includes(one) || line.includes(one.split('.')[2]!)));
});

test('inClusterServer: what Kubernetes gives every pod, a token that was exchanged meanwhile included; nothing outside of a pod', async () => {
  const files = mkdtempSync(join(folder, 'account-'));
  writeFileSync(join(files, 'ca.crt'), cluster.ca.rootPem);
  writeFileSync(join(files, 'token'), 'old\n');
  const client = new KubeClient(inClusterServer({ KUBERNETES_SERVICE_HOST: '127.0.0.1', KUBERNETES_SERVICE_PORT: String(cluster.ports.api) }, files)!);
  const read = (): Promise<unknown> => client.request('GET', '/api/v1/pods');
  try {
    await assert.rejects(read(), { status: 401 });
    writeFileSync(join(files, 'token'), `${await cluster.token('istio-system', 'istiod')}\n`);
    await read();
  } finally {
    client.close();
  }
  assert.equal(inClusterServer({}, files), undefined);
});
