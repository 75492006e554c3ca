/**
 * `make bench-kube`: one node of a big cluster, of real parts: etcd and kube-apiserver, pilot, the agent, the shared Envoy, and a
 * lab's pods on the node; then sidecars of the same configuration. Prints a table; docs/results/kubernetes.md has what came of it.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { Command } from 'commander';
import { stringify } from 'yaml';
import type { AgentStatus } from '../../../agent/index.js';
import { proxyMemory, readMemory } from '../../../bench/memory.js';
import { quantile } from '../../../bench/index.js';
import { wholeNumber } from '../../../common/arguments.js';
import { errorMessage } from '../../../common/errors.js';
import { ClosableStore } from '../../../common/lifecycle.js';
import { projectRoot } from '../../../common/paths.js';
import { run } from '../../../common/process.js';
import { sleep, waitFor } from '../../../common/retry.js';
import { Lab } from '../../../lab/index.js';
import { AGENT_RBAC } from '../agent-world.js';
import { KubeCluster } from '../cluster.js';
import { KubeNode } from '../node.js';
import { pilotKubeconfig } from '../pilot.js';
import { seed, type ClusterSize } from './seed.js';

interface Options extends ClusterSize {
  localPods: number;
  kinds: number;
  resident: number;
  rounds: number;
  sidecars: number;
  linger: number;
  agentFlags: string;
}

const options = new Command('bench-kube')
  .description('measures a node agent under a real API server of a big cluster')
  .option('--services <n>', 'Services', wholeNumber(1, 20_000), 5_000)
  .option('--pods <n>', 'Pods elsewhere in the cluster', wholeNumber(0, 200_000), 50_000)
  .option('--nodes <n>', 'nodes that they are on', wholeNumber(1, 5_000), 500)
  .option('--namespaces <n>', 'namespaces that they are in', wholeNumber(1, 1_000), 100)
  .option('--local-pods <n>', 'pods on the node', wholeNumber(1, 240), 100)
  .option('--kinds <n>', 'service accounts that these are of', wholeNumber(1, 240), 10)
  .option('--resident <n>', 'further pods of the node, of an account and a namespace of their own, that are in the mesh all the time', wholeNumber(0, 10), 0)
  .option('--rounds <n>', 'how often their namespace is labelled anew', wholeNumber(0, 100), 3)
  .option('--sidecars <n>', 'sidecars to compare the shared Envoy with; each takes as much memory as it does', wholeNumber(0, 240), 5)
  .option('--linger <s>', 'seconds after all is in force, and after the rounds, until memory is read', wholeNumber(0, 600), 20)
  .option('--agent-flags <flags>', "Node's flags for the agent", '')
  .addHelpText('after', '\nExit codes: 0 measured, 1 could not be measured or a wrong option.')
  .parse()
  .opts<Options>();

const NAMESPACE = 'here';
const RESIDENTS = 'resident';
const ADDRESS = '10.96.255.254';
const AGENT_USER = 'system:serviceaccount:underpass-system:underpass-agent';
const IN_FORCE = { timeoutMs: 600_000, everyMs: 50 };
/** In a pod: tries to connect every 50 ms (at 10 ms the hundred of them took a third of two CPUs themselves), and prints when it began to where it could, in seconds of the machine's clock. */
const PROBE = `use Socket; use Time::HiRes qw(time sleep); $| = 1; my $to = sockaddr_in(80, inet_aton("${ADDRESS}")); print "ready\\n"; while (1) { my $at = time; socket(my $s, AF_INET, SOCK_STREAM, 0); if (connect($s, $to)) { printf "%.4f\\n", $at; exit } close($s); sleep 0.05 }`;

const store = new ClosableStore();
const folder = mkdtempSync(join(tmpdir(), 'up-bench-kube-'));
store.defer(() => rmSync(folder, { recursive: true, force: true }));
const progress = (text: string): void => void process.stderr.write(`${text}\n`);
const rows: [string, string][] = [];
const row = (what: string, value: string): void => {
  rows.push([what, value]);
  progress(`${what}: ${value}`);
};

