/**
 * Many changes come as one: the quiet time begins anew with each, up to a longest wait, so that a burst costs one push
 * and a stream of changes still gets through.
 */
export interface DebounceOptions {
  quietMs: number;
  maxMs: number;
}

export const DEFAULT_DEBOUNCE: DebounceOptions = { quietMs: 100, maxMs: 10_000 };

export class Debouncer<T> {
  #pending: T | undefined;
  #timer: NodeJS.Timeout | undefined;
  #since = 0;
  #closed = false;

  constructor(readonly options: DebounceOptions, readonly merge: (older: T, newer: T) => T, readonly fire: (merged: T) => void) {}

  add(item: T): void {
    if (this.#closed) return;
    const now = performance.now();
    if (this.#pending === undefined) this.#since = now;
    this.#pending = this.#pending === undefined ? item : this.merge(this.#pending, item);
    clearTimeout(this.#timer);
    const wait = Math.max(0, Math.min(this.options.quietMs, this.#since + this.options.maxMs - now));
    this.#timer = setTimeout(() => this.flush(), wait);
  }

  /** A change waits for its push. */
  get isPending(): boolean {
    return this.#pending !== undefined;
  }

  /** What waits. */
  get pending(): T | undefined {
    return this.#pending;
  }

  flush(): void {
    clearTimeout(this.#timer);
    const merged = this.#pending;
    this.#pending = undefined;
    if (merged !== undefined) this.fire(merged);
  }

  close(): void {
    this.#closed = true;
    this.#pending = undefined;
    clearTimeout(this.#timer);
  }
}
