/**
 * Folds a class's outbound listeners into the filter chains of one listener. A sidecar hands each connection over to the
 * listener of its original destination; listeners are found by address alone, so in a shared Envoy that would mix pods.
 * Here each pod's one listener holds the chains of all of them, told apart by destination port and address.
 */
import { isIPv6 } from 'node:net';
import type { AccessLog } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import { TrafficDirection } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { CidrRange } from '../../proto/generated/envoy/config/core/v3/address.js';
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain, type Filter, type FilterChainMatch } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { pack, unpack } from '../../common/xds/any.js';
import { canonical } from '../xds/resource-type.js';
import { named, observed, OUTBOUND_OWNER } from './access-logs.js';
import { deadEnds, endsIn, narrowed } from './chain-match.js';
import { bounded } from './log-bound.js';
import type { XdsResource } from '../xds/resource-type.js';
import type { EnvoyExtensions } from './extensions.js';
import { renameCallouts, renameLogs, renameManagerCallouts } from './fold-callouts.js';
import { refuseNamedIdentity } from './fold-identity.js';
import { foldInlineRoutes, mirrorClusterName, renameClusters, spansClusterName, type Rename } from './fold-routes.js';
import { DIRECT_PORTS, inspectionChain, inspectionName, type InspectionKind } from './inspection.js';
import { listenerFact } from './state-facts.js';
import { FoldError, keepExtension, stockFactory } from './stock.js';
import { SetFilterState, packSetFilterState } from './filter-state.js';

/** Where captured connections arrive; the same port as a sidecar's, so that rules and tools that know it fit. */
export const OUTBOUND_PORT = 15001;

/**
 * Plain TCP beyond this many chains is handed on to an internal listener of the class: each pod's listener has its own copy of
 * its chains, here and in Envoy, and a mesh may have thousands of TCP services.
 */
export const MANY_PLAIN_CHAINS = 64;

const PASSTHROUGH = 'PassthroughCluster';

export interface FoldedListeners {
  /** Of the pods' listeners. */
  chains: FilterChain[];
  /** Of the class's internal listeners, that inspect what is sent to them, or do not. */
  inspected: Record<InspectionKind, FilterChain[]>;
  /** What matched no service: passthrough, or refusal in REGISTRY_ONLY. */
  defaultChain: FilterChain;
  accessLog: AccessLog[];
  /** Plain TCP is handed on. */
  handsOn: boolean;
  /** Names of chains of the pods' listeners without which what they serve is handed on to the same in an internal listener. */
  dispensable: ReadonlySet<string>;
  /** Of the pods' listeners: hands on what has no chain there. */
  others: FilterChain;
  /** Requests are traced: the pods' listeners say which pod it is that traces. */
  isTraced?: boolean;
  /** Listeners that were left out, and why. */
  errors: { listener: string; message: string }[];
}

/** Outbound listeners of their own; virtualOutbound is the frame around them, the rest is the pod's inbound side. */
export function isOutboundListener(listener: Listener): boolean {
  return listener.name !== 'virtualOutbound' && listener.bind_to_port === false && listener.address?.address?.$case === 'socket_address';
}

/** Captures nothing: programs of the pod dial its port. */
export function isSocketOfItsOwn(listener: Listener): boolean {
  return listener.name !== 'virtualOutbound' && listener.traffic_direction === TrafficDirection.OUTBOUND && listener.bind_to_port !== false && listener.address?.address?.$case === 'socket_address';
}

/**
 * @param foldOne folds one listener, as foldListener does
 * @param handsOn plain TCP, however few chains it has: a chain that moves to another listener ends its connections
 */
