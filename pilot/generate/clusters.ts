/**
 * CDS. Shapes and names are istiod's, but for what stock Envoy lacks or this version does not use: the network filter
 * `istio.metadata_exchange`, the `hbone` transport socket match and the cluster `connect_originate`.
 */
import { Cluster, Cluster_DiscoveryType, Cluster_LbPolicy, type Cluster_TransportSocketMatch } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { BindConfig } from '../../proto/generated/envoy/config/core/v3/address.js';
import { parseDurationMs } from '../../common/kube/schema.js';
import type { DestinationRule, KubeObject, TrafficPolicy } from '../../common/kube/types.js';
import type { MeshPort, MeshService, Model } from '../model/model.js';
import { isHttp2 } from '../model/protocol.js';
import { takesMtls } from '../model/peer-authentication.js';
import type { Proxy } from '../model/proxy.js';
import type { Scope } from '../model/scope.js';
import { ads, downstreamProtocolUpstream, http2Upstream, istioUpstreamTls, millis, passthroughUpstream, rawBufferSocket, seconds, spiffeId } from './envoy.js';
import { hasIpv4, hasIpv6, inboundPorts, type InboundPort } from './inbound-ports.js';
import { clusterName, clusterSni, inboundClusterName } from './names.js';
import { makeResource, type Resource } from './resource.js';

const UNLIMITED = 0xffff_ffff;
const circuit_breakers = { thresholds: [{ max_connections: UNLIMITED, max_pending_requests: UNLIMITED, max_requests: UNLIMITED, max_retries: UNLIMITED }] };
const DEFAULT_CONNECT_TIMEOUT_MS = 10_000;

const LB_POLICIES: Record<string, Cluster_LbPolicy> = {
  ROUND_ROBIN: Cluster_LbPolicy.ROUND_ROBIN,
  LEAST_REQUEST: Cluster_LbPolicy.LEAST_REQUEST,
  LEAST_CONN: Cluster_LbPolicy.LEAST_REQUEST,
  UNSPECIFIED: Cluster_LbPolicy.LEAST_REQUEST,
  RANDOM: Cluster_LbPolicy.RANDOM,
};

/** The path under which istiod names the object that a resource was made from. */
export function configPath(object: KubeObject, kind: 'virtual-service' | 'destination-rule'): string {
  return `/apis/networking.istio.io/v1/namespaces/${object.metadata.namespace}/${kind}/${object.metadata.name}`;
}

/** The clusters of one service: each port, and each subset of each port, as a client of this scope sees them. */
export function serviceClusters(scope: Scope, service: MeshService): Resource[] {
  const { model } = scope;
  const rule = scope.rule(service.host)?.object;
  const resources: Resource[] = [];
  for (const port of service.ports) {
    resources.push(outboundCluster(model, service, port, '', rule?.spec.trafficPolicy, rule));
    for (const subset of rule?.spec.subsets ?? []) {
      resources.push(outboundCluster(model, service, port, subset.name, { ...rule!.spec.trafficPolicy, ...subset.trafficPolicy }, rule));
    }
  }
  return resources;
}

function outboundCluster(model: Model, service: MeshService, port: MeshPort, subset: string, policy: TrafficPolicy | undefined, rule: DestinationRule | undefined): Resource {
  const name = clusterName(port.port, subset, service.host);
  const istio: Record<string, unknown> = { services: [{ host: service.host, name: service.name, namespace: service.namespace }] };
  if (rule) istio['config'] = configPath(rule, 'destination-rule');
  if (subset) istio['subset'] = subset;
  const connectTimeout = policy?.connectionPool?.tcp?.connectTimeout;
  const cluster = Cluster.fromPartial({
    name,
    alt_stat_name: `${name};`,
    connect_timeout: millis((connectTimeout && parseDurationMs(connectTimeout)) || DEFAULT_CONNECT_TIMEOUT_MS),
    circuit_breakers,
    common_lb_config: { healthy_panic_threshold: {} },
    metadata: { filter_metadata: { istio } },
    ...(isHttp2(port.protocol) ? { typed_extension_protocol_options: http2Upstream } : port.protocol === 'auto' ? { typed_extension_protocol_options: downstreamProtocolUpstream } : {}),
  });
  if (service.headless) {
    cluster.cluster_discovery_type = { $case: 'type', value: Cluster_DiscoveryType.ORIGINAL_DST };
    cluster.lb_policy = Cluster_LbPolicy.CLUSTER_PROVIDED;
  } else {
    cluster.cluster_discovery_type = { $case: 'type', value: Cluster_DiscoveryType.EDS };
    cluster.lb_policy = LB_POLICIES[policy?.loadBalancer?.simple ?? 'UNSPECIFIED']!;
    cluster.eds_cluster_config = { eds_config: ads, service_name: name };
  }
  addTransportSockets(cluster, model, service, port, subset, policy);
  return makeResource(name, Cluster, cluster);
}

