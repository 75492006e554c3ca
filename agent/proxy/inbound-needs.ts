/**
 * For which of a pod's ports Envoy says nothing about callers but what L4 policies say, so that the kernel, which has those by
 * WDS, can say it instead. Judged from the pod's inbound listener as the control plane sent it, before it is folded; whether the
 * kernel's policies are the same ones is for agent/policy/judged-ports.ts to say.
 */
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { RBAC_Action, type Policy, type RBAC as Rules } from '../../proto/generated/envoy/config/rbac/v3/rbac.js';
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain, FilterChainMatch } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { RBAC as NetworkRbac } from '../../proto/generated/envoy/extensions/filters/network/rbac/v3/rbac.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { unpack } from '../../common/xds/any.js';
import { Facts, type XdsResource } from '../xds/resource-type.js';
import type { SidecarState } from '../xds/sidecar-stream.js';
import { configType } from './extensions.js';
import { INBOUND_PORT } from './fold-inbound.js';
import { ownServerSocket } from './fold-identity.js';
import { isEmpty, isNeutral, isNeutralChain } from './neutral-chain.js';

/** Of AuthorizationPolicies, as Istio names them in Envoy's rules. */
export interface L4Rule {
  /** `<namespace>/<name>` */
  policy: string;
  deny: boolean;
  rule: Policy;
}

export interface PortNeed {
  /** Why Envoy is needed whatever the kernel's policies are. */
  reason?: string;
  /** What it would enforce otherwise, in every one of the port's chains. */
  rules: readonly L4Rule[];
  /** Whatever comes to it is HTTP. */
  isHttp: boolean;
}

/** By port; a port that is not among them is Envoy's. */
export type InboundNeeds = ReadonlyMap<number, PortNeed>;

/** These look at what comes, for chains to be told apart by. */
const INSPECTORS: ReadonlySet<string> = new Set(['envoy.filters.listener.original_dst', 'envoy.filters.listener.tls_inspector', 'envoy.filters.listener.http_inspector']);
const RULE_NAME = /^ns\[([^\]]+)\]-policy\[([^\]]+)\]-rule\[\d+\]$/;

/** Of workloads that no Telemetry resource is for: istiod's says that Host is not asked for where there is no route. */
const STATS_OF_ISTIO: ReadonlySet<string> = new Set(['', '3001']);

const known = new Facts(readListener);

/** @param clusters of the same class: inbound ones that deliver elsewhere are Envoy's */
export function inboundNeeds(listener: Pick<XdsResource<Listener>, 'any' | 'message'>, clusters: ReadonlyMap<string, { message: Cluster }>): InboundNeeds {
  const needs = known.of(listener);
  const elsewhere = [...needs.keys()].filter((port) => clusters.get(`inbound|${port}||`)?.message.load_assignment);
  return elsewhere.length === 0 ? needs : new Map([...needs].map(([port, need]) => [port, elsewhere.includes(port) ? { ...need, reason: 'it is delivered elsewhere than to its port' } : need]));
}

/** By uid; pods of which nothing is known are left out. */
export function needsOfPods(pods: readonly { uid: string; classKey: string }[], stateOf: (classKey: string) => Pick<SidecarState, 'listeners' | 'clusters'> | undefined): Map<string, InboundNeeds> {
  return new Map(pods.flatMap(({ uid, classKey }) => {
    const state = stateOf(classKey);
    const listener = state?.listeners.get('virtualInbound');
    return listener ? [[uid, inboundNeeds(listener, state!.clusters)] as const] : [];
  }));
}

function readListener(listener: Listener): ReadonlyMap<number, PortNeed> {
  const groups = new Map<number, FilterChain[]>();
  for (const chain of listener.filter_chains) {
    const port = chain.filter_chain_match?.destination_port ?? 0;
    if (port !== 0 && port !== INBOUND_PORT) groups.set(port, [...(groups.get(port) ?? []), chain]);
  }
  const foreign = listener.listener_filters.find(({ name }) => !INSPECTORS.has(name));
  const common = listener.access_log.length > 0 ? 'all connections are logged' : foreign ? `the listener has the filter ${foreign.name}` : undefined;
  return new Map([...groups].map(([port, chains]) => [port, { ...(common === undefined ? readPort(chains) : { reason: common, rules: [] }), isHttp: chains.every(isHttp) }]));
}

