/** `underpass uninstall`: takes an installation away, whichever way it came, and leaves the nodes as they were. */
import type { Command } from 'commander';
import { logger } from '../common/log.js';
import { addClusterOptions, clusterClient, type ClusterOptions } from './install.js';
import { ProgressLine } from './progress.js';
import { removeAgents, removeNamespaces, removeRest } from './install/remove.js';
import { readValues } from './install/values.js';

interface Options extends ClusterOptions {
  nodesOnly?: boolean;
  everyNode?: boolean;
  abandonNodes?: boolean;
}

const HELP = `
First the agents: each takes its programs, redirections and its CNI plugin away and ends its Envoy, so that its pods' new
connections go as without Underpass; open ones through Envoy end. Where an agent did not do so, a pod does. Then all else that
carries the labels of an installation. What is somebody else's in its namespaces stays, and so does the namespace.

Exit code 1: something is left, and the message says what and where. A node that does not answer is left as it is, and so is
all that its agent needs to clean up when it comes back.
`;

export function configure(command: Command): void {
  addClusterOptions(command)
    .option('--nodes-only', 'end after the nodes are cleaned up, e.g. before `helm uninstall`')
    .option('--every-node', 'clean up on every node of the cluster, also where no agent is known; image and paths are those of the values when no DaemonSet says them')
    .option('--abandon-nodes', 'go on although nodes could not be cleaned up')
    .addHelpText('after', HELP)
    .action(async (options: Options) => {
      const values = readValues(options.values, options.set);
      const client = await clusterClient(options);
      const line = new ProgressLine();
      const progress = (text: string): void => line.show(text);
      const say = (text: string): void => {
        line.clear();
        process.stdout.write(`${text}\n`);
      };
      try {
        try {
          const nodes = await removeAgents({ client, logger: logger('uninstall'), timeoutMs: options.timeout, everyNode: options.everyNode === true, values, progress });
          say(`${nodes.length} nodes are as they were`);
        } catch (error) {
          if (!options.abandonNodes) throw error;
          say(`${(error as Error).message}: left so`);
          process.exitCode = 1;
        }
        if (options.nodesOnly) return;
        const removed = await removeRest(client, progress);
        say(`${removed.length} objects removed`);
        const { removed: namespaces, kept } = await removeNamespaces(client);
        if (namespaces.length > 0) say(`namespaces removed: ${namespaces.join(', ')}`);
        for (const [name, objects] of kept) say(`namespace ${name} stays, it has ${objects.slice(0, 10).join(', ')}${objects.length > 10 ? ` and ${objects.length - 10} more` : ''}`);
      } finally {
        line.clear();
        client.close();
      }
    });
}
