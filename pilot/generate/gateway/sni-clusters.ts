/**
 * CDS of an east-west gateway: clusters that clients name by SNI. The client's own mutual TLS goes through to the
 * workload, so that these have no TLS of their own. Endpoints have the cluster's name, too: Envoy does not ask again for a
 * set that it has, and a cluster that came later would wait for it.
 */
import { pack } from '../../../common/xds/any.js';
import { Cluster } from '../../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { Filter, FilterChain, FilterChainMatch } from '../../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RBAC as Rbac } from '../../../proto/generated/envoy/config/rbac/v3/rbac.js';
import { SniCluster } from '../../../proto/generated/envoy/extensions/filters/network/sni_cluster/v3/sni_cluster.js';
import type { Scope } from '../../model/scope.js';
import { portPolicy } from '../../model/traffic-policy.js';
import { applyConnectionPool, applyLoadBalancer, applyOutlierDetection } from '../cluster-policy.js';
import { configPath } from '../clusters.js';
import { tcpProxy } from '../http-filters.js';
import { ISTIO_ANY } from '../inbound.js';
import { clusterSni, SNI_PREFIX } from '../names.js';
import { makeResource, type Resource } from '../resource.js';
import { networkRbac } from '../security/authorization.js';
import { passthroughCluster } from './passthrough-cluster.js';

const sniCluster: Filter = {
  name: 'envoy.filters.network.sni_cluster',
  config_type: { $case: 'typed_config', value: pack(SniCluster, SniCluster.fromPartial({})) },
};

/** The gateway's other clusters are for itself, with its own identity: no client may ask for them. */
const onlySniClusters = networkRbac({
  rules: Rbac.fromPartial({
    policies: {
      'sni-cluster': { permissions: [{ rule: { $case: 'requested_server_name', value: { match_pattern: { $case: 'prefix', value: SNI_PREFIX } } } }], principals: [{ identifier: { $case: 'any', value: true } }] },
    },
  }),
});

/**
 * Leads connections to the cluster that their SNI names. Only the mesh's own TLS goes through, which no workload takes for an
 * application's: nobody gets past its identity check.
 * @param names server names of the Gateway's server, empty for all
 */
export function autoPassthroughChain(names: readonly string[]): Pick<FilterChain, 'filters'> & { filter_chain_match: Partial<FilterChainMatch> } {
  return {
    filter_chain_match: { ...(names.length > 0 ? { server_names: [...names] } : { transport_protocol: 'tls' }), application_protocols: ISTIO_ANY },
    filters: [onlySniClusters, sniCluster, tcpProxy('BlackHoleCluster')],
  };
}

/** Of each port and subset of the mesh's own services whose endpoints are addresses. */
export function sniClusters(scope: Scope): Resource[] {
  const { model, services } = scope;
  return services.filter(({ resolution, external }) => resolution === 'EDS' && !external).flatMap((service) => {
    const rule = scope.rule(service.host)?.object;
    return service.ports.flatMap(({ port }) =>
      ['', ...(rule?.spec.subsets ?? []).map(({ name }) => name)].map((subset) => {
        const name = clusterSni(port, subset, service.host);
        const cluster = passthroughCluster(name, service, { ...(rule ? { config: configPath(rule, 'destination-rule') } : {}), ...(subset ? { subset } : {}) });
        const policy = portPolicy(rule, subset, port);
        applyConnectionPool(cluster, policy, model.mesh);
        applyOutlierDetection(cluster, policy.outlierDetection);
        applyLoadBalancer(cluster, policy.loadBalancer);
        return makeResource(name, Cluster, cluster);
      }),
    );
  });
}
