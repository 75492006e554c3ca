/** Where a node agent's pods have their certificates from: a CA over the network, else that of the lab. */
import { readFile } from 'node:fs/promises';
import type { Command } from 'commander';
import type { NodeCaFactory } from '../agent/index.js';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { CaIdentitySource } from '../common/identity/ca-client.js';
import type { Lab } from './agent-home.js';
import { labCa, localCa } from './agent-run.js';

/** Where Istio's proxies have them. */
const DEFAULT_ROOT = '/var/run/secrets/istio/root-cert.pem';
const DEFAULT_TOKEN = '/var/run/secrets/tokens/istio-token';

export interface CaCliOptions {
  ca?: string;
  caRoot: string;
  caToken: string;
}

export function addCaOptions(command: Command): Command {
  return command
    .option('--ca <address>', "host:port of the CA of the pods' certificates, as pilot's --secure-listen or istiod's 15012 (default: the embedded control plane, else the lab)")
    .option('--ca-root <file>', 'with --ca: roots that its server is verified by', DEFAULT_ROOT)
    .option('--ca-token <file>', "with --ca: this agent's service account token, read anew for each request", DEFAULT_TOKEN);
}

/** @throws UnderpassError `UNDERPASS_BAD_OPTION` when the roots can't be read */
export async function caOf({ ca, caRoot, caToken }: CaCliOptions, lab: Lab | undefined): Promise<NodeCaFactory | undefined> {
  if (ca === undefined) {
    if (!lab) return undefined;
    const own = await labCa(lab);
    return own && localCa(`the lab at ${lab.socketPath}`, () => own);
  }
  let rootPem: string;
  try {
    rootPem = await readFile(caRoot, 'utf8');
  } catch (cause) {
    throw new UnderpassError('UNDERPASS_BAD_OPTION', `--ca-root: reading the roots that ${ca} is verified by: ${errorMessage(cause)}`, { cause });
  }
  return (onError) => {
    const source = new CaIdentitySource({ address: ca, rootPem, token: () => readFile(caToken, 'utf8'), onError });
    return Object.assign(source, { description: ca });
  };
}
