/**
 * Memory that a big mesh's configuration took while it was read and folded goes back to the node when that is over: malloc keeps what
 * lies between blocks that are still used, for as long as the process lives.
 */
import type { Closable } from '../../common/lifecycle.js';
import { trimMemory } from '../../native/index.js';

export interface SpareMemoryOptions {
  everyMs?: number;
  /** Of one CPU: whoever used more had something to do, and it is not over yet. */
  busyShare?: number;
}

export class SpareMemory implements Closable {
  readonly #timer: NodeJS.Timeout;
  readonly #busyShare: number;
  #before = process.cpuUsage();
  #beforeMs = performance.now();
  #wasBusy = true;

  constructor({ everyMs = 5_000, busyShare = 0.1 }: SpareMemoryOptions = {}) {
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
    this.#before = process.cpuUsage();
    this.#beforeMs = now;
    if (!isBusy && this.#wasBusy) trimMemory();
    this.#wasBusy = isBusy;
  }
}
