/** What a run has found, ready to print: one row a mode, workload and placement; ratios; what the figures are about. */
import type { CpuUser } from './cpu.js';
import type { ProxyMemory } from './memory.js';
import { MODES, type Mode, type ModeId } from './modes.js';
import { sharesOf, type RequestShares } from './requests.js';
import type { BenchOptions, Cell, Measurements, Placement } from './runner.js';
import { median, ratioPerRound, summarise, type Summary } from './statistics.js';
import { workloadById, type WorkloadId } from './workloads.js';
import type { CrossCheck } from './wrk.js';

export interface Row {
  mode: ModeId;
  title: string;
  workload: WorkloadId;
  placement: Placement;
  requestsPerSecond: Summary;
  /** Of all processes that take part, in µs per request (bulk: per write of 64 KiB). */
  cpuUsecPerRequest: Summary;
  /** Medians of the same, by who used it. */
  cpuByUser: Partial<Record<CpuUser, number>>;
  /** µs, one connection: what a request takes when nothing is queued. */
  latency?: { p50: Summary; p90: Summary; p99: Summary };
  /** µs, all connections at once: queueing counts too. */
  loadedLatency?: { p50: Summary; p90: Summary; p99: Summary };
  bitsPerSecond?: Summary;
  memory: ProxyMemory;
  /** Shares of the payload that this mode's pods (and the proxy for them) moved; they add up to 1. */
  bytes: { shortCircuited: number; tcp: number; counted: boolean };
  /** Shares of the measured requests, of many connections: what the kernel moved past Envoy, and why not the others. Absent where the fast path has no part. */
  requestsBy?: RequestShares;
  requests: number;
  failed: number;
  firstFailure?: string;
  rounds: number;
}

export interface Ratio {
  id: string;
  title: string;
  of: ModeId;
  to: ModeId;
  workload: WorkloadId;
  /** What it is compared with, where that is another load of the same mode. */
  toWorkload?: WorkloadId;
  placement: Placement;
  /** How many times the requests/s. */
  requestsPerSecond: Summary;
  /** How many times less CPU time a request takes. */
  cpu: Summary;
  /** How many times shorter the median request of one connection is; absent for bulk and where it was not measured. */
  p50?: Summary;
  /** What these are expected to reach (p50 between nodes only); only on one CPU, where CPUs that wake each other do not decide. */
  target?: number;
  reached?: boolean;
}

export interface BenchReport {
  startedAt: string;
  seconds: number;
  options: { loads: WorkloadId[]; rounds: number; durationS: number; connections: number; pinnedCpu: number; cpus: string; quick: boolean };
  facts: Record<string, string>;
  modes: Pick<Mode, 'id' | 'title' | 'description'>[];
  rows: Row[];
  ratios: Ratio[];
  /** That came to the collector of the load with tracing. */
  traces?: number;
  /** CPUs that others kept busy while it was measured: the more, the less the figures say. */
  foreignCpus: Summary;
  crossCheck?: CrossCheck[];
  /** What could not be removed afterwards, and why. */
  leftBehind?: string;
  notes: string[];
}

interface Comparison {
  id: string;
  title: string;
  of: ModeId;
  to: ModeId;
  workloads: readonly WorkloadId[];
  toWorkload?: WorkloadId;
  target?: number;
  /** The target is that of p50, too. */
  p50?: true;
}

const MORE_HTTP: readonly WorkloadId[] = ['http-differing-heads', 'http-post', 'http-16k', 'http-256k', 'http-256-connections', 'http-256-new-connections', 'http-mix', 'http-tracing'];

