/**
 * LDS of a waypoint, as istiod has it: tunnels end in `connect_terminate`, and each goes on to the internal listener
 * `main_internal`, where the destination that the caller dialled has its chain: policies that name the service or the
 * waypoint's Gateway, then the service's routes. What goes on from there goes by HBONE, with the waypoint's identity.
 */
import { pack } from '../../../common/xds/any.js';
import { HBONE_PORT } from '../../../common/istio-iptables.js';
import { TrafficDirection } from '../../../proto/generated/envoy/config/core/v3/base.js';
import { FilterStateValue_SharedWithUpstream } from '../../../proto/generated/envoy/extensions/filters/common/set_filter_state/v3/value.js';
import { Config as SetFilterState } from '../../../proto/generated/envoy/extensions/filters/network/set_filter_state/v3/set_filter_state.js';
import { Listener } from '../../../proto/generated/envoy/config/listener/v3/listener.js';
import { Filter, FilterChain, ListenerFilter, ListenerFilterChainMatchPredicate } from '../../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { Model } from '../../model/model.js';
import type { Proxy } from '../../model/proxy.js';
import type { MeshService } from '../../model/types.js';
import { ads, socketAddress } from '../envoy.js';
import { byConnection, hboneChain, ORIGINAL_DST, originalDstFilter } from '../hbone.js';
import { originateListener } from '../hbone-originate.js';
import { tcpProxy, waypointHttp } from '../http-filters.js';
import { peerState } from '../inbound-hbone.js';
import { hasIpv4, hasIpv6, proxyIps } from '../inbound-ports.js';
import { httpInspector, PLAINTEXT_HTTP, tlsInspector } from '../listeners.js';
import { CONNECT_TERMINATE, MAIN_INTERNAL } from '../names.js';
import { makeResource, type Resource } from '../resource.js';
import { targetFilters } from '../security/filters.js';
import { addressesOf, attachedServices, attachedWorkloads, spokenOn, waypointClusterName, waypointTarget } from './attached.js';
import { ENCAP } from './clusters.js';
import { tcpWays } from './tcp.js';

export function waypointListeners(model: Model, proxy: Proxy): Resource[] {
  return [connectTerminate(model, proxy), mainInternal(model, proxy), originateListener];
}

function connectTerminate(model: Model, proxy: Proxy): Resource {
  const families = { ips: proxyIps(model, proxy) };
  const addresses = [...(hasIpv4(families) ? ['0.0.0.0'] : []), ...(hasIpv6(families) ? ['::'] : [])];
  const listener = Listener.fromPartial({
    name: CONNECT_TERMINATE,
    address: socketAddress(addresses[0]!, HBONE_PORT),
    additional_addresses: addresses.slice(1).map((address) => ({ address: socketAddress(address, HBONE_PORT) })),
    connection_balance_config: byConnection,
    filter_chains: [hboneChain(model.mesh, { $case: 'rds', value: { route_config_name: CONNECT_TERMINATE, config_source: ads } }, [peerState])],
  });
  return makeResource(listener.name, Listener, listener);
}

const prefixes = (addresses: readonly string[]) => addresses.map((address) => ({ address_prefix: address, prefix_len: address.includes(':') ? 128 : 32 }));

function mainInternal(model: Model, proxy: Proxy): Resource {
  const taken = new Set<string>();
  const looks: Looks = { http: new Set(), tls: new Set() };
  const attached = attachedServices(model, proxy);
  const own = new Set(attached.map(({ host }) => host));
  const chains = attached.flatMap((service) => serviceChains(model, proxy, service, own, taken, looks));
  const workloads = attachedWorkloads(model, proxy);
  if (workloads.length > 0) {
    const { network } = targetFilters(model, waypointTarget(model, proxy), false, true);
    // Envoy looks for the port first: where a service has chains of its own on it, there is no way back to those of any port.
    const ports = [...new Set(chains.flatMap(({ filter_chain_match: match }) => match?.destination_port ?? []))].sort((a, b) => a - b);
    for (const port of [undefined, ...ports]) {
      chains.push(FilterChain.fromPartial({ name: `direct-tcp${port === undefined ? '' : `/${port}`}`, filter_chain_match: { ...(port === undefined ? {} : { destination_port: port }), prefix_ranges: prefixes(workloads) }, filters: [...network, handOn, tcpProxy(ENCAP)] }));
    }
  }
  const listener = Listener.fromPartial({
    name: MAIN_INTERNAL,
    listener_specifier: { $case: 'internal_listener', value: {} },
    traffic_direction: TrafficDirection.INBOUND,
    continue_on_listener_filters_timeout: true,
    listener_filters: [originalDstFilter, ...inspection(tlsInspector, looks.tls), ...inspection(httpInspector, looks.http)],
    filter_chains: chains,
  });
  return makeResource(listener.name, Listener, listener);
}

