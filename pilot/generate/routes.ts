/**
 * RDS. A route configuration is named by its port (`80`), with one virtual host a service or VirtualService host, or by
 * `host:port` for a port whose protocol is sniffed. Names, order and defaults are istiod's.
 */
import { PreviousHostsPredicate } from '../../proto/generated/envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import {
  HeaderMatcher,
  QueryParameterMatcher,
  RetryPolicy,
  Route,
  RouteAction,
  RouteMatch,
  VirtualHost,
} from '../../proto/generated/envoy/config/route/v3/route_components.js';
import type { StringMatcher } from '../../proto/generated/envoy/type/matcher/v3/string.js';
import { pack } from '../../common/xds/any.js';
import { parseDurationMs } from '../../common/kube/schema.js';
import type { HttpMatchRequest, HttpRetry, HttpRoute, StringMatch, VirtualService } from '../../common/kube/types.js';
import { hostMatches } from '../model/hosts.js';
import type { MeshService } from '../model/model.js';
import { isHttp } from '../model/protocol.js';
import type { Proxy } from '../model/proxy.js';
import type { Scope } from '../model/scope.js';
import { configPath } from './clusters.js';
import { millis, seconds } from './envoy.js';
import { clusterName, parseClusterName } from './names.js';
import { makeResource, type Resource } from './resource.js';
import { appliesToMesh, destinationCluster, sourceMatches } from './route-match.js';

const RETRY_ON = 'connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes';
const DEFAULT_RETRIES = 2;

/** The route configuration of that name for this client; an unknown name has an empty one, as istiod answers. */
export function routeConfiguration(scope: Scope, proxy: Proxy, name: string): Resource {
  const sniffed = /^(.+):(\d+)$/.exec(name);
  let virtual_hosts: VirtualHost[] = [];
  if (sniffed) {
    const service = scope.service(sniffed[1]!);
    const port = Number(sniffed[2]);
    if (service?.ports.some((candidate) => candidate.port === port)) {
      virtual_hosts = [virtualHost(serviceRoutes(scope, proxy, service, port), `${service.host}:${port}`, ['*'])];
    }
  } else if (/^\d+$/.test(name)) {
    virtual_hosts = portVirtualHosts(scope, proxy, Number(name));
  }
  return makeResource(
    name,
    RouteConfiguration,
    RouteConfiguration.fromPartial({ name, virtual_hosts, validate_clusters: false, ignore_port_in_host_matching: true, max_direct_response_body_size_bytes: 1_048_576 }),
  );
}

const virtualHost = (routes: Route[], name: string, domains: string[]): VirtualHost => VirtualHost.fromPartial({ name, domains, routes, include_request_attempt_count: true });

function portVirtualHosts(scope: Scope, proxy: Proxy, port: number): VirtualHost[] {
  const services = scope.services.filter((service) => service.ports.some((candidate) => candidate.port === port && isHttp(candidate.protocol)));
  const hosts = services.map((service) => virtualHost(serviceRoutes(scope, proxy, service, port), `${service.host}:${port}`, domains(service, proxy, scope.model.mesh.clusterDomain)));
  hosts.push(...foreignVirtualHosts(scope, proxy, port));
  hosts.sort((a, b) => (a.name < b.name ? -1 : 1));
  // Envoy refuses a configuration that names a domain twice: the first keeps it.
  const seen = new Set<string>();
  const unique = hosts.flatMap((host) => {
    host.domains = host.domains.filter((domain) => !seen.has(domain.toLowerCase()) && seen.add(domain.toLowerCase()));
    return host.domains.length > 0 ? [host] : [];
  });
  if (!seen.has('*')) unique.push(fallbackVirtualHost(scope));
  return unique;
}

function fallbackVirtualHost(scope: Scope): VirtualHost {
  if (scope.outboundTrafficPolicy === 'REGISTRY_ONLY') {
    const route = Route.fromPartial({ name: 'block_all', match: { path_specifier: { $case: 'prefix', value: '/' } }, action: { $case: 'direct_response', value: { status: 502 } } });
    return virtualHost([route], 'block_all', ['*']);
  }
  const action = RouteAction.fromPartial({ cluster_specifier: { $case: 'cluster', value: 'PassthroughCluster' }, timeout: seconds(0), max_grpc_timeout: seconds(0) });
  const route = Route.fromPartial({ name: 'allow_any', match: { path_specifier: { $case: 'prefix', value: '/' } }, action: { $case: 'route', value: action } });
  return virtualHost([route], 'allow_any', ['*']);
}

