/** How a node agent and its control plane know each other, and the CA: roots and tokens that are files, read anew. */
import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { X509Certificate } from 'node:crypto';
import type { DiscoveryTls } from '../agent/index.js';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { accountOfToken } from '../common/identity/service-account-token.js';
import { logger } from '../common/log.js';

export interface DiscoveryCliOptions {
  discovery?: string;
  discoveryRoot?: string;
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

/** @throws UnderpassError `UNDERPASS_BAD_OPTION` when roots or token can't be read to begin with */
export async function discoveryTls({ discovery = '', discoveryRoot, caToken, clusterId }: DiscoveryCliOptions): Promise<DiscoveryTls | undefined> {
  if (discoveryRoot === undefined) return undefined;
  const roots = rootsOf('--discovery-root', discoveryRoot, discovery);
  const token = (): Promise<string> => readFile(caToken, 'utf8');
  let account: DiscoveryTls['account'];
  try {
    account = accountOfToken(await token());
  } catch (cause) {
    throw new UnderpassError('UNDERPASS_BAD_OPTION', `--ca-token: reading the token that ${discovery} is shown: ${errorMessage(cause)}`, { cause });
  }
  return { roots, token, ...(account ? { account } : {}), ...(clusterId === undefined ? {} : { clusterId }) };
}
