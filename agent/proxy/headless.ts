/**
 * Headless services by HBONE: a client dials a pod's own address, and the cluster leads where it was dialled, so that no
 * endpoint of that cluster's says what the pod takes. A chain for such addresses alone tunnels to them itself, over the cluster
 * of the class's identity. HTTP, which is one chain for all addresses of a port, is passed on as it is.
 */
import { isIPv6 } from 'node:net';
import { Cluster_DiscoveryType, type Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { pack, unpack } from '../../common/xds/any.js';
import type { FoldedListeners } from './fold-listeners.js';
import { originateClusterName, tunnelling } from './hbone-originate.js';
import { INSPECTION_KINDS } from './inspection.js';

/**
 * @param addresses of pods that take HBONE
 * @param clusterOf by the name that the control plane gave it
 */
export function withHeadless(folded: FoldedListeners, addresses: readonly string[], identity: string | undefined, clusterOf: (name: string) => Cluster | undefined): FoldedListeners {
  if (identity === undefined || addresses.length === 0) return folded;
  const tunnelled = new Set(addresses);
  const change = (chain: FilterChain): FilterChain => {
    const ranges = chain.filter_chain_match?.prefix_ranges ?? [];
    const isTheirs = ranges.length > 0 && ranges.every(({ address_prefix: address, prefix_len }) => prefix_len === (isIPv6(address) ? 128 : 32) && tunnelled.has(address));
    return isTheirs ? { ...chain, filters: chain.filters.map((filter) => tunnelledFilter(filter, identity, clusterOf)) } : chain;
  };
  const inspected = { ...folded.inspected };
  for (const kind of INSPECTION_KINDS) inspected[kind] = inspected[kind].map(change);
  return { ...folded, chains: folded.chains.map(change), inspected };
}

function tunnelledFilter(filter: FilterChain['filters'][number], identity: string, clusterOf: (name: string) => Cluster | undefined): FilterChain['filters'][number] {
  const proxy = filter.config_type?.$case === 'typed_config' ? unpack(TcpProxy, filter.config_type.value) : undefined;
  const cluster = proxy?.cluster_specifier?.$case === 'cluster' ? clusterOf(proxy.cluster_specifier.value) : undefined;
  const type = cluster?.cluster_discovery_type;
  // One that speaks TLS of its own, as a DestinationRule may want it, is left to that.
  if (!proxy || type?.$case !== 'type' || type.value !== Cluster_DiscoveryType.ORIGINAL_DST || cluster?.transport_socket) return filter;
  const changed = { ...proxy, cluster_specifier: { $case: 'cluster' as const, value: originateClusterName(identity) }, ...tunnelling() };
  return { ...filter, config_type: { $case: 'typed_config', value: pack(TcpProxy, changed) } };
}
