/** In what order, and how many at a time, Envoy is given listeners. */
import { podListenerName, podOfListener } from './pod-listener.js';
import type { Entry } from './snapshot.js';

/** Envoy takes some milliseconds for each, and answers for all of a response together. */
const LISTENERS_AT_ONCE = 20;

/**
 * What Envoy has already, and what several pods' listeners lead to, comes first and together; then the listeners by which pods'
 * own connections leave, which they wait for; then what is reached in other pods.
 */
export function listenerParts(entries: readonly Entry[], isThere: (name: string) => boolean): Entry[][] {
  const [first, outbound, others]: [Entry[], Entry[], Entry[]] = [[], [], []];
  for (const entry of entries) {
    const uid = isThere(entry.name) ? undefined : podOfListener(entry.name);
    (uid === undefined ? first : entry.name === podListenerName(uid) ? outbound : others).push(entry);
  }
  const parts = [...(first.length > 0 ? [first] : []), ...inParts(outbound), ...inParts(others)];
  // Whoever subscribed waits for a first answer, be it empty.
  return parts.length > 0 ? parts : [[]];
}

function inParts(entries: readonly Entry[]): Entry[][] {
  return Array.from({ length: Math.ceil(entries.length / LISTENERS_AT_ONCE) }, (_, index) => entries.slice(index * LISTENERS_AT_ONCE, (index + 1) * LISTENERS_AT_ONCE));
}
