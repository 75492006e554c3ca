/** `underpass wait`: until what was asked for is so on every node that it concerns. */
import { InvalidArgumentError, Option, type Command } from 'commander';
import type { AgentStatus, NodeObjects } from '../agent/client.js';
import { duration } from '../common/arguments.js';
import { UnderpassError, errorCode, errorMessage } from '../common/errors.js';
import { sleep } from '../common/retry.js';
import { addReachOptions, askEach, findPod, reachAgents, type AgentAnswer, type AgentHandle, type Reach, type ReachOptions } from './agents.js';
import { EXIT } from './exit-codes.js';
import { parseAnswer } from './output.js';
import { whileWaiting } from './progress.js';
import { followSignals } from './signals.js';
import { currentGeneration, Distributions, type WrittenVersion } from './wait-generation.js';

const CONDITIONS = ['ready', 'in-sync', 'enrolled', 'off', 'in-force', 'gone'] as const;
type Condition = (typeof CONDITIONS)[number];
/** What each is of, in words. */
const OF: Readonly<Record<Condition, 'nodes' | 'a pod' | 'an object'>> = { ready: 'nodes', 'in-sync': 'nodes', enrolled: 'a pod', off: 'a pod', 'in-force': 'an object', gone: 'an object' };

const EVERY_MS = 500;
/** What was just applied may be on its way to the control plane, whose word of before is in force: it has to be so for as long as this. */
const OBJECT_HOLDS_MS = 2_000;
const OBJECT = /^[A-Za-z]+\/[^/\s]+$/;

interface WaitOptions extends ReachOptions {
  for?: Condition;
  namespace?: string;
  generation?: number | 'current';
  resourceVersion?: string;
  pilot?: string[];
  timeout: number;
}

function generation(text: string): number | 'current' {
  if (text === 'current') return text;
  if (!/^[1-9]\d{0,15}$/.test(text)) throw new InvalidArgumentError('expected a number from 1 on, or current');
  return Number(text);
}

export function configure(command: Command): void {
  addReachOptions(command)
    .argument('[what]', 'for enrolled and off: POD, NAMESPACE/POD, POD.NAMESPACE, or a workload\'s name; for in-force and gone: KIND/NAME.NAMESPACE, or KIND/NAME with -n')
    .addOption(new Option('--for <condition>', 'what to wait for (default: in-sync, or in-force of what is named)').choices(CONDITIONS))
    .option('-n, --namespace <name>', 'the pod\'s namespace (default: all), or the object\'s')
    .addOption(new Option('--generation <n>', 'in-force: of this generation or a later one; "current": of that which the API server has now').argParser(generation))
    .option('--resource-version <v>', 'in-force: the same by the object\'s resource version')
    .option('--pilot <url...>', 'which control planes to ask for them, e.g. http://127.0.0.1:15014 (default: the cluster\'s)')
    .addOption(new Option('--timeout <duration>', 'how long').argParser(duration).default(60_000, '1m'))
    .addHelpText('after', `
ready: every agent has its pods, its Envoy and its certificates. in-sync: also, it has the control plane, all that this said is
acknowledged by Envoy, none of it was refused, and no pod is just changing. enrolled, off: the pod is, with its way in force.
in-force: of the configuration object, as \`underpass config-status\` lists it, all that a node has is acknowledged and was read back,
on every node that has any of it, and one does; it has been so for ${OBJECT_HOLDS_MS / 1_000} s. gone: no node has any of it.
With --generation or --resource-version: also, every pilot has that version, all its clients have acknowledged what was made of it, and
these nodes' Envoys all that was said; then it need not hold. In a cluster that needs get and create of pods/portforward, and list of
pods, in istio-system; istiod does not say it. metadata.generation is what \`kubectl apply -o jsonpath={.metadata.generation}\` prints.
Exit code ${EXIT.timedOut} when the time has passed, ${EXIT.interrupted} after Ctrl-C; what is missing is said on stderr.
Example:
  underpass label namespace shop underpass.io/mode=node && underpass wait --for=enrolled shop/client
  kubectl apply -f reviews.yaml && underpass wait VirtualService/reviews.default`)
    .action(async (word: string | undefined, options: WaitOptions) => {
      const condition = options.for ?? (word === undefined ? 'in-sync' : 'in-force');
      const of = OF[condition];
      if ((of === 'nodes') === (word !== undefined)) throw new UnderpassError('UNDERPASS_BAD_OPTION', `--for=${condition}: ${of === 'nodes' ? `it is of nodes, expected no ${JSON.stringify(word)}` : `expected ${of}`}`);
      const isVersioned = options.generation !== undefined || options.resourceVersion !== undefined;
      if (isVersioned && condition !== 'in-force') throw new UnderpassError('UNDERPASS_BAD_OPTION', `--for=${condition}: expected no --generation and no --resource-version, which are of objects in force`);
      const named = of === 'an object' ? objectName(word!, options.namespace) : word;
      const reach = await reachAgents(options);
      const signals = followSignals();
      let distributions: Distributions | undefined;
      try {
        const version: WrittenVersion = {
          ...(options.generation === undefined ? {} : { generation: options.generation === 'current' ? await generationNow(reach, named!) : options.generation }),
          ...(options.resourceVersion === undefined ? {} : { resourceVersion: options.resourceVersion }),
        };
        if (isVersioned) distributions = await Distributions.open(options.pilot ?? [], reach.client);
        await whileWaiting(`waiting for ${condition}`, until(reach, condition, named, options, signals.signal, distributions && ((signal) => distributions!.missing(named!, version, signal))));
        process.stdout.write(`${word === undefined ? `${reach.agents.length} ${reach.agents.length === 1 ? 'node' : 'nodes'}` : of === 'a pod' ? `pod ${word}` : named} ${condition}\n`);
      } catch (error) {
        if (!signals.signal.aborted) throw error;
        process.exitCode = EXIT.interrupted;
      } finally {
        await signals.close();
        await distributions?.close();
        reach.close();
      }
    });
}

