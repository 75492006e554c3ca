/**
 * The push queue: one entry per connection, so that a client that is slow gets the newest state when it is ready, not
 * each state in between, and holds nobody up. Entries are worked off one at a time, the event loop free in between.
 */
import { ChangeSet } from '../model/changes.js';

export interface PushTarget {
  /** Not while an earlier response waits for its ACK, or its bytes for the network. */
  readonly ready: boolean;
  push(change: ChangeSet): void;
}

export class PushQueue {
  readonly #pending = new Map<PushTarget, ChangeSet>();
  /** Those of the pending that were ready when last looked at, in the order in which they became so. */
  readonly #runnable = new Set<PushTarget>();
  #scheduled = false;

  constructor(readonly failed: (target: PushTarget, error: unknown) => void) {}

  get length(): number {
    return this.#pending.size;
  }

  enqueue(target: PushTarget, change: ChangeSet): void {
    let merged = this.#pending.get(target);
    if (!merged) this.#pending.set(target, (merged = new ChangeSet()));
    merged.merge(change);
    this.wake(target);
  }

  /** To be called whenever a target may have become ready. */
  wake(target: PushTarget): void {
    if (!this.#pending.has(target) || !target.ready) return;
    this.#runnable.add(target);
    this.#schedule();
  }

  remove(target: PushTarget): void {
    this.#pending.delete(target);
    this.#runnable.delete(target);
  }

  has(target: PushTarget): boolean {
    return this.#pending.has(target);
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      const [target] = this.#runnable;
      if (!target) return;
      this.#runnable.delete(target);
      const change = this.#pending.get(target);
      if (change && target.ready) {
        this.#pending.delete(target);
        try {
          target.push(change);
        } catch (error) {
          this.failed(target, error);
        }
      }
      if (this.#runnable.size > 0) this.#schedule();
    });
  }
}