export const COMPARISONS: readonly Comparison[] = [
  { id: 'tcp-short-circuited', title: 'plain TCP short-circuited : no mesh', of: 'tcp-short-circuited', to: 'tcp-no-mesh', workloads: ['tcp-64', 'tcp-16k'], target: 1.6 },
  { id: 'tcp-service', title: 'TCP by a Service, short-circuited : no mesh', of: 'tcp-service', to: 'tcp-no-mesh', workloads: ['tcp-64', 'tcp-bulk', 'tcp-connect'] },
  { id: 'tcp-policy', title: 'the same with an ALLOW policy : no mesh', of: 'tcp-policy', to: 'tcp-no-mesh', workloads: ['tcp-64'], target: 1.8 },
  { id: 'tcp-policy-bulk', title: 'the same with an ALLOW policy : no mesh', of: 'tcp-policy', to: 'tcp-no-mesh', workloads: ['tcp-bulk'], target: 1.5 },
  { id: 'tcp-policy-connect', title: 'the same with an ALLOW policy : no mesh', of: 'tcp-policy', to: 'tcp-no-mesh', workloads: ['tcp-connect'], target: 0.9 },
  { id: 'tcp-bulk', title: 'one bulk stream short-circuited : no mesh', of: 'tcp-short-circuited', to: 'tcp-no-mesh', workloads: ['tcp-bulk'] },
  { id: 'shared-bpf', title: 'shared proxy by BPF : sidecars', of: 'shared-bpf', to: 'sidecars', workloads: ['http'], target: 1.35 },
  { id: 'shared-iptables', title: 'shared proxy by iptables : sidecars', of: 'shared-iptables', to: 'sidecars', workloads: ['http'] },
  { id: 'sidecars-short-circuited', title: 'short-circuited sidecars : sidecars', of: 'sidecars-short-circuited', to: 'sidecars', workloads: ['http'], target: 1.1 },
  { id: 'mesh-cost', title: 'shared proxy by BPF : no mesh', of: 'shared-bpf', to: 'no-mesh', workloads: ['http'] },
  { id: 'fast-path', title: 'HTTP fast path : no mesh', of: 'fast-path', to: 'no-mesh', workloads: ['http'], target: 1.3 },
  { id: 'fast-path-sidecars', title: 'HTTP fast path : sidecars', of: 'fast-path', to: 'sidecars', workloads: ['http'], target: 7 },
  { id: 'fast-path-loads', title: 'HTTP fast path : no mesh', of: 'fast-path', to: 'no-mesh', workloads: MORE_HTTP },
  { id: 'fast-path-sidecars-loads', title: 'HTTP fast path : sidecars', of: 'fast-path', to: 'sidecars', workloads: MORE_HTTP },
  { id: 'mesh-cost-loads', title: 'shared proxy by BPF : no mesh', of: 'shared-bpf', to: 'no-mesh', workloads: MORE_HTTP },
  { id: 'fast-path-heads', title: 'HTTP fast path, to heads that are alike', of: 'fast-path', to: 'fast-path', workloads: ['http-differing-heads'], toWorkload: 'http' },
  { id: 'fast-path-tracing', title: 'HTTP fast path, to no tracing', of: 'fast-path', to: 'fast-path', workloads: ['http-tracing'], toWorkload: 'http' },
  { id: 'hbone-http', title: 'HBONE : sidecars, between nodes', of: 'nodes-http-hbone', to: 'nodes-http-sidecars', workloads: ['http'], target: 1.3, p50: true },
  { id: 'hbone-tcp', title: 'HBONE : sidecars, between nodes', of: 'nodes-tcp-hbone', to: 'nodes-tcp-sidecars', workloads: ['tcp-64', 'tcp-bulk'], target: 1.3, p50: true },
  { id: 'hbone-http-cost', title: 'HBONE : no mesh, between nodes', of: 'nodes-http-hbone', to: 'nodes-http', workloads: ['http'] },
  { id: 'hbone-tcp-cost', title: 'HBONE : no mesh, between nodes', of: 'nodes-tcp-hbone', to: 'nodes-tcp', workloads: ['tcp-64', 'tcp-bulk'] },
];

