/** Where a node agent's pods have their certificates from: a CA over the network, else that of the lab. */
import { readFile } from 'node:fs/promises';
import type { Command } from 'commander';
import type { NodeCaFactory } from '../agent/index.js';
import { UnderpassError } from '../common/errors.js';
import { CaIdentitySource } from '../common/identity/ca-client.js';
import { clientCertificateOf, rootsOf } from './agent-discovery.js';
import type { Home, Lab } from './agent-home.js';
import { labCa, localCa } from './agent-run.js';

/** Where Istio's proxies have them. */
const DEFAULT_ROOT = '/var/run/secrets/istio/root-cert.pem';
const DEFAULT_TOKEN = '/var/run/secrets/tokens/istio-token';

export interface CaCliOptions {
  ca?: string;
  caRoot?: string;
  caToken: string;
  caPodTokens?: boolean;
  clusterId?: string;
  discovery?: string;
  discoveryRoot?: string;
  discoveryCert?: string;
  discoveryKey?: string;
}

export function addCaOptions(command: Command): Command {
  return command
    .option('--ca <address>', "host:port of the CA of the pods' certificates, as pilot's --secure-listen or istiod's 15012 (default: with --discovery-root the control plane, else the embedded one, else the lab)")
    .option('--ca-root <file>', `roots that the CA's server is verified by, read anew when they change (default: --discovery-root, else ${DEFAULT_ROOT})`)
    .option('--ca-token <file>', "this agent's service account token, read anew for each request", DEFAULT_TOKEN)
    .option('--ca-pod-tokens', "ask the CA by tokens of the pods' own accounts, which the API server makes for pods of this node (deploy/agent-pod-tokens.yaml has the right), instead of by the agent's for them: for a CA that does not trust this agent");
}

/** @throws UnderpassError `UNDERPASS_BAD_OPTION` when the roots can't be read, or there is no API server to make tokens */
export async function caOf(options: CaCliOptions, { lab, home }: { lab: Lab | undefined; home?: Home }): Promise<NodeCaFactory | undefined> {
  const { discovery, discoveryRoot, caToken, clusterId, caPodTokens = false } = options;
  const address = options.ca ?? (discoveryRoot === undefined ? undefined : discovery);
  if (address === undefined) {
    if (!lab) return undefined;
    const own = await labCa(lab);
    return own && localCa(`the lab at ${lab.socketPath}`, () => own);
  }
  const roots = rootsOf('--ca-root', options.caRoot ?? discoveryRoot ?? DEFAULT_ROOT, address);
  const tokenOf = caPodTokens ? home?.tokenOf : undefined;
  if (caPodTokens && !tokenOf) throw new UnderpassError('UNDERPASS_BAD_OPTION', "--ca-pod-tokens: a lab's pods have no API server that makes tokens for them");
  const clientCertificate = clientCertificateOf(options);
  const shown = clientCertificate ? { clientCertificate } : { token: () => readFile(caToken, 'utf8') };
  return (onError) => {
    const source = new CaIdentitySource({ address, rootPem: roots, ...shown, onError, ...(tokenOf ? { tokenOf } : {}), ...(clusterId === undefined ? {} : { clusterId }) });
    return Object.assign(source, { description: address });
  };
}