export function foldListeners(listeners: Iterable<XdsResource<Listener>>, classKey: string, extensions: EnvoyExtensions, foldOne: (listener: XdsResource<Listener>, extensions: EnvoyExtensions, hasV6Twin: boolean) => FilterChain[], handsOn = false): FoldedListeners {
  const sorted = [...listeners].sort((a, b) => (a.name < b.name ? -1 : 1));
  const outbound = sorted.map((listener) => ({ listener, ...listenerFact.of(listener) })).filter(({ isOutbound }) => isOutbound);
  const frame = sorted.find((listener) => listener.name === 'virtualOutbound')?.message;
  const v6Wildcards = new Set(outbound.filter(({ address }) => address === '::').map(({ port }) => port));
  const folded: FoldedListeners = {
    chains: [blackHole('loop', narrowed(undefined, OUTBOUND_PORT, []))], defaultChain: passthrough(),
    inspected: { http: [], unknown: [], plain: [] }, accessLog: [], handsOn, dispensable: new Set(), others: inspectionChain('others', inspectionName(classKey, 'plain'), undefined), errors: [],
  };
  const dispensable = new Set<string>();
  /** Ports that have chains of inspected listeners, which may take more addresses than theirs. */
  const inspectedPorts = new Set<number>();
  /** By port. */
  const plain = new Map<number, FilterChain[]>();
  const wildcards = new Set<number>();
  for (const { listener, port, addresses, inspection: kind, ownChains } of outbound) {
    // The port of this very listener: whatever is said about it, it stays refused.
    if (port === OUTBOUND_PORT) continue;
    let chains: FilterChain[];
    try {
      chains = foldOne(listener, extensions, v6Wildcards.has(port));
    } catch (error) {
      if (!(error instanceof FoldError)) throw error;
      folded.errors.push({ listener: listener.name, message: error.message });
      continue;
    }
    const prefixes = prefixRanges(addresses, v6Wildcards.has(port));
    if (prefixes.every(({ prefix_len: length }) => length === 0)) wildcards.add(port);
    if (!kind) {
      const known = plain.get(port);
      if (known) known.push(...chains);
      else plain.set(port, [...chains]);
      continue;
    }
    inspectedPorts.add(port);
    folded.inspected[kind].push(...chains);
    const toInspection = (name: string, match: FilterChainMatch | undefined): FilterChain => inspectionChain(name, inspectionName(classKey, kind), match);
    if (!DIRECT_PORTS.includes(port)) {
      folded.chains.push(toInspection(`${listener.name}/inspect`, narrowed(undefined, port, prefixes)));
      continue;
    }
    // What shows itself at once is served here; what does not is inspected for longer.
    const [own, ends] = [chains.slice(0, ownChains), chains.slice(ownChains)];
    folded.chains.push(...own, ...ends.map((end) => toInspection(end.name, end.filter_chain_match)));
    for (const { name, filter_chain_match: match } of own) if (match && endsIn(match, ends.flatMap((end) => end.filter_chain_match ?? []))) dispensable.add(name);
  }
  folded.handsOn ||= [...plain.values()].reduce((sum, { length }) => sum + length, 0) > MANY_PLAIN_CHAINS;
  for (const [port, chains] of plain) {
    // Where one listener takes all addresses of the port there is a chain for that already.
    if (wildcards.has(port)) {
      folded.chains.push(...chains);
      continue;
    }
    folded.inspected.plain.push(...chains);
    if (!folded.handsOn) {
      folded.chains.push(...chains);
      if (!inspectedPorts.has(port)) for (const { name } of chains) dispensable.add(name);
      continue;
    }
    folded.chains.push(inspectionChain(`plain/${port}`, inspectionName(classKey, 'plain'), narrowed(undefined, port, [])));
  }
  if (frame) {
    const unmatched = unmatchedChain(frame);
    if (unmatched) folded.defaultChain = foldChain(unmatched, extensions);
    folded.defaultChain = { ...observed(folded.defaultChain, extensions, 'outbound'), filter_chain_match: undefined };
    folded.accessLog = frame.access_log.map((log) => bounded(named(log, OUTBOUND_OWNER), extensions));
  }
  // What goes past all services on the ports of most of it.
  for (const port of DIRECT_PORTS) {
    if (folded.handsOn || !plain.has(port) || wildcards.has(port) || inspectedPorts.has(port)) continue;
    const name = `others/${port}`;
    folded.chains.push({ ...folded.defaultChain, name, filter_chain_match: narrowed(undefined, port, []) });
    dispensable.add(name);
  }
  return { ...folded, dispensable };
}

