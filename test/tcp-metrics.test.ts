// Istio's TCP metrics of connections that no proxy sees, and of those that Envoy carries, as a user reads them from a node agent beside a lab: real pods, BPF,
// Envoy and xDS.
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { askAgent } from '../agent/index.js';
import { projectRoot } from '../common/paths.js';
import { waitFor } from '../common/retry.js';
import { NodeUnderTest, enrolled } from './agent-harness.js';

const node = new NodeUnderTest(`up-tcpm-${process.pid}`);

/** Answers with as many bytes as it was sent, when the client has said that it is done. */
const SERVER = `
const { createServer } = require('node:net');
for (const port of [9001, 9002]) createServer({ allowHalfOpen: true }, (s) => s.on('error', () => {}).on('data', (d) => s.write(d)).on('end', () => s.end())).listen(port, '0.0.0.0');`;

/** ADDRESS PORT BYTES: sends as many, half-closes, and prints how many came back. */
const CLIENT = `
const [address, port, bytes] = process.argv.slice(1);
let got = 0;
const s = require('node:net').connect({ host: address, port: Number(port), allowHalfOpen: true }, () => s.end(Buffer.alloc(Number(bytes))));
s.on('data', (d) => got += d.length).on('end', () => console.log(got));`;

const deployment = (name: string, replicas: number, container: string): string => `---
apiVersion: apps/v1
kind: Deployment
metadata: {name: ${name}, namespace: flows}
spec:
  replicas: ${replicas}
  selector: {matchLabels: {app: ${name}}}
  template:
    metadata: {labels: {app: ${name}, version: v3}}
    spec:
      serviceAccountName: ${name}
      containers: [${container}]
`;

before(() => node.up([], `apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/region: north, topology.kubernetes.io/zone: north-1}}
---
apiVersion: v1
kind: Namespace
metadata: {name: flows, labels: {underpass.io/mode: node}}
---
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: flows}
spec: {selector: {app: vault}, ports: [{name: tcp, port: 9002}]}
---
apiVersion: v1
kind: Service
metadata: {name: safe, namespace: flows}
spec: {selector: {app: vault}, ports: [{name: tcp, port: 9003, targetPort: 9001}]}
---
# What has a route is Envoy's.
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vault, namespace: flows}
spec: {hosts: [vault], tcp: [{match: [{port: 9002}], route: [{destination: {host: vault, port: {number: 9002}}}]}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: street}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: street, labels: {app: stranger}}
spec: {containers: [{name: client, image: client}]}
${deployment('teller', 2, '{name: client, image: client}')}
${deployment('vault', 1, `{name: server, image: node, command: [node, -e, ${JSON.stringify(SERVER)}], ports: [{name: tcp-a, containerPort: 9001}, {name: tcp-b, containerPort: 9002}]}`)}`));
after(() => node.down());

const SAFE = { destination_service: 'safe.flows.svc.cluster.local', destination_service_namespace: 'flows', destination_service_name: 'safe' };

