// Several pilots of one cluster, as the Deployment runs them: one CA, one answer to every client, one that writes; and what becomes of the mesh when one of them ends.
import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { parseAllDocuments, stringify } from 'yaml';
import { createCertificateRequest } from '../../common/identity/ca.js';
import { projectRoot } from '../../common/paths.js';
import { sleep, waitFor } from '../../common/retry.js';
import type { Condition, ConfigMap, KubeGateway, KubeObject, Pod, Secret } from '../../common/kube/types.js';
import { bearer, createCertificate } from '../../pilot/ca/testing.js';
import { webhookConfigurations } from '../../pilot/injector/configurations.js';
import { KubeCluster } from './cluster.js';
import { KubeNode } from './node.js';
import { Relay } from './relay.js';
import { Replica } from './replica.js';
import { MeshView } from './view.js';

const WAIT = { everyMs: 50 };
const GATEWAY_API = 'gateway.networking.k8s.io/v1';

let folder: string;
let cluster: KubeCluster;
let node: KubeNode;
let first: Replica;
let second: Replica;
/** What Services do: one address of each of the pilots' ports. */
const services = { plain: new Relay(), secure: new Relay(), webhooks: new Relay() };
let addresses: Record<keyof typeof services, string>;

const manifest = (name: string): string => readFileSync(join(projectRoot, 'deploy', name), 'utf8');
const echo = `
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {containers: [{name: echo, image: echo, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {containers: [{name: curl, image: curl}]}
---`;
const service = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.7.7, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---`;
const endpoints = (): string => stringify({ apiVersion: 'discovery.k8s.io/v1', kind: 'EndpointSlice', metadata: { name: 'web-1', namespace: 'shop', labels: { 'kubernetes.io/service-name': 'web' } }, addressType: 'IPv4', endpoints: [{ addresses: [node.pod('shop', 'web-1').ips[0]], nodeName: node.name, conditions: { ready: true }, targetRef: { kind: 'Pod', name: 'web-1', namespace: 'shop' } }], ports: [{ name: 'http', port: 8080, protocol: 'TCP' }] });
const route = (text: string): string => `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [{match: [{uri: {prefix: /said}}], directResponse: {status: 210, body: {string: ${text}}}}, {route: [{destination: {host: web}}]}]}
`;
const said = async (): Promise<string> => (await node.curl('shop/client', 'http://10.96.7.7/said', '-H', 'host: web.shop.svc.cluster.local')).body;
const gateway = (name: string): string => stringify({ apiVersion: GATEWAY_API, kind: 'Gateway', metadata: { name, namespace: 'shop' }, spec: { gatewayClassName: 'istio', listeners: [{ name: 'http', port: 80, protocol: 'HTTP' }] } });
const conditionsOf = async (name: string): Promise<Condition[]> => (await cluster.get<KubeGateway>(GATEWAY_API, 'Gateway', { namespace: 'shop', name }))?.status?.conditions ?? [];

async function startReplica(): Promise<Replica> {
  return (await Replica.start(cluster, { args: ['--drain-time', '2s'] })).ready();
}

/** The first is asked first, as long as it takes connections. */
function lead(...replicas: Replica[]): void {
  for (const [name, relay] of Object.entries(services)) relay.ports = replicas.map(({ ports }) => ports[name as keyof typeof services]);
}

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-kube-replicas-'));
  cluster = await KubeCluster.start();
  await cluster.namespace('istio-system');
  await cluster.apply(manifest('pilot-rbac.yaml'));
  await cluster.apply(manifest('agent-rbac.yaml'));
  await cluster.namespace('shop', { 'underpass.io/mode': 'node' });
  await cluster.namespace('injected', { 'istio-injection': 'enabled' });
  node = new KubeNode(cluster, 'replicas');
  await node.up();
  await node.run(echo);
  await cluster.apply(`${service}\n${endpoints()}`);
  await cluster.apply(route('one'));
  // Both at once: of two CAs that are made one has to win.
  [first, second] = (await Promise.all([startReplica(), startReplica()])) as [Replica, Replica];
  const listening = await Promise.all(Object.entries(services).map(async ([name, relay]) => [name, `127.0.0.1:${await relay.listen()}`]));
  addresses = Object.fromEntries(listening) as typeof addresses;
});
after(async () => {
  await node?.down();
  await Promise.all([first, second].map((replica) => replica?.end()));
  for (const relay of Object.values(services)) relay.close();
  await cluster?.close();
  rmSync(folder, { recursive: true, force: true });
});

const roots = async (): Promise<string> => (await waitFor('the roots', async () => (await cluster.get<ConfigMap>('v1', 'ConfigMap', { namespace: 'shop', name: 'istio-ca-root-cert' }))?.data?.['root-cert.pem'], WAIT));

test('one CA: pilots that start together share the key in a Secret, and certificates of either are of the same root; no log has it', async () => {
  const secret = (await cluster.get<Secret & { type: string }>('v1', 'Secret', { namespace: 'istio-system', name: 'underpass-ca' }))!;
  assert.equal(secret.type, 'underpass.io/ca-root');
  const root = Buffer.from(secret.data!['ca-cert.pem']!, 'base64').toString();
  assert.equal(await roots(), root);
  const pod = ((await cluster.apply(stringify({ apiVersion: 'v1', kind: 'Pod', metadata: { name: 'caller', namespace: 'istio-system' }, spec: { containers: [{ name: 'app', image: 'app' }] } }))) as Pod[])[0]!;
  const token = await cluster.token('istio-system', 'default', { audience: 'istio-ca', pod });
  for (const { ports } of [first, second]) {
    const { requestPem } = await createCertificateRequest();
    const { chain, error } = await createCertificate({ csr: requestPem }, { address: `127.0.0.1:${ports.secure}`, rootPem: root, metadata: bearer(token) });
    assert.equal(error, undefined);
    assert.ok(new X509Certificate(chain![0]!).verify(new X509Certificate(root).publicKey));
  }
  const key = Buffer.from(secret.data!['ca-key.pem']!, 'base64').toString().split('\n')[1]!;
  for (const { log } of [first, second]) assert.ok(!log.includes(key) && !log.includes('PRIVATE KEY'));
});

test('one answer: either pilot says the same to a client, resource by resource, and a change arrives from both; one of them writes', async () => {
  const views = [first, second].map(({ ports }) => new MeshView(`127.0.0.1:${ports.plain}`));
  try {
    const state = (view: MeshView): unknown => ({ clusters: view.clusters(), endpoints: view.endpoints(), routes: view.routes() });
    await waitFor('both', () => views.every((view) => view.routes().includes('"one"') && view.endpoints().length === 1), WAIT);
    assert.deepEqual(state(views[0]!), state(views[1]!));
    const versions = views.map(({ client }) => new Map(client.responses.flatMap(({ resources }) => resources.map(({ name, version }) => [name, version]))));
    assert.deepEqual(versions[0], versions[1], 'versions too: what a client holds from one is not sent again by the other');
    await cluster.apply(route('two'));
    await waitFor('the change', () => views.every((view) => view.routes().includes('"two"')), WAIT);
  } finally {
    for (const view of views) view.close();
  }
  await waitFor('a writer', async () => (await first.isWriter()) || (await second.isWriter()), WAIT);
  assert.notEqual(await first.isWriter(), await second.isWriter());
  // What follows is about the one that writes.
  if (await second.isWriter()) [first, second] = [second, first];
});

test('an agent behind the Service has the mesh and the certificates of its pods from one of the pilots', async () => {
  lead(first, second);
  const agentPod = ((await cluster.apply(stringify({ apiVersion: 'v1', kind: 'Pod', metadata: { name: 'agent', namespace: 'underpass-system' }, spec: { serviceAccountName: 'underpass-agent', nodeName: node.name, containers: [{ name: 'agent', image: 'agent' }] } }))) as Pod[])[0]!;
  const file = (name: string, text: string): string => {
    writeFileSync(join(folder, name), text, { mode: 0o600 });
    return join(folder, name);
  };
  const root = file('root.pem', await roots());
  const token = file('token', await cluster.token('underpass-system', 'underpass-agent', { audience: 'istio-ca', pod: agentPod }));
  node.startAgent(['--kubeconfig', file('kubeconfig', await cluster.kubeconfigOf('underpass-system', 'underpass-agent')), '--discovery', addresses.secure, '--discovery-root', root, '--ca', addresses.secure, '--ca-root', root, '--ca-token', token]);
  await node.settles('shop', 'client', 'node');
  assert.equal(await said(), 'two');
});

/** Requests one after the other while `event` happens. @returns what was answered otherwise than expected */
async function flowsDuring(event: () => Promise<void>): Promise<string[]> {
  let isOver = false;
  const failures: string[] = [];
  let count = 0;
  const asking = (async () => {
    while (!isOver) {
      const { status, body } = await node.curl('shop/client', 'http://10.96.7.7/said', '-H', 'host: web.shop.svc.cluster.local').catch((error: unknown) => ({ status: 0, body: String(error) }));
      count++;
      if (status !== 210) failures.push(`${status} ${body}`);
      await sleep(20);
    }
  })();
  try {
    await event();
  } finally {
    isOver = true;
    await asking;
  }
  assert.ok(count > 5, 'nothing was asked');
  return failures;
}

test('the pilot that writes is killed: no request fails, agents go on with the other one, which takes over and writes', async () => {
  const failures = await flowsDuring(async () => {
    await first.end('SIGKILL');
    await cluster.apply(route('three'));
    await waitFor('the change, from the other pilot', async () => (await said()) === 'three', WAIT);
    await waitFor('the other pilot to write', () => second.isWriter(), WAIT);
    await cluster.apply(gateway('late'));
    await waitFor('its status', async () => (await conditionsOf('late')).some(({ type, status }) => type === 'Accepted' && status === 'True'), WAIT);
  });
  assert.deepEqual(failures, []);
});

test('a pilot that starts again is the same CA; one that is told to stop hands over: not ready, no longer the writer, its clients elsewhere, no request and no injection lost', async () => {
  const before = await roots();
  first = await startReplica();
  assert.equal(await roots(), before);
  lead(second, first);
  const selected = { matchLabels: { 'kubernetes.io/metadata.name': 'injected' } };
  for (const object of webhookConfigurations({ revision: 'default', caPem: before, target: { url: `https://${addresses.webhooks}` } }) as (KubeObject & { webhooks: object[] })[]) await cluster.apply(stringify({ ...object, webhooks: object.webhooks.map((webhook) => ({ ...webhook, namespaceSelector: selected })) }));
  let pods = 0;
  const injected = async (): Promise<boolean> => {
    const [pod] = (await cluster.apply(stringify({ apiVersion: 'v1', kind: 'Pod', metadata: { name: `pod-${pods++}`, namespace: 'injected' }, spec: { containers: [{ name: 'app', image: 'app' }] } }))) as [Pod];
    return pod.spec.containers.some(({ name }) => name === 'istio-proxy');
  };
  await waitFor('injection', injected, WAIT);
  const sawNotReady: string[] = [];
  let isOver = false;
  try {
    const failures = await flowsDuring(async () => {
      const creating = (async () => {
        while (!isOver) assert.ok(await injected(), 'a pod without its proxy');
      })();
      const looking = (async () => {
        while (!isOver) {
          const { code, text } = await second.get('/ready');
          if (code === 503) sawNotReady.push(text.trim());
          await sleep(100);
        }
      })();
      await second.end();
      await waitFor('the other pilot to write', () => first.isWriter(), WAIT);
      await cluster.apply(route('four'));
      await waitFor('the change, from the other pilot', async () => (await said()) === 'four', WAIT);
      isOver = true;
      await Promise.all([creating, looking]);
    });
    assert.deepEqual(failures, []);
    assert.ok(sawNotReady.length > 0 && sawNotReady.every((text) => text === 'stopping'), sawNotReady.join());
  } finally {
    isOver = true;
  }
});

