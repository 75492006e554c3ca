/**
 * For which ports of a pod the kernel's policies say all that its proxy's rules say of callers of this node. Both come from one
 * control plane and by different streams, at different times, and WDS has no word for some of what Envoy is told: so each of
 * Envoy's rules is looked for among the kernel's, and has to hold for the same callers.
 */
import type { Permission, Policy, Principal } from '../../proto/generated/envoy/config/rbac/v3/rbac.js';
import type { StringMatcher } from '../../proto/generated/envoy/type/matcher/v3/string.js';
import { Action, type Authorization, type Group } from '../../proto/generated/istio/security/authorization.js';
import { spiffeId } from '../../common/identity/spiffe.js';
import type { InboundNeeds, L4Rule } from '../proxy/inbound-needs.js';
import { fitsIdentity, isEmptyMatch, type Identity } from './authorization.js';

export interface JudgedPorts {
  /** Ascending. */
  ports: readonly number[];
  /** Why others are Envoy's. */
  reasons: ReadonlyMap<number, string>;
}

/** @param identities of callers that may come; those without one are tried as well */
export function judgedPorts(needs: InboundNeeds, policies: readonly Authorization[], identities: Iterable<Identity>): JudgedPorts {
  const distinct = new Map([...identities].map((identity) => [spiffeId(identity), identity]));
  const callers = [undefined, ...distinct.values()];
  const reasons = new Map<number, string>();
  for (const [port, { reason, rules }] of needs) {
    const why = reason ?? differs(rules, policies, callers);
    if (why !== undefined) reasons.set(port, why);
  }
  return { ports: [...needs.keys()].filter((port) => !reasons.has(port)).sort((a, b) => a - b), reasons };
}

/** PeerAuthentications, which Envoy has as filter chains: no object of Kubernetes has an underscore in its name. */
const CONVERTED = /_converted_|^converted_/;

function differs(rules: readonly L4Rule[], policies: readonly Authorization[], callers: readonly (Identity | undefined)[]): string | undefined {
  const more = policies.find((each) => !each.dry_run && !CONVERTED.test(each.name) && !rules.some(({ policy }) => policy === `${each.namespace}/${each.name}`));
  if (more) return `Envoy's rules do not name its policy ${more.namespace}/${more.name}`;
  const byPolicy = new Map<string, L4Rule[]>();
  for (const each of rules) byPolicy.set(each.policy, [...(byPolicy.get(each.policy) ?? []), each]);
  for (const [name, mine] of byPolicy) {
    const policy = policies.find((each) => `${each.namespace}/${each.name}` === name);
    if (!policy || policy.dry_run || mine.some(({ deny }) => deny !== (policy.action === Action.DENY))) return `the kernel does not have its policy ${name}, or has it otherwise`;
    const possible = mine.filter(({ rule }) => !isNever(rule));
    if (possible.length !== policy.groups.length) return `the kernel has not all rules of its policy ${name}`;
    for (const [index, { rule, deny }] of possible.entries()) {
      const group = policy.groups[index] as Group;
      if (!rule.permissions.every(isL4Permission)) return `its policy ${name} asks for more than L4 knows`;
      for (const caller of callers) {
        const found = anyOf(rule.principals.map((principal) => fitsPrincipal(principal, caller)));
        if (found === 'unread') return `its policy ${name} asks for more than L4 knows`;
        if ((found !== false) !== fitsGroup(group, caller, deny)) return `its policy ${name} is another one in the kernel`;
      }
    }
  }
  return undefined;
}

/** As far as it is about identities. */
function fitsGroup({ rules }: Group, caller: Identity | undefined, deny: boolean): boolean {
  return rules.every(({ matches }) => matches.length === 0 || matches.some((match) => (deny || !isEmptyMatch(match)) && fitsIdentity(match, caller)));
}

/** `maybe`: it depends on addresses, which are the same in both; `unread`: on something else. */
type Fit = boolean | 'maybe' | 'unread';

function anyOf(fits: readonly Fit[]): Fit {
  if (fits.includes('unread')) return 'unread';
  return fits.includes(true) ? true : fits.includes('maybe') ? 'maybe' : false;
}

function allOf(fits: readonly Fit[]): Fit {
  if (fits.includes('unread')) return 'unread';
  return fits.includes(false) ? false : fits.includes('maybe') ? 'maybe' : true;
}

function fitsPrincipal({ identifier }: Principal, caller: Identity | undefined): Fit {
  switch (identifier?.$case) {
    case 'any':
      return identifier.value;
    case 'and_ids':
      return allOf(identifier.value.ids.map((each) => fitsPrincipal(each, caller)));
    case 'or_ids':
      return anyOf(identifier.value.ids.map((each) => fitsPrincipal(each, caller)));
    case 'not_id': {
      const fit = fitsPrincipal(identifier.value, caller);
      return typeof fit === 'boolean' ? !fit : fit;
    }
    case 'authenticated': {
      const { principal_name: name } = identifier.value;
      return caller !== undefined && (!name || fitsName(name, spiffeId(caller)));
    }
    case 'direct_remote_ip':
      return 'maybe';
    default:
      return 'unread';
  }
}

function fitsName({ match_pattern: pattern, ignore_case }: StringMatcher, name: string): Fit {
  if (ignore_case) return 'unread';
  switch (pattern?.$case) {
    case 'exact':
      return name === pattern.value;
    case 'prefix':
      return name.startsWith(pattern.value);
    case 'suffix':
      return name.endsWith(pattern.value);
    case 'contains':
      return name.includes(pattern.value);
    case 'safe_regex':
      try {
        return new RegExp(`^(?:${pattern.value.regex})$`).test(name);
      } catch {
        return 'unread';
      }
    default:
      return 'unread';
  }
}

function isL4Permission({ rule }: Permission): boolean {
  switch (rule?.$case) {
    case 'and_rules':
    case 'or_rules':
      return rule.value.rules.every(isL4Permission);
    case 'not_rule':
      return isL4Permission(rule.value);
    case 'any':
    case 'destination_port':
    case 'destination_port_range':
    case 'destination_ip':
      return true;
    default:
      return false;
  }
}

/** What stands for a policy without rules. */
function isNever({ permissions }: Policy): boolean {
  return permissions.every(({ rule }) => rule?.$case === 'not_rule' && rule.value.rule?.$case === 'any' && rule.value.rule.value);
}
