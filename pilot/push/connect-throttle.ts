/**
 * How many clients may be at the first request of their stream at once. A client that comes back names all that it holds, and
 * a new one asks for all that there is: of a thousand that connect together the requests alone would fill the memory, read
 * before anybody has time for them. Until its turn comes nothing of a stream is read, and HTTP/2 holds it back.
 */

/** Who says nothing for so long gives its place to the next; it may still speak later. */
const SILENCE_MS = 500;

export class ConnectThrottle {
  /** By peer, the next one's turn first. */
  readonly #waiting = new Map<string, Set<() => void>>();
  /** With the end of their patience, for those that have said nothing yet. */
  readonly #inside = new Map<() => void, NodeJS.Timeout | undefined>();

  constructor(readonly limit: number, readonly silenceMs = SILENCE_MS) {}

  /** Calls `admit` now, or in turn: it stands for a client of `peer`. */
  enter(admit: () => void, peer: string): void {
    const line = this.#waiting.get(peer);
    if (line) line.add(admit);
    else this.#waiting.set(peer, new Set([admit]));
    this.#next();
  }

  /** The client has said something, and keeps its place until that is answered. */
  heard(admit: () => void): void {
    clearTimeout(this.#inside.get(admit));
  }

  /** The client is answered, or gone. */
  leave(admit: () => void): void {
    this.heard(admit);
    if (this.#inside.delete(admit)) this.#next();
    else for (const line of this.#waiting.values()) line.delete(admit);
  }

  #next(): void {
    for (const [peer, line] of this.#waiting) {
      if (this.#inside.size >= this.limit) return;
      this.#waiting.delete(peer);
      const [admit] = line;
      if (!admit) continue;
      line.delete(admit);
      // To the end of those who wait; this very loop comes to it again.
      if (line.size > 0) this.#waiting.set(peer, line);
      this.#inside.set(admit, setTimeout(() => this.leave(admit), this.silenceMs).unref());
      admit();
    }
  }
}
