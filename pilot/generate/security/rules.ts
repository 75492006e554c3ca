/**
 * One rule of an AuthorizationPolicy as a policy of Envoy's RBAC: what it says of the operation are permissions, what it
 * says of the caller principals. A condition that only HTTP can answer, on a plain TCP connection: an ALLOW rule with it
 * matches nothing, every other rule is read without it, so that both err on the side of refusing.
 */
import type { AuthorizationCondition, AuthorizationOperation, AuthorizationRule, AuthorizationSource } from '../../../common/kube/types.js';
import { Permission, Policy, Principal } from '../../../proto/generated/envoy/config/rbac/v3/rbac.js';
import type { StringMatcher } from '../../../proto/generated/envoy/type/matcher/v3/string.js';
import {
  anyValue, cidr, claimListMatch, claimMatch, escapeRegex, exactMatch, globRegex, headerListMatch, headerMatch, headerName, listValue, metadataMatch, namesInBrackets, pathTemplate, portNumber,
  prefixMatch, regexMatch, stringMatch, stringValue, suffixMatch, Unmatchable,
} from './matchers.js';
import { withTrustDomains } from './trust-domains.js';

export interface RuleContext {
  tcp: boolean;
  /** ALLOW is read strictly, everything else widely. */
  allow: boolean;
  /** Of the policy: service accounts without a namespace are its. */
  namespace: string;
  /** The mesh's, and its aliases. */
  trustDomains: readonly string[];
  /** What came by HBONE has its caller in filter state: its certificate was seen where the tunnel ended. */
  hbone: boolean;
}

/** Matches nothing, whatever comes. */
export const NEVER: Policy = Policy.fromPartial({
  permissions: [{ rule: { $case: 'not_rule', value: { rule: { $case: 'any', value: true } } } }],
  principals: [{ identifier: { $case: 'not_id', value: { identifier: { $case: 'any', value: true } } } }],
});

const permission = (rule: Parameters<typeof Permission.fromPartial>[0]['rule']): Permission => Permission.fromPartial({ rule });
const principal = (identifier: Parameters<typeof Principal.fromPartial>[0]['identifier']): Principal => Principal.fromPartial({ identifier });

interface Combine<T> {
  any: T;
  and(items: T[]): T;
  or(items: T[]): T;
  not(item: T): T;
}

const permissions: Combine<Permission> = {
  any: permission({ $case: 'any', value: true }),
  and: (rules) => permission({ $case: 'and_rules', value: { rules } }),
  or: (rules) => permission({ $case: 'or_rules', value: { rules } }),
  not: (rule) => permission({ $case: 'not_rule', value: rule }),
};

const principals: Combine<Principal> = {
  any: principal({ $case: 'any', value: true }),
  and: (ids) => principal({ $case: 'and_ids', value: { ids } }),
  or: (ids) => principal({ $case: 'or_ids', value: { ids } }),
  not: (id) => principal({ $case: 'not_id', value: id }),
};

/** What one attribute asks for: any of `values`, none of `notValues`. */
interface Condition<T> {
  values: readonly string[] | undefined;
  notValues: readonly string[] | undefined;
  httpOnly?: boolean;
  /** All values at once; throws Unmatchable. */
  match: (values: readonly string[], context: RuleContext) => T | undefined;
}

/** Each value by itself; those that can't be matched count as their rule's action demands. */
function each<T>(combine: Combine<T>, one: (value: string, context: RuleContext) => T): Condition<T>['match'] {
  return (values, context) => {
    const made = values.flatMap((value) => {
      try {
        return [one(value, context)];
      } catch (error) {
        if (context.allow || !(error instanceof Unmatchable)) throw error;
        return [];
      }
    });
    return made.length > 0 ? combine.or(made) : undefined;
  };
}

const eachPermission = (one: (value: string, context: RuleContext) => Permission): Condition<Permission>['match'] => each(permissions, one);
const eachPrincipal = (one: (value: string, context: RuleContext) => Principal): Condition<Principal>['match'] => each(principals, one);

/** Conditions that must all hold. @throws Unmatchable of an ALLOW rule that can never match */
function all<T>(combine: Combine<T>, conditions: readonly Condition<T>[], context: RuleContext): T {
  const made: T[] = [];
  for (const { values, notValues, httpOnly, match } of conditions) {
    for (const [list, negated] of [[values, false], [notValues, true]] as const) {
      if (!list?.length) continue;
      try {
        if (httpOnly && context.tcp) throw new Unmatchable('only HTTP has this attribute');
        const item = match(list, context);
        if (item !== undefined) made.push(negated ? combine.not(item) : item);
      } catch (error) {
        if (context.allow || !(error instanceof Unmatchable)) throw error;
      }
    }
  }
  return combine.and(made.length > 0 ? made : [combine.any]);
}

