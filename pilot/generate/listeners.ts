/**
 * LDS, outbound side. Service listeners do not bind: `virtualOutbound` on 15001 hands each connection to the listener of
 * its original destination (`VIP_port`, else `0.0.0.0_port`), and passes the rest through.
 */
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain, ListenerFilter, type Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { TrafficDirection } from '../../proto/generated/envoy/config/core/v3/base.js';
import { HttpInspector } from '../../proto/generated/envoy/extensions/filters/listener/http_inspector/v3/http_inspector.js';
import { pack } from '../../common/xds/any.js';
import { isIPv6 } from 'node:net';
import type { MeshPort, MeshService } from '../model/model.js';
import { isHttp } from '../model/protocol.js';
import type { Proxy } from '../model/proxy.js';
import type { Scope } from '../model/scope.js';
import { seconds, socketAddress } from './envoy.js';
import { outboundHttp, tcpProxy } from './http-filters.js';
import { hasIpv4, hasIpv6, proxyIps } from './inbound-ports.js';
import { clusterName } from './names.js';
import { makeResource, type Resource } from './resource.js';
import { tcpRouteFilter } from './tcp-routes.js';

export const httpInspector: ListenerFilter = ListenerFilter.fromPartial({
  name: 'envoy.filters.listener.http_inspector',
  config_type: { $case: 'typed_config', value: pack(HttpInspector, HttpInspector.fromPartial({})) },
});

/** What the HTTP inspector calls the protocols it finds in plaintext. */
export const PLAINTEXT_HTTP = ['http/1.1', 'h2c'];

const chain = (filters: Filter[], more: Parameters<typeof FilterChain.fromPartial>[0] = {}): FilterChain => FilterChain.fromPartial({ ...more, filters });

interface Families {
  ipv4: boolean;
  ipv6: boolean;
}

/** The wildcard address of a proxy's listeners, and the second one of a dual-stack proxy. */
function wildcards({ ipv4, ipv6 }: Families): string[] {
  return [...(ipv4 ? ['0.0.0.0'] : []), ...(ipv6 ? ['::'] : [])];
}

const additional = (addresses: readonly string[], port: number): { additional_addresses?: { address: ReturnType<typeof socketAddress> }[] } =>
  addresses.length > 0 ? { additional_addresses: addresses.map((address) => ({ address: socketAddress(address, port) })) } : {};

function outboundListener(name: string, addresses: readonly string[], port: number, content: Parameters<typeof Listener.fromPartial>[0]): Listener {
  return Listener.fromPartial({
    name,
    address: socketAddress(addresses[0]!, port),
    ...additional(addresses.slice(1), port),
    bind_to_port: false,
    // With no time limit a listener filter waits for the client's first bytes; it must not decide against it by the clock.
    continue_on_listener_filters_timeout: true,
    listener_filters_timeout: seconds(0),
    traffic_direction: TrafficDirection.OUTBOUND,
    ...content,
  });
}

const connectTimeout = { transport_socket_connect_timeout: seconds(15) };
const httpMatch = { filter_chain_match: { transport_protocol: 'raw_buffer', application_protocols: PLAINTEXT_HTTP } };

/** HTTP on a port that services share: the route configuration is named by the port, the rest passes through. */
function sharedHttpListener(port: number, families: Families, passthrough: string): Resource {
  const addresses = wildcards(families);
  const name = `${addresses[0]}_${port}`;
  return makeResource(
    name,
    Listener,
    outboundListener(name, addresses, port, {
      listener_filters: [httpInspector],
      filter_chains: [chain([outboundHttp(name, String(port))], { ...httpMatch, ...connectTimeout })],
      default_filter_chain: chain([tcpProxy(passthrough)], { name: 'PassthroughFilterChain', filter_chain_match: {} }),
    }),
  );
}

function sniffedListener(service: MeshService, port: MeshPort, addresses: readonly string[]): Resource {
  const name = `${addresses[0]}_${port.port}`;
  const cluster = clusterName(port.port, '', service.host);
  return makeResource(
    name,
    Listener,
    outboundListener(name, addresses, port.port, {
      listener_filters: [httpInspector],
      filter_chains: [chain([outboundHttp(name, `${service.host}:${port.port}`)], { ...httpMatch, ...connectTimeout })],
      default_filter_chain: chain([tcpProxy(cluster)], connectTimeout),
    }),
  );
}

function tcpListener(filter: Filter, port: number, addresses: readonly string[]): Resource {
  const name = `${addresses[0]}_${port}`;
  return makeResource(name, Listener, outboundListener(name, addresses, port, { filter_chains: [chain([filter], connectTimeout)] }));
}

/** The outbound listeners that all proxies of one kind (namespace, labels, address families) share. */
export function outboundListeners(scope: Scope, proxy: Proxy): Resource[] {
  const { model } = scope;
  const ips = proxyIps(model, proxy);
  const families: Families = { ipv4: hasIpv4({ ips }), ipv6: hasIpv6({ ips }) };
  const mine = (addresses: readonly string[]): string[] => addresses.filter((address) => (isIPv6(address) ? families.ipv6 : families.ipv4));
  const passthrough = scope.outboundTrafficPolicy === 'ALLOW_ANY' ? 'PassthroughCluster' : 'BlackHoleCluster';
  const resources = new Map<string, Resource>();
  const add = (resource: Resource): void => {
    if (!resources.has(resource.name)) resources.set(resource.name, resource);
  };
  for (const service of scope.services) {
    for (const port of service.ports) {
      if (isHttp(port.protocol)) {
        add(sharedHttpListener(port.port, families, passthrough));
        continue;
      }
      // A headless service has no address of its own: one listener for each of its pods.
      const groups = service.headless ? model.endpoints(service).map(({ address }) => mine([address])) : [mine(service.addresses)];
      for (const addresses of groups.filter((group) => group.length > 0)) {
        add(port.protocol === 'auto' ? sniffedListener(service, port, addresses) : tcpListener(tcpRouteFilter(scope, proxy, service, port), port.port, addresses));
      }
    }
  }
  const addresses = wildcards(families);
  add(
    makeResource(
      'virtualOutbound',
      Listener,
      Listener.fromPartial({
        name: 'virtualOutbound',
        address: socketAddress(addresses[0]!, 15_001),
        ...additional(addresses.slice(1), 15_001),
        use_original_dst: true,
        max_connections_to_accept_per_socket_event: 1,
        traffic_direction: TrafficDirection.OUTBOUND,
        filter_chains: [
          // Whoever dials 15001 itself would be passed through to 15001, for ever.
          chain([tcpProxy('BlackHoleCluster')], { name: 'virtualOutbound-blackhole', filter_chain_match: { destination_port: 15_001 } }),
          chain([tcpProxy(passthrough)], { name: 'virtualOutbound-catchall-tcp' }),
        ],
      }),
    ),
  );
  return [...resources.values()];
}
