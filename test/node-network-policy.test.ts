/**
 * NetworkPolicy between pods keeps its meaning: rules of netfilter on the pods' nodes, by the pods' own addresses as whoever
 * enforces NetworkPolicy writes them, hold on each way that a connection takes, also where a proxy has connections ready.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { MeshWorld } from './mesh/world.js';

const server = (name: string, node: string): string => `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: node, labels: {app: ${name}}}
spec: {nodeName: ${node}, serviceAccountName: ${name}, containers: [{name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: node}
spec: {selector: {app: ${name}}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}]}
`;
const client = (name: string): string => `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: node, labels: {app: ${name}}}
spec: {nodeName: node-1, serviceAccountName: ${name}, containers: [{name: curl, image: curl}]}
`;
const world = new MeshWorld('node-network-policy', { nodes: 2, bare: true, outside: [client('allowed'), client('barred'), server('near', 'node-1'), server('far', 'node-2')].join('---\n') });
before(async () => {
  await world.up();
  await waitFor('HBONE to be announced', () => world.lab.pod('node', 'far').annotations['ambient.istio.io/redirection'] === 'enabled', { timeoutMs: 60_000 });
  await world.settled();
});
after(() => world.down());

const ip = (pod: string): string => world.lab.pod('node', pod).ips[0]!;

async function nft(node: string, rules: string): Promise<string> {
  const { netns } = world.lab.info().nodes.find(({ name }) => name === node)!;
  return (await run('nsenter', [`--net=${netns}`, 'nft', '-f', '-'], { input: rules })).stdout;
}

/** Pods of a node meet on its bridge; what comes from another node is routed. */
async function deny(rule: (pod: string) => string): Promise<void> {
  await nft('node-1', `table bridge np { chain forward { type filter hook forward priority 0; ${rule('near')}; }; }\n`);
  await nft('node-2', `table inet np { chain forward { type filter hook forward priority 0; ${rule('far')}; }; }\n`);
}

async function allowAll(): Promise<void> {
  await nft('node-1', 'delete table bridge np\n');
  await nft('node-2', 'delete table inet np\n');
}

/** One small exchange of a pod; what it was answered, '' for nothing. */
async function exchange(from: string, host: string, port: number): Promise<string> {
  if (port !== 9000) {
    const { answer } = await world.tryCurl('node', `http://${host}:${port}/`, { from: `node/${from}`, timeoutS: 3 });
    return answer?.status === 200 ? String(answer.body['pod']) : '';
  }
  const script = `const s = require('node:net').connect(${port}, ${JSON.stringify(host)}, () => s.write('hello')).setTimeout(3000, () => s.destroy()).on('error', () => {}).on('data', (d) => { process.stdout.write(d); s.destroy(); });`;
  return (await world.lab.exec(`node/${from}`, [process.execPath, '-e', script])).stdout;
}

/** Host, port, the answer of one that gets in, and the way that a connection takes. */
const ways = (): [string, number, string, string][] => [
  ['near', 9000, 'hello', 'endpoint'],
  ['near', 80, 'near', 'envoy'],
  [ip('near'), 8080, 'near', 'pod'],
  ['far', 9000, 'hello', 'envoy'],
  ['far', 80, 'far', 'envoy'],
  [ip('far'), 8080, 'far', 'envoy'],
];

async function answers(from: string): Promise<[string, number, string][]> {
  return Promise.all(ways().map(async ([host, port]) => [host, port, await exchange(from, host, port)] as [string, number, string]));
}
const all = (): [string, number, string][] => ways().map(([host, port, answer]) => [host, port, answer]);
const none = (): [string, number, string][] => ways().map(([host, port]) => [host, port, '']);

test('whom netfilter keeps from a pod gets nothing of it: past all proxies, by the shared Envoy and by HBONE, beside another pod that is let in', async () => {
  for (const [host, port, , way] of ways()) assert.equal((await world.explain('node/barred', host, port)).addresses[0]!.way, way, `${host}:${port}`);
  for (const pod of ['allowed', 'barred']) assert.deepEqual(await answers(pod), all(), pod);
  await deny((pod) => `ip saddr ${ip('barred')} ip daddr ${ip(pod)} counter drop`);
  assert.deepEqual(await answers('barred'), none());
  assert.deepEqual(await answers('allowed'), all());
  for (const [node, table] of [['node-1', 'bridge'], ['node-2', 'inet']] as const) assert.match(await nft(node, `list table ${table} np\n`), /counter packets [1-9]/, node);
  await allowAll();
  await waitFor('the other pod to be let in again', async () => JSON.stringify(await answers('barred')) === JSON.stringify(all()), { timeoutMs: 120_000 });
});

test('ports mean the pod\'s own within a node, and the tunnel\'s, 15008, from another one', async () => {
  await deny((pod) => `ip saddr ${ip('barred')} ip daddr ${ip(pod)} tcp dport != { 8080, 15008 } drop`);
  assert.deepEqual(await answers('barred'), all().map(([host, port, answer]) => [host, port, host === 'near' && port === 9000 ? '' : answer]));
  await allowAll();
});
