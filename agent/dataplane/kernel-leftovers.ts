/** What is in the maps of a network namespace that is no pod's: an agent died between two of its steps. */
import type { BpfMap, BpfObject } from '../../native/index.js';
import type { Drift } from '../consistency/drift.js';

/** Maps by cookie of the namespace; the quotas of verdicts and flows go after what they count. */
const BY_COOKIE = ['verdict_quotas', 'flow_quotas', 'policies'] as const;

/** @param pods cookies of the namespaces that have an entry of their own */
export function lostNamespaces(object: BpfObject, pods: ReadonlySet<bigint>): Set<bigint> {
  const cookies = (map: BpfMap, part: 0 | 1): bigint[] => map.entries().map((entry) => entry[part].readBigUInt64LE());
  const found = [...cookies(object.map('netns_of_address'), 1), ...BY_COOKIE.flatMap((name) => cookies(object.map(name), 0))];
  // 0: what is nobody's own.
  return new Set(found.filter((cookie) => cookie !== 0n && !pods.has(cookie)));
}

/** It was taken away by whoever found it: there is nothing more to do. */
const done = (): void => undefined;

/** Entries of a namespace that no pod has. */
export function leftEntries(netnsCookie: bigint, addresses: readonly string[]): Drift {
  return { kind: 'pod', state: 'orphaned', name: `netns ${netnsCookie}`, netnsCookie, detail: `entries that an agent left${addresses.length === 0 ? '' : ` (${addresses.join(', ')})`}`, repair: done };
}

/** @param pin name of the folder of a pod's hooks */
export function leftHooks(pin: string): Drift {
  return { kind: 'hook', state: 'orphaned', name: pin, pod: pin, detail: 'hooks that an agent left', repair: done };
}

export function leftSteering(pin: string): Drift {
  return { kind: 'hook', state: 'orphaned', name: `${pin} steer_inbound`, pod: pin, detail: 'a hook that an agent left', repair: done };
}
