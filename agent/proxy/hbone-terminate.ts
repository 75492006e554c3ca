/**
 * Where HBONE ends for a pod of this node: mutual TLS with the certificate of the pod's account and HTTP/2 on port 15008 of
 * the pod's own addresses, each CONNECT one connection. An authority is an address of this very pod, in the one spelling that
 * the mesh uses, and a port that is not the proxy's own; everything else is answered 403 by a route without an upstream, so
 * that no socket is opened for it. A pod whose policy has a say in who calls is reached through its internal inbound listener,
 * with the caller's identity from its certificate; any other directly, from a socket in the pod's network namespace.
 */
import { isIPv6 } from 'node:net';
import { Cluster, Cluster_DiscoveryType, Cluster_LbPolicy } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { CircuitBreakers } from '../../proto/generated/envoy/config/cluster/v3/circuit_breaker.js';
import { Http2ProtocolOptions } from '../../proto/generated/envoy/config/core/v3/protocol.js';
import { TrafficDirection } from '../../proto/generated/envoy/config/core/v3/base.js';
import { ApiVersion } from '../../proto/generated/envoy/config/core/v3/config_source.js';
import { FilterChain, FilterChainMatch } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { FilterConfig, Route, RouteAction, RouteMatch } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { FilterStateValue, FilterStateValue_SharedWithUpstream } from '../../proto/generated/envoy/extensions/filters/common/set_filter_state/v3/value.js';
import { OriginalSrc } from '../../proto/generated/envoy/extensions/filters/http/original_src/v3/original_src.js';
import { Router } from '../../proto/generated/envoy/extensions/filters/http/router/v3/router.js';
import { Config as HttpSetFilterState } from '../../proto/generated/envoy/extensions/filters/http/set_filter_state/v3/set_filter_state.js';
import { HttpConnectionManager, HttpConnectionManager_CodecType, type HttpFilter } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { InternalUpstreamTransport } from '../../proto/generated/envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.js';
import type { StringMatcher } from '../../proto/generated/envoy/type/matcher/v3/string.js';
import { Any } from '../../proto/generated/google/protobuf/any.js';
import { HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT } from '../../common/istio-iptables.js';
import { pack } from '../../common/xds/any.js';
import { contentHash } from '../xds/resource-type.js';
import { countTunnels } from './connection-log.js';
import type { EnvoyExtensions } from './extensions.js';
import { PEER_ADDRESS_STATE } from './filter-state.js';
import { boundTo } from './fold-clusters.js';
import { internalAddress, ORIGINAL_DST, socketAddress } from './fold-endpoints.js';
import { RAW_BUFFER, tunnelServerSocket } from './fold-identity.js';
import { PEER_PRINCIPAL, podClusterName, podHboneName, podTunnelStatPrefix, SHOWN_SOURCE, SOURCE_ADDRESS, type ListenerPod } from './pod-listener.js';
import type { Entry } from './snapshot.js';

/** Of one tunnel and of one peer: what may be under way towards a reader that is slower than the network. */
const STREAM_WINDOW_BYTES = 4 << 20;
const CONNECTION_WINDOW_BYTES = 16 << 20;
/** As ztunnels have it: a peer with more opens another connection. */
const MAX_STREAMS = 100;
const HANDSHAKE_TIMEOUT_SECONDS = 15n;
const HEADERS_TIMEOUT_SECONDS = 10n;
export const CONNECT_TIMEOUT_SECONDS = 5n;
const UNLIMITED = 0xffff_ffff;

/** Of both ends. */
export const HTTP2 = Http2ProtocolOptions.fromPartial({
  allow_connect: true, initial_stream_window_size: STREAM_WINDOW_BYTES, initial_connection_window_size: CONNECTION_WINDOW_BYTES,
  // A connection without streams would outlive a peer that is gone.
  connection_keepalive: { interval: { seconds: 10n, nanos: 0 }, timeout: { seconds: 20n, nanos: 0 } },
});
export const unlimited = CircuitBreakers.fromPartial({ thresholds: [{ max_connections: UNLIMITED, max_pending_requests: UNLIMITED, max_requests: UNLIMITED, max_retries: UNLIMITED }] });

