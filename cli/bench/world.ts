/** A lab, an agent and a control plane made for one comparison, and removed after it. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { EnvoyAdmin } from '../../agent/index.js';
import { ASK_COLLECTOR, COLLECTOR, NODES, worldYaml, type BenchPod, type CommandResult, type Counters, type Mode, type Workload, type World } from '../../bench/index.js';
import { UnderpassError } from '../../common/errors.js';
import { ClosableStore, type Closable } from '../../common/lifecycle.js';
import { sleep } from '../../common/retry.js';
import { Lab } from '../../lab/index.js';
import { NodeProcess } from '../node-process.js';

const START_TIMEOUT_MS = 180_000;
/** nginx forks its new worker and lets the old one go. */
const RELOAD_MS = 200;
/** Envoy's Zipkin tracer sends what it has every five seconds. */
const SPANS_MS = 5_500;

export class LabWorld implements World, Closable {
  readonly #store = new ClosableStore();

  private constructor(
    readonly lab: Lab,
    /** The first one has the control plane. */
    readonly nodes: readonly NodeProcess[],
  ) {}

  static async start(modes: readonly Mode[], workloads: readonly Workload[], options: { proxyWorkers: number; signal: AbortSignal; onProgress: (text: string) => void; onProblem: (error: unknown) => void }): Promise<LabWorld> {
    const { signal, onProgress } = options;
    const name = `bench-${process.pid}`;
    const store = new ClosableStore();
    const directory = mkdtempSync(join(tmpdir(), `underpass-${name}-`));
    store.defer(() => rmSync(directory, { recursive: true, force: true }));
    try {
      writeFileSync(join(directory, 'world.yaml'), worldYaml(modes, workloads));
      const args = (node: string): string[] => ['--node', node, '--concurrency', String(options.proxyWorkers)];
      const [firstNode, ...otherNodes] = modes.some(({ betweenNodes }) => betweenNodes) ? NODES : NODES.slice(0, 1);
      const first = new NodeProcess(name, name, join(directory, 'node.log'), args(firstNode as string));
      const nodes = [first, ...otherNodes.map((node) => new NodeProcess(`${name}-${node}`, name, join(directory, `${node}.log`), args(node), first.discovery))];
      onProgress('starting pods');
      const lab = await Lab.up({ name, sources: [directory], discovery: first.discovery, purpose: 'bench', watch: false, sidecarConcurrency: options.proxyWorkers, onProblem: options.onProblem });
      store.defer(() => lab.down());
      const world = new LabWorld(lab, nodes);
      for (const node of nodes) store.add(node);
      world.#store.add(store);
      signal.throwIfAborted();
      await lab.whenReady({ timeoutMs: START_TIMEOUT_MS, signal });
      onProgress('starting control plane, agent and Envoy');
      for (const node of nodes) {
        node.start();
        await node.waitFor('the agent and its pods', (status) => status.ready && status.pods.length > 0 && status.pods.every((pod) => pod.settled), { timeoutMs: START_TIMEOUT_MS, signal });
      }
      await lab.whenReady({ timeoutMs: START_TIMEOUT_MS, signal, sidecars: true });
      return world;
    } catch (error) {
      await store.close();
      throw error;
    }
  }

  proxyCgroups({ sharedProxy, betweenNodes }: Mode): readonly string[] {
    return this.nodes.slice(0, !sharedProxy ? 0 : betweenNodes ? 2 : 1).map(({ proxyCgroup }) => proxyCgroup);
  }

  async tunnels(): Promise<number> {
    const found = await Promise.all(this.nodes.map(({ paths }) => new EnvoyAdmin(join(paths.folder, 'envoy-admin.sock')).stats('^http\\.pod_.*_hbone\\.downstream_rq_total$')));
    return found.flatMap((stats) => [...stats.values()]).reduce((sum, value) => sum + value, 0);
  }

  pod(namespace: string, name: string): BenchPod {
    const record = this.lab.pod(namespace, name);
    const ip = record.ips.find((address) => !address.includes(':'));
    if (ip === undefined) throw new UnderpassError('UNDERPASS_BENCH_NOT_READY', `looking for pod ${namespace}/${name}: it has no IPv4 address`);
    return { uid: record.uid, namespace, name: record.name, ip, cgroup: record.cgroup, hasSidecar: record.hasSidecar };
  }

  run(pod: BenchPod, argv: readonly string[], options: { timeoutMs: number; onOutput?: () => Promise<void>; signal?: AbortSignal }): Promise<CommandResult> {
    return this.lab.exec(pod, argv, options);
  }

  async renewConnections(server: BenchPod): Promise<void> {
    const pid = this.lab.pod(server.namespace, server.name).containers[0]?.pid;
    if (pid === undefined) throw new UnderpassError('UNDERPASS_BENCH_NOT_READY', `renewing the connections of ${server.namespace}/${server.name}: its server does not run`);
    process.kill(pid, 'SIGHUP'); // nginx: a new worker takes over, the old one ends what is idle
    await sleep(RELOAD_MS);
  }

  async counters(): Promise<Counters> {
    const all = await Promise.all(this.nodes.map((node) => node.counters()));
    const http: Record<string, number> = {};
    for (const [name, value] of all.flatMap(({ node }) => Object.entries(node))) if (name.startsWith('http_')) http[name] = (http[name] ?? 0) + value;
    const bytes = new Map(all.flatMap(({ pods }) => pods.map((pod) => [pod.uid, { shortCircuited: Number(pod['bytes_short_circuited'] ?? 0), tcp: Number(pod['bytes_tcp'] ?? 0) }])));
    return { bytes, http };
  }

  async traces(): Promise<number | undefined> {
    if (!this.lab.pods().some(({ namespace }) => namespace === COLLECTOR.namespace)) return undefined;
    await sleep(SPANS_MS);
    const { code, stdout, stderr } = await this.lab.exec(COLLECTOR, ASK_COLLECTOR, { timeoutMs: 10_000 });
    if (code !== 0) throw new UnderpassError('UNDERPASS_BENCH_NOT_READY', `asking the collector for its traces: exit ${code}: ${stderr.trim()}`);
    return Number(stdout);
  }

  async facts(): Promise<Record<string, string>> {
    const status = await (this.nodes[0] as NodeProcess).status();
    const processors = cpus();
    return {
      kernel: `Linux ${release()}`,
      CPUs: `${processors.length} × ${processors[0]?.model ?? 'unknown'}`,
      Envoy: /\d+\.\d+\.\d+/.exec(status.proxy.envoy.version ?? '')?.[0] ?? 'unknown',
      'Node.js': process.versions.node,
      acceleration: status.acceleration.on ? 'on' : `off (${status.acceleration.reason ?? ''})`,
    };
  }

  close(): Promise<void> {
    return this.#store.close();
  }
}
