/**
 * When a self-signed root is exchanged: a part of its life before its end a new one is introduced; once everybody must have
 * the bundle it issues; once all that the old one signed has expired, that one leaves. The state is kept with the root, so a
 * restart goes on where it was.
 */
import { errorMessage } from '../../common/errors.js';
import { RootsChangedError, type CertificateAuthority } from '../../common/identity/ca.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';

const DAY_MS = 86_400_000;
const RETRY_MS = 60_000;

export interface RootRotationOptions {
  /** The exchange begins when the root has less than this left. */
  beforeEndMs?: number;
  /** Clients that get pushes have the bundle in seconds; those that do not, with their next certificate: a day's half. */
  distributeMs?: number;
  logger: Logger;
}

export class RootRotation implements Closable {
  #cancel: (() => void) | undefined;
  readonly #forget: () => void;
  #closed = false;
  #busy = false;

  constructor(readonly ca: CertificateAuthority, readonly options: RootRotationOptions) {
    this.#schedule();
    // A step that another pilot took of the root that they share.
    this.#forget = ca.onChange(() => this.#busy || this.#schedule());
  }

  /** Milliseconds until the next step. */
  get nextMs(): number {
    const { ca, options } = this;
    const now = ca.clock.now();
    if (ca.phase === 'introduced') return ca.since + (options.distributeMs ?? DAY_MS) - now;
    if (ca.phase === 'retiring') return ca.since + ca.maxLeafTtlMs - now;
    // All of a leaf's longest life has to fit between the switch and the old root's end.
    const beforeEndMs = options.beforeEndMs ?? (options.distributeMs ?? DAY_MS) + 2 * ca.maxLeafTtlMs;
    return ca.notAfter - beforeEndMs - now;
  }

  #schedule(minimumMs = 0): void {
    this.#cancel?.();
    if (this.#closed) return;
    this.#cancel = this.ca.clock.after(Math.max(minimumMs, this.nextMs, 0), () => void this.step());
  }

  /** Takes the next step if its time has come. */
  async step(): Promise<void> {
    if (this.#busy || this.#closed) return;
    if (this.nextMs > 0) return this.#schedule();
    this.#busy = true;
    const { ca } = this;
    const { logger } = this.options;
    let retryMs = 0;
    try {
      if (ca.phase === 'steady') await ca.introduceRoot();
      else if (ca.phase === 'introduced') await ca.switchRoot();
      else await ca.retireRoot();
      logger.info({ phase: ca.phase }, 'the exchange of the root went a step on');
    } catch (error) {
      retryMs = RETRY_MS;
      // It is told of as a change.
      if (error instanceof RootsChangedError) logger.info('another pilot took a step of the exchange of the root');
      else logger.error({ reason: errorMessage(error) }, 'the root could not be exchanged; tried again in a minute');
    } finally {
      this.#busy = false;
    }
    this.#schedule(retryMs);
  }

  close(): void {
    this.#closed = true;
    this.#forget();
    this.#cancel?.();
  }
}
