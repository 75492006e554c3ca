/** Rules of HTTPRoute and GRPCRoute as a VirtualService's, and the order that the Gateway API gives them. */
import type {
  BackendObjectReference,
  BackendRef,
  GRPCRoute,
  GRPCRouteMatch,
  HTTPBackendRef,
  HTTPHeaderFilter,
  HTTPRoute,
  HTTPRouteFilter,
  HTTPRouteMatch,
  HTTPRouteRule,
  Headers,
  HttpMatchRequest,
  HttpRoute,
  HttpRouteDestination,
  RouteDestination,
  StringMatch,
  TypedMatch,
} from '../../common/kube/types.js';
import type { GatewayHttpRoute } from '../generate/routes-http.js';
import { namespaceOf } from './parents.js';

/** A cluster of this host is never there: its share of the requests is answered with 500, of gRPC with UNAVAILABLE, as the Gateway API demands. */
export const INVALID_BACKEND_HOST = 'invalid-backend.invalid';

export interface BackendTarget {
  host: string;
  port: number | undefined;
}

export type ResolveBackend = (reference: BackendObjectReference) => BackendTarget | 'RefNotPermitted' | 'BackendNotFound' | 'InvalidKind';

export interface ConvertedRule {
  route: GatewayHttpRoute;
  /** For the order between rules of one host: higher comes first, field by field. */
  precedence: readonly number[];
  createdAt: string;
  /** `namespace/name` of the route. */
  owner: string;
  index: number;
}

const stringMatch = ({ type = 'Exact', value }: TypedMatch): StringMatch => (type === 'RegularExpression' ? { regex: value } : { exact: value });

/** Of several entries with one name the first counts. */
function firstByName<T extends { name: string }, V>(entries: readonly T[] = [], valueOf: (entry: T) => V): Record<string, V> {
  const found: Record<string, V> = {};
  for (const entry of entries) if (!Object.hasOwn(found, entry.name)) found[entry.name] = valueOf(entry);
  return found;
}

/** Names of headers know no case. */
const lowerCase = <T extends { name: string }>(entries: readonly T[] = []): T[] => entries.map((entry) => ({ ...entry, name: entry.name.toLowerCase() }));

export function httpMatch({ path, headers, queryParams, method }: HTTPRouteMatch): HttpMatchRequest {
  const { type = 'PathPrefix', value = '/' } = path ?? {};
  const isAnyPath = type === 'PathPrefix' && value === '/';
  return {
    // A prefix is made of whole segments, with or without a slash at its end.
    ...(isAnyPath ? {} : { uri: type === 'Exact' ? { exact: value } : type === 'RegularExpression' ? { regex: value } : { prefix: value.replace(/\/$/, '') } }),
    ...(headers?.length ? { headers: firstByName(lowerCase(headers), stringMatch) } : {}),
    ...(queryParams?.length ? { queryParams: firstByName(queryParams, stringMatch) } : {}),
    ...(method ? { method: { exact: method } } : {}),
  };
}

/**
 * Exact paths, then prefixes by length, regular expressions (as Istio has it), methods of gRPC left open; then a method, more
 * headers, more query parameters. What takes everything comes last: nothing behind it would be reached.
 */
function precedenceOf({ path }: HTTPRouteMatch, { uri, method, headers = {}, queryParams = {} }: HttpMatchRequest): number[] {
  const text = uri?.exact ?? uri?.prefix ?? uri?.regex ?? (path ? '/' : '');
  const kind = uri?.exact !== undefined ? 3 : uri?.regex !== undefined ? 1 : path ? 2 : 0;
  const conditions = [method ? 1 : 0, Object.keys(headers).length, Object.keys(queryParams).length];
  return [uri || conditions.some((count) => count > 0) ? 1 : 0, kind, text.length, ...conditions];
}

export function grpcMatch({ method, headers }: GRPCRouteMatch): HTTPRouteMatch {
  const { type = 'Exact', service, method: name } = method ?? {};
  const common = headers?.length ? { headers } : {};
  if (!service && !name) return common;
  if (type === 'RegularExpression') return { ...common, path: { type: 'RegularExpression', value: `/${service || '[^/]+'}/${name || '[^/]+'}` } };
  if (service && name) return { ...common, path: { type: 'Exact', value: `/${service}/${name}` } };
  return { ...common, path: service ? { type: 'PathPrefix', value: `/${service}` } : { type: 'RegularExpression', value: `/[^/]+/${name!.replace(/[\\.+*?()|[\]{}^$]/g, '\\$&')}` } };
}

