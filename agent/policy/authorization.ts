/**
 * Istio's L4 authorization (istio.security.Authorization) as ztunnel reads it: groups are alternatives, the clauses of a group
 * hold together, the matches of a clause are alternatives, and all that a match names has to hold. A DENY that fits refuses;
 * otherwise, where there is any ALLOW, one has to fit.
 */
import { Action, type Authorization, type Match, type Scope, type StringMatch } from '../../proto/generated/istio/security/authorization.js';

/** Who opens a connection, as the control plane knows it. */
export interface Identity {
  trustDomain: string;
  namespace: string;
  serviceAccount: string;
}

type Report = (field: string, problem: string) => void;

/** Reports each field that can't be judged by: a rule that is half understood would let in, or keep out, others than it says. */
export function checkAuthorization(policy: Authorization, report: Report): void {
  checkKnown(policy, '', report);
  if (!policy.name) report('name', 'is empty');
  if (!SCOPES.has(policy.scope)) report('scope', `is ${policy.scope}, expected 0 (global), 1 (namespace) or 2 (workload selector)`);
  if (policy.action !== Action.ALLOW && policy.action !== Action.DENY) report('action', `is ${policy.action}, expected 0 (allow) or 1 (deny)`);
  policy.groups.forEach((group, g) => {
    checkKnown(group, `groups[${g}]`, report);
    group.rules.forEach((rules, r) => {
      checkKnown(rules, `groups[${g}].rules[${r}]`, report);
      rules.matches.forEach((match, m) => checkMatch(match, `groups[${g}].rules[${r}].matches[${m}]`, report));
    });
  });
}

const SCOPES: ReadonlySet<Scope> = new Set([0, 1, 2]);

function checkMatch(match: Match, at: string, report: Report): void {
  checkKnown(match, at, report);
  for (const field of ['namespaces', 'not_namespaces', 'principals', 'not_principals'] as const) {
    match[field].forEach((text, i) => {
      checkKnown(text, `${at}.${field}[${i}]`, report);
      if (!text.match_type) report(`${at}.${field}[${i}]`, 'is neither exact, prefix, suffix nor presence');
    });
  }
  for (const field of ['source_ips', 'not_source_ips', 'destination_ips', 'not_destination_ips'] as const) {
    match[field].forEach(({ address, length, ...rest }, i) => {
      checkKnown(rest, `${at}.${field}[${i}]`, report);
      if (address.length !== 4 && address.length !== 16) report(`${at}.${field}[${i}].address`, `has ${address.length} bytes, expected 4 or 16`);
      else if (length > address.length * 8) report(`${at}.${field}[${i}].length`, `is ${length}, expected at most ${address.length * 8}`);
    });
  }
  for (const field of ['destination_ports', 'not_destination_ports'] as const) {
    match[field].forEach((port, i) => {
      if (port < 1 || port > 65_535) report(`${at}.${field}[${i}]`, `is ${port}, expected 1 to 65535`);
    });
  }
  for (const field of ['service_accounts', 'not_service_accounts'] as const) {
    match[field].forEach((account, i) => {
      checkKnown(account, `${at}.${field}[${i}]`, report);
      if (!account.service_account) report(`${at}.${field}[${i}].service_account`, 'is empty');
    });
  }
}

/** A field of a later version may be what narrows a rule. */
function checkKnown(message: { _unknownFields?: { [tag: number]: Uint8Array[] } | undefined }, at: string, report: Report): void {
  for (const tag of Object.keys(message._unknownFields ?? {})) report(at, `has a field ${Number(tag) >>> 3}, which is not known here`);
}

/** What of a match is about the caller's identity; what is about addresses and ports is not looked at. */
export function fitsIdentity(match: Match, identity: Identity | undefined): boolean {
  const { namespaces, not_namespaces, principals, not_principals, service_accounts, not_service_accounts } = match;
  const principal = identity && `${identity.trustDomain}/ns/${identity.namespace}/sa/${identity.serviceAccount}`;
  const isPrincipal = (text: StringMatch): boolean => principal !== undefined && fitsText(text, principal);
  const isNamespace = (text: StringMatch): boolean => fitsText(text, identity?.namespace ?? '');
  const isAccount = (account: Match['service_accounts'][number]): boolean => identity?.namespace === account.namespace && identity.serviceAccount === account.service_account;
  return within(principals, not_principals, isPrincipal) && within(namespaces, not_namespaces, isNamespace) && within(service_accounts, not_service_accounts, isAccount);
}

function within<T>(positive: readonly T[], negative: readonly T[], fits: (item: T) => boolean): boolean {
  return (positive.length === 0 || positive.some(fits)) && !negative.some(fits);
}

function fitsText({ match_type: type }: StringMatch, text: string): boolean {
  switch (type?.$case) {
    case 'exact':
      return text === type.value;
    case 'prefix':
      return text.startsWith(type.value);
    case 'suffix':
      return text.endsWith(type.value);
    case 'presence':
      return text !== '';
    default:
      return false;
  }
}

/** Names nothing. ztunnel lets such a match of an ALLOW fit nobody; a DENY that was written with more than L4 knows fits all. */
export function isEmptyMatch(match: Match): boolean {
  return Object.entries(match).every(([field, values]) => field === '_unknownFields' || (values as unknown[]).length === 0);
}
