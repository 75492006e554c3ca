/**
 * What a destination's own policy asks of those who call it. A pod whose `virtualInbound` carries policy gets two listeners
 * with the same filters: one in its network namespace, where rules redirect what arrives for it, and an internal one, where
 * this Envoy hands over what the node's own pods send. In the latter the caller's identity is known from the listener that
 * took the connection in, so it stands in for the certificate that a sidecar would have shown. In the other mutual TLS ends
 * with the certificate of the pod's account; where there is none, what asks for it is refused.
 */
import { RBAC as Rules, Principal } from '../../proto/generated/envoy/config/rbac/v3/rbac.js';
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { HeaderValueOption, HeaderValueOption_HeaderAppendAction, TrafficDirection } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain, FilterChainMatch, ListenerFilter, ListenerFilterChainMatchPredicate, type Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RBAC as HttpRbac } from '../../proto/generated/envoy/extensions/filters/http/rbac/v3/rbac.js';
import { HttpInspector } from '../../proto/generated/envoy/extensions/filters/listener/http_inspector/v3/http_inspector.js';
import { OriginalSrc } from '../../proto/generated/envoy/extensions/filters/listener/original_src/v3/original_src.js';
import { OriginalDst } from '../../proto/generated/envoy/extensions/filters/listener/original_dst/v3/original_dst.js';
import { TlsInspector } from '../../proto/generated/envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { RBAC as NetworkRbac } from '../../proto/generated/envoy/extensions/filters/network/rbac/v3/rbac.js';
import type { StringMatcher } from '../../proto/generated/envoy/type/matcher/v3/string.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { PEER_HEADER } from '../../common/telemetry/peer-header.js';
import { pack, unpack } from '../../common/xds/any.js';
import { changeManager } from '../http/taught-listeners.js';
import { contentHash } from '../xds/resource-type.js';
import { byCallerAddress } from './caller-address.js';
import type { EnvoyExtensions } from './extensions.js';
import { acceptedAddress } from './filter-state.js';
import { ORIGINAL_DST, socketAddress } from './fold-endpoints.js';
import { ownServerSocket, peerNames, serverSocket } from './fold-identity.js';
import { blackHole, foldChain } from './fold-listeners.js';
import { throughInternal } from './internal-endpoints.js';
import { isNeutralChain } from './neutral-chain.js';
import { PEER_PRINCIPAL, podStatPrefix, SHOWN_SOURCE, SOURCE_ADDRESS, type ListenerPod } from './pod-listener.js';
import type { Entry } from './snapshot.js';
import { unreadRules } from './unread-rules.js';

/** Where a pod's rules redirect what arrives for it; a sidecar's number. */
export const INBOUND_PORT = 15006;
const TLS_INSPECTOR = 'envoy.filters.listener.tls_inspector';
const HTTP_INSPECTOR = 'envoy.filters.listener.http_inspector';
const ORIGINAL_SRC = 'envoy.filters.listener.original_src';
const REMOTE_ADDRESS = `${ORIGINAL_DST}.remote_ip`;
type Family = keyof typeof SHOWN_SOURCE;
/** Metadata of endpoints of the other family: with it the format of this one's source gives no address. */
const CALLED_BY_OTHER: Readonly<Record<Family, string>> = { ipv4: 'called_by_ipv6', ipv6: 'called_by_ipv4' };
const PLAINTEXT_HTTP = ['http/1.0', 'http/1.1', 'h2c'];

export interface FoldedInbound {
  /** Callers have to pass it: some policy has a say in who may call, or it does more than pass on what comes. */
  enforces: boolean;
  /** For what comes over the network. */
  direct: FilterChain[];
  /** For what comes from pods of this node, with their identity. */
  mesh: FilterChain[];
  /** Chains that let nobody in, since their rules can't be enforced, and why. */
  refused: string[];
  /** Names that the certificates of callers with mutual TLS may have; empty where it takes none. */
  peers: StringMatcher[];
  hash: string;
}

