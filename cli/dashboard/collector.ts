/** Asks the agents for what the pages show, as long as somebody looks at them. */
import type { AgentStatus, NodeObjects } from '../../agent/client.js';
import { errorMessage } from '../../common/errors.js';
import type { DriftView, NodeView, ObjectDetail, ObjectOnNode, ObjectView } from '../../common/dashboard-views.js';
import type { Closable } from '../../common/lifecycle.js';
import { sleep } from '../../common/retry.js';
import type { Graph, TrafficReport } from '../../common/traffic.js';
import { askEach, type AgentHandle } from '../agents.js';
import { fastPathLine } from '../fast-path.js';
import { parseAnswer } from '../output.js';
import { syncOf } from '../ps.js';
import { TrafficWindow } from './traffic-window.js';

/** After this nobody looks any more, and no agent is asked. */
const UNWATCHED_MS = 15_000;
const ANSWER_MS = 10_000;

type AskedAgent = Pick<AgentHandle, 'node' | 'place' | 'ask'>;

export interface CollectorOptions {
  agents: readonly AskedAgent[];
  /** Between two readings; what is told may be as old. */
  everyMs: number;
}

export class Collector implements Closable {
  readonly #options: CollectorOptions;
  readonly #window = new TrafficWindow();
  readonly #abort = new AbortController();
  readonly #nodesOf = new Map<AskedAgent, string>();
  readonly #kept = new Map<string, { at: number; value: Promise<unknown> }>();
  #problems = new Map<AskedAgent, string>();
  #readAt = '';
  #askedAt = -Infinity;
  #reading: Promise<void> | undefined;
  #running: Promise<void> | undefined;

  constructor(options: CollectorOptions) {
    this.#options = options;
  }

