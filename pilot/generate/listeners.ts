/**
 * LDS, outbound side. Service listeners do not bind: `virtualOutbound` on 15001 hands each connection to the listener of
 * its original destination (`VIP_port`, else `0.0.0.0_port`), and passes the rest through. Services that share an address
 * and port share a listener; where HTTP and TCP meet, connections are sniffed.
 */
import { isIP, isIPv6 } from 'node:net';
import { pack } from '../../common/xds/any.js';
import { TrafficDirection } from '../../proto/generated/envoy/config/core/v3/base.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain, ListenerFilter, type Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpInspector } from '../../proto/generated/envoy/extensions/filters/listener/http_inspector/v3/http_inspector.js';
import { TlsInspector } from '../../proto/generated/envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.js';
import type { MeshPort, MeshService } from '../model/model.js';
import { isHttp, protocolOf } from '../model/protocol.js';
import type { Proxy } from '../model/proxy.js';
import type { Scope } from '../model/scope.js';
import { seconds, socketAddress } from './envoy.js';
import { tcpProxy } from './http-filters.js';
import { hasIpv4, hasIpv6, proxyIps } from './inbound-ports.js';
import { filterChain, isHttpChain, matchKey, needsHttpInspector, needsTlsInspector, parseCidr, takesAll, type ListenerChain } from './listener-chains.js';
import { makeResource, type Resource } from './resource.js';
import { meshSource } from './route-match.js';
import { tcpChains, tlsChains } from './tcp-routes.js';

export { PLAINTEXT_HTTP } from './listener-chains.js';

export const httpInspector: ListenerFilter = ListenerFilter.fromPartial({
  name: 'envoy.filters.listener.http_inspector',
  config_type: { $case: 'typed_config', value: pack(HttpInspector, HttpInspector.fromPartial({})) },
});

export const OUTBOUND_PORT = 15_001;

export const tlsInspector: ListenerFilter = ListenerFilter.fromPartial({
  name: 'envoy.filters.listener.tls_inspector',
  config_type: { $case: 'typed_config', value: pack(TlsInspector, TlsInspector.fromPartial({ initial_read_buffer_size: 512 })) },
});

const chain = (filters: Filter[], more: Parameters<typeof FilterChain.fromPartial>[0] = {}): FilterChain => FilterChain.fromPartial({ ...more, filters });

export interface Families {
  ipv4: boolean;
  ipv6: boolean;
}

export function familiesOf(scope: Scope, proxy: Proxy): Families {
  const ips = proxyIps(scope.model, proxy);
  return { ipv4: hasIpv4({ ips }), ipv6: hasIpv6({ ips }) };
}

/** The wildcard address of a proxy's listeners, and the second one of a dual-stack proxy. */
export function wildcards({ ipv4, ipv6 }: Families): string[] {
  return [...(ipv4 ? ['0.0.0.0'] : []), ...(ipv6 ? ['::'] : [])];
}

const additional = (addresses: readonly string[], port: number): { additional_addresses?: { address: ReturnType<typeof socketAddress> }[] } =>
  addresses.length > 0 ? { additional_addresses: addresses.map((address) => ({ address: socketAddress(address, port) })) } : {};

/** Where one service's port is listened for. */
export interface Binding {
  addresses: readonly string[];
  /** The destinations on these addresses that are the service's; all when left out. */
  cidrs?: readonly string[];
  /** The listener has a socket of its own; else connections come from `virtualOutbound`. */
  bindToPort?: boolean;
}

interface Entry extends Binding {
  port: number;
  protocol: 'http' | 'tcp' | 'auto';
  chains: ListenerChain[];
  locked: boolean;
}

/**
 * Collects listeners service by service. Of chains that match the same connections the first stays: the caller adds
 * services in Istio's order of precedence.
 */
export class OutboundListeners {
  readonly families: Families;
  readonly #entries = new Map<string, Entry>();
  readonly #wildcards: readonly string[];
  readonly #passthrough: string;