function headerOperations({ set = [], add = [], remove = [] }: HTTPHeaderFilter): { set?: Record<string, string>; add?: Record<string, string>; remove?: string[] } {
  const map = (list: readonly { name: string; value: string }[]): Record<string, string> => firstByName(lowerCase(list), ({ value }) => value);
  return { ...(set.length > 0 ? { set: map(set) } : {}), ...(add.length > 0 ? { add: map(add) } : {}), ...(remove.length > 0 ? { remove } : {}) };
}

function headersOf(filters: readonly HTTPRouteFilter[]): { headers?: Headers } {
  const headers: Headers = {};
  for (const { type, requestHeaderModifier, responseHeaderModifier } of filters) {
    if (type === 'RequestHeaderModifier' && requestHeaderModifier) headers.request = headerOperations(requestHeaderModifier);
    if (type === 'ResponseHeaderModifier' && responseHeaderModifier) headers.response = headerOperations(responseHeaderModifier);
  }
  return headers.request || headers.response ? { headers } : {};
}

export interface ConversionContext {
  resolve: ResolveBackend;
  /** Told of each backend that can't be resolved. */
  unresolved: (reason: string) => void;
}

function destination(reference: BackendObjectReference, { resolve, unresolved }: ConversionContext): HttpRouteDestination['destination'] {
  const target = resolve(reference);
  if (typeof target === 'string') {
    unresolved(target);
    return { host: INVALID_BACKEND_HOST, port: { number: reference.port ?? 80 } };
  }
  return { host: target.host, ...(target.port === undefined ? {} : { port: { number: target.port } }) };
}

function destinations(backends: readonly HTTPBackendRef[], context: ConversionContext): HttpRouteDestination[] {
  const weighted = backends.filter(({ weight = 1 }) => weight > 0);
  return weighted.map((backend) => ({
    destination: destination(backend, context),
    ...(weighted.length > 1 ? { weight: backend.weight ?? 1 } : {}),
    ...headersOf(backend.filters ?? []),
  }));
}

/** Destinations of connections, by weight. With no weight at all every connection is refused, as what can't be led anywhere is. */
export function l4Destinations(backends: readonly BackendRef[] = [], context: ConversionContext): RouteDestination[] {
  const found = destinations(backends, context);
  return found.length > 0 ? found : [{ destination: { host: INVALID_BACKEND_HOST, port: { number: 80 } } }];
}

/** A slash at the end says nothing; without anything else the prefix goes. */
const prefixOf = ({ replacePrefixMatch = '' }: { replacePrefixMatch?: string }): string => replacePrefixMatch.replace(/\/$/, '') || '/';

function redirectOf({ scheme, hostname, path, port, statusCode = 302 }: NonNullable<HTTPRouteFilter['requestRedirect']>): HttpRoute['redirect'] {
  return {
    ...(hostname ? { authority: hostname } : {}),
    ...(scheme ? { scheme } : {}),
    // Without scheme and port the listener's port stays; another scheme has its own.
    ...(port === undefined ? { derivePort: scheme ? ('FROM_PROTOCOL_DEFAULT' as const) : ('FROM_REQUEST_PORT' as const) } : { port }),
    ...(path?.type === 'ReplaceFullPath' ? { uri: path.replaceFullPath ?? '/' } : {}),
    ...(path?.type === 'ReplacePrefixMatch' ? { prefixRewrite: prefixOf(path) } : {}),
    redirectCode: statusCode,
  } as HttpRoute['redirect'];
}

