/**
 * Responses of many pieces, put together over several turns of the event loop: the ten thousand virtual hosts of a large
 * mesh's route table, some hundred bytes each and long out of the CPU's caches, take tens of milliseconds.
 */
import { EncodedResponse } from './encode.js';

/** So long in one turn. */
const SLICE_MS = 4;
/** Between looks at the clock. */
const PIECES = 256;
/** The buffer is given back when nobody has needed it for so long. */
const IDLE_MS = 10_000;

interface Job {
  response: EncodedResponse;
  /** The client may have gone away meanwhile. */
  isWanted(): boolean;
  /** Given the same response as one piece, which is only good until this returns. */
  done(response: EncodedResponse): void;
}

/** One at a time, all in the same memory. */
export class Assembler {
  readonly #jobs: Job[] = [];
  #buffer = Buffer.alloc(0);
  #pieces: Iterator<Uint8Array> | undefined;
  #length = 0;
  #idle: NodeJS.Timeout | undefined;

  add(job: Job): void {
    this.#jobs.push(job);
    if (this.#jobs.length === 1) setImmediate(this.#work);
  }

  readonly #work = (): void => {
    const [job] = this.#jobs;
    if (!job) return;
    if (job.isWanted()) {
      this.#pieces ??= this.#begin(job);
      if (!this.#copySome(this.#pieces)) {
        setImmediate(this.#work);
        return;
      }
    }
    this.#pieces = undefined;
    this.#jobs.shift();
    if (this.#jobs.length > 0) setImmediate(this.#work);
    if (!job.isWanted()) return;
    const bytes = this.#buffer.subarray(0, this.#length);
    job.response.assembled(bytes);
    job.done(EncodedResponse.of(bytes));
  };

  #begin({ response }: Job): Iterator<Uint8Array> {
    if (this.#buffer.length < response.byteLength) this.#buffer = Buffer.allocUnsafeSlow(response.byteLength);
    this.#length = 0;
    this.#idle ??= setTimeout(() => this.#forget(), IDLE_MS).unref();
    this.#idle.refresh();
    return response.pieces();
  }

  /** @returns whether that was the last */
  #copySome(pieces: Iterator<Uint8Array>): boolean {
    for (const end = performance.now() + SLICE_MS; performance.now() < end; ) {
      for (let count = 0; count < PIECES; count++) {
        const { value, done } = pieces.next();
        if (done) return true;
        this.#buffer.set(value, this.#length);
        this.#length += value.length;
      }
    }
    return false;
  }

  #forget(): void {
    this.#idle = undefined;
    if (this.#jobs.length === 0) this.#buffer = Buffer.alloc(0);
  }
}
