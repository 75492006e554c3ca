// The server here is a stand-in for kube-apiserver, written for these tests: HTTPS that asks for a client certificate or a
// token, lists in pages, watches with bookmarks, and answers 410 to versions that it has forgotten. For a real one see test/kube/.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test, type TestContext } from 'node:test';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { issueServerCertificate } from '../../common/identity/server-certificate.js';
import { rootLogger } from '../../common/log.js';
import { Backoff, waitFor } from '../../common/retry.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import type { KubeObject } from '../../common/kube/types.js';
import { parseKubeconfig, readKubeconfig } from '../../common/kube/kubeconfig.js';
import { KubernetesSource, WORKLOAD_KINDS } from './kubernetes.js';
import { planSources, Sources } from './sources.js';

const logger = rootLogger.child({}, { level: 'silent' });
const FAST = (): Backoff => new Backoff({ initialMs: 5, maxMs: 50, factor: 1.5, jitter: 0 });
let ca: CertificateAuthority;
let tls: { cert: string; key: string };
let folder: string;

before(async () => {
  ca = await CertificateAuthority.create();
  const { certificatePem, privateKeyPem } = await issueServerCertificate(ca, { dnsNames: ['api.test'], ips: ['127.0.0.1'] });
  tls = { cert: certificatePem, key: privateKeyPem };
  folder = mkdtempSync(join(tmpdir(), 'up-pilot-kube-'));
});
after(() => rmSync(folder, { recursive: true, force: true }));

class ApiStandIn {
  readonly objects = new Map<string, KubeObject>();
  readonly requests: string[] = [];
  readonly #watches = new Map<ServerResponse, string>();
  #version = 100;
  #forgotten = 0;
  token = '';
  missing = new Set<string>();
  #server: Server | undefined;

