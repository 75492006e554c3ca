/** Which route a request takes, and what RBAC filters say of it: Envoy's own rules, applied to its own configuration. */
import { RE2JS } from 're2js';
import { readClusterName, type Json } from './config.js';

export interface ShownRequest {
  method: string;
  /** With its query. */
  target: string;
  host: string;
  /** Names in small letters. */
  headers: readonly (readonly [name: string, value: string])[];
}

/** Of a connection, as the server's side sees it. */
export interface ShownPeer {
  principal: string | undefined;
  address: string | undefined;
  destination: string;
  port: number;
}

/** undefined: it hangs on something that is not known here. */
export type Holds = boolean | undefined;

const all = (values: readonly Holds[]): Holds => (values.includes(false) ? false : values.includes(undefined) ? undefined : true);
const any = (values: readonly Holds[]): Holds => (values.includes(true) ? true : values.includes(undefined) ? undefined : false);
const not = (value: Holds): Holds => (value === undefined ? undefined : !value);

export function stringHolds(matcher: Json, value: string): Holds {
  const fold = (text: string): string => (matcher['ignore_case'] ? text.toLowerCase() : text);
  const [found, is] = [fold(value), (key: string): string => fold(String(matcher[key]))];
  if (matcher['exact'] !== undefined) return found === is('exact');
  if (matcher['prefix'] !== undefined) return found.startsWith(is('prefix'));
  if (matcher['suffix'] !== undefined) return found.endsWith(is('suffix'));
  if (matcher['contains'] !== undefined) return found.includes(is('contains'));
  if (matcher['safe_regex'] !== undefined) return regexHolds(matcher['safe_regex'] as Json, value);
  return undefined;
}

function regexHolds({ regex }: Json, value: string): Holds {
  try {
    return RE2JS.compile(String(regex)).matches(value);
  } catch {
    return undefined;
  }
}

