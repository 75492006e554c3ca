/**
 * The agents that a command asks: the one behind a Unix socket of this machine, or, by a kubeconfig, those of a cluster's
 * nodes. An agent listens on no port, so in a cluster `underpass request` is executed in its container. That needs, in
 * the namespace underpass-system, `list` of pods and `get` and `create` of pods/exec.
 */
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { PassThrough, type Readable } from 'node:stream';
import { StringDecoder } from 'node:string_decoder';
import type { Command } from 'commander';
import { askAgent, DEFAULT_INSTANCE, followAgent, instancePaths, openAgentStream, type AgentStatus, type PodStatus } from '../agent/client.js';
import { UnderpassError, errorCode, errorMessage } from '../common/errors.js';
import { isRefusal, KubeApiError, KubeClient, resourceOf, resourcePath } from '../common/kube/client.js';
import { execInPod, type ExecOptions } from '../common/kube/exec.js';
import { inClusterServer, readKubeconfig } from '../common/kube/kubeconfig.js';
import type { KubeObject } from '../common/kube/types.js';
import { nearest } from '../common/nearest.js';
import { EXIT, exitCodeOf } from './exit-codes.js';
import { addInstanceOptions } from './instance-options.js';
import { AGENT, AGENT_NAMESPACE } from './install/rbac.js';
import { parseAnswer } from './output.js';
import { whileWaiting } from './progress.js';

export interface ReachOptions {
  runDir: string;
  instance: string;
  kubeconfig?: string;
  context?: string;
  node?: string;
}

export interface Ask {
  method?: 'GET' | 'POST';
  timeoutMs?: number;
  signal?: AbortSignal;
}

export interface AgentHandle {
  /** Of the cluster; of the agent behind a socket not known before it is asked. */
  node: string | undefined;
  /** For messages: `socket PATH` or `pod NAMESPACE/NAME`. */
  place: string;
  /** @returns the body of the admin API's answer */
  ask(path: string, options?: Ask): Promise<string>;
  /** The same of an answer that goes on, line by line, until the signal. */
  follow(path: string, onLine: (line: string) => void, signal: AbortSignal): Promise<void>;
  /** The same as bytes; it is open when the agent has not refused. */
  open(path: string, signal: AbortSignal): Promise<Readable>;
}

export interface Reach {
  /** Absent behind a socket. */
  client?: KubeClient;
  agents: readonly AgentHandle[];
  close(): void;
}

export interface AgentAnswer {
  agent: AgentHandle;
  status: AgentStatus;
}

export interface FoundPod {
  agent: AgentHandle;
  status: AgentStatus;
  pod: PodStatus;
}

const AGENT_CONTAINER = 'agent';
const PROGRAM = '/opt/underpass/bin/underpass';
/** Asked at the same time. */
const TOGETHER = 8;
export const RIGHTS_HINT = `it needs list of pods, and get and create of pods/exec, in namespace ${AGENT_NAMESPACE}`;

export function addReachOptions(command: Command): Command {
  return addInstanceOptions(command)
    .option('--kubeconfig <file>', 'ask the agents of this cluster (default: the agent of this machine, if one runs; else $KUBECONFIG or ~/.kube/config)')
    .option('--context <name>', 'ask those of this context of the kubeconfig')
    .option('--node <name>', 'of a cluster: ask this node alone');
}

/** The kubeconfig's cluster if the options name one, or if nothing of an agent is on this machine; undefined: the local socket. */
function kubeconfigOf({ kubeconfig, context, ...instance }: ReachOptions): string | undefined {
  const usual = usualKubeconfig();
  if (kubeconfig !== undefined) return kubeconfig;
  if (context !== undefined) return usual;
  const { folder } = instancePaths(instance);
  return !existsSync(folder) && isDefault(instance) && existsSync(usual) ? usual : undefined;
}

const isDefault = ({ instance }: { instance: string }): boolean => instance === DEFAULT_INSTANCE;

/**
 * @throws UnderpassError `UNDERPASS_KUBECONFIG`, `UNDERPASS_NO_AGENTS`, `UNDERPASS_API_SERVER_UNREACHABLE`; KubeApiError for a right
 * that is missing
 */
