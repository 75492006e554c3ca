/**
 * WDS: `istio.security.Authorization`, what proxies without HTTP (ztunnels, node agents) enforce: AuthorizationPolicies as
 * far as they can be judged by the connection alone, and PeerAuthentications turned into rules that refuse plaintext.
 */
import { isIP } from 'node:net';
import { Action, Authorization, Scope, type Address, type Match, type Rules, type ServiceAccountMatch, type StringMatch } from '../../proto/generated/istio/security/authorization.js';
import type { AuthorizationCondition, AuthorizationPolicy, AuthorizationRule, PeerAuthentication } from '../../common/kube/types.js';
import { selects } from '../model/configs.js';
import type { Model } from '../model/model.js';
import { modeOf, peerAuthentications, selectorLabels } from '../model/peer-authentication.js';
import { addressBytes } from './address-bytes.js';
import { makeResource, type Resource } from './resource.js';
import { actionOf, isDryRun } from './security/authorization.js';
import { targetRefsOf } from './security/targets.js';

/** Underscores: no object of Kubernetes can have these names. */
const STATIC_STRICT = 'istio_converted_static_strict';
const CONVERTED_PREFIX = 'converted_peer_authentication_';

const name = (namespace: string | undefined, own: string): string => `${namespace ?? 'default'}/${own}`;

export function authorizationNames(model: Model): string[] {
  const peers = model.configs.all<PeerAuthentication>('PeerAuthentication');
  return [
    ...model.configs.all<AuthorizationPolicy>('AuthorizationPolicy').map(({ object: { metadata } }) => name(metadata.namespace, metadata.name)),
    ...peers.map(({ object: { metadata } }) => name(metadata.namespace, CONVERTED_PREFIX + metadata.name)),
    ...(peers.length > 0 ? [name(model.mesh.rootNamespace, STATIC_STRICT)] : []),
  ];
}

export function authorization(model: Model, full: string): Resource | undefined {
  const slash = full.indexOf('/');
  const [namespace, own] = [full.slice(0, slash), full.slice(slash + 1)];
  const message = own === STATIC_STRICT ? staticStrict(model, namespace) : own.startsWith(CONVERTED_PREFIX) ? ofPeer(model, namespace, own.slice(CONVERTED_PREFIX.length)) : ofPolicy(model, namespace, own);
  return message && makeResource(full, Authorization, message);
}

/** The policies that a workload has by name; those of its namespace and of the mesh hold without. */
export function policiesOfWorkload(model: Model, namespace: string, labels: Readonly<Record<string, string>>): string[] {
  const { rootNamespace } = model.mesh;
  const selected = [...new Set([rootNamespace, namespace])].flatMap((place) =>
    model.configs.inNamespace<AuthorizationPolicy>('AuthorizationPolicy', place).filter(({ object }) => {
      const selector = selectorLabels(object.spec?.selector);
      return selector !== undefined && selects(selector, labels) && isServed(object);
    }),
  );
  return [...selected.map(({ object: { metadata } }) => name(metadata.namespace, metadata.name)).sort(), ...peerPolicies(model, namespace, labels)];
}

/** AUDIT and CUSTOM need a proxy that knows HTTP; policies with targetRefs are gateways'. */
function isServed(policy: AuthorizationPolicy): boolean {
  return !isDryRun(policy) && targetRefsOf(policy).length === 0 && ['ALLOW', 'DENY'].includes(actionOf(policy));
}

function ofPolicy(model: Model, namespace: string, own: string): Authorization | undefined {
  const policy = model.configs.get<AuthorizationPolicy>('AuthorizationPolicy', namespace, own)?.object;
  if (!policy || !isServed(policy)) return undefined;
  const allow = actionOf(policy) === 'ALLOW';
  const groups = (policy.spec?.rules ?? []).flatMap((rule) => {
    const rules = rulesOf(rule ?? {}, namespace, allow);
    return rules ? [{ rules }] : [];
  });
  return Authorization.fromPartial({
    name: own,
    namespace,
    scope: selectorLabels(policy.spec?.selector) ? Scope.WORKLOAD_SELECTOR : namespace === model.mesh.rootNamespace ? Scope.GLOBAL : Scope.NAMESPACE,
    action: allow ? Action.ALLOW : Action.DENY,
    groups,
  });
}

