import type { Command } from 'commander';
import { UnderpassError } from '../common/errors.js';
import { addCaOptions, caOf, type CaCliOptions } from './agent-ca.js';
import { discoveryTls } from './agent-discovery.js';
import { apiServerOf, clusterHome, findLab, labHome } from './agent-home.js';
import { addAgentOptions, cleanInstance, runAgent, type AgentCliOptions } from './agent-run.js';

interface Options extends AgentCliOptions, CaCliOptions {
  discovery?: string;
  discoveryRoot?: string;
  discoveryCert?: string;
  discoveryKey?: string;
}

export function configure(command: Command): void {
  addCaOptions(addAgentOptions(command))
    .option('--discovery <address>', 'the control plane: host:port, or unix:PATH')
    .option('--discovery-root <file>', "speak TLS to the control plane, as with istiod's port 15012: roots that it is verified by, as in the ConfigMap istio-ca-root-cert; it is shown --ca-token, and by the streams of the pods' accounts their certificates")
    .option('--discovery-cert <file>', "with --discovery-root and --discovery-key: the agent's own certificate of the mesh, shown in place of --ca-token to the control plane and the CA, read anew for each connection")
    .option('--discovery-key <file>', 'its key')
    .action(async (options: Options) => {
      if (options.cleanup) return cleanInstance(options);
      if (options.discovery === undefined) {
        throw new UnderpassError('UNDERPASS_BAD_OPTION', 'starting the agent: no control plane is named', {
          hint: 'give --discovery ADDRESS, or run `underpass node --embedded-pilot`',
        });
      }
      const server = await apiServerOf(options);
      const lab = server ? undefined : await findLab(options);
      const tls = await discoveryTls(options);
      const home = server ? clusterHome(options, server) : labHome(options, lab!);
      await runAgent(options, {
        purpose: 'underpass agent',
        waits: true,
        discoveryAddress: options.discovery,
        ...(tls ? { discoveryTls: tls } : {}),
        home,
        ca: await caOf(options, { lab, home }),
      });
    });
}
