/**
 * For which services' ports a proxy has nothing to do but to pass bytes to one of the service's own endpoints, so that the
 * kernel can do without it. Judged from what the control plane sends the node's classes, all of them: where one class's
 * proxy would do more, or where it can't be told, the port is the proxy's.
 */
import { isIPv6 } from 'node:net';
import { Cluster, Cluster_CommonLbConfig, Cluster_DiscoveryType, Cluster_LbPolicy } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { TransportSocket } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain, FilterChainMatch, type Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { HttpProtocolOptions } from '../../proto/generated/envoy/extensions/upstreams/http/v3/http_protocol_options.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { unpack } from '../../common/xds/any.js';
import { Facts, type XdsResource } from '../xds/resource-type.js';
import { edsNames } from '../xds/resource-types.js';
import type { SidecarState } from '../xds/sidecar-stream.js';
import { configType } from './extensions.js';
import { isEmpty, isNeutral } from './neutral-chain.js';
import { changesBetween } from './plain-changes.js';
import { routeOf } from './plain-routes.js';
import { listenerFact } from './state-facts.js';

/** Decoded when it is read. */
export type Assignment = Pick<XdsResource<ClusterLoadAssignment>, 'any' | 'message'>;

/** `http`: only if HTTP that asks for nothing may be treated as TCP. */
export type PortVerdict =
  | { kind: 'tcp' | 'http'; assignments: readonly (Assignment | undefined)[]; reason?: undefined }
  | { kind?: undefined; reason: string };

export interface PortJudge {
  /** What the proxies would do with a connection to this address and port of the service. */
  judge(address: string, port: number, hostname: string): PortVerdict;
  /**
   * Host names and addresses of services of which it may judge otherwise than `before` did; undefined: of any. What it does not
   * name is judged the same.
   */
  changedSince?(before: PortJudge): ReadonlySet<string> | undefined;
  /** Whether they all have a listener for this very address, and not for the port alone. */
  isNamed?(address: string, port: number): boolean;
}

const PASSTHROUGH = 'PassthroughCluster';
const INSPECTORS: ReadonlySet<string> = new Set(['envoy.filters.listener.tls_inspector', 'envoy.filters.listener.http_inspector']);
const UNLIMITED = 0xffff_ffff;

/** Of one chain, whatever the service. */
type Chain = { tcp: string } | { routes: string } | { reason: string };
type Shape = { sniffs: boolean; chains: Chain[] } | { reason: string };

type Index = Map<string, XdsResource<Listener> | 'several'>;

const shapes = new Facts(readShape);
const clusters = new Facts(readCluster);
const logs = new Facts(({ access_log }: Listener) => access_log.length > 0);
const indexes = new WeakMap<SidecarState['listeners'], Index>();

export interface PlainClass {
  key: string;
  state: SidecarState;
  /** Of one of its pods: all have the same families. Without any it is asked about every address. */
  addresses?: readonly string[];
}

export class PlainPorts implements PortJudge {
  readonly #classes: readonly PlainClass[];
  /** One of each that were sent the same and have the same families. */
  readonly #distinct: readonly PlainClass[];
  readonly #listeners = new Map<string, Index>();

  constructor(classes: readonly PlainClass[]) {
    this.#classes = classes;
    this.#distinct = classes.filter((each, index) => classes.findIndex((other) => isSame(other, each)) === index);
  }

  judge(address: string, port: number, hostname: string): PortVerdict {
    if (this.#classes.length === 0) return { reason: 'nothing is known of what the control plane asks for' };
    let kind: 'tcp' | 'http' = 'tcp';
    const assignments = new Map<Any | undefined, Assignment | undefined>();
    // Whose pods do not have the address's family never get there, and have no listener for it.
    const asked = this.#distinct.filter(({ addresses = [] }) => addresses.length === 0 || addresses.some((own) => isIPv6(own) === isIPv6(address)));
    if (asked.length === 0) return { reason: 'no pod of this node has an address of its family' };
    for (const { key, state } of asked) {
      const found = this.#inClass(key, state, address, port, `outbound|${port}||${hostname}`, hostname);
      if (found.reason !== undefined) return found;
      if (found.kind === 'http') kind = 'http';
      for (const each of found.assignments) assignments.set(each?.any, each);
    }
    return { kind, assignments: [...assignments.values()] };
  }

  changedSince(before: PortJudge): ReadonlySet<string> | undefined {
    return before instanceof PlainPorts && before.#classes.length === this.#classes.length && before.#classes.every(({ key }, index) => this.#classes[index]!.key === key) ? changesBetween(before.#classes.map(({ state }) => state), this.#classes.map(({ state }) => state)) : undefined;
  }

  #inClass(key: string, state: SidecarState, address: string, port: number, name: string, hostname: string): PortVerdict {
    // It becomes the pods' listener's own.
    const frame = state.listeners.get('virtualOutbound');
    if (frame && logs.of(frame)) return { reason: 'all connections are logged' };
    const listener = this.#listenerOf(key, state, address, port);
    if (listener === undefined) return { reason: 'a client\'s proxy has no listener for it' };
    if (listener === 'several') return { reason: 'several listeners claim it' };
    const shape = shapes.of(listener);
    if ('reason' in shape) return shape;
    const isHttp = shape.chains.some((chain) => 'routes' in chain);
    for (const chain of shape.chains) {
      if ('reason' in chain) return chain;
      const target = 'tcp' in chain ? { cluster: chain.tcp } : routeOf(state, chain.routes, [hostname, address, `[${address}]`]);
      if ('reason' in target) return target;
      // What is not HTTP on an HTTP port is passed on to where it was going: the service.
      if (target.cluster !== name && !(isHttp && 'tcp' in chain && chain.tcp === PASSTHROUGH)) return { reason: `it is led to ${target.cluster}` };
    }
    const cluster = state.clusters.get(name);
    if (!cluster) return { reason: `there is no cluster ${name}` };
    const reason = clusters.of(cluster);
    if (reason !== undefined) return { reason };
    return { kind: isHttp || shape.sniffs ? 'http' : 'tcp', assignments: [state.endpoints.get(edsNames.of(cluster) ?? '')] };
  }

