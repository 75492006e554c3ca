/**
 * Which filter chain Envoy picks, as a model: narrowing in the documented order, the most specific entry at each step,
 * no way back. What is compared with it was checked against a real Envoy elsewhere.
 */
import { isIPv4 } from 'node:net';
import type { CidrRange } from '../../proto/generated/envoy/config/core/v3/address.js';
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { FilterChain, FilterChainMatch } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { unpack } from '../../common/xds/any.js';

export interface Connection {
  address: string;
  port: number;
  serverName: string;
  transport: 'raw_buffer' | 'tls';
  protocol: '' | 'http/1.1' | 'h2c' | 'h2';
}

export function chooseChain(chains: readonly FilterChain[], fallback: FilterChain | undefined, connection: Connection): FilterChain | undefined {
  const empty: FilterChainMatch['prefix_ranges'] = [];
  let left = chains.map((chain) => ({ chain, match: chain.filter_chain_match }));
  const narrow = (exact: (match: FilterChainMatch | undefined) => number): void => {
    // Rank of each entry for this connection: 0 is "matches anything", less is "does not match".
    const ranks = left.map(({ match }) => exact(match));
    const best = Math.max(-1, ...ranks);
    left = best < 0 ? [] : left.filter((_, index) => ranks[index] === best);
  };
  narrow((match) => (match?.destination_port === undefined ? 0 : match.destination_port === connection.port ? 1 : -1));
  narrow((match) => prefixRank(match?.prefix_ranges ?? empty, connection.address));
  narrow((match) => serverNameRank(match?.server_names ?? [], connection.serverName));
  narrow((match) => (!match?.transport_protocol ? 0 : match.transport_protocol === connection.transport ? 1 : -1));
  narrow((match) => (!match?.application_protocols.length ? 0 : match.application_protocols.includes(connection.protocol) ? 1 : -1));
  if (left.length > 1) throw new Error(`chains ${left.map(({ chain }) => chain.name).join(', ')} match the same`);
  return left[0]?.chain ?? fallback;
}

/** How a sidecar does it: the listener of the address, else the wildcard of the port, else virtualOutbound. */
export function chooseListener(listeners: readonly Listener[], connection: Connection): Listener | undefined {
  const of = (address: string): Listener | undefined =>
    listeners.find(
      (listener) => listener.bind_to_port === false && [listener.address, ...listener.additional_addresses.map((item) => item.address)].some(
        (item) => item?.address?.$case === 'socket_address' && item.address.value.address === address && item.address.value.port_specifier?.value === connection.port,
      ),
    );
  return of(connection.address) ?? of(isIPv4(connection.address) ? '0.0.0.0' : '::') ?? listeners.find((listener) => listener.name === 'virtualOutbound');
}

/** Where a chain leads to: `route <RDS name>` or `cluster <name>` (weights as they are), or `closed`. */
export function targetOf(chain: FilterChain | undefined): string {
  for (const filter of chain?.filters ?? []) {
    if (filter.config_type?.$case !== 'typed_config') continue;
    const manager = unpack(HttpConnectionManager, filter.config_type.value);
    if (manager) return `route ${manager.route_specifier?.$case === 'rds' ? manager.route_specifier.value.route_config_name : manager.stat_prefix}`;
    const specifier = unpack(TcpProxy, filter.config_type.value)?.cluster_specifier;
    if (specifier?.$case === 'cluster') return specifier.value === 'BlackHoleCluster' ? 'closed' : `cluster ${specifier.value}`;
    if (specifier?.$case === 'weighted_clusters') return `clusters ${specifier.value.clusters.map(({ name, weight }) => `${name}=${weight}`).join(',')}`;
  }
  return 'closed';
}

function prefixRank(ranges: readonly CidrRange[], address: string): number {
  if (ranges.length === 0) return 0;
  return Math.max(-1, ...ranges.map((range) => {
    const length = range.prefix_len ?? 0;
    if (isIPv4(range.address_prefix) !== isIPv4(address)) return -1;
    if (length === 0) return 1;
    if (range.address_prefix === address) return 1 + length;
    if (!isIPv4(address)) return -1;
    const bits = (ip: string): number => ip.split('.').reduce((sum, part) => sum * 256 + Number(part), 0);
    return Math.floor(bits(address) / 2 ** (32 - length)) === Math.floor(bits(range.address_prefix) / 2 ** (32 - length)) ? 1 + length : -1;
  }));
}

function serverNameRank(names: readonly string[], serverName: string): number {
  if (names.length === 0) return 0;
  return Math.max(-1, ...names.map((name) => {
    if (name === serverName) return 1_000;
    return name.startsWith('*.') && serverName.endsWith(name.slice(1)) ? name.length : -1;
  }));
}
