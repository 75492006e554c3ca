/** A token bucket for each of many callers; those that have been quiet are forgotten. */

const MAX_CALLERS = 10_000;

export class RateLimit {
  readonly #buckets = new Map<string, { left: number; at: number }>();

  /** @param now milliseconds */
  constructor(readonly perSecond: number, readonly burst: number, readonly now: () => number) {}

  take(caller: string): boolean {
    const now = this.now();
    const { left, at } = this.#buckets.get(caller) ?? { left: this.burst, at: now };
    const filled = Math.min(this.burst, left + (Math.max(0, now - at) / 1000) * this.perSecond);
    const allowed = filled >= 1;
    // Put back at the end: the first is the one that was quiet longest.
    this.#buckets.delete(caller);
    this.#buckets.set(caller, { left: allowed ? filled - 1 : filled, at: now });
    if (this.#buckets.size > MAX_CALLERS) this.#buckets.delete(this.#buckets.keys().next().value!);
    return allowed;
  }
}
