/**
 * `make bench-dataplane`: one node at size, of real parts: the control plane, the agent, the shared Envoy, the kernel's tables, and
 * pods that are there. First with ten services, then with many, in processes that are new each time.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { createWriteStream, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { cpus, release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command } from 'commander';
import { askAgent, instancePaths, type AgentStatus } from '../../agent/index.js';
import { parseLoadResult, quantile, tcpBench, type LoadResult } from '../../bench/index.js';
import { wholeNumber } from '../../common/arguments.js';
import { errorMessage } from '../../common/errors.js';
import { ClosableStore } from '../../common/lifecycle.js';
import { projectRoot } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { sleep, waitFor } from '../../common/retry.js';
import { Lab } from '../../lab/index.js';
import { CLIENT, LEAST_PODS, TCP_PORT, VERSIONS, WEB, worldYaml, writeRoute, writeServices, type DataplaneSize, type NodeSize } from './at-size-mesh.js';

interface Options extends DataplaneSize, NodeSize {
  changes: number;
  requests: number;
  rounds: number;
  startTimeout: number;
  out?: string;
  agentFlags: string;
  pilotFlags: string;
}

const SMALL: DataplaneSize = { services: 10, endpoints: 20, routes: 5 };
const cliScript = join(projectRoot, 'dist', 'cli', 'main.js');
const clientScript = join(projectRoot, 'dist', 'cli', 'bench', 'at-size-client.js');

const options = new Command('bench-dataplane')
  .description('measures the node agent, its Envoy and the kernel tables at size, with pods of a lab')
  .option('--services <n>', 'Services; a tenth of them leads to pods of the node by TCP', wholeNumber(10, 60_000), 10_000)
  .option('--endpoints <n>', 'endpoints of all Services elsewhere together', wholeNumber(10, 10_000_000), 100_000)
  .option('--routes <n>', 'VirtualServices, each with a DestinationRule and two subsets', wholeNumber(1, 60_000), 5_000)
  .option('--pods <n>', 'pods on the node', wholeNumber(LEAST_PODS, 240), 100)
  .option('--classes <n>', 'namespaces and service accounts that the pods are spread over', wholeNumber(1, 100), 10)
  .option('--changes <n>', 'changes of one route to measure', wholeNumber(1, 10_000), 20)
  .option('--requests <n>', 'requests of each kind to measure in each round', wholeNumber(1, 1_000_000), 2_000)
  .option('--rounds <n>', 'rounds of requests; the medians count', wholeNumber(1, 100), 5)
  .option('--start-timeout <s>', 'how long to wait for everything to be in force, at the start and after a change', wholeNumber(1, 3_600), 600)
  .option('--out <file>', 'also write the results as Markdown')
  .option('--agent-flags <flags>', "Node's flags for the agent, such as --cpu-prof", '')
  .option('--pilot-flags <flags>', "Node's flags for the control plane", '')
  .addHelpText('after', '\nExit codes: 0 measured, 1 could not be measured or a wrong option.')
  .parse()
  .opts<Options>();

const store = new ClosableStore();
const folder = mkdtempSync(join(tmpdir(), 'up-bench-dataplane-'));
store.defer(() => rmSync(folder, { recursive: true, force: true }));
const instance = `bench-size-${process.pid}`;
const paths = instancePaths({ instance });

const progress = (text: string): void => void process.stderr.write(`${text}\n`);

function mebibytes(pid: number): { rss: number; peak: number } {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const of = (name: string): number => Math.round(Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)?.[1] ?? 0) / 1024);
  return { rss: of('VmRSS'), peak: of('VmHWM') };
}

function cpuSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /, '').split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

const running = new Set<() => Promise<void>>();

/** A process of this CLI; what it prints goes into a file. */
function start(name: string, args: readonly string[], flags: readonly string[] = []): { child: ChildProcess; log: () => string; end: () => Promise<void> } {
  const file = join(folder, `${name}.log`);
  const child = spawn(process.execPath, ['--enable-source-maps', ...flags, cliScript, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  writeFileSync(file, '');
  const log = createWriteStream(file);
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => log.write(chunk));
  const end = async (): Promise<void> => {
    running.delete(end);
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), 30_000);
    await once(child, 'exit');
    clearTimeout(timer);
  };
  running.add(end);
  return { child, log: () => readFileSync(file, 'utf8'), end };
}

