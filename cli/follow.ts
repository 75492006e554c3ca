/** Answers of agents that go on, for commands that follow what happens. */
import { errorMessage } from '../common/errors.js';
import { findPod, reachAgents, statuses, type ReachOptions } from './agents.js';
import { followSignals, outputClosed } from './signals.js';

/**
 * Follows all agents that the options reach, until each has ended, or Ctrl-C.
 * @param onLine of one that is alone as it said it; of several an object's line begins with the key `node`
 * @param pod of a cluster: the agent of its node alone
 */
export async function followEach(options: ReachOptions, path: string, onLine: (line: string) => void, pod?: string): Promise<void> {
  const signals = followSignals();
  const end = AbortSignal.any([signals.signal, outputClosed]);
  const reach = await reachAgents(options);
  try {
    const agents = pod !== undefined && reach.agents.length > 1 ? [findPod(await statuses(reach), pod).agent] : reach.agents;
    const many = agents.length > 1;
    const results = await Promise.allSettled(agents.map((agent) => agent.follow(path, (line) => onLine(many && line.startsWith('{') ? `{"node":${JSON.stringify(agent.node)},${line.slice(1)}` : line), end)));
    const failed = results.flatMap((result, index) => (result.status === 'rejected' ? [{ agent: agents[index]!, reason: result.reason as unknown }] : []));
    if (failed.length === results.length && failed.length > 0) throw failed[0]!.reason;
    for (const { agent, reason } of failed) process.stderr.write(`node ${agent.node ?? ''}: ${errorMessage(reason)}\n`);
    if (failed.length > 0) process.exitCode = 1;
  } finally {
    reach.close();
    await signals.close();
  }
}