function generationNow({ client }: Reach, object: string): Promise<number> {
  if (!client) throw new UnderpassError('UNDERPASS_BAD_OPTION', '--generation=current: expected a cluster, by --kubeconfig or --context, whose API server knows it');
  return currentGeneration(client, object);
}

/** @returns `Kind/name.namespace` */
function objectName(word: string, namespace: string | undefined): string {
  const hasNamespace = word.includes('.');
  if (!OBJECT.test(word) || (!hasNamespace && namespace === undefined)) throw new UnderpassError('UNDERPASS_BAD_OPTION', `${word}: expected KIND/NAME.NAMESPACE, e.g. VirtualService/reviews.default, or KIND/NAME with --namespace`, { hint: 'pods are waited for by --for=enrolled or --for=off' });
  return namespace === undefined || word.endsWith(`.${namespace}`) ? word : `${word}.${namespace}`;
}

async function until(reach: Reach, condition: Condition, word: string | undefined, { namespace, timeout }: { namespace?: string; timeout: number }, signal: AbortSignal, notSent?: (signal: AbortSignal) => Promise<string[]>): Promise<void> {
  const deadline = performance.now() + timeout;
  let since = Infinity;
  for (;;) {
    signal.throwIfAborted();
    // What the nodes say counts only after the control planes have said that all of it has arrived there.
    const missing = (await notSent?.(signal)) ?? [];
    if (missing.length === 0 && notSent) missing.push(...(await missingOf(reach, 'in-sync', undefined, undefined, signal)));
    if (missing.length === 0) missing.push(...(await (OF[condition] === 'an object' ? missingOfObject(reach, condition, word!, signal) : missingOf(reach, condition, word, namespace, signal))));
    since = missing.length === 0 ? Math.min(since, performance.now()) : Infinity;
    if (missing.length === 0 && (notSent || OF[condition] !== 'an object' || performance.now() - since >= OBJECT_HOLDS_MS)) return;
    if (missing.length === 0) missing.push(`it has been so for less than ${OBJECT_HOLDS_MS / 1_000} s`);
    if (performance.now() >= deadline) throw new UnderpassError('UNDERPASS_TIMED_OUT', `waiting for ${condition}: not so after ${timeout / 1_000} s: ${missing.slice(0, 5).join('; ')}${missing.length > 5 ? ` and ${missing.length - 5} more` : ''}`);
    await sleep(Math.max(0, Math.min(EVERY_MS, deadline - performance.now())), signal);
  }
}