/** Every name under which a client may ask for the service: short forms as its namespace's DNS search resolves them. */
export function domains(service: MeshService, proxy: Proxy, clusterDomain: string): string[] {
  const { host, name, namespace, addresses } = service;
  const forms = [host, `${host}.`];
  const short = proxy.namespace === namespace ? [name, `${name}.${namespace}.svc`, `${name}.${namespace}`] : [`${name}.${namespace}`, `${name}.${namespace}.svc`];
  if (host === `${name}.${namespace}.svc.${clusterDomain}`) forms.push(...short);
  // A pod of a headless service is asked for by its own name.
  if (service.headless) forms.push(...forms.filter((form) => form !== name || proxy.namespace === namespace).map((form) => `*.${form}`));
  return [...forms, ...addresses.map((address) => (address.includes(':') ? `[${address}]` : address))];
}

/** VirtualService hosts that are no service: Istio serves them on port 80. */
function foreignVirtualHosts(scope: Scope, proxy: Proxy, port: number): VirtualHost[] {
  if (port !== 80) return [];
  const hosts = new Map<string, VirtualHost>();
  for (const { object } of scope.virtualServices) {
    if (!appliesToMesh(object.spec.gateways) || !object.spec.http?.length) continue;
    for (const written of (object.spec.hosts ?? [])) {
      const host = scope.model.resolve(written, object);
      if (scope.service(host) || hosts.has(host)) continue;
      if (host.startsWith('*') && scope.services.some((service) => hostMatches(host, service.host))) continue;
      hosts.set(host, virtualHost(virtualServiceRoutes(scope, proxy, object, host, port), `${host}:${port}`, host.startsWith('*') ? [host] : [host, `${host}.`]));
    }
  }
  return [...hosts.values()];
}

function serviceRoutes(scope: Scope, proxy: Proxy, service: MeshService, port: number): Route[] {
  for (const { object } of scope.virtualServicesFor(service.host)) {
    if (!appliesToMesh(object.spec.gateways) || !object.spec.http?.length) continue;
    return virtualServiceRoutes(scope, proxy, object, service.host, port);
  }
  return [defaultRoute(service.host, port)];
}

function defaultRoute(host: string, port: number): Route {
  return Route.fromPartial({
    name: 'default',
    match: { path_specifier: { $case: 'prefix', value: '/' } },
    decorator: { operation: `${host}:${port}/*` },
    action: { $case: 'route', value: routeAction([{ name: clusterName(port, '', host), weight: 0 }], undefined, undefined) },
  });
}

function virtualServiceRoutes(scope: Scope, proxy: Proxy, object: VirtualService, _host: string, port: number): Route[] {
  const routes: Route[] = [];
  for (const http of object.spec.http ?? []) {
    const matches: (HttpMatchRequest | undefined)[] = http.match?.length ? http.match : [undefined];
    for (const match of matches) {
      if (match && (!sourceMatches(match, proxy) || (match.port !== undefined && match.port !== port))) continue;
      const route = httpRoute(scope, object, http, match, port);
      routes.push(route);
      // Nothing behind a route that takes everything can be reached.
      if (isCatchAll(route.match!)) return routes;
    }
  }
  return routes;
}

function httpRoute(scope: Scope, object: VirtualService, http: HttpRoute, match: HttpMatchRequest | undefined, port: number): Route {
  const destinations = (http.route ?? []).map(({ destination, weight }) => ({ name: destinationCluster(scope, object, destination, port), weight: weight ?? 0 }));
  const path = match?.uri;
  const operationHost = destinations.length === 1 ? parseClusterName(destinations[0]!.name)!.host : object.metadata.name;
  const operationPath = path?.exact ?? path?.regex ?? `${path?.prefix ?? '/'}*`;
  return Route.fromPartial({
    name: [http.name, match?.name].filter((part) => part).join('.'),
    match: routeMatch(match),
    metadata: { filter_metadata: { istio: { config: configPath({ ...object }, 'virtual-service') } } },
    decorator: { operation: `${operationHost}:${port}${operationPath}` },
    action: { $case: 'route', value: routeAction(destinations, http.timeout, http.retries) },
  });
}

function routeAction(destinations: readonly { name: string; weight: number }[], timeout: string | undefined, retries: HttpRetry | undefined): RouteAction {
  // No timeout unless one is asked for: Istio's default, and Envoy's word for it is zero.
  const limit = millis((timeout && parseDurationMs(timeout)) || 0);
  const weighted = destinations.filter(({ weight }) => weight > 0);
  const policy = retryPolicy(retries);
  return RouteAction.fromPartial({
    cluster_specifier: destinations.length === 1 ? { $case: 'cluster', value: destinations[0]!.name } : { $case: 'weighted_clusters', value: { clusters: weighted } },
    timeout: limit,
    max_grpc_timeout: limit,
    ...(policy ? { retry_policy: policy } : {}),
  });
}