/** One source listener's chains, narrowed to its port and addresses. */
export function foldListener(listener: Listener, extensions: EnvoyExtensions, hasV6Twin: boolean): FilterChain[] {
  const { port } = addressOf(listener);
  const prefixes = prefixRanges(addressesOf(listener), hasV6Twin);
  const chains = listener.filter_chains.map((chain, index) => ({
    ...observed(foldChain(chain, extensions), extensions, 'outbound'),
    name: `${listener.name}/${chain.name || index}`,
    filter_chain_match: narrowed(chain.filter_chain_match, port, prefixes),
  }));
  const matches = chains.map((chain) => chain.filter_chain_match);
  // Without a default, what reaches this listener and matches none of its chains is closed.
  const fallback = listener.default_filter_chain ? observed(foldChain(listener.default_filter_chain, extensions), extensions, 'outbound') : undefined;
  const ends = deadEnds(matches, port, prefixes).map((match, index) =>
    fallback ? { ...fallback, name: `${listener.name}/default/${index}`, filter_chain_match: match } : blackHole(`${listener.name}/closed/${index}`, match),
  );
  return [...chains, ...ends];
}

export function foldChain(source: FilterChain, extensions: EnvoyExtensions): FilterChain {
  const chain = canonical(source) as FilterChain;
  refuseNamedIdentity(chain.transport_socket);
  chain.filters = chain.filters.map((filter) => foldFilter(filter, extensions)).filter((filter) => filter !== undefined);
  return chain;
}

function foldFilter(filter: Filter, extensions: EnvoyExtensions): Filter | undefined {
  if (filter.config_type?.$case !== 'typed_config') throw new FoldError(`filter "${filter.name}": only typed_config can be folded`);
  const config = filter.config_type.value;
  if (!keepExtension(extensions, 'filter', filter.name, config)) return undefined;
  const manager = unpack(HttpConnectionManager, config);
  if (manager) return { ...filter, config_type: { $case: 'typed_config', value: pack(HttpConnectionManager, foldManager(manager, extensions)) } };
  const tcp = unpack(TcpProxy, config);
  if (tcp) {
    renameLogs(tcp.access_log, mirrorClusterName);
    return { ...filter, config_type: { $case: 'typed_config', value: pack(TcpProxy, tcp) } };
  }
  const state = unpack(SetFilterState, config);
  if (state) {
    for (const value of state.on_new_connection) value.factory_key = stockFactory(extensions, value.factory_key);
    return { ...filter, config_type: { $case: 'typed_config', value: packSetFilterState(state) } };
  }
  return { ...filter, config_type: { $case: 'typed_config', value: renameCallouts(config, mirrorClusterName) } };
}

function foldManager(manager: HttpConnectionManager, extensions: EnvoyExtensions): HttpConnectionManager {
  manager.http_filters = manager.http_filters.filter(
    (filter) => filter.config_type?.$case !== 'typed_config' || keepExtension(extensions, 'http_filters', filter.name, filter.config_type.value),
  );
  if (manager.route_specifier?.$case === 'route_config') manager.route_specifier.value = foldInlineRoutes(manager.route_specifier.value, extensions);
  renameManagerCallouts(manager, mirrorClusterName, spansClusterName);
  return manager;
}

const referred = new WeakMap<FilterChain, { clusters: ReadonlySet<string>; routes: ReadonlySet<string> }>();

/** Whether all that the chain refers to is called as it says: most chains of a mesh are the same for all classes. */
export function isNamedSo(chain: FilterChain, cluster: Rename, route: Rename): boolean {
  let names = referred.get(chain);
  if (!names) {
    const found = { clusters: new Set<string>(), routes: new Set<string>() };
    renameInChain(chain, (name) => (found.clusters.add(name), name), (name) => (found.routes.add(name), name));
    referred.set(chain, (names = found));
  }
  return [...names.clusters].every((name) => cluster(name) === name) && [...names.routes].every((name) => route(name) === name);
}

/**
 * The chain with the names that clusters and routes have in this Envoy; itself, and its own filters, where none of them is another one:
 * classes of pods share most of their chains.
 */