const POLICY = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: flows}
spec: {selector: {matchLabels: {app: vault}}, action: DENY, rules: [{from: [{source: {principals: ["cluster.local/ns/flows/sa/teller"]}}]}]}
`;

/** ADDRESS PORT: says a word each 50 ms until the connection ends, and prints how that was. */
const TALKER = `
const [address, port] = process.argv.slice(1);
const s = require('node:net').connect({ host: address, port: Number(port) }, () => setInterval(() => s.write('word'), 50));
const end = (word) => { console.log(word); process.exit(); };
s.on('error', ({ code }) => end(code)).on('close', () => end('closed')).on('data', () => {});`;

interface Sample {
  name: string;
  labels: Record<string, string>;
  value: number;
}

async function samples(name: RegExp): Promise<Sample[]> {
  const text = await askAgent(node.paths.adminSocket, '/metrics');
  return text.split('\n').flatMap((line) => {
    const [, metric = '', labels = '', value] = /^(\w+)\{(.*)\} (\S+)$/.exec(line) ?? [];
    if (value === undefined || !name.test(metric)) return [];
    return [{ name: metric, labels: Object.fromEntries([...labels.matchAll(/(\w+)="([^"]*)"/g)].map(([, key = '', text = '']) => [key, text])), value: Number(value) }];
  });
}

/** `opened`, `closed`, `received` and `sent` of one reporter, summed. */
async function totals(reporter: string): Promise<Record<string, number>> {
  const sums: Record<string, number> = { opened: 0, closed: 0, received: 0, sent: 0 };
  for (const { name, labels, value } of await samples(/^istio_tcp_/)) {
    const what = /_(opened|closed|received|sent)_/.exec(name)?.[1] ?? assert.fail(name);
    if (labels['reporter'] === reporter) sums[what] = (sums[what] ?? 0) + value;
  }
  return sums;
}

async function closed(opened: number): Promise<Record<string, number>[]> {
  let now: Record<string, number>[] = [];
  await waitFor(`${opened} closed connections`, async () => {
    now = [await totals('source'), await totals('destination')];
    return now.every((sums) => sums['closed'] === opened);
  }, { timeoutMs: 120_000, everyMs: 50 }).catch((error: unknown) => assert.fail(`${String(error)}: ${JSON.stringify(now)}`));
  return now;
}

async function send(from: string, address: string, port: number, bytes: number, namespace = 'flows'): Promise<void> {
  const { stdout, stderr } = await node.lab.exec(`${namespace}/${from}`, ['node', '-e', CLIENT, address, String(port), String(bytes)]);
  assert.equal(stdout.trim(), String(bytes), stderr);
}

const pods = async () => {
  const all = (await node.lab.pods()).filter(({ namespace }) => namespace === 'flows');
  const tellers = all.filter(({ name }) => name.startsWith('teller')).map(({ name }) => name).sort();
  const vault = all.find(({ name }) => name.startsWith('vault'));
  return { tellers: tellers as [string, string], vault: vault!.ips[0]! };
};

test('TCP straight to a local pod: both sides\' bytes are those that were sent, under Istio\'s labels', async () => {
  node.startAgent('--flow-log');
  await node.podsAre('flows', 'flows to be enrolled', enrolled('bpf'));
  const { tellers, vault } = await pods();
  for (const [acceleration, from] of [['force', tellers[0]], ['off', tellers[1]]] as const) {
    await node.label('flows', { acceleration });
    await node.podsAre('flows', `acceleration ${acceleration}`, (pod) => enrolled('bpf')(pod) && pod.acceleration === acceleration);
    await send(from, vault, 9001, 100_000);
  }
  const expected = { opened: 2, closed: 2, received: 200_000, sent: 200_000 };
  assert.deepEqual(await closed(2), [expected, expected]);
  const end = (side: string, workload: string): Record<string, string> => ({
    [`${side}_workload`]: workload, [`${side}_canonical_service`]: workload, [`${side}_canonical_revision`]: 'v3', [`${side}_workload_namespace`]: 'flows',
    [`${side}_principal`]: `spiffe://cluster.local/ns/flows/sa/${workload}`, [`${side}_app`]: workload, [`${side}_version`]: 'v3', [`${side}_cluster`]: 'Kubernetes',
    [`${side}_region`]: 'north', [`${side}_zone`]: 'north-1',
  });
  const labels = {
    ...end('source', 'teller'), ...end('destination', 'vault'),
    request_protocol: 'tcp', response_flags: '-', connection_security_policy: 'unknown',
  };
  // Who asks for a pod's own address names no service; the pod knows what it serves.
  const unnamed = { destination_service: 'unknown', destination_service_namespace: 'unknown', destination_service_name: 'unknown' };
  const opened = await samples(/^istio_tcp_connections_opened_total$/);
  assert.deepEqual(opened.map((sample) => sample.labels).sort((x, y) => (x['reporter']! < y['reporter']! ? 1 : -1)), [{ reporter: 'source', ...labels, ...unnamed }, { reporter: 'destination', ...labels, ...SAFE }]);
  const rtts = await samples(/^underpass_tcp_rtt_seconds_count$/);
  assert.deepEqual(rtts.map(({ value }) => value), [2, 2]);
});

test('flow log: connections have a line each, with pods by name', async () => {
  const { tellers, vault } = await pods();
  const lines = () => node.log.split('\n').filter((line) => line.includes('"agent.flow-log"')).map((line) => JSON.parse(line) as Record<string, any>);
  await waitFor('two lines', () => lines().length >= 2, { everyMs: 20 });
  const facts = lines().map(({ verdict, way, reason, source, destination, bytesReceived, bytesSent }) => ({ verdict, way, reason, from: source.pod, to: [destination.address, destination.port], bytesReceived, bytesSent }));
  const common = { verdict: 'allowed', to: [vault, 9001], bytesReceived: 100_000, bytesSent: 100_000 };
  assert.deepEqual(facts, [
    { ...common, way: 'short-circuited', reason: undefined, from: tellers[0] },
    { ...common, way: 'plain', reason: 'connection_pod_off', from: tellers[1] },
  ]);
});

