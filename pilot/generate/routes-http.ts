/**
 * The `http` part of a VirtualService as Envoy routes, for workloads and gateways alike. Names, order and defaults are
 * istiod's.
 */
import type { Destination, HttpMatchRequest, HttpRedirect, HttpRoute, HttpRouteDestination, VirtualService } from '../../common/kube/types.js';
import { parseDurationMs } from '../../common/kube/schema.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import {
  DirectResponseAction,
  RedirectAction,
  RedirectAction_RedirectResponseCode,
  Route,
  RouteAction,
  RouteAction_ClusterNotFoundResponseCode,
  RouteAction_RequestMirrorPolicy,
  WeightedCluster_ClusterWeight,
  type RouteMatch,
} from '../../proto/generated/envoy/config/route/v3/route_components.js';
import type { RegexMatchAndSubstitute } from '../../proto/generated/envoy/type/matcher/v3/regex.js';
import type { Scope } from '../model/scope.js';
import { configPath } from './clusters.js';
import { millis, seconds } from './envoy.js';
import { clusterName, parseClusterName } from './names.js';
import { fractionalPercent, headerEdits, perFilterConfig, runtimePercent, wholePercent } from './routes-filters.js';
import { destinationHash, hashPolicy, serviceHash } from './routes-hash.js';
import { retryPolicy } from './routes-retry.js';
import { destinationCluster, httpSourceMatches, isCatchAll, routeMatch, type RouteSource } from './route-match.js';

/** A rule of the Gateway API's routes. */
export interface GatewayHttpRoute extends HttpRoute {
  /** Of a GRPCRoute: what leads nowhere is UNAVAILABLE (503 to HTTP), where an HTTPRoute says 500. */
  isGrpc?: true;
}

export interface RouteOptions {
  /** The listener terminates TLS: what a redirect's default port is. */
  tls?: boolean;
}

/** Marks VirtualServices that are made from Gateway API routes, whose prefixes and rewrites count by path segments. */
export const ROUTE_SEMANTICS_ANNOTATION = 'internal.istio.io/route-semantics';
export const hasGatewaySemantics = ({ metadata }: VirtualService): boolean => metadata.annotations?.[ROUTE_SEMANTICS_ANNOTATION] === 'gateway';

/** All requests to the service's endpoints: of a service that no VirtualService routes. */
export function defaultRoute(scope: Scope, host: string, port: number): Route {
  return Route.fromPartial({
    name: 'default',
    match: { path_specifier: { $case: 'prefix', value: '/' } },
    decorator: { operation: `${host}:${port}/*` },
    action: {
      $case: 'route',
      value: RouteAction.fromPartial({
        cluster_specifier: { $case: 'cluster', value: clusterName(port, '', host) },
        hash_policy: hashPolicy(serviceHash(scope, host, port)),
        ...timeouts(undefined),
        ...retries(scope, undefined, false),
      }),
    },
  });
}

/** Those of the VirtualService's routes that are for this source, in their order; none when no route is. */
export function virtualServiceRoutes(scope: Scope, source: RouteSource, { object }: LoadedObject<VirtualService>, options: RouteOptions = {}): Route[] {
  const routes: Route[] = [];
  for (const http of object.spec.http ?? []) {
    const matches: (HttpMatchRequest | undefined)[] = http.match?.length ? http.match : [undefined];
    for (const match of matches) {
      if (match && !httpSourceMatches(match, source)) continue;
      const route = httpRoute(scope, source, object, http, match, options);
      routes.push(route);
      // Nothing behind a route that takes everything can be reached.
      if (isCatchAll(route.match!)) return routes;
    }
  }
  return routes;
}

/** Routes of several VirtualServices in one list: what takes everything comes last, else the order stays. */
export function catchAllsLast(routes: readonly Route[]): Route[] {
  return [...routes.filter(({ match }) => !isCatchAll(match!)), ...routes.filter(({ match }) => isCatchAll(match!))];
}

function httpRoute(scope: Scope, source: RouteSource, object: VirtualService, http: HttpRoute, match: HttpMatchRequest | undefined, options: RouteOptions): Route {
  const segments = hasGatewaySemantics(object);
  const { authority, ...edits } = headerEdits(http.headers);
  const route = Route.fromPartial({
    name: [http.name ?? '', ...(match?.name ? [match.name] : [])].join('.'),
    match: routeMatch(match, segments ? 'segment' : 'string'),
    metadata: { filter_metadata: { istio: { config: configPath(object, 'virtual-service') } } },
    stat_prefix: match?.statPrefix ?? '',
    ...edits,
    typed_per_filter_config: perFilterConfig(http.fault, http.corsPolicy),
  });
  if (http.redirect) route.action = { $case: 'redirect', value: redirectAction(http.redirect, route.match!, source.port, { segments, tls: options.tls ?? false }) };
  else if (http.directResponse) route.action = { $case: 'direct_response', value: directResponse(http.directResponse) };
  else route.action = { $case: 'route', value: routeAction(scope, source, http, route, { authority, segments }) };
  route.decorator = { operation: operation(route, object.metadata.name, source.port), propagate: undefined };
  return route;
}

