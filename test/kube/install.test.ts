// `underpass install` and `uninstall` against a real API server: what it takes, what is there afterwards, and what is not.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { parseAllDocuments } from 'yaml';
import { installed, named, operatorKinds } from '../../cli/install/cluster.js';
import type { KubeObject } from '../../common/kube/types.js';
import { run, type RunResult } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { CLI } from '../agent-harness.js';
import { KubeCluster } from './cluster.js';

const ALL = ['--set', 'gateways.ingress.enabled=true', '--set', 'gateways.egress.enabled=true', '--set', 'gateways.eastWest.enabled=true', '--set', 'gateways.eastWest.network=n1', '--set', 'agent.ambientLabel=true', '--set', 'meshConfig={"accessLogFile":"/dev/stdout"}', '--set', 'imagePullSecrets=[{"name":"r"}]'];

/** As Prometheus' operator has them, but for their schemas. */
const OPERATOR_KINDS = ['PodMonitor', 'PrometheusRule'].map((kind) => `---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ${kind.toLowerCase()}s.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  names: {kind: ${kind}, listKind: ${kind}List, plural: ${kind.toLowerCase()}s, singular: ${kind.toLowerCase()}}
  scope: Namespaced
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
`).join('');

let folder: string;
let kubeconfig: string;
let cluster: KubeCluster;

const underpass = (...args: string[]): Promise<RunResult> => run(process.execPath, [CLI, ...args], { okCodes: [0, 1, 2], timeoutMs: 120_000 });
const install = (...args: string[]): Promise<RunResult> => underpass('install', '--kubeconfig', kubeconfig, ...args);
const uninstall = (...args: string[]): Promise<RunResult> => underpass('uninstall', '--kubeconfig', kubeconfig, ...args);
const names = async (): Promise<string[]> => (await installed(cluster.client)).map(named).sort();
const printed = async (...args: string[]): Promise<KubeObject[]> => parseAllDocuments((await underpass('install', '--dry-run', ...args)).stdout).map((document) => document.toJS() as KubeObject);

/** There is no namespace controller: what it does last. */
async function finishNamespaces(): Promise<string[]> {
  const { items } = await cluster.client.request<{ items: (KubeObject & { spec: object })[] }>('GET', '/api/v1/namespaces');
  const ending = items.filter(({ metadata }) => metadata.deletionTimestamp !== undefined);
  for (const object of ending) await cluster.client.request('PUT', `/api/v1/namespaces/${object.metadata.name}/finalize`, { body: { ...object, spec: { finalizers: [] } } });
  return ending.map(({ metadata }) => metadata.name).sort();
}

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-kube-install-'));
  cluster = await KubeCluster.start();
  await cluster.apply(`
{apiVersion: v1, kind: ServiceAccount, metadata: {name: admin, namespace: default}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: the-admin}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}, subjects: [{kind: ServiceAccount, name: admin, namespace: default}]}`);
  kubeconfig = join(folder, 'admin.kubeconfig');
  writeFileSync(kubeconfig, await cluster.kubeconfigOf('default', 'admin'), { mode: 0o600 });
});
after(async () => {
  await cluster?.close();
  rmSync(folder, { recursive: true, force: true });
});

test('every object that is printed is one that the API server takes without a warning, whatever the values', async () => {
  for (const name of ['underpass-system', 'istio-system']) await cluster.namespace(name);
  try {
    for (const values of [[], ['--set', 'controlPlane=istiod'], ALL]) {
      const { stdout } = await underpass('install', '--dry-run', ...values);
      const file = join(folder, 'objects.yaml');
      writeFileSync(file, stdout);
      const said = await run('kubectl', ['--kubeconfig', kubeconfig, 'apply', '--server-side', '--dry-run=server', '-f', file], { okCodes: [0, 1], timeoutMs: 60_000 });
      assert.equal(said.stderr, '');
      assert.equal(said.stdout.trim().split('\n').length, parseAllDocuments(stdout).length);
    }
  } finally {
    for (const name of ['underpass-system', 'istio-system']) await cluster.delete('v1', 'Namespace', { name });
    await finishNamespaces();
  }
});

