import type { Command } from 'commander';
import { UnderpassError } from '../common/errors.js';
import { addAgentOptions, cleanInstance, findLab, runAgent, type AgentCliOptions } from './agent-run.js';

export function configure(command: Command): void {
  addAgentOptions(command)
    .option('--discovery <address>', 'the control plane: host:port, or unix:PATH')
    .action(async (options: AgentCliOptions & { discovery?: string }) => {
      if (options.cleanup) return cleanInstance(options);
      if (options.discovery === undefined) {
        throw new UnderpassError('UNDERPASS_BAD_OPTION', 'starting the agent: no control plane is named', {
          hint: 'give --discovery ADDRESS, or run `underpass node --embedded-pilot`',
        });
      }
      await runAgent(options, { purpose: 'underpass agent', discoveryAddress: options.discovery, lab: await findLab(options) });
    });
}
