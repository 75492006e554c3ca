/** `underpass config-status`: which configuration objects are in force on which nodes, in which version. */
import type { Command } from 'commander';
import type { NodeObjects } from '../agent/client.js';
import { UnderpassError } from '../common/errors.js';
import { addReachOptions, answered, askEach, reachAgents, type ReachOptions } from './agents.js';
import { outputOption, parseAnswer, print, type Format } from './output.js';
import { tableText } from './table.js';

export function configure(command: Command): void {
  addReachOptions(command)
    .argument('[object]', 'KIND/NAME.NAMESPACE, e.g. VirtualService/reviews.default: its resources, one by one')
    .addOption(outputOption())
    .addHelpText('after', '\nObjects are known by what the control plane writes into resources, as istiod does. ACKED: acknowledged, and not all\nread back yet; IN FORCE: read back from Envoy and the kernel, too.')
    .action(async (object: string | undefined, options: ReachOptions & { output: Format }) => {
      const reach = await reachAgents(options);
      try {
        const query = object === undefined ? '' : `?${new URLSearchParams({ object }).toString()}`;
        const nodes = answered(reach.agents, await askEach(reach.agents, async (agent) => parseAnswer<NodeObjects>(await agent.ask(`/v1/objects${query}`), "the agent's objects")));
        if (object !== undefined && nodes.every(({ objects }) => objects.length === 0)) {
          throw new UnderpassError('UNDERPASS_UNKNOWN_OBJECT', `${object}: nothing of it is in any resource of ${nodes.length === 1 ? `node ${nodes[0]!.node}` : `these ${nodes.length} nodes`}`, { hint: '`underpass config-status` lists the objects that are' });
        }
        print(options.output, { nodes }, () => render(nodes, object !== undefined));
      } finally {
        reach.close();
      }
    });
}

export function render(nodes: readonly NodeObjects[], isOne: boolean): string {
  if (!isOne) {
    const rows = nodes.flatMap(({ node, objects }) => objects.map(({ object, state, resources, since }) => [object, node, since === undefined ? state : `${state} since ${since}`, String(resources.length), `${resources.filter(({ acked }) => acked).length}`, `${resources.filter(({ readBack }) => readBack).length}`]));
    return tableText(['OBJECT', 'NODE', 'STATE', 'RESOURCES', 'ACKED', 'READ BACK'], rows);
  }
  const rows = nodes.flatMap(({ node, objects }) => objects.flatMap(({ resources }) => resources.map(({ type, name, version, acked, readBack, nack }) => [node, type, name, version.slice(0, 12), acked ? 'yes' : 'no', readBack ? 'yes' : 'no', nack ?? ''])));
  return nodes.flatMap(({ node, objects }) => objects.map(({ object, state, since }) => `${object} on ${node}: ${state}${since === undefined ? '' : ` since ${since}`}\n`)).join('') + tableText(['NODE', 'TYPE', 'RESOURCE', 'VERSION', 'ACKED', 'READ BACK', 'REFUSED'], rows);
}