/** What spans are called: the only destination's host and port, else the VirtualService's name; and the path. */
function operation({ match, action }: Route, name: string, port: number): string {
  const cluster = action?.$case === 'route' && action.value.cluster_specifier?.$case === 'cluster' ? parseClusterName(action.value.cluster_specifier.value) : undefined;
  return `${cluster ? `${cluster.host}:${cluster.port}` : `${name}:${port}`}${pathText(match!)}`;
}

function pathText({ path_specifier: path }: RouteMatch): string {
  if (path?.$case === 'prefix') return `${path.value}*`;
  if (path?.$case === 'path') return path.value;
  return path?.$case === 'safe_regex' ? path.value.regex : '/*';
}

function routeAction(scope: Scope, source: RouteSource, http: HttpRoute, route: Route, { authority, segments }: { authority: string | undefined; segments: boolean }): RouteAction {
  const cluster = (destination: Destination): string => destinationCluster(scope, destination, source.port);
  const destinations = http.route ?? [];
  const only = destinations.length === 1 ? destinations[0]! : undefined;
  const hash = only && destinationHash(scope, only.destination);
  const action = RouteAction.fromPartial({
    ...timeouts(http.timeout),
    ...retries(scope, http, hash !== undefined),
    request_mirror_policies: mirrors(http, cluster),
    ...(segments && !(http as GatewayHttpRoute).isGrpc ? { cluster_not_found_response_code: RouteAction_ClusterNotFoundResponseCode.INTERNAL_SERVER_ERROR } : {}),
  });
  rewritePath(action, http, route.match!, segments);
  const host = http.rewrite?.authority || authority;
  if (host) action.host_rewrite_specifier = { $case: 'host_rewrite_literal', value: host };
  if (only) {
    action.cluster_specifier = { $case: 'cluster', value: cluster(only.destination) };
    // A destination's edits stand behind the route's own: Envoy applies them in this order.
    const edits = headerEdits(only.headers);
    for (const key of ['request_headers_to_add', 'response_headers_to_add'] as const) route[key].push(...edits[key]);
    for (const key of ['request_headers_to_remove', 'response_headers_to_remove'] as const) route[key].push(...edits[key]);
    if (edits.authority && !action.host_rewrite_specifier) action.host_rewrite_specifier = { $case: 'host_rewrite_literal', value: edits.authority };
    action.hash_policy = hashPolicy(hash);
  } else {
    const weighted = destinations.filter(({ weight }) => (weight ?? 0) > 0);
    action.cluster_specifier = { $case: 'weighted_clusters', value: weightedClusters(weighted, cluster) };
    action.hash_policy = weighted.flatMap(({ destination }) => hashPolicy(destinationHash(scope, destination)));
  }
  return action;
}

function weightedClusters(destinations: readonly HttpRouteDestination[], cluster: (destination: Destination) => string) {
  const clusters = destinations.map(({ destination, weight, headers }) => {
    const { authority, ...edits } = headerEdits(headers);
    return WeightedCluster_ClusterWeight.fromPartial({
      name: cluster(destination),
      weight: weight ?? 0,
      ...edits,
      ...(authority ? { host_rewrite_specifier: { $case: 'host_rewrite_literal', value: authority } } : {}),
    });
  });
  return { clusters, total_weight: undefined, runtime_key_prefix: '', random_value_specifier: undefined };
}

/** No timeout unless one is asked for: Istio's default, and Envoy's word for it is zero. */
function timeouts(timeout: string | undefined) {
  const limit = timeout ? millis(parseDurationMs(timeout) ?? 0) : seconds(0);
  return { timeout: limit, max_grpc_timeout: limit };
}

function retries({ model }: Scope, http: HttpRoute | undefined, hashed: boolean) {
  const policy = retryPolicy(http?.retries ?? model.mesh.defaultHttpRetryPolicy, hashed);
  return policy ? { retry_policy: policy } : {};
}