/** Where the end of a tunnel leaves the caller's SPIFFE id (Istio's name for it) and address. */
export const PEER_PRINCIPAL = 'io.istio.peer_principal';
export const PEER_ADDRESS = 'underpass.peer_address';

const authenticated = ({ hbone }: RuleContext, principal_name: StringMatcher): Principal =>
  principal(hbone ? { $case: 'filter_state', value: { key: PEER_PRINCIPAL, matcher: { $case: 'string_match', value: principal_name } } } : { $case: 'authenticated', value: { principal_name } });

const matchPrincipals: Condition<Principal>['match'] = (values, context) =>
  eachPrincipal((value) => authenticated(context, stringMatch(value, 'spiffe://')))(withTrustDomains(values, context.trustDomains), context);
const matchNamespaces = eachPrincipal((value, context) => authenticated(context, regexMatch(`.*/ns/${globRegex(value)}/.*`)));
const matchServiceAccounts = eachPrincipal((value, context) => {
  const slash = value.indexOf('/');
  const [ns, name] = slash < 0 ? [context.namespace, value] : [value.slice(0, slash), value.slice(slash + 1)];
  return authenticated(context, regexMatch(`spiffe://.+/ns/${escapeRegex(ns)}/(.+/|)sa/${escapeRegex(name)}(/.+)?`));
});
const matchTrustDomains: Condition<Principal>['match'] = (values, context) => {
  const expanded = values.flatMap((value) => (context.trustDomains.includes(value) ? context.trustDomains : [value]));
  return eachPrincipal((value) => authenticated(context, value.includes('*') ? regexMatch(`spiffe://${value === '*' ? '.+' : globRegex(value)}/.*`) : prefixMatch(`spiffe://${value}/`)))([...new Set(expanded)], context);
};
/** Within Envoy a connection has no address of its own, whichever was given to it: a DENY by address would let all in. */
const matchSourceIps = eachPrincipal((value, { hbone }) => principal(hbone ? { $case: 'filter_state', value: { key: PEER_ADDRESS, matcher: { $case: 'address_match', value: { ranges: [cidr(value)] } } } } : { $case: 'direct_remote_ip', value: cidr(value) }));
const matchRemoteIps = eachPrincipal((value) => principal({ $case: 'remote_ip', value: cidr(value) }));

/** `issuer/subject`, where the issuer may be an URL. */
const matchRequestPrincipals: Condition<Principal>['match'] = (values) => {
  const made = values.map((value) => {
    const [issuer, subject] = issuerAndSubject(value);
    return principals.and([principal({ $case: 'metadata', value: claimMatch('iss', issuer) }), principal({ $case: 'metadata', value: claimMatch('sub', subject) })]);
  });
  return made.length === 1 ? made[0] : principals.or(made);
};

function issuerAndSubject(value: string): [StringMatcher, StringMatcher] {
  const something = regexMatch('.+');
  const slash = value.lastIndexOf('/');
  const [issuer, subject] = slash < 0 ? [value, ''] : [value.slice(0, slash), value.slice(slash + 1)];
  if (value === '*') return [something, something];
  if (value.startsWith('*')) {
    if (slash < 0) return [something, suffixMatch(value.slice(1))];
    return [issuer === '*' ? something : suffixMatch(issuer.slice(1)), exactMatch(subject)];
  }
  if (value.endsWith('*')) {
    if (slash < 0) return [prefixMatch(value.slice(0, -1)), something];
    return [exactMatch(issuer), subject === '*' ? something : prefixMatch(subject.slice(0, -1))];
  }
  return [exactMatch(issuer), exactMatch(subject)];
}

const matchClaim = (path: readonly string[]): Condition<Principal>['match'] => (values) => principal({ $case: 'metadata', value: claimListMatch(path, values) });
const matchPorts = eachPermission((value) => permission({ $case: 'destination_port', value: portNumber(value) }));
const matchMethods = eachPermission((value) => permission({ $case: 'header', value: headerMatch(':method', value) }));
const matchHosts = eachPermission((value) => permission({ $case: 'header', value: headerMatch(':authority', value, true) }));
const matchPaths = eachPermission((value) => {
  const template = pathTemplate(value);
  return template ? permission({ $case: 'uri_template', value: template }) : permission({ $case: 'url_path', value: { rule: { $case: 'path', value: stringMatch(value) } } });
});

