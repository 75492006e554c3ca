import type { Command } from 'commander';
import { UnderpassError } from '../common/errors.js';
import { addCaOptions, caOf, type CaCliOptions } from './agent-ca.js';
import { addAgentOptions, cleanInstance, findLab, runAgent, type AgentCliOptions } from './agent-run.js';

export function configure(command: Command): void {
  addCaOptions(addAgentOptions(command))
    .option('--discovery <address>', 'the control plane: host:port, or unix:PATH')
    .action(async (options: AgentCliOptions & CaCliOptions & { discovery?: string }) => {
      if (options.cleanup) return cleanInstance(options);
      if (options.discovery === undefined) {
        throw new UnderpassError('UNDERPASS_BAD_OPTION', 'starting the agent: no control plane is named', {
          hint: 'give --discovery ADDRESS, or run `underpass node --embedded-pilot`',
        });
      }
      const lab = await findLab(options);
      await runAgent(options, { purpose: 'underpass agent', discoveryAddress: options.discovery, lab, ca: await caOf(options, lab) });
    });
}
