/**
 * The certificates of the node's pods: one for each service account that a pod here runs under, in memory alone, renewed at
 * half of its life, given up with the account's last pod. While the CA does not answer what is there goes on being used; an
 * account that never had a certificate has none, and Envoy refuses the connections that would need it. One that has expired
 * stays with Envoy: whoever is shown it ends the handshake, while without it the pod would be offered to plaintext.
 */
import { systemClock, type Clock } from '../../common/clock.js';
import { errorMessage } from '../../common/errors.js';
import type { IssuedCertificate } from '../../common/identity/ca.js';
import { CertificateRotation, type RotationOptions } from '../../common/identity/rotation.js';
import { certificateSecret, rootSecret } from '../../common/identity/secret-streams.js';
import { parseSpiffeId, type WorkloadIdentity } from '../../common/identity/spiffe.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { Backoff, type BackoffOptions } from '../../common/retry.js';
import { pack } from '../../common/xds/any.js';
import { Secret } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import type { Entry } from '../proxy/snapshot.js';
import { hashBytes } from '../xds/resource-type.js';

/** Who signs for this node's pods: a CA over the network, or the one of a control plane in this process. */
export interface NodeCa extends Closable {
  /** For the log and the status. */
  readonly description: string;
  /** All roots that count now. */
  readonly rootPem: string;
  /** @param signal nobody wants it any more */
  issue(identity: WorkloadIdentity, signal: AbortSignal): Promise<IssuedCertificate>;
  /** Tells of other roots than before. @returns what ends it. */
  onRootChange(listener: () => void): () => void;
}

/** @param onError is told why the CA has not answered yet */
export type NodeCaFactory = (onError: (error: unknown) => void) => NodeCa;

export interface CertificatesStatus {
  ca: string;
  /** Why the CA's last answer was none. */
  problem?: string;
  /** By SPIFFE id. `notAfter` is in ISO 8601, and absent while there is no certificate; `expired` when it has passed. */
  identities: { id: string; notAfter?: string; expired?: true; problem?: string }[];
}

export interface NodeCertificatesOptions {
  ca: NodeCaFactory;
  /** Some secret is new or another than before. */
  onChange: () => void;
  logger: Logger;
  rotation?: RotationOptions;
}

/** An account's pods may be known here before they are to the CA. */
const REFUSED_BACKOFF: BackoffOptions = { initialMs: 200, maxMs: 10_000, factor: 1.6, jitter: 0.2 };

interface Account {
  readonly rotation: CertificateRotation;
  readonly gone: AbortController;
  secret: Entry | undefined;
  notAfter: Date | undefined;
  expired: boolean;
  /** Of the look whether it has. */
  cancelExpiry: (() => void) | undefined;
  problem: string | undefined;
}

export class NodeCertificates implements Closable {
  readonly #options: NodeCertificatesOptions;
  readonly #clock: Clock;
  readonly #ca: NodeCa;
  readonly #forgetRoots: () => void;
  readonly #accounts = new Map<string, Account>();
  #problem: string | undefined;
  #root: Entry;

  constructor(options: NodeCertificatesOptions) {
    this.#options = options;
    this.#clock = options.rotation?.clock ?? systemClock;
    this.#ca = options.ca((error) => this.#failed(errorMessage(error)));
    this.#root = this.#rootEntry();
    this.#forgetRoots = this.#ca.onRootChange(() => {
      this.#root = this.#rootEntry();
      options.logger.info({ ca: this.#ca.description }, 'the roots of the mesh are others than before');
      options.onChange();
    });
  }