function rewritePath(action: RouteAction, { rewrite }: HttpRoute, { path_specifier }: RouteMatch, segments: boolean): void {
  if (rewrite?.uriRegexRewrite) {
    const { match, rewrite: substitution } = rewrite.uriRegexRewrite;
    action.regex_rewrite = { pattern: { regex: match, engine_type: undefined }, substitution };
  } else if (rewrite?.uri) {
    const { regex, prefix } = prefixRewrite(rewrite.uri, { path_specifier }, segments);
    if (regex) action.regex_rewrite = regex;
    else action.prefix_rewrite = prefix;
  }
}

/**
 * What stands in for the prefix of a match. Of segments all between two slashes is exchanged, where Envoy would exchange
 * letters: a prefix that goes leaves one slash, one that stands before everything needs one of its own.
 */
function prefixRewrite(uri: string, { path_specifier }: Pick<RouteMatch, 'path_specifier'>, segments: boolean): { prefix: string; regex?: RegexMatchAndSubstitute } {
  const replaced = path_specifier?.$case === 'path_separated_prefix' ? path_specifier.value : '';
  if (!segments || (uri !== '/' && replaced !== '')) return { prefix: uri };
  return uri === '/' ? { prefix: '', regex: { pattern: { regex: `^${quoteRegex(replaced)}(/?)(.*)`, engine_type: undefined }, substitution: '/\\2' } } : { prefix: `${uri}/` };
}

const quoteRegex = (text: string): string => text.replace(/[\\.+*?()|[\]{}^$]/g, '\\$&');

function mirrors({ mirror, mirrorPercent, mirrorPercentage, mirrors: several = [] }: HttpRoute, cluster: (destination: Destination) => string): RouteAction_RequestMirrorPolicy[] {
  const one = mirrorPercentage ? fractionalPercent(mirrorPercentage) : wholePercent(mirrorPercent ?? 100);
  const all = [
    ...(mirror ? [{ destination: mirror, percent: one }] : []),
    ...several.map(({ destination, percentage }) => ({ destination, percent: percentage ? fractionalPercent(percentage) : wholePercent(100) })),
  ];
  return all
    .filter(({ percent }) => percent.numerator > 0)
    // Envoy appends `-shadow` to the host, as Istio documents it.
    .map(({ destination, percent }) => RouteAction_RequestMirrorPolicy.fromPartial({ cluster: cluster(destination), runtime_fraction: runtimePercent(percent), trace_sampled: false }));
}

const { MOVED_PERMANENTLY, FOUND, SEE_OTHER, TEMPORARY_REDIRECT, PERMANENT_REDIRECT } = RedirectAction_RedirectResponseCode;
const REDIRECT_CODES: Record<number, RedirectAction_RedirectResponseCode> = { 301: MOVED_PERMANENTLY, 302: FOUND, 303: SEE_OTHER, 307: TEMPORARY_REDIRECT, 308: PERMANENT_REDIRECT };

function redirectAction(redirect: HttpRedirect, match: RouteMatch, listenPort: number, { segments, tls }: { segments: boolean; tls: boolean }): RedirectAction {
  const usual = (redirect.scheme || (tls ? 'https' : 'http')) === 'https' ? 443 : 80;
  // Envoy can't take over the request's port, but the port that this listener has is known here.
  const port = redirect.port ?? (redirect.derivePort === 'FROM_REQUEST_PORT' ? listenPort : redirect.derivePort ? usual : 0);
  // A usual port need not be written, unless the Host that was asked for has another one, which would stay.
  const isWritten = port !== usual || (!redirect.authority && listenPort !== 80 && listenPort !== 443);
  const { prefix, regex } = redirect.prefixRewrite ? prefixRewrite(redirect.prefixRewrite, match, segments) : { prefix: '', regex: undefined };
  return RedirectAction.fromPartial({
    host_redirect: redirect.authority ?? '',
    path_rewrite_specifier: regex ? { $case: 'regex_rewrite', value: regex } : prefix ? { $case: 'prefix_rewrite', value: prefix } : { $case: 'path_redirect', value: redirect.uri ?? '' },
    ...(redirect.scheme ? { scheme_rewrite_specifier: { $case: 'scheme_redirect', value: redirect.scheme } } : {}),
    port_redirect: isWritten ? port : 0,
    response_code: REDIRECT_CODES[redirect.redirectCode ?? 301] ?? MOVED_PERMANENTLY,
  });
}

function directResponse({ status, body }: NonNullable<HttpRoute['directResponse']>): DirectResponseAction {
  const specifier =
    body?.string !== undefined
      ? ({ $case: 'inline_string', value: body.string } as const)
      : body?.bytes !== undefined
        ? ({ $case: 'inline_bytes', value: Buffer.from(body.bytes, 'base64') } as const)
        : undefined;
  return DirectResponseAction.fromPartial({ status, ...(specifier ? { body: { specifier } } : {}) });
}