test('TCP to a Service that the kernel resolves is told under the Service by both sides', async () => {
  const { tellers } = await pods();
  const named = async (): Promise<Sample[]> => (await samples(/^istio_tcp_received_bytes_total$/)).filter(({ labels }) => labels['reporter'] === 'source' && labels['destination_service'] === SAFE.destination_service);
  const before = await totals('destination');
  let count = 0;
  const ask = async (from: string): Promise<void> => {
    await send(from, 'safe.flows', 9003, 10_000);
    count++;
  };
  const resolved = async (): Promise<bigint> => BigInt((await node.counters())['connections_resolved'] ?? 0);
  const start = await resolved();
  await waitFor('a connection that the kernel resolved', async () => {
    await ask(tellers[0]);
    return await resolved() > start;
  }, { timeoutMs: 60_000, everyMs: 100 });
  await ask(tellers[1]);
  // What Envoy carried before that is under the same labels.
  await waitFor('all of them', async () => (await named())[0]?.value === count * 10_000, { timeoutMs: 120_000, everyMs: 100 });
  const [source, ...others] = await named();
  assert.deepEqual([others, source!.labels], [[], { ...source!.labels, ...SAFE, source_workload: 'teller', destination_workload: 'vault' }]);
  assert.equal((await totals('destination'))['received'], before['received']! + count * 10_000);
});

test('what Envoy carries is told once, by both sides, under its service', async () => {
  const { tellers } = await pods();
  await node.label('flows', { acceleration: 'force' });
  await node.podsAre('flows', 'acceleration force', (pod) => enrolled('bpf')(pod) && pod.acceleration === 'force');
  const before = [await totals('source'), await totals('destination')];
  const captured = (await node.counters())['connections_captured'] ?? 0;
  await send(tellers[0], 'vault.flows', 9002, 50_000);
  assert.ok(((await node.counters())['connections_captured'] ?? 0) > captured, 'it went through Envoy');
  const grown = (sums: Record<string, number>): Record<string, number> => ({ ...sums, opened: sums['opened']! + 1, closed: sums['closed']! + 1, received: sums['received']! + 50_000, sent: sums['sent']! + 50_000 });
  await waitFor('its end', async () => (await totals('destination'))['closed'] === before[1]!['closed']! + 1, { timeoutMs: 120_000, everyMs: 100 });
  assert.deepEqual([await totals('source'), await totals('destination')], before.map(grown));
  const [bytes] = (await samples(/^istio_tcp_sent_bytes_total$/)).filter(({ labels }) => labels['destination_service_name'] === 'vault' && labels['reporter'] === 'destination');
  const { source_workload: from, source_principal: principal, destination_service: service, destination_region: region, request_protocol: protocol } = bytes!.labels;
  assert.deepEqual([bytes!.value, from, principal, service, region, protocol], [50_000, 'teller', 'spiffe://cluster.local/ns/flows/sa/teller', 'vault.flows.svc.cluster.local', 'north', 'tcp']);
});

test('an agent\'s death neither resets nor doubles what was counted, and what comes meanwhile is counted', async () => {
  const { tellers, vault } = await pods();
  const before = await totals('source');
  await node.endAgent('SIGKILL');
  await send(tellers[0], vault, 9001, 70_000);
  node.startAgent();
  await node.podsAre('flows', 'flows to be enrolled again', enrolled('bpf'));
  await waitFor('series', async () => ((await totals('source'))['opened'] ?? 0) > 0, { timeoutMs: 120_000, everyMs: 50 });
  const [source, destination] = await closed(before['opened']! + 1);
  assert.deepEqual(source, { opened: before['opened']! + 1, closed: before['closed']! + 1, received: before['received']! + 70_000, sent: before['sent']! + 70_000 });
  assert.deepEqual(destination, source);
});

test('a pod that leaves takes nothing away from its workload\'s series; with the last one they stay for every reader of the next minutes', async () => {
  const { tellers } = await pods();
  const before = await totals('source');
  const off = (name: string): Promise<void> => node.lab.label({ kind: 'Pod', namespace: 'flows', name, labels: { 'underpass.io/mode': 'off' } });
  const isOff = (name: string): Promise<void> => node.podsAre('flows', `${name} to be off`, (pod) => pod.name !== name || (pod.state === 'off' && pod.settled));
  await off(tellers[0]);
  await isOff(tellers[0]);
  assert.deepEqual(await totals('source'), before);
  assert.deepEqual(await totals('source'), before, 'and not after a reading either');
  await off(tellers[1]);
  await isOff(tellers[1]);
  for (const reader of ['Prometheus', 'another one', '`underpass top`']) assert.deepEqual(await totals('source'), before, reader);
});

