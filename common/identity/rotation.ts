/**
 * Keeps one certificate fresh: renewed at half of its life, some earlier by chance, so that many that began together do not
 * come back together. A renewal that fails is tried again while the old certificate goes on being used.
 */
import { systemClock, type Clock } from '../clock.js';
import { errorMessage } from '../errors.js';
import type { Closable } from '../lifecycle.js';
import type { IssuedCertificate } from './ca.js';

const RETRY_MS = 10_000;
/** A CA whose clock is behind may give what has expired already. */
const LEAST_RENEWAL_MS = 1_000;
const DEFAULT_JITTER = 0.1;

export interface RotationOptions {
  clock?: Clock;
  /** Share of the time to half-life by which a renewal may come earlier, 0 to 1; default 0.1. */
  jitter?: number;
  random?: () => number;
}

export interface CertificateRotationOptions extends RotationOptions {
  issue: () => Promise<IssuedCertificate>;
  onRenewed: (certificate: IssuedCertificate) => void;
  onError: (error: Error) => void;
}

/**
 * Milliseconds from now, when it came, until the certificate is to be renewed. CAs date back, by minutes, so that a short life
 * may be more than half over when it begins: then at half of what is left.
 */
export function renewalDelayMs({ notBefore, notAfter }: Pick<IssuedCertificate, 'notBefore' | 'notAfter'>, now: number, jitter: number, random: () => number): number {
  const toHalfLifeMs = (notBefore.getTime() + notAfter.getTime()) / 2 - now;
  const untilMs = toHalfLifeMs > 0 ? toHalfLifeMs : (notAfter.getTime() - now) / 2;
  return Math.max(LEAST_RENEWAL_MS, untilMs * (1 - jitter * random()));
}

export class CertificateRotation implements Closable {
  readonly #options: CertificateRotationOptions;
  readonly #clock: Clock;
  #current: IssuedCertificate | undefined;
  #cancel: (() => void) | undefined;
  #closed = false;

  constructor(options: CertificateRotationOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
  }

  get current(): IssuedCertificate {
    if (!this.#current) throw new Error('the certificate is not there yet: start() first');
    return this.#current;
  }

  /** Gets the first certificate. */
  async start(): Promise<void> {
    this.#current = await this.#options.issue();
    this.#schedule(this.#delay());
  }

  /** Gets a new one now. */
  async renew(): Promise<void> {
    const certificate = await this.#options.issue();
    if (this.#closed) return;
    this.#current = certificate;
    this.#schedule(this.#delay());
    this.#options.onRenewed(certificate);
  }

  #delay(): number {
    return renewalDelayMs(this.current, this.#clock.now(), this.#options.jitter ?? DEFAULT_JITTER, this.#options.random ?? Math.random);
  }

  /** A timer may fire before its time (very long lives): it only looks whether it is time. */
  #schedule(delayMs: number): void {
    this.#cancel?.();
    if (this.#closed) return;
    const due = this.#clock.now() + delayMs;
    this.#cancel = this.#clock.after(delayMs, () => {
      const left = due - this.#clock.now();
      if (left > 0) return this.#schedule(left);
      this.renew().catch((error: unknown) => {
        this.#options.onError(new Error(`renewing a certificate: ${errorMessage(error)}`));
        this.#schedule(RETRY_MS);
      });
    });
  }

  close(): void {
    this.#closed = true;
    this.#cancel?.();
  }
}