/** Undefined: an ALLOW rule that asks for HTTP never holds. A DENY rule holds without what it asks of HTTP. */
function rulesOf({ from = [], to = [], when = [] }: AuthorizationRule, namespace: string, allow: boolean): Rules[] | undefined {
  let http = when.some(({ key }) => !(key in L4_CONDITIONS));
  const operations = to.map(({ operation = {} }) => {
    const { hosts, notHosts, methods, notMethods, paths, notPaths } = operation;
    http ||= [hosts, notHosts, methods, notMethods, paths, notPaths].some((values) => values?.length);
    return match({ destination_ports: ports(operation.ports), not_destination_ports: ports(operation.notPorts) });
  });
  const sources = from.map(({ source = {} }) => {
    // Trust domains are no matter of HTTP, but WDS has no word for them.
    http ||= [source.trustDomains, source.notTrustDomains, source.remoteIpBlocks, source.notRemoteIpBlocks, source.requestPrincipals, source.notRequestPrincipals].some((values) => values?.length);
    return match({
      source_ips: addresses(source.ipBlocks),
      not_source_ips: addresses(source.notIpBlocks),
      namespaces: strings(source.namespaces),
      not_namespaces: strings(source.notNamespaces),
      service_accounts: serviceAccounts(source.serviceAccounts, namespace),
      not_service_accounts: serviceAccounts(source.notServiceAccounts, namespace),
      principals: strings(source.principals),
      not_principals: strings(source.notPrincipals),
    });
  });
  if (http && allow) return undefined;
  return [operations, sources, ...when.map((condition) => [conditionMatch(condition)])].filter((matches) => matches.length > 0).map((matches) => ({ matches }));
}

const match = (about: Partial<Match>): Match => ({
  namespaces: [], not_namespaces: [], principals: [], not_principals: [], source_ips: [], not_source_ips: [], destination_ips: [], not_destination_ips: [],
  destination_ports: [], not_destination_ports: [], service_accounts: [], not_service_accounts: [], ...about,
});

const L4_CONDITIONS: Readonly<Record<string, (condition: AuthorizationCondition) => Partial<Match>>> = {
  'source.ip': ({ values, notValues }) => ({ source_ips: addresses(values), not_source_ips: addresses(notValues) }),
  'source.namespace': ({ values, notValues }) => ({ namespaces: strings(values), not_namespaces: strings(notValues) }),
  'source.principal': ({ values, notValues }) => ({ principals: strings(values), not_principals: strings(notValues) }),
  'destination.ip': ({ values, notValues }) => ({ destination_ips: addresses(values), not_destination_ips: addresses(notValues) }),
  'destination.port': ({ values, notValues }) => ({ destination_ports: ports(values), not_destination_ports: ports(notValues) }),
};

function conditionMatch(condition: AuthorizationCondition): Match {
  return match(L4_CONDITIONS[condition.key]?.(condition) ?? {});
}

const strings = (values: readonly string[] = []): StringMatch[] =>
  values.map((value) => {
    if (value === '*') return PRESENT;
    if (value.startsWith('*')) return { match_type: { $case: 'suffix', value: value.slice(1) } };
    if (value.endsWith('*')) return { match_type: { $case: 'prefix', value: value.slice(0, -1) } };
    return { match_type: { $case: 'exact', value } };
  });

const PRESENT: StringMatch = { match_type: { $case: 'presence', value: {} } };

const serviceAccounts = (values: readonly string[] = [], namespace: string): ServiceAccountMatch[] =>
  values.map((value) => {
    const slash = value.indexOf('/');
    return slash < 0 ? { namespace, service_account: value } : { namespace: value.slice(0, slash), service_account: value.slice(slash + 1) };
  });

