/**
 * Ports whose chains look at what a client sends. Which ports these are changes with every Service, and in Envoy a change
 * of a listener's filters replaces the listener and, after the drain time, ends its connections; a change of its filter
 * chains does not. So the pods' listeners inspect a fixed few ports only, and a chain hands the others on to one of two
 * internal listeners of the class, which inspect whatever reaches them.
 */
import { Cluster, Cluster_DiscoveryType } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { TrafficDirection } from '../../proto/generated/envoy/config/core/v3/base.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain, ListenerFilter, ListenerFilterChainMatchPredicate, type FilterChainMatch } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpInspector } from '../../proto/generated/envoy/extensions/filters/listener/http_inspector/v3/http_inspector.js';
import { OriginalDst } from '../../proto/generated/envoy/extensions/filters/listener/original_dst/v3/original_dst.js';
import { TlsInspector } from '../../proto/generated/envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { InternalUpstreamTransport } from '../../proto/generated/envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.js';
import { RawBuffer } from '../../proto/generated/envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.js';
import { pack, unpack } from '../../common/xds/any.js';
import { contentHash } from '../xds/resource-type.js';
import { sharedAddress } from './filter-state.js';
import type { FoldedListeners } from './fold-listeners.js';
import { listenerEntry } from './listener-bytes.js';
import type { Entry } from './snapshot.js';

/**
 * `http`: declared as HTTP, so the client speaks first, however late. `unknown`: it may be the server that does. `plain`: not
 * inspected at all, see MANY_PLAIN_CHAINS in fold-listeners.ts.
 */
export type InspectionKind = 'http' | 'unknown' | 'plain';
export const INSPECTION_KINDS: readonly InspectionKind[] = ['http', 'unknown', 'plain'];

/** Inspected in the pods' own listeners, which saves the way through an internal one: where HTTP and TLS usually are. */
export const DIRECT_PORTS: readonly number[] = [80, 443, 8080];
/** How long a connection to one of them may stay silent before it is handed on, or treated as the plain TCP that it is. */
export const DIRECT_TIMEOUT_MS = 100;

/**
 * How long a connection to a port of unknown protocol may stay silent before it is treated as a protocol in which the
 * server speaks first.
 */
const UNKNOWN_TIMEOUT_SECONDS = 1;

const TLS_INSPECTOR = 'envoy.filters.listener.tls_inspector';
const HTTP_INSPECTOR = 'envoy.filters.listener.http_inspector';
/** Where what does not look like the declared protocol goes; a chain to anywhere else is a service's own. */
const FALLBACK_CLUSTERS: ReadonlySet<string> = new Set(['PassthroughCluster', 'BlackHoleCluster']);
const UNLIMITED = 0xffff_ffff;

/** The class's internal listener, and the cluster that leads to it. */
export function inspectionName(classKey: string, kind: InspectionKind): string {
  return `inspect/${classKey}/${kind}`;
}

/** How connections to a source listener are to be inspected, if at all. */
export function inspectionOf(listener: Listener): InspectionKind | undefined {
  if (!listener.listener_filters.some(({ name }) => name === TLS_INSPECTOR || name === HTTP_INSPECTOR)) return undefined;
  const chains = [...listener.filter_chains, ...(listener.default_filter_chain ? [listener.default_filter_chain] : [])];
  const leadsToService = chains.flatMap((chain) => chain.filters).some((filter) => {
    const tcp = filter.config_type?.$case === 'typed_config' ? unpack(TcpProxy, filter.config_type.value) : undefined;
    return tcp && !(tcp.cluster_specifier?.$case === 'cluster' && FALLBACK_CLUSTERS.has(tcp.cluster_specifier.value));
  });
  return leadsToService ? 'unknown' : 'http';
}

/** Hands a connection on, with its addresses. */
export function inspectionChain(name: string, cluster: string, match: FilterChainMatch | undefined): FilterChain {
  const proxy = TcpProxy.fromPartial({
    stat_prefix: 'inspect', cluster_specifier: { $case: 'cluster', value: cluster },
    // The chain that it ends up in decides how long it may be idle.
    idle_timeout: { seconds: 0n, nanos: 0 },
  });
  const chain = FilterChain.fromPartial({ name });
  chain.filters = [
    sharedAddress('underpass.original_dst', { 'envoy.filters.listener.original_dst.local_ip': '%DOWNSTREAM_LOCAL_ADDRESS%', 'envoy.filters.listener.original_dst.remote_ip': '%DOWNSTREAM_REMOTE_ADDRESS%' }),
    { name: 'envoy.filters.network.tcp_proxy', config_type: { $case: 'typed_config', value: pack(TcpProxy, proxy) } },
  ];
  chain.filter_chain_match = match;
  return chain;
}

