/**
 * How many clients may be at the first request of their stream at once. A client that comes back names all that it holds, and
 * a new one asks for all that there is: of a thousand that connect together the requests alone would fill the memory, read
 * before anybody has time for them. Until its turn comes nothing of a stream is read, and HTTP/2 holds it back.
 */

/** Who says nothing for so long gives its place to the next; it may still speak later. */
const SILENCE_MS = 500;

export class ConnectThrottle {
  readonly #waiting = new Set<() => void>();
  /** With the end of their patience, for those that have said nothing yet. */
  readonly #inside = new Map<() => void, NodeJS.Timeout | undefined>();

  constructor(readonly limit: number, readonly silenceMs = SILENCE_MS) {}

  /** Calls `admit` now, or in turn: it stands for its client. */
  enter(admit: () => void): void {
    this.#waiting.add(admit);
    this.#next();
  }

  /** The client has said something, and keeps its place until that is answered. */
  heard(admit: () => void): void {
    clearTimeout(this.#inside.get(admit));
  }

  /** The client is answered, or gone. */
  leave(admit: () => void): void {
    this.#waiting.delete(admit);
    this.heard(admit);
    if (this.#inside.delete(admit)) this.#next();
  }

  #next(): void {
    for (const admit of this.#waiting) {
      if (this.#inside.size >= this.limit) return;
      this.#waiting.delete(admit);
      this.#inside.set(admit, setTimeout(() => this.leave(admit), this.silenceMs).unref());
      admit();
    }
  }
}