const ports = (values: readonly string[] = []): number[] => values.filter((value) => /^\d+$/.test(value) && Number(value) <= 65_535).map(Number);

const addresses = (values: readonly string[] = []): Address[] =>
  values.flatMap((value) => {
    const [address = '', length] = value.split('/');
    const family = isIP(address);
    return family === 0 ? [] : [{ address: addressBytes(address), length: length === undefined ? (family === 6 ? 128 : 32) : Number(length) }];
  });

const NO_IDENTITY: Rules = { matches: [match({ not_principals: [PRESENT] })] };

/** Refuses whoever has no identity. Served as soon as there is any PeerAuthentication, for those workloads that name it. */
function staticStrict(model: Model, namespace: string): Authorization | undefined {
  if (namespace !== model.mesh.rootNamespace || model.configs.all('PeerAuthentication').length === 0) return undefined;
  return Authorization.fromPartial({ name: STATIC_STRICT, namespace, scope: Scope.WORKLOAD_SELECTOR, action: Action.DENY, groups: [{ rules: [NO_IDENTITY] }] });
}

/** What a PeerAuthentication with modes by port amounts to; undefined where that is nothing that the static policy does not say. */
function ofPeer(model: Model, namespace: string, own: string): Authorization | undefined {
  const peer = model.configs.get<PeerAuthentication>('PeerAuthentication', namespace, own)?.object;
  const selector = selectorLabels(peer?.spec?.selector);
  const modes = Object.entries(peer?.spec?.portLevelMtls ?? {}).map(([port, mtls]) => ({ port: Number(port), mode: modeOf(mtls) }));
  if (!peer || !selector || namespace === model.mesh.rootNamespace || modes.length === 0) return undefined;
  const strict = strictByDefault(model, peer);
  modes.sort((a, b) => a.port - b.port);
  const exceptions = modes.filter(({ mode }) => mode === 'PERMISSIVE' || mode === 'DISABLE').map(({ port }) => ({ matches: [match({ not_destination_ports: [port] })] }));
  const strictPorts = modes.filter(({ mode }) => mode === 'STRICT').map(({ port }) => ({ rules: [{ matches: [match({ not_principals: [PRESENT], destination_ports: [port] })] }] }));
  // Groups are alternatives, the rules of a group hold together.
  const inherited = modeOf(peer.spec?.mtls) === undefined;
  const groups = !strict ? strictPorts : exceptions.length > 0 ? [{ rules: inherited ? [...exceptions, NO_IDENTITY] : [NO_IDENTITY, ...exceptions] }] : [];
  if (groups.length === 0) return undefined;
  return Authorization.fromPartial({ name: CONVERTED_PREFIX + own, namespace, scope: Scope.WORKLOAD_SELECTOR, action: Action.DENY, groups });
}

/** Whether ports of the workload that have no mode of their own are STRICT. */
function strictByDefault(model: Model, peer: PeerAuthentication): boolean {
  const { namespace, mesh } = peerAuthentications(model, peer.metadata.namespace ?? 'default', {});
  return (modeOf(peer.spec?.mtls) ?? modeOf(namespace?.spec?.mtls) ?? modeOf(mesh?.spec?.mtls)) === 'STRICT';
}

function peerPolicies(model: Model, namespace: string, labels: Readonly<Record<string, string>>): string[] {
  if (model.configs.all('PeerAuthentication').length === 0) return [];
  const found = peerAuthentications(model, namespace, labels);
  const mode = modeOf(found.workload?.spec?.mtls) ?? modeOf(found.namespace?.spec?.mtls) ?? modeOf(found.mesh?.spec?.mtls);
  const own = found.workload && ofPeer(model, namespace, found.workload.metadata.name);
  if (own) return [name(own.namespace, own.name)];
  return mode === 'STRICT' ? [name(model.mesh.rootNamespace, STATIC_STRICT)] : [];
}
