/** Which clusters routes and listeners lead to. */
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { unpack } from '../../common/xds/any.js';
import { Facts } from './resource-type.js';

/** What a virtual host's routes lead to, each once. */
export interface HostTargets {
  clusters: readonly string[];
  /** Of its routes' copies of requests. */
  mirrors: readonly string[];
}

const ofHosts = new WeakMap<VirtualHost, HostTargets>();

/** Found once for each host, of which tables share most. */
export function hostTargets(host: VirtualHost): HostTargets {
  let targets = ofHosts.get(host);
  if (!targets) {
    const [clusters, mirrors] = [new Set<string>(), new Set<string>()];
    for (const route of host.routes) {
      if (route.action?.$case !== 'route') continue;
      const { cluster_specifier: specifier, request_mirror_policies } = route.action.value;
      if (specifier?.$case === 'cluster') clusters.add(specifier.value);
      if (specifier?.$case === 'weighted_clusters') for (const { name } of specifier.value.clusters) clusters.add(name);
      for (const { cluster } of request_mirror_policies) mirrors.add(cluster);
    }
    ofHosts.set(host, (targets = { clusters: [...clusters], mirrors: [...mirrors] }));
  }
  return targets;
}

/** Calls `visit` with what virtual hosts' routes lead to, a name perhaps more than once. */
export function visitRouteClusters(hosts: readonly VirtualHost[], visit: (name: string) => void): void {
  for (const host of hosts) {
    const { clusters, mirrors } = hostTargets(host);
    for (const name of clusters) if (name !== '') visit(name);
    for (const name of mirrors) if (name !== '') visit(name);
  }
}

/** Of an outbound listener's TCP chains; a pod's inbound side is not looked at. */
export const listenerClusters = new Facts((listener: Listener): readonly string[] => {
  if (listener.bind_to_port !== false) return [];
  const found = new Set<string>();
  const chains = [...listener.filter_chains, ...(listener.default_filter_chain ? [listener.default_filter_chain] : [])];
  for (const filter of chains.flatMap((chain) => chain.filters)) {
    const specifier = filter.config_type?.$case === 'typed_config' ? unpack(TcpProxy, filter.config_type.value)?.cluster_specifier : undefined;
    if (specifier?.$case === 'cluster') found.add(specifier.value);
    if (specifier?.$case === 'weighted_clusters') for (const { name } of specifier.value.clusters) found.add(name);
  }
  return [...found];
});