  constructor(readonly scope: Scope, readonly proxy: Proxy) {
    this.families = familiesOf(scope, proxy);
    this.#wildcards = wildcards(this.families);
    this.#passthrough = scope.passthroughCluster;
  }

  /** What was added up to now takes nothing more in: a Sidecar named those ports and what is to be on them. */
  lock(): void {
    for (const entry of this.#entries.values()) entry.locked = true;
  }

  /** All listeners that the service's port has by its own addresses. */
  addService(service: MeshService, port: MeshPort): void {
    for (const binding of isHttp(port.protocol) ? [{ addresses: this.#wildcards }] : this.#bindings(service)) this.add(service, port, binding);
  }

  /** @param port what the listener listens for: the service's own port, or a Sidecar's */
  add(service: MeshService, port: MeshPort, binding: Binding): void {
    if (binding.addresses.length === 0) return;
    const key = `${binding.addresses[0]}_${port.port}`;
    const known = this.#entries.get(key);
    if (known?.locked) return;
    const onWildcard = binding.addresses[0] === this.#wildcards[0];
    const http: ListenerChain = { routes: port.protocol === 'auto' && !onWildcard ? `${service.host}:${port.port}` : String(port.port), sniffed: port.protocol === 'auto' || onWildcard };
    if (isHttp(port.protocol)) {
      if (known && known.protocol !== 'tcp') return;
      // On a shared address there is always a way for what is not HTTP.
      if (known) merge(known, [http]);
      else this.#entries.set(key, { ...binding, port: port.port, protocol: onWildcard ? 'auto' : 'http', chains: [http], locked: false });
      return;
    }
    const source = meshSource(this.proxy, port.port);
    const plain = port.protocol === 'TLS' ? tlsChains(this.scope, source, service, onWildcard && !binding.cidrs, binding.cidrs) : tcpChains(this.scope, source, service, binding.cidrs);
    if (!known || (port.protocol === 'auto' && known.protocol === 'http')) {
      this.#entries.set(key, { ...binding, port: port.port, protocol: port.protocol === 'auto' ? 'auto' : 'tcp', chains: port.protocol === 'auto' ? [...plain, http] : plain, locked: false });
    } else {
      merge(known, port.protocol === 'auto' ? [...plain, http] : plain);
    }
  }

  #bindings(service: MeshService): Binding[] {
    const { headless, resolution, object } = service;
    const fits = (address: string): boolean => (isIPv6(parseCidr(address).address) ? this.families.ipv6 : this.families.ipv4);
    if (service.addresses.length + service.cidrs.length > 0) {
      const addresses = [...service.addresses, ...service.cidrs].filter(fits);
      // A Service has one address a family; a ServiceEntry's addresses are services of their own to Istio.
      if (object.kind === 'Service') return [{ addresses }];
      return addresses.map((address) => {
        const { address: one, length } = parseCidr(address);
        return length === (isIPv6(one) ? 128 : 32) ? { addresses: [one] } : { addresses: this.#wildcards, cidrs: [address] };
      });
    }
    if (resolution === 'ORIGINAL_DST') {
      const endpoints = this.scope.model.endpoints(service);
      // A headless service has no address of its own: one listener for each of its pods.
      if (headless || endpoints.length > 0 || Object.keys(service.selector).length > 0) return endpoints.filter(({ address }) => isIP(address) && fits(address)).map(({ address }) => ({ addresses: [address] }));
    }
    // A Service that has got no address yet is not to be reached.
    return object.kind === 'Service' ? [] : [{ addresses: this.#wildcards }];
  }

  build(): Resource[] {
    return [...this.#entries.values()].map((entry) => this.#listener(entry));
  }

  #listener({ addresses, port, chains, bindToPort }: Entry): Resource {
    const name = `${addresses[0]}_${port}`;
    const matching = chains.filter((item) => !takesAll(item)).map((item) => filterChain(this.scope.model.mesh, item, name));
    const all = chains.filter(takesAll).map((item) => filterChain(this.scope.model.mesh, item, name)).at(-1);
    const rest = matching.length === 0 ? undefined : (all ?? chain([tcpProxy(this.#passthrough)], { name: 'PassthroughFilterChain', filter_chain_match: {} }));
    return makeResource(
      name,
      Listener,
      Listener.fromPartial({
        name,
        address: socketAddress(addresses[0]!, port),
        ...additional(addresses.slice(1), port),
        ...(bindToPort ? { max_connections_to_accept_per_socket_event: 1 } : { bind_to_port: false }),
        // With no time limit a listener filter waits for the client's first bytes; it must not decide against it by the clock.
        continue_on_listener_filters_timeout: true,
        listener_filters_timeout: seconds(0),
        traffic_direction: TrafficDirection.OUTBOUND,
        listener_filters: [...(chains.some(needsTlsInspector) ? [tlsInspector] : []), ...(chains.some(needsHttpInspector) ? [httpInspector] : [])],
        filter_chains: rest ? matching : all ? [all] : [],
        ...(rest ? { default_filter_chain: rest } : {}),
      }),
    );
  }
}

function merge(entry: Entry, chains: readonly ListenerChain[]): void {
  const keys = new Set(entry.chains.map(matchKey));
  for (const item of chains) {
    const key = matchKey(item);
    if (keys.has(key)) continue;
    keys.add(key);
    entry.chains.push(item);
  }
  if (!entry.chains.some(isHttpChain)) return;
  entry.protocol = 'auto';
  // A chain that takes HTTP without looking would take all else, too.
  entry.chains = entry.chains.map((item) => (isHttpChain(item) && entry.chains.length > 1 ? { ...item, sniffed: true } : item));
}

/** Where two services claim the same connections the older one has them. */
const byAge = (a: MeshService, b: MeshService): number => (a.createdAt < b.createdAt ? -1 : a.createdAt > b.createdAt ? 1 : 0);

const loopbacks = ({ ipv4, ipv6 }: Families): string[] => [...(ipv4 ? ['127.0.0.1'] : []), ...(ipv6 ? ['::1'] : [])];

/** The outbound listeners that all proxies of one kind (namespace, labels, address families) share. */
export function outboundListeners(scope: Scope, proxy: Proxy): Resource[] {
  const listeners = new OutboundListeners(scope, proxy);
  for (const { port: own, bind, bindToPort, services } of scope.egress ?? [{ port: undefined, bind: '', bindToPort: false, services: scope.services }]) {
    // Ports that a Sidecar's listener names are its alone.
    if (!own) listeners.lock();
    const addresses = bind ? [bind] : bindToPort ? loopbacks(listeners.families) : own ? wildcards(listeners.families) : undefined;
    for (const service of [...services].sort(byAge)) {
      for (const port of service.ports) {
        if (addresses) listeners.add(service, own ? { ...port, protocol: protocolOf(own.protocol) ?? port.protocol } : port, { addresses, ...(bindToPort ? { bindToPort } : {}) });
        else listeners.addService(service, port);
      }
    }
  }
  return [...listeners.build(), virtualOutbound(scope, wildcards(listeners.families))];
}

export function virtualOutbound(scope: Scope, addresses: readonly string[]): Resource {
  return makeResource(
    'virtualOutbound',
    Listener,
    Listener.fromPartial({
      name: 'virtualOutbound',
      address: socketAddress(addresses[0]!, OUTBOUND_PORT),
      ...additional(addresses.slice(1), OUTBOUND_PORT),
      use_original_dst: true,
      max_connections_to_accept_per_socket_event: 1,
      traffic_direction: TrafficDirection.OUTBOUND,
      filter_chains: [
        // Whoever dials 15001 itself would be passed through to 15001, for ever.
        chain([tcpProxy('BlackHoleCluster')], { name: 'virtualOutbound-blackhole', filter_chain_match: { destination_port: OUTBOUND_PORT } }),
        chain([tcpProxy(scope.passthroughCluster)], { name: 'virtualOutbound-catchall-tcp' }),
      ],
    }),
  );
}
