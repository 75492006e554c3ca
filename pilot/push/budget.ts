/**
 * How many bytes of responses may wait for the network at once, over all connections. Who wants to make another response
 * waits in line: ten thousand clients that connect together would otherwise have all theirs in memory at the same time.
 */
/** So much work in one turn of the event loop, and the rest waits for the next. */
const SLICE_MS = 8;

export class SendBudget {
  #inFlight = 0;
  /** Of this turn. */
  #spentMs = 0;
  #turnEnds = false;
  #isRunning = false;
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

  /** Runs `work` now, or in turn when there is room; what other work asks for in its own course always waits. The same function waits only once. */
  whenFree(work: () => void): void {
    if (this.isFree && !this.#isRunning && this.#waiting.size === 0 && this.#spentMs < SLICE_MS) this.#run(work);
    else {
      this.#waiting.add(work);
      this.#schedule();
    }
  }

  forget(work: () => void): void {
    this.#waiting.delete(work);
  }

  #run(work: () => void): void {
    const began = performance.now();
    this.#isRunning = true;
    try {
      work();
    } finally {
      this.#isRunning = false;
    }
    this.#spentMs += performance.now() - began;
    if (this.#turnEnds) return;
    this.#turnEnds = true;
    setImmediate(() => {
      this.#turnEnds = false;
      this.#spentMs = 0;
    });
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
        this.#run(next);
      }
      this.#schedule();
    });
  }
}

/** Without progress for so long, what a client has not read counts no more: it must not hold up those that do read. */
const STALL_MS = 5_000;

/** What one client has not read yet, and how much of that counts in the budget. */
export class BudgetShare {
  #unsent = 0;
  #counted = 0;
  #stall: NodeJS.Timeout | undefined;

  constructor(readonly budget: SendBudget, readonly stallMs = STALL_MS) {}

  get unsentBytes(): number {
    return this.#unsent;
  }

  take(bytes: number): void {
    this.#unsent += bytes;
    this.#counted += bytes;
    this.budget.take(bytes);
    this.#stall ??= setTimeout(() => this.#giveCounted(this.#counted), this.stallMs).unref();
  }

  give(bytes: number): void {
    this.#unsent -= bytes;
    this.#giveCounted(Math.min(bytes, this.#counted));
    if (this.#unsent > 0) this.#stall?.refresh();
    else this.#stopWaiting();
  }

  /** All of it, the client being gone. */
  release(): void {
    this.#unsent = 0;
    this.#stopWaiting();
    this.#giveCounted(this.#counted);
  }

  #stopWaiting(): void {
    clearTimeout(this.#stall);
    this.#stall = undefined;
  }

  #giveCounted(bytes: number): void {
    this.#counted -= bytes;
    this.budget.give(bytes);
  }
}
