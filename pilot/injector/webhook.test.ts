// The webhooks over real TLS, as the API server calls them.
import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { request } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { connect, type TLSSocket } from 'node:tls';
import { pino } from 'pino';
import { Registry } from 'prom-client';
import { parseAllDocuments } from 'yaml';
import { selfSignedRoot } from '../../common/identity/server-certificate.js';
import { DEFAULT_INJECTION } from '../../common/injection/config.js';
import { applyPatch, type PatchOperation } from '../../common/injection/json-patch.js';
import type { InjectablePod } from '../../common/injection/pod.js';
import { waitFor } from '../../common/retry.js';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { Pilot } from '../index.js';
import { WebhookMetrics } from './metrics.js';
import { WebhookServer } from './webhook-server.js';

interface Answer {
  status: number;
  body: { error?: string; response?: { uid: string; allowed: boolean; patchType?: string; patch?: string; warnings?: string[]; status?: { code: number; message: string } } };
  peer: X509Certificate;
}

let folder: string;
let pilot: Pilot;
let ca: string;

const NAMESPACES = 'apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio-injection: enabled}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: node, labels: {istio-injection: enabled, underpass.io/mode: node}}\n';

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-webhook-'));
  writeFileSync(join(folder, 'namespaces.yaml'), NAMESPACES);
  writeFileSync(join(folder, '.injection'), 'values: {proxyImage: "mine:1"}\n');
  writeFileSync(join(folder, 'gateway.yaml'), 'apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: web, namespace: shop}\nspec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}\n');
  pilot = new Pilot({ sources: [folder], listen: [], provisionDir: join(folder, 'provisioned'), logger: pino({ level: 'silent' }), webhooks: { listen: '127.0.0.1:0', injectionFile: join(folder, '.injection'), configurationsFile: join(folder, '.webhooks') } });
  await pilot.start();
  const [mutating] = parseAllDocuments(readFileSync(join(folder, '.webhooks'), 'utf8')).map((document) => document.toJS() as { webhooks: { clientConfig: { caBundle: string } }[] });
  ca = Buffer.from(mutating?.webhooks[0]?.clientConfig.caBundle ?? '', 'base64').toString('utf8');
});

after(async () => {
  await pilot?.stop();
  rmSync(folder, { recursive: true, force: true });
});