  isNamed(address: string, port: number): boolean {
    return this.#distinct.length > 0 && this.#distinct.every(({ key, state }) => this.#indexOf(key, state).has(`${address} ${port}`));
  }

  #listenerOf(key: string, state: SidecarState, address: string, port: number): XdsResource<Listener> | 'several' | undefined {
    const index = this.#indexOf(key, state);
    const wildcards = isIPv6(address) ? ['::', '0.0.0.0'] : ['0.0.0.0', '::'];
    for (const each of [address, ...wildcards]) {
      const found = index.get(`${each} ${port}`);
      if (found) return found;
    }
    return undefined;
  }

  #indexOf(key: string, state: SidecarState): Index {
    let index = this.#listeners.get(key);
    if (!index) {
      index = indexes.get(state.listeners) ?? indexOf(state);
      indexes.set(state.listeners, index);
      this.#listeners.set(key, index);
    }
    return index;
  }
}

function isSame(one: PlainClass, other: PlainClass): boolean {
  const families = ({ addresses = [] }: PlainClass): string => [...new Set(addresses.map(isIPv6))].sort().join();
  return (['clusters', 'endpoints', 'listeners', 'routes'] as const).every((kind) => one.state[kind] === other.state[kind]) && families(one) === families(other);
}

function indexOf({ listeners }: SidecarState): Index {
  const index: Index = new Map();
  for (const listener of listeners.values()) {
    const { isOutbound, addresses, port } = listenerFact.of(listener);
    if (!isOutbound) continue;
    for (const each of new Set(addresses)) index.set(`${each} ${port}`, index.has(`${each} ${port}`) ? 'several' : listener);
  }
  return index;
}

function readShape(listener: Listener): Shape {
  if (listener.access_log.length > 0) return { reason: 'its listener has an access log' };
  const foreign = listener.listener_filters.find(({ name }) => !INSPECTORS.has(name));
  if (foreign) return { reason: `its listener has the filter ${foreign.name}` };
  const fallback = listener.default_filter_chain;
  const chains = [...listener.filter_chains, ...(fallback ? [fallback] : [])];
  if (chains.length === 0) return { reason: 'its listener has no filter chain' };
  return { sniffs: listener.listener_filters.length > 0, chains: chains.map(readChain) };
}

function readChain(chain: FilterChain): Chain {
  const config = chain.metadata?.filter_metadata['istio']?.['config'];
  if (config !== undefined) return { reason: `${String(config)} has routes for it` };
  const { filter_chain_match: match } = chain;
  if (match && !isEmpty(FilterChainMatch, { ...match, application_protocols: [], transport_protocol: '' })) return { reason: 'its listener tells connections apart by more than their protocol' };
  const rest: FilterChain = { ...chain, name: '', filter_chain_match: undefined, filters: [], transport_socket_connect_timeout: undefined, metadata: undefined };
  if (!isEmpty(FilterChain, rest)) return { reason: 'its filter chain has settings of its own' };
  for (const filter of chain.filters.slice(0, -1)) {
    const reason = asks(filter.name, filter.config_type);
    if (reason !== undefined) return { reason };
  }
  const last = chain.filters.at(-1);
  const value = last?.config_type?.$case === 'typed_config' ? last.config_type.value : undefined;
  const tcp = unpack(TcpProxy, value);
  if (tcp) return readTcp(tcp);
  const manager = unpack(HttpConnectionManager, value);
  return manager ? readManager(manager) : { reason: `its filter chain ends in ${last?.name ?? 'nothing'}` };
}

