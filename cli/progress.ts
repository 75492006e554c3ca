/** One line that shows how far a long command is: rewritten in place on a terminal, a line a change elsewhere. */
export class ProgressLine {
  #last = '';
  #shown = 0;

  constructor(
    readonly stream: NodeJS.WriteStream = process.stderr,
    /** Without a terminal, at most one line in so many milliseconds. */
    readonly everyMs = 5_000,
  ) {}

  show(text: string): void {
    if (text === this.#last) return;
    const now = performance.now();
    if (this.stream.isTTY) {
      const width = Math.max(20, (this.stream.columns ?? 80) - 1);
      this.stream.write(`\r\u001b[K${text.slice(0, width)}`);
    } else {
      if (this.#last !== '' && now - this.#shown < this.everyMs) return;
      this.stream.write(`${text}\n`);
    }
    this.#shown = now;
    this.#last = text;
  }

  clear(): void {
    if (this.stream.isTTY && this.#last !== '') this.stream.write('\r\u001b[K');
    this.#last = '';
  }
}
