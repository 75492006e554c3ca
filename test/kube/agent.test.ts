// The node agent takes its pods from a real API server: a namespace's label enrols them, and nothing that the server does stops what flows.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildDir, projectRoot } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { KubeCluster } from './cluster.js';
import { KubeNode } from './node.js';
import { pilotKubeconfig, startPilot, type KubePilot } from './pilot.js';

const WAIT = { everyMs: 50 };
const AGENT_USER = 'system:serviceaccount:underpass-system:underpass-agent';

let folder: string;
let cluster: KubeCluster;
let kube: KubePilot;
let node: KubeNode;
let kubeconfig: string;

const echo = (name: string, namespace = 'shop'): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {app: web, version: ${name}}}
spec: {containers: [{name: echo, image: echo, ports: [{name: http, containerPort: 8080}]}]}
---`;
const client = (namespace: string, more = ''): string => `
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: ${namespace}, labels: {app: client}}
spec: {${more}containers: [{name: curl, image: curl}]}
---`;
const service = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.7.7, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---`;
const route = (text: string): string => `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [{match: [{uri: {prefix: /said}}], directResponse: {status: 210, body: {string: ${text}}}}, {route: [{destination: {host: web}}]}]}
---`;
/** What the endpoint slice controller makes of it. */
const endpoints = (...pods: string[]): string => `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: ${JSON.stringify(pods.map((name) => ({ addresses: [node.pod('shop', name).ips[0]], nodeName: node.name, conditions: { ready: true }, targetRef: { kind: 'Pod', name, namespace: 'shop' } })))}
ports: [{name: http, port: 8080, protocol: TCP}]
---`;

const label = (namespace: string, value: string | null): Promise<void> => cluster.merge('v1', 'Namespace', { name: namespace }, { metadata: { labels: { 'underpass.io/mode': value } } });
const said = async (from = 'shop/client'): Promise<string> => {
  const { status, body } = await node.curl(from, 'http://10.96.7.7/said', '-H', 'host: web.shop.svc.cluster.local');
  return status === 210 ? body : `status ${status}`;
};

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-kube-agent-'));
  cluster = await KubeCluster.start();
  const pilotConfig = await pilotKubeconfig(cluster);
  await cluster.apply(readFileSync(join(projectRoot, 'deploy', 'agent-rbac.yaml'), 'utf8'));
  kubeconfig = join(folder, 'agent.kubeconfig');
  writeFileSync(kubeconfig, await cluster.kubeconfigOf('underpass-system', 'underpass-agent'), { mode: 0o600 });
  for (const name of ['shop', 'plain']) await cluster.namespace(name, name === 'shop' ? { 'underpass.io/mode': 'node' } : {});
  node = new KubeNode(cluster, 'agent');
  await node.up();
  await node.run(echo('web-1') + client('shop') + client('plain') + client('shop', 'hostNetwork: true, ').replace('name: client', 'name: host'));
  await cluster.apply(service + endpoints('web-1') + route('first'));
  kube = await startPilot(pilotConfig, { listen: ['127.0.0.1:0'] });
  node.startAgent(['--kubeconfig', kubeconfig, '--discovery', kube.pilot.addresses[0]!]);
  await node.settles('shop', 'client', 'node');
});
after(async () => {
  await node?.down();
  await kube?.pilot.stop();
  await cluster?.close();
  rmSync(folder, { recursive: true, force: true });
});

test('pods of a labelled namespace are enrolled, those of others and of the host\'s network are not; routes are those of the API', async () => {
  assert.equal(await said(), 'first');
  const { pods } = await node.status();
  assert.deepEqual(pods.map(({ namespace, name, mode }) => `${namespace}/${name} ${mode}`).sort(), ['plain/client off', 'shop/client node', 'shop/host off', 'shop/web-1 node']);
  assert.match(pods.find(({ name }) => name === 'host')!.reason ?? '', /hostNetwork/);
});

test('the agent asks for its own node\'s pods, and for nothing that its manifest does not let it', () => {
  const requests = cluster.requests().filter(({ user }) => user === AGENT_USER);
  assert.deepEqual(requests.filter(({ code }) => code === 403), []);
  assert.deepEqual([...new Set(requests.map(({ verb, resource }) => `${verb} ${resource}`))].sort(), ['list namespaces', 'list pods', 'watch namespaces', 'watch pods']);
  for (const { uri } of requests.filter(({ resource }) => resource === 'pods')) assert.match(decodeURIComponent(uri), new RegExp(`fieldSelector=spec.nodeName=${node.name}`));
});

test('a namespace\'s label enrols its pods while they run, and taking it away leaves them alone', async () => {
  await label('plain', 'node');
  await node.settles('plain', 'client', 'node');
  assert.equal(await said('plain/client'), 'first');
  await label('plain', null);
  await node.settles('plain', 'client', 'off');
});