test('a pod outside of the mesh is told of by the server, as the workload that it is', async () => {
  const { vault } = await pods();
  const before = [await totals('source'), await totals('destination')];
  await send('stranger', vault, 9001, 30_000, 'street');
  await waitFor('the connection to be closed', async () => (await totals('destination'))['closed'] === before[1]!['closed']! + 1, { everyMs: 50 });
  assert.deepEqual(await totals('source'), before[0]);
  const [bytes] = (await samples(/^istio_tcp_received_bytes_total$/)).filter(({ labels }) => labels['source_workload'] === 'stranger');
  const { reporter, source_workload_namespace: from, source_principal: principal, destination_workload: to } = bytes!.labels;
  assert.deepEqual([bytes!.value, reporter, from, principal, to], [30_000, 'destination', 'street', 'unknown', 'vault']);
});

test('what a policy denies is in the metrics as ztunnel tells it: a connection that it ends, and one that it refuses at connect()', async () => {
  const { tellers, vault } = await pods();
  const [teller] = tellers;
  const label = (mode: string): Promise<void> => node.lab.label({ kind: 'Pod', namespace: 'flows', name: teller, labels: { 'underpass.io/mode': mode } });
  await label('node');
  await node.podsAre('flows', `${teller} to be enrolled`, (pod) => pod.name !== teller || enrolled('bpf')(pod));
  const direct = async (): Promise<number> => (await samples(/^istio_tcp_connections_opened_total$/)).filter(({ labels }) => labels['source_workload'] === 'teller' && labels['reporter'] === 'destination').reduce((sum, { value }) => sum + value, 0);
  const former = await direct();
  const talking = node.lab.exec(`flows/${teller}`, ['node', '-e', TALKER, vault, '9001']);
  await waitFor('the connection', async () => (await direct()) > former, { timeoutMs: 120_000, everyMs: 50 });
  writeFileSync(join(node.sourceDir, 'policy.yaml'), POLICY);
  assert.match((await talking).stdout, /ECONNRESET/);
  await waitFor('the policy to be the kernel\'s to judge', async () => (await node.lab.exec(`flows/${teller}`, ['node', '-e', TALKER, 'safe.flows', '9003'])).stdout.trim() === 'ECONNREFUSED', { timeoutMs: 60_000, everyMs: 200 });
  const failed = async (): Promise<Record<string, number>> => {
    const all = await samples(/^istio_tcp_connections_(failed|closed)_total$/);
    return Object.fromEntries(all.filter(({ labels }) => labels['response_flags'] !== '-').map(({ name, labels, value }) => {
      const { reporter, source_workload: from, destination_service_name: service, response_flags: flag } = labels;
      return [`${/(failed|closed)/.exec(name)![1]} ${reporter} ${from} ${service} ${flag}`, value];
    }).sort());
  };
  const before = await failed();
  const refused = await node.lab.exec(`flows/${teller}`, ['node', '-e', TALKER, 'safe.flows', '9003']);
  assert.equal(refused.stdout.trim(), 'ECONNREFUSED');
  const now = await failed();
  const grown = Object.fromEntries(Object.entries(now).map(([key, value]) => [key, value - (before[key] ?? 0)]).filter(([, value]) => value !== 0));
  assert.deepEqual(grown, {
    'closed source teller safe CONNECT': 1, 'failed source teller safe CONNECT': 1, 'closed destination teller safe DENY': 1, 'failed destination teller safe DENY': 1,
  });
  assert.ok((before['closed destination teller safe DENY'] ?? 0) >= 2, `the connection that was ended, and one that found out: ${JSON.stringify(before)}`);
});

test('each metric of a running agent is in the reference, with its type', async () => {
  const page = readFileSync(join(projectRoot, 'docs/reference/metrics.md'), 'utf8');
  const known = [...page.matchAll(/^\| `([\w*]+)` \| (\w+) \|/gm)].map(([, name = '', type = '']) => ({ name: new RegExp(`^${name.replaceAll('*', '\\w+')}$`), type }));
  const families = [...(await askAgent(node.paths.adminSocket, '/metrics')).matchAll(/^# TYPE (\w+) (\w+)$/gm)];
  assert.ok(families.length > 40, `${families.length} families`);
  assert.deepEqual(families.filter(([, family = '', type]) => !known.some((each) => each.name.test(family) && each.type === type)).map(([line]) => line), []);
});