/** @returns what was not answered, in words; a right that is missing does not come by waiting */
function silentOf(agents: readonly AgentHandle[], results: readonly PromiseSettledResult<unknown>[]): string[] {
  return results.flatMap((result, index) => {
    if (result.status === 'fulfilled') return [];
    if (errorCode(result.reason) === 'UNDERPASS_NO_PERMISSION') throw result.reason;
    return [`${agents[index]!.node ?? agents[index]!.place}: ${errorMessage(result.reason)}`];
  });
}

async function missingOfObject({ agents }: Reach, condition: Condition, object: string, signal: AbortSignal): Promise<string[]> {
  const results = await askEach(agents, async (agent) => parseAnswer<NodeObjects>(await agent.ask(`/v1/objects?${new URLSearchParams({ object }).toString()}`, { signal }), "the agent's objects"));
  const silent = silentOf(agents, results);
  const there = results.flatMap((result) => (result.status === 'fulfilled' ? result.value.objects.map((status) => ({ node: result.value.node, ...status })) : []));
  if (condition === 'gone') return [...silent, ...there.map(({ node, resources }) => `${node}: ${resources.length} ${resources.length === 1 ? 'resource has' : 'resources have'} something of it`)];
  if (there.length === 0) return [...silent, `${object}: nothing of it is in any resource of ${agents.length === 1 ? 'the node' : `these ${agents.length} nodes`}`];
  return [...silent, ...there.filter(({ state }) => state !== 'IN FORCE').map(({ node, state, resources, since }) => `${node}: ${state}${since === undefined ? '' : ` since ${since}`}${resources.flatMap(({ nack }) => (nack === undefined ? [] : `: ${nack}`)).slice(0, 1).join('')}`)];
}

async function missingOf({ agents }: Reach, condition: Condition, word: string | undefined, namespace: string | undefined, signal: AbortSignal): Promise<string[]> {
  const results = await askEach(agents, async (agent): Promise<AgentAnswer> => ({ agent, status: parseAnswer<AgentStatus>(await agent.ask('/v1/status', { signal }), 'the agent\'s status') }));
  const silent = silentOf(agents, results);
  const answers = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  if (word === undefined) return [...silent, ...answers.flatMap(({ status }) => missingOfNode(status, condition))];
  try {
    const { pod } = findPod(answers, word, namespace);
    if (pod.state === condition && pod.settled) return [];
    return [`pod ${pod.namespace}/${pod.name} is ${pod.state}${pod.settled ? '' : ', and changing'}${pod.error === undefined ? '' : `: ${pod.error}`}${pod.reason === undefined ? '' : `: ${pod.reason}`}`];
  } catch (error) {
    // A pod may be about to come; a name that fits several does not get better by waiting.
    if (error instanceof UnderpassError && error.code === 'UNDERPASS_UNKNOWN_POD') return [...silent, error.message];
    throw error;
  }
}

function missingOfNode({ node, ready, notReady, proxy, pods }: AgentStatus, condition: Condition): string[] {
  const missing = ready ? [] : notReady.map((reason) => `${node}: ${reason}`);
  if (condition === 'ready') return missing;
  if (!proxy.controlPlane.connected) missing.push(`${node}: the control plane ${proxy.controlPlane.address} is not connected`);
  if (!proxy.settled) missing.push(`${node}: Envoy has not acknowledged all that the control plane said`);
  missing.push(...proxy.nacks.map(({ type, name, message }) => `${node}: ${type} ${name} was refused: ${message}`));
  missing.push(...pods.filter(({ settled }) => !settled).map((pod) => `${node}: pod ${pod.namespace}/${pod.name} is changing`));
  return missing;
}
