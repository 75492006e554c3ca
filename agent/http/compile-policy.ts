/**
 * What a destination's inbound side asks of one client's requests: its RBAC filters, with all that is known of the client beforehand
 * decided, as rules about the rest. A request is allowed here only if Envoy would allow it; all else is Envoy's to judge.
 */
import { BlockList, isIPv6 } from 'node:net';
import { RBAC as Rules, RBAC_Action, type Permission, type Policy, type Principal } from '../../proto/generated/envoy/config/rbac/v3/rbac.js';
import type { CidrRange } from '../../proto/generated/envoy/config/core/v3/address.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RBAC as HttpRbac } from '../../proto/generated/envoy/extensions/filters/http/rbac/v3/rbac.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { RBAC as NetworkRbac } from '../../proto/generated/envoy/extensions/filters/network/rbac/v3/rbac.js';
import type { StringMatcher } from '../../proto/generated/envoy/type/matcher/v3/string.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { unpack } from '../../common/xds/any.js';
import { hasPlainRoutes, isEmpty, isNeutral } from '../proxy/neutral-chain.js';
import { PEER_PRINCIPAL } from '../proxy/pod-listener.js';
import type { Reason } from './compile-action.js';
import { headerCondition, pathTextCondition } from './compile-match.js';
import { managerReason } from './compile-ports.js';
import { tracedAs } from './compile-tracing.js';
import { alternatives, isAlways, type Alternative, type Condition } from './conditions.js';
import { HTTP_RULES_EACH } from './limits.js';
import type { HttpTrace, Judgement, RuleList } from './table.js';

/** Whose requests are judged: all pods of a class. */
export interface Caller {
  /** SPIFFE id. */
  identity: string | undefined;
  /** What destinations may see as the source; none: it is not known. */
  addresses: readonly string[];
}

export interface Called {
  address: string;
  port: number;
}

type Verdict = RuleList<Judgement> | 'open' | Reason;

const XFCC = 'x-forwarded-client-cert';

/**
 * @param chains of the pod's inbound side, as its node's own pods meet them
 * @param traced what the client's side tells of being traced, on which the inbound side then relies
 */
export function policyOf(chains: readonly FilterChain[], caller: Caller, called: Called, traced?: HttpTrace['kind']): Verdict {
  const own = chains.filter(({ filter_chain_match: match }) => match?.destination_port === called.port);
  const group = (own.length > 0 ? own : chains.filter(({ filter_chain_match: match }) => match?.destination_port === undefined)).filter(({ filter_chain_match: match }) => match?.transport_protocol !== 'tls');
  if (group.some(({ filter_chain_match: match }) => match && (match.server_names.length > 0 || match.source_prefix_ranges.length > 0 || match.direct_source_prefix_ranges.length > 0 || match.source_ports.length > 0 || match.source_type !== 0))) return { reason: 'its inbound side tells callers apart by more than their protocol' };
  const http = group.filter((chain) => managerOf(chain));
  const judged = (http.length > 0 ? http : group).map((chain) => chainPolicy(chain, caller, called, traced));
  const [first, ...others] = judged;
  if (!first) return { reason: 'its inbound side has nothing for this port' };
  const same = JSON.stringify(first);
  return others.every((each) => JSON.stringify(each) === same) ? first : { reason: 'its inbound side has several chains for this port' };
}

function managerOf({ filters }: FilterChain): HttpConnectionManager | undefined {
  const last = filters.at(-1)?.config_type;
  return last?.$case === 'typed_config' ? unpack(HttpConnectionManager, last.value) : undefined;
}