function retryPolicy(retries: HttpRetry | undefined): RetryPolicy | undefined {
  if (retries?.attempts === 0) return undefined;
  const policy = RetryPolicy.fromPartial({
    retry_on: RETRY_ON,
    num_retries: retries?.attempts ?? DEFAULT_RETRIES,
    // A retry goes to another endpoint than the last attempt's; it gives up looking for one after five draws.
    host_selection_retry_max_attempts: 5n,
    retry_host_predicate: [
      {
        name: 'envoy.retry_host_predicates.previous_hosts',
        config_type: { $case: 'typed_config', value: pack(PreviousHostsPredicate, PreviousHostsPredicate.fromPartial({})) },
      },
    ],
  });
  if (retries?.perTryTimeout) policy.per_try_timeout = millis(parseDurationMs(retries.perTryTimeout) ?? 0);
  if (retries?.retryOn) {
    const words = retries.retryOn.split(',').map((word) => word.trim()).filter((word) => word !== '');
    policy.retriable_status_codes = words.filter((word) => /^\d+$/.test(word)).map(Number);
    const conditions = words.filter((word) => !/^\d+$/.test(word));
    if (policy.retriable_status_codes.length > 0 && !conditions.includes('retriable-status-codes')) conditions.push('retriable-status-codes');
    policy.retry_on = conditions.join(',');
  }
  return policy;
}

/** No conditions but perhaps that the path begins with a slash, which every path does. */
function isCatchAll({ path_specifier, headers, query_parameters }: RouteMatch): boolean {
  if (headers.length > 0 || query_parameters.length > 0) return false;
  return (path_specifier?.$case === 'prefix' && path_specifier.value === '/') || (path_specifier?.$case === 'safe_regex' && path_specifier.value.regex === '.*');
}

function routeMatch(match: HttpMatchRequest | undefined): RouteMatch {
  const result = RouteMatch.fromPartial({ path_specifier: { $case: 'prefix', value: '/' } });
  if (!match) return result;
  result.case_sensitive = !match.ignoreUriCase;
  if (match.uri?.exact !== undefined) result.path_specifier = { $case: 'path', value: match.uri.exact };
  else if (match.uri?.prefix !== undefined) result.path_specifier = { $case: 'prefix', value: match.uri.prefix };
  else if (match.uri?.regex !== undefined) result.path_specifier = { $case: 'safe_regex', value: { regex: match.uri.regex, engine_type: undefined } };
  for (const [name, value] of sorted(match.headers)) result.headers.push(headerMatcher(name, value));
  for (const [name, value] of sorted(match.withoutHeaders)) {
    const matcher = headerMatcher(name, value);
    matcher.invert_match = true;
    // "Not this value" holds for a header that is absent; "not present" says so by itself.
    matcher.treat_missing_header_as_empty = matcher.header_match_specifier?.$case === 'string_match';
    result.headers.push(matcher);
  }
  if (match.method) result.headers.push(headerMatcher(':method', match.method));
  if (match.authority) result.headers.push(headerMatcher(':authority', match.authority));
  if (match.scheme) result.headers.push(headerMatcher(':scheme', match.scheme));
  for (const [name, value] of sorted(match.queryParams)) {
    const matcher = stringMatcher(value);
    result.query_parameters.push(
      QueryParameterMatcher.fromPartial({
        name,
        query_parameter_match_specifier: matcher ? { $case: 'string_match', value: matcher } : { $case: 'present_match', value: true },
      }),
    );
  }
  return result;
}

function headerMatcher(name: string, value: StringMatch): HeaderMatcher {
  const matcher = stringMatcher(value);
  return HeaderMatcher.fromPartial({ name, header_match_specifier: matcher ? { $case: 'string_match', value: matcher } : { $case: 'present_match', value: true } });
}

/** Undefined for an empty match, which asks for presence only. */
function stringMatcher(value: StringMatch): StringMatcher | undefined {
  if (value.exact !== undefined) return { match_pattern: { $case: 'exact', value: value.exact }, ignore_case: false };
  if (value.prefix !== undefined) return { match_pattern: { $case: 'prefix', value: value.prefix }, ignore_case: false };
  if (value.regex !== undefined) return { match_pattern: { $case: 'safe_regex', value: { regex: value.regex, engine_type: undefined } }, ignore_case: false };
  return undefined;
}

function sorted(map: Record<string, StringMatch> | undefined): [string, StringMatch][] {
  return Object.entries(map ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
}