const pathOf = ({ target }: ShownRequest): string => target.split(/[?#]/, 1)[0]!;

/** Pseudo headers too; several of one name as one, as Envoy joins them. */
function headerOf(request: ShownRequest, name: string): string | undefined {
  const lower = name.toLowerCase();
  if (lower === ':method') return request.method;
  if (lower === ':path') return request.target;
  if (lower === ':authority' || lower === 'host') return request.host;
  if (lower === ':scheme') return 'http';
  const values = request.headers.flatMap(([each, value]) => (each === lower ? [value] : []));
  return values.length === 0 ? undefined : values.join(',');
}

export function headerHolds(matcher: Json, request: ShownRequest): Holds {
  const name = String(matcher['name']);
  const found = headerOf(request, name);
  const value = found ?? (matcher['treat_missing_header_as_empty'] ? '' : undefined);
  const isInverted = matcher['invert_match'] === true;
  if (matcher['present_match'] !== undefined) return (found !== undefined) === (matcher['present_match'] === true) ? !isInverted : isInverted;
  // A header that is missing matches nothing but what is inverted.
  if (value === undefined) return isInverted;
  const kinds = ['string_match', 'exact_match', 'prefix_match', 'suffix_match', 'contains_match', 'safe_regex_match', 'range_match'];
  const kind = kinds.find((each) => matcher[each] !== undefined);
  let holds: Holds = kind === undefined ? found !== undefined : undefined;
  if (kind === 'string_match') holds = stringHolds(matcher[kind] as Json, value);
  else if (kind === 'safe_regex_match') holds = regexHolds(matcher[kind] as Json, value);
  else if (kind === 'range_match') holds = /^[+-]?\d+$/.test(value) && Number(value) >= Number(matcher[kind].start ?? 0) && Number(value) < Number(matcher[kind].end ?? 0);
  else if (kind !== undefined) holds = stringHolds({ [kind.replace('_match', '')]: matcher[kind] }, value);
  return isInverted ? not(holds) : holds;
}

export function pathHolds(matcher: Json, request: ShownRequest): Holds {
  const path = pathOf(request);
  const fold = (text: string): string => (matcher['case_sensitive'] === false ? text.toLowerCase() : text);
  if (matcher['prefix'] !== undefined) return fold(path).startsWith(fold(String(matcher['prefix'])));
  if (matcher['path'] !== undefined) return fold(path) === fold(String(matcher['path']));
  if (matcher['path_separated_prefix'] !== undefined) {
    const prefix = fold(String(matcher['path_separated_prefix']));
    return fold(path) === prefix || fold(path).startsWith(`${prefix}/`);
  }
  if (matcher['safe_regex'] !== undefined) return regexHolds(matcher['safe_regex'] as Json, path);
  return undefined;
}

export function routeHolds({ match = {} }: Json, request: ShownRequest): Holds {
  const query = new URLSearchParams(request.target.split('?').slice(1).join('?'));
  const parameters = ((match.query_parameters ?? []) as Json[]).map((each): Holds => {
    const value = query.get(String(each['name']));
    if (each['present_match'] !== undefined) return (value !== null) === (each['present_match'] === true);
    return value === null ? false : each['string_match'] ? stringHolds(each['string_match'] as Json, value) : true;
  });
  const isGrpc = match.grpc ? (headerOf(request, 'content-type') ?? '').startsWith('application/grpc') : true;
  return all([pathHolds(match as Json, request), isGrpc, ...((match.headers ?? []) as Json[]).map((each) => headerHolds(each, request)), ...parameters, match.runtime_fraction || match.dynamic_metadata?.length > 0 || match.tls_context ? undefined : true]);
}

/** Envoy's order: the whole name, the longest `*.suffix`, the longest `prefix.*`, `*`. */
export function virtualHostOf(table: Json, host: string): { virtualHost: Json; domain: string } | undefined {
  const wanted = (table['ignore_port_in_host_matching'] ? host.replace(/:\d+$/, '') : host).toLowerCase();
  let best: { virtualHost: Json; domain: string; rank: number } | undefined;
  for (const virtualHost of (table['virtual_hosts'] ?? []) as Json[]) {
    for (const domain of (virtualHost['domains'] ?? []) as string[]) {
      const lower = domain.toLowerCase();
      const rank = lower === wanted ? 3e6 : lower === '*' ? 1 : lower.startsWith('*') && wanted.endsWith(lower.slice(1)) && wanted.length >= lower.length ? 2e6 + lower.length : lower.endsWith('*') && wanted.startsWith(lower.slice(0, -1)) ? 1e6 + lower.length : 0;
      if (rank > (best?.rank ?? 0)) best = { virtualHost, domain, rank };
    }
  }
  return best;
}

/** The first route that holds. `index` counts from 0; `doubtful`: earlier ones, and it itself, that hang on what is not known. */
export function routeOf(virtualHost: Json, request: ShownRequest): { route: Json; index: number; doubtful: boolean } | undefined {
  let doubtful = false;
  for (const [index, route] of ((virtualHost['routes'] ?? []) as Json[]).entries()) {
    const holds = routeHolds(route, request);
    if (holds === true) return { route, index, doubtful };
    if (holds === undefined) doubtful = true;
  }
  return undefined;
}

export interface RbacVerdict {
  answer: 'allow' | 'deny' | 'unknown';
  /** The policy that decides, by Envoy's name, and its rule; absent: none fits. */
  policy?: string;
  reason: string;
}

/** By which Istio marks the rules that say whom an external authorizer is asked about. */
const EXT_AUTHZ_PREFIX = 'istio_ext_authz_';

/** What the filters of one chain say, in their order: the first that refuses decides; behind what is not known a later refusal is one all the same. */
export function judge(filters: readonly Json[], request: ShownRequest | undefined, peer: ShownPeer): RbacVerdict {
  let last: RbacVerdict = { answer: 'allow', reason: 'no policy applies' };
  let doubt: RbacVerdict | undefined;
  for (const [index, { typed_config: config = {} }] of filters.entries()) {
    if (!/\.rbac\.v3\.RBAC$/.test(String(config['@type']))) continue;
    if (config.shadow_rules_stat_prefix === EXT_AUTHZ_PREFIX) {
      const { fit, open } = fitting(config.shadow_rules, request, peer);
      const asked = fit ?? open;
      if (asked) doubt ??= { answer: 'unknown', policy: asked.name, reason: `${nameOfPolicy(asked.name)} (CUSTOM) ${fit ? 'asks' : 'may ask'} ${authorizerOf(asked.name, filters[index + 1])}` };
    }
    if (!config.rules) continue;
    const action = String(config.rules.action ?? 'ALLOW');
    if (action !== 'ALLOW' && action !== 'DENY') continue;
    const { all: names, fit, open } = fitting(config.rules, request, peer);
    if (action === 'DENY' && fit) return { answer: 'deny', policy: fit.name, reason: BAD_CUSTOM.test(fit.name) ? `${nameOfPolicy(fit.name)} (CUSTOM) denies it, since its provider is not known or not the only one` : `${nameOfPolicy(fit.name)} denies it` };
    if (action === 'ALLOW' && !fit && !open) return { answer: 'deny', reason: names.length === 0 ? 'an ALLOW policy without rules lets nobody in' : `no ALLOW policy fits: ${[...new Set(names.map(nameOfPolicy))].join(', ')}` };
    if (open && !fit) doubt ??= { answer: 'unknown', policy: open.name, reason: `${nameOfPolicy(open.name)} hangs on what is not known here` };
    else if (fit) last = { answer: 'allow', policy: fit.name, reason: `${nameOfPolicy(fit.name)} allows it` };
    else if (last.policy === undefined) last = { answer: 'allow', reason: 'no DENY policy fits' };
  }
  return doubt ?? last;
}

interface Fitting {
  all: string[];
  /** The first that holds, and the first that hangs on something. */
  fit: { name: string } | undefined;
  open: { name: string } | undefined;
}

function fitting(rules: Json | undefined, request: ShownRequest | undefined, peer: ShownPeer): Fitting {
  const verdicts = Object.entries((rules?.['policies'] ?? {}) as Record<string, Json>).map(([name, policy]) => ({
    name,
    holds: all([any(((policy['permissions'] ?? []) as Json[]).map((each) => permissionHolds(each, request, peer))), any(((policy['principals'] ?? []) as Json[]).map((each) => principalHolds(each, request, peer)))]),
  }));
  return { all: verdicts.map(({ name }) => name), fit: verdicts.find(({ holds }) => holds === true), open: verdicts.find(({ holds }) => holds === undefined) };
}

/** @param filter that asks, behind the rules that say about whom */
function authorizerOf(policy: string, filter: Json | undefined): string {
  const [, provider = ''] = POLICY_NAME.exec(policy) ?? [];
  const { http_service: http, grpc_service: grpc, failure_mode_allow: failsOpen } = (filter?.['typed_config'] ?? {}) as Json;
  const { host, port } = readClusterName(String(http?.server_uri?.cluster ?? grpc?.envoy_grpc?.cluster_name ?? ''));
  return `the external authorizer ${provider}${host === '' ? '' : ` (${host}:${port}, by ${http ? 'HTTP' : 'gRPC'}; while that does not answer requests are ${failsOpen ? 'let in' : 'refused'})`}, which decides`;
}

const POLICY_NAME = /^(?:istio-ext-authz-(.*?)-)?ns\[([^\]]*)\]-policy\[([^\]]*)\]-rule\[(\d+)\]/;
const BAD_CUSTOM = /-deny-due-to-bad-CUSTOM-action$/;