test('install applies what it prints, and says what is not ready in time', async () => {
  const { code, stderr } = await install('--timeout', '1s');
  assert.equal(code, 1);
  assert.match(stderr, /DaemonSet underpass-system\/underpass-agent: 0 of 0 ready \(it has no pods\); Deployment istio-system\/underpass-pilot: 0 of 2 ready \(it has no pods\)/);
  assert.deepEqual(await names(), (await printed()).filter(({ kind }) => kind !== 'Namespace').map(named).sort());
});

test('install again is a way to other values: what they have no more goes, and it ends when all is ready', async () => {
  assert.equal((await install('--no-wait', '--set', 'gateways.egress.enabled=true')).code, 0);
  assert.ok((await names()).includes('Deployment istio-system/istio-egressgateway'));
  // What controllers do.
  const daemonSet = await cluster.get<KubeObject>('apps/v1', 'DaemonSet', { namespace: 'underpass-system', name: 'underpass-agent' });
  const counts = { desiredNumberScheduled: 3, currentNumberScheduled: 3, updatedNumberScheduled: 3, numberReady: 3, numberAvailable: 3, numberMisscheduled: 0 };
  await cluster.setStatus('apps/v1', 'DaemonSet', { namespace: 'underpass-system', name: 'underpass-agent' }, { ...counts, observedGeneration: daemonSet!.metadata.generation });
  const deployment = await cluster.get<KubeObject>('apps/v1', 'Deployment', { namespace: 'istio-system', name: 'underpass-pilot' });
  await cluster.setStatus('apps/v1', 'Deployment', { namespace: 'istio-system', name: 'underpass-pilot' }, { observedGeneration: deployment!.metadata.generation, replicas: 2, updatedReplicas: 2, readyReplicas: 2, availableReplicas: 2 });
  const { code, stdout } = await install('--timeout', '20s');
  assert.equal(code, 0);
  assert.match(stdout, /removed what the values have no more: Deployment istio-system\/istio-egressgateway/);
  assert.match(stdout, /^ready/m);
  assert.deepEqual(await names(), (await printed()).filter(({ kind }) => kind !== 'Namespace').map(named).sort());
});

test('kinds of Prometheus\' operator are asked for where the cluster has them, found again, and named where it has not; dashboards need none', async () => {
  const before = await names();
  for (const [path, kind] of [['agent.podMonitor', 'PodMonitor'], ['pilot.podMonitor', 'PodMonitor'], ['monitoring.prometheusRule', 'PrometheusRule']]) {
    const refused = await install('--no-wait', '--set', `${path}=true`, '--set', 'clusterId=other');
    assert.equal(refused.code, 1);
    assert.ok(refused.stderr.includes(`${path}: found no kind ${kind} of monitoring.coreos.com/v1 in the cluster, expected that of Prometheus' operator`), refused.stderr);
  }
  const daemonSet = await cluster.get<KubeObject & { spec: object }>('apps/v1', 'DaemonSet', { namespace: 'underpass-system', name: 'underpass-agent' });
  assert.doesNotMatch(JSON.stringify(daemonSet), /--cluster-id=other/, 'nothing was applied');
  await cluster.apply(OPERATOR_KINDS);
  await waitFor('the kinds', async () => (await operatorKinds(cluster.client)).length === 2, { timeoutMs: 30_000, everyMs: 100 });
  const monitored = ['agent.podMonitor=true', 'pilot.podMonitor=true', 'monitoring.prometheusRule=true', 'monitoring.dashboards=true'].flatMap((word) => ['--set', word]);
  assert.equal((await install('--no-wait', ...monitored)).code, 0);
  const more = ['PodMonitor underpass-system/underpass-agent', 'PodMonitor istio-system/underpass-pilot', 'PrometheusRule underpass-system/underpass', ...['mesh', 'service', 'workload', 'nodes', 'control-plane'].map((name) => `ConfigMap underpass-system/underpass-dashboard-${name}`)];
  assert.deepEqual(await names(), [...before, ...more].sort());
  const { stdout } = await install('--no-wait');
  for (const name of more) assert.ok(stdout.includes(name), stdout);
  assert.deepEqual(await names(), before);
});

