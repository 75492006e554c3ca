import { closeSync, openSync, renameSync, statSync, writeSync } from 'node:fs';
import type { Closable } from '../common/lifecycle.js';

const MAX_BYTES = 1 << 20;

/** A log of bounded size: what is full becomes `<path>.1`, replacing the one before. */
export class LogFile implements Closable {
  #fd: number;
  #size: number;

  constructor(
    readonly path: string,
    readonly maxBytes = MAX_BYTES,
  ) {
    this.#fd = openSync(path, 'a', 0o640);
    this.#size = statSync(path).size;
  }

  write(chunk: Buffer | string): void {
    if (this.#fd < 0) return;
    const data = typeof chunk === 'string' ? Buffer.from(chunk) : chunk.subarray(-this.maxBytes);
    if (this.#size > 0 && this.#size + data.length > this.maxBytes) {
      closeSync(this.#fd);
      renameSync(this.path, `${this.path}.1`);
      this.#fd = openSync(this.path, 'w', 0o640);
      this.#size = 0;
    }
    writeSync(this.#fd, data);
    this.#size += data.length;
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }
}