/** `ns[shop]-policy[nginx]-rule[0]` as people wrote it. */
export function nameOfPolicy(name: string): string {
  const [, , namespace, policy, rule] = POLICY_NAME.exec(name) ?? [];
  return namespace === undefined ? name : `AuthorizationPolicy ${namespace}/${policy}, rule ${rule}`;
}

function permissionHolds(rule: Json, request: ShownRequest | undefined, peer: ShownPeer): Holds {
  const each = (list: Json | undefined): Holds[] => ((list?.['rules'] ?? []) as Json[]).map((item) => permissionHolds(item, request, peer));
  if (rule['any'] !== undefined) return rule['any'] === true;
  if (rule['and_rules']) return all(each(rule['and_rules'] as Json));
  if (rule['or_rules']) return any(each(rule['or_rules'] as Json));
  if (rule['not_rule']) return not(permissionHolds(rule['not_rule'] as Json, request, peer));
  if (rule['header']) return request ? headerHolds(rule['header'] as Json, request) : undefined;
  if (rule['url_path']) return request ? stringHolds((rule['url_path'].path ?? {}) as Json, pathOf(request)) : undefined;
  if (rule['destination_port'] !== undefined) return Number(rule['destination_port']) === peer.port;
  if (rule['destination_ip']) return rangeHolds(rule['destination_ip'] as Json, peer.destination);
  return undefined;
}