const CONNECT = 'CONNECT';
const AUTHORITY = ':authority';
/** 1 to 65535, without leading zeros. */
const PORT = '(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])';
const OWN_PORT_NUMBERS: readonly number[] = [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT];
const OWN_PORTS = `(?:${OWN_PORT_NUMBERS.join('|')})`;
/** Goes before what a header says, in a cluster of the kind ORIGINAL_DST. */
const DESTINATION_STATE = 'envoy.network.transport_socket.original_dst_address';

export interface TunnelledPod extends ListenerPod {
  identity: string;
  addresses: readonly string[];
}

/**
 * Never where somebody else has the port: after a bind in another namespace that failed, Envoy's main thread stays in that
 * namespace (seen with 1.40.0).
 */
export function canEndTunnels(pod: ListenerPod): pod is TunnelledPod {
  return pod.endsTunnels === true && pod.identity !== undefined && (pod.addresses ?? []).length > 0;
}

/**
 * @param peers names that callers' certificates may have
 * @param inbound the internal listener that stands for the pod's policy; undefined when nothing has a say in who calls
 */
export function hboneEntries(pod: TunnelledPod, peers: readonly StringMatcher[], inbound: string | undefined, extensions: EnvoyExtensions): { listener: Entry; cluster: Entry; routes: Entry } {
  const cluster = inbound === undefined ? toApplication(pod) : throughPolicy(pod, inbound);
  const listener = Listener.fromPartial({
    name: podHboneName(pod.uid),
    stat_prefix: podTunnelStatPrefix(pod.uid),
    address: socketAddress('0.0.0.0', HBONE_PORT, pod.netnsPath),
    additional_addresses: pod.ipv6 ? [{ address: socketAddress('::', HBONE_PORT, pod.netnsPath) }] : [],
    traffic_direction: TrafficDirection.INBOUND,
    // Peers keep few connections, each with many streams: two of them are not to share a worker while another has none.
    connection_balance_config: { balance_type: { $case: 'exact_balance', value: {} } },
    // Named by the policy: peers are told to open anew what they have under another one.
    filter_chains: pod.showsCallers ? FAMILIES.map((family) => chain(pod, inbound, extensions, family)) : [chain(pod, inbound, extensions)],
  });
  for (const item of listener.filter_chains) item.transport_socket = tunnelServerSocket(pod.identity, peers);
  const routes = authorities(pod, cluster.name, inbound === undefined ? BIND : SHOW);
  return {
    routes: { name: routes.name, version: contentHash(RouteConfiguration, routes), any: pack(RouteConfiguration, routes), needs: [] },
    listener: { name: listener.name, version: contentHash(Listener, listener), any: pack(Listener, listener), needs: [routes.name] },
    cluster: { name: cluster.name, version: contentHash(Cluster, cluster), any: pack(Cluster, cluster), needs: [] },
  };
}

const typed = (value: Any) => ({ $case: 'typed_config' as const, value });

/** Of callers of one family, so that a route to an address of the same can show them to the application; undefined: of all. */
function chain(pod: TunnelledPod, inbound: string | undefined, extensions: EnvoyExtensions, family?: Family): FilterChain {
  const tunnels = manager(pod, family);
  // Otherwise its inbound listener counts what comes out of them.
  if (inbound === undefined) countTunnels(tunnels, extensions, pod.uid);
  const found = FilterChain.fromPartial({
    name: `hbone${family === undefined ? '' : `-${family}`}${inbound === undefined ? '' : `/${inbound}`}`,
    filters: [{ name: 'envoy.filters.network.http_connection_manager', config_type: typed(pack(HttpConnectionManager, tunnels)) }],
    transport_socket_connect_timeout: { seconds: HANDSHAKE_TIMEOUT_SECONDS, nanos: 0 },
  });
  if (family !== undefined) found.filter_chain_match = FilterChainMatch.fromPartial({ source_prefix_ranges: [{ address_prefix: family === 'ipv6' ? '::' : '0.0.0.0', prefix_len: 0 }] });
  return found;
}

