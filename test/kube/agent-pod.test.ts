// The node agent with the arguments, the account and the rights of its DaemonSet, under a real API server: what it asks for, what it tells probes, and what it leaves when it is uninstalled.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { parseAllDocuments, stringify } from 'yaml';
import { instancePaths } from '../../agent/index.js';
import { TestLauncher } from '../../agent/testing/launcher.js';
import { installationObjects } from '../../cli/install/objects.js';
import { readValues } from '../../cli/install/values.js';
import { KubeClient } from '../../common/kube/client.js';
import { parseKubeconfig } from '../../common/kube/kubeconfig.js';
import type { KubeObject } from '../../common/kube/types.js';
import { projectRoot } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { KubeCluster, type AuditedRequest } from './cluster.js';
import { KubeNode } from './node.js';
import { pilotKubeconfig, startPilot, type KubePilot } from './pilot.js';

const WAIT = { everyMs: 50 };
const AGENT_USER = 'system:serviceaccount:underpass-system:underpass-agent';
const DAEMON_SET = { namespace: 'underpass-system', name: 'underpass-agent' };
const NETWORK = { cniVersion: '1.0.0', name: 'net', plugins: [{ type: 'bridge' }] };

const objects = installationObjects(readValues([], ['controlPlane=istiod']));

let folder: string;
let cluster: KubeCluster;
let kube: KubePilot;
let node: KubeNode;
let launcher: TestLauncher;
let args: string[];
let kubeconfig: string;
let readyFile: string;