/** Lets nobody in: for a listener that can't be folded. */
export const CLOSED: FoldedInbound = finish(true, [], [], [], []);

/**
 * @param identity the pod's SPIFFE id, when there are certificates
 * @throws FoldError when it needs what this Envoy lacks
 */
export function foldInbound(listener: Listener, extensions: EnvoyExtensions, identity?: string): FoldedInbound {
  const refused: string[] = [];
  const closedIfUnread = (chain: FilterChain): FilterChain => {
    const why = unreadRules(chain);
    if (why === undefined) return chain;
    refused.push(why);
    return { ...blackHole(chain.name, chain.filter_chain_match), transport_socket: chain.transport_socket };
  };
  const chains = [...listener.filter_chains, ...(listener.default_filter_chain ? [{ ...listener.default_filter_chain, filter_chain_match: undefined }] : [])]
    .filter((chain) => chain.filter_chain_match?.destination_port !== INBOUND_PORT)
    .map((chain) => closedIfUnread(withOwnTls(foldChain(chain, extensions), refused)));
  const groups = new Map<number, FilterChain[]>();
  for (const chain of chains) groups.set(portOf(chain), [...(groups.get(portOf(chain)) ?? []), chain]);
  const isStrict = [...groups.values()].some((group) => !group.some(takesPlaintext));
  const direct = chains.map((chain) => {
    if (!endsMeshTls(chain)) return chain;
    const socket = identity === undefined ? undefined : serverSocket(chain.transport_socket!, identity);
    return socket ? { ...withoutPeerHeader(chain), transport_socket: socket } : blackHole(chain.name, chain.filter_chain_match);
  });
  const mesh = [...groups.values()].flatMap((group) => withoutInspection(meshChains(group))).map(byCallerAddress);
  const peers = chains.filter(endsMeshTls).map(({ transport_socket }) => peerNames(transport_socket)).find(({ length }) => length > 0) ?? [];
  return finish(isStrict || refused.length > 0 || !chains.every(isNeutralChain), distinct(direct), distinct(mesh), [...new Set(refused)], peers);
}

function finish(enforces: boolean, direct: FilterChain[], mesh: FilterChain[], refused: string[], peers: StringMatcher[]): FoldedInbound {
  const loop = blackHole('loop', FilterChainMatch.fromPartial({ destination_port: INBOUND_PORT }));
  const all = { direct: [loop, ...direct], mesh: [loop, ...mesh] };
  const hash = contentHash(Listener, { ...Listener.fromPartial({}), filter_chains: [...all.direct, ...all.mesh] });
  return { enforces, ...all, refused, peers, hash };
}

function portOf({ filter_chain_match }: FilterChain): number {
  return filter_chain_match?.destination_port ?? 0;
}

function takesPlaintext(chain: FilterChain): boolean {
  return !chain.transport_socket && chain.filter_chain_match?.transport_protocol !== 'tls';
}

function endsMeshTls(chain: FilterChain): boolean {
  return chain.transport_socket !== undefined && !ownServerSocket(chain.transport_socket);
}

/** TLS that ends with a certificate of the workload's own, by files of the node; with secrets, which nobody serves here, it lets nobody in. */
function withOwnTls(chain: FilterChain, refused: string[]): FilterChain {
  const own = ownServerSocket(chain.transport_socket);
  if (!own) return chain;
  if (!own.needsSecrets) return { ...chain, transport_socket: own.socket };
  refused.push(`chain "${chain.name}": its certificate is in a Secret; the node's Envoy reads files alone`);
  return blackHole(chain.name, chain.filter_chain_match);
}

/** What a client's sidecar says of itself is for a sidecar here, which there is not; no application is to see it. */
function withoutPeerHeader(chain: FilterChain): FilterChain {
  return changeManager(chain, ({ route_specifier: specifier }) => {
    if (specifier?.$case === 'route_config') specifier.value.request_headers_to_remove.push(PEER_HEADER);
  });
}

