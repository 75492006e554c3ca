/**
 * The push queue: one entry per connection, so that a client that is slow gets the newest state when it is ready, not
 * each state in between, and holds nobody up. Entries are worked off in slices, the event loop free in between.
 */
import { ChangeSet } from '../model/changes.js';
import type { SendBudget } from './budget.js';

/** Longer than this, and timers and sockets wait noticeably. */
const SLICE_MS = 8;

export interface PushTarget {
  /** Not while an earlier response waits for its ACK, or its bytes for the network. */
  readonly ready: boolean;
  push(change: ChangeSet): void;
}

interface Entry {
  change: ChangeSet;
  /** Made by merging, so that it may be merged into; a change as it was given is shared by all targets. */
  isOwn: boolean;
  since: number;
}

export interface QueueOptions {
  budget?: SendBudget;
  /** Told how long each entry waited. */
  waited?: (ms: number) => void;
}

export class PushQueue {
  readonly #pending = new Map<PushTarget, Entry>();
  /** Those of the pending that were ready when last looked at, in the order in which they became so. */
  readonly #runnable = new Set<PushTarget>();
  #scheduled = false;

  constructor(readonly failed: (target: PushTarget, error: unknown) => void, readonly options: QueueOptions = {}) {}

  get length(): number {
    return this.#pending.size;
  }

  enqueue(target: PushTarget, change: ChangeSet): void {
    const entry = this.#pending.get(target);
    if (!entry) this.#pending.set(target, { change, isOwn: false, since: performance.now() });
    else {
      if (!entry.isOwn) [entry.change, entry.isOwn] = [new ChangeSet().merge(entry.change), true];
      entry.change.merge(change);
    }
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

  /** When the oldest change was made that waits for this target. */
  oldest(target: PushTarget): number | undefined {
    return this.#pending.get(target)?.change.since;
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      const { budget } = this.options;
      if (budget) budget.whenFree(this.#work);
      else this.#work();
    });
  }

  readonly #work = (): void => {
    this.#scheduled = false;
    const end = performance.now() + SLICE_MS;
    for (const target of this.#runnable) {
      this.#runnable.delete(target);
      this.#push(target);
      if (performance.now() > end || this.options.budget?.isFree === false) break;
    }
    if (this.#runnable.size > 0) this.#schedule();
  };

  #push(target: PushTarget): void {
    const entry = this.#pending.get(target);
    if (!entry || !target.ready) return;
    this.#pending.delete(target);
    this.options.waited?.(performance.now() - entry.since);
    try {
      target.push(entry.change);
    } catch (error) {
      this.failed(target, error);
    }
  }
}