function isHttp({ filters }: FilterChain): boolean {
  return filters.some(({ config_type }) => config_type?.$case === 'typed_config' && unpack(HttpConnectionManager, config_type.value) !== undefined);
}

function readPort(chains: readonly FilterChain[]): Omit<PortNeed, 'isHttp'> {
  let same: readonly L4Rule[] | undefined;
  for (const chain of chains) {
    const found = readChain(chain);
    if (typeof found === 'string') return { reason: found, rules: [] };
    // Each is tried against the kernel's anyway; of chains that differ none stands for the port.
    if (same && namesOf(same) !== namesOf(found)) return { reason: 'its filter chains have different policies', rules: [] };
    same = found;
  }
  // As in a sidecar, callers are known by its mutual TLS: where it takes none nobody has an identity.
  if (same?.length && !chains.some(({ transport_socket }) => transport_socket)) return { reason: 'it takes no mutual TLS, so that callers have no identity', rules: [] };
  return { rules: same ?? [] };
}

function namesOf(rules: readonly L4Rule[]): string {
  return rules.map(({ policy, deny }) => `${policy} ${deny}`).join();
}

function readChain(chain: FilterChain): L4Rule[] | string {
  const { filter_chain_match: match, transport_socket: socket } = chain;
  if (match && !isEmpty(FilterChainMatch, { ...match, destination_port: undefined, application_protocols: [], transport_protocol: '' })) return 'its filter chains tell connections apart by more than their protocol';
  if (socket && ownServerSocket(socket)) return 'TLS ends there with a certificate of its own';
  const rules: L4Rule[] = [];
  for (const { name, config_type } of chain.filters) {
    if (config_type?.$case !== 'typed_config') return `the filter ${name} has a say`;
    const found = readFilter(name, config_type.value, chain);
    if (typeof found === 'string') return found;
    rules.push(...found);
  }
  return rules;
}

function readFilter(name: string, config: Any, chain: FilterChain): L4Rule[] | string {
  const rbac = unpack(NetworkRbac, config);
  if (rbac) return readRbac(name, rbac);
  const tcp = unpack(TcpProxy, config);
  if (tcp?.access_log.length) return 'its connections are logged';
  if (tcp && !isEmpty(TcpProxy, { ...tcp, stat_prefix: '', cluster_specifier: undefined })) return 'its connections have settings';
  const manager = unpack(HttpConnectionManager, config);
  if (manager?.access_log.length) return 'its requests are logged';
  if (manager?.tracing?.provider) return 'its requests are traced';
  if (manager && !isNeutralChain({ ...chain, filters: chain.filters.filter((filter) => filter.name === name) })) return 'its requests are judged or changed one by one';
  if (!isNeutral(config)) return `the filter ${name} has a say`;
  return configType(config) === 'stats.PluginConfig' && !STATS_OF_ISTIO.has(config.value.toString('hex')) ? 'its metrics are changed by a Telemetry resource' : [];
}

function readRbac(name: string, rbac: NetworkRbac): L4Rule[] | string {
  if (rbac.matcher || rbac.shadow_matcher) return `the filter ${name} has a tree of matchers`;
  if (rbac.shadow_rules) return 'policies are tried without effect (dry run)';
  return rbac.rules ? readRules(name, rbac.rules) : [];
}

function readRules(name: string, { action, policies }: Rules): L4Rule[] | string {
  if (action !== RBAC_Action.ALLOW && action !== RBAC_Action.DENY) return 'its connections are audited';
  const found: L4Rule[] = [];
  for (const [key, rule] of Object.entries(policies)) {
    const [, namespace, own] = RULE_NAME.exec(key) ?? [];
    if (namespace === undefined) return `the filter ${name} has a rule ${key}, which no AuthorizationPolicy has`;
    found.push({ policy: `${namespace}/${own}`, deny: action === RBAC_Action.DENY, rule });
  }
  return found;
}