  /** The first has no rates yet. */
  async graph(): Promise<Graph> {
    this.#askedAt = performance.now();
    if (!this.#running) {
      this.#running = this.#run().finally(() => (this.#running = undefined));
    }
    if (this.#readAt === '') await this.#reading;
    return { at: this.#readAt, nodes: this.#options.agents.map((agent) => ({ node: this.#nameOf(agent), ...(this.#problems.has(agent) ? { problem: this.#problems.get(agent)! } : {}) })), ...this.#window.graph() };
  }

  nodes(): Promise<NodeView[]> {
    return this.#young('nodes', async () => {
      const results = await this.#askAll<AgentStatus>('/v1/status', 'the agent\'s status');
      return results.map(({ agent, value, problem }) => (value ? viewOf(value) : unanswered(this.#nameOf(agent), problem)));
    });
  }

  /** Of each object on each node, with nodes that do not answer left out. */
  objects(): Promise<ObjectView[]> {
    return this.#young('objects', async () => merge(this.#answers(await this.#askAll<NodeObjects>('/v1/objects', 'the agent\'s objects'))));
  }

  async object(name: string): Promise<ObjectDetail | undefined> {
    const nodes = this.#answers(await this.#askAll<NodeObjects>(`/v1/objects?${new URLSearchParams({ object: name }).toString()}`, 'the agent\'s objects'));
    const [view] = merge(nodes);
    return view && { ...view, resources: nodes.flatMap(({ node, objects }) => objects.flatMap(({ resources }) => resources.map((resource) => ({ node, ...resource })))) };
  }

  async close(): Promise<void> {
    this.#abort.abort();
    await this.#running;
  }

  /** Rejects never: what an agent has not answered is its problem. */
  async #run(): Promise<void> {
    const { signal } = this.#abort;
    while (!signal.aborted && performance.now() - this.#askedAt < UNWATCHED_MS) {
      const startedAt = performance.now();
      await (this.#reading = this.#read());
      await sleep(Math.max(100, this.#options.everyMs - (performance.now() - startedAt)), signal).catch(() => undefined);
    }
    // Rates of the time without a reader would be nobody's.
    this.#window.keepOnly(new Set());
    this.#readAt = '';
  }

  async #read(): Promise<void> {
    const results = await this.#askAll<TrafficReport>('/v1/traffic', 'the agent\'s traffic');
    const at = performance.now();
    this.#problems = new Map(results.flatMap(({ agent, problem }) => (problem === undefined ? [] : [[agent, problem] as const])));
    for (const { agent, value } of results) {
      if (!value) continue;
      this.#nodesOf.set(agent, value.node);
      this.#window.add(value, at);
    }
    this.#window.keepOnly(new Set(results.flatMap(({ value }) => value?.node ?? [])));
    this.#readAt = new Date().toISOString();
  }

  #nameOf(agent: AskedAgent): string {
    return this.#nodesOf.get(agent) ?? agent.node ?? agent.place;
  }

  async #askAll<T>(path: string, what: string): Promise<{ agent: AskedAgent; value?: T; problem?: string }[]> {
    const { agents } = this.#options;
    const results = await askEach(agents, async (agent) => parseAnswer<T>(await agent.ask(path, { timeoutMs: ANSWER_MS, signal: this.#abort.signal }), what));
    return results.map((result, index) => ({ agent: agents[index]!, ...(result.status === 'fulfilled' ? { value: result.value } : { problem: errorMessage(result.reason) }) }));
  }

  /** @throws Error when no agent answered */
  #answers<T>(results: readonly { value?: T; problem?: string }[]): T[] {
    const values = results.flatMap(({ value }) => (value === undefined ? [] : [value]));
    if (values.length === 0 && results.length > 0) throw new Error(results[0]!.problem);
    return values;
  }

  #young<T>(name: string, ask: () => Promise<T>): Promise<T> {
    const kept = this.#kept.get(name);
    if (kept && performance.now() - kept.at < this.#options.everyMs) return kept.value as Promise<T>;
    const value = ask();
    value.catch(() => this.#kept.delete(name));
    this.#kept.set(name, { at: performance.now(), value });
    return value;
  }
}

function unanswered(node: string, problem = 'no answer'): NodeView {
  return { node, problem, ready: false, notReady: [], facts: [], selfTest: [], nacks: [], drifting: [], recent: [], pods: [], programs: [] };
}

/** What is named here, and nothing else of what an agent says. */
export function viewOf(status: AgentStatus): NodeView {
  const { proxy, consistency = {} } = status;
  const drifts = (of: 'drifting' | 'recent'): DriftView[] => Object.values(consistency).flatMap((each) => each[of]).map(({ kind, name, state, objects, since, times, repair, reason, detail }) => ({ kind, name, state, objects, since, times, repair: `${repair}${reason === undefined ? '' : `: ${reason}`}`, detail: detail ?? '' }));
  const identities = proxy.certificates?.identities ?? [];
  const expired = identities.filter((identity) => identity.expired).map(({ id }) => id);
  const facts: [string, string][] = [
    ['Agent', `version ${status.version}, instance ${status.instance}, process ${status.pid} since ${status.since}`],
    ['Kernel', status.kernel],
    ['Pods from', `${status.workloads.source} (${status.workloads.pods})${status.workloads.problem === undefined ? '' : ` - ${status.workloads.problem}`}`],
    ['Envoy', proxy.envoy.pid === undefined ? 'not running' : `process ${proxy.envoy.pid}${proxy.envoy.version === undefined ? '' : `, version ${/\d+\.\d+\.\d+/.exec(proxy.envoy.version)?.[0] ?? proxy.envoy.version}`}`],
    ['Control plane', `${proxy.controlPlane.connected ? 'connected' : 'not connected'}${proxy.controlPlane.address ? ` (${proxy.controlPlane.address})` : ''}${proxy.controlPlane.lastError && !proxy.controlPlane.connected ? ` - ${proxy.controlPlane.lastError}` : ''}`],
    ['Certificates', proxy.certificates ? `${identities.length - expired.length} of ${identities.length} valid, from ${proxy.certificates.ca}${expired.length === 0 ? '' : `; expired: ${expired.join(', ')}`}${proxy.certificates.problem === undefined ? '' : ` - ${proxy.certificates.problem}`}` : 'none: no CA is named, so there is no mutual TLS'],
    ['Redirection', `${status.redirection.default}${status.redirection.bpfProblem === undefined ? '' : ` - no BPF: ${status.redirection.bpfProblem}`}`],
    ['Acceleration', status.acceleration.on ? 'on' : `off - ${status.acceleration.reason ?? ''}`],
    ...(status.httpFastPath ? [['HTTP fast path', fastPathLine(status.httpFastPath)] as [string, string]] : []),
    ...(status.services ? [['Decided at connect()', `${status.services.services} addresses and ports of services`] as [string, string]] : []),
    ...Object.entries(consistency).map(([name, { endedAt, tookMs }]): [string, string] => [`Compared: ${name}`, endedAt === undefined ? 'not yet' : `until ${endedAt}, within ${((tookMs ?? 0) / 1_000).toFixed(1)} s`]),
  ];
  return {
    node: status.node, ready: status.ready, notReady: status.notReady, facts,
    selfTest: 'checks' in status.selfTest ? status.selfTest.checks.map(({ name, ok }) => ({ name, ok })) : [],
    nacks: proxy.nacks.map(({ type, name, message, objects = [] }) => ({ type, name, message, objects })),
    drifting: drifts('drifting'), recent: drifts('recent'),
    pods: status.pods.map((pod) => ({ namespace: pod.namespace, name: pod.name, addresses: pod.ips, mode: pod.mode, state: pod.state, way: pod.way, acceleration: pod.acceleration, sync: pod.mode === 'off' && pod.state === 'off' ? '' : syncOf(pod, status), note: pod.error ?? pod.reason ?? '' })),
    programs: status.probation.map(({ namespace, pod, kind, key, program, verdict, reason }) => ({ pod: `${namespace}/${pod}`, kind, what: kind === 'listener' ? `${program ?? ''} ${key.replace(/@\d+$/, '')}`.trim() : (program ?? key), verdict, reason: reason ?? '' })),
  };
}

function merge(nodes: readonly NodeObjects[]): ObjectView[] {
  const byObject = new Map<string, Map<string, ObjectOnNode>>();
  for (const { node, objects } of nodes) {
    for (const { object, state, resources, since } of objects) {
      const on = byObject.get(object) ?? new Map<string, ObjectOnNode>();
      byObject.set(object, on.set(node, { node, state, resources: resources.length, acked: resources.filter(({ acked }) => acked).length, readBack: resources.filter(({ readBack }) => readBack).length, ...(since === undefined ? {} : { since }) }));
    }
  }
  const absent = (node: string): ObjectOnNode => ({ node, state: 'ABSENT', resources: 0, acked: 0, readBack: 0 });
  return [...byObject].sort(([a], [b]) => (a < b ? -1 : 1)).map(([object, on]) => ({ object, nodes: nodes.map(({ node }) => on.get(node) ?? absent(node)) }));
}