const plaintext: Cluster_TransportSocketMatch = { name: 'tlsMode-disabled', match: {}, transport_socket: rawBufferSocket };

/** Automatic mutual TLS: endpoints whose workload has a sidecar are spoken to with it, all others in plaintext. */
function addTransportSockets(cluster: Cluster, model: Model, service: MeshService, port: MeshPort, subset: string, policy: TrafficPolicy | undefined): void {
  const mode = policy?.tls?.mode;
  if (mode === 'DISABLE') return;
  const endpoints = model.endpoints(service);
  const accounts = [...new Set(endpoints.flatMap(({ serviceAccount }) => serviceAccount ?? []))].sort();
  const sans = accounts.map((account) => spiffeId(model.mesh.trustDomain, service.namespace, account));
  const alpn = ['istio-peer-exchange', 'istio', ...(isHttp2(port.protocol) ? ['h2'] : [])];
  const tls = istioUpstreamTls(clusterSni(port.port, subset, service.host), alpn, sans);
  if (mode === 'ISTIO_MUTUAL') {
    cluster.transport_socket = tls;
  } else if (service.headless) {
    // An original-destination cluster knows nothing of its endpoints: all or none.
    if (endpoints.length > 0 && endpoints.every((endpoint) => takesMtls(model, endpoint, endpoint.ports.get(port.name) ?? 0))) cluster.transport_socket = tls;
    else cluster.transport_socket_matches = [plaintext];
  } else {
    cluster.transport_socket_matches = [
      { name: 'tlsMode-istio', match: { tlsMode: 'istio' }, transport_socket: tls },
      plaintext,
    ];
  }
}

const blackHole = makeResource(
  'BlackHoleCluster',
  Cluster,
  Cluster.fromPartial({
    name: 'BlackHoleCluster',
    alt_stat_name: 'BlackHoleCluster;',
    connect_timeout: seconds(10),
    cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.STATIC },
  }),
);

const originalDestination = (name: string, altStatName: string): Cluster =>
  Cluster.fromPartial({
    name,
    alt_stat_name: `${altStatName};`,
    connect_timeout: seconds(10),
    circuit_breakers,
    cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.ORIGINAL_DST },
    lb_policy: Cluster_LbPolicy.CLUSTER_PROVIDED,
  });

const passthrough = makeResource('PassthroughCluster', Cluster, {
  ...originalDestination('PassthroughCluster', 'PassthroughCluster'),
  typed_extension_protocol_options: passthroughUpstream,
});

/**
 * Istio delivers to the workload from 127.0.0.6 (::6): the sidecar's own iptables rules send whatever else leaves for
 * the pod's own address back to port 15006, which would loop.
 */
function inboundBind(proxy: Proxy): BindConfig {
  const v4 = { address: '127.0.0.6', port_specifier: { $case: 'port_value' as const, value: 0 } };
  const v6 = { address: '::6', port_specifier: { $case: 'port_value' as const, value: 0 } };
  if (!hasIpv4(proxy)) return BindConfig.fromPartial({ source_address: v6 });
  return BindConfig.fromPartial({ source_address: v4, ...(hasIpv6(proxy) ? { extra_source_addresses: [{ address: v6 }] } : {}) });
}

function inboundPassthrough(proxy: Proxy): Resource {
  return makeResource('InboundPassthroughCluster', Cluster, {
    // istiod gives it the statistics name of the outbound one, too.
    ...originalDestination('InboundPassthroughCluster', 'PassthroughCluster'),
    typed_extension_protocol_options: passthroughUpstream,
    upstream_bind_config: inboundBind(proxy),
  });
}

function inboundCluster(proxy: Proxy, { service, port, targetPort }: InboundPort): Resource {
  const name = inboundClusterName(targetPort);
  const cluster = originalDestination(name, name);
  // About 292 years, the longest that Go's duration holds: hosts of an inbound cluster are never cleaned up.
  cluster.cleanup_interval = seconds(9_223_372_035);
  cluster.common_lb_config = Cluster.fromPartial({ common_lb_config: {} }).common_lb_config;
  cluster.metadata = { filter_metadata: { istio: { services: [{ host: service.host, name: service.name, namespace: service.namespace }] } }, typed_filter_metadata: {} };
  cluster.upstream_bind_config = inboundBind(proxy);
  if (isHttp2(port.protocol)) cluster.typed_extension_protocol_options = http2Upstream;
  else if (port.protocol === 'auto') cluster.typed_extension_protocol_options = downstreamProtocolUpstream;
  return makeResource(name, Cluster, cluster);
}

/** What is no service's. */
export function proxyClusters(model: Model, proxy: Proxy): Resource[] {
  return [blackHole, passthrough, inboundPassthrough(proxy), ...inboundPorts(model, proxy).map((port) => inboundCluster(proxy, port))];
}