function chainPolicy(chain: FilterChain, caller: Caller, called: Called, traced: HttpTrace['kind'] | undefined): Verdict {
  const denied: Condition[] = [];
  const allowed: Condition[] = [];
  const take = (name: string, config: Any): string | undefined => {
    const network = unpack(NetworkRbac, config);
    const rbac = network ?? unpack(HttpRbac, config);
    if (!rbac) return isNeutral(config) ? undefined : `the filter ${name} has a say in who may call`;
    if (rbac.matcher || rbac.shadow_matcher) return 'its policy is a tree of matchers';
    if (rbac.shadow_rules) return 'some of its policy is a dry run, or asks an authorizer of its own';
    if (network && network.enforcement_type !== 0) return 'its policy is looked at more than once';
    if (!rbac.rules) return undefined;
    if (rbac.rules.action === RBAC_Action.LOG) return 'its policy decides on what is logged';
    if (!isEmpty(Rules, { ...rbac.rules, action: 0, policies: {} })) return 'its policy is audited';
    const judge = new Static(caller, called, network === undefined);
    const either = { or: Object.values(rbac.rules.policies).map((policy) => judge.policy(policy)) };
    (rbac.rules.action === RBAC_Action.DENY ? denied : allowed).push(either);
    return undefined;
  };
  for (const { name, config_type } of chain.filters) {
    if (config_type?.$case !== 'typed_config') return { reason: `the filter ${name} has a say in who may call` };
    const manager = unpack(HttpConnectionManager, config_type.value);
    const reason = manager ? httpReason(manager, traced, take) : take(name, config_type.value);
    if (reason !== undefined) return { reason };
  }
  return listOf(denied, allowed);
}

function httpReason(manager: HttpConnectionManager, traced: HttpTrace['kind'] | undefined, take: (name: string, config: Any) => string | undefined): string | undefined {
  const tracing = tracedAs(manager);
  const settings = managerReason(manager) ?? (!tracing ? undefined : 'reason' in tracing ? tracing.reason : tracing.kind === traced ? undefined : 'requests are traced, and here not, or not by the same headers');
  if (settings !== undefined) return `where it is called ${settings}`;
  for (const { name, config_type } of manager.http_filters) {
    const reason = config_type?.$case !== 'typed_config' ? `the filter ${name} has a say in who may call` : take(name, config_type.value);
    if (reason !== undefined) return reason;
  }
  const specifier = manager.route_specifier;
  const routes = specifier?.$case === 'route_config' ? withoutCertificate(specifier.value) : undefined;
  return hasPlainRoutes({ route_specifier: routes ? { $case: 'route_config', value: routes } : specifier }) ? undefined : 'its inbound side has routes with settings';
}

/** Without the header that tells a program who calls, which is the same for all of a client's requests. */
function withoutCertificate(routes: RouteConfiguration): RouteConfiguration {
  return { ...routes, request_headers_to_add: routes.request_headers_to_add.filter(({ header }) => header?.key !== XFCC) };
}

function listOf(denied: readonly Condition[], allowed: readonly Condition[]): Verdict {
  const deny = alternatives({ or: denied }, 'over');
  const allow = alternatives({ and: allowed }, 'under');
  if (!deny || !allow) return { reason: `its policy has more than ${HTTP_RULES_EACH} rules` };
  if (deny.terms.some(isAlways)) return { reason: deny.inexact === undefined ? 'its policy denies all requests of this client' : `its policy is Envoy's to judge: ${deny.inexact}` };
  const isOpen = allow.terms.some(isAlways);
  if (allow.terms.length === 0) return { reason: allow.inexact === undefined ? 'its policy allows no request of this client' : `its policy is Envoy's to judge: ${allow.inexact}` };
  if (isOpen && deny.terms.length === 0) return 'open';
  const rule = (verdict: Judgement) => (term: Alternative) => ({ ...term, verdict });
  const rules = [...deny.terms.map(rule('envoy')), ...(isOpen ? [] : allow.terms.map(rule('allowed')))];
  if (rules.length > HTTP_RULES_EACH) return { reason: `its policy has more than ${HTTP_RULES_EACH} rules` };
  return { rules, otherwise: isOpen ? 'allowed' : 'envoy' };
}

/** Rules with what is known of the client and the destination in its place. */
class Static {
  /** @param seesRequests else rules about requests are asked of a connection, which has no headers */
  constructor(readonly caller: Caller, readonly called: Called, readonly seesRequests: boolean) {}

