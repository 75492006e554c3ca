// `underpass uninstall` and the nodes, under a real API server; what kubelets and controllers do there, the test does.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { stringify } from 'yaml';
import { uninstallRbac } from '../../cli/install/helm-hooks.js';
import { installationObjects } from '../../cli/install/objects.js';
import { readValues } from '../../cli/install/values.js';
import type { KubeObject, Pod } from '../../common/kube/types.js';
import { run, type RunResult } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { CLI } from '../agent-harness.js';
import { KubeCluster } from './cluster.js';

const WAIT = { everyMs: 50 };
const USER = 'system:serviceaccount:underpass-system:underpass-uninstall';
const NAMESPACE = 'underpass-system';
const objects = installationObjects(readValues([], ['controlPlane=istiod', 'image.repository=registry.example/underpass', 'agent.cniConfDir=/var/lib/cni/conf']));
const yaml = (list: readonly object[]): string => list.map((object) => stringify(object)).join('---\n');

let folder: string;
let cluster: KubeCluster;
let kubeconfig: string;

const uninstall = (...args: string[]): Promise<RunResult> => run(process.execPath, [CLI, 'uninstall', '--kubeconfig', kubeconfig, '--nodes-only', ...args], { okCodes: [0, 1], timeoutMs: 60_000 });
const daemonSet = (): Promise<KubeObject | undefined> => cluster.get('apps/v1', 'DaemonSet', { namespace: NAMESPACE, name: 'underpass-agent' });
const remove = (name: string): Promise<unknown> => cluster.client.request('DELETE', `/api/v1/namespaces/${NAMESPACE}/pods/${name}`, { body: { gracePeriodSeconds: 0 } });

async function node(name: string, ready: 'True' | 'Unknown'): Promise<void> {
  await cluster.apply(stringify({ apiVersion: 'v1', kind: 'Node', metadata: { name } }));
  await cluster.setStatus('v1', 'Node', { name }, { conditions: [{ type: 'Ready', status: ready, reason: ready === 'True' ? 'KubeletReady' : 'NodeStatusUnknown', lastHeartbeatTime: '2026-01-01T00:00:00Z', lastTransitionTime: '2026-01-01T00:00:00Z', message: '' }] });
}

async function agentOn(name: string): Promise<void> {
  await cluster.apply(stringify({ apiVersion: 'v1', kind: 'Pod', metadata: { name: `agent-${name}`, namespace: NAMESPACE, labels: { app: 'underpass-agent' } }, spec: { nodeName: name, hostNetwork: true, serviceAccountName: 'underpass-agent', containers: [{ name: 'agent', image: 'underpass' }, { name: 'envoy', image: 'underpass' }] } }));
}

/** Its containers have ended, kubelet says how, and the object goes. */
async function agentEnds(name: string, exitCode: number): Promise<void> {
  const ended = (container: string, code: number): object => ({ name: container, image: 'underpass', imageID: '', ready: false, restartCount: 0, state: { terminated: { exitCode: code, startedAt: '2026-01-01T00:00:00Z', finishedAt: '2026-01-01T00:00:01Z' } } });
  await cluster.setStatus('v1', 'Pod', { namespace: NAMESPACE, name: `agent-${name}` }, { phase: exitCode === 0 ? 'Succeeded' : 'Failed', containerStatuses: [ended('agent', exitCode), ended('envoy', 0)] });
  await remove(`agent-${name}`);
}

/** The pod that cleans up a node: what it is asked to do, done. */
async function cleanUp(name: string, outcome: { phase: 'Succeeded' | 'Failed'; message?: string }): Promise<Pod> {
  const pod = await waitFor(`the clean-up of ${name}`, async () => {
    const { items } = await cluster.client.request<{ items: Pod[] }>('GET', `/api/v1/namespaces/${NAMESPACE}/pods?labelSelector=app%3Dunderpass-cleanup`);
    return items.find(({ spec, status }) => spec.nodeName === name && status?.phase !== 'Succeeded' && status?.phase !== 'Failed');
  }, WAIT);
  const state = { terminated: { exitCode: outcome.phase === 'Succeeded' ? 0 : 1, startedAt: '2026-01-01T00:00:00Z', finishedAt: '2026-01-01T00:00:01Z', ...(outcome.message === undefined ? {} : { message: outcome.message }) } };
  await cluster.setStatus('v1', 'Pod', { namespace: NAMESPACE, name: pod.metadata.name }, { phase: outcome.phase, containerStatuses: [{ name: 'cleanup', image: 'underpass', imageID: '', ready: false, restartCount: 0, state }] });
  return pod;
}

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-kube-uninstall-'));
  cluster = await KubeCluster.start({ crds: false });
  await cluster.apply(yaml([objects.find(({ kind }) => kind === 'Namespace')!, ...uninstallRbac()]));
  kubeconfig = join(folder, 'kubeconfig');
  writeFileSync(kubeconfig, await cluster.kubeconfigOf(NAMESPACE, 'underpass-uninstall'), { mode: 0o600 });
});
after(async () => {
  await cluster?.close();
  rmSync(folder, { recursive: true, force: true });
});
beforeEach(() => cluster.apply(yaml(objects)));