/** Ports on which a connection's first bytes are looked at. */
interface Looks {
  http: Set<number>;
  tls: Set<number>;
}

/** @param hosts of all services that are reached through this waypoint */
function serviceChains(model: Model, proxy: Proxy, service: MeshService, hosts: ReadonlySet<string>, taken: Set<string>, looks: Looks): FilterChain[] {
  const { custom, authentication, authorization, network } = targetFilters(model, waypointTarget(model, proxy, service), false, true);
  return service.ports.flatMap((servicePort) => {
    const { port, protocol } = servicePort;
    // Two services with one address: as in the table of authorities.
    const addresses = addressesOf(service).filter((address) => taken.size < taken.add(`${address} ${port}`).size);
    if (addresses.length === 0) return [];
    const spoken = spokenOn(protocol);
    if (spoken.length > 1) looks.http.add(port);
    return spoken.flatMap((kind): FilterChain[] => {
      const name = waypointClusterName({ port, spoken: kind, subset: '', host: service.host });
      if (kind === 'http') {
        const filter_chain_match = { destination_port: port, prefix_ranges: prefixes(addresses), ...(spoken.length > 1 ? { application_protocols: PLAINTEXT_HTTP } : {}) };
        return [FilterChain.fromPartial({ name, filter_chain_match, filters: [waypointHttp(model.mesh, `inbound_0.0.0.0_${port}`, name, [...custom, ...authentication, ...authorization])] })];
      }
      return tcpWays(model.scopeOf(proxy), proxy, service, servicePort, addresses, hosts).map(({ addresses: own, serverNames, filters }, index) => {
        if (serverNames.length > 0) looks.tls.add(port);
        return FilterChain.fromPartial({ name: index === 0 ? name : `${name}/${index}`, filter_chain_match: { destination_port: port, prefix_ranges: prefixes(own), server_names: [...serverNames] }, filters: [...network, ...filters] });
      });
    });
  });
}

/** Only where the first bytes decide: a server that speaks first would wait for its client. */
function inspection(inspector: ListenerFilter, ports: ReadonlySet<number>): ListenerFilter[] {
  if (ports.size === 0) return [];
  const rules = [...ports].sort((a, b) => a - b).map((port) => ListenerFilterChainMatchPredicate.fromPartial({ rule: { $case: 'destination_port_range', value: { start: port, end: port + 1 } } }));
  const asked = rules.length === 1 ? rules[0]! : ListenerFilterChainMatchPredicate.fromPartial({ rule: { $case: 'or_match', value: { rules } } });
  return [{ ...inspector, filter_disabled: ListenerFilterChainMatchPredicate.fromPartial({ rule: { $case: 'not_match', value: asked } }) }];
}

/** The next connection within Envoy is to go where this one was to. */
const handOn: Filter = Filter.fromPartial({
  name: 'connect_authority',
  config_type: {
    $case: 'typed_config',
    value: pack(SetFilterState, SetFilterState.fromPartial({
      on_new_connection: [{
        key: { $case: 'object_key', value: `${ORIGINAL_DST}.local_ip` },
        value: { $case: 'format_string', value: { format: { $case: 'text_format_source', value: { specifier: { $case: 'inline_string', value: '%DOWNSTREAM_LOCAL_ADDRESS%' } } } } },
        shared_with_upstream: FilterStateValue_SharedWithUpstream.ONCE,
      }],
    })),
  },
});
