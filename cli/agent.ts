import { readFile } from 'node:fs/promises';
import { credentials, Metadata, type ChannelCredentials } from '@grpc/grpc-js';
import type { Command } from 'commander';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { addCaOptions, caOf, type CaCliOptions } from './agent-ca.js';
import { apiServerOf, clusterHome, findLab, labHome } from './agent-home.js';
import { addAgentOptions, cleanInstance, runAgent, type AgentCliOptions } from './agent-run.js';

interface Options extends AgentCliOptions, CaCliOptions {
  discovery?: string;
  discoveryRoot?: string;
}

export function configure(command: Command): void {
  addCaOptions(addAgentOptions(command))
    .option('--discovery <address>', 'the control plane: host:port, or unix:PATH')
    .option('--discovery-root <file>', "speak TLS to the control plane, as with istiod's port 15012: roots that it is verified by; it is shown --ca-token")
    .action(async (options: Options) => {
      if (options.cleanup) return cleanInstance(options);
      if (options.discovery === undefined) {
        throw new UnderpassError('UNDERPASS_BAD_OPTION', 'starting the agent: no control plane is named', {
          hint: 'give --discovery ADDRESS, or run `underpass node --embedded-pilot`',
        });
      }
      const server = await apiServerOf(options);
      const lab = server ? undefined : await findLab(options);
      const own = await discoveryCredentials(options);
      await runAgent(options, {
        purpose: 'underpass agent',
        discoveryAddress: options.discovery,
        ...(own ? { credentials: own } : {}),
        home: server ? clusterHome(options, server) : labHome(options, lab!),
        ca: await caOf(options, lab),
      });
    });
}

/** @throws UnderpassError `UNDERPASS_BAD_OPTION` when the roots can't be read */
async function discoveryCredentials({ discovery, discoveryRoot, caToken }: Options): Promise<ChannelCredentials | undefined> {
  if (discoveryRoot === undefined) return undefined;
  let roots: Buffer;
  try {
    roots = await readFile(discoveryRoot);
  } catch (cause) {
    throw new UnderpassError('UNDERPASS_BAD_OPTION', `--discovery-root: reading the roots that ${discovery} is verified by: ${errorMessage(cause)}`, { cause });
  }
  // Read anew for each stream: kubelet rotates it.
  const shown = credentials.createFromMetadataGenerator((_, callback) => {
    readFile(caToken, 'utf8').then(
      (token) => {
        const metadata = new Metadata();
        metadata.set('authorization', `Bearer ${token.trim()}`);
        callback(null, metadata);
      },
      (error: unknown) => callback(new Error(`--ca-token: reading this agent's token: ${errorMessage(error)}`)),
    );
  });
  return credentials.combineChannelCredentials(credentials.createSsl(roots), shown);
}