/** One port's chains as its node's own pods meet them: where mutual TLS is asked for, their identity is enough. */
function meshChains(group: FilterChain[]): FilterChain[] {
  const ends = group.filter(endsMeshTls);
  if (ends.length === 0) return group;
  const plain = group.filter((chain) => !endsMeshTls(chain));
  if (plain.some(takesPlaintext)) return plain.map(withCaller);
  const hasTcp = ends.some((chain) => !isHttp(chain));
  return ends.map((chain) => {
    const { destination_port, prefix_ranges = [] } = chain.filter_chain_match ?? {};
    const match = FilterChainMatch.fromPartial({ prefix_ranges, application_protocols: isHttp(chain) && hasTcp ? PLAINTEXT_HTTP : [] });
    match.destination_port = destination_port;
    return withCaller({ ...chain, transport_socket: undefined, filter_chain_match: match });
  });
}

/**
 * TLS that the application ends itself is bytes like any others. A port where both lead the same way is not to be inspected:
 * a caller that is silent, or sends less than a TLS record's head, would wait for ever.
 */
function withoutInspection(group: FilterChain[]): FilterChain[] {
  const [first, second, more] = group;
  if (!first || !second || more || first.transport_socket || second.transport_socket) return group;
  const transports = new Set([first, second].map(({ filter_chain_match }) => filter_chain_match?.transport_protocol));
  if (!transports.has('tls') || !transports.has('raw_buffer')) return group;
  const [one, other] = [first, second].map((chain) => ({ ...chain, name: '', filter_chain_match: FilterChainMatch.fromPartial({ ...chain.filter_chain_match, transport_protocol: '' } as never) }));
  return contentHash(FilterChain, one!) === contentHash(FilterChain, other!) ? [{ ...first, filter_chain_match: one!.filter_chain_match }] : group;
}

/** Of chains that match the same the first counts; Envoy refuses the second. */
function distinct(chains: FilterChain[]): FilterChain[] {
  const seen = new Set<string>();
  return chains.filter(({ filter_chain_match: match }) => {
    const key = JSON.stringify(FilterChainMatch.toJSON(match ?? FilterChainMatch.fromPartial({})));
    return !seen.has(key) && seen.add(key);
  });
}

function isHttp(chain: FilterChain): boolean {
  return chain.filters.some(({ config_type }) => config_type?.$case === 'typed_config' && unpack(HttpConnectionManager, config_type.value));
}

/** What looks for the caller's certificate looks for the identity that its listener gave the connection. */
function withCaller(chain: FilterChain): FilterChain {
  return { ...chain, filters: chain.filters.map((filter): Filter => (filter.config_type?.$case === 'typed_config' ? { ...filter, config_type: { $case: 'typed_config', value: callerFromState(filter.config_type.value) } } : filter)) };
}

function callerFromState(config: Any): Any {
  const network = unpack(NetworkRbac, config);
  if (network) {
    for (const rules of [network.rules, network.shadow_rules]) rewrite(rules);
    return pack(NetworkRbac, network);
  }
  const http = unpack(HttpRbac, config);
  if (http) {
    for (const rules of [http.rules, http.shadow_rules]) rewrite(rules);
    return pack(HttpRbac, http);
  }
  const manager = unpack(HttpConnectionManager, config);
  if (!manager) return config;
  for (const filter of manager.http_filters) {
    if (filter.config_type?.$case === 'typed_config') filter.config_type.value = callerFromState(filter.config_type.value);
  }
  // As a sidecar tells its application; what the caller itself wrote there is dropped, there being no certificate.
  if (manager.route_specifier?.$case === 'route_config') {
    manager.route_specifier.value.request_headers_to_add.push(HeaderValueOption.fromPartial({ header: { key: 'x-forwarded-client-cert', value: `URI=%FILTER_STATE(${PEER_PRINCIPAL}:PLAIN)%` }, append_action: HeaderValueOption_HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD }));
  }
  return pack(HttpConnectionManager, manager);
}