test('uninstall leaves nothing but what is somebody else\'s, and the namespace that it is in', async () => {
  await cluster.apply('{apiVersion: v1, kind: Secret, metadata: {name: cacerts, namespace: istio-system}, data: {}}');
  const { code, stdout } = await uninstall();
  assert.equal(code, 0);
  assert.match(stdout, /namespace istio-system stays, it has Secret cacerts\n/);
  assert.deepEqual(await names(), []);
  assert.deepEqual(await finishNamespaces(), ['underpass-system']);
  await cluster.delete('v1', 'Secret', { namespace: 'istio-system', name: 'cacerts' });
  assert.match((await uninstall()).stdout, /namespaces removed: istio-system\n/);
  assert.deepEqual(await finishNamespaces(), ['istio-system']);
});

test('uninstall takes the key of pilot\'s CA along also where pilot has gone before', async () => {
  assert.equal((await install('--no-wait')).code, 0);
  await cluster.apply('{apiVersion: v1, kind: Secret, type: underpass.io/ca-root, metadata: {name: underpass-ca, namespace: istio-system}, data: {}}');
  await cluster.delete('apps/v1', 'Deployment', { namespace: 'istio-system', name: 'underpass-pilot' });
  assert.match((await uninstall()).stdout, /namespaces removed: underpass-system, istio-system\n/);
  assert.deepEqual(await finishNamespaces(), ['istio-system', 'underpass-system']);
});

test('what is somebody else\'s is not taken: it is named, and nothing is applied; agents are not installed for an istiod that is not there', async () => {
  const away = await install('--no-wait', '--set', 'controlPlane=istiod');
  assert.deepEqual([away.code, /there is no Service istio-system\/istiod/.test(away.stderr)], [1, true], away.stderr);
  await cluster.namespace('istio-system');
  await cluster.apply(`
{apiVersion: v1, kind: Service, metadata: {name: istiod, namespace: istio-system}, spec: {ports: [{port: 15012}]}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: istio-system}, data: {mesh: theirs}}`);
  const taken = await install('--no-wait', '--set', 'meshConfig={"accessLogFile":"/dev/stdout"}');
  assert.equal(taken.code, 1);
  assert.match(taken.stderr, /somebody else's: Service istio-system\/istiod, ConfigMap istio-system\/istio \(/);
  assert.deepEqual(await names(), []);
  assert.equal((await install('--no-wait', '--set', 'controlPlane=istiod')).code, 0);
  assert.ok((await names()).every((name) => !name.includes('istio-system')));
  assert.equal((await uninstall()).code, 0);
  await finishNamespaces();
  assert.ok(await cluster.get('v1', 'Service', { namespace: 'istio-system', name: 'istiod' }));
  for (const [kind, name] of [['Service', 'istiod'], ['ConfigMap', 'istio']] as const) await cluster.delete('v1', kind, { namespace: 'istio-system', name });
});

test('a namespace that was there before stays when all is uninstalled, and so does what has the labels of an installation elsewhere', async () => {
  await cluster.namespace('underpass-system');
  await cluster.namespace('monitoring');
  await cluster.apply('{apiVersion: v1, kind: ConfigMap, metadata: {name: board, namespace: monitoring, labels: {app.kubernetes.io/part-of: underpass, app.kubernetes.io/instance: underpass}}}');
  assert.equal((await install('--no-wait')).code, 0);
  const own = await cluster.get<KubeObject>('v1', 'Namespace', { name: 'underpass-system' });
  assert.equal(own?.metadata.labels?.['pod-security.kubernetes.io/enforce'], 'privileged');
  const { code, stderr } = await install('--no-wait', '--set', 'controlPlane=istiod');
  assert.deepEqual([code, /the Service istio-system\/istiod is that of Underpass's own control plane/.test(stderr)], [1, true], stderr);
  const { stdout } = await uninstall();
  assert.doesNotMatch(stdout, /namespaces removed/);
  assert.deepEqual(await finishNamespaces(), []);
  assert.deepEqual(await names(), []);
  assert.ok(await cluster.get('v1', 'ConfigMap', { namespace: 'monitoring', name: 'board' }));
});
