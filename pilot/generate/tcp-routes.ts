/** VirtualService `tcp` and `tls` routes as filter chains: which connections of a port's listener go to which clusters. */
import type { RouteDestination, VirtualService } from '../../common/kube/types.js';
import { parseDurationMs } from '../../common/kube/schema.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { pack } from '../../common/xds/any.js';
import { Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { TcpProxy, TcpProxy_TunnelingConfig } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { HashPolicy } from '../../proto/generated/envoy/type/v3/hash_policy.js';
import { hostMatches } from '../model/hosts.js';
import type { MeshService } from '../model/model.js';
import type { Scope } from '../model/scope.js';
import { appliesToMesh } from '../model/virtual-services.js';
import { configPath } from './clusters.js';
import { bracketed, millis } from './envoy.js';
import { clusterName } from './names.js';
import { destinationCluster, l4SourceMatches, type RouteSource } from './route-match.js';
import { hashesSourceIp } from './routes-hash.js';

/** Connections that are led in one way. Without `sni` and `cidrs` every one. */
export interface L4Chain {
  /** Server names in the client's TLS hello. */
  sni?: readonly string[];
  /** Destination addresses. */
  cidrs?: readonly string[];
  filters: Filter[];
  /** Name of the VirtualService, for the chain's metadata. */
  config?: string;
}

/** Settings of a DestinationRule that stand at the client's connection, not at the cluster. */
function connectionSettings(scope: Scope, host: string, subset: string | undefined): Partial<TcpProxy> {
  const rule = scope.rule(host)?.object;
  const { idleTimeout, maxConnectionDuration } = rule?.spec.trafficPolicy?.connectionPool?.tcp ?? {};
  const tunnel = rule?.spec.subsets?.find(({ name }) => name === subset)?.trafficPolicy?.tunnel ?? rule?.spec.trafficPolicy?.tunnel;
  const duration = (text: string): ReturnType<typeof millis> => millis(parseDurationMs(text) ?? 0);
  return {
    // The destination is an HTTP proxy that is asked for a connection to the target.
    ...(tunnel ? { tunneling_config: TcpProxy_TunnelingConfig.fromPartial({ hostname: `${bracketed(tunnel.targetHost)}:${tunnel.targetPort}`, use_post: tunnel.protocol === 'POST' }) } : {}),
    ...(idleTimeout ? { idle_timeout: duration(idleTimeout) } : {}),
    ...(maxConnectionDuration ? { max_downstream_connection_duration: duration(maxConnectionDuration) } : {}),
    ...(hashesSourceIp(rule, subset) ? { hash_policy: [HashPolicy.fromPartial({ policy_specifier: { $case: 'source_ip', value: {} } })] } : {}),
  };
}

const proxyFilter = (config: Parameters<typeof TcpProxy.fromPartial>[0]): Filter =>
  Filter.fromPartial({ name: 'envoy.filters.network.tcp_proxy', config_type: { $case: 'typed_config', value: pack(TcpProxy, TcpProxy.fromPartial(config)) } });

/** To a service's own endpoints. */
export function serviceTcpProxy(scope: Scope, service: MeshService, listenPort: number): Filter {
  // A Sidecar's listener may have another port than the service's only one.
  const port = service.ports.length === 1 ? service.ports[0]!.port : listenPort;
  const cluster = clusterName(port, '', service.host);
  return proxyFilter({ stat_prefix: cluster, cluster_specifier: { $case: 'cluster', value: cluster }, ...connectionSettings(scope, service.host, undefined) });
}

/** To a route's destinations, by weight. */
export function routeTcpProxy(scope: Scope, destinations: readonly RouteDestination[], object: VirtualService, listenPort: number): Filter {
  const { host, subset } = destinations[0]!.destination;
  if (destinations.length === 1) {
    const cluster = destinationCluster(scope, destinations[0]!.destination, listenPort);
    return proxyFilter({ stat_prefix: cluster, cluster_specifier: { $case: 'cluster', value: cluster }, ...connectionSettings(scope, host, subset) });
  }
  const clusters = destinations.filter(({ weight }) => (weight ?? 0) > 0).map(({ destination, weight }) => ({ name: destinationCluster(scope, destination, listenPort), weight: weight ?? 0 }));
  const settings = connectionSettings(scope, host, undefined);
  return proxyFilter({ stat_prefix: `${object.metadata.name}.${object.metadata.namespace ?? 'default'}`, cluster_specifier: { $case: 'weighted_clusters', value: { clusters } }, ...settings });
}

/** The VirtualServices whose hosts cover the service (or a part of its wildcard), in the order of precedence. */
function virtualServicesOf(scope: Scope, { host }: MeshService): LoadedObject<VirtualService>[] {
  if (host.startsWith('*')) return scope.virtualServices.filter((loaded) => appliesToMesh(loaded) && loaded.object.spec.hosts!.some((pattern) => hostMatches(pattern, host) || hostMatches(host, pattern)));
  const found = new Set(scope.virtualServicesFor(host).filter(appliesToMesh));
  return found.size < 2 ? [...found] : scope.virtualServices.filter((loaded) => found.has(loaded));
}

/** Chains of a plain TCP port of the service; the last one is for all that no route's subnets took. */
export function tcpChains(scope: Scope, source: RouteSource, service: MeshService, cidrs?: readonly string[]): L4Chain[] {
  const own = cidrs?.length ? { cidrs } : {};
  const chains: L4Chain[] = [];
  for (const { object } of virtualServicesOf(scope, service)) {
    for (const { match = [], route } of object.spec.tcp ?? []) {
      if (route.length === 0) continue;
      const filters = (): Filter[] => [routeTcpProxy(scope, route, object, source.port)];
      const fitting = match.filter((candidate) => l4SourceMatches(candidate, source));
      if (match.length > 0 && fitting.length === 0) continue;
      if (match.length === 0 || fitting.some(({ destinationSubnets = [] }) => destinationSubnets.length === 0)) {
        return [...chains, { ...own, filters: filters(), config: configPath(object, 'virtual-service') }];
      }
      chains.push({ cidrs: fitting.flatMap(({ destinationSubnets = [] }) => destinationSubnets), filters: filters() });
    }
  }
  return [...chains, { ...own, filters: [serviceTcpProxy(scope, service, source.port)] }];
}

/**
 * Chains of a port whose clients speak TLS to the end: by the name that they ask for, where VirtualServices say so.
 * @param byName the listener's address does not tell the service, so that its own chain needs its name as well
 */
export function tlsChains(scope: Scope, source: RouteSource, service: MeshService, byName: boolean, cidrs?: readonly string[]): L4Chain[] {
  const chains = new Map<string, L4Chain>();
  for (const { object } of virtualServicesOf(scope, service)) {
    for (const { match, route } of object.spec.tls ?? []) {
      if (route.length === 0) continue;
      for (const candidate of match) {
        if (!l4SourceMatches(candidate, source)) continue;
        const { sniHosts: sni, destinationSubnets: subnets = [] } = candidate;
        const key = `${sni.join()}|${subnets.join()}`;
        // The same conditions again can't be reached: Envoy would refuse them.
        if (chains.has(key)) continue;
        const where = subnets.length > 0 ? subnets : cidrs;
        chains.set(key, { sni, ...(where?.length ? { cidrs: where } : {}), filters: [routeTcpProxy(scope, route, object, source.port)], config: configPath(object, 'virtual-service') });
      }
    }
  }
  if (chains.size > 0) return [...chains.values()];
  return [{ ...(byName || cidrs?.length ? { sni: [service.host] } : {}), ...(cidrs?.length ? { cidrs } : {}), filters: [serviceTcpProxy(scope, service, source.port)] }];
}
