/**
 * CDS. Shapes and names are istiod's, but for what stock Envoy lacks: the network filter `istio.metadata_exchange`.
 */
import { Cluster, Cluster_DiscoveryType, Cluster_DnsLookupFamily, Cluster_LbPolicy } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { BindConfig } from '../../proto/generated/envoy/config/core/v3/address.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import type { LocalityLbEndpoints } from '../../proto/generated/envoy/config/endpoint/v3/endpoint_components.js';
import { CaresDnsResolverConfig } from '../../proto/generated/envoy/extensions/network/dns_resolver/cares/v3/cares_dns_resolver.js';
import type { DestinationRule, KubeObject } from '../../common/kube/types.js';
import { pack } from '../../common/xds/any.js';
import type { MeshPort, MeshService } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import type { Scope } from '../model/scope.js';
import { portPolicy } from '../model/traffic-policy.js';
import { applyConnectionPool, applyLoadBalancer, applyOutlierDetection, httpProtocolOptions, upstreamHttp } from './cluster-policy.js';
import { applyTls } from './cluster-tls.js';
import { clientKey, endpointGroups } from './endpoints.js';
import { ads, circuit_breakers, endpointAddress, passthroughUpstream, seconds } from './envoy.js';
import { originateCluster } from './hbone-originate.js';
import { mainInternalCluster, takesTunnels } from './inbound-hbone.js';
import { hasIpv4, hasIpv6, inboundPorts, type InboundPort } from './inbound-ports.js';
import { localitySetting, weighsLocalities, type Whereabouts } from './locality.js';
import { clusterName, inboundClusterName } from './names.js';
import { makeResource, type Resource } from './resource.js';

/** The path under which istiod names the object that a resource was made from. */
export function configPath(object: KubeObject, kind: 'virtual-service' | 'destination-rule'): string {
  return `/apis/networking.istio.io/v1/namespaces/${object.metadata.namespace}/${kind}/${object.metadata.name}`;
}

export interface ClusterVariant {
  /** Of the client: names are resolved to what it can reach. */
  ipv4: boolean;
  ipv6: boolean;
  client: Whereabouts;
  /** A gateway forwards what it has terminated: there is no client's protocol to follow. */
  isGateway: boolean;
}

/** What of the client the clusters of a service depend on: something only where they hold the endpoints. */
export function clusterClientKey(scope: Scope, service: MeshService, variant: () => ClusterVariant): string {
  if (!service.resolution.startsWith('DNS')) return '';
  const { ipv4, ipv6, client } = variant();
  const rule = scope.rule(service.host)?.object;
  const keys = service.ports.flatMap(({ port }) => ['', ...(rule?.spec.subsets ?? []).map(({ name }) => name)].map((subset) => ({ port, subset, host: service.host })));
  return `${ipv4 ? 4 : ''}${ipv6 ? 6 : ''} ${keys.map((key) => clientKey(scope, service, key, () => client)).join(';')}`;
}

/** The clusters of one service: each port, and each subset of each port, as a client of this scope sees them. */
export function serviceClusters(scope: Scope, service: MeshService, variant: ClusterVariant): Resource[] {
  const rule = scope.rule(service.host)?.object;
  return service.ports.flatMap((port) => ['', ...(rule?.spec.subsets ?? []).map(({ name }) => name)].flatMap((subset) => outboundCluster(scope, service, port, subset, rule, variant) ?? []));
}

function outboundCluster({ model }: Scope, service: MeshService, port: MeshPort, subset: string, rule: DestinationRule | undefined, variant: ClusterVariant): Resource | undefined {
  const { mesh } = model;
  const name = clusterName(port.port, subset, service.host);
  const policy = portPolicy(rule, subset, port.port);
  const named = service.resolution.startsWith('DNS') ? endpointGroups(model, service, port, rule, subset, variant.client) : undefined;
  // With nothing to look up there is no cluster, as in Istio: Envoy would refuse some of them.
  if (named?.length === 0) return undefined;
  const istio: Record<string, unknown> = { services: [{ host: service.host, name: service.name, namespace: service.namespace }] };
  if (rule) istio['config'] = configPath(rule, 'destination-rule');
  if (subset) istio['subset'] = subset;
  if (service.external) istio['external'] = true;
  const setting = localitySetting(mesh, policy.loadBalancer, service);
  // What a gateway's client connected to is the gateway: it chooses an endpoint of its own, as in Istio.
  const resolution = variant.isGateway && service.resolution === 'ORIGINAL_DST' ? 'EDS' : service.resolution;
  const cluster = Cluster.fromPartial({
    name,
    alt_stat_name: `${name};`,
    cluster_discovery_type: { $case: 'type', value: DISCOVERY[resolution] },
    common_lb_config: { healthy_panic_threshold: {}, ...(weighsLocalities(setting, policy.outlierDetection !== undefined) ? { locality_config_specifier: { $case: 'locality_weighted_lb_config', value: {} } } : {}) },
    metadata: { filter_metadata: { istio } },
  });
  if (resolution === 'EDS') cluster.eds_cluster_config = { eds_config: ads, service_name: name };
  if (named) resolvedByName(cluster, service.resolution === 'DNS_ROUND_ROBIN' ? onlyFirst(named) : named, variant);
  const http = upstreamHttp(port.protocol, policy.connectionPool, mesh, true, !variant.isGateway);
  applyConnectionPool(cluster, policy, mesh);
  applyOutlierDetection(cluster, policy.outlierDetection);
  applyLoadBalancer(cluster, policy.loadBalancer);
  applyTls(cluster, http, { model, service, port, subset, policy, auto: mesh.enableAutoMtls });
  cluster.typed_extension_protocol_options = httpProtocolOptions(http) ?? {};
  return makeResource(name, Cluster, cluster);
}

