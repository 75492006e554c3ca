/** Folded clusters of classes that were sent the same: one map for all of them, by which whatever follows sees that nothing differs. */
import { sameEntries } from '../xds/shared-maps.js';
import type { SidecarState } from '../xds/sidecar-stream.js';

type Sources = Pick<SidecarState, 'clusters' | 'endpoints'>;

/** A class's clusters, as they were folded from these objects. */
export interface ClusterSet<Folded, Problem> extends Sources {
  /** The account whose certificate they may bear; `''` for none. */
  identity: string;
  /** Addresses of the node's pods. */
  local: string;
  /** How many clusters were known to be an account's own. */
  accountClusters: number;
  result: Map<string, Folded>;
  problems: Problem[];
  /** None bears an account's certificate. */
  isNeutral: boolean;
}

/** Of maps that differ, as classes' with a Sidecar of their own, so many are looked at. */
const MOST_LOOKS = 4;

/** What another class's clusters were folded to, where this one's would be folded to the same. */
export function twinOf<Folded, Problem>(sets: ReadonlyMap<string, ClusterSet<Folded, Problem>>, key: string, wanted: Sources & Pick<ClusterSet<Folded, Problem>, 'identity' | 'local' | 'accountClusters'>): { key: string; set: ClusterSet<Folded, Problem> } | undefined {
  const looked = new Set<object>();
  for (const [other, set] of sets) {
    if (other === key || !set.isNeutral || set.problems.length > 0 || looked.has(set.result)) continue;
    if ((set.identity === '') !== (wanted.identity === '') || set.local !== wanted.local || set.accountClusters !== wanted.accountClusters) continue;
    if (looked.size >= MOST_LOOKS) return undefined;
    looked.add(set.result);
    // Resources that are sent with equal bytes are one object.
    if (sameEntries(set.clusters, wanted.clusters) && sameEntries(set.endpoints, wanted.endpoints)) return { key: other, set };
  }
  return undefined;
}
