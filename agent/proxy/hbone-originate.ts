/**
 * HBONE from this node's pods to endpoints elsewhere that take it. Such an endpoint leads to one internal listener, which
 * tunnels to port 15008 of the endpoint's address over the cluster of the caller's identity: the one that the caller's listener
 * gave the connection, and each such cluster shows that account's certificate alone. Connections are opened in the caller's
 * network namespace and pooled by it, so that neither pods nor accounts ever share one.
 */
import { Cluster, Cluster_DiscoveryType, Cluster_LbPolicy, type Cluster as ClusterMessage } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener, type Listener as ListenerMessage } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { ListenerFilter, type Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { OriginalDst } from '../../proto/generated/envoy/extensions/filters/listener/original_dst/v3/original_dst.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { HttpProtocolOptions } from '../../proto/generated/envoy/extensions/upstreams/http/v3/http_protocol_options.js';
import type { StringMatcher } from '../../proto/generated/envoy/type/matcher/v3/string.js';
import { HBONE_PORT } from '../../common/istio-iptables.js';
import { pack } from '../../common/xds/any.js';
import { contentHash } from '../xds/resource-type.js';
import { inCallersNamespace } from './fold-clusters.js';
import { isTunnelled, ORIGINAL_DST } from './fold-endpoints.js';
import { tunnelClientSocket } from './fold-identity.js';
import { connectionString } from './filter-state.js';
import { CONNECT_TIMEOUT_SECONDS, HTTP2, unlimited } from './hbone-terminate.js';
import { throughInternal } from './internal-endpoints.js';
import { BAGGAGE, NETWORK, PEER_PRINCIPAL, type ListenerPod } from './pod-listener.js';
import type { Entry } from './snapshot.js';

const LISTENER = 'hbone';
/** As ztunnels let go of connections without tunnels. */
const IDLE_SECONDS = 300n;
const HTTP_PROTOCOL_OPTIONS = 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions';

/** Leads to port 15008 of wherever a connection was to go. */
export const originateClusterName = (identity: string): string => `${LISTENER}/${identity}`;

/** @param local addresses of pods that this Envoy serves itself */
export function throughTunnels(cluster: Cluster, assignment: ClusterLoadAssignment | undefined, local: ReadonlySet<string>): { cluster: Cluster; assignment: ClusterLoadAssignment | undefined } {
  return throughInternal(cluster, assignment, 'hbone', (address, item) => (isTunnelled(item) && !local.has(address) ? LISTENER : undefined));
}

export interface TunnelSource {
  name: string;
  namespace: string;
  labels: Readonly<Record<string, string>>;
}

/** Of a ReplicaSet's pods: behind the Deployment's name the hash of its template, and what tells them apart. */
function workloadOf({ name, labels }: TunnelSource): { kind: 'deployment' | 'pod'; workload: string } {
  const hash = labels['pod-template-hash'];
  const at = hash ? name.lastIndexOf(`-${hash}-`) : -1;
  return at > 0 ? { kind: 'deployment', workload: name.slice(0, at) } : { kind: 'pod', workload: name };
}

/**
 * What tunnels of a pod say about it, for the other end's telemetry: ztunnel's keys, with the pod itself as the workload where it is
 * not a Deployment's, since its owner is not known here; and its network, if it is of one.
 */
export function tunnelHeaders(source: TunnelSource, clusterId: string): Pick<ListenerPod, 'baggage' | 'network'> {
  const { namespace, labels } = source;
  const { kind, workload } = workloadOf(source);
  const service = labels['service.istio.io/canonical-name'] ?? labels['app.kubernetes.io/name'] ?? labels['app'] ?? workload;
  const version = labels['service.istio.io/canonical-revision'] ?? labels['app.kubernetes.io/version'] ?? labels['version'] ?? 'latest';
  const network = labels['topology.istio.io/network'];
  return { baggage: `k8s.cluster.name=${clusterId},k8s.namespace.name=${namespace},k8s.${kind}.name=${workload},service.name=${service},service.version=${version}`, ...(network === undefined ? {} : { network }) };
}

/** Filter state by which tcp_proxy finds its cluster; without an identity there is none of that name, and the connection ends. */
const byIdentity = (clusterOf: (identity: string) => string): Filter => connectionString('underpass.hbone_identity', 'envoy.tcp_proxy.cluster', clusterOf(`%FILTER_STATE(${PEER_PRINCIPAL}:PLAIN)%`));

/** Makes of a tcp_proxy one that tunnels a connection to the destination that it was opened to. */
export function tunnelling(): Pick<TcpProxy, 'tunneling_config'> {
  const header = (key: string, state: string) => ({ header: { key, value: `%FILTER_STATE(${state}:PLAIN)%` } });
  // Names and forms are ztunnel's.
  const { tunneling_config } = TcpProxy.fromPartial({ tunneling_config: { hostname: '%DOWNSTREAM_LOCAL_ADDRESS%', headers_to_add: [header('baggage', BAGGAGE), header('x-forwarded-network', NETWORK)] } });
  return { tunneling_config };
}

/** Tunnels a connection to the destination that it was opened to. */
export function tunnel({ cluster, statPrefix }: { cluster: string; statPrefix: string }): Filter {
  const proxy = TcpProxy.fromPartial({ stat_prefix: statPrefix, cluster_specifier: { $case: 'cluster', value: cluster }, idle_timeout: { seconds: 0n, nanos: 0 }, ...tunnelling() });
  return { name: 'envoy.filters.network.tcp_proxy', config_type: { $case: 'typed_config', value: pack(TcpProxy, proxy) } };
}

/** An internal listener: connections that come to it are tunnelled by the cluster of their caller's identity. */
export function tunnelListener(name: string, clusterOf: (identity: string) => string): Entry {
  const listener: ListenerMessage = Listener.fromPartial({
    name,
    stat_prefix: name,
    listener_specifier: { $case: 'internal_listener', value: {} },
    listener_filters: [ListenerFilter.fromPartial({ name: ORIGINAL_DST, config_type: { $case: 'typed_config', value: pack(OriginalDst, OriginalDst.fromPartial({})) } })],
  });
  listener.filter_chains = [{ ...Listener.fromPartial({ filter_chains: [{ name }] }).filter_chains[0]!, filters: [byIdentity(clusterOf), tunnel({ cluster: 'BlackHoleCluster', statPrefix: name })] }];
  return { name, version: contentHash(Listener, listener), any: pack(Listener, listener), needs: [] };
}

export const originateListener: Entry = tunnelListener(LISTENER, originateClusterName);

/** @param peers names that the other ends' certificates may have; without any, those of the account's own trust domain */
export function originateCluster(identity: string, peers: readonly StringMatcher[]): Entry {
  const cluster = tunnelCluster(originateClusterName(identity), identity, peers, {
    cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.ORIGINAL_DST },
    lb_policy: Cluster_LbPolicy.CLUSTER_PROVIDED,
    lb_config: { $case: 'original_dst_lb_config', value: { upstream_port_override: HBONE_PORT } },
    cleanup_interval: { seconds: 60n, nanos: 0 },
  });
  return { name: cluster.name, version: contentHash(Cluster, cluster), any: pack(Cluster, cluster), needs: [] };
}

/** Connections for tunnels, in the caller's network namespace and with the account's certificate. @param where its endpoints are found */
export function tunnelCluster(name: string, identity: string, peers: readonly StringMatcher[], where: Parameters<typeof Cluster.fromPartial>[0]): ClusterMessage {
  const options = HttpProtocolOptions.fromPartial({ common_http_protocol_options: { idle_timeout: { seconds: IDLE_SECONDS, nanos: 0 } }, upstream_protocol_options: { $case: 'explicit_http_config', value: { protocol_config: { $case: 'http2_protocol_options', value: HTTP2 } } } });
  const cluster = inCallersNamespace(Cluster.fromPartial({
    ...where,
    name,
    connect_timeout: { seconds: CONNECT_TIMEOUT_SECONDS, nanos: 0 },
    circuit_breakers: unlimited,
    typed_extension_protocol_options: { [HTTP_PROTOCOL_OPTIONS]: pack(HttpProtocolOptions, options) },
  }));
  cluster.transport_socket = tunnelClientSocket(identity, peers);
  return cluster;
}