function manager(pod: TunnelledPod, family?: Family): HttpConnectionManager {
  return HttpConnectionManager.fromPartial({
    stat_prefix: podTunnelStatPrefix(pod.uid),
    codec_type: HttpConnectionManager_CodecType.HTTP2,
    http_filters: [callerState, ...(family === undefined ? [] : [bindsToCaller(family), showsCaller(family)]), router],
    http2_protocol_options: { ...HTTP2, max_concurrent_streams: MAX_STREAMS },
    request_headers_timeout: { seconds: HEADERS_TIMEOUT_SECONDS, nanos: 0 },
    stream_idle_timeout: { seconds: 0n, nanos: 0 },
    upgrade_configs: [{ upgrade_type: CONNECT }],
    // Else a header of the peer's would say from where it calls.
    use_remote_address: true,
    skip_xff_append: true,
    generate_request_id: false,
    // Apart from the listener, whose tunnels a change of the pod's services would end.
    route_specifier: { $case: 'rds', value: { route_config_name: podHboneName(pod.uid), config_source: { config_source_specifier: { $case: 'ads', value: {} }, resource_api_version: ApiVersion.V3, initial_fetch_timeout: { seconds: 0n, nanos: 0 } } } },
  });
}

/** @param shows which of the filters for it shows the caller to the application */
function authorities({ uid, addresses, showsCallers, services = [] }: TunnelledPod, cluster: string, shows: string): RouteConfiguration {
  const anyOf = (some: readonly string[]): string => `(?:${some.map((address) => (isIPv6(address) ? `\\[${address}\\]` : address.replaceAll('.', '\\.'))).join('|')})`;
  const own = anyOf(addresses);
  const families = showsCallers ? FAMILIES.map((family) => ({ of: addresses.filter((address) => familyOf(address) === family), enabled: { [`${shows}.${family}`]: ENABLED } })) : [{ of: addresses, enabled: {} }];
  const refused = { $case: 'direct_response' as const, value: { status: 403 } };
  const onward: Route['action'] = { $case: 'route', value: RouteAction.fromPartial({ cluster_specifier: { $case: 'cluster', value: cluster }, timeout: { seconds: 0n, nanos: 0 }, upgrade_configs: [{ upgrade_type: CONNECT, connect_config: {} }] }) };
  const named = services.filter(({ port }) => !OWN_PORT_NUMBERS.includes(port)).map(({ authority, port }) => Route.fromPartial({
    match: connectTo(authority.replaceAll(/[^A-Za-z0-9:-]/g, '\\$&')),
    action: onward,
    typed_per_filter_config: { [callerState.name]: toldWhere(`${isIPv6(addresses[0]!) ? `[${addresses[0]}]` : addresses[0]}:${port}`), ...(showsCallers ? { [`${shows}.${familyOf(addresses[0]!)}`]: ENABLED } : {}) },
  }));
  return RouteConfiguration.fromPartial({
    name: podHboneName(uid),
    validate_clusters: false,
    virtual_hosts: [{
      name: 'authorities',
      domains: ['*'],
      routes: [
        // The proxy's own ports are nobody's destination: it would lead to itself.
        { match: connectTo(`${own}:${OWN_PORTS}`), action: refused },
        ...families.filter(({ of }) => of.length > 0).map(({ of, enabled }) => ({ match: connectTo(`${anyOf(of)}:${PORT}`), action: onward, typed_per_filter_config: enabled })),
        ...named,
        { match: connectTo('.*'), action: refused },
        { match: { path_specifier: { $case: 'prefix', value: '/' } }, action: refused },
      ],
    }],
  });
}

function connectTo(regex: string): RouteMatch {
  return RouteMatch.fromPartial({
    path_specifier: { $case: 'connect_matcher', value: {} },
    headers: [{ name: AUTHORITY, header_match_specifier: { $case: 'string_match', value: { match_pattern: { $case: 'safe_regex', value: { regex } } } } }],
  });
}

const router: HttpFilter = { name: 'envoy.filters.http.router', is_optional: false, disabled: false, config_type: typed(pack(Router, Router.fromPartial({}))) };

type Family = keyof typeof SHOWN_SOURCE;
const FAMILIES: readonly Family[] = ['ipv4', 'ipv6'];
const familyOf = (address: string): Family => (isIPv6(address) ? 'ipv6' : 'ipv4');

