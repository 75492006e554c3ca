/** LDS of a gateway: one listener for each port that its pod listens on. */
import type { VirtualService } from '../../../common/kube/types.js';
import type { LoadedObject } from '../../../common/kube/yaml.js';
import { pack } from '../../../common/xds/any.js';
import { TrafficDirection } from '../../../proto/generated/envoy/config/core/v3/base.js';
import { Listener } from '../../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain, ListenerFilter, type Filter } from '../../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { TlsInspector } from '../../../proto/generated/envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.js';
import type { Model } from '../../model/model.js';
import type { Proxy } from '../../model/proxy.js';
import type { Scope } from '../../model/scope.js';
import { configPath } from '../clusters.js';
import { ads, seconds, socketAddress } from '../envoy.js';
import { gatewayHttp } from '../http-filters.js';
import { byConnection, hboneChain } from '../hbone.js';
import { hasIpv4, hasIpv6, proxyIps } from '../inbound-ports.js';
import { makeResource, type Resource } from '../resource.js';
import { l4SourceMatches } from '../route-match.js';
import { hasGatewaySemantics } from '../routes-http.js';
import { commonHosts, serverHostsFor, virtualServicesForGateway } from '../routes-gateway.js';
import { securityHttpFilters, securityNetworkFilters } from '../security/filters.js';
import { routeTcpProxy } from '../tcp-routes.js';
import { bareHost, gatewayServers, isAutoPassthrough, isHbone, isHttps, isPlainHttp, routeName, terminates, type BoundServer } from './servers.js';
import { autoPassthroughChain } from './sni-clusters.js';
import { gatewayTls } from './tls.js';
import { gatewayTopology, proxyProtocol } from './topology.js';

const connectTimeout = { transport_socket_connect_timeout: seconds(15) };

const tlsInspector = ListenerFilter.fromPartial({
  name: 'envoy.filters.listener.tls_inspector',
  config_type: { $case: 'typed_config', value: pack(TlsInspector, TlsInspector.fromPartial({ initial_read_buffer_size: 512 })) },
});

export function gatewayListeners(model: Model, proxy: Proxy): Resource[] {
  const byPort = new Map<string, BoundServer[]>();
  for (const bound of gatewayServers(model, proxy)) {
    const key = `${bound.server.bind ?? ''} ${bound.listenPort}`;
    const known = byPort.get(key);
    if (known) known.push(bound);
    else byPort.set(key, [bound]);
  }
  const scope = model.scopeOf(proxy);
  return [...byPort.values()].flatMap((servers) => portListener(model, scope, proxy, compatible(servers)) ?? []);
}

/**
 * A port is either plaintext HTTP, plaintext TCP, HBONE or TLS, as Istio has it: the oldest Gateway's server decides, others are
 * left out. Together they could have chains with the same match, for which Envoy refuses the whole listener.
 */
function compatible(servers: readonly BoundServer[]): BoundServer[] {
  const kind = (bound: BoundServer): string => (isHbone(bound) ? 'hbone' : isPlainHttp(bound) ? 'http' : bound.server.tls ? 'tls' : 'tcp');
  return servers.filter((bound) => kind(bound) === kind(servers[0]!));
}

function portListener(model: Model, scope: Scope, proxy: Proxy, servers: readonly BoundServer[]): Resource | undefined {
  const { listenPort, server } = servers[0]!;
  const families = { ips: proxyIps(model, proxy) };
  const wildcards = [...(hasIpv4(families) ? ['0.0.0.0'] : []), ...(hasIpv6(families) ? ['::'] : [])];
  const addresses = server.bind ? [server.bind] : wildcards;
  const name = `${addresses[0]}_${listenPort}`;
  const chains = withoutTwins(portChains({ model, scope, proxy, listener: name }, servers));
  if (chains.length === 0) return undefined;
  const listener = Listener.fromPartial({
    name,
    address: socketAddress(addresses[0]!, listenPort),
    ...(addresses.length > 1 ? { additional_addresses: addresses.slice(1).map((address) => ({ address: socketAddress(address, listenPort) })) } : {}),
    traffic_direction: TrafficDirection.OUTBOUND,
    ...(isHbone(servers[0]!) ? { connection_balance_config: byConnection } : {}),
    max_connections_to_accept_per_socket_event: 1,
    listener_filters: [
      // What a load balancer says of the client stands before anything that the client says.
      ...(gatewayTopology(proxy).proxyProtocol && !isHbone(servers[0]!) ? [proxyProtocol] : []),
      // Whatever has names or TLS is told apart by the client's hello.
      ...(servers.some((bound) => bound.server.tls && !isPlainHttp(bound) && !isHbone(bound)) ? [tlsInspector] : []),
    ],
    filter_chains: chains,
  });
  return makeResource(name, Listener, listener);
}

interface Context {
  model: Model;
  scope: Scope;
  proxy: Proxy;
  listener: string;
}

