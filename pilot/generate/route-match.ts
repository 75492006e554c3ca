/** Conditions of VirtualService routes: what is decided here about the client, and what Envoy decides about a request. */
import type { Destination, HttpMatchRequest, StringMatch } from '../../common/kube/types.js';
import { HeaderMatcher, QueryParameterMatcher, RouteMatch } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { MetadataMatcher } from '../../proto/generated/envoy/type/matcher/v3/metadata.js';
import type { StringMatcher } from '../../proto/generated/envoy/type/matcher/v3/string.js';
import type { Proxy } from '../model/proxy.js';
import type { Scope } from '../model/scope.js';
import { MESH_GATEWAY } from '../model/virtual-services.js';
import { clusterName } from './names.js';

export interface SourceMatch {
  port?: number;
  sourceLabels?: Record<string, string>;
  sourceNamespace?: string;
  gateways?: string[];
}

/** For whom routes are made. */
export interface RouteSource {
  proxy: Proxy;
  /** The port that listens. */
  port: number;
  /** `mesh` for workloads, else `namespace/name` of a Gateway. */
  gateway: string;
}

export const meshSource = (proxy: Proxy, port: number): RouteSource => ({ proxy, port, gateway: MESH_GATEWAY });

const labelsMatch = (match: SourceMatch, { labels }: Proxy): boolean => Object.entries(match.sourceLabels ?? {}).every(([key, value]) => labels[key] === value);
const namespaceMatches = (match: SourceMatch, { namespace }: Proxy): boolean => !match.sourceNamespace || match.sourceNamespace === namespace;
const portMatches = (match: SourceMatch, { port }: RouteSource): boolean => !match.port || match.port === port;

/** The conditions on the client are decided here, once a client, not in Envoy once a request. */
export function httpSourceMatches(match: SourceMatch, source: RouteSource): boolean {
  if (!portMatches(match, source)) return false;
  // A match that names gateways looks at nothing else of the source, as in Istio.
  if (match.gateways?.length) return match.gateways.includes(source.gateway);
  return labelsMatch(match, source.proxy) && namespaceMatches(match, source.proxy);
}

/** The same for `tcp` and `tls` routes, where all have to hold; who the client of a gateway is is not known. */
export function l4SourceMatches(match: SourceMatch, source: RouteSource): boolean {
  const isMeant = source.gateway !== MESH_GATEWAY || (labelsMatch(match, source.proxy) && namespaceMatches(match, source.proxy));
  return isMeant && portMatches(match, source) && (!match.gateways?.length || match.gateways.includes(source.gateway));
}

/** What of a client the VirtualServices that it sees ask for: clients with the same key get the same routes. */
export function sourceKey({ namespace, labels }: Proxy, { visibility }: Scope): string {
  const keys = visibility.sourceLabelKeys;
  return `${visibility.sourceNamespaceMatters ? namespace : ''} ${keys.length === 0 ? '' : JSON.stringify(keys.map((key) => [key, labels[key] ?? null]))}`;
}

/** The cluster of a destination; without a port the service's only one, else the port that the client dialled. */
export function destinationCluster(scope: Scope, { host, subset, port }: Destination, listenPort: number): string {
  const ports = scope.service(host)?.ports ?? [];
  return clusterName(port?.number ?? (ports.length === 1 ? ports[0]!.port : listenPort), subset ?? '', host);
}

/** How a path prefix counts: letter by letter in a VirtualService, by whole segments in the Gateway API. */
export type PrefixKind = 'string' | 'segment';

