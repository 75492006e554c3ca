/** A lab, an agent and a control plane made for one comparison, and removed after it. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { worldYaml, type BenchPod, type ByteCounters, type CommandResult, type Mode, type World } from '../../bench/index.js';
import { UnderpassError } from '../../common/errors.js';
import { ClosableStore, type Closable } from '../../common/lifecycle.js';
import { sleep } from '../../common/retry.js';
import { Lab } from '../../lab/index.js';
import { NodeProcess } from '../node-process.js';

const START_TIMEOUT_MS = 60_000;
/** nginx forks its new worker and lets the old one go. */
const RELOAD_MS = 200;

export class LabWorld implements World, Closable {
  readonly #store = new ClosableStore();

  private constructor(
    readonly lab: Lab,
    readonly node: NodeProcess,
  ) {}

  static async start(modes: readonly Mode[], options: { proxyWorkers: number; signal: AbortSignal; onProgress: (text: string) => void; onProblem: (error: unknown) => void }): Promise<LabWorld> {
    const { signal, onProgress } = options;
    const name = `bench-${process.pid}`;
    const store = new ClosableStore();
    const directory = mkdtempSync(join(tmpdir(), `underpass-${name}-`));
    store.defer(() => rmSync(directory, { recursive: true, force: true }));
    try {
      writeFileSync(join(directory, 'world.yaml'), worldYaml(modes));
      const logPath = join(directory, 'node.log');
      const node = new NodeProcess(name, name, logPath, ['--concurrency', String(options.proxyWorkers)]);
      onProgress('starting pods');
      const lab = await Lab.up({ name, sources: [directory], discovery: node.discovery, purpose: 'bench', watch: false, sidecarConcurrency: options.proxyWorkers, onProblem: options.onProblem });
      store.defer(() => lab.down());
      const world = new LabWorld(lab, node);
      store.add(node);
      world.#store.add(store);
      signal.throwIfAborted();
      await lab.whenReady({ timeoutMs: START_TIMEOUT_MS, signal });
      onProgress('starting control plane, agent and Envoy');
      node.start();
      await node.waitFor('the agent and its pods', (status) => status.ready && status.pods.length > 0 && status.pods.every((pod) => pod.settled), { timeoutMs: START_TIMEOUT_MS, signal });
      await lab.whenReady({ timeoutMs: START_TIMEOUT_MS, signal, sidecars: true });
      return world;
    } catch (error) {
      await store.close();
      throw error;
    }
  }

  get proxyCgroup(): string {
    return this.node.proxyCgroup;
  }

  pod(namespace: string, name: string): BenchPod {
    const record = this.lab.pod(namespace, name);
    const ip = record.ips.find((address) => !address.includes(':'));
    if (ip === undefined) throw new UnderpassError('UNDERPASS_BENCH_NOT_READY', `looking for pod ${namespace}/${name}: it has no IPv4 address`);
    return { uid: record.uid, namespace, name: record.name, ip, cgroup: record.cgroup, hasSidecar: record.hasSidecar };
  }

  run(pod: BenchPod, argv: readonly string[], options: { timeoutMs: number; signal?: AbortSignal }): Promise<CommandResult> {
    return this.lab.exec(pod, argv, options);
  }

  async renewConnections(server: BenchPod): Promise<void> {
    const pid = this.lab.pod(server.namespace, server.name).containers[0]?.pid;
    if (pid === undefined) throw new UnderpassError('UNDERPASS_BENCH_NOT_READY', `renewing the connections of ${server.namespace}/${server.name}: its server does not run`);
    process.kill(pid, 'SIGHUP'); // nginx: a new worker takes over, the old one ends what is idle
    await sleep(RELOAD_MS);
  }

  async byteCounters(): Promise<ReadonlyMap<string, ByteCounters>> {
    const { pods } = await this.node.counters();
    return new Map(pods.map((pod) => [pod.uid, { shortCircuited: Number(pod['bytes_short_circuited'] ?? 0), tcp: Number(pod['bytes_tcp'] ?? 0) }]));
  }

  async facts(): Promise<Record<string, string>> {
    const status = await this.node.status();
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
