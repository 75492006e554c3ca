/**
 * How many bytes of responses may wait for the network at once, over all connections. Who wants to make another response
 * waits in line: ten thousand clients that connect together would otherwise have all theirs in memory at the same time.
 */
export class SendBudget {
  #inFlight = 0;
  readonly #waiting = new Set<() => void>();
  #scheduled = false;

  constructor(readonly limitBytes: number) {}

  get isFree(): boolean {
    return this.#inFlight < this.limitBytes;
  }

  get inFlightBytes(): number {
    return this.#inFlight;
  }

  take(bytes: number): void {
    this.#inFlight += bytes;
  }

  give(bytes: number): void {
    this.#inFlight -= bytes;
    this.#schedule();
  }

  /** Runs `work` now, or in turn when there is room. The same function waits only once. */
  whenFree(work: () => void): void {
    if (this.isFree && this.#waiting.size === 0) work();
    else {
      this.#waiting.add(work);
      this.#schedule();
    }
  }

  forget(work: () => void): void {
    this.#waiting.delete(work);
  }

  /** One at a time, the event loop free in between. */
  #schedule(): void {
    if (this.#scheduled || !this.isFree || this.#waiting.size === 0) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      const [next] = this.#waiting;
      if (next && this.isFree) {
        this.#waiting.delete(next);
        next();
      }
      this.#schedule();
    });
  }
}