export async function reachAgents(options: ReachOptions): Promise<Reach> {
  const file = kubeconfigOf(options);
  if (file === undefined) {
    if (options.node !== undefined) throw new UnderpassError('UNDERPASS_BAD_OPTION', '--node: expected with a cluster, by --kubeconfig or --context');
    const { adminSocket } = instancePaths(options);
    return { agents: [{ node: undefined, place: `socket ${adminSocket}`, ask: (path, ask) => askAgent(adminSocket, path, ask), follow: (path, onLine, signal) => followAgent(adminSocket, path, onLine, signal), open: (path, signal) => openAgentStream(adminSocket, path, signal) }], close: () => undefined };
  }
  const client = new KubeClient(await serverOf(file, options.context), 'underpass-cli');
  try {
    return { client, agents: await whileWaiting('looking for agents in the cluster', agentPods(client, options)), close: () => client.close() };
  } catch (error) {
    client.close();
    throw error;
  }
}

/**
 * The cluster that the options name, else the usual kubeconfig's, for what asks no agent.
 * @throws UnderpassError `UNDERPASS_KUBECONFIG`
 */
export async function apiServer(options: ReachOptions): Promise<KubeClient> {
  return new KubeClient(await serverOf(kubeconfigOf(options) ?? usualKubeconfig(), options.context), 'underpass-cli');
}

const usualKubeconfig = (): string => process.env['KUBECONFIG'] || join(homedir(), '.kube', 'config');

const serverOf = async (file: string, context: string | undefined): ReturnType<typeof readKubeconfig> => (file === '' ? inClusterServer() : undefined) ?? readKubeconfig(file, context);

interface AgentPod extends KubeObject {
  spec?: { nodeName?: string };
  status?: { phase?: string; containerStatuses?: { name?: string; ready?: boolean }[] };
}

async function agentPods(client: KubeClient, { node, instance }: ReachOptions): Promise<AgentHandle[]> {
  const path = `${resourcePath(resourceOf('v1', 'Pod'), { namespace: AGENT_NAMESPACE })}?${new URLSearchParams({ labelSelector: `app=${AGENT}` })}`;
  const { items = [] } = await client.request<{ items?: AgentPod[] }>('GET', path).catch((cause: unknown) => {
    if (isRefusal(cause, 401, 403)) throw refused(cause as KubeApiError);
    if (cause instanceof KubeApiError) throw cause;
    throw new UnderpassError('UNDERPASS_API_SERVER_UNREACHABLE', `asking the API server ${client.server.url.host}: ${errorMessage(cause)}`, { cause });
  });
  // While a DaemonSet rolls there are two on a node, behind one socket; the one that is ready answers sooner.
  const byNode = new Map<string, AgentPod>();
  const isReady = ({ status }: AgentPod): boolean => status?.containerStatuses?.find(({ name }) => name === AGENT_CONTAINER)?.ready === true;
  for (const pod of items) {
    const name = pod.spec?.nodeName;
    if (name === undefined || pod.status?.phase !== 'Running') continue;
    const other = byNode.get(name);
    if (!other || (isReady(pod) && !isReady(other))) byNode.set(name, pod);
  }
  if (node !== undefined && !byNode.has(node)) {
    const near = nearest(node, byNode.keys());
    throw new UnderpassError('UNDERPASS_NO_AGENTS', `--node ${node}: no agent runs there`, { hint: near.length > 0 ? `did you mean ${near.join(', ')}?` : `there are agents on ${[...byNode.keys()].join(', ') || 'no node'}` });
  }
  if (byNode.size === 0) throw new UnderpassError('UNDERPASS_NO_AGENTS', `looking for agents in ${client.server.url.host}: none runs in namespace ${AGENT_NAMESPACE}`, { hint: 'install them with `underpass install`' });
  return [...byNode].filter(([name]) => node === undefined || name === node).map(([name, pod]) => agentPod(client, name, pod.metadata.name, instance));
}

/** @returns what says which rights are missing */
function refused(error: KubeApiError): UnderpassError {
  return Object.assign(new UnderpassError('UNDERPASS_NO_PERMISSION', error.message, { cause: error, hint: RIGHTS_HINT }), { status: error.status });
}

