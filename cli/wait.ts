/** `underpass wait`: until what was asked for is so on every node that it concerns. */
import { Option, type Command } from 'commander';
import type { AgentStatus } from '../agent/client.js';
import { duration } from '../common/arguments.js';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { sleep } from '../common/retry.js';
import { addReachOptions, askEach, findPod, reachAgents, type AgentAnswer, type Reach, type ReachOptions } from './agents.js';
import { EXIT } from './exit-codes.js';
import { parseAnswer } from './output.js';
import { whileWaiting } from './progress.js';
import { followSignals } from './signals.js';

const CONDITIONS = ['ready', 'in-sync', 'enrolled', 'off'] as const;
type Condition = (typeof CONDITIONS)[number];

const EVERY_MS = 500;

export function configure(command: Command): void {
  addReachOptions(command)
    .argument('[pod]', 'for enrolled and off: POD, NAMESPACE/POD, POD.NAMESPACE, or a workload\'s name')
    .addOption(new Option('--for <condition>', 'what to wait for').choices(CONDITIONS).default('in-sync'))
    .option('-n, --namespace <name>', 'the pod\'s namespace (default: all)')
    .addOption(new Option('--timeout <duration>', 'how long').argParser(duration).default(60_000, '1m'))
    .addHelpText('after', `
ready: every agent has its pods, its Envoy and its certificates. in-sync: also, it has the control plane, all that this said is
acknowledged by Envoy, none of it was refused, and no pod is just changing. enrolled, off: the pod is, with its way in force.
Exit code ${EXIT.timedOut} when the time has passed, ${EXIT.interrupted} after Ctrl-C; what is missing is said on stderr.
Example:
  underpass label namespace shop underpass.io/mode=node && underpass wait --for=enrolled shop/client`)
    .action(async (word: string | undefined, options: ReachOptions & { for: Condition; namespace?: string; timeout: number }) => {
      const isOfPod = options.for === 'enrolled' || options.for === 'off';
      if (isOfPod !== (word !== undefined)) throw new UnderpassError('UNDERPASS_BAD_OPTION', `--for=${options.for}: ${isOfPod ? 'expected a pod' : 'it is of nodes, expected no pod'}`);
      const reach = await reachAgents(options);
      const signals = followSignals();
      try {
        await whileWaiting(`waiting for ${options.for}`, until(reach, options.for, word, options, signals.signal));
        process.stdout.write(`${word === undefined ? `${reach.agents.length} ${reach.agents.length === 1 ? 'node' : 'nodes'}` : `pod ${word}`} ${options.for}\n`);
      } catch (error) {
        if (!signals.signal.aborted) throw error;
        process.exitCode = EXIT.interrupted;
      } finally {
        await signals.close();
        reach.close();
      }
    });
}

async function until(reach: Reach, condition: Condition, word: string | undefined, { namespace, timeout }: { namespace?: string; timeout: number }, signal: AbortSignal): Promise<void> {
  const deadline = performance.now() + timeout;
  for (;;) {
    signal.throwIfAborted();
    const missing = await missingOf(reach, condition, word, namespace, signal);
    if (missing.length === 0) return;
    if (performance.now() >= deadline) throw new UnderpassError('UNDERPASS_TIMED_OUT', `waiting for ${condition}: not so after ${timeout / 1_000} s: ${missing.slice(0, 5).join('; ')}${missing.length > 5 ? ` and ${missing.length - 5} more` : ''}`);
    await sleep(Math.max(0, Math.min(EVERY_MS, deadline - performance.now())), signal);
  }
}

async function missingOf({ agents }: Reach, condition: Condition, word: string | undefined, namespace: string | undefined, signal: AbortSignal): Promise<string[]> {
  const results = await askEach(agents, async (agent): Promise<AgentAnswer> => ({ agent, status: parseAnswer<AgentStatus>(await agent.ask('/v1/status', { signal }), 'the agent\'s status') }));
  const silent = results.flatMap((result, index) => (result.status === 'rejected' ? [`${agents[index]!.node ?? agents[index]!.place}: ${errorMessage(result.reason)}`] : []));
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
