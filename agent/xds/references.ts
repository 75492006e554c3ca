/** Which clusters routes and listeners lead to. */
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { unpack } from '../../common/xds/any.js';

const ofRoutes = new WeakMap<RouteConfiguration, readonly string[]>();
const ofListeners = new WeakMap<Listener, readonly string[]>();

export function routeClusters(routes: RouteConfiguration): readonly string[] {
  let names = ofRoutes.get(routes);
  if (!names) {
    const found = new Set<string>();
    for (const route of routes.virtual_hosts.flatMap((host) => host.routes)) {
      if (route.action?.$case !== 'route') continue;
      const { cluster_specifier: specifier, request_mirror_policies: mirrors } = route.action.value;
      if (specifier?.$case === 'cluster') found.add(specifier.value);
      if (specifier?.$case === 'weighted_clusters') for (const { name } of specifier.value.clusters) found.add(name);
      for (const { cluster } of mirrors) found.add(cluster);
    }
    found.delete('');
    ofRoutes.set(routes, (names = [...found]));
  }
  return names;
}

/** Of an outbound listener's TCP chains; a pod's inbound side is not looked at. */
export function listenerClusters(listener: Listener): readonly string[] {
  if (listener.bind_to_port !== false) return [];
  let names = ofListeners.get(listener);
  if (!names) {
    const found = new Set<string>();
    const chains = [...listener.filter_chains, ...(listener.default_filter_chain ? [listener.default_filter_chain] : [])];
    for (const filter of chains.flatMap((chain) => chain.filters)) {
      const specifier = filter.config_type?.$case === 'typed_config' ? unpack(TcpProxy, filter.config_type.value)?.cluster_specifier : undefined;
      if (specifier?.$case === 'cluster') found.add(specifier.value);
      if (specifier?.$case === 'weighted_clusters') for (const { name } of specifier.value.clusters) found.add(name);
    }
    ofListeners.set(listener, (names = [...found]));
  }
  return names;
}
