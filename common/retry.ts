import { setTimeout as delay } from 'node:timers/promises';

/** Waits `ms`; rejects with the signal's reason when it aborts first. */
export async function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  await delay(ms, undefined, signal ? { signal } : {});
}

export interface BackoffOptions {
  initialMs: number;
  maxMs: number;
  factor: number;
  /** Share of the delay that is drawn at random, 0 to 1, so that many clients do not come back at once. */
  jitter: number;
}

export const DEFAULT_BACKOFF: BackoffOptions = { initialMs: 200, maxMs: 30_000, factor: 1.6, jitter: 0.2 };

/** Exponential back-off with jitter, as gRPC's connection back-off. */
export class Backoff {
  #attempt = 0;
  constructor(readonly options: BackoffOptions = DEFAULT_BACKOFF, readonly random: () => number = Math.random) {}

  reset(): void {
    this.#attempt = 0;
  }

  /** The next delay in milliseconds. */
  next(): number {
    const { initialMs, maxMs, factor, jitter } = this.options;
    const base = Math.min(maxMs, initialMs * factor ** this.#attempt++);
    return base * (1 + jitter * (2 * this.random() - 1));
  }
}

/** For what has no deadline of its own: longer than anything takes, on any machine, that happens at all. */
export const PATIENCE_MS = 60_000;

/** Polls `probe` every `everyMs` until it returns something truthy; throws after `timeoutMs` naming `what`. */
export async function waitFor<T>(
  what: string,
  probe: () => T | Promise<T>,
  options: { timeoutMs?: number; everyMs?: number; signal?: AbortSignal } = {},
): Promise<NonNullable<T>> {
  const timeoutMs = options.timeoutMs ?? PATIENCE_MS;
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const value = await probe();
    if (value) return value as NonNullable<T>;
    if (performance.now() > deadline) throw new Error(`waiting for ${what}: not so after ${timeoutMs} ms`);
    await sleep(options.everyMs ?? 50, options.signal);
  }
}