function agentPod(client: KubeClient, node: string, name: string, instance: string): AgentHandle {
  const place = `pod ${AGENT_NAMESPACE}/${name}`;
  const run = async (path: string, more: readonly string[], options: Pick<ExecOptions, 'timeoutMs' | 'signal' | 'onStdout'>): Promise<Buffer> => {
    const command = [PROGRAM, 'request', path, ...more, ...(isDefault({ instance }) ? [] : ['--instance', instance])];
    try {
      const { stdout, stderr, code } = await execInPod(client.server, { namespace: AGENT_NAMESPACE, pod: name, container: AGENT_CONTAINER, command, ...options });
      if (code !== 0) throw saidThere(node, path, stderr, code);
      return stdout;
    } catch (error) {
      if (error instanceof UnderpassError && !(error instanceof KubeApiError)) throw error;
      if (isRefusal(error, 401, 403)) throw refused(error as KubeApiError);
      throw new UnderpassError('UNDERPASS_AGENT_REQUEST', `asking the agent of node ${node} (${place}) for ${path}: ${errorMessage(error)}`, { cause: error });
    }
  };
  return {
    node,
    place,
    ask: async (path, { method = 'GET', timeoutMs, signal } = {}) => (await run(path, method === 'GET' ? [] : ['--method', method], { ...(timeoutMs === undefined ? {} : { timeoutMs }), ...(signal ? { signal } : {}) })).toString('utf8'),
    follow: async (path, onLine, signal) => {
      let rest = '';
      const decoder = new StringDecoder('utf8');
      const onStdout = (chunk: Buffer): undefined => {
        const lines = (rest + decoder.write(chunk)).split('\n');
        rest = lines.pop() ?? '';
        for (const line of lines) onLine(line);
        return undefined;
      };
      await run(path, ['--follow'], { signal, onStdout }).catch((error: unknown) => {
        if (!signal.aborted) throw error;
      });
    },
    open: (path, signal) => new Promise((resolve, reject) => {
      const stream = new PassThrough();
      let isOpen = false;
      const onStdout = (chunk: Buffer): Promise<unknown> | undefined => {
        isOpen = true;
        resolve(stream);
        return stream.write(chunk) ? undefined : once(stream, 'drain', { signal }).catch(() => undefined);
      };
      run(path, ['--follow'], { signal, onStdout }).then(() => {
        resolve(stream);
        stream.end();
      }, (error: Error) => {
        if (isOpen) stream.destroy(error);
        else reject(error);
      });
    }),
  };
}

/** The error that the command in the container wrote, with its code; the agent's own words where those are an answer. */
function saidThere(node: string, path: string, stderr: string, exitCode: number): UnderpassError {
  const [, message, code = 'UNDERPASS_AGENT_REQUEST', hint] = /^underpass: ([\s\S]*) \((UNDERPASS_[A-Z_]+)\)(?:\n {2}(.*))?\s*$/.exec(stderr) ?? [];
  const said = new UnderpassError(code as `UNDERPASS_${string}`, message ?? '', hint === undefined ? {} : { hint });
  return exitCodeOf(said) === EXIT.notFound ? said : new UnderpassError(code as `UNDERPASS_${string}`, `asking the agent of node ${node} for ${path}: ${(message ?? stderr.trim().replace(/^underpass: /, '')).replace(`asking the agent for ${path}: `, '') || `exit code ${exitCode}`}`);
}

/** All agents' answers, a few at a time, in the agents' order; what fails is there as its error. */
export async function askEach<T, A = AgentHandle>(agents: readonly A[], ask: (agent: A) => Promise<T>): Promise<PromiseSettledResult<T>[]> {
  const results: PromiseSettledResult<T>[] = new Array(agents.length) as PromiseSettledResult<T>[];
  let next = 0;
  const work = async (): Promise<void> => {
    for (let index = next++; index < agents.length; index = next++) {
      [results[index]] = (await Promise.allSettled([ask(agents[index]!)])) as [PromiseSettledResult<T>];
    }
  };
  await Promise.all(Array.from({ length: Math.min(TOGETHER, agents.length) }, work));
  return results;
}

/** Says on stderr which agents did not answer, and throws the first one's error when none did. */
export function answered<T>(agents: readonly AgentHandle[], results: readonly PromiseSettledResult<T>[]): T[] {
  const failed = results.flatMap((result, index) => (result.status === 'rejected' ? [{ agent: agents[index]!, reason: result.reason as unknown }] : []));
  const values = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  if (values.length === 0 && failed.length > 0) throw failed[0]!.reason;
  for (const { agent, reason } of failed) process.stderr.write(`node ${agent.node ?? ''}: ${errorMessage(reason)}\n`);
  if (failed.length > 0) process.exitCode = 1;
  return values;
}