/** The filters of a pod's listener: constant, whatever ports there are. */
export function directInspection(): ListenerFilter[] {
  const rules = DIRECT_PORTS.map((port) => ({ rule: { $case: 'destination_port_range' as const, value: { start: port, end: port + 1 } } }));
  const others = ListenerFilterChainMatchPredicate.fromPartial({ rule: { $case: 'not_match', value: { rule: { $case: 'or_match', value: { rules } } } } });
  // After original_dst the port is the one that the client dialled.
  return inspectors().map((filter, index) => (index === 0 ? filter : { ...filter, filter_disabled: others }));
}

function inspectors(): ListenerFilter[] {
  const filter = (name: string, value: ReturnType<typeof pack>): ListenerFilter => ListenerFilter.fromPartial({ name, config_type: { $case: 'typed_config', value } });
  return [
    filter('envoy.filters.listener.original_dst', pack(OriginalDst, OriginalDst.fromPartial({}))),
    filter(TLS_INSPECTOR, pack(TlsInspector, TlsInspector.fromPartial({}))),
    filter(HTTP_INSPECTOR, pack(HttpInspector, HttpInspector.fromPartial({}))),
  ];
}

export function inspectionListener(classKey: string, kind: InspectionKind, folded: FoldedListeners, needs: readonly string[]): Entry {
  return internalListener(inspectionName(classKey, kind), kind, folded.inspected[kind], folded.defaultChain, needs);
}

export function internalListener(name: string, kind: InspectionKind, chains: readonly FilterChain[], defaultChain: FilterChain, needs: readonly string[]): Entry {
  const listener = Listener.fromPartial({
    name,
    stat_prefix: name.replaceAll('/', '_'),
    listener_specifier: { $case: 'internal_listener', value: {} },
    traffic_direction: TrafficDirection.OUTBOUND,
    // 0: for as long as it takes.
    listener_filters_timeout: { seconds: BigInt(kind === 'unknown' ? UNKNOWN_TIMEOUT_SECONDS : 0), nanos: 0 },
    continue_on_listener_filters_timeout: true,
  });
  listener.listener_filters = inspectors().slice(0, kind === 'plain' ? 1 : undefined);
  listener.filter_chains = [...chains];
  listener.default_filter_chain = defaultChain;
  // Folded chains have their maps in order, so that equal listeners have equal bytes.
  return listenerEntry(listener, needs);
}

/** @param leadsTo the class's own internal listener, if it is not another one */
export function inspectionCluster(classKey: string, kind: InspectionKind, leadsTo = inspectionName(classKey, kind)): Entry {
  const name = inspectionName(classKey, kind);
  const limits = { max_connections: UNLIMITED, max_pending_requests: UNLIMITED, max_requests: UNLIMITED };
  const cluster = Cluster.fromPartial({
    name,
    cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.STATIC },
    connect_timeout: { seconds: 5n, nanos: 0 },
    circuit_breakers: { thresholds: [limits] },
    load_assignment: {
      cluster_name: name,
      endpoints: [{ lb_endpoints: [{ host_identifier: { $case: 'endpoint', value: { address: { address: { $case: 'envoy_internal_address', value: { address_name_specifier: { $case: 'server_listener_name', value: leadsTo } } } } } } }] }],
    },
    transport_socket: {
      name: 'envoy.transport_sockets.internal_upstream',
      config_type: { $case: 'typed_config', value: pack(InternalUpstreamTransport, InternalUpstreamTransport.fromPartial({
        transport_socket: { name: 'envoy.transport_sockets.raw_buffer', config_type: { $case: 'typed_config', value: pack(RawBuffer, RawBuffer.fromPartial({})) } },
      })) },
    },
  });
  return { name, version: contentHash(Cluster, cluster), any: pack(Cluster, cluster), needs: [], leadsTo };
}