test('the API server away at the start: pilot lives, is not ready and says why; it begins when the server is back, and can be told to stop before', async () => {
  const token = await cluster.token('istio-system', 'istiod');
  await cluster.stopApi();
  const waiting = await Replica.start(cluster, { token });
  const ended = await Replica.start(cluster, { token });
  try {
    await waitFor('its word', async () => /ECONNREFUSED/.test((await waiting.get('/ready')).text), WAIT);
    assert.deepEqual(await waiting.get('/live'), { code: 200, text: 'live\n' });
    await waitFor('the other', async () => (await ended.get('/live')).code === 200, WAIT);
    await ended.end();
    await cluster.startApi();
    await waiting.ready();
  } finally {
    await Promise.all([waiting.end(), ended.end()]);
  }
});

test('a right that is missing to read: not ready, and the page and the log have the rule and its manifest', async () => {
  const role = parseAllDocuments(manifest('pilot-rbac.yaml')).map((document) => document.toJS() as KubeObject & { rules: { resources: string[] }[] }).find(({ kind }) => kind === 'ClusterRole')!;
  await cluster.apply([
    { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name: 'short', namespace: 'istio-system' } },
    { ...role, metadata: { name: 'short' }, rules: role.rules.map((rule) => ({ ...rule, resources: rule.resources.filter((resource) => resource !== 'endpointslices') })).filter(({ resources }) => resources.length > 0) },
    { apiVersion: role.apiVersion, kind: 'ClusterRoleBinding', metadata: { name: 'short' }, roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: 'short' }, subjects: [{ kind: 'ServiceAccount', name: 'short', namespace: 'istio-system' }] },
  ].map((object) => stringify(object)).join('---\n'));
  const short = await Replica.start(cluster, { token: await cluster.token('istio-system', 'short') });
  try {
    const rule = /deploy\/pilot-rbac\.yaml:\d+ has the rule that is missing: \{apiGroups: \[\\?"discovery\.k8s\.io\\?"\], resources: \[endpointslices\], verbs: \[list\]\}/;
    await waitFor('the page', async () => rule.test((await short.get('/ready')).text), WAIT);
    assert.match(short.log, rule);
  } finally {
    await short.end();
  }
});
