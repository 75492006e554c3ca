/** What the clusters of an east-west gateway have in common, whatever callers name them by. */
import { Cluster, Cluster_DiscoveryType } from '../../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { MeshService } from '../../model/types.js';
import { ads } from '../envoy.js';

/** Of a service's endpoints, whose set has the cluster's name; without TLS, since the caller's own goes through. @param istio more of Istio's metadata */
export function passthroughCluster(name: string, service: MeshService, istio: Readonly<Record<string, unknown>> = {}): Cluster {
  return Cluster.fromPartial({
    name,
    alt_stat_name: `${name};`,
    cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.EDS },
    common_lb_config: { healthy_panic_threshold: {} },
    eds_cluster_config: { eds_config: ads, service_name: name },
    metadata: { filter_metadata: { istio: { services: [{ host: service.host, name: service.name, namespace: service.namespace }], ...istio } } },
  });
}
