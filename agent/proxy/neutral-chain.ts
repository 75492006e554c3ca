/**
 * Whether a chain of a pod's inbound side only passes on what comes, so that callers may as well go straight to the
 * application. Everything that a control plane, or somebody's EnvoyFilter, adds to the common shape is a reason not to.
 */
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { Route, RouteAction, RouteMatch, VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { HTTPFault } from '../../proto/generated/envoy/extensions/filters/http/fault/v3/fault.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { unpack } from '../../common/xds/any.js';
import { configType } from './extensions.js';

/** Filters of every workload's inbound side: they decide nothing about who may call, so they alone are no reason to stand in the way. */
const NEUTRAL: ReadonlySet<string> = new Set([
  'envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager', 'envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy',
  'envoy.extensions.filters.network.set_filter_state.v3.Config', 'envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy',
  'envoy.extensions.filters.http.grpc_stats.v3.FilterConfig', 'envoy.extensions.filters.http.cors.v3.Cors', 'envoy.extensions.filters.http.router.v3.Router',
  'stats.PluginConfig', 'io.istio.http.peer_metadata.Config', 'envoy.tcp.metadataexchange.config.MetadataExchange', 'istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig',
]);

/** What is to be seen on the workload's side, by spans or lines of a log, is seen there alone. */
export function isNeutralChain({ filters }: FilterChain): boolean {
  return filters.every(({ config_type }) => {
    if (config_type?.$case !== 'typed_config' || !isNeutral(config_type.value)) return false;
    const manager = unpack(HttpConnectionManager, config_type.value);
    if (manager && (manager.tracing?.provider || manager.access_log.length > 0)) return false;
    if (!manager && unpack(TcpProxy, config_type.value)?.access_log.length) return false;
    return !manager || (manager.http_filters.every((filter) => filter.config_type?.$case !== 'typed_config' || isNeutral(filter.config_type.value)) && hasPlainRoutes(manager));
  });
}

export function isNeutral(config: Any): boolean {
  return NEUTRAL.has(configType(config)) || (unpack(HTTPFault, config) !== undefined && config.value.length === 0);
}

/** One route for all requests, with nothing but names and time-outs. */
export function hasPlainRoutes({ route_specifier: specifier }: Pick<HttpConnectionManager, 'route_specifier'>): boolean {
  if (specifier?.$case !== 'route_config') return specifier === undefined;
  const routes = specifier.value;
  if (!isEmpty(RouteConfiguration, { ...routes, name: '', validate_clusters: undefined, virtual_hosts: [] })) return false;
  return routes.virtual_hosts.every((host) => isEmpty(VirtualHost, { ...host, name: '', domains: [], routes: [] }) && host.routes.every(isPlainRoute));
}

export function isPlainRoute(route: Route): boolean {
  const { match, action } = route;
  if (!isEmpty(Route, { ...route, name: '', match: undefined, decorator: undefined, action: undefined })) return false;
  if (!match || !isEmpty(RouteMatch, { ...match, path_specifier: undefined }) || match.path_specifier?.$case !== 'prefix' || match.path_specifier.value !== '/') return false;
  return action?.$case === 'route' && isEmpty(RouteAction, { ...action.value, cluster_specifier: undefined, timeout: undefined, max_grpc_timeout: undefined, max_stream_duration: undefined, retry_policy: undefined });
}

/** Nothing set, in fields that the protos here lack neither. */
export function isEmpty<T>(type: { encode(message: T): { finish(): Uint8Array } }, message: T): boolean {
  return type.encode(message).finish().length === 0;
}
