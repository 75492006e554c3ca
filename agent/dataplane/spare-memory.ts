/**
 * Memory that a big mesh's configuration took while it was read and folded goes back to the node when that is over: V8 collects what is
 * dead in its heap when that has grown again, and malloc keeps what lies between blocks that are still used, for as long as the process
 * lives. A collection stops everything else for a tenth of a second where the heap is large, so there is one only where there is
 * something to gain.
 */
import { collectIdleHeap } from '../../common/heap.js';
import type { Closable } from '../../common/lifecycle.js';
import { trimMemory } from '../../native/index.js';

export interface SpareMemoryOptions {
  everyMs?: number;
  /** Of one CPU: whoever used more had something to do, and it is not over yet. */
  busyShare?: number;
}

/** Of what was alive after the last collection: less that came since is not worth another one. */
const WORTH_A_COLLECTION = 1.1;

export class SpareMemory implements Closable {
  readonly #timer: NodeJS.Timeout;
  readonly #busyShare: number;
  #before = process.cpuUsage();
  #beforeMs = performance.now();
  #wasBusy = true;
  #aliveBytes = 0;

  constructor({ everyMs = 2_000, busyShare = 0.1 }: SpareMemoryOptions = {}) {
    this.#busyShare = busyShare;
    this.#timer = setInterval(() => this.#look(), everyMs);
    this.#timer.unref();
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #look(): void {
    const now = performance.now();
    const { user, system } = process.cpuUsage(this.#before);
    const isBusy = (user + system) / 1_000 > this.#busyShare * (now - this.#beforeMs);
    if (!isBusy && this.#wasBusy) this.#give();
    this.#wasBusy = isBusy;
    this.#before = process.cpuUsage();
    this.#beforeMs = performance.now();
  }

  #give(): void {
    if (process.memoryUsage().heapUsed > WORTH_A_COLLECTION * this.#aliveBytes) {
      collectIdleHeap();
      this.#aliveBytes = process.memoryUsage().heapUsed;
    }
    trimMemory();
  }
}