const file = (name: string, text: string): string => {
  const path = join(folder, name);
  writeFileSync(path, text, { mode: 0o600 });
  return path;
};
const pod = (name: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: shop, labels: {app: ${name}}}
spec: {containers: [{name: ${name === 'web' ? 'echo, image: echo' : 'curl, image: curl'}}]}
---`;
const plugins = (): string[] => (JSON.parse(readFileSync(join(folder, 'net.d', '10-net.conflist'), 'utf8')) as typeof NETWORK).plugins.map(({ type }) => type);
const start = (): void => node.startAgent(['--kubeconfig', kubeconfig, ...args]);
const folderOfAgent = (): string => instancePaths({ instance: node.instance }).folder;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-kube-pod-'));
  cluster = await KubeCluster.start();
  const pilotConfig = await pilotKubeconfig(cluster);
  await cluster.apply(objects.map((object) => stringify(object)).join('---\n'));
  await cluster.namespace('shop', { 'underpass.io/mode': 'node' });
  const tokenReview = new KubeClient(parseKubeconfig(pilotConfig, { place: 'of the test' }));
  kube = await startPilot(pilotConfig, { security: { listen: ['127.0.0.1:0'], hosts: ['localhost'], tokenReview } });
  node = new KubeNode(cluster, 'pod');
  await node.up();
  await cluster.namespace('odd');
  await node.run(pod('client') + pod('web') + pod('other').replace('namespace: shop', 'namespace: odd'));
  const [own] = await cluster.apply(stringify({ apiVersion: 'v1', kind: 'Pod', metadata: { name: 'underpass-agent-1', namespace: 'underpass-system', labels: { app: 'underpass-agent' } }, spec: { nodeName: node.name, hostNetwork: true, serviceAccountName: 'underpass-agent', containers: [{ name: 'agent', image: 'underpass' }] } }));
  mkdirSync(join(folder, 'net.d'));
  file('net.d/10-net.conflist', JSON.stringify(NETWORK));
  kubeconfig = file('kubeconfig', await cluster.kubeconfigOf('underpass-system', 'underpass-agent'));
  readyFile = join(folder, 'ready');
  launcher = await TestLauncher.start(join(folder, 'launcher.sock'));
  // Where things are on this machine.
  const places: Record<string, string> = {
    '--cni-conf-dir': join(folder, 'net.d'),
    '--cni-bin-dir': join(folder, 'bin'),
    '--envoy-launcher': launcher.socketPath,
    '--ready-file': readyFile,
    '--alive-file': join(folder, 'alive'),
    '--metrics-address': '127.0.0.1:0',
    '--discovery': kube.pilot.secureAddresses[0]!.replace('127.0.0.1', 'localhost'),
    '--discovery-root': file('root-cert.pem', kube.pilot.ca!.rootPem),
    '--ca-token': file('token', await cluster.token('underpass-system', 'underpass-agent', { audience: 'istio-ca', pod: own! })),
  };
  const { spec } = objects.find(({ kind }) => kind === 'DaemonSet') as unknown as { spec: { template: { spec: { containers: { args: string[] }[] } } } };
  const [command, ...given] = spec.template.spec.containers[0]!.args;
  assert.equal(command, 'agent');
  args = given.flatMap((word, index) => {
    const [option = '', inline] = word.split('=');
    if (option === '--run-dir' || given[index - 1] === '--run-dir') return [];
    const place = places[option];
    if (place !== undefined) return [option, place];
    return inline === undefined && places[given[index - 1] ?? ''] !== undefined ? [] : [word];
  });
});
after(async () => {
  await node?.down();
  await launcher?.kill();
  await kube?.pilot.stop();
  await cluster?.close();
  rmSync(folder, { recursive: true, force: true });
});

test('the file for probes is there when the agent is ready, and goes when it ends; its DaemonSet is there, so Envoy and the CNI plugin stay', async () => {
  start();
  await node.settles('shop', 'client', 'node');
  await waitFor('the file', () => existsSync(readyFile), WAIT);
  await waitFor('the plugin', () => plugins().includes('underpass-cni'), WAIT);
  await waitFor('the pod to be announced', async () => (await cluster.get<KubeObject>('v1', 'Pod', { namespace: 'shop', name: 'web' }))?.metadata.annotations?.['ambient.istio.io/redirection'] === 'enabled', WAIT);
  // An Event, and with the next the count of it.
  const mode = (value: string | null): Promise<void> => cluster.merge('v1', 'Namespace', { name: 'odd' }, { metadata: { labels: { 'underpass.io/mode': value } } });
  const counted = (): AuditedRequest[] => cluster.requests().filter(({ user, verb, resource }) => user === AGENT_USER && resource === 'events' && verb === 'patch');
  await mode('nodes');
  await waitFor('an Event', () => cluster.requests().some(({ user, verb, resource }) => user === AGENT_USER && resource === 'events' && verb === 'create'), WAIT);
  // Within half a minute it counts as the same change, which another node has told of.
  const [event] = (await cluster.client.request<{ items: KubeObject[] }>('GET', '/api/v1/namespaces/odd/events')).items;
  await cluster.merge('v1', 'Event', { namespace: 'odd', name: event!.metadata.name }, { lastTimestamp: '2026-01-01T00:00:00Z' });
  await mode(null);
  await waitFor('the agent to hear of it', async () => (await node.status()).pods.find(({ name }) => name === 'other')?.reason === undefined, WAIT);
  await mode('nodes');
  await waitFor('its count', () => counted().length > 0, WAIT);
  // Kubelet asks for a pod that the API server does not know any more.
  const gone = await node.starting('shop', 'gone');
  await cluster.client.request('DELETE', '/api/v1/namespaces/shop/pods/gone', { body: { gracePeriodSeconds: 0 } });
  await waitFor('the agent to hear of it', async () => !(await node.status()).pods.some(({ name }) => name === 'gone'), WAIT);
  await node.addNetwork(gone, '10.99.0.9');
  const { envoy } = (await node.status()).proxy;
  assert.equal(await node.stopAgent(), 0);
  assert.ok(!existsSync(readyFile));
  assert.ok(plugins().includes('underpass-cni'));
  assert.ok(envoy.pid !== undefined && existsSync(`/proc/${envoy.pid}`));
});

test('while it can\'t be known whether the DaemonSet is there, all stays as well, and the exit code says that the node is not clean', async () => {
  start();
  await node.settles('shop', 'client', 'node');
  await cluster.delete('rbac.authorization.k8s.io/v1', 'RoleBinding', DAEMON_SET);
  assert.equal(await node.stopAgent(), 1);
  assert.match(node.agentLog.slice(-3_000), /not known whether this agent is uninstalled/);
  assert.ok(plugins().includes('underpass-cni'));
  await cluster.apply(objects.filter(({ kind }) => kind === 'RoleBinding').map((object) => stringify(object)).join('---\n'));
});

test('an agent whose DaemonSet is gone leaves its node as it was, and its pods reach each other without it', async () => {
  start();
  await node.settles('shop', 'client', 'node');
  const { envoy } = (await node.status()).proxy;
  await cluster.delete('apps/v1', 'DaemonSet', DAEMON_SET);
  await node.stopAgent();
  assert.match(node.agentLog.slice(-3_000), /nothing of this instance is left/);
  assert.ok(!existsSync(folderOfAgent()));
  assert.deepEqual([plugins(), readdirSync(join(folder, 'bin')), readdirSync(join(folder, 'net.d'))], [['bridge'], [], ['10-net.conflist']]);
  assert.ok(!existsSync(`/proc/${envoy.pid}`));
  assert.equal((await cluster.get<KubeObject>('v1', 'Pod', { namespace: 'shop', name: 'web' }))?.metadata.annotations?.['ambient.istio.io/redirection'], undefined);
  assert.equal((await node.curl('shop/client', `http://${node.pod('shop', 'web').ips[0]}:8080/`)).status, 200);
});

test('the rights of deploy/agent-rbac.yaml are all used, and no other is asked for', () => {
  const granted = parseAllDocuments(readFileSync(join(projectRoot, 'deploy', 'agent-rbac.yaml'), 'utf8'))
    .map((document) => document.toJS() as { rules?: { apiGroups: string[]; resources: string[]; verbs: string[] }[] })
    .flatMap(({ rules = [] }) => rules)
    .flatMap(({ apiGroups, resources, verbs }) => resources.flatMap((resource) => verbs.map((verb) => `${verb} ${apiGroups[0]}/${resource}`)));
  const requests = cluster.requests().filter(({ user }) => user === AGENT_USER);
  const used = new Set(requests.map(({ verb, group, resource, subresource }) => `${verb} ${group}/${resource}${subresource ? `/${subresource}` : ''}`));
  assert.deepEqual([...used].sort(), [...granted].sort());
  // The one that a test took away.
  assert.deepEqual([...new Set(requests.filter(({ code }) => code === 403).map(({ resource }) => resource))], ['daemonsets']);
});
