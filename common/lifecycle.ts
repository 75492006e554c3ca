/** Something that holds a resource (socket, timer, BPF link, child process) until it is told to let go. */
export interface Closable {
  close(): void | Promise<void>;
}

/**
 * Owns closables and closes them in reverse order of their adding, each one even when an earlier one failed.
 * What is added after the store was closed is closed at once, so that a start that races a stop leaks nothing.
 */
export class ClosableStore implements Closable {
  #items: Closable[] = [];
  #closed = false;

  get closed(): boolean {
    return this.#closed;
  }

  add<T extends Closable>(item: T): T {
    if (this.#closed) void Promise.resolve(item.close()).catch(() => undefined);
    else this.#items.push(item);
    return item;
  }

  defer(close: () => void | Promise<void>): void {
    this.add({ close });
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    const failures: unknown[] = [];
    for (const item of this.#items.reverse()) {
      try {
        await item.close();
      } catch (error) {
        failures.push(error);
      }
    }
    this.#items = [];
    if (failures.length === 1) throw failures[0];
    if (failures.length > 1) throw new AggregateError(failures, `closing: ${failures.length} resources failed`);
  }
}