/** Filters that are off but where a route, of an address of the callers' own family, enables one: straight to the application, or by way of the pod's inbound listener. */
const BIND = 'underpass.bind_to_caller';
const SHOW = 'underpass.show_caller';
const ENABLED = pack(FilterConfig, FilterConfig.fromPartial({ config: Any.fromPartial({}) }));
const bindsToCaller = (family: Family): HttpFilter => ({ name: `${BIND}.${family}`, is_optional: false, disabled: true, config_type: typed(pack(OriginalSrc, OriginalSrc.fromPartial({}))) });
const showsCaller = (family: Family): HttpFilter => ({ name: `${SHOW}.${family}`, is_optional: false, disabled: true, config_type: typed(pack(HttpSetFilterState, HttpSetFilterState.fromPartial({ on_request_headers: [state(SHOWN_SOURCE[family], '%DOWNSTREAM_REMOTE_ADDRESS%', 'envoy.string')] }))) });

/** What the pod's inbound listener is told: where the connection was to go, who opened it, and from where. */
const callerState: HttpFilter = { name: 'underpass.hbone_caller', is_optional: false, disabled: false, config_type: typed(told([state(`${ORIGINAL_DST}.local_ip`, `%REQ(${AUTHORITY})%`)])) };

/** The same for an authority that is a service's name: the pod's own address and port stand in its place. */
function toldWhere(destination: string): Any {
  return told([state(`${ORIGINAL_DST}.local_ip`, destination), state(DESTINATION_STATE, destination)]);
}

function told(where: readonly FilterStateValue[]): Any {
  return pack(HttpSetFilterState, HttpSetFilterState.fromPartial({
    on_request_headers: [
      ...where,
      state(PEER_PRINCIPAL, '%DOWNSTREAM_PEER_URI_SAN%', 'envoy.hashable_string'),
      // Hashed, so that callers of one account do not share what is opened for one of them.
      state(SOURCE_ADDRESS, '%DOWNSTREAM_REMOTE_ADDRESS%', 'envoy.hashable_string'),
      state(PEER_ADDRESS_STATE, '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%', 'envoy.string'),
    ],
  }));
}

function state(key: string, format: string, factory_key = ''): FilterStateValue {
  return FilterStateValue.fromPartial({
    key: { $case: 'object_key', value: key },
    factory_key,
    value: { $case: 'format_string', value: { format: { $case: 'text_format_source', value: { specifier: { $case: 'inline_string', value: format } } } } },
    shared_with_upstream: FilterStateValue_SharedWithUpstream.ONCE,
  });
}

function toApplication({ uid, netnsPath }: TunnelledPod): Cluster {
  return boundTo(netnsPath, Cluster.fromPartial({
    name: podClusterName(uid, 'hbone'),
    cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.ORIGINAL_DST },
    lb_policy: Cluster_LbPolicy.CLUSTER_PROVIDED,
    // No other header counts: without a name of its own there is one that callers may set.
    lb_config: { $case: 'original_dst_lb_config', value: { use_http_header: true, http_header_name: AUTHORITY } },
    connect_timeout: { seconds: CONNECT_TIMEOUT_SECONDS, nanos: 0 },
    circuit_breakers: unlimited,
  }));
}

/** Under another name than the direct way: tunnels that are open when a policy begins to count are drained with their listener's chain. */
function throughPolicy({ uid }: TunnelledPod, inbound: string): Cluster {
  const name = podClusterName(uid, 'hbone-policy');
  const internal = InternalUpstreamTransport.fromPartial({});
  internal.transport_socket = RAW_BUFFER;
  return Cluster.fromPartial({
    name,
    cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.STATIC },
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [{ host_identifier: { $case: 'endpoint', value: { address: internalAddress(inbound) } } }] }] },
    connect_timeout: { seconds: CONNECT_TIMEOUT_SECONDS, nanos: 0 },
    circuit_breakers: unlimited,
    transport_socket: { name: 'envoy.transport_sockets.internal_upstream', config_type: typed(pack(InternalUpstreamTransport, internal)) },
  });
}
