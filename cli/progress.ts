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

/** Within this time nobody wonders whether anything happens. */
const SILENT_MS = 2_000;

/**
 * Waits for work, and says on a terminal's stderr what for and since when, once that takes longer than two seconds.
 * @param text asked each time, so that it can count
 */
export async function whileWaiting<T>(text: string | (() => string), work: Promise<T>, stream: NodeJS.WriteStream = process.stderr): Promise<T> {
  if (!stream.isTTY) return work;
  const line = new ProgressLine(stream);
  const since = performance.now();
  const show = (): void => {
    const passed = performance.now() - since;
    if (passed >= SILENT_MS) line.show(`${typeof text === 'string' ? text : text()} (${Math.round(passed / 1_000)} s)`);
  };
  const timer = setInterval(show, 250);
  try {
    return await work;
  } finally {
    clearInterval(timer);
    line.clear();
  }
}