function readTcp(tcp: TcpProxy): Chain {
  if (tcp.access_log.length > 0) return { reason: 'its connections are logged' };
  if (tcp.cluster_specifier?.$case !== 'cluster') return { reason: 'its connections are shared out among several clusters' };
  if (!isEmpty(TcpProxy, { ...tcp, stat_prefix: '', cluster_specifier: undefined })) return { reason: 'its connections have settings (time-outs, hashing or a tunnel)' };
  return { tcp: tcp.cluster_specifier.value };
}

function readManager(manager: HttpConnectionManager): Chain {
  if (manager.access_log.length > 0) return { reason: 'its requests are logged' };
  // Sampled and yet sent nowhere is what Istio says by default.
  if (manager.tracing?.provider) return { reason: 'its requests are traced' };
  for (const filter of manager.http_filters) {
    const reason = asks(filter.name, filter.config_type);
    if (reason !== undefined) return { reason };
  }
  if (manager.route_specifier?.$case !== 'rds') return { reason: 'its routes stand in its listener' };
  const upgrades = manager.upgrade_configs.some(({ upgrade_type, filters }) => upgrade_type !== 'websocket' || filters.length > 0);
  const rest: HttpConnectionManager = {
    ...manager, codec_type: 0, stat_prefix: '', route_specifier: undefined, http_filters: [], tracing: undefined, stream_idle_timeout: undefined, proxy_100_continue: false,
    upgrade_configs: [], normalize_path: undefined, merge_slashes: false, path_with_escaped_slashes_action: 0, request_id_extension: undefined, use_remote_address: undefined,
  };
  if (upgrades || !isEmpty(HttpConnectionManager, rest)) return { reason: 'its requests have settings of their own' };
  return { routes: manager.route_specifier.value.route_config_name };
}

/** Why a filter stands in the way, if it does. Statistics with settings are what a Telemetry resource asks for. */
function asks(name: string, config: Filter['config_type']): string | undefined {
  if (config?.$case !== 'typed_config' || !isNeutral(config.value)) return `the filter ${name} has a say`;
  return configType(config.value) === 'stats.PluginConfig' && config.value.value.length > 0 ? 'its metrics are changed by a Telemetry resource' : undefined;
}

function readCluster(cluster: Cluster): string | undefined {
  const config = cluster.metadata?.filter_metadata['istio']?.['config'];
  if (config !== undefined) return `${String(config)} has settings for it`;
  const type = cluster.cluster_discovery_type;
  if (type?.$case !== 'type' || type.value !== Cluster_DiscoveryType.EDS) return 'its endpoints are not a list of addresses';
  if (cluster.lb_policy !== Cluster_LbPolicy.LEAST_REQUEST && cluster.lb_policy !== Cluster_LbPolicy.ROUND_ROBIN) return 'its endpoints are chosen by more than weight';
  const limits = (cluster.circuit_breakers?.thresholds ?? []).flatMap(({ max_connections, max_pending_requests, max_requests }) => [max_connections, max_pending_requests, max_requests]);
  if (limits.some((limit) => limit !== undefined && limit < UNLIMITED) || cluster.circuit_breakers?.per_host_thresholds.length) return 'its connections or requests are limited';
  const sockets = [cluster.transport_socket, ...cluster.transport_socket_matches.filter(({ match }) => Object.keys(match ?? {}).length === 0).map(({ transport_socket }) => transport_socket)];
  if (sockets.some((socket) => socket && !isPlaintext(socket))) return 'TLS is originated for it';
  const filter = cluster.filters.find(({ typed_config }) => !typed_config || !isNeutral(typed_config));
  if (filter) return `the filter ${filter.name} has a say`;
  const lb = cluster.common_lb_config;
  if (lb && !isEmpty(Cluster_CommonLbConfig, { ...lb, healthy_panic_threshold: undefined, locality_config_specifier: undefined })) return 'its cluster has settings';
  for (const value of Object.values(cluster.typed_extension_protocol_options)) {
    const options = unpack(HttpProtocolOptions, value);
    if (!options || !isEmpty(HttpProtocolOptions, { ...options, upstream_protocol_options: undefined })) return 'its requests have settings';
  }
  const rest: Cluster = {
    ...cluster, name: '', alt_stat_name: '', cluster_discovery_type: undefined, eds_cluster_config: undefined, connect_timeout: undefined, lb_policy: 0, circuit_breakers: undefined, metadata: undefined,
    transport_socket: undefined, transport_socket_matches: [], filters: [], common_lb_config: undefined, typed_extension_protocol_options: {}, dns_lookup_family: 0,
  };
  return isEmpty(Cluster, rest) ? undefined : 'its cluster has settings';
}

function isPlaintext({ config_type }: TransportSocket): boolean {
  return config_type?.value.type_url.endsWith('.RawBuffer') ?? false;
}