export function routeMatch(match: HttpMatchRequest | undefined, prefixes: PrefixKind = 'string'): RouteMatch {
  const result = RouteMatch.fromPartial({ path_specifier: { $case: 'prefix', value: '/' } });
  if (!match) return result;
  for (const [name, value] of Object.entries(match.headers ?? {})) {
    const claim = claimMatcher(name, value);
    if (claim) result.dynamic_metadata.push(claim);
    else result.headers.push(headerMatcher(name, value));
  }
  for (const [name, value] of Object.entries(match.withoutHeaders ?? {})) {
    const claim = claimMatcher(name, value);
    if (claim) {
      result.dynamic_metadata.push({ ...claim, invert: true });
      continue;
    }
    const matcher = headerMatcher(name, value);
    matcher.invert_match = true;
    // "Not this value" holds for a header that is absent; "not present" says so by itself.
    matcher.treat_missing_header_as_empty = matcher.header_match_specifier?.$case === 'string_match';
    result.headers.push(matcher);
  }
  result.headers.sort(byName);
  const { uri } = match;
  if (uri?.exact !== undefined) result.path_specifier = { $case: 'path', value: uri.exact };
  else if (uri?.prefix !== undefined && prefixes === 'segment' && uri.prefix !== '/') result.path_specifier = { $case: 'path_separated_prefix', value: uri.prefix };
  else if (uri?.prefix !== undefined) result.path_specifier = { $case: 'prefix', value: uri.prefix };
  else if (uri?.regex !== undefined) result.path_specifier = { $case: 'safe_regex', value: { regex: uri.regex, engine_type: undefined } };
  result.case_sensitive = !match.ignoreUriCase;
  if (match.method) result.headers.push(headerMatcher(':method', match.method));
  if (match.authority) result.headers.push(headerMatcher(':authority', match.authority));
  if (match.scheme) result.headers.push(headerMatcher(':scheme', match.scheme));
  for (const [name, value] of Object.entries(match.queryParams ?? {})) {
    const matcher = isPresence(value) ? undefined : stringMatcher(value);
    result.query_parameters.push(
      QueryParameterMatcher.fromPartial({
        name,
        query_parameter_match_specifier: matcher ? { $case: 'string_match', value: matcher } : { $case: 'present_match', value: true },
      }),
    );
  }
  result.query_parameters.sort(byName);
  return result;
}

const byName = (a: { name: string }, b: { name: string }): number => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);

/** No conditions but perhaps that the path begins with a slash, which every path does: nothing behind it is reached. */
export function isCatchAll({ path_specifier, headers, query_parameters, dynamic_metadata }: RouteMatch): boolean {
  if (headers.length + query_parameters.length + dynamic_metadata.length > 0) return false;
  return (path_specifier?.$case === 'prefix' && path_specifier.value === '/') || (path_specifier?.$case === 'safe_regex' && path_specifier.value.regex === '.*');
}

function headerMatcher(name: string, value: StringMatch): HeaderMatcher {
  const matcher = isPresence(value) ? undefined : stringMatcher(value);
  return HeaderMatcher.fromPartial({ name, header_match_specifier: matcher ? { $case: 'string_match', value: matcher } : { $case: 'present_match', value: true } });
}

/** `*` is no regular expression, but was written for "any value" so often that Istio takes it so. */
const isPresence = (value: StringMatch | null): boolean => !value || (value.exact === undefined && value.prefix === undefined && (value.regex === undefined || value.regex === '*'));

/** Undefined for an empty match, which asks for presence only. */
export function stringMatcher(value: StringMatch): StringMatcher | undefined {
  if (value.exact !== undefined) return { match_pattern: { $case: 'exact', value: value.exact }, ignore_case: false };
  if (value.prefix !== undefined) return { match_pattern: { $case: 'prefix', value: value.prefix }, ignore_case: false };
  if (value.regex !== undefined) return { match_pattern: { $case: 'safe_regex', value: { regex: value.regex, engine_type: undefined } }, ignore_case: false };
  return undefined;
}

const CLAIMS = '@request.auth.claims';

/** `@request.auth.claims.group.id` or `@request.auth.claims[group][id]`: a claim of the JWT that the jwt_authn filter has checked. */
function claimMatcher(name: string, value: StringMatch): MetadataMatcher | undefined {
  if (!name.toLowerCase().startsWith(CLAIMS)) return undefined;
  const path = name.slice(CLAIMS.length);
  let claims: string[];
  if (/^\..+/.test(path)) claims = path.slice(1).split('.');
  else if (/^\[.+\]$/.test(path)) claims = path.slice(1, -1).split('][');
  else return undefined;
  const matcher = stringMatcher(value) ?? { match_pattern: { $case: 'safe_regex', value: { regex: '.*', engine_type: undefined } }, ignore_case: false };
  const text = { match_pattern: { $case: 'string_match' as const, value: matcher } };
  return MetadataMatcher.fromPartial({
    filter: 'envoy.filters.http.jwt_authn',
    path: ['payload', ...claims].map((key) => ({ segment: { $case: 'key', value: key } })),
    // A claim is a text, or a list of texts.
    value: { match_pattern: { $case: 'or_match', value: { value_matchers: [{ match_pattern: { $case: 'list_match', value: { match_pattern: { $case: 'one_of', value: text } } } }, text] } } },
  });
}
