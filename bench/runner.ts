/** Interleaved rounds: in each, every mode is measured once free and once with all its processes on one CPU. */
import { cgroupProcesses } from '../common/cgroup.js';
import { UnderpassError } from '../common/errors.js';
import { waitFor } from '../common/retry.js';
import { allowedCpus, lastCpu, setAffinity } from './affinity.js';
import { total, type CpuUser } from './cpu.js';
import { bytesBetween, cpuOf, runLoad, siteOf, type LoadResult, type Shares, type Site } from './load.js';
import { proxyMemory, type ProxyMemory } from './memory.js';
import { HTTP_PORT, TCP_PORT, type Mode, type ModeId } from './modes.js';
import { requestsBetween, type RequestShares } from './requests.js';
import { namespaceOf, WORKLOADS, workloadsOf, type Workload, type WorkloadId } from './workloads.js';
import type { Counters, World } from './world.js';

export type Placement = 'free' | 'one-cpu';
export const PLACEMENTS: readonly Placement[] = ['free', 'one-cpu'];

export interface BenchOptions {
  modes: readonly Mode[];
  workloads: readonly Workload[];
  rounds: number;
  /** Measured time of each load, seconds. */
  durationS: number;
  /** Connections of the load that measures throughput and CPU; latency is measured with one. */
  connections: number;
  signal?: AbortSignal;
  onProgress?: (text: string, done: number, of: number) => void;
}

export interface Sample {
  requestsPerSecond: number;
  /** Of the load with many connections, µs per request, by who used it. */
  cpu: Partial<Record<CpuUser, number>>;
  cpuUsecPerRequest: number;
  /** With one connection, µs. Absent for bulk. */
  latency?: { p50: number; p90: number; p99: number };
  /** With many connections. */
  loadedLatency?: { p50: number; p90: number; p99: number };
  bitsPerSecond?: number;
  requests: number;
  failed: number;
  firstFailure?: string;
  shares: Shares;
  /** Numbers; absent where no request came to the fast path's programs. */
  requestsBy?: RequestShares;
  answers: Record<string, number>;
  /** CPUs that were busy meanwhile with what does not take part: other programs, or the kernel's own threads. */
  foreignCpus: number;
}

export interface Cell {
  mode: ModeId;
  workload: WorkloadId;
  placement: Placement;
  samples: Sample[];
}

export interface Measurements {
  cells: Cell[];
  memory: Map<ModeId, ProxyMemory>;
  /** That the collector has had, where there is one. */
  traces?: number;
  seconds: number;
  cpus: string;
  pinnedCpu: number;
}

/** Shorter than this a measured time says little; a warm-up is a part of it. */
const WARM_UP_SHARE = 0.2;
/** More than probation asks for, at each listener and by each program. */
const WARM_CONNECTIONS = 24;
/** What each connection has had before it is measured: with 24, one of a thousand has not met a server of a quarter's weight. */
const WARM_REQUESTS = 24;
/** A load opens at least as many connections to a server as it takes to pass, once or twice. */
const POOL_RENEWALS = 3;
/** A route that a control plane has yet to send answers with an error. */
const READY_TIMEOUT_MS = 60_000;

export async function measure(world: World, options: BenchOptions): Promise<Measurements> {
  const started = performance.now();
  const sites = new Map<string, Site>();
  const plan = options.modes.flatMap((mode) => workloadsOf(mode, options.workloads).map((workload) => {
    const namespace = namespaceOf(mode, workload.variant);
    const site = sites.get(namespace) ?? siteOf(world, mode, workload.variant);
    sites.set(namespace, site);
    return { site, workload };
  }));
  const cells = new Map<string, Cell>();
  const cpus = allowedCpus();
  const pinnedCpu = lastCpu(cpus);
  const steps = options.rounds * PLACEMENTS.length * plan.length;
  let step = 0;
  for (const site of sites.values()) {
    options.onProgress?.(`warming up: ${site.mode.title}`, 0, steps);
    await warmUp(world, site, plan.flatMap((step) => (step.site === site ? [step.workload] : [])), options);
  }
  const everything = (): number[] => [...new Set([...sites.values()].flatMap((site) => [site.client.cgroup, ...site.servers.map(({ cgroup }) => cgroup), ...site.cgroups.keys()]))].flatMap((path) => cgroupProcesses(path));
  try {
    for (let round = 0; round < options.rounds; round++) {
      for (const placement of PLACEMENTS) {
        await setAffinity([...new Set(everything())], placement === 'free' ? cpus : String(pinnedCpu));
        // Another mode is first in each round, so that none always follows the same one.
        for (let index = 0; index < plan.length; index++) {
          const { site, workload } = plan[(index + round) % plan.length] as (typeof plan)[number];
          options.signal?.throwIfAborted();
          options.onProgress?.(`round ${round + 1} of ${options.rounds}, ${placement === 'free' ? 'free' : 'one CPU'}: ${site.mode.title}, ${workload.short}`, step++, steps);
          const sample = await measureOnce(world, site, workload, options, placement === 'free' ? undefined : pinnedCpu);
          const key = `${site.mode.id} ${workload.id} ${placement}`;
          const cell = cells.get(key) ?? { mode: site.mode.id, workload: workload.id, placement, samples: [] };
          cell.samples.push(sample);
          cells.set(key, cell);
        }
      }
    }
  } finally {
    await setAffinity([...new Set(everything())], cpus);
  }
  // After the load: a proxy that has served takes more than one that has just started.
  const memory = new Map<ModeId, ProxyMemory>();
  for (const site of sites.values()) if (!memory.has(site.mode.id)) memory.set(site.mode.id, proxyMemory([site.client, ...site.servers], world.proxyCgroups(site.mode)));
  const traces = await world.traces();
  const order = (cell: Cell): number => options.modes.findIndex(({ id }) => id === cell.mode) * 1000 + WORKLOADS.findIndex(({ id }) => id === cell.workload) * 10 + PLACEMENTS.indexOf(cell.placement);
  return { cells: [...cells.values()].sort((a, b) => order(a) - order(b)), memory, seconds: (performance.now() - started) / 1000, cpus, pinnedCpu, ...(traces === undefined ? {} : { traces }) };
}