function portChains(context: Context, servers: readonly BoundServer[]): FilterChain[] {
  const { model, proxy, listener } = context;
  const plainHttp = servers.find(isPlainHttp);
  const chains: FilterChain[] = [];
  const http = (bound: BoundServer): Filter => gatewayHttp(model.mesh, listener, routeName(bound), securityHttpFilters(model, proxy), gatewayTopology(proxy));
  // All plaintext servers of a port are one: their hosts are told apart by the Host header.
  const hbone = servers.find(isHbone);
  if (hbone) return [hboneChain(model.mesh, { $case: 'rds', value: { route_config_name: routeName(hbone), config_source: ads } }, securityHttpFilters(model, proxy))];
  if (plainHttp) chains.push(FilterChain.fromPartial({ ...connectTimeout, filters: [http(plainHttp)] }));
  for (const bound of servers) {
    const { server } = bound;
    const names = serverNames(server.hosts);
    const match = names.length > 0 ? { filter_chain_match: { server_names: names } } : {};
    if (isHttps(bound)) {
      chains.push(FilterChain.fromPartial({ ...connectTimeout, ...match, filters: [http(bound)], transport_socket: gatewayTls(server.tls!, true, model.mesh) }));
    } else if (isAutoPassthrough(bound)) {
      chains.push(FilterChain.fromPartial({ ...connectTimeout, ...autoPassthroughChain(names) }));
    } else if (!isPlainHttp(bound)) {
      chains.push(...(server.tls ? sniChains(context, bound) : []), ...(server.tls && !terminates(server) ? [] : tcpChains(context, bound)));
    }
  }
  return chains;
}

/**
 * By the names of the VirtualServices' tls matches, as far as the server has these hosts: TLS to the end, or (of the Gateway
 * API's routes) TLS that ends here.
 */
function sniChains(context: Context, { gateway, server }: BoundServer): FilterChain[] {
  const { model, scope, proxy } = context;
  const chains: FilterChain[] = [];
  for (const loaded of virtualServicesForGateway(scope, gateway)) {
    if (terminates(server) && !hasGatewaySemantics(loaded.object)) continue;
    const hosts = boundHosts(loaded, { gateway, hosts: server.hosts });
    if (hosts.length === 0) continue;
    for (const { match, route } of loaded.object.spec.tls ?? []) {
      for (const candidate of match) {
        if (!l4SourceMatches(candidate, { proxy, port: server.port.number, gateway })) continue;
        const names = serverNames(commonHosts(candidate.sniHosts.map((name) => name.toLowerCase()), hosts));
        if (names.length === 0 && !candidate.sniHosts.includes('*')) continue;
        chains.push(
          FilterChain.fromPartial({
            ...connectTimeout,
            filter_chain_match: names.length > 0 ? { server_names: names } : { transport_protocol: 'tls' },
            metadata: { filter_metadata: { istio: { config: configPath(loaded.object, 'virtual-service') } } },
            filters: [...securityNetworkFilters(model, proxy), routeTcpProxy(scope, route, loaded.object, server.port.number)],
            ...(terminates(server) ? { transport_socket: gatewayTls(server.tls!, false, model.mesh) } : {}),
          }),
        );
      }
    }
  }
  return chains;
}

/** Plain TCP, or TLS that ends here with bytes inside: the first tcp route that fits. */
function tcpChains(context: Context, { gateway, server }: BoundServer): FilterChain[] {
  const { model, scope, proxy } = context;
  for (const loaded of virtualServicesForGateway(scope, gateway)) {
    if (boundHosts(loaded, { gateway, hosts: server.hosts }).length === 0) continue;
    for (const { match = [], route } of loaded.object.spec.tcp ?? []) {
      if (route.length === 0 || (match.length > 0 && !match.some((candidate) => l4SourceMatches(candidate, { proxy, port: server.port.number, gateway })))) continue;
      const names = terminates(server) ? serverNames(server.hosts) : [];
      return [
        FilterChain.fromPartial({
          ...connectTimeout,
          ...(names.length > 0 ? { filter_chain_match: { server_names: names } } : {}),
          metadata: { filter_metadata: { istio: { config: configPath(loaded.object, 'virtual-service') } } },
          filters: [...securityNetworkFilters(model, proxy), routeTcpProxy(scope, route, loaded.object, server.port.number)],
          ...(terminates(server) ? { transport_socket: gatewayTls(server.tls!, false, model.mesh) } : {}),
        }),
      ];
    }
  }
  return [];
}

function boundHosts({ object }: LoadedObject<VirtualService>, server: { gateway: string; hosts: readonly string[] }): string[] {
  return commonHosts(serverHostsFor(server, object.metadata.namespace ?? 'default'), (object.spec.hosts ?? []).map((host) => host.toLowerCase()));
}

/** Names for a filter chain's match: none when every name is meant. */
function serverNames(hosts: readonly string[]): string[] {
  const bare = hosts.map((host) => bareHost(host).toLowerCase());
  return bare.includes('*') ? [] : [...new Set(bare)].sort();
}

/** Envoy refuses a listener with two chains of the same match: the first, of the oldest Gateway, keeps it. */
function withoutTwins(chains: readonly FilterChain[]): FilterChain[] {
  const seen = new Set<string>();
  return chains.flatMap((chain) => {
    const match = chain.filter_chain_match;
    const protocol = match?.transport_protocol ?? '';
    const names = (match?.server_names ?? []).filter((name) => !seen.has(`${protocol} ${name}`));
    if (match && match.server_names.length > 0) {
      if (names.length === 0) return [];
      for (const name of names) seen.add(`${protocol} ${name}`);
      return [{ ...chain, filter_chain_match: { ...match, server_names: names } }];
    }
    const key = `${protocol} ${chain.transport_socket ? 'tls' : ''}`;
    if (seen.has(key)) return [];
    seen.add(key);
    return [chain];
  });
}
