/** Work in steps: all at once, or with everybody else's turn between them when it has gone on for a while. */
import { setImmediate as turn } from 'node:timers/promises';

/** Milliseconds that others wait at most, but for a step that takes longer. */
const TURN_MS = 5;

export function atOnce<T>(steps: Generator<void, T>): T {
  for (;;) {
    const { done, value } = steps.next();
    if (done === true) return value;
  }
}

export async function inTurns<T>(steps: Generator<void, T>): Promise<T> {
  let since = performance.now();
  for (;;) {
    const { done, value } = steps.next();
    if (done === true) return value;
    if (performance.now() - since < TURN_MS) continue;
    await turn();
    since = performance.now();
  }
}