const DISCOVERY = {
  EDS: Cluster_DiscoveryType.EDS,
  DNS: Cluster_DiscoveryType.STRICT_DNS,
  DNS_ROUND_ROBIN: Cluster_DiscoveryType.LOGICAL_DNS,
  ORIGINAL_DST: Cluster_DiscoveryType.ORIGINAL_DST,
} as const;

/** Such a cluster has one name and no more; several entries of one host may have given several. */
function onlyFirst([group]: readonly LocalityLbEndpoints[]): LocalityLbEndpoints[] {
  return group ? [{ ...group, lb_endpoints: group.lb_endpoints.slice(0, 1) }] : [];
}

const DNS_REFRESH_SECONDS = 60;

/** Endpoints stand in the cluster: what has a host name can't come by EDS. */
function resolvedByName(cluster: Cluster, endpoints: ClusterLoadAssignment['endpoints'], { ipv4, ipv6 }: ClusterVariant): void {
  cluster.load_assignment = ClusterLoadAssignment.fromPartial({ cluster_name: cluster.name, endpoints });
  cluster.dns_lookup_family = ipv4 && ipv6 ? Cluster_DnsLookupFamily.ALL : ipv6 ? Cluster_DnsLookupFamily.V6_ONLY : Cluster_DnsLookupFamily.V4_ONLY;
  cluster.dns_refresh_rate = seconds(DNS_REFRESH_SECONDS);
  cluster.respect_dns_ttl = true;
  cluster.typed_dns_resolver_config = { name: 'envoy.network.dns_resolver.cares', typed_config: pack(CaresDnsResolverConfig, CaresDnsResolverConfig.fromPartial({ udp_max_queries: 100 })) };
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

/** Connection pools count on the server's side, too: the Sidecar's own, else those of the rule for the service. */
function inboundCluster(scope: Scope, proxy: Proxy, { service, port, targetPort, deliverTo }: InboundPort): Resource {
  const { mesh } = scope.model;
  const name = inboundClusterName(targetPort);
  const cluster = originalDestination(name, name);
  const istio: Record<string, unknown> = { services: [{ host: service.host, name: service.name, namespace: service.namespace }] };
  const rule = scope.rule(service.host)?.object;
  const sidecar = scope.sidecar?.object.spec;
  const connectionPool = sidecar?.ingress?.find((listener) => listener.port.number === targetPort)?.connectionPool ?? sidecar?.inboundConnectionPool ?? portPolicy(rule, '', port.port).connectionPool;
  if (rule?.spec.trafficPolicy) istio['config'] = configPath(rule, 'destination-rule');
  const policy = connectionPool ? { connectionPool } : {};
  applyConnectionPool(cluster, policy, mesh);
  // About 292 years, the longest that Go's duration holds: hosts of an inbound cluster are never cleaned up.
  cluster.cleanup_interval = seconds(9_223_372_035);
  cluster.common_lb_config = Cluster.fromPartial({ common_lb_config: {} }).common_lb_config;
  cluster.metadata = { filter_metadata: { istio }, typed_filter_metadata: {} };
  cluster.upstream_bind_config = inboundBind(proxy);
  if (deliverTo) deliver(cluster, deliverTo);
  cluster.typed_extension_protocol_options = httpProtocolOptions(upstreamHttp(port.protocol, connectionPool, mesh, false)) ?? {};
  return makeResource(name, Cluster, cluster);
}

/** To one place instead of the connection's own. */
function deliver(cluster: Cluster, target: string): void {
  const colon = target.lastIndexOf(':');
  const address = target.startsWith('unix://') ? endpointAddress(target, 0) : endpointAddress(target.slice(0, colon).replace(/^\[|\]$/g, ''), Number(target.slice(colon + 1)));
  cluster.cluster_discovery_type = { $case: 'type', value: Cluster_DiscoveryType.STATIC };
  cluster.lb_policy = Cluster_LbPolicy.ROUND_ROBIN;
  cluster.cleanup_interval = undefined;
  // 127.0.0.6 keeps what leaves for the pod's own address from coming back; neither loopback nor a socket file does.
  if (/^(127\.|\[::1\]|unix:)/.test(target)) cluster.upstream_bind_config = undefined;
  cluster.load_assignment = ClusterLoadAssignment.fromPartial({ cluster_name: cluster.name, endpoints: [{ lb_endpoints: [{ host_identifier: { $case: 'endpoint', value: { address } } }] }] });
}

/** What is no service's. */
export function proxyClusters(scope: Scope, proxy: Proxy): Resource[] {
  const { model } = scope;
  // A gateway captures nothing: there is nowhere to pass through to, and no application behind it.
  const originate = model.hasTunnelled ? [originateCluster(model.mesh)] : [];
  if (proxy.type === 'router') return [blackHole, ...originate];
  return [blackHole, passthrough, ...originate, inboundPassthrough(proxy), ...inboundPorts(model, proxy).map((port) => inboundCluster(scope, proxy, port)), ...(takesTunnels(proxy) ? [mainInternalCluster] : [])];
}
