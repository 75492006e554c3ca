import type { Command } from 'commander';
import { UnderpassError } from '../common/errors.js';
import { rootLogger } from '../common/log.js';
import { Pilot } from '../pilot/index.js';
import { addCaOptions, caOf, type CaCliOptions } from './agent-ca.js';
import { findLab, labHome } from './agent-home.js';
import { addAgentOptions, cleanInstance, embeddedPilotSocket, labCa, localCa, runAgent, type AgentCliOptions } from './agent-run.js';

interface NodeCliOptions extends AgentCliOptions, CaCliOptions {
  discovery?: string;
  embeddedPilot?: boolean;
  source?: string[];
  pilotListen?: string[];
}

export function configure(command: Command): void {
  addCaOptions(addAgentOptions(command))
    .option('--embedded-pilot', 'run the control plane in this process')
    .option('--source <dir...>', 'with --embedded-pilot: directories of YAML; of one object the last source\'s counts (default: the lab\'s)')
    .option('--pilot-listen <address...>', 'with --embedded-pilot: also serve xDS here, e.g. 127.0.0.1:15010 for sidecars')
    .option('--discovery <address>', 'without --embedded-pilot: the control plane, host:port or unix:PATH')
    .action(run);
}

async function run(options: NodeCliOptions): Promise<void> {
  if (options.cleanup) return cleanInstance(options);
  const lab = await findLab(options);
  if (!options.embeddedPilot) {
    if (options.discovery === undefined) {
      throw new UnderpassError('UNDERPASS_BAD_OPTION', 'starting the node: no control plane is named', { hint: 'give --embedded-pilot, or --discovery ADDRESS' });
    }
    return runAgent(options, { purpose: 'underpass node', discoveryAddress: options.discovery, home: labHome(options, lab), ca: await caOf(options, { lab }) });
  }
  const sources = options.source ?? (lab.info ? [...lab.info.sourceDirs, lab.info.objectsDir] : []);
  if (sources.length === 0) {
    throw new UnderpassError('UNDERPASS_BAD_OPTION', `starting the embedded control plane: no --source is given, and the lab at ${lab.socketPath} does not answer`, {
      hint: 'start a lab by `underpass lab up -f DIR`, or give --source DIR',
    });
  }
  const socket = `unix:${embeddedPilotSocket(options)}`;
  // One root for the node's pods and for the lab's sidecars.
  const ca = await labCa(lab);
  const pilot = new Pilot({ sources, listen: [socket, ...(options.pilotListen ?? [])], security: { listen: [], ...(ca ? { ca } : {}) }, ...(options.trustDomain === undefined ? {} : { meshConfig: { trustDomain: options.trustDomain } }), logger: rootLogger });
  const abort = new AbortController();
  await runAgent(options, {
    purpose: 'underpass node',
    discoveryAddress: socket,
    home: labHome(options, lab),
    ca: options.ca === undefined ? localCa('the embedded control plane', () => pilot.ca!) : await caOf(options, { lab }),
    companion: {
      start: () => pilot.start(abort.signal),
      stop: async () => {
        abort.abort();
        await pilot.stop();
      },
      status: () => pilot.status(),
    },
  });
}