function post(path: string, body: string, options: { address?: string; trust?: string; headers?: Record<string, string>; method?: string } = {}): Promise<Answer> {
  const [host, port] = (options.address ?? pilot.webhookAddress).split(':');
  return new Promise((resolve, reject) => {
    const outgoing = request({ host, port, path, method: options.method ?? 'POST', agent: false, ca: options.trust ?? ca, servername: 'istiod.istio-system.svc', headers: { 'content-type': 'application/json', ...options.headers } }, (response) => {
      const peer = (response.socket as TLSSocket).getPeerX509Certificate() as X509Certificate;
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('end', () => resolve({ status: response.statusCode ?? 0, body: JSON.parse(Buffer.concat(chunks).toString('utf8')) as Answer['body'], peer }));
    });
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

const review = (kind: string, object: unknown, more: Record<string, unknown> = {}): string =>
  JSON.stringify({ apiVersion: 'admission.k8s.io/v1', kind: 'AdmissionReview', request: { uid: 'u-1', kind: { group: '', version: 'v1', kind }, operation: 'CREATE', namespace: 'shop', object, ...more } });
const pod = (annotations: Record<string, string> = {}): InjectablePod => ({ apiVersion: 'v1', kind: 'Pod', metadata: { name: 'web', labels: { app: 'web' }, annotations }, spec: { containers: [{ name: 'app', image: 'web' }] } });

test('/inject: the patch makes the pod with its proxy, idempotently, with values of the file and of the path', async () => {
  const { status, body } = await post('/inject/cluster/east/net/n1', review('Pod', pod()));
  assert.equal(status, 200);
  assert.deepEqual([body.response?.uid, body.response?.allowed, body.response?.patchType], ['u-1', true, 'JSONPatch']);
  const patch = JSON.parse(Buffer.from(body.response?.patch ?? '', 'base64').toString('utf8')) as PatchOperation[];
  const patched = applyPatch(pod(), patch);
  const proxy = patched.spec.containers.find(({ name }) => name === 'istio-proxy');
  assert.equal(proxy?.image, 'mine:1');
  const env = Object.fromEntries((proxy?.env ?? []).map(({ name, value }) => [name, value]));
  assert.deepEqual([env['ISTIO_META_CLUSTER_ID'], env['ISTIO_META_NETWORK']], ['east', 'n1']);
  assert.deepEqual((await post('/inject', review('Pod', patched))).body.response, { uid: 'u-1', allowed: true });
});

test("the injection file's values count for proxies of Gateway API Gateways too", () => {
  assert.match(readFileSync(join(folder, 'provisioned', 'gateway_shop_web.yaml'), 'utf8'), /image: mine:1$/m);
});

test('/inject: namespaces in mode=node, unknown namespaces and other operations are left alone', async () => {
  for (const more of [{ namespace: 'node' }, { namespace: 'nowhere' }, { operation: 'DELETE', object: null }])
    assert.deepEqual((await post('/inject', review('Pod', pod(), more))).body.response, { uid: 'u-1', allowed: true }, JSON.stringify(more));
});

test('/inject: a wrong annotation refuses the pod and says which', async () => {
  const { response } = (await post('/inject', review('Pod', pod({ 'traffic.sidecar.istio.io/excludeOutboundPorts': 'x' })))).body;
  assert.deepEqual([response?.allowed, response?.status?.code], [false, 400]);
  assert.match(response?.status?.message ?? '', /excludeOutboundPorts\]: found "x", expected ports/);
  assert.equal((await post('/inject', review('Pod', { metadata: {} }))).body.response?.status?.code, 400);
});

test('/validate: an object with errors is refused by field, a good one is allowed', async () => {
  const service = (http: unknown): unknown => ({ apiVersion: 'networking.istio.io/v1', kind: 'VirtualService', metadata: { name: 'v', namespace: 'shop' }, spec: { hosts: ['web'], http } });
  const route = [{ destination: { host: 'web' } }];
  assert.equal((await post('/validate', review('VirtualService', service([{ route }])))).body.response?.allowed, true);
  const { response } = (await post('/validate', review('VirtualService', service([{ match: [{ uri: { regex: '(' } }], route }])))).body;
  assert.deepEqual([response?.allowed, response?.status?.code], [false, 422]);
  assert.match(response?.status?.message ?? '', /spec\.http\[0\]\.match\[0\]\.uri/);
});

test('requests that are none: answered by what is wrong with them', async () => {
  for (const [path, body, options, status, message] of [
    ['/inject', '{', {}, 400, /AdmissionReview/],
    ['/inject', '{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}', {}, 400, /expected admission\.k8s\.io\/v1/],
    ['/inject', '{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}', {}, 400, /request\.uid/],
    ['/inject/cluster/%zz', review('Pod', pod()), {}, 400, /percent-encoding/],
    ['/inject', '{}', { headers: { 'content-type': 'text/plain' } }, 415, /expected application\/json/],
    ['/inject', '', { method: 'GET' }, 405, /expected POST/],
    ['/other', '{}', {}, 404, /expected \/inject/],
    ['/validate', ' '.repeat((4 << 20) + 1), {}, 413, /longer than/],
  ] as const) {
    const answer = await post(path, body, options);
    assert.equal(answer.status, status, `${path} ${status}`);
    assert.match(answer.body.error ?? '', message);
  }
});

test('requests that do not wait for the answer before them end their connection: each of a namespace that is not known waits for seconds', async () => {
  const [host = '', port] = pilot.webhookAddress.split(':');
  const socket = connect({ host, port: Number(port), rejectUnauthorized: false }).setEncoding('utf8').on('error', () => undefined);
  let text = '';
  socket.on('data', (chunk: string) => (text += chunk));
  const closed = new Promise((resolve) => socket.once('close', resolve));
  const body = review('Pod', pod(), { namespace: 'nowhere' });
  socket.write(`POST /inject HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`.repeat(50));
  await closed;
  assert.equal(text, '');
  assert.equal((await post('/inject', review('Pod', pod()))).status, 200);
});

test('a client that does not trust the CA gets no answer; one that does finds the name of the Service', async () => {
  await assert.rejects(post('/inject', review('Pod', pod()), { trust: (await selfSignedRoot('other')).root.toString('pem') }), /self-signed|unable to verify|signature/);
  assert.ok((await post('/inject', review('Pod', pod()))).peer.checkHost('istiod.istio-system.svc'));
});

test('a pod that is made right after its namespace waits until that is known, and is injected by its labels', async () => {
  const signer = await selfSignedRoot('test');
  let labels: Record<string, string> | undefined;
  const server = await WebhookServer.listen({
    listen: '127.0.0.1:0', signer, dnsNames: ['istiod.istio-system.svc'], injection: () => DEFAULT_INJECTION, namespaceLabels: () => labels, check: () => [], metrics: new WebhookMetrics(new Registry()), logger: pino({ level: 'silent' }),
  });
  try {
    const answer = post('/inject', review('Pod', pod()), { address: server.address, trust: signer.root.toString('pem') });
    setTimeout(() => (labels = { 'istio-injection': 'enabled' }), 200);
    assert.notEqual((await answer).body.response?.patch, undefined);
  } finally {
    await server.close();
  }
});

test("the certificate is renewed live: later connections see the new one, the old ones' answers still come", async () => {
  const signer = await selfSignedRoot('test');
  const trust = signer.root.toString('pem');
  const server = await WebhookServer.listen({
    listen: '127.0.0.1:0', signer, dnsNames: ['istiod.istio-system.svc'], injection: () => DEFAULT_INJECTION, namespaceLabels: () => ({}), check: () => [], metrics: new WebhookMetrics(new Registry()), logger: pino({ level: 'silent' }),
  });
  try {
    const ask = async (): Promise<string> => (await post('/inject', review('Pod', pod()), { address: server.address, trust })).peer.serialNumber;
    const first = await ask();
    const pending = ask();
    await server.renew();
    await pending;
    assert.notEqual(await ask(), first);
  } finally {
    await server.close();
  }
});

test("a CA that changes is the webhook's at once: its certificate is one that whoever trusts the new root alone takes", async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-webhook-ca-'));
  writeFileSync(join(folder, 'namespaces.yaml'), NAMESPACES);
  const first = await CertificateAuthority.create();
  const ca = await CertificateAuthority.from(first.material, 'the test');
  const own = new Pilot({ sources: [folder], listen: [], logger: pino({ level: 'silent' }), security: { listen: ['127.0.0.1:0'], ca }, webhooks: { listen: '127.0.0.1:0' } });
  await own.start();
  try {
    const ask = (trust: string): Promise<Answer> => post('/inject', review('Pod', pod()), { address: own.webhookAddress, trust });
    assert.equal((await ask(first.rootPem)).status, 200);
    const second = await CertificateAuthority.create();
    await ca.replace(second.material, 'the test');
    await waitFor('the new certificate', () => ask(second.rootPem).then(({ status }) => status === 200, () => false));
  } finally {
    await own.stop();
    rmSync(folder, { recursive: true, force: true });
  }
});

test('a request that comes too slowly, and what is no HTTP, are told so', async () => {
  const signer = await selfSignedRoot('test');
  const server = await WebhookServer.listen({
    listen: '127.0.0.1:0', signer, dnsNames: ['istiod.istio-system.svc'], requestTimeoutMs: 100, injection: () => DEFAULT_INJECTION, namespaceLabels: () => ({}), check: () => [], metrics: new WebhookMetrics(new Registry()), logger: pino({ level: 'silent' }),
  });
  try {
    const [host, port] = server.address.split(':');
    const answerTo = (text: string): Promise<string> =>
      new Promise((resolve, reject) => {
        let answer = '';
        const socket = connect({ host: host as string, port: Number(port), ca: signer.root.toString('pem'), servername: 'istiod.istio-system.svc' }, () => socket.write(text));
        socket.on('data', (chunk: Buffer) => (answer += chunk.toString('utf8')));
        socket.on('close', () => resolve(answer));
        socket.on('error', reject);
      });
    assert.match(await answerTo('POST /inject HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{'), /^HTTP\/1\.1 408 /);
    assert.match(await answerTo('hello\r\n\r\n'), /^HTTP\/1\.1 400 /);
  } finally {
    await server.close();
  }
});

test('the injection file is followed live; a wrong one leaves the last good one', async () => {
  const image = async (): Promise<string | undefined> => {
    const { response } = (await post('/inject', review('Pod', pod()))).body;
    return applyPatch(pod(), JSON.parse(Buffer.from(response?.patch ?? '', 'base64').toString('utf8')) as PatchOperation[]).spec.containers[1]?.image;
  };
  writeFileSync(join(folder, '.injection'), 'values: {proxyImage: "mine:2"}\n');
  await waitFor('the new image', async () => (await image()) === 'mine:2');
  writeFileSync(join(folder, '.injection'), 'values: {nothing: 1}\n');
  writeFileSync(join(folder, 'namespaces.yaml'), `${NAMESPACES}---\napiVersion: v1\nkind: Namespace\nmetadata: {name: later, labels: {istio-injection: enabled}}\n`);
  await waitFor('the new namespace', async () => (await post('/inject', review('Pod', pod(), { namespace: 'later' }))).body.response?.patch !== undefined);
  assert.equal(await image(), 'mine:2');
});