test('an agent that ends having cleaned up is believed; where one failed a pod does it, with the image and the paths of the DaemonSet; then the nodes are as they were', async () => {
  for (const name of ['a', 'b']) {
    await node(name, 'True');
    await agentOn(name);
  }
  const running = uninstall('--timeout', '20s');
  await waitFor('the DaemonSet to go', async () => (await daemonSet()) === undefined, WAIT);
  await agentEnds('a', 0);
  await agentEnds('b', 1);
  const pod = await cleanUp('b', { phase: 'Succeeded' });
  assert.deepEqual([pod.spec.containers[0]!.image, pod.spec.containers[0]!.args?.slice(0, 2)], ['registry.example/underpass:0.1.0', ['agent', '--cleanup']]);
  const paths = (pod.spec.volumes as { name: string; hostPath?: { path: string } }[]).flatMap(({ hostPath }) => hostPath?.path ?? []);
  assert.ok(paths.includes('/var/lib/cni/conf') && paths.includes('/run/underpass'), paths.join());
  const { code, stdout, stderr } = await running;
  assert.deepEqual([code, stdout], [0, '2 nodes are as they were\n'], stderr);
  await waitFor('the pod to go', async () => (await cluster.get('v1', 'Pod', { namespace: NAMESPACE, name: pod.metadata.name })) === undefined, WAIT);
});

test('an agent that was ending while its DaemonSet was there is not believed: it had no reason to clean up', async () => {
  await node('a', 'True');
  await agentOn('a');
  await cluster.client.request('DELETE', `/api/v1/namespaces/${NAMESPACE}/pods/agent-a`, { body: { gracePeriodSeconds: 60 } });
  const running = uninstall('--timeout', '20s');
  await waitFor('the DaemonSet to go', async () => (await daemonSet()) === undefined, WAIT);
  await agentEnds('a', 0);
  await cleanUp('a', { phase: 'Succeeded' });
  const { code, stdout, stderr } = await running;
  assert.deepEqual([code, stdout], [0, '1 nodes are as they were\n'], stderr);
});

test('a node that does not answer and one whose clean-up fails are named, with the reason, and all that an agent needs to clean up later stays', async () => {
  await node('b', 'True');
  await node('c', 'Unknown');
  for (const name of ['a', 'b', 'c']) await agentOn(name);
  const running = uninstall('--timeout', '5s');
  await waitFor('the DaemonSet to go', async () => (await daemonSet()) === undefined, WAIT);
  await agentEnds('a', 0);
  await agentEnds('b', 137);
  await cleanUp('b', { phase: 'Failed', message: 'cleaning up instance default: Envoy: it does not end' });
  const { code, stderr } = await running;
  assert.equal(code, 1);
  assert.match(stderr, /b: cleaning up instance default: Envoy: it does not end/);
  assert.match(stderr, /c: the node does not answer \(NodeStatusUnknown\)/);
  assert.doesNotMatch(stderr, /[:;] a: /);
  assert.ok(await cluster.get('rbac.authorization.k8s.io/v1', 'Role', { namespace: NAMESPACE, name: 'underpass-agent' }));
  await remove('agent-c');
});

test('the rights of the chart\'s uninstall are all used, and no other is asked for', () => {
  const granted = (uninstallRbac() as unknown as { rules?: { apiGroups: string[]; resources: string[]; verbs: string[] }[] }[]).flatMap(({ rules = [] }) => rules).flatMap(({ apiGroups, resources, verbs }) => resources.flatMap((resource) => verbs.map((verb) => `${verb} ${apiGroups[0]}/${resource}`)));
  const requests = cluster.requests().filter(({ user }) => user === USER);
  assert.deepEqual([...new Set(requests.map(({ verb, group, resource }) => `${verb} ${group}/${resource}`))].sort(), [...new Set(granted)].sort());
  assert.deepEqual(requests.filter(({ code }) => code === 403), []);
});

test('--every-node cleans up where no agent is known any more, with the image of the values when no DaemonSet says it', async () => {
  await cluster.delete('apps/v1', 'DaemonSet', { namespace: NAMESPACE, name: 'underpass-agent' });
  await cluster.apply(yaml([{ apiVersion: 'rbac.authorization.k8s.io/v1', kind: 'ClusterRoleBinding', metadata: { name: 'the-admin' }, roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: 'cluster-admin' }, subjects: [{ kind: 'ServiceAccount', name: 'underpass-uninstall', namespace: NAMESPACE }] }]));
  for (const name of ['a', 'b', 'c']) await node(name, 'True');
  const running = uninstall('--every-node', '--timeout', '20s', '--set', 'image.repository=other/underpass', '--set', 'image.tag=2');
  for (const name of ['a', 'b', 'c']) assert.equal((await cleanUp(name, { phase: 'Succeeded' })).spec.containers[0]!.image, 'other/underpass:2');
  const { code, stdout, stderr } = await running;
  assert.deepEqual([code, stdout], [0, '3 nodes are as they were\n'], stderr);
});
