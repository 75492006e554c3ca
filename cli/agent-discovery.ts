/** How a node agent and its control plane know each other, and the CA: roots and tokens that are files, read anew. */
import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { X509Certificate, createPrivateKey } from 'node:crypto';
import type { ClientCertificate, DiscoveryTls } from '../agent/index.js';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { accountOfToken } from '../common/identity/service-account-token.js';
import { parseSpiffeId } from '../common/identity/spiffe.js';
import { logger } from '../common/log.js';

export interface DiscoveryCliOptions {
  discovery?: string;
  discoveryRoot?: string;
  /** With its key: shown in place of the token. */
  discoveryCert?: string;
  discoveryKey?: string;
  caToken: string;
  clusterId?: string;
}

/**
 * Roots in a file that may be replaced, as a mounted ConfigMap is: what it says now, or while it can't be read what it said last.
 * @throws UnderpassError `UNDERPASS_BAD_OPTION` when it can't be read to begin with
 */
export function rootsOf(option: string, file: string, address: string): () => string {
  let last: string;
  try {
    last = readRoots(file);
  } catch (cause) {
    throw new UnderpassError('UNDERPASS_BAD_OPTION', `${option}: reading the roots that ${address} is verified by: ${errorMessage(cause)}`, { cause });
  }
  let said = '';
  return () => {
    try {
      last = readRoots(file);
      said = '';
    } catch (error) {
      const reason = errorMessage(error);
      if (said !== (said = reason)) logger('agent').warn({ file, reason }, `${option}: the roots can't be read; those that were read last stay`);
    }
    return last;
  };
}

function readRoots(file: string): string {
  const pem = readFileSync(file, 'utf8');
  new X509Certificate(pem); // the first one: an empty or half-written file is none
  return pem;
}

/**
 * The certificate that the agent shows, as its files have it now or, while they do not belong together, had it last.
 * @throws UnderpassError `UNDERPASS_BAD_OPTION` when they are no certificate and its key to begin with
 */
export function clientCertificateOf({ discoveryCert, discoveryKey }: Pick<DiscoveryCliOptions, 'discoveryCert' | 'discoveryKey'>): (() => ClientCertificate) | undefined {
  if (discoveryCert === undefined && discoveryKey === undefined) return undefined;
  if (discoveryCert === undefined || discoveryKey === undefined) throw new UnderpassError('UNDERPASS_BAD_OPTION', '--discovery-cert and --discovery-key: found one of them, expected both');
  const read = (): ClientCertificate => {
    const [chainPem, privateKeyPem] = [readFileSync(discoveryCert, 'utf8'), readFileSync(discoveryKey, 'utf8')];
    if (!new X509Certificate(chainPem).checkPrivateKey(createPrivateKey(privateKeyPem))) throw new Error('the key is another certificate\'s');
    return { chainPem, privateKeyPem };
  };
  let last: ClientCertificate;
  try {
    last = read();
  } catch (cause) {
    // The reason alone: errors of what is read may quote it.
    throw new UnderpassError('UNDERPASS_BAD_OPTION', `--discovery-cert, --discovery-key: reading ${discoveryCert} and ${discoveryKey}: ${errorMessage(cause)}`, { cause });
  }
  return () => {
    try {
      last = read();
    } catch (error) {
      logger('agent').warn({ file: discoveryCert, reason: errorMessage(error) }, 'the certificate can\'t be read; the one that was read last stays');
    }
    return last;
  };
}

/** @throws UnderpassError `UNDERPASS_BAD_OPTION` when roots, token or certificate can't be read to begin with */
export async function discoveryTls({ discovery = '', discoveryRoot, caToken, clusterId, ...files }: DiscoveryCliOptions): Promise<DiscoveryTls | undefined> {
  const certificate = clientCertificateOf(files);
  if (discoveryRoot === undefined) return undefined;
  const roots = rootsOf('--discovery-root', discoveryRoot, discovery);
  const token = (): Promise<string> => readFile(caToken, 'utf8');
  let account: DiscoveryTls['account'];
  try {
    account = certificate ? parseSpiffeId((new X509Certificate(certificate().chainPem).subjectAltName ?? '').replace(/^URI:/, '')) : accountOfToken(await token());
  } catch (cause) {
    throw new UnderpassError('UNDERPASS_BAD_OPTION', `--ca-token: reading the token that ${discovery} is shown: ${errorMessage(cause)}`, { cause });
  }
  return { roots, token, ...(certificate ? { certificate } : {}), ...(account ? { account } : {}), ...(clusterId === undefined ? {} : { clusterId }) };
}