interface Measured {
  /** What the node was asked for and has in force. */
  counts: { pods: number; classes: number; clusters: number; listeners: number; serviceEntries: number };
  startSeconds: number;
  agentStartCpuSeconds: number;
  agent: { rss: number; peak: number };
  envoy: { rss: number; peak: number };
  /** ms from the file's change. */
  firstEffect: number[];
  lastOld: number[];
  agentCpuPerChange: number;
  envoyCpuPerChange: number;
  /** The longest that the agent's admin interface let one wait, ms. */
  longestWait: number;
  kept: LoadResult[];
  fresh: LoadResult[];
  tcp: LoadResult[];
}

async function cleanUp(): Promise<void> {
  await run(process.execPath, [cliScript, 'agent', '--cleanup', '--instance', instance], { okCodes: [0, 1], timeoutMs: 120_000 });
}

async function status(): Promise<AgentStatus> {
  return JSON.parse(await askAgent(paths.adminSocket, '/v1/status', { timeoutMs: 60_000 })) as AgentStatus;
}

/** How long `/healthz` takes to be answered shows how long the event loop is busy with something else. */
function watchAgent(): { end: () => number } {
  let ended = false;
  let longest = 0;
  const watch = async (): Promise<void> => {
    while (!ended) {
      const at = performance.now();
      await askAgent(paths.adminSocket, '/healthz', { timeoutMs: 60_000 }).catch(() => undefined);
      longest = Math.max(longest, performance.now() - at);
      await sleep(10);
    }
  };
  void watch();
  return { end: () => ((ended = true), Math.round(longest)) };
}

async function measureChanges(lab: Lab, source: string, agentPid: number, envoyPid: number): Promise<Pick<Measured, 'firstEffect' | 'lastOld' | 'agentCpuPerChange' | 'envoyCpuPerChange' | 'longestWait'>> {
  const client = lab.spawnIn(CLIENT, [process.execPath, clientScript, `http://${WEB}/`]);
  const lines = createInterface({ input: client.stdout! });
  try {
    const until = async (version: string): Promise<{ first: number; steady: number }> => {
      const line = once(lines, 'line', { signal: AbortSignal.timeout(options.startTimeout * 1_000) }) as Promise<[string]>;
      client.stdin!.write(`${version}\n`);
      return JSON.parse((await line)[0]) as { first: number; steady: number };
    };
    await until(VERSIONS[0]);
    const [firstEffect, lastOld]: number[][] = [[], []];
    const [agentBefore, envoyBefore] = [cpuSeconds(agentPid), cpuSeconds(envoyPid)];
    const watch = watchAgent();
    for (let change = 0; change < options.changes; change++) {
      const version = VERSIONS[(change + 1) % VERSIONS.length] as string;
      const at = Date.now();
      writeRoute(source, version);
      const { first, steady } = await until(version);
      firstEffect!.push(first - at);
      lastOld!.push(steady - at);
    }
    const longestWait = watch.end();
    if (options.changes % 2 === 1) {
      writeRoute(source, VERSIONS[0]);
      await until(VERSIONS[0]);
    }
    const per = (before: number, now: number): number => (1000 * (now - before)) / options.changes;
    return { firstEffect: firstEffect!, lastOld: lastOld!, longestWait, agentCpuPerChange: per(agentBefore, cpuSeconds(agentPid)), envoyCpuPerChange: per(envoyBefore, cpuSeconds(envoyPid)) };
  } finally {
    client.stdin!.end();
    if (client.exitCode === null && client.signalCode === null) await once(client, 'exit');
  }
}

async function load(lab: Lab, kind: 'http' | 'ping-pong', ...more: string[]): Promise<LoadResult> {
  const { code, stdout, stderr } = await lab.exec(CLIENT, [tcpBench, kind, '--connect', `${WEB}:${kind === 'http' ? 80 : TCP_PORT}`, '--connections', '1', '--count', String(options.requests), ...more], { timeoutMs: 300_000 });
  if (code !== 0) throw new Error(`the load: exit ${code}: ${stderr}`);
  const result = parseLoadResult(stdout);
  if (result.failed > 0) throw new Error(`the load: ${result.failed} requests failed: ${result.first_failure}`);
  return result;
}

const flagsOf = (text: string): string[] => text.split(' ').filter((flag) => flag !== '');

