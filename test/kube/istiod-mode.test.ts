// The agent under a real API server as it stands beside an istiod: TLS, a token that kubelet would give it, Istio's label; and the CA, by each of the two ways.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { REDIRECTION_ANNOTATION } from '../../common/identity/announcements.js';
import { KubeClient } from '../../common/kube/client.js';
import { parseKubeconfig } from '../../common/kube/kubeconfig.js';
import { projectRoot } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { KubeCluster } from './cluster.js';
import { KubeNode } from './node.js';
import { pilotKubeconfig, startPilot, type KubePilot } from './pilot.js';

const WAIT = { everyMs: 50 };
const AGENT_USER = 'system:serviceaccount:underpass-system:underpass-agent';
const pod = (namespace: string, name: string, more = ''): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {app: ${name}}}
spec: {${more}containers: [{name: curl, image: curl}]}
---`;

let folder: string;
let cluster: KubeCluster;
let node: KubeNode;
let ca: CertificateAuthority;
let review: KubeClient;
let pilotConfig: string;
const pilots: KubePilot[] = [];

/** @param nodeAccounts whom its CA lets ask for the pods of their nodes */
async function control(nodeAccounts?: string[]): Promise<string> {
  const kube = await startPilot(pilotConfig, { listen: [], security: { listen: ['127.0.0.1:0'], hosts: ['127.0.0.1'], ca, tokenReview: review, ...(nodeAccounts ? { nodeAccounts } : {}) } });
  pilots.push(kube);
  return kube.pilot.secureAddresses[0]!;
}

function start(discovery: string, ...more: string[]): void {
  node.startAgent(['--kubeconfig', join(folder, 'agent.kubeconfig'), '--ambient-label', '--discovery', discovery, '--discovery-root', join(folder, 'root-cert.pem'), '--ca-token', join(folder, 'istio-token'), ...more]);
}

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-kube-istiod-'));
  cluster = await KubeCluster.start();
  pilotConfig = await pilotKubeconfig(cluster);
  review = new KubeClient(parseKubeconfig(pilotConfig, { place: 'of the test' }));
  ca = await CertificateAuthority.create();
  writeFileSync(join(folder, 'root-cert.pem'), ca.rootPem);
  await cluster.apply(readFileSync(join(projectRoot, 'deploy', 'agent-rbac.yaml'), 'utf8'));
  await cluster.namespace('shop', { 'istio.io/dataplane-mode': 'ambient' });
  node = new KubeNode(cluster, 'istiod');
  await node.up();
  await node.run(pod('shop', 'client') + pod('shop', 'out').replace('{app: out}', '{app: out, istio.io/dataplane-mode: none}') + pod('underpass-system', 'underpass-agent', 'serviceAccountName: underpass-agent, hostNetwork: true, '));
  writeFileSync(join(folder, 'agent.kubeconfig'), await cluster.kubeconfigOf('underpass-system', 'underpass-agent'), { mode: 0o600 });
  const own = await cluster.get('v1', 'Pod', { namespace: 'underpass-system', name: 'underpass-agent' });
  writeFileSync(join(folder, 'istio-token'), await cluster.token('underpass-system', 'underpass-agent', { audience: 'istio-ca', pod: own! }), { mode: 0o600 });
});
after(async () => {
  await node?.down();
  for (const { pilot } of pilots) await pilot.stop();
  review?.close();
  await cluster?.close();
  rmSync(folder, { recursive: true, force: true });
});

const annotation = async (): Promise<string | undefined> => (await cluster.get('v1', 'Pod', { namespace: 'shop', name: 'client' }))?.metadata.annotations?.[REDIRECTION_ANNOTATION];
const problem = async (): Promise<string> => (await node.status().catch(() => undefined))?.proxy.certificates?.problem ?? '';

test('a CA that does not trust the agent: the status says what to set, and no pod is enrolled in plaintext\'s stead', async () => {
  start(await control(['istio-system/ztunnel']));
  await waitFor('the refusal', async () => /only proxies of nodes.*CA_TRUSTED_NODE_ACCOUNTS/.test(await problem()), WAIT);
  assert.equal((await node.status()).ready, false);
  await node.stopAgent();
});

test('by tokens of the pods\' accounts: without the right for it the manifest is named, with it the pods that Istio\'s label names are enrolled', async () => {
  start(pilots[0]!.pilot.secureAddresses[0]!, '--ca-pod-tokens');
  await waitFor('the API server to refuse', async () => /serviceaccounts\/token.*deploy\/agent-pod-tokens\.yaml/.test(await problem()), WAIT);
  await cluster.apply(readFileSync(join(projectRoot, 'deploy', 'agent-pod-tokens.yaml'), 'utf8'));
  await node.settles('shop', 'client', 'node');
  const { pods, proxy } = await node.status();
  assert.deepEqual(pods.filter(({ namespace }) => namespace === 'shop').map(({ name, mode }) => `${name} ${mode}`).sort(), ['client node', 'out off']);
  assert.deepEqual(proxy.certificates?.identities.map(({ id }) => id), ['spiffe://cluster.local/ns/shop/sa/default']);
  assert.ok(cluster.requests().some(({ user, verb, uri, code }) => user === AGENT_USER && verb === 'create' && uri.includes('/namespaces/shop/serviceaccounts/default/token') && code === 201));
  assert.doesNotMatch(node.agentLog, /eyJ|PRIVATE KEY/);
});

test('an enrolled pod says so to other nodes\' ztunnels, and takes it back when it leaves', async () => {
  await waitFor('the annotation', async () => (await annotation()) === 'enabled', WAIT);
  await cluster.merge('v1', 'Namespace', { name: 'shop' }, { metadata: { labels: { 'istio.io/dataplane-mode': null } } });
  await node.settles('shop', 'client', 'off');
  assert.equal(await annotation(), undefined);
  await cluster.merge('v1', 'Namespace', { name: 'shop' }, { metadata: { labels: { 'istio.io/dataplane-mode': 'ambient' } } });
  await node.settles('shop', 'client', 'node');
  await node.stopAgent();
});

test('by the agent\'s own token, for the pods of its node: another control plane, whose CA trusts it, takes over', async () => {
  const before = cluster.requests().filter(({ user, verb }) => user === AGENT_USER && verb === 'create').length;
  start(await control());
  await node.settles('shop', 'client', 'node');
  const status = await node.status();
  assert.deepEqual([status.ready, status.proxy.certificates?.problem, status.proxy.controlPlane.lastError], [true, undefined, undefined]);
  assert.ok(status.proxy.classes.every(({ stale }) => !stale));
  assert.equal(cluster.requests().filter(({ user, verb }) => user === AGENT_USER && verb === 'create').length, before, 'no token was asked for');
  assert.deepEqual(cluster.requests().filter(({ user, code, resource }) => user === AGENT_USER && code === 403 && resource !== 'serviceaccounts'), []);
});