const mebibytes = (bytes: number): string => (bytes / (1 << 20)).toFixed(0);
function memory(pid: number): string {
  const peak = Number(/^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024;
  const { rssBytes, pssBytes } = readMemory(pid)!;
  return `RSS ${mebibytes(rssBytes)}, PSS ${mebibytes(pssBytes)}, peak ${mebibytes(peak)}`;
}

function cpuSeconds(pid: number): string {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /, '').split(' ');
  return ((Number(fields[11]) + Number(fields[12])) / 100).toFixed(1);
}

/** A process of the CLI, started as in the image; what it prints goes into a file. */
function start(name: string, args: readonly string[], flags: readonly string[] = []): { child: ChildProcess; log: () => string } {
  const file = join(folder, `${name}.log`);
  const child = spawn(join(projectRoot, 'bin', 'underpass'), args, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, NODE_OPTIONS: flags.join(' ') } });
  writeFileSync(file, '');
  const log = createWriteStream(file);
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => log.write(chunk));
  store.defer(() => end(child, 30_000));
  return { child, log: () => readFileSync(file, 'utf8') };
}

async function end(child: ChildProcess, graceMs: number): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), graceMs);
  await once(child, 'exit');
  clearTimeout(timer);
}

const seconds = (since: number): string => ((performance.now() - since) / 1_000).toFixed(1);

async function startNode(cluster: KubeCluster): Promise<KubeNode> {
  await cluster.namespace(NAMESPACE, { 'underpass.io/mode': 'node' });
  for (let i = 0; i < options.kinds; i++) await cluster.apply(`{apiVersion: v1, kind: ServiceAccount, metadata: {name: kind-${i}, namespace: ${NAMESPACE}}}`);
  await cluster.apply(`{apiVersion: v1, kind: Service, metadata: {name: probed, namespace: ${NAMESPACE}}, spec: {clusterIP: ${ADDRESS}, selector: {app: nobody}, ports: [{name: http, port: 80}]}}`);
  const node = new KubeNode(cluster, 'bench');
  store.defer(() => node.down());
  await node.up();
  if (options.resident > 0) {
    await cluster.namespace(RESIDENTS, { 'underpass.io/mode': 'node' });
    await cluster.apply(`{apiVersion: v1, kind: ServiceAccount, metadata: {name: resident, namespace: ${RESIDENTS}}}`);
    await node.run(Array.from({ length: options.resident }, (_, i) => stringify({ apiVersion: 'v1', kind: 'Pod', metadata: { name: `pod-${i}`, namespace: RESIDENTS, labels: { app: 'resident' } }, spec: { serviceAccountName: 'resident', containers: [{ name: 'curl', image: 'curl' }] } })).join('---\n'));
  }
  await node.run(podNames().map((name, i) => stringify({ apiVersion: 'v1', kind: 'Pod', metadata: { name, namespace: NAMESPACE, labels: { app: `kind-${i % options.kinds}` } }, spec: { serviceAccountName: `kind-${i % options.kinds}`, containers: [{ name: 'curl', image: 'curl' }] } })).join('---\n'));
  // A connection that nobody captures is refused at once.
  for (const name of podNames()) await run('nsenter', [`--net=${node.pod(NAMESPACE, name).netns}`, 'ip', 'route', 'add', 'unreachable', `${ADDRESS}/32`]);
  return node;
}

const podNames = (): string[] => Array.from({ length: options.localPods }, (_, i) => `pod-${i}`);

async function inForce(node: KubeNode, agent: ReturnType<typeof start>, isWanted: (status: AgentStatus) => boolean): Promise<AgentStatus> {
  let last: AgentStatus | undefined;
  return waitFor<AgentStatus | undefined>('the agent to have all in force', async () => {
    if (agent.child.exitCode !== null) throw new Error('the agent ended');
    last = await node.status().catch(() => undefined);
    return last !== undefined && isWanted(last) ? last : undefined;
  }, IN_FORCE).catch((error: unknown) => {
    throw new Error(`${errorMessage(error)}: ${JSON.stringify(last && { notReady: last.notReady, nacks: last.proxy.nacks.slice(0, 3) })}\n${agent.log().slice(-3_000)}`);
  });
}