  async listen(): Promise<this> {
    this.#server = createServer({ ...tls, ca: ca.rootPem, requestCert: true, rejectUnauthorized: false }, (request, response) => {
      const url = new URL(request.url!, 'https://api');
      const plural = url.pathname.split('/').at(-1)!;
      this.requests.push(`${plural}${url.search}`);
      const answer = (status: number, body: unknown): void => void response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
      const isTrusted = (request.socket as TLSSocket).authorized || (this.token !== '' && request.headers.authorization === `Bearer ${this.token}`);
      if (!isTrusted) return answer(401, { message: 'Unauthorized' });
      if (this.missing.has(plural)) return answer(404, { message: 'not found' });
      if (url.searchParams.has('watch')) {
        if (Number(url.searchParams.get('resourceVersion')) < this.#forgotten) return answer(410, { message: 'too old' });
        response.writeHead(200).flushHeaders();
        this.#watches.set(response, plural);
        response.on('close', () => this.#watches.delete(response));
        return;
      }
      const all = [...this.objects].filter(([key]) => key.startsWith(`${plural}/`)).map(([, object]) => ({ ...object, apiVersion: undefined, kind: undefined }));
      const from = Number(url.searchParams.get('continue') ?? 0);
      const to = from + Number(url.searchParams.get('limit'));
      answer(200, { kind: 'List', metadata: { resourceVersion: String(this.#version), ...(to < all.length ? { continue: String(to) } : {}) }, items: all.slice(from, to) });
    });
    await new Promise<void>((resolve) => this.#server!.listen(0, '127.0.0.1', resolve));
    return this;
  }

  get url(): string {
    return `https://127.0.0.1:${(this.#server!.address() as AddressInfo).port}`;
  }

  set(plural: string, object: KubeObject, tell = true): void {
    const key = `${plural}/${object.metadata.namespace ?? ''}/${object.metadata.name}`;
    const type = this.objects.has(key) ? 'MODIFIED' : 'ADDED';
    const stored = { ...object, metadata: { ...object.metadata, resourceVersion: String(++this.#version), managedFields: [{ manager: 'kubectl' }] } };
    this.objects.set(key, stored);
    if (tell) this.send(plural, { type, object: stored });
  }

  remove(plural: string, object: KubeObject): void {
    this.objects.delete(`${plural}/${object.metadata.namespace ?? ''}/${object.metadata.name}`);
    this.send(plural, { type: 'DELETED', object: { ...object, metadata: { ...object.metadata, resourceVersion: String(++this.#version) } } });
  }

  send(plural: string, event: unknown): void {
    for (const [response, watched] of this.#watches) if (watched === plural) response.write(`${JSON.stringify(event)}\n`);
  }

  bookmark(plural: string): string {
    const version = String((this.#version += 1_000));
    this.send(plural, { type: 'BOOKMARK', object: { kind: 'Pod', apiVersion: 'v1', metadata: { resourceVersion: version } } });
    return version;
  }

  /** Every watch breaks; with `forget` what came before is not known any more. */
  drop({ forget = false, orderly = false } = {}): void {
    if (forget) this.#forgotten = this.#version + 1;
    for (const response of this.#watches.keys()) {
      if (orderly) response.end();
      else response.socket?.destroy();
    }
    if (forget) this.#version += 2;
  }

  watching(plural: string): boolean {
    return [...this.#watches.values()].includes(plural);
  }

  async close(): Promise<void> {
    // Who is in the middle of a handshake comes after the first call.
    const closing = setInterval(() => this.#server?.closeAllConnections(), 10);
    await new Promise((resolve) => this.#server?.close(resolve));
    clearInterval(closing);
  }
}

async function standIn(t: TestContext): Promise<ApiStandIn> {
  const api = await new ApiStandIn().listen();
  t.after(() => api.close());
  return api;
}

const base64 = (text: string): string => Buffer.from(text).toString('base64');
const kubeconfig = (api: ApiStandIn, user: object): string => JSON.stringify({ 'current-context': 'c', contexts: [{ name: 'c', context: { cluster: 'k', user: 'u' } }], clusters: [{ name: 'k', cluster: { server: api.url, 'certificate-authority-data': base64(ca.rootPem) } }], users: [{ name: 'u', user }] });
const clientCertificate = async (): Promise<object> => {
  const { chainPem, privateKeyPem } = await ca.issue({ namespace: 'istio-system', serviceAccount: 'istiod' });
  return { 'client-certificate-data': base64(chainPem), 'client-key-data': base64(privateKeyPem) };
};
const pod = (name: string, v = '1'): KubeObject => ({ apiVersion: 'v1', kind: 'Pod', metadata: { name, namespace: 'shop', labels: { v } }, ...({ spec: { containers: [{ name: 'a', image: 'a' }] } } as object) });

interface Followed {
  source: KubernetesSource;
  state(): Record<string, string>;
  until(expected: Record<string, string>): Promise<void>;
  latest: ReadonlyMap<string, LoadedObject>;
}

async function follow(t: TestContext, api: ApiStandIn, user: object, pageSize = 500): Promise<Followed> {
  const server = parseKubeconfig(kubeconfig(api, user), { place: 'test', folder });
  const followed = { latest: new Map<string, LoadedObject>() as ReadonlyMap<string, LoadedObject> } as Followed;
  const source = new KubernetesSource({ server, cluster: 'east', kinds: WORKLOAD_KINDS, logger, settleMs: 5, pageSize, backoff: FAST, onChange: (objects) => (followed.latest = objects) });
  t.after(() => source.close());
  followed.source = source;
  followed.state = () => Object.fromEntries([...followed.latest.values()].map(({ object }) => [object.metadata.name, object.metadata.labels?.['v'] ?? '']));
  followed.until = (expected) => waitFor(JSON.stringify(expected), () => JSON.stringify(followed.state()) === JSON.stringify(expected), { everyMs: 5 }).then(() => undefined, () => assert.deepEqual(followed.state(), expected));
  await source.start();
  return followed;
}

test('KubernetesSource: lists in pages, then follows what comes, changes and goes; with a client certificate, without managedFields', async (t) => {
  const api = await standIn(t);
  for (const name of ['a', 'b', 'c']) api.set('pods', pod(name));
  const { state, until, ...followed } = await follow(t, api, await clientCertificate(), 2);
  assert.deepEqual(state(), { a: '1', b: '1', c: '1' });
  assert.ok(api.requests.includes('pods?limit=2&continue=2'));
  await waitFor('the watch', () => api.watching('pods'));
  api.set('pods', pod('b', '2'));
  api.remove('pods', pod('a'));
  await until({ b: '2', c: '1' });
  api.set('pods', pod('d'));
  await until({ b: '2', c: '1', d: '1' });
  void followed;
});

test('KubernetesSource: objects have their place in the cluster and are no longer than they are read', async (t) => {
  const api = await standIn(t);
  api.set('pods', pod('a'));
  const followed = await follow(t, api, await clientCertificate());
  const loaded = followed.latest.get('/Pod/shop/a')!;
  assert.equal(loaded.file, 'kubernetes://east/Pod/shop/a');
  assert.deepEqual([loaded.object.kind, loaded.object.apiVersion, 'managedFields' in loaded.object.metadata], ['Pod', 'v1', false]);
});

test('KubernetesSource: a watch that breaks or ends is taken up at the newest version, a bookmark\'s too, with no new list', async (t) => {
  const api = await standIn(t);
  api.set('pods', pod('a'));
  const { until } = await follow(t, api, await clientCertificate());
  await waitFor('the watch', () => api.watching('pods'));
  const version = api.bookmark('pods');
  // Whatever stands behind the bookmark in the same stream was read after it.
  api.set('pods', pod('a', '2'));
  await until({ a: '2' });
  for (const orderly of [false, true]) {
    const before = api.requests.length;
    api.drop({ orderly });
    await waitFor('the next watch', () => api.watching('pods') && api.requests.slice(before).some((line) => line.startsWith('pods?watch')), { everyMs: 5 });
    const again = api.requests.slice(before).filter((line) => line.startsWith('pods?'));
    assert.ok(again.every((line) => line.includes(`resourceVersion=${Number(version) + 1}`)), again.join());
  }
});

test('KubernetesSource: a version that is too old, as an answer or within a watch, begins with a new list; what went meanwhile is gone', async (t) => {
  const api = await standIn(t);
  api.set('pods', pod('a'));
  api.set('pods', pod('b'));
  const { until } = await follow(t, api, await clientCertificate());
  await waitFor('the watch', () => api.watching('pods'));
  api.objects.delete('pods/shop/a');
  api.set('pods', pod('b', '2'), false);
  api.drop({ forget: true });
  await until({ b: '2' });
  await waitFor('the watch', () => api.watching('pods'));
  api.set('pods', pod('c'), false);
  api.send('pods', { type: 'ERROR', object: { kind: 'Status', code: 410, message: 'too old resource version' } });
  await until({ b: '2', c: '1' });
});

test('KubernetesSource: an object that is refused stays as it was and is told with its place; kinds that the server lacks are none', async (t) => {
  const api = await standIn(t);
  api.missing.add('endpointslices');
  api.set('pods', pod('a'));
  const { until, source } = await follow(t, api, await clientCertificate());
  await waitFor('the watch', () => api.watching('pods'));
  api.set('pods', { ...pod('a'), metadata: { name: 'a', namespace: 'shop', labels: { v: 7 as unknown as string } } });
  api.set('pods', pod('b'));
  await until({ a: '1', b: '1' });
  assert.deepEqual(source.errors().map(({ file, field }) => [file, field]), [['kubernetes://east/Pod/shop/a', 'metadata.labels.v']]);
  api.set('pods', pod('a', '2'));
  await until({ a: '2', b: '1' });
  assert.deepEqual(source.errors(), []);
});

test('KubernetesSource: a token is read from its file each time; without a good one nothing is read, and it says so', async (t) => {
  const api = await standIn(t);
  const tokenFile = join(folder, 'token');
  writeFileSync(tokenFile, 'old\n');
  api.token = 'new';
  const server = parseKubeconfig(kubeconfig(api, { tokenFile }), { place: 'test', folder });
  const source = new KubernetesSource({ server, cluster: 'east', kinds: WORKLOAD_KINDS, logger, backoff: FAST, startMs: 3_000, onChange: () => undefined });
  t.after(() => source.close());
  await assert.rejects(source.start(), { code: 'UNDERPASS_KUBERNETES', message: /401/ });
  writeFileSync(tokenFile, 'new\n');
  await waitFor('the watch', () => api.watching('pods'));
});

test('parseKubeconfig: what is wrong is named; one from a Secret may name neither files nor programs', async (t) => {
  const api = await standIn(t);
  const refused = (text: string, message: RegExp): void => void assert.throws(() => parseKubeconfig(text, { place: 'of remote cluster x' }), { code: 'UNDERPASS_KUBECONFIG', message });
  refused('clusters: [', /of remote cluster x: not YAML/);
  refused('{}', /found no context ""/);
  refused(kubeconfig(api, { exec: { command: 'sh' } }), /exec is not supported/);
  refused(kubeconfig(api, { tokenFile: '/etc/shadow' }), /found the file \/etc\/shadow, expected the data itself/);
  await assert.rejects(readKubeconfig(join(folder, 'nope')), { code: 'UNDERPASS_KUBECONFIG' });
});

test('Sources: a remote cluster joins by a Secret with its kubeconfig, and leaves with it', async (t) => {
  const [primary, remote] = [await standIn(t), await standIn(t)];
  const file = join(folder, 'primary.kubeconfig');
  writeFileSync(file, kubeconfig(primary, await clientCertificate()));
  primary.set('pods', pod('a', 'primary'));
  remote.set('pods', pod('a', 'remote'));
  remote.set('secrets', { apiVersion: 'v1', kind: 'Secret', metadata: { name: 'x', namespace: 'shop' } });
  const plan = planSources([]);
  let latest: ReadonlyMap<string, LoadedObject> = new Map();
  const sources = new Sources({ plan, apiServer: await readKubeconfig(file), logger, onChange: (objects) => (latest = objects) });
  t.after(() => sources.close());
  await sources.start();
  assert.deepEqual([...latest.keys()], ['/Pod/shop/a']);
  await waitFor('the watch', () => primary.watching('secrets'));
  const secret = { apiVersion: 'v1', kind: 'Secret', metadata: { name: 'remote', namespace: 'istio-system', labels: { 'istio/multiCluster': 'true' } }, data: { far: base64(kubeconfig(remote, await clientCertificate())) } };
  primary.set('secrets', secret);
  await waitFor('the remote pod', () => latest.has('@far//Pod/shop/a'));
  assert.deepEqual(plan.clusters, { far: { network: '' } });
  assert.equal(latest.get('@far//Pod/shop/a')?.object.metadata.labels?.['v'], 'remote');
  assert.ok(!remote.requests.some((line) => line.startsWith('secrets')), 'Secrets of other clusters are not read');
  primary.remove('secrets', secret);
  await waitFor('its end', () => !latest.has('@far//Pod/shop/a') && !remote.watching('pods'));
});
