/** CDS and EDS of a waypoint, as istiod has them: a cluster for each port and subset of a service, whose endpoints are reached by HBONE. */
import { isIP } from 'node:net';
import { Cluster, Cluster_DiscoveryType } from '../../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { InternalUpstreamTransport } from '../../../proto/generated/envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.js';
import type { TransportSocket } from '../../../proto/generated/envoy/config/core/v3/base.js';
import { pack } from '../../../common/xds/any.js';
import { takesHbone } from '../../model/pods.js';
import type { Proxy } from '../../model/proxy.js';
import type { Scope } from '../../model/scope.js';
import type { MeshPort, MeshService } from '../../model/types.js';
import { portPolicy } from '../../model/traffic-policy.js';
import { applyConnectionPool, applyLoadBalancer, applyOutlierDetection, httpProtocolOptions, upstreamHttp } from '../cluster-policy.js';
import { configPath, serviceClusters, type ClusterVariant } from '../clusters.js';
import { endpointGroups } from '../endpoints.js';
import { circuit_breakers, internalAddress, passthroughUpstream, rawBufferSocket } from '../envoy.js';
import { passthroughCluster } from '../gateway/passthrough-cluster.js';
import { ORIGINAL_DST } from '../hbone.js';
import { CONNECT_ORIGINATE, originateCluster } from '../hbone-originate.js';
import { mainInternalCluster } from '../inbound-hbone.js';
import type { Whereabouts } from '../locality.js';
import { makeResource, type Resource } from '../resource.js';
import { attachedServices, parseWaypointCluster, spokenOn, waypointClusterName, type Spoken } from './attached.js';
import { referencedElsewhere } from './routes.js';

/** To the address that a connection was to go to, by HBONE. */
export const ENCAP = 'encap';

/** Hands on where the endpoint is. */
const tunnelSocket: TransportSocket = {
  name: 'internal_upstream',
  config_type: {
    $case: 'typed_config',
    value: pack(InternalUpstreamTransport, InternalUpstreamTransport.fromPartial({
      passthrough_metadata: [{ kind: { kind: { $case: 'host', value: {} } }, name: ORIGINAL_DST }, { kind: { kind: { $case: 'host', value: {} } }, name: 'istio' }],
      transport_socket: { ...rawBufferSocket, name: 'raw_buffer' },
    })),
  },
};

const encap: Resource = makeResource(ENCAP, Cluster, Cluster.fromPartial({
  name: ENCAP,
  alt_stat_name: `${ENCAP};`,
  cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.STATIC },
  load_assignment: { cluster_name: ENCAP, endpoints: [{ lb_endpoints: [{ host_identifier: { $case: 'endpoint', value: { address: internalAddress(CONNECT_ORIGINATE) } } }] }] },
  circuit_breakers,
  typed_extension_protocol_options: passthroughUpstream,
  transport_socket: { name: 'internal_upstream', config_type: { $case: 'typed_config', value: pack(InternalUpstreamTransport, InternalUpstreamTransport.fromPartial({ transport_socket: { ...rawBufferSocket, name: 'raw_buffer' } })) } },
}));

/** @param variant of the clusters that routes lead to outside of what this waypoint is for */
export function waypointClusters(scope: Scope, proxy: Proxy, variant: () => ClusterVariant): Resource[] {
  const attached = attachedServices(scope.model, proxy);
  const elsewhere = referencedElsewhere(scope, proxy, attached);
  const others = [...new Set([...elsewhere].map((name) => name.split('|')[3]!))].flatMap((host) => scope.service(host) ?? []);
  return [
    mainInternalCluster, encap, originateCluster(scope.model.mesh),
    ...attached.flatMap((service) => service.ports.flatMap((port) => spokenOn(port.protocol).flatMap((spoken) => portClusters(scope, service, port, spoken)))),
    ...others.flatMap((service) => serviceClusters(scope, service, variant())).filter(({ name }) => elsewhere.has(name)),
  ];
}

function portClusters(scope: Scope, service: MeshService, port: MeshPort, spoken: Spoken): Resource[] {
  const rule = scope.rule(service.host)?.object;
  return ['', ...(rule?.spec.subsets ?? []).map(({ name }) => name)].map((subset) => {
    const name = waypointClusterName({ port: port.port, spoken, subset, host: service.host });
    const cluster = passthroughCluster(name, service, { subset: subset ? `${spoken}/${subset}` : spoken, ...(rule ? { config: configPath(rule, 'destination-rule') } : {}) });
    const policy = portPolicy(rule, subset, port.port);
    applyConnectionPool(cluster, policy, scope.model.mesh);
    applyOutlierDetection(cluster, policy.outlierDetection);
    applyLoadBalancer(cluster, policy.loadBalancer);
    cluster.typed_extension_protocol_options = (spoken === 'http' && httpProtocolOptions(upstreamHttp(port.protocol, policy.connectionPool, scope.model.mesh))) || {};
    cluster.transport_socket = tunnelSocket;
    return makeResource(name, Cluster, cluster);
  });
}

/** Of a name that is none of its clusters': no endpoints. */
export function waypointEndpoints(scope: Scope, name: string, client: Whereabouts): Resource {
  const assignment = ClusterLoadAssignment.fromPartial({ cluster_name: name });
  const key = parseWaypointCluster(name);
  const service = key && scope.service(key.host);
  const port = service?.ports.find((candidate) => candidate.port === key?.port);
  if (key && service && port) assignment.endpoints = endpointGroups(scope.model, service, port, scope.rule(key.host)?.object, key.subset, client, undefined, (endpoint) => takesHbone(endpoint) && isIP(endpoint.address) !== 0);
  return makeResource(name, ClusterLoadAssignment, assignment);
}