async function scenario(name: string, lab: Lab, world: string, size: DataplaneSize): Promise<Measured> {
  const source = join(folder, `mesh-${name}`);
  writeServices(source, size, options);
  const route = join(folder, `route-${name}`);
  writeRoute(route, VERSIONS[0]);
  const socket = join(paths.folder, 'pilot.sock');
  mkdirSync(paths.folder, { recursive: true });
  progress(`${name}: control plane reads ${size.services} services and ${size.routes} routes`);
  const pilot = start('pilot', ['pilot', ...[world, lab.objectsDir, source, route].flatMap((each) => ['--source', each]), '--listen', `unix:${socket}`, '--monitoring-listen', 'none'], flagsOf(options.pilotFlags));
  try {
    await waitFor('pilot to be ready', () => pilot.log().includes('"pilot is ready"') || (pilot.child.exitCode !== null && Promise.reject(new Error(`pilot ended: ${pilot.log().slice(-2000)}`))), { timeoutMs: 600_000, everyMs: 100 });
    progress(`${name}: the agent starts`);
    const began = performance.now();
    const agent = start('agent', ['agent', '--discovery', `unix:${socket}`, '--lab-socket', lab.socket, '--node', 'node-1', '--instance', instance, '--concurrency', '1'], flagsOf(options.agentFlags));
    try {
      const isUp = ({ ready, pods, proxy, services }: AgentStatus): boolean => ready && pods.length === options.pods && pods.every(({ state, settled }) => state === 'enrolled' && settled) && proxy.settled && services?.firstSyncMs !== undefined;
      let last: AgentStatus | undefined;
      await waitFor('the agent to have everything in force', async () => {
        if (agent.child.exitCode !== null) throw new Error('the agent ended');
        last = await status().catch(() => undefined);
        if (last?.ready && last.redirection.bpfProblem !== undefined) throw new Error(last.redirection.bpfProblem);
        return last !== undefined && isUp(last);
      }, { timeoutMs: options.startTimeout * 1_000, everyMs: 50 }).catch((error: unknown) => {
        throw new Error(`${errorMessage(error)}: ${JSON.stringify(last && { notReady: last.notReady, nacks: last.proxy.nacks.slice(0, 3), unsettled: last.pods.filter(({ settled }) => !settled).slice(0, 3) })}\n${agent.log().slice(-3000)}`);
      });
      const startSeconds = (performance.now() - began) / 1000;
      const { proxy, pods, services } = last!;
      if (proxy.nacks.length > 0) throw new Error(`refused: ${JSON.stringify(proxy.nacks.slice(0, 3))}`);
      const [agentPid, envoyPid] = [agent.child.pid!, proxy.envoy.pid!];
      const agentStartCpuSeconds = cpuSeconds(agentPid);
      progress(`${name}: in force after ${startSeconds.toFixed(1)} s; changes of a route`);
      const changes = await measureChanges(lab, route, agentPid, envoyPid);
      progress(`${name}: requests`);
      const [kept, fresh, tcp]: LoadResult[][] = [[], [], []];
      for (let round = 0; round < options.rounds; round++) {
        kept!.push(await load(lab, 'http'));
        fresh!.push(await load(lab, 'http', '--new-connection-each'));
        // Its DestinationRule leads TCP through Envoy, too.
        tcp!.push(await load(lab, 'ping-pong', '--size', '64'));
      }
      return {
        counts: { pods: pods.length, classes: proxy.classes.length, clusters: Math.max(...proxy.classes.map(({ clusters }) => clusters)), listeners: Math.max(...proxy.classes.map(({ listeners }) => listeners)), serviceEntries: services?.services ?? 0 },
        startSeconds, agentStartCpuSeconds, agent: mebibytes(agentPid), envoy: mebibytes(envoyPid), ...changes, kept: kept!, fresh: fresh!, tcp: tcp!,
      };
    } finally {
      await agent.end();
      await cleanUp();
    }
  } finally {
    await pilot.end();
    rmSync(source, { recursive: true, force: true });
  }
}