function rowOf(cell: Cell, memory: ProxyMemory): Row {
  const { samples } = cell;
  const required = (values: number[]): Summary => summarise(values) as Summary;
  const percentilesOf = (pick: 'latency' | 'loadedLatency'): Row['latency'] | undefined => {
    const found = samples.flatMap((sample) => sample[pick] ?? []);
    return found.length === 0 ? undefined : { p50: required(found.map(({ p50 }) => p50)), p90: required(found.map(({ p90 }) => p90)), p99: required(found.map(({ p99 }) => p99)) };
  };
  const moved = samples.reduce((sum, { shares }) => sum + shares.shortCircuitedBytes, 0);
  const plain = samples.reduce((sum, { shares }) => sum + shares.tcpBytes, 0);
  const counted = samples.some(({ shares }) => shares.counted) && moved + plain > 0;
  const users = [...new Set(samples.flatMap(({ cpu }) => Object.keys(cpu) as CpuUser[]))];
  const row: Row = {
    mode: cell.mode,
    title: MODES.find(({ id }) => id === cell.mode)?.title ?? cell.mode,
    workload: cell.workload,
    placement: cell.placement,
    requestsPerSecond: required(samples.map((sample) => sample.requestsPerSecond)),
    cpuUsecPerRequest: required(samples.map((sample) => sample.cpuUsecPerRequest)),
    cpuByUser: Object.fromEntries(users.map((user) => [user, median(samples.map(({ cpu }) => cpu[user] ?? 0))])),
    memory,
    bytes: counted ? { shortCircuited: moved / (moved + plain), tcp: plain / (moved + plain), counted } : { shortCircuited: 0, tcp: 1, counted },
    requests: samples.reduce((sum, { requests }) => sum + requests, 0),
    failed: samples.reduce((sum, { failed }) => sum + failed, 0),
    rounds: samples.length,
  };
  const latency = percentilesOf('latency');
  const loadedLatency = percentilesOf('loadedLatency');
  const bits = samples.flatMap(({ bitsPerSecond }) => bitsPerSecond ?? []);
  const firstFailure = samples.find((sample) => sample.firstFailure !== undefined)?.firstFailure;
  if (latency) row.latency = latency;
  if (loadedLatency) row.loadedLatency = loadedLatency;
  if (bits.length > 0) row.bitsPerSecond = required(bits);
  if (firstFailure !== undefined) row.firstFailure = firstFailure;
  const requestsBy = sharesOf(samples.flatMap((sample) => sample.requestsBy ?? []));
  if (requestsBy) row.requestsBy = requestsBy;
  return row;
}

function ratiosOf(cells: readonly Cell[]): Ratio[] {
  const ratios: Ratio[] = [];
  const find = (mode: ModeId, workload: WorkloadId, placement: Placement): Cell | undefined => cells.find((cell) => cell.mode === mode && cell.workload === workload && cell.placement === placement);
  for (const placement of ['one-cpu', 'free'] as const) {
    for (const { id, title, of, to, workloads, toWorkload, target, p50: judgesP50 } of COMPARISONS) {
      for (const workload of workloads) {
        const [a, b] = [find(of, workload, placement), find(to, toWorkload ?? workload, placement)];
        if (!a || !b) continue;
        const requestsPerSecond = workload === 'tcp-bulk' ? ratioPerRound(a.samples.map(bits), b.samples.map(bits)) : ratioPerRound(a.samples.map((sample) => sample.requestsPerSecond), b.samples.map((sample) => sample.requestsPerSecond));
        const cpu = ratioPerRound(b.samples.map((sample) => sample.cpuUsecPerRequest), a.samples.map((sample) => sample.cpuUsecPerRequest));
        if (!requestsPerSecond || !cpu) continue;
        const ratio: Ratio = { id, title, of, to, workload, placement, requestsPerSecond, cpu };
        if (toWorkload !== undefined) ratio.toWorkload = toWorkload;
        const p50 = ratioPerRound(b.samples.map(p50Of), a.samples.map(p50Of));
        if (p50) ratio.p50 = p50;
        if (target !== undefined && placement === 'one-cpu') {
          ratio.target = target;
          ratio.reached = [requestsPerSecond, cpu, ...(judgesP50 && p50 ? [p50] : [])].every(({ median }) => median >= target);
        }
        ratios.push(ratio);
      }
    }
  }
  return ratios;
}

const p50Of = (sample: { latency?: { p50: number } }): number => sample.latency?.p50 ?? Number.NaN;
const bits = (sample: { bitsPerSecond?: number }): number => sample.bitsPerSecond ?? Number.NaN;