export async function statuses({ agents }: Reach): Promise<AgentAnswer[]> {
  const ask = async (agent: AgentHandle): Promise<AgentAnswer> => ({ agent, status: parseAnswer<AgentStatus>(await agent.ask('/v1/status'), 'the agent\'s status') });
  return answered(agents, await whileWaiting(`asking ${agents.length} agents`, askEach(agents, ask)));
}

/**
 * A pod by NAME, NAMESPACE/NAME, NAME.NAMESPACE (as istioctl has it), or the name of its workload, for the first of its pods.
 * @param namespace looked in alone; without one in all, where the word names none
 * @throws UnderpassError `UNDERPASS_UNKNOWN_POD` with the nearest names, `UNDERPASS_AMBIGUOUS_POD` with all that it may be
 */
export function findPod(answers: readonly AgentAnswer[], word: string, namespace?: string): FoundPod {
  const all = answers.flatMap(({ agent, status }) => status.pods.map((pod): FoundPod => ({ agent, status, pod })));
  const fullName = ({ pod }: FoundPod): string => `${pod.namespace}/${pod.name}`;
  for (const { namespace: of, name } of readings(word, namespace)) {
    const there = all.filter(({ pod }) => of === undefined || pod.namespace === of);
    const exact = there.filter(({ pod }) => pod.name === name);
    if (exact.length === 1) return exact[0]!;
    if (exact.length > 1) throw new UnderpassError('UNDERPASS_AMBIGUOUS_POD', `pod ${word}: there are ${exact.length} of this name: ${exact.map(fullName).join(', ')}`, { hint: 'name one as NAMESPACE/POD, or by --namespace' });
    const ofWorkload = there.filter(({ pod }) => pod.name.startsWith(`${name}-`)).sort((a, b) => fullName(a).localeCompare(fullName(b)));
    const namespaces = [...new Set(ofWorkload.map(({ pod }) => pod.namespace))];
    if (namespaces.length > 1) throw new UnderpassError('UNDERPASS_AMBIGUOUS_POD', `pod ${word}: workloads of this name are in ${namespaces.join(', ')}`, { hint: `name one as ${namespaces[0]}/${name}, or by --namespace` });
    if (ofWorkload.length > 0) return ofWorkload[0]!;
  }
  const [{ namespace: of, name } = { namespace, name: word }] = readings(word, namespace);
  const places = readings(word, namespace).map((reading) => {
    const there = all.filter(({ pod }) => reading.namespace === undefined || pod.namespace === reading.namespace);
    return nearest(reading.name, there.map(({ pod }) => pod.name)).flatMap((each) => there.filter(({ pod }) => pod.name === each).map(fullName));
  }).find(({ length }) => length > 0) ?? [];
  throw new UnderpassError('UNDERPASS_UNKNOWN_POD', `pod ${of === undefined ? '' : `${of}/`}${name}: ${answers.length === 1 ? `not on node ${answers[0]!.status.node}` : `on none of ${answers.length} nodes`}`, {
    hint: places.length > 0 ? `did you mean ${places.join(', ')}?` : `\`underpass ps --all\` lists the ${all.length} pods that are`,
  });
}

/** What the word may mean, the likelier first: names of pods may have dots. */
function readings(word: string, namespace: string | undefined): { namespace: string | undefined; name: string }[] {
  const bare = word.replace(/^(?:pods?|deployments?|deploy|statefulsets?|daemonsets?)\//, '');
  const slash = bare.indexOf('/');
  if (slash > 0) return [{ namespace: bare.slice(0, slash), name: bare.slice(slash + 1) }];
  const dot = bare.lastIndexOf('.');
  return [{ namespace, name: bare }, ...(dot > 0 && namespace === undefined ? [{ namespace: bare.slice(dot + 1), name: bare.slice(0, dot) }] : [])];
}

/** @returns whether it failed since nobody listens there */
export const isGone = (error: unknown): boolean => errorCode(error) === 'UNDERPASS_AGENT_NOT_RUNNING';