function table(columns: readonly { size: DataplaneSize; measured: Measured }[]): string[][] {
  const row = (what: string, value: (measured: Measured, size: DataplaneSize) => string): string[] => [what, ...columns.map(({ measured, size }) => value(measured, size))];
  const spread = (values: readonly number[]): string => `p50 ${quantile(values, 0.5).toFixed(0)}, most ${Math.max(...values).toFixed(0)}`;
  const latency = (results: readonly LoadResult[], of: 'p50' | 'p99'): string => quantile(results.map(({ latency_us }) => latency_us[of]), 0.5).toFixed(0);
  return [
    row('mesh', (_, { services, endpoints, routes }) => `${services} services, ${endpoints} endpoints elsewhere, ${routes} routes`),
    row('node', ({ counts }) => `${counts.pods} pods of ${counts.classes} kinds`),
    row('a kind of pods is sent', ({ counts }) => `${counts.clusters} clusters, ${counts.listeners} listeners`),
    row('addresses and ports in the kernel', ({ counts }) => String(counts.serviceEntries)),
    row('agent: RSS, peak (MiB)', ({ agent }) => `${agent.rss}, ${agent.peak}`),
    row('Envoy: RSS, peak (MiB)', ({ envoy }) => `${envoy.rss}, ${envoy.peak}`),
    row('from nothing to all pods enrolled and all in force (s)', ({ startSeconds, agentStartCpuSeconds }) => `${startSeconds.toFixed(1)}, agent's CPU ${agentStartCpuSeconds.toFixed(1)}`),
    row('one route changes: file to the first answer by the new route (ms)', ({ firstEffect }) => spread(firstEffect)),
    row('one route changes: file to the last answer by the old one (ms)', ({ lastOld }) => spread(lastOld)),
    row('one route changes: CPU of agent, of Envoy (ms)', ({ agentCpuPerChange, envoyCpuPerChange }) => `${agentCpuPerChange.toFixed(0)}, ${envoyCpuPerChange.toFixed(0)}`),
    row("one route changes: agent's event loop busy at most (ms)", ({ longestWait }) => String(longestWait)),
    row('request through Envoy, kept connection: p50, p99 (µs)', ({ kept }) => `${latency(kept, 'p50')}, ${latency(kept, 'p99')}`),
    row('request through Envoy, new connection: p50, p99 (µs)', ({ fresh }) => `${latency(fresh, 'p50')}, ${latency(fresh, 'p99')}`),
    row('64 bytes there and back by TCP through Envoy: p50, p99 (µs)', ({ tcp }) => `${latency(tcp, 'p50')}, ${latency(tcp, 'p99')}`),
  ];
}

async function main(): Promise<void> {
  const world = join(folder, 'world');
  mkdirSync(world);
  writeFileSync(join(world, 'world.yaml'), worldYaml(options));
  progress(`starting ${options.pods} pods`);
  const lab = await Lab.up({ name: instance, sources: [world], watch: false, purpose: 'bench', discovery: `unix:${join(paths.folder, 'pilot.sock')}` });
  store.defer(() => lab.down());
  await lab.whenReady({ timeoutMs: 120_000 });
  for (const version of VERSIONS) {
    const server = lab.spawnIn(`ns-0/web-${version}`, [tcpBench, 'server', '--port', String(TCP_PORT)], { stdio: 'ignore' });
    store.defer(() => void server.kill('SIGKILL'));
  }
  const columns: { size: DataplaneSize; measured: Measured }[] = [];
  for (const [name, size] of [['small', SMALL], ['large', options]] as const) columns.push({ size, measured: await scenario(name, lab, world, size) });
  const rows = table(columns);
  for (const [what, ...values] of rows) process.stdout.write(`${what}: ${values.join(' | ')}\n`);
  if (options.out === undefined) return;
  const [head, ...rest] = rows.map((cells) => `| ${cells.join(' | ')} |`);
  writeFileSync(options.out, `# The data plane at size
Made by \`make bench-dataplane\` on ${new Date().toISOString().slice(0, 10)}: ${cpus().length} CPUs (${cpus()[0]?.model.trim()}), Linux ${release().split('-')[0]}, Node ${process.version}. Pilot, the agent, Envoy (one worker), the lab and the pods share these CPUs. A change of a route includes pilot's debounce of 100 ms.

${head}
|---|---|---|
${rest.join('\n')}
`);
}

let failed: unknown;
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    void Promise.all([...running].map((end) => end())).then(cleanUp).then(() => store.close()).finally(() => process.exit(1));
  });
}
try {
  await main();
} catch (error) {
  failed = error;
  process.stderr.write(`${errorMessage(error)}\n`);
  process.exitCode = 1;
} finally {
  await store.close().catch((error: unknown) => {
    process.stderr.write(`${failed === undefined ? '' : 'and '}removing what was made: ${errorMessage(error)}\n`);
    process.exitCode = 1;
  });
}