/** Answers without failure, then enough short connections that every listener and program has passed probation. */
async function warmUp(world: World, site: Site, workloads: readonly Workload[], options: BenchOptions): Promise<void> {
  const { signal } = options;
  const workload = workloads[0] as Workload;
  const common = signal ? { signal } : {};
  let last: LoadResult | undefined;
  let tunnelled = !site.mode.hbone;
  const tunnelsBefore = tunnelled ? 0 : await world.tunnels();
  try {
    await waitFor(
      `mode ${site.mode.id}`,
      async () => {
        last = await runLoad(world, site, workload, { connections: 1, count: 20, ...common });
        tunnelled ||= (await world.tunnels()) > tunnelsBefore;
        return last.failed === 0 && last.requests === 20 && tunnelled;
      },
      { timeoutMs: READY_TIMEOUT_MS, everyMs: 250, ...common },
    );
  } catch (cause) {
    if (signal?.aborted || cause instanceof UnderpassError) throw cause;
    throw new UnderpassError('UNDERPASS_BENCH_NOT_READY', `warming up mode ${site.mode.id}: ${last?.failed ?? 0} of ${(last?.failed ?? 0) + (last?.requests ?? 0)} requests fail after ${READY_TIMEOUT_MS / 1000} s: ${tunnelled ? (last?.first_failure ?? '') : 'nothing takes a tunnel'}`, { cause });
  }
  // Connections that ended take their ports with them for a minute, else.
  if (workloads.some(({ id }) => id === 'tcp-connect')) await world.run(site.client, ['sh', '-c', 'echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse && echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range'], { timeoutMs: 5_000, ...common });
  const port = site.mode.protocol === 'http' ? HTTP_PORT : TCP_PORT;
  for (const server of site.servers) {
    await runLoad(world, site, workload, { connections: 1, count: WARM_CONNECTIONS, newConnectionEach: true, target: `${server.ip}:${port}`, ...common });
  }
  await runLoad(world, site, workload, { connections: 4, count: 4 * WARM_CONNECTIONS, newConnectionEach: true, ...common });
  // What a proxy opened to a server in probation stays plain TCP, and a busy pool keeps it: the servers end those.
  for (let turn = 0; turn < POOL_RENEWALS; turn++) {
    await runLoad(world, site, workload, { connections: Math.max(options.connections, WARM_CONNECTIONS), durationS: 0.15, ...common });
    if (site.mode.protocol === 'http') for (const server of site.servers) await world.renewConnections(server);
  }
  for (const each of site.mode.protocol === 'http' ? workloads : [workload]) await runLoad(world, site, each, { connections: each.connections ?? options.connections, durationS: 0.2, ...common });
}

async function measureOnce(world: World, site: Site, workload: Workload, options: BenchOptions, cpu: number | undefined): Promise<Sample> {
  const { durationS, signal } = options;
  const common = { durationS, warmUpS: durationS * WARM_UP_SHARE, ...(workload.protocol === 'http' ? { warmRequests: WARM_REQUESTS } : {}), ...(cpu === undefined ? {} : { cpu }), ...(signal ? { signal } : {}) };
  let before: Counters = await world.counters();
  // Requests are counted one by one, so that what the warm-up has taught is not among them.
  const onWarm = async (): Promise<void> => void (before = await world.counters());
  const loaded = await runLoad(world, site, workload, { ...common, ...(workload.protocol === 'http' ? { onWarm } : {}), connections: workload.bulk ? 1 : (workload.connections ?? options.connections) });
  const after = await world.counters();
  const cpuByUser = cpuOf(site, loaded);
  const sample: Sample = {
    requestsPerSecond: loaded.requests_per_second,
    cpu: cpuByUser,
    cpuUsecPerRequest: total(cpuByUser),
    requests: loaded.requests,
    failed: loaded.failed,
    shares: bytesBetween(site, before.bytes, after.bytes),
    answers: loaded.tally,
    foreignCpus: Math.max(0, loaded.machine_usec - Object.values(loaded.cgroup_usec).reduce((sum, usec) => sum + usec, 0)) / 1e6 / loaded.seconds,
  };
  if (loaded.first_failure !== '') sample.firstFailure = loaded.first_failure;
  if (loaded.bits_per_second !== undefined) sample.bitsPerSecond = loaded.bits_per_second;
  const requestsBy = requestsBetween(loaded.requests_begun, before.http, after.http);
  if (requestsBy) sample.requestsBy = requestsBy;
  if (workload.bulk) return sample;
  sample.loadedLatency = percentiles(loaded);
  if (workload.connections !== undefined) return sample;
  const alone = await runLoad(world, site, workload, { ...common, connections: 1 });
  sample.failed += alone.failed;
  if (alone.first_failure !== '') sample.firstFailure ??= alone.first_failure;
  sample.latency = percentiles(alone);
  return sample;
}

function percentiles({ latency_us: { p50, p90, p99 } }: LoadResult): { p50: number; p90: number; p99: number } {
  return { p50, p90, p99 };
}
