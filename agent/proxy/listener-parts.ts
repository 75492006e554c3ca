/** In what order, and how many at a time, Envoy is given listeners. */
import { podHboneName, podOfListener } from './pod-listener.js';
import type { Entry } from './snapshot.js';

/** Envoy takes some milliseconds for each listener, and answers for all of a response together. */
const PODS_AT_ONCE = 20;

/**
 * What Envoy has already, and what several pods' listeners lead to, comes first and together; then of each pod the listener by which
 * its own connections leave, with those that its callers have to pass, lest a pod be in the mesh without them for as long as others'
 * are made; then where HBONE ends.
 */
export function listenerParts(entries: readonly Entry[], isThere: (name: string) => boolean): Entry[][] {
  const [first, tunnels]: [Entry[], Entry[]] = [[], []];
  const byPod = new Map<string, Entry[]>();
  for (const entry of entries) {
    const uid = isThere(entry.name) ? undefined : podOfListener(entry.name);
    if (uid === undefined) first.push(entry);
    else if (entry.name === podHboneName(uid)) tunnels.push(entry);
    else byPod.set(uid, [...(byPod.get(uid) ?? []), entry]);
  }
  const parts = [...(first.length > 0 ? [first] : []), ...inParts([...byPod.values()]).map((pods) => pods.flat()), ...inParts(tunnels)];
  // Whoever subscribed waits for a first answer, be it empty.
  return parts.length > 0 ? parts : [[]];
}

function inParts<T>(all: readonly T[]): T[][] {
  return Array.from({ length: Math.ceil(all.length / PODS_AT_ONCE) }, (_, index) => all.slice(index * PODS_AT_ONCE, (index + 1) * PODS_AT_ONCE));
}