  policy({ permissions, principals, condition, checked_condition }: Policy): Condition {
    const parts: Condition[] = [{ or: permissions.map((each) => this.#permission(each)) }, { or: principals.map((each) => this.#principal(each)) }];
    if (condition || checked_condition) parts.push({ unknown: 'it has an expression' });
    return { and: parts };
  }

  #permission({ rule }: Permission): Condition {
    switch (rule?.$case) {
      case 'any':
        return rule.value;
      case 'and_rules':
        return { and: rule.value.rules.map((each) => this.#permission(each)) };
      case 'or_rules':
        return { or: rule.value.rules.map((each) => this.#permission(each)) };
      case 'not_rule':
        return { not: this.#permission(rule.value) };
      case 'header':
        return this.#ofRequest(headerCondition(rule.value));
      case 'url_path':
        return this.#ofRequest(pathTextCondition(rule.value.rule?.value));
      case 'destination_port':
        return rule.value === this.called.port;
      case 'destination_port_range':
        return this.called.port >= rule.value.start && this.called.port < rule.value.end;
      case 'destination_ip':
        return isWithin(rule.value, [this.called.address]) ?? { unknown: 'it asks for an address' };
      default:
        return { unknown: `it asks for ${(rule?.$case ?? 'nothing').replaceAll('_', ' ')}` };
    }
  }

  #principal({ identifier }: Principal): Condition {
    switch (identifier?.$case) {
      case 'any':
        return identifier.value;
      case 'and_ids':
        return { and: identifier.value.ids.map((each) => this.#principal(each)) };
      case 'or_ids':
        return { or: identifier.value.ids.map((each) => this.#principal(each)) };
      case 'not_id':
        return { not: this.#principal(identifier.value) };
      case 'header':
        return this.#ofRequest(headerCondition(identifier.value));
      case 'url_path':
        return this.#ofRequest(pathTextCondition(identifier.value.rule?.value));
      case 'authenticated':
        return identifier.value.principal_name ? this.#identity(identifier.value.principal_name) : this.caller.identity !== undefined || { unknown: "the client's identity is not known" };
      case 'filter_state': {
        const { key, matcher } = identifier.value;
        return key === PEER_PRINCIPAL && matcher?.$case === 'string_match' ? this.#identity(matcher.value) : { unknown: `it asks for filter state ${key}` };
      }
      case 'source_ip':
      case 'direct_remote_ip':
        return isWithin(identifier.value, this.caller.addresses) ?? { unknown: "it asks for the client's address" };
      case 'remote_ip':
        return { unknown: "it asks for the address that a header may say is the client's" };
      case 'metadata':
        return { unknown: 'it asks for what a token or another filter says' };
      default:
        return { unknown: 'it asks for nothing that is known here' };
    }
  }

  #ofRequest(condition: Condition): Condition {
    return this.seesRequests ? condition : { unknown: 'it asks a connection for what requests have' };
  }

  #identity(matcher: StringMatcher): Condition {
    const { identity } = this.caller;
    if (identity === undefined) return { unknown: "the client's identity is not known" };
    return matchesText(matcher, identity) ?? { unknown: 'it asks for the identity by an unusual pattern' };
  }
}

/** Undefined: it can't be told. */
function matchesText({ match_pattern: pattern, ignore_case }: StringMatcher, text: string): boolean | undefined {
  const fold = (value: string): string => (ignore_case ? value.toLowerCase() : value);
  switch (pattern?.$case) {
    case 'exact':
      return fold(text) === fold(pattern.value);
    case 'prefix':
      return fold(text).startsWith(fold(pattern.value));
    case 'suffix':
      return fold(text).endsWith(fold(pattern.value));
    case 'contains':
      return fold(text).includes(fold(pattern.value));
    case 'safe_regex':
      // What means the same to RE2 and to JavaScript: names, groups, and any number of any character.
      return /^(?:[\w/:@%=-]|\.[*+]|\[\^\/\][*+]|\\\.|[()|])+$/.test(pattern.value.regex) && !pattern.value.regex.includes('(?') ? new RegExp(`^(?:${pattern.value.regex})$`, 's').test(text) : undefined;
    default:
      return undefined;
  }
}

/** Undefined: some are and some are not, or nothing is known. */
function isWithin({ address_prefix: prefix, prefix_len: length = 0 }: CidrRange, addresses: readonly string[]): boolean | undefined {
  if (addresses.length === 0) return undefined;
  const family = (address: string): 'ipv4' | 'ipv6' => (isIPv6(address) ? 'ipv6' : 'ipv4');
  const list = new BlockList();
  try {
    list.addSubnet(prefix, length, family(prefix));
  } catch {
    return undefined;
  }
  const inside = addresses.filter((address) => family(address) === family(prefix) && list.check(address, family(address)));
  return inside.length === addresses.length ? true : inside.length === 0 ? false : undefined;
}