const allPods = options.localPods + options.resident;
const enrolled = ({ pods }: AgentStatus): number => pods.filter(({ state }) => state === 'enrolled').length;
const isSettled = (status: AgentStatus): boolean => status.ready && enrolled(status) === allPods && status.pods.every(({ settled }) => settled) && status.proxy.settled;

/** @returns of each pod the ms from the request that labels its namespace to the first connection that is captured */
async function captureTimes(cluster: KubeCluster, node: KubeNode, agent: ReturnType<typeof start>): Promise<number[]> {
  const label = (value: string | null): Promise<void> => cluster.merge('v1', 'Namespace', { name: NAMESPACE }, { metadata: { labels: { 'underpass.io/mode': value } } });
  await label(null);
  await inForce(node, agent, (status) => status.ready && status.pods.every(({ namespace, state, mode }) => namespace === RESIDENTS || (state === 'off' && mode === 'off')) && status.proxy.settled);
  const probes = podNames().map((name) => {
    const child = node.spawnIn(`${NAMESPACE}/${name}`, ['perl', '-e', PROBE]);
    const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
    return { child, next: async (): Promise<string> => ((await lines.next()) as IteratorResult<string, string>).value };
  });
  try {
    await Promise.all(probes.map(({ next }) => next()));
    await sleep(1_000);
    const at = Date.now();
    await label('node');
    const firsts = await Promise.all(probes.map(({ next }) => next()));
    return firsts.map((first) => Number(first) * 1_000 - at);
  } finally {
    await Promise.all(probes.map(({ child }) => end(child, 2_000)));
    await inForce(node, agent, isSettled);
  }
}

async function measureSidecars(discovery: string): Promise<void> {
  const source = join(folder, 'sidecars');
  mkdirSync(source);
  const pods = Array.from({ length: options.sidecars }, (_, i) => ({ apiVersion: 'v1', kind: 'Pod', metadata: { name: `pod-${i}`, namespace: NAMESPACE, labels: { app: `kind-${i % options.kinds}` } }, spec: { nodeName: 'node-1', containers: [{ name: 'curl', image: 'curl' }] } }));
  writeFileSync(join(source, 'world.yaml'), [{ apiVersion: 'v1', kind: 'Namespace', metadata: { name: NAMESPACE, labels: { 'istio-injection': 'enabled' } } }, ...pods].map((object) => stringify(object)).join('---\n'));
  const lab = await Lab.up({ name: `up-bench-side-${process.pid}`, sources: [source], watch: false, discovery, sidecarConcurrency: 1, purpose: 'bench' });
  try {
    await lab.whenReady({ timeoutMs: 600_000, sidecars: true });
    await sleep(options.linger * 1_000);
    const { proxies, rssBytes, pssBytes } = proxyMemory(lab.records('node-1').map((pod) => ({ ...pod, ip: pod.ips[0]! })), []);
    row(`Envoys of ${proxies} sidecars of the same configuration (MiB)`, `RSS ${mebibytes(rssBytes)}, PSS ${mebibytes(pssBytes)}; each RSS ${mebibytes(rssBytes / proxies)}, PSS ${mebibytes(pssBytes / proxies)}`);
  } finally {
    await lab.down();
  }
}