function rewrite(rules: Rules | undefined): void {
  for (const policy of Object.values(rules?.policies ?? {})) policy.principals = policy.principals.map(fromState);
}

function fromState(principal: Principal): Principal {
  const { identifier } = principal;
  switch (identifier?.$case) {
    case 'and_ids':
    case 'or_ids':
      return Principal.fromPartial({ identifier: { $case: identifier.$case, value: { ids: identifier.value.ids.map(fromState) } } });
    case 'not_id':
      return Principal.fromPartial({ identifier: { $case: 'not_id', value: fromState(identifier.value) } });
    case 'authenticated': {
      const value = identifier.value.principal_name ?? { match_pattern: { $case: 'safe_regex' as const, value: { regex: '.+' } } };
      return Principal.fromPartial({ identifier: { $case: 'filter_state', value: { key: PEER_PRINCIPAL, matcher: { $case: 'string_match', value } } } });
    }
    default:
      return principal;
  }
}

type Asks = (match: FilterChainMatch) => boolean;

const asksForTls: Asks = (match) => match.transport_protocol === 'tls';
/** Of what is plaintext: names of protocols beside TLS are those that its handshake offers. */
const asksForHttp: Asks = (match) => match.transport_protocol !== 'tls' && match.application_protocols.length > 0;

/** Ports of which no chain asks for that: a client of theirs may be silent, or send what an inspector would wait for the rest of. */
function silentPorts(chains: readonly FilterChain[], asks: Asks): number[] {
  const asking = new Set(chains.filter(({ filter_chain_match: match }) => match && asks(match)).map(portOf));
  return [...new Set(chains.map(portOf))].filter((port) => port !== 0 && !asking.has(port)).sort((a, b) => a - b);
}

function listenerFilter(name: string, value: Any, silent: readonly number[] = []): ListenerFilter {
  const rules = silent.map((port) => ListenerFilterChainMatchPredicate.fromPartial({ rule: { $case: 'destination_port_range', value: { start: port, end: port + 1 } } }));
  const filter = ListenerFilter.fromPartial({ name, config_type: { $case: 'typed_config', value } });
  if (rules.length > 0) filter.filter_disabled = rules.length === 1 ? rules[0] : ListenerFilterChainMatchPredicate.fromPartial({ rule: { $case: 'or_match', value: { rules } } });
  return filter;
}

const originalDestination = (): ListenerFilter => listenerFilter(ORIGINAL_DST, pack(OriginalDst, OriginalDst.fromPartial({})));
/** What is opened upstream is bound to the connection's remote address: see bpf/source.h. */
const originalSource = (without: readonly number[]): ListenerFilter => listenerFilter(ORIGINAL_SRC, pack(OriginalSrc, OriginalSrc.fromPartial({})), without);

/**
 * For the time of one filter the connection's remote address is the one to be shown, of the family of the address that is
 * called: none where the caller has none of it. After that it is the caller's, as policies and logs mean it.
 */
function shownSource(without: readonly number[]): ListenerFilter[] {
  const shown = (family: Family): ListenerFilter => acceptedAddress(`underpass.shown_source.${family}`, REMOTE_ADDRESS, `%FILTER_STATE(${SHOWN_SOURCE[family]}:PLAIN)%%DYNAMIC_METADATA(${ORIGINAL_DST}:${CALLED_BY_OTHER[family]})%`);
  return [shown('ipv4'), shown('ipv6'), originalDestination(), originalSource(without)];
}

