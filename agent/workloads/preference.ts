/** Which of several workloads a client of this node prefers, by ztunnel's rules for WDS's load balancing. */
import { LoadBalancing_Mode, LoadBalancing_Scope, type LoadBalancing, type Workload } from '../../proto/generated/istio/workload/workload.js';

/** Where the node is, by what its own workloads say. */
export type Place = Pick<Workload, 'network' | 'cluster_id' | 'node' | 'locality'>;

/** Those that share the most of the preferred scopes with this node, one after the other; or why nobody chooses. @param unplaced why there is no place */
export function preferred<T extends { workload: Place }>(balancing: LoadBalancing | undefined, candidates: T[], place: Place | undefined, unplaced = 'no workload tells where this node is'): T[] | string {
  const { mode = LoadBalancing_Mode.UNSPECIFIED_MODE, routing_preference: scopes = [] } = balancing ?? {};
  if (mode === LoadBalancing_Mode.UNSPECIFIED_MODE || candidates.length === 0) return candidates;
  if (mode !== LoadBalancing_Mode.FAILOVER && mode !== LoadBalancing_Mode.STRICT) return 'connections go to the address that they ask for';
  if (!place) return unplaced;
  const rank = ({ workload }: T): number => {
    const differs = scopes.findIndex((scope) => !sharesScope(scope, workload, place));
    return differs < 0 ? scopes.length : differs;
  };
  const best = mode === LoadBalancing_Mode.STRICT ? scopes.length : Math.max(...candidates.map(rank));
  return candidates.filter((candidate) => rank(candidate) === best);
}

function sharesScope(scope: LoadBalancing_Scope, workload: Place, place: Place): boolean {
  const { REGION, ZONE, SUBZONE, NODE, CLUSTER, NETWORK } = LoadBalancing_Scope;
  switch (scope) {
    case REGION: return (workload.locality?.region ?? '') === (place.locality?.region ?? '');
    case ZONE: return (workload.locality?.zone ?? '') === (place.locality?.zone ?? '');
    case SUBZONE: return (workload.locality?.subzone ?? '') === (place.locality?.subzone ?? '');
    case NODE: return workload.node === place.node;
    case CLUSTER: return workload.cluster_id === place.cluster_id;
    case NETWORK: return workload.network === place.network;
    default: return false;
  }
}