async function main(): Promise<void> {
  const cluster = store.add(await KubeCluster.start());
  progress('filling the cluster');
  await seed(cluster, options);
  const pilotConfig = join(folder, 'pilot.kubeconfig');
  writeFileSync(pilotConfig, await pilotKubeconfig(cluster), { mode: 0o600 });
  await cluster.apply(readFileSync(AGENT_RBAC, 'utf8'));
  const agentConfig = join(folder, 'agent.kubeconfig');
  writeFileSync(agentConfig, await cluster.kubeconfigOf('underpass-system', 'underpass-agent'), { mode: 0o600 });
  const node = await startNode(cluster);
  row('cluster', `${options.services} Services, ${options.pods} Pods in ${options.namespaces} namespaces on ${options.nodes} other nodes; ${options.localPods} pods of ${options.kinds} service accounts on this node${options.resident > 0 ? `, and ${options.resident} in the mesh already` : ''}`);
  const discovery = `unix:${join(folder, 'pilot.sock')}`;
  let began = performance.now();
  const pilot = start('pilot', ['pilot', '--kubeconfig', pilotConfig, '--read-only', '--listen', discovery, '--monitoring-listen', 'none']);
  await waitFor('pilot', () => pilot.log().includes('"pilot is ready"') || (pilot.child.exitCode !== null && Promise.reject(new Error(pilot.log().slice(-2_000)))), IN_FORCE);
  row('pilot: from nothing to ready (s)', `${seconds(began)}, CPU ${cpuSeconds(pilot.child.pid!)}`);
  began = performance.now();
  const agent = start('agent', ['agent', '--instance', node.instance, '--concurrency', '1', '--node', node.name, '--kubeconfig', agentConfig, '--discovery', discovery], options.agentFlags.split(' ').filter(Boolean));
  const first = await inForce(node, agent, (status) => enrolled(status) === allPods);
  const toEnrolled = seconds(began);
  const status = isSettled(first) ? first : await inForce(node, agent, isSettled);
  const [agentPid, envoyPid] = [agent.child.pid!, status.proxy.envoy.pid!];
  row('agent: from nothing to all pods enrolled, to all in force (s)', `${toEnrolled}, ${seconds(began)}; CPU ${cpuSeconds(agentPid)}, Envoy's ${cpuSeconds(envoyPid)}`);
  const { clusters, listeners } = status.proxy.classes[0]!;
  row('a kind of pods is sent', `${clusters} clusters, ${listeners} listeners; the node ${status.proxy.workloads.addresses} workloads and services`);
  const asked = cluster.requests().filter(({ user }) => user === AGENT_USER);
  row("agent's requests to the API server until then", `${asked.length}: ${asked.map(({ verb, resource }) => `${verb} ${resource}`).sort().join(', ')}`);
  await sleep(options.linger * 1_000);
  row('agent (MiB)', memory(agentPid));
  row(`shared Envoy of ${allPods} pods (MiB)`, memory(envoyPid));
  row('pilot (MiB)', memory(pilot.child.pid!));
  const times: number[] = [];
  for (let round = 0; round < options.rounds; round++) times.push(...await captureTimes(cluster, node, agent));
  if (times.length > 0) row("a namespace's label to its pods' connections being captured (ms)", `p50 ${quantile(times, 0.5).toFixed(0)}, p99 ${quantile(times, 0.99).toFixed(0)}, most ${Math.max(...times).toFixed(0)} (${options.rounds} rounds of ${options.localPods} pods)`);
  if (options.rounds > 0) {
    await sleep(options.linger * 1_000);
    row('agent after that (MiB)', `${memory(agentPid)}; CPU ${cpuSeconds(agentPid)}`);
  }
  if (options.sidecars > 0) await measureSidecars(discovery);
  row('load of the machine at the end (1, 5, 15 minutes)', loadavg().map((load) => load.toFixed(1)).join(', '));
  process.stdout.write(`| what | measured |\n|---|---|\n${rows.map((cells) => `| ${cells.join(' | ')} |\n`).join('')}`);
}

const stopped = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stopped.abort(new Error(`ended by ${signal}`)));
try {
  await Promise.race([main(), new Promise<never>((_, reject) => stopped.signal.addEventListener('abort', () => reject(stopped.signal.reason as Error)))]);
} catch (error) {
  process.stderr.write(`${errorMessage(error)}\n`);
  process.exitCode = 1;
} finally {
  await store.close();
  process.exit();
}
