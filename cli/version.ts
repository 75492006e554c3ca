import { release } from 'node:os';
import type { Command } from 'commander';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { VERSION } from '../common/version.js';
import { addReachOptions, askEach, reachAgents, type AgentHandle, type ReachOptions } from './agents.js';
import { outputOption, parseAnswer, print, type Format } from './output.js';
import { whileWaiting } from './progress.js';
import { tableText } from './table.js';

interface NodeVersions {
  node: string;
  /** Absent: an agent from before it said so. */
  agent?: string;
  envoy?: string;
  kernel?: string;
  controlPlane?: string;
  problem?: string;
}

export function configure(command: Command): void {
  addReachOptions(command)
    .addOption(outputOption())
    .option('--client', 'of this program alone; asks nobody')
    .addHelpText('after', '\nWithout an agent to ask it says the client\'s version, why there is no more, and ends with 0.')
    .action(async (options: ReachOptions & { output: Format; client?: boolean }) => {
      const client = { version: VERSION, node: process.versions.node, kernel: release() };
      const nodes = options.client ? [] : await nodesOf(options);
      print(options.output, { client, nodes }, () => [
        `client  ${client.version} (Node ${client.node}, Linux ${client.kernel})\n`,
        ...(nodes.length === 0 ? [] : [tableText(['NODE', 'AGENT', 'ENVOY', 'KERNEL', 'CONTROL PLANE', 'NOTE'], nodes.map((each) => [each.node, each.agent ?? '-', each.envoy ?? '-', each.kernel ?? '-', each.controlPlane ?? '-', each.problem ?? '']))]),
      ].join(''));
    });
}

async function nodesOf(options: ReachOptions): Promise<NodeVersions[]> {
  try {
    const reach = await reachAgents(options);
    try {
      const results = await whileWaiting('asking agents', askEach(reach.agents, versionsOf));
      return results.map((result, index) => (result.status === 'fulfilled' ? result.value : { node: reach.agents[index]!.node ?? '-', problem: errorMessage(result.reason) }));
    } finally {
      reach.close();
    }
  } catch (error) {
    if (!(error instanceof UnderpassError)) throw error;
    return [{ node: '-', problem: error.message }];
  }
}

async function versionsOf(agent: AgentHandle): Promise<NodeVersions> {
  const { node, version, kernel, proxy } = parseAnswer<{ node: string; version?: string; kernel?: string; proxy: { envoy: { version?: string }; controlPlane: { address: string; connected: boolean; identifier?: string } } }>(await agent.ask('/v1/status'), 'the agent\'s status');
  const envoy = proxy.envoy.version === undefined ? undefined : (/\d+\.\d+\.\d+/.exec(proxy.envoy.version)?.[0] ?? proxy.envoy.version);
  return { node, ...(version === undefined ? {} : { agent: version }), ...(kernel === undefined ? {} : { kernel }), ...(envoy === undefined ? {} : { envoy }), controlPlane: `${proxy.controlPlane.address}${proxy.controlPlane.connected ? '' : ' (not connected)'}` };
}
