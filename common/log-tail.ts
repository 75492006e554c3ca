/** The newest lines of a log, in memory, for who asks later. */
export class LogTail {
  #lines: string[] = [];
  #bytes = 0;
  /** Before this one lines have gone. */
  #first = 0;

  /** @param maxBytes of all lines together */
  constructor(readonly maxBytes: number) {}

  /** @param line with its line end */
  add(line: string): void {
    this.#lines.push(line);
    this.#bytes += Buffer.byteLength(line);
    while (this.#bytes > this.maxBytes && this.#first < this.#lines.length) this.#bytes -= Buffer.byteLength(this.#lines[this.#first++]!);
    // Now and then, so that a line costs no copy of all.
    if (this.#first * 2 < this.#lines.length) return;
    this.#lines = this.#lines.slice(this.#first);
    this.#first = 0;
  }

  get lines(): readonly string[] {
    return this.#lines.slice(this.#first);
  }
}
