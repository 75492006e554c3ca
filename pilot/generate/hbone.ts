/**
 * Where HBONE ends: mutual TLS and HTTP/2, each CONNECT a connection, on port 15008. Settings are istiod's `connect_terminate`.
 * Which authorities lead where is the routes' affair; one that no route has is answered 404, and no socket is opened for it.
 */
import { pack } from '../../common/xds/any.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { OriginalDst } from '../../proto/generated/envoy/extensions/filters/listener/original_dst/v3/original_dst.js';
import { FilterChain, Filter, ListenerFilter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { Route, VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { Router } from '../../proto/generated/envoy/extensions/filters/http/router/v3/router.js';
import { HttpConnectionManager, HttpConnectionManager_CodecType, type HttpFilter } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import type { MeshConfig } from '../model/mesh.js';
import { istioDownstreamTls, seconds } from './envoy.js';
import { CONNECT_TERMINATE } from './names.js';
import { retryPolicy } from './routes-retry.js';
import { trustDomains } from './security/trust-domains.js';

/** Peers keep few connections, each with many streams: two of them are not to share a worker while another has none. */
export const byConnection = Listener.fromPartial({ connection_balance_config: { balance_type: { $case: 'exact_balance', value: {} } } }).connection_balance_config;

export const ORIGINAL_DST = 'envoy.filters.listener.original_dst';
/** Gives a connection within Envoy the destination that it was meant for. */
export const originalDstFilter: ListenerFilter = ListenerFilter.fromPartial({ name: ORIGINAL_DST, config_type: { $case: 'typed_config', value: pack(OriginalDst, OriginalDst.fromPartial({})) } });

const CONNECT = 'CONNECT';

/** @param filters in front of the router: policies, and what tells the next listener who is calling */
export function hboneChain(mesh: MeshConfig, routes: HttpConnectionManager['route_specifier'], filters: readonly HttpFilter[]): FilterChain {
  const router: HttpFilter = { name: 'envoy.filters.http.router', is_optional: false, disabled: false, config_type: { $case: 'typed_config', value: pack(Router, Router.fromPartial({})) } };
  const manager = HttpConnectionManager.fromPartial({
    stat_prefix: CONNECT_TERMINATE,
    codec_type: HttpConnectionManager_CodecType.HTTP2,
    http_filters: [...filters, router],
    // The peer is pinged since a connection without streams would outlive one that is gone.
    http2_protocol_options: { allow_connect: true, max_concurrent_streams: 100, connection_keepalive: { interval: seconds(10), timeout: seconds(20) } },
    server_name: 'istio-envoy',
    stream_idle_timeout: seconds(0),
    upgrade_configs: [{ upgrade_type: CONNECT }],
    use_remote_address: false,
    route_specifier: routes,
  });
  return FilterChain.fromPartial({
    filters: [Filter.fromPartial({ name: 'envoy.filters.network.http_connection_manager', config_type: { $case: 'typed_config', value: pack(HttpConnectionManager, manager) } })],
    transport_socket: istioDownstreamTls(['h2'], trustDomains(mesh), 'TLSV1_3'),
    transport_socket_connect_timeout: seconds(15),
  });
}

/** What is written behind CONNECT for these authorities leads to the cluster; nothing has been sent while it can be retried. */
export function connectHost(name: string, domains: string[], cluster: string, about: Partial<Route> = {}): VirtualHost {
  const route = Route.fromPartial({
    ...about,
    match: { path_specifier: { $case: 'connect_matcher', value: {} } },
    action: { $case: 'route', value: { cluster_specifier: { $case: 'cluster', value: cluster }, timeout: seconds(0), upgrade_configs: [{ upgrade_type: CONNECT, connect_config: {} }], retry_policy: retryPolicy(undefined) } },
  });
  return VirtualHost.fromPartial({ name, domains, routes: [route] });
}

/** Ports count in these hosts. */
export function connectTable(name: string, virtual_hosts: VirtualHost[]): RouteConfiguration {
  return RouteConfiguration.fromPartial({ name, virtual_hosts, validate_clusters: false });
}