test('a pod\'s own label beats its namespace\'s; an unknown value counts as off', async () => {
  const own = (value: string | null): Promise<void> => cluster.merge('v1', 'Pod', { namespace: 'plain', name: 'client' }, { metadata: { labels: { 'underpass.io/mode': value } } });
  await own('node');
  await node.settles('plain', 'client', 'node');
  await own('nodes');
  await node.settles('plain', 'client', 'off');
  await own(null);
});

test('a pod that is made again under its name is another one: it is enrolled, and serves', async () => {
  const before = node.pod('shop', 'web-1').uid;
  await node.remove('shop', 'web-1');
  await node.run(echo('web-1'));
  await cluster.apply(endpoints('web-1'));
  await node.settles('shop', 'web-1', 'node');
  assert.notEqual(node.pod('shop', 'web-1').uid, before);
  await waitFor('an answer of the new pod', async () => (await node.curl('shop/client', 'http://10.96.7.7/', '-H', 'host: web')).status === 200, WAIT);
});

test('without the API server all goes on as it was, and what changed meanwhile is caught up with', async () => {
  await cluster.stopApi();
  await waitFor('the agent to notice', async () => ((await node.status()).workloads.problem ?? '') !== '', WAIT);
  assert.equal(await said(), 'first');
  await cluster.startApi();
  await label('plain', 'node');
  await node.settles('plain', 'client', 'node');
  await label('plain', null);
  await node.settles('plain', 'client', 'off');
  assert.equal((await node.status()).workloads.problem, undefined);
});

test('a version that is too old to watch from (410) is a new list, and no pod is left out', async () => {
  await cluster.stopApi();
  await cluster.startApi();
  await label('plain', 'off');
  await cluster.compact();
  await label('plain', 'node');
  await node.settles('plain', 'client', 'node');
  await label('plain', null);
  await node.settles('plain', 'client', 'off');
});

test('a right that is missing is named, with the manifest that has it, and nothing stops', async () => {
  await cluster.delete('rbac.authorization.k8s.io/v1', 'ClusterRoleBinding', { name: 'underpass-agent' });
  await cluster.stopApi();
  await cluster.startApi();
  const problem = await waitFor('the agent to be refused', async () => /cannot (list|watch) resource "(pods|namespaces)".*deploy\/agent-rbac\.yaml/.exec((await node.status()).workloads.problem ?? '')?.[0], WAIT);
  assert.ok(problem);
  assert.equal(await said(), 'first');
  await cluster.apply(readFileSync(join(projectRoot, 'deploy', 'agent-rbac.yaml'), 'utf8'));
  await waitFor('the agent to be let in', async () => (await node.status()).workloads.problem === undefined, WAIT);
});

test('CNI: the first thing that a program of a new pod sends is captured; a pod of another namespace is let start at once', async () => {
  const pod = await node.starting('shop', 'newborn');
  const from = (): Promise<string> => run(join(buildDir, 'underpass-exec'), ['--cgroup', pod.cgroup, '--netns', pod.netns, '--', 'curl', '-s', '--max-time', '30', '-H', 'host: web', 'http://10.96.7.7/said'], { okCodes: [0, 7] }).then(({ stdout }) => stdout);
  assert.equal(await from(), '', 'before, there is no way to anywhere');
  const { code, answer } = await node.addNetwork(pod, '10.99.0.5');
  assert.deepEqual([code, answer.ips], [0, [{ address: '10.99.0.5/24' }]], JSON.stringify(answer));
  assert.equal(await from(), 'first');
  assert.deepEqual((await node.status()).pods.filter(({ name }) => name === 'newborn').map(({ mode, state, ips }) => [mode, state, ips]), [['node', 'enrolled', ['10.99.0.5']]]);
  const other = await node.starting('plain', 'stranger');
  assert.equal((await node.addNetwork(other, '10.99.0.6')).code, 0);
  assert.deepEqual((await node.status()).pods.filter(({ name }) => name === 'stranger').map(({ mode }) => mode), ['off']);
});

test('CNI: while no agent answers, a pod of a labelled namespace waits, and one of another goes on', async () => {
  await node.stopAgent();
  const waiting = await node.addNetwork(await node.starting('shop', 'waiting'), '10.99.0.7');
  assert.deepEqual([waiting.code, waiting.answer.code], [1, 11]);
  assert.equal((await node.addNetwork(await node.starting('plain', 'going'), '10.99.0.8')).code, 0);
  node.startAgent(['--kubeconfig', kubeconfig, '--discovery', kube.pilot.addresses[0]!]);
  await node.settles('shop', 'client', 'node');
});

test('an agent that starts while the API server is away serves from what the kernel has, and goes on when it is back', async () => {
  await node.stopAgent();
  assert.equal(await said(), 'first');
  await cluster.stopApi();
  node.startAgent(['--kubeconfig', kubeconfig, '--discovery', kube.pilot.addresses[0]!]);
  await waitFor('the new agent', () => node.status().catch(() => undefined), WAIT);
  assert.equal(await said(), 'first');
  await cluster.startApi();
  await node.settles('shop', 'client', 'node');
  assert.equal(await said(), 'first');
});
