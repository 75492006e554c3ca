import type { Closable } from '../common/lifecycle.js';

const closed = new AbortController();
/** Aborts when the reader of the output has gone, as `head` does: what follows or repeats ends then, without an error. */
export const outputClosed: AbortSignal = closed.signal;

/** For `main` alone: what is written to a reader that has gone is for nobody, and no failure. */
export function followOutput(stream: NodeJS.WriteStream): void {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    closed.abort();
  });
}

/** Aborts on SIGINT, SIGTERM or SIGHUP. A second one during the clean-up is ignored: nothing may stay behind. */
export function followSignals(): Closable & { signal: AbortSignal } {
  const controller = new AbortController();
  const abort = (): void => controller.abort();
  const names = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const name of names) process.on(name, abort);
  return {
    signal: controller.signal,
    close: () => {
      for (const name of names) process.off(name, abort);
    },
  };
}
