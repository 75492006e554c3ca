/**
 * Connections to a waypoint's services that are not taken for HTTP: the TCP and TLS routes that clients of the mesh would have
 * (VirtualService, TCPRoute, TLSRoute on the service), led to the waypoint's own clusters.
 */
import { BlockList, isIPv6 } from 'node:net';
import { Filter } from '../../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { TcpProxy } from '../../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { pack, unpack } from '../../../common/xds/any.js';
import type { Proxy } from '../../model/proxy.js';
import type { Scope } from '../../model/scope.js';
import type { MeshPort, MeshService } from '../../model/types.js';
import { parseCidr } from '../listener-chains.js';
import { parseClusterName } from '../names.js';
import { meshSource } from '../route-match.js';
import { serviceTcpProxy, tcpChains, tlsChains, type L4Chain } from '../tcp-routes.js';
import { waypointClusterName } from './attached.js';

export interface TcpWay {
  addresses: readonly string[];
  /** In the client's TLS hello; none: whatever it says. */
  serverNames: readonly string[];
  filters: Filter[];
}

/** @param addresses of the service that are this port's @param own hosts of the services that are reached through this waypoint */
export function tcpWays(scope: Scope, proxy: Proxy, service: MeshService, port: MeshPort, addresses: readonly string[], own: ReadonlySet<string>): TcpWay[] {
  const left = new Set(addresses);
  return chainsOf(scope, proxy, service, port).flatMap((chain): TcpWay[] => {
    const serverNames = chain.sni?.includes('*') ? [] : (chain.sni ?? []);
    const meant = chain.cidrs?.length ? addresses.filter(within(chain.cidrs)) : addresses;
    // Of two chains for all of an address Envoy refuses the second.
    const taken = serverNames.length > 0 ? meant : meant.filter((address) => left.delete(address));
    return taken.length > 0 ? [{ addresses: taken, serverNames, filters: chain.filters.map((filter) => led(filter, own)) }] : [];
  });
}

/** Clusters of any service that these routes lead to, by the names that clients have for them. */
export function tcpClusters(scope: Scope, proxy: Proxy, service: MeshService, port: MeshPort): string[] {
  return chainsOf(scope, proxy, service, port).flatMap(({ filters }) => filters.flatMap((filter) => clustersOf(proxyOf(filter))));
}

function chainsOf(scope: Scope, proxy: Proxy, service: MeshService, port: MeshPort): L4Chain[] {
  const source = meshSource(proxy, port.port);
  if (port.protocol !== 'TLS') return tcpChains(scope, source, service);
  // A name that no route has is the service's own to serve.
  return [...tlsChains(scope, source, service, false), { filters: [serviceTcpProxy(scope, service, port.port)] }];
}

function within(cidrs: readonly string[]): (address: string) => boolean {
  const blocks = new BlockList();
  for (const { address, length } of cidrs.map(parseCidr)) blocks.addSubnet(address, length, isIPv6(address) ? 'ipv6' : 'ipv4');
  return (address) => blocks.check(address, isIPv6(address) ? 'ipv6' : 'ipv4');
}

function proxyOf({ config_type }: Filter): TcpProxy | undefined {
  return config_type?.$case === 'typed_config' ? unpack(TcpProxy, config_type.value) : undefined;
}

function clustersOf(proxy: TcpProxy | undefined): string[] {
  const to = proxy?.cluster_specifier;
  return to?.$case === 'cluster' ? [to.value] : to?.$case === 'weighted_clusters' ? to.value.clusters.map(({ name }) => name) : [];
}

/** With this waypoint's clusters for those of its own services. */
function led(filter: Filter, own: ReadonlySet<string>): Filter {
  const proxy = proxyOf(filter);
  const to = proxy?.cluster_specifier;
  if (!proxy || !to) return filter;
  const clusterOf = (name: string): string => {
    const key = parseClusterName(name);
    return key && own.has(key.host) ? waypointClusterName({ ...key, spoken: 'tcp' }) : name;
  };
  if (to.$case === 'cluster') to.value = proxy.stat_prefix = clusterOf(to.value);
  else for (const weight of to.value.clusters) weight.name = clusterOf(weight.name);
  return { ...filter, config_type: { $case: 'typed_config', value: pack(TcpProxy, proxy) } };
}