/** The filters and backends of one rule. */
function actionsOf(rule: HTTPRouteRule, isGrpc: boolean, context: ConversionContext): Partial<GatewayHttpRoute> {
  const filters = rule.filters ?? [];
  const actions: Partial<HttpRoute> = { ...headersOf(filters) };
  for (const { type, requestRedirect, urlRewrite, requestMirror, cors } of filters) {
    if (type === 'RequestRedirect' && requestRedirect) actions.redirect = redirectOf(requestRedirect)!;
    if (type === 'URLRewrite' && urlRewrite) {
      const { hostname, path } = urlRewrite;
      actions.rewrite = {
        ...(hostname ? { authority: hostname } : {}),
        ...(path?.type === 'ReplacePrefixMatch' ? { uri: prefixOf(path) } : {}),
        ...(path?.type === 'ReplaceFullPath' ? { uriRegexRewrite: { match: '/.*', rewrite: path.replaceFullPath || '/' } } : {}),
      };
    }
    if (type === 'RequestMirror' && requestMirror) {
      const { backendRef, percent, fraction } = requestMirror;
      const value = fraction ? (100 * fraction.numerator) / (fraction.denominator ?? 100) : (percent ?? 100);
      const copies = destination(backendRef, context);
      if (copies.host !== INVALID_BACKEND_HOST) actions.mirrors = [...(actions.mirrors ?? []), { destination: copies, percentage: { value } }];
    }
    if (type === 'CORS' && cors) {
      actions.corsPolicy = {
        allowOrigins: (cors.allowOrigins ?? []).map((origin) => (origin.includes('*') ? { regex: origin.split('*').map((part) => part.replace(/[\\.+?()|[\]{}^$]/g, '\\$&')).join('.*') } : { exact: origin })),
        ...(cors.allowMethods ? { allowMethods: cors.allowMethods } : {}),
        ...(cors.allowHeaders ? { allowHeaders: cors.allowHeaders } : {}),
        ...(cors.exposeHeaders ? { exposeHeaders: cors.exposeHeaders } : {}),
        ...(cors.maxAge === undefined ? {} : { maxAge: `${cors.maxAge}s` }),
        ...(cors.allowCredentials === undefined ? {} : { allowCredentials: cors.allowCredentials }),
      };
    }
  }
  const { request, backendRequest } = rule.timeouts ?? {};
  // Where there is one attempt at most, its limit is the request's.
  const isSingle = !rule.retry && request === undefined;
  const timeout = isSingle ? backendRequest : request;
  if (timeout) actions.timeout = timeout;
  const perTry = backendRequest && !isSingle ? { perTryTimeout: backendRequest } : {};
  if (rule.retry) {
    const { codes = [], attempts = 2, backoff } = rule.retry;
    const conditions = [...codes.map(String), 'connect-failure', 'refused-stream', 'unavailable', 'cancelled'];
    actions.retries = { attempts, retryOn: conditions.join(','), ...(backoff ? { backoff } : {}), ...perTry };
  } else if (perTry.perTryTimeout) actions.retries = { attempts: 2, ...perTry };
  if (actions.redirect) return actions;
  const route = destinations(rule.backendRefs ?? [], context);
  // Nowhere to go is an error of the configuration, not a name that nobody serves.
  if (route.every(({ destination: { host } }) => host === INVALID_BACKEND_HOST)) return { ...actions, directResponse: { status: isGrpc ? 503 : 500 } };
  return { ...actions, route, ...(isGrpc ? { isGrpc } : {}) };
}

/** One VirtualService rule for each match, since each has a place of its own in the order. */
export function convertRules(route: HTTPRoute | GRPCRoute, context: ConversionContext, port?: number): ConvertedRule[] {
  const [namespace, name] = [namespaceOf(route), route.metadata.name];
  const converted: ConvertedRule[] = [];
  (route.spec.rules ?? []).forEach((rule, index) => {
    // A path that an HTTPRoute leaves out is "/".
    const isGrpc = route.kind === 'GRPCRoute';
    const written: HTTPRouteMatch[] = isGrpc ? (rule.matches as GRPCRouteMatch[] | undefined ?? []).map(grpcMatch) : ((rule.matches as HTTPRouteMatch[] | undefined) ?? []).map(({ path = {}, ...rest }) => ({ path, ...rest }));
    const actions = actionsOf(rule as HTTPRouteRule, isGrpc, context);
    const matches = written.length > 0 ? written : [{}];
    matches.forEach((match, place) => {
      const own = httpMatch(match);
      const onPort = { ...own, ...(port === undefined ? {} : { port }) };
      converted.push({
        route: { name: `${namespace}.${name}.${index}${matches.length > 1 ? `.${place}` : ''}`, ...(Object.keys(onPort).length > 0 ? { match: [onPort] } : {}), ...actions },
        precedence: precedenceOf(match, own),
        createdAt: route.metadata.creationTimestamp ?? '',
        owner: `${namespace}/${name}`,
        index,
      });
    });
  });
  return converted;
}

/** The Gateway API's order: the more specific match, then the older route, then by name, then as written. */
export function byPrecedence(a: ConvertedRule, b: ConvertedRule): number {
  for (let i = 0; i < a.precedence.length; i++) if (a.precedence[i] !== b.precedence[i]) return b.precedence[i]! - a.precedence[i]!;
  if (a.createdAt !== b.createdAt) return a.createdAt < b.createdAt ? -1 : 1;
  if (a.owner !== b.owner) return a.owner < b.owner ? -1 : 1;
  return a.index - b.index;
}
