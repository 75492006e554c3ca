/** One measurement: tcp-bench in the mode's client pod against its servers. */
import { UnderpassError } from '../common/errors.js';
import { cgroupsOf, cpuPerRequest, type CpuUser } from './cpu.js';
import { CLIENT, HTTP_PORT, SERVERS, TCP_PORT, TCP_SERVER, TCP_SERVICE_PORT, tcpBench, type Mode } from './modes.js';
import { namespaceOf, type Variant, type Workload } from './workloads.js';
import type { BenchPod, ByteCounters, World } from './world.js';

/** What tcp-bench prints. */
export interface LoadResult {
  connections: number;
  seconds: number;
  requests: number;
  /** Also those that were under way at the end of the measured time. */
  requests_begun: number;
  requests_per_second: number;
  bytes_sent: number;
  bytes_received: number;
  connections_opened: number;
  /** Those that the server ended while no request was under way, or announced to end. */
  closed_by_server: number;
  bits_per_second?: number;
  latency_us: { count: number; min: number; mean: number; p50: number; p90: number; p99: number; p999: number; max: number };
  failed: number;
  failures: Record<string, number>;
  first_failure: string;
  statuses: Record<string, number>;
  tally: Record<string, number>;
  cgroup_usec: Record<string, number>;
  machine_usec: number;
}

export function parseLoadResult(stdout: string): LoadResult {
  const last = stdout.trim().split('\n').at(-1) ?? '';
  const value = JSON.parse(last) as LoadResult & { final?: boolean };
  if (value.final !== true) throw new Error('tcp-bench ended without a result');
  return value;
}

export interface Site {
  mode: Mode;
  client: BenchPod;
  servers: BenchPod[];
  target: string;
  cgroups: ReadonlyMap<string, CpuUser>;
}

export function siteOf(world: World, mode: Mode, variant?: Variant): Site {
  const namespace = namespaceOf(mode, variant);
  const client = world.pod(namespace, CLIENT);
  const names: readonly string[] = mode.protocol === 'tcp' ? [TCP_SERVER] : SERVERS;
  const servers = names.map((name) => world.pod(namespace, name));
  const first = servers[0] as BenchPod;
  const isTcp = mode.protocol === 'tcp';
  const service = isTcp ? `${TCP_SERVER}:${TCP_SERVICE_PORT}` : `nginx:${HTTP_PORT}`;
  const target = mode.target === 'service' ? service : `${first.ip}:${isTcp ? TCP_PORT : HTTP_PORT}`;
  return { mode, client, servers, target, cgroups: cgroupsOf(client, servers, world.proxyCgroups(mode)) };
}

export interface LoadOptions {
  connections: number;
  /** One of the two. */
  durationS?: number;
  count?: number;
  warmUpS?: number;
  /** Answers that each connection has had before it is measured. */
  warmRequests?: number;
  newConnectionEach?: boolean;
  headers?: readonly string[];
  /** Bind the client to this CPU. */
  cpu?: number;
  /** Default: the site's own. */
  target?: string;
  /** Called between warm-up and measured time, while nothing is under way. */
  onWarm?: () => Promise<void>;
  signal?: AbortSignal;
}

/** @throws UnderpassError `UNDERPASS_BENCH_LOAD` when tcp-bench could not run at all; failed requests are in the result */
export async function runLoad(world: World, site: Site, workload: Workload, options: LoadOptions): Promise<LoadResult> {
  const argv = [tcpBench, ...workload.args, '--connect', options.target ?? site.target, '--connections', String(options.connections), '--timeout', '10'];
  if (options.durationS !== undefined) argv.push('--duration', String(options.durationS));
  if (options.count !== undefined) argv.push('--count', String(options.count));
  if (options.warmUpS) argv.push('--warm-up', String(options.warmUpS));
  if (options.warmRequests) argv.push('--warm-requests', String(options.warmRequests));
  if (options.onWarm) argv.push('--wait');
  if (options.newConnectionEach) argv.push('--new-connection-each');
  for (const header of options.headers ?? []) argv.push('--header', header);
  if (options.cpu !== undefined) argv.push('--cpu', String(options.cpu));
  if (workload.protocol === 'http') argv.push('--tally', 'header:x-version');
  for (const path of site.cgroups.keys()) argv.push('--cgroup', path);
  const timeoutMs = 1000 * ((options.durationS ?? 10) + (options.warmUpS ?? 0)) + 30_000;
  const { code, stdout, stderr } = await world.run(site.client, argv, { timeoutMs, ...(options.onWarm ? { onOutput: options.onWarm } : {}), ...(options.signal ? { signal: options.signal } : {}) });
  if (code !== 0) throw new UnderpassError('UNDERPASS_BENCH_LOAD', `running the load of mode ${site.mode.id} against ${options.target ?? site.target}: exit ${code}: ${stderr.trim().split('\n').at(-1) ?? ''}`);
  return parseLoadResult(stdout);
}

export interface Shares {
  /** False where no BPF program is attached to the pods: all of it went by TCP then. */
  counted: boolean;
  shortCircuitedBytes: number;
  tcpBytes: number;
}

export function bytesBetween(site: Site, before: ReadonlyMap<string, ByteCounters>, after: ReadonlyMap<string, ByteCounters>): Shares {
  const shares: Shares = { counted: false, shortCircuitedBytes: 0, tcpBytes: 0 };
  for (const { uid } of [site.client, ...site.servers]) {
    const end = after.get(uid);
    if (!end) continue;
    shares.counted = true;
    shares.shortCircuitedBytes += end.shortCircuited - (before.get(uid)?.shortCircuited ?? 0);
    shares.tcpBytes += end.tcp - (before.get(uid)?.tcp ?? 0);
  }
  return shares;
}

export function cpuOf(site: Site, result: LoadResult): Partial<Record<CpuUser, number>> {
  return cpuPerRequest(site.cgroups, result.cgroup_usec, result.requests);
}