  /** @param ids the SPIFFE ids of the pods on this node */
  want(ids: ReadonlySet<string>): void {
    for (const [id, account] of this.#accounts) {
      if (ids.has(id)) continue;
      this.#accounts.delete(id);
      account.gone.abort();
      account.rotation.close();
      account.cancelExpiry?.();
      if (account.problem === this.#problem) this.#problem = undefined;
    }
    for (const id of ids) {
      const identity = parseSpiffeId(id);
      if (!identity || this.#accounts.has(id)) continue;
      void this.#obtain(id, identity);
    }
  }

  /** What Envoy gets by SDS: `ROOTCA`, and under its SPIFFE id the certificate of each account that has one. */
  get secrets(): ReadonlyMap<string, Entry> {
    const secrets = [this.#root, ...[...this.#accounts.values()].flatMap(({ secret }) => secret ?? [])];
    return new Map(secrets.map((entry) => [entry.name, entry]));
  }

  /** To show to a server; undefined while there is none that holds. */
  certificate(id: string): IssuedCertificate | undefined {
    const account = this.#accounts.get(id);
    return account?.secret && !account.expired ? account.rotation.current : undefined;
  }

  status(): CertificatesStatus {
    const identities = [...this.#accounts].map(([id, { notAfter, expired, problem }]) => ({ id, ...(notAfter ? { notAfter: notAfter.toISOString() } : {}), ...(expired ? { expired } : {}), ...(problem === undefined ? {} : { problem }) }));
    return { ca: this.#ca.description, ...(this.#problem === undefined ? {} : { problem: this.#problem }), identities };
  }

  async #obtain(id: string, identity: WorkloadIdentity): Promise<void> {
    const issue = async (): Promise<IssuedCertificate> => {
      const certificate = await this.#ca.issue(identity, account.gone.signal);
      this.#problem = account.problem = undefined;
      return certificate;
    };
    const take = (certificate: IssuedCertificate): void => {
      if (account.gone.signal.aborted) return;
      if (account.expired) this.#options.logger.info({ ca: this.#ca.description, identity: id }, 'a certificate again after one that had expired');
      account.notAfter = certificate.notAfter;
      account.expired = false;
      this.#watchExpiry(id, account);
      // A hash of what is public, since versions are shown.
      account.secret = entry(certificateSecret(id, certificate), certificate.chainPem);
      this.#options.onChange();
    };
    const failed = (error: unknown): void => {
      if (account.gone.signal.aborted) return;
      const before = account.problem;
      account.problem = errorMessage(error);
      this.#failed(account.problem, before, { identity: id });
    };
    const rotation = new CertificateRotation({ ...this.#options.rotation, issue, onRenewed: take, onError: failed });
    const account: Account = { rotation, gone: new AbortController(), secret: undefined, notAfter: undefined, expired: false, cancelExpiry: undefined, problem: undefined };
    this.#accounts.set(id, account);
    const backoff = new Backoff(REFUSED_BACKOFF);
    while (!account.gone.signal.aborted) {
      try {
        await rotation.start();
        return take(rotation.current);
      } catch (error) {
        failed(error);
        await this.#pause(backoff.next(), account.gone.signal);
      }
    }
  }

  #watchExpiry(id: string, account: Account): void {
    account.cancelExpiry?.();
    const leftMs = account.notAfter!.getTime() - this.#clock.now();
    if (leftMs > 0) {
      account.cancelExpiry = this.#clock.after(leftMs, () => this.#watchExpiry(id, account));
      return;
    }
    account.expired = true;
    this.#options.logger.error({ ca: this.#ca.description, identity: id, notAfter: account.notAfter, ...(account.problem === undefined ? {} : { reason: account.problem }) }, 'a certificate has expired before the CA gave another one: its new connections are refused by the other end, those that are open go on');
  }

  /** Said once of each account, and once of the CA as a whole. */
  #failed(problem: string, before = this.#problem, about: { identity?: string } = {}): void {
    if (before !== problem) this.#options.logger.warn({ ca: this.#ca.description, ...about, reason: problem }, 'no certificate from the CA; those that are there stay in use');
    this.#problem = problem;
  }

  #rootEntry(): Entry {
    const { rootPem } = this.#ca;
    return entry(rootSecret(rootPem), rootPem);
  }

  #pause(ms: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        cancel();
        signal.removeEventListener('abort', done);
        resolve();
      };
      const cancel = this.#clock.after(ms, done);
      signal.addEventListener('abort', done, { once: true });
    });
  }

  async close(): Promise<void> {
    this.want(new Set());
    this.#forgetRoots();
    await this.#ca.close();
  }
}

function entry(secret: Secret, versioned: string): Entry {
  return { name: secret.name, version: hashBytes(versioned), any: pack(Secret, secret), needs: [] };
}