function inspectors(chains: readonly FilterChain[]): ListenerFilter[] {
  return [
    listenerFilter(TLS_INSPECTOR, pack(TlsInspector, TlsInspector.fromPartial({})), silentPorts(chains, asksForTls)),
    listenerFilter(HTTP_INSPECTOR, pack(HttpInspector, HttpInspector.fromPartial({})), silentPorts(chains, asksForHttp)),
  ];
}

export function inboundListenerName(uid: string): string {
  return `pod/${uid}/inbound`;
}

export function inboundStatPrefix(uid: string): string {
  return `${podStatPrefix(uid)}_inbound`;
}

/** Named by its content: connections that were pooled under older policies lead to another listener, and end. */
export function meshListenerName(uid: string, { hash }: Pick<FoldedInbound, 'hash'>): string {
  return `pod/${uid}/inbound-mesh/${hash.slice(0, 12)}`;
}

export function isInboundCluster(name: string): boolean {
  return name.startsWith('inbound|') || name === 'InboundPassthroughCluster';
}

/**
 * @param rename gives the pod's chains, for callers from this node or over the network, their cluster names
 * @param delivered ports that lead where the control plane says, and not where the caller meant: perhaps by another family
 */
export function inboundListeners(pod: ListenerPod, folded: FoldedInbound, rename: (chain: FilterChain, from: 'node' | 'network') => FilterChain, delivered: readonly number[] = []): Entry[] {
  const common = { traffic_direction: TrafficDirection.INBOUND, continue_on_listener_filters_timeout: true, listener_filters_timeout: { seconds: 0n, nanos: 0 } };
  const direct = Listener.fromPartial({
    ...common,
    name: inboundListenerName(pod.uid),
    stat_prefix: inboundStatPrefix(pod.uid),
    address: socketAddress('0.0.0.0', INBOUND_PORT, pod.netnsPath),
    additional_addresses: pod.ipv6 ? [{ address: socketAddress('::', INBOUND_PORT, pod.netnsPath) }] : [],
  });
  direct.listener_filters = [originalDestination(), ...(pod.showsCallers ? [originalSource(delivered)] : []), ...inspectors(folded.direct)];
  direct.filter_chains = folded.direct.map((chain) => rename(chain, 'network'));
  const mesh = Listener.fromPartial({ ...common, name: meshListenerName(pod.uid, folded), stat_prefix: `pod_${pod.uid}_inbound_mesh`, listener_specifier: { $case: 'internal_listener', value: {} } });
  mesh.listener_filters = [...(pod.showsCallers ? shownSource(delivered) : []), acceptedAddress('underpass.source', REMOTE_ADDRESS, `%FILTER_STATE(${SOURCE_ADDRESS}:PLAIN)%`), originalDestination(), ...inspectors(folded.mesh)];
  mesh.filter_chains = folded.mesh.map((chain) => rename(chain, 'node'));
  // A failed bind would leave Envoy's main thread in the pod's namespace; without the listener nobody is redirected, and the kernel refuses whom Envoy would have to judge.
  return [...(pod.canRedirect === false ? [] : [direct]), mesh].map((listener) => ({ name: listener.name, version: contentHash(Listener, listener), any: pack(Listener, listener), needs: [] }));
}

/** What an endpoint's metadata tells a pod's internal listener: the family of the address that is called. */
export function calledBy(address: string): Record<string, string> {
  return { [CALLED_BY_OTHER[address.includes(':') ? 'ipv4' : 'ipv6']]: 'x' };
}

/**
 * The cluster and endpoints with pods that enforce policy behind their internal listeners.
 * @param inbound addresses of those pods, and the names of those listeners
 */
export function throughInbound(cluster: Cluster, assignment: ClusterLoadAssignment | undefined, inbound: ReadonlyMap<string, string>): { cluster: Cluster; assignment: ClusterLoadAssignment | undefined } {
  return inbound.size === 0 ? { cluster, assignment } : throughInternal(cluster, assignment, 'inbound', (address) => inbound.get(address), calledBy);
}
