import type { Closable } from '../common/lifecycle.js';

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