function principalHolds(rule: Json, request: ShownRequest | undefined, peer: ShownPeer): Holds {
  const each = (list: Json | undefined): Holds[] => ((list?.['ids'] ?? []) as Json[]).map((item) => principalHolds(item, request, peer));
  if (rule['any'] !== undefined) return rule['any'] === true;
  if (rule['and_ids']) return all(each(rule['and_ids'] as Json));
  if (rule['or_ids']) return any(each(rule['or_ids'] as Json));
  if (rule['not_id']) return not(principalHolds(rule['not_id'] as Json, request, peer));
  if (rule['header']) return request ? headerHolds(rule['header'] as Json, request) : undefined;
  if (rule['url_path']) return request ? stringHolds((rule['url_path'].path ?? {}) as Json, pathOf(request)) : undefined;
  if (rule['authenticated']) return peer.principal === undefined ? false : rule['authenticated'].principal_name ? stringHolds(rule['authenticated'].principal_name as Json, peer.principal) : true;
  if (rule['filter_state']?.key === 'io.istio.peer_principal') return peer.principal === undefined ? false : stringHolds((rule['filter_state'].string_match ?? {}) as Json, peer.principal);
  for (const kind of ['direct_remote_ip', 'remote_ip', 'source_ip']) if (rule[kind]) return peer.address === undefined ? undefined : rangeHolds(rule[kind] as Json, peer.address);
  return undefined;
}

/** IPv4 and IPv6 ranges, as numbers. */
export function rangeHolds({ address_prefix: prefix, prefix_len: length = 0 }: Json, address: string): Holds {
  const [range, found] = [bitsOf(String(prefix)), bitsOf(address)];
  if (!range || !found) return undefined;
  if (range.size !== found.size) return false;
  const shift = BigInt(range.size - Number(length));
  return range.bits >> shift === found.bits >> shift;
}

function bitsOf(address: string): { bits: bigint; size: 32 | 128 } | undefined {
  if (/^\d+\.\d+\.\d+\.\d+$/.test(address)) return { bits: address.split('.').reduce((sum, part) => (sum << 8n) | BigInt(part), 0n), size: 32 };
  if (!/^[0-9a-f:]+$/i.test(address) || !address.includes(':')) return undefined;
  const [head = '', tail] = address.split('::');
  const words = (text: string | undefined): string[] => (text ? text.split(':') : []);
  const [before, after] = [words(head), words(tail)];
  const middle = tail === undefined ? [] : Array.from({ length: Math.max(0, 8 - before.length - after.length) }, () => '0');
  return { bits: [...before, ...middle, ...after].reduce((sum, word) => (sum << 16n) | BigInt(`0x${word || '0'}`), 0n), size: 128 };
}
