/** A CA that was given, in Istio's files: a directory (followed live) or the Secret `cacerts` of the root namespace. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { systemClock, type Clock } from '../../common/clock.js';
import { UnderpassError, errorCode, errorMessage } from '../../common/errors.js';
import type { CaMaterial, CertificateAuthority } from '../../common/identity/ca.js';
import type { Secret } from '../../common/kube/types.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';

export const CACERTS = 'cacerts';
const POLL_MS = 10_000;

export async function readCacerts(directory: string): Promise<CaMaterial> {
  const read = async (name: string): Promise<string> => {
    try {
      return await readFile(join(directory, name), 'utf8');
    } catch (error) {
      throw new UnderpassError('UNDERPASS_CA', `reading the CA of ${directory}: ${name}: ${errorCode(error) ?? errorMessage(error)}`);
    }
  };
  const [certificatePem, privateKeyPem, chainPem, rootPem] = await Promise.all(['ca-cert.pem', 'ca-key.pem', 'cert-chain.pem', 'root-cert.pem'].map(read));
  return { certificatePem: certificatePem!, privateKeyPem: privateKeyPem!, chainPem: chainPem!, rootPem: rootPem! };
}

/** @throws UnderpassError naming the key that is missing */
export function cacertsOf(secret: Secret): CaMaterial {
  const read = (name: string): string => {
    const text = secret.stringData?.[name] ?? (secret.data?.[name] === undefined ? undefined : Buffer.from(secret.data[name], 'base64').toString('utf8'));
    if (text === undefined) throw new UnderpassError('UNDERPASS_CA', `reading the CA of Secret ${secret.metadata.namespace}/${secret.metadata.name}: data has no ${name}`);
    return text;
  };
  return { certificatePem: read('ca-cert.pem'), privateKeyPem: read('ca-key.pem'), chainPem: read('cert-chain.pem'), rootPem: read('root-cert.pem') };
}

/** Looks at the directory every ten seconds; what does not fit together is said, and the CA of before goes on. */
export class CacertsWatcher implements Closable {
  #cancel: (() => void) | undefined;
  #closed = false;
  #seen: string;

  constructor(readonly ca: CertificateAuthority, readonly directory: string, inForce: CaMaterial, readonly logger: Logger, readonly clock: Clock = systemClock) {
    this.#seen = JSON.stringify(inForce);
    this.#schedule();
  }

  #schedule(): void {
    if (!this.#closed) this.#cancel = this.clock.after(POLL_MS, () => void this.look().finally(() => this.#schedule()));
  }

  async look(): Promise<void> {
    try {
      const material = await readCacerts(this.directory);
      const now = JSON.stringify(material);
      if (now === this.#seen || this.#closed) return;
      this.#seen = now;
      await this.ca.replace(material, this.directory);
      this.logger.info({ directory: this.directory }, 'took over another CA');
    } catch (error) {
      this.logger.error({ reason: errorMessage(error) }, 'the CA was not exchanged; the one of before stays');
    }
  }

  close(): void {
    this.#closed = true;
    this.#cancel?.();
  }
}