export function renameInChain(chain: FilterChain, cluster: Rename, route: Rename): FilterChain {
  const filters = chain.filters.map((filter) => {
    if (filter.config_type?.$case !== 'typed_config') return filter;
    const value = renameInFilter(filter.config_type.value, cluster, route);
    return Buffer.compare(value.value, filter.config_type.value.value) === 0 ? filter : { ...filter, config_type: { $case: 'typed_config' as const, value } };
  });
  return filters.every((filter, index) => filter === chain.filters[index]) ? chain : { ...chain, filters };
}

function renameInFilter(config: Any, cluster: Rename, route: Rename): Any {
  const manager = unpack(HttpConnectionManager, config);
  if (manager) {
    const specifier = manager.route_specifier;
    if (specifier?.$case === 'rds') specifier.value.route_config_name = route(specifier.value.route_config_name);
    if (specifier?.$case === 'route_config') specifier.value = renameClusters(specifier.value, cluster);
    renameManagerCallouts(manager, cluster);
    return pack(HttpConnectionManager, manager);
  }
  const tcp = unpack(TcpProxy, config);
  if (!tcp) return renameCallouts(config, cluster);
  const specifier = tcp.cluster_specifier;
  if (specifier?.$case === 'cluster') specifier.value = cluster(specifier.value);
  if (specifier?.$case === 'weighted_clusters') for (const weight of specifier.value.clusters) weight.name = cluster(weight.name);
  renameLogs(tcp.access_log, cluster);
  return pack(TcpProxy, tcp);
}

/** Whether what matches no service may leave the mesh as it is: ALLOW_ANY. */
export function passesThrough(listeners: Iterable<Listener>): boolean {
  const frame = [...listeners].find((listener) => listener.name === 'virtualOutbound');
  const chain = frame && unmatchedChain(frame);
  if (!chain) return true;
  return chain.filters.some((filter) => {
    const specifier = filter.config_type?.$case === 'typed_config' ? unpack(TcpProxy, filter.config_type.value)?.cluster_specifier : undefined;
    return specifier?.$case === 'cluster' && specifier.value === PASSTHROUGH;
  });
}

function unmatchedChain(frame: Listener): FilterChain | undefined {
  return frame.filter_chains.find((chain) => chain.filter_chain_match?.destination_port === undefined) ?? frame.default_filter_chain;
}

export function addressOf(listener: Listener): { address: string; port: number } {
  const socket = listener.address?.address?.$case === 'socket_address' ? listener.address.address.value : undefined;
  return { address: socket?.address ?? '', port: socket?.port_specifier?.$case === 'port_value' ? socket.port_specifier.value : 0 };
}

/** That address and its additional ones. */
export function addressesOf(listener: Listener): string[] {
  return [addressOf(listener).address, ...listener.additional_addresses.flatMap(({ address }) => (address?.address?.$case === 'socket_address' ? address.address.value.address : []))];
}

/** The destinations that a listener stands for: its VIPs, or none of them in particular. */
function prefixRanges(addresses: readonly string[], hasV6Twin: boolean): CidrRange[] {
  const wildcards = addresses.filter((address) => address === '0.0.0.0' || address === '::');
  if (wildcards.length > 0) {
    // A dual-stack control plane may say different things for the two families; otherwise one wildcard stands for both.
    if (!hasV6Twin || wildcards.length === 2) return [];
    return [{ address_prefix: wildcards[0] as string, prefix_len: 0 }];
  }
  return addresses.map((address) => ({ address_prefix: address, prefix_len: isIPv6(address) ? 128 : 32 }));
}

export function tcpChain(name: string, cluster: string, match: FilterChainMatch | undefined): FilterChain {
  const proxy = TcpProxy.fromPartial({ stat_prefix: cluster, cluster_specifier: { $case: 'cluster', value: cluster } });
  const chain = FilterChain.fromPartial({
    name,
    filters: [{ name: 'envoy.filters.network.tcp_proxy', config_type: { $case: 'typed_config', value: pack(TcpProxy, proxy) } }],
  });
  chain.filter_chain_match = match;
  return chain;
}

/** BlackHoleCluster has no endpoints: the connection is closed. */
export function blackHole(name: string, match: FilterChainMatch | undefined): FilterChain {
  return tcpChain(name, 'BlackHoleCluster', match);
}

function passthrough(): FilterChain {
  return tcpChain('passthrough', PASSTHROUGH, undefined);
}
