/**
 * The push queue: one entry per connection, so that a client that is slow gets the newest state when it is ready, not
 * each state in between, and holds nobody up. Entries are worked off one at a time, the event loop free in between.
 */
import type { ChangeSet } from '../model/changes.js';

export interface PushTarget {
  /** Not while an earlier response waits for its ACK, or its bytes for the network. */
  readonly ready: boolean;
  push(change: ChangeSet): void;
}

export class PushQueue {
  readonly #pending = new Map<PushTarget, ChangeSet>();
  #scheduled = false;

  constructor(readonly newChangeSet: () => ChangeSet, readonly failed: (target: PushTarget, error: unknown) => void) {}

  get length(): number {
    return this.#pending.size;
  }

  enqueue(target: PushTarget, change: ChangeSet): void {
    let merged = this.#pending.get(target);
    if (!merged) this.#pending.set(target, (merged = this.newChangeSet()));
    merged.merge(change);
    this.#schedule();
  }

  /** To be called whenever a target may have become ready. */
  wake(target: PushTarget): void {
    if (this.#pending.has(target)) this.#schedule();
  }

  remove(target: PushTarget): void {
    this.#pending.delete(target);
  }

  has(target: PushTarget): boolean {
    return this.#pending.has(target);
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      for (const [target, change] of this.#pending) {
        if (!target.ready) continue;
        this.#pending.delete(target);
        try {
          target.push(change);
        } catch (error) {
          this.failed(target, error);
        }
        break;
      }
      if ([...this.#pending.keys()].some((target) => target.ready)) this.#schedule();
    });
  }
}
