/**
 * HTTP connection managers and network filters as istiod sets them, but for what stock Envoy lacks: `istio.stats`,
 * `istio.alpn`, `istio.metadata_exchange` (HTTP and TCP). Tracing is left out as long as no provider is configured: it
 * would put the workload's name into each listener and so keep workloads from sharing them.
 */
import { pack } from '../../common/xds/any.js';
import { Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { Cors } from '../../proto/generated/envoy/extensions/filters/http/cors/v3/cors.js';
import { HTTPFault } from '../../proto/generated/envoy/extensions/filters/http/fault/v3/fault.js';
import { FilterConfig as GrpcStats } from '../../proto/generated/envoy/extensions/filters/http/grpc_stats/v3/config.js';
import { Router } from '../../proto/generated/envoy/extensions/filters/http/router/v3/router.js';
import {
  HttpConnectionManager,
  HttpConnectionManager_ForwardClientCertDetails,
  HttpConnectionManager_PathWithEscapedSlashesAction,
  type HttpFilter,
} from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { UuidRequestIdConfig } from '../../proto/generated/envoy/extensions/request_id/uuid/v3/uuid.js';
import type { MeshConfig } from '../model/mesh.js';
import { ads, seconds } from './envoy.js';
import type { GatewayTopology } from './gateway/topology.js';

const httpFilter = <T>(name: string, codec: Parameters<typeof pack<T>>[0], message: T): HttpFilter =>
  ({ name, is_optional: false, disabled: false, config_type: { $case: 'typed_config', value: pack(codec, message) } });

const http_filters: HttpFilter[] = [
  httpFilter('envoy.filters.http.grpc_stats', GrpcStats, GrpcStats.fromPartial({ emit_filter_state: true, per_method_stat_specifier: { $case: 'stats_for_all_methods', value: false } })),
  httpFilter('envoy.filters.http.fault', HTTPFault, HTTPFault.fromPartial({})),
  httpFilter('envoy.filters.http.cors', Cors, Cors.fromPartial({})),
  httpFilter('envoy.filters.http.router', Router, Router.fromPartial({})),
];

const { KEEP_UNCHANGED, UNESCAPE_AND_FORWARD } = HttpConnectionManager_PathWithEscapedSlashesAction;

/** Paths as policies and routes judge them, and as they go on. */
const NORMALIZATION = {
  NONE: { normalize_path: false, path_with_escaped_slashes_action: KEEP_UNCHANGED },
  BASE: { normalize_path: true, path_with_escaped_slashes_action: KEEP_UNCHANGED },
  MERGE_SLASHES: { normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: KEEP_UNCHANGED },
  DECODE_AND_MERGE_SLASHES: { normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD },
};

const common = {
  http_filters,
  proxy_100_continue: true,
  request_id_extension: { typed_config: pack(UuidRequestIdConfig, UuidRequestIdConfig.fromPartial({ use_request_id_for_trace_sampling: true })) },
  // No limit of Envoy's own: a stream may be idle as long as the application likes.
  stream_idle_timeout: seconds(0),
  upgrade_configs: [{ upgrade_type: 'websocket' }],
  use_remote_address: false,
};

const managerFilter = (manager: HttpConnectionManager): Filter =>
  Filter.fromPartial({ name: 'envoy.filters.network.http_connection_manager', config_type: { $case: 'typed_config', value: pack(HttpConnectionManager, manager) } });

export function outboundHttp({ pathNormalization }: MeshConfig, listener: string, routeName: string): Filter {
  return managerFilter(
    HttpConnectionManager.fromPartial({
      ...common,
      ...NORMALIZATION[pathNormalization],
      stat_prefix: `outbound_${listener};`,
      route_specifier: { $case: 'rds', value: { route_config_name: routeName, config_source: ads } },
    }),
  );
}

/** @param policies filters that stand before all others */
export function inboundHttp({ pathNormalization }: MeshConfig, statPrefix: string, routes: RouteConfiguration, http2 = false, policies: readonly HttpFilter[] = []): Filter {
  return managerFilter(
    HttpConnectionManager.fromPartial({
      ...common,
      ...NORMALIZATION[pathNormalization],
      http_filters: [...policies, ...http_filters],
      ...(http2 ? { http2_protocol_options: {} } : {}),
      stat_prefix: `${statPrefix};`,
      server_name: 'istio-envoy',
      forward_client_cert_details: HttpConnectionManager_ForwardClientCertDetails.APPEND_FORWARD,
      set_current_client_cert_details: { subject: true, dns: true, uri: true },
      route_specifier: { $case: 'route_config', value: routes },
    }),
  );
}

const { SANITIZE, FORWARD_ONLY, APPEND_FORWARD, SANITIZE_SET, ALWAYS_FORWARD_ONLY } = HttpConnectionManager_ForwardClientCertDetails;
const FORWARDING: Record<string, HttpConnectionManager_ForwardClientCertDetails> = { SANITIZE, FORWARD_ONLY, APPEND_FORWARD, SANITIZE_SET, ALWAYS_FORWARD_ONLY };

/** Of a gateway: the client's address and certificate are what is seen here, whatever the request says of them, unless it stands behind others. */
export function gatewayHttp({ pathNormalization }: MeshConfig, listener: string, routeName: string, policies: readonly HttpFilter[], { numTrustedProxies = 0, forwardClientCertDetails = '' }: GatewayTopology): Filter {
  const forward = FORWARDING[forwardClientCertDetails] ?? SANITIZE_SET;
  return managerFilter(
    HttpConnectionManager.fromPartial({
      ...common,
      ...NORMALIZATION[pathNormalization],
      http_filters: [...policies, ...http_filters],
      stat_prefix: `outbound_${listener};`,
      server_name: 'istio-envoy',
      use_remote_address: true,
      ...(numTrustedProxies > 0 ? { xff_num_trusted_hops: numTrustedProxies } : {}),
      http_protocol_options: {},
      forward_client_cert_details: forward,
      ...(forward === SANITIZE_SET || forward === APPEND_FORWARD ? { set_current_client_cert_details: { subject: true, cert: true, dns: true, uri: true } } : {}),
      route_specifier: { $case: 'rds', value: { route_config_name: routeName, config_source: ads } },
    }),
  );
}

/** Of a waypoint: behind the end of a tunnel, where filter state has who is calling. */
export function waypointHttp({ pathNormalization }: MeshConfig, statPrefix: string, routeName: string, policies: readonly HttpFilter[]): Filter {
  return managerFilter(
    HttpConnectionManager.fromPartial({
      ...common,
      ...NORMALIZATION[pathNormalization],
      http_filters: [...policies, ...http_filters],
      stat_prefix: `${statPrefix};`,
      server_name: 'istio-envoy',
      route_specifier: { $case: 'rds', value: { route_config_name: routeName, config_source: ads } },
    }),
  );
}

export function tcpProxy(cluster: string): Filter {
  const config = TcpProxy.fromPartial({ stat_prefix: cluster, cluster_specifier: { $case: 'cluster', value: cluster } });
  return Filter.fromPartial({ name: 'envoy.filters.network.tcp_proxy', config_type: { $case: 'typed_config', value: pack(TcpProxy, config) } });
}

/** Connections go to one of several clusters, by weight. */
export function weightedTcpProxy(statPrefix: string, clusters: readonly { name: string; weight: number }[]): Filter {
  const config = TcpProxy.fromPartial({ stat_prefix: statPrefix, cluster_specifier: { $case: 'weighted_clusters', value: { clusters: [...clusters] } } });
  return Filter.fromPartial({ name: 'envoy.filters.network.tcp_proxy', config_type: { $case: 'typed_config', value: pack(TcpProxy, config) } });
}
