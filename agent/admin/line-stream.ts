/** Lines of JSON for one who listens. Nobody waits for a slow reader: it is told how much it missed. */
import { Readable } from 'node:stream';

/** Of a listener that does not read. */
const MAX_UNREAD_BYTES = 1 << 20;

export class LineStream extends Readable {
  #hasRoom = true;
  #lost = 0;

  constructor(readonly onEnd: (stream: LineStream) => void) {
    super({ highWaterMark: MAX_UNREAD_BYTES, encoding: 'utf8' });
  }

  /** What was known before it listened: a bounded part, of which nothing is left out. */
  begin(lines: readonly unknown[]): void {
    if (lines.length > 0) this.#hasRoom = this.push(lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
  }

  tell(line: unknown): void {
    if (this.destroyed) return;
    if (!this.#hasRoom) {
      this.#lost++;
      return;
    }
    if (this.#lost > 0) this.push(`${JSON.stringify({ lost: this.#lost })}\n`);
    this.#lost = 0;
    this.#hasRoom = this.push(`${JSON.stringify(line)}\n`);
  }

  override _read(): void {
    this.#hasRoom = true;
  }

  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    this.onEnd(this);
    callback(error);
  }
}
