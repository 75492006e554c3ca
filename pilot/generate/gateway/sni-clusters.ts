/**
 * CDS of an east-west gateway: clusters that clients name by SNI. The client's own mutual TLS goes through to the
 * workload, so that these have no TLS of their own. Endpoints have the cluster's name, too: Envoy does not ask again for a
 * set that it has, and a cluster that came later would wait for it.
 */
import { Cluster, Cluster_DiscoveryType } from '../../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { Scope } from '../../model/scope.js';
import { portPolicy } from '../../model/traffic-policy.js';
import { applyConnectionPool, applyLoadBalancer, applyOutlierDetection } from '../cluster-policy.js';
import { configPath } from '../clusters.js';
import { ads } from '../envoy.js';
import { clusterSni } from '../names.js';
import { makeResource, type Resource } from '../resource.js';

/** Of each port and subset of the mesh's own services whose endpoints are addresses. */
export function sniClusters(scope: Scope): Resource[] {
  const { model, services } = scope;
  return services.filter(({ resolution, external }) => resolution === 'EDS' && !external).flatMap((service) => {
    const rule = scope.rule(service.host)?.object;
    return service.ports.flatMap(({ port }) =>
      ['', ...(rule?.spec.subsets ?? []).map(({ name }) => name)].map((subset) => {
        const name = clusterSni(port, subset, service.host);
        const istio: Record<string, unknown> = { services: [{ host: service.host, name: service.name, namespace: service.namespace }] };
        if (rule) istio['config'] = configPath(rule, 'destination-rule');
        if (subset) istio['subset'] = subset;
        const cluster = Cluster.fromPartial({
          name,
          alt_stat_name: `${name};`,
          cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.EDS },
          common_lb_config: { healthy_panic_threshold: {} },
          eds_cluster_config: { eds_config: ads, service_name: name },
          metadata: { filter_metadata: { istio } },
        });
        const policy = portPolicy(rule, subset, port);
        applyConnectionPool(cluster, policy, model.mesh);
        applyOutlierDetection(cluster, policy.outlierDetection);
        applyLoadBalancer(cluster, policy.loadBalancer);
        return makeResource(name, Cluster, cluster);
      }),
    );
  });
}