/** Dynamic metadata of any filter: `experimental.envoy.filters.a.b[key]`; a value in brackets is one of a list's. */
const matchFilterMetadata = (key: string): Condition<Permission>['match'] => (values) => {
  const parts = /^experimental\.([^[]+)\[(.*)\]$/.exec(key);
  if (!parts) throw new Unmatchable(`found ${JSON.stringify(key)}, expected experimental.envoy.filters.NAME[KEY]`);
  const matches = values.map((value) => (/^\[.*\]$/.test(value) ? listValue(stringValue(stringMatch(value.slice(1, -1)))) : stringValue(stringMatch(value))));
  return permission({ $case: 'metadata', value: metadataMatch(parts[1]!, [parts[2]!], anyValue(matches)) });
};

function conditionOf({ key, values, notValues }: AuthorizationCondition): { permission: Condition<Permission> } | { principal: Condition<Principal> } {
  const about = { values, notValues };
  const rest = (prefix: string): string => key.slice(prefix.length);
  switch (key) {
    case 'destination.ip':
      return { permission: { ...about, match: eachPermission((value) => permission({ $case: 'destination_ip', value: cidr(value) })) } };
    case 'destination.port':
      return { permission: { ...about, match: matchPorts } };
    case 'connection.sni':
      return { permission: { ...about, match: eachPermission((value) => permission({ $case: 'requested_server_name', value: stringMatch(value) })) } };
    case 'source.ip':
      return { principal: { ...about, match: matchSourceIps } };
    case 'remote.ip':
      return { principal: { ...about, match: matchRemoteIps } };
    case 'source.namespace':
      return { principal: { ...about, match: matchNamespaces } };
    case 'source.serviceAccount':
      return { principal: { ...about, match: matchServiceAccounts } };
    case 'source.trustDomain':
      return { principal: { ...about, match: matchTrustDomains } };
    case 'source.principal':
      return { principal: { ...about, match: matchPrincipals } };
    case 'request.auth.principal':
      return { principal: { ...about, httpOnly: true, match: matchRequestPrincipals } };
    case 'request.auth.audiences':
      return { principal: { ...about, httpOnly: true, match: matchClaim(['aud']) } };
    case 'request.auth.presenter':
      return { principal: { ...about, httpOnly: true, match: matchClaim(['azp']) } };
    default:
      break;
  }
  if (key.startsWith('experimental.envoy.filters.')) return { permission: { ...about, match: matchFilterMetadata(key) } };
  if (key.startsWith('request.headers')) {
    return { principal: { ...about, httpOnly: true, match: eachPrincipal((value) => principal({ $case: 'header', value: headerMatch(headerName(rest('request.headers')), value) })) } };
  }
  if (key.startsWith('request.experimental.inline.headers')) {
    return { principal: { ...about, httpOnly: true, match: eachPrincipal((value) => principal({ $case: 'header', value: headerListMatch(headerName(rest('request.experimental.inline.headers')), value) })) } };
  }
  if (key.startsWith('request.auth.claims')) {
    return { principal: { ...about, httpOnly: true, match: (list, context) => matchClaim(namesInBrackets(rest('request.auth.claims')))(list, context) } };
  }
  const unknown = (): never => {
    throw new Unmatchable(`${key} is no attribute of a policy`);
  };
  return { permission: { ...about, match: unknown } };
}

const sourceConditions = (source: AuthorizationSource): Condition<Principal>[] => [
  { values: source.principals, notValues: source.notPrincipals, match: matchPrincipals },
  { values: source.requestPrincipals, notValues: source.notRequestPrincipals, httpOnly: true, match: matchRequestPrincipals },
  { values: source.serviceAccounts, notValues: source.notServiceAccounts, match: matchServiceAccounts },
  { values: source.namespaces, notValues: source.notNamespaces, match: matchNamespaces },
  { values: source.trustDomains, notValues: source.notTrustDomains, match: matchTrustDomains },
  { values: source.remoteIpBlocks, notValues: source.notRemoteIpBlocks, match: matchRemoteIps },
  { values: source.ipBlocks, notValues: source.notIpBlocks, match: matchSourceIps },
];

const operationConditions = (operation: AuthorizationOperation): Condition<Permission>[] => [
  { values: operation.hosts, notValues: operation.notHosts, httpOnly: true, match: matchHosts },
  { values: operation.methods, notValues: operation.notMethods, httpOnly: true, match: matchMethods },
  { values: operation.paths, notValues: operation.notPaths, httpOnly: true, match: matchPaths },
  { values: operation.ports, notValues: operation.notPorts, match: matchPorts },
];

/** Undefined: an ALLOW rule that can never match here. */
export function rulePolicy(rule: AuthorizationRule, context: RuleContext): Policy | undefined {
  const when = (rule.when ?? []).map(conditionOf);
  const ofOperation = when.flatMap((condition) => ('permission' in condition ? [condition.permission] : []));
  const ofCaller = when.flatMap((condition) => ('principal' in condition ? [condition.principal] : []));
  try {
    return Policy.fromPartial({
      permissions: (rule.to?.length ? rule.to : [{}]).map(({ operation = {} }) => all(permissions, [...operationConditions(operation), ...ofOperation], context)),
      principals: (rule.from?.length ? rule.from : [{}]).map(({ source = {} }) => all(principals, [...sourceConditions(source), ...ofCaller], context)),
    });
  } catch (error) {
    if (error instanceof Unmatchable) return undefined;
    throw error;
  }
}
