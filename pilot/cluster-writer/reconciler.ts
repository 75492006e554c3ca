/** Something that is to be made so: looked at again whenever that is asked for, one at a time, and until it has succeeded. */
import { errorMessage } from '../../common/errors.js';
import { isRefusal } from '../../common/kube/client.js';
import type { Logger } from '../../common/log.js';
import { Backoff, sleep } from '../../common/retry.js';

/** Changes come in batches. */
const SETTLE_MS = 50;

export class Reconciler {
  #isWanted = false;
  #wake: (() => void) | undefined;

  /** @param step makes it so; rejects when something is left to do */
  constructor(readonly name: string, readonly step: (signal: AbortSignal) => Promise<void>, readonly logger: Logger, readonly backoff = new Backoff({ initialMs: 500, maxMs: 30_000, factor: 2, jitter: 0.2 })) {}

  /** Nothing happens outside of a term; each begins with a look. */
  async run(term: AbortSignal): Promise<void> {
    this.#isWanted = true;
    while (!term.aborted) {
      if (!this.#isWanted) await this.#asked(term);
      try {
        await sleep(SETTLE_MS, term);
        this.#isWanted = false;
        await this.step(term);
        this.backoff.reset();
      } catch (error) {
        if (term.aborted) break;
        const pauseMs = this.backoff.next();
        this.logger.warn({ what: this.name, reason: errorMessage(error), againInMs: Math.round(pauseMs) }, 'writing to the cluster failed');
        this.#isWanted = true;
        await sleep(pauseMs, term).catch(() => undefined);
      }
    }
  }

  trigger(): void {
    this.#isWanted = true;
    this.#wake?.();
  }

  #asked(term: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        this.#wake = undefined;
        term.removeEventListener('abort', done);
        resolve();
      };
      this.#wake = done;
      term.addEventListener('abort', done);
    });
  }
}

/** All of them, whatever becomes of one; what is not there any more (404) needs nothing. @throws when another one failed */
export async function writeEach<T>(items: Iterable<T>, signal: AbortSignal, write: (item: T) => Promise<unknown>): Promise<void> {
  const problems: string[] = [];
  for (const item of items) {
    try {
      await write(item);
    } catch (error) {
      signal.throwIfAborted();
      if (!isRefusal(error, 404)) problems.push(errorMessage(error));
    }
  }
  if (problems.length > 0) throw new Error(problems.length === 1 ? problems[0] : `${problems[0]}, and ${problems.length - 1} more`);
}