export function buildReport(measured: Measurements, options: BenchOptions, more: { quick: boolean; startedAt: Date; facts: Record<string, string> }): BenchReport {
  const none: ProxyMemory = { proxies: 0, rssBytes: 0, pssBytes: 0 };
  const foreignCpus = summarise(measured.cells.flatMap(({ samples }) => samples.map((sample) => sample.foreignCpus))) as Summary;
  const rows = measured.cells.map((cell) => rowOf(cell, measured.memory.get(cell.mode) ?? none));
  return {
    startedAt: more.startedAt.toISOString(),
    seconds: measured.seconds,
    options: { loads: options.workloads.map(({ id }) => id), rounds: options.rounds, durationS: options.durationS, connections: options.connections, pinnedCpu: measured.pinnedCpu, cpus: measured.cpus, quick: more.quick },
    facts: more.facts,
    modes: options.modes.map(({ id, title, description }) => ({ id, title, description })),
    rows,
    ratios: ratiosOf(measured.cells),
    ...(measured.traces === undefined ? {} : { traces: measured.traces }),
    foreignCpus,
    notes: notesOf(rows, options, more.quick, foreignCpus.median, measured.traces),
  };
}

/** More than this, and a proxy's caches are cold each time that it is woken. */
const QUIET_CPUS = 0.15;

function notesOf(rows: readonly Row[], options: BenchOptions, quick: boolean, foreignCpus: number, traces: number | undefined): string[] {
  const notes = [
    'Client, servers and proxies are on one node, but for the rows between nodes, whose two nodes are two bridges of this machine: each has a shared Envoy of its own, and a packet between them takes no wire.',
    'Traffic in the two modes "no mesh" goes straight to a pod\'s address, past Service translation: the comparison is against the cheapest path, so that the mesh looks no better than it is.',
    `Throughput and CPU are from ${options.connections} connections (where a load does not say another number) that each send the next request when they have the answer; latency is from one connection. Figures are medians of ${options.rounds} interleaved rounds, with the quartiles as spread; ratios are taken within each round.`,
    'CPU per request is the time that the cgroups of client, servers and proxies used (cpu.stat); the kernel\'s work on packets is in it as far as it runs in these processes\' context.',
    'On one CPU all processes of all modes are held on the same CPU: what remains is the cost of the work itself, without waking processes on other CPUs.',
    'The share of bytes counts the payload that pods with BPF programs moved on each of their connections, the proxy\'s part for them included; where none is attached everything went by TCP.',
    "Measured is the steady state: after probation the HTTP servers were made to end their connections once, since those that a sidecar opens towards its own app during probation stay on plain TCP for as long as its pool keeps them (the shared proxy's pools are renewed by the agent).",
    'With sidecars, memory is that of the client\'s and both servers\' sidecars and grows with each pod; the shared proxy\'s is the node\'s whole Envoy, serving every enrolled pod of this run.',
  ];
  if (rows.some(({ requestsBy }) => requestsBy)) notes.push('Fast is the share of the measured requests that the kernel moved past Envoy, by its own counters, read while nothing is under way before and after; what a connection has to learn it has learnt before, but for the load of new ones. Only HTTP/1.1 between event-driven programs of one node can be fast; all other HTTP goes through the shared proxy, at the cost of its rows.');
  if (traces !== undefined) notes.push(`Tracing is Istio's with a provider named and no percentage, which is 1 %; the collector is a pod of its own that is not held on the CPU of the others. ${traces} traces have come to it, warm-ups included.`);
  if (foreignCpus > QUIET_CPUS) notes.push(`The machine was not quiet: ${foreignCpus.toFixed(2)} CPUs were busy with something else (median). Ratios hold better than absolute figures.`);
  if (quick) notes.push('A quick run: short rounds. For figures to rely on, run `underpass bench`.');
  const failed = rows.filter((row) => row.failed > 0);
  for (const row of failed) notes.push(`${row.title} (${workloadById(row.workload).title}): ${row.failed} failed requests, first: ${row.firstFailure ?? 'unknown'}.`);
  return notes;
}
