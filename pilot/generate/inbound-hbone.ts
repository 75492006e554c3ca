/**
 * A sidecar that takes HBONE (metadata `ENABLE_HBONE`), as istiod makes it: `connect_terminate` on port 15008, where tunnels
 * end, hands each on to the internal listener `main_internal`, whose chains are those of `virtualInbound` without TLS. An
 * authority is an address of this workload with any port, or the host and port of a Service that selects it (callers of other
 * networks know no more); anything else is answered 404 before a socket is opened.
 */
import { pack } from '../../common/xds/any.js';
import { HBONE_PORT } from '../../common/istio-iptables.js';
import { Cluster, Cluster_DiscoveryType } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { TrafficDirection } from '../../proto/generated/envoy/config/core/v3/base.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { FilterStateValue, FilterStateValue_SharedWithUpstream } from '../../proto/generated/envoy/extensions/filters/common/set_filter_state/v3/value.js';
import { Config as SetFilterState } from '../../proto/generated/envoy/extensions/filters/http/set_filter_state/v3/set_filter_state.js';
import type { HttpFilter } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { InternalUpstreamTransport } from '../../proto/generated/envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.js';
import { targetPortOf, type Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { bracketed, circuit_breakers, internalAddress, passthroughUpstream, rawBufferSocket, socketAddress } from './envoy.js';
import { byConnection, connectHost, connectTable, hboneChain, ORIGINAL_DST, originalDstFilter } from './hbone.js';
import { hasIpv4, hasIpv6, podOf, proxyIps } from './inbound-ports.js';
import { INBOUND_PORT, inboundChainSets, inspector } from './inbound.js';
import { httpInspector, OUTBOUND_PORT, PLAINTEXT_HTTP } from './listeners.js';
import { CONNECT_TERMINATE, MAIN_INTERNAL } from './names.js';
import { makeResource, type Resource } from './resource.js';
import { PEER_ADDRESS, PEER_PRINCIPAL } from './security/rules.js';
import { policyTarget } from './security/targets.js';

/** Of a route: where a tunnel leads whose authority is a service's. */
const DESTINATION = 'hbone_destination';

export function takesTunnels({ type, metadata }: Proxy): boolean {
  return type === 'sidecar' && String(metadata['ENABLE_HBONE']) === 'true';
}

export function hboneListeners(model: Model, proxy: Proxy): Resource[] {
  return [connectTerminate(model, proxy), mainInternal(model, proxy)];
}

function connectTerminate(model: Model, proxy: Proxy): Resource {
  const ips = proxyIps(model, proxy);
  const addresses = [...(hasIpv4({ ips }) ? ['0.0.0.0'] : []), ...(hasIpv6({ ips }) ? ['::'] : [])];
  const listener = Listener.fromPartial({
    name: CONNECT_TERMINATE,
    address: socketAddress(addresses[0]!, HBONE_PORT),
    additional_addresses: addresses.slice(1).map((address) => ({ address: socketAddress(address, HBONE_PORT) })),
    connection_balance_config: byConnection,
    filter_chains: [hboneChain(model.mesh, { $case: 'route_config', value: connectTable('default', authorities(model, proxy, ips)) }, [peerState])],
  });
  return makeResource(listener.name, Listener, listener);
}

function authorities(model: Model, proxy: Proxy, ips: readonly string[]): VirtualHost[] {
  const pod = podOf(model, proxy);
  /** By `host:port`; a Service and a ServiceEntry may have one host. */
  const services = new Map<string, string>();
  for (const service of model.servicesSelecting(proxy.namespace, policyTarget(model, proxy).labels)) {
    for (const port of service.ports) {
      const target = targetPortOf(port, pod);
      if (target !== undefined) services.set(`${service.host}:${port.port}`, `${bracketed(proxy.ip)}:${target}`);
    }
  }
  const own = [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT].flatMap((port) => ips.map((ip) => `${bracketed(ip)}:${port}`));
  return [
    connectHost('workload', ips.map((ip) => `${bracketed(ip)}:*`), MAIN_INTERNAL),
    // The proxy's own ports are nobody's destination: it would lead to itself.
    VirtualHost.fromPartial({ name: 'proxy', domains: own }),
    ...[...services].map(([authority, address]) => connectHost(authority, [authority], MAIN_INTERNAL, { metadata: { filter_metadata: { istio: { [DESTINATION]: address } }, typed_filter_metadata: {} } })),
  ];
}

/** What the internal connection is told: where it was to go, and who has sent it. Of what is given twice the last that has a value counts. */
export const peerState: HttpFilter = {
  name: 'connect_authority',
  is_optional: false,
  disabled: false,
  config_type: {
    $case: 'typed_config',
    value: pack(SetFilterState, SetFilterState.fromPartial({
      on_request_headers: [
        state(`${ORIGINAL_DST}.local_ip`, '%REQ(:AUTHORITY)%'),
        state(`${ORIGINAL_DST}.local_ip`, `%METADATA(ROUTE:istio:${DESTINATION})%`),
        state(`${ORIGINAL_DST}.remote_ip`, '%DOWNSTREAM_REMOTE_ADDRESS%'),
        state(PEER_PRINCIPAL, '%DOWNSTREAM_PEER_URI_SAN%', 'envoy.hashable_string'),
        state(PEER_ADDRESS, '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%', 'envoy.network.ip'),
      ],
    })),
  },
};

function state(key: string, format: string, factory_key = ''): FilterStateValue {
  return FilterStateValue.fromPartial({
    key: { $case: 'object_key', value: key },
    factory_key,
    value: { $case: 'format_string', value: { format: { $case: 'text_format_source', value: { specifier: { $case: 'inline_string', value: format } } }, omit_empty_values: true } },
    skip_if_empty: true,
    shared_with_upstream: FilterStateValue_SharedWithUpstream.ONCE,
  });
}

function mainInternal(model: Model, proxy: Proxy): Resource {
  // No tunnel leads to an address that is not the workload's, whatever its authority was read as.
  const prefix_ranges = proxyIps(model, proxy).map((ip) => ({ address_prefix: ip, prefix_len: ip.includes(':') ? 128 : 32 }));
  const [others, ...known] = inboundChainSets(model, proxy, true);
  const sets = [...known, others!];
  const listener = Listener.fromPartial({
    name: MAIN_INTERNAL,
    listener_specifier: { $case: 'internal_listener', value: {} },
    traffic_direction: TrafficDirection.INBOUND,
    continue_on_listener_filters_timeout: true,
    listener_filters: [
      originalDstFilter,
      ...inspector(httpInspector, sets, ({ application_protocols }) => application_protocols === PLAINTEXT_HTTP, []),
    ],
    filter_chains: sets.flatMap(({ port, ways, httpName, tcpName, http, tcp }) =>
      ways.map(({ protocol, application_protocols = [] }) =>
        FilterChain.fromPartial({
          name: protocol === 'HTTP' ? httpName : tcpName,
          filter_chain_match: { ...(port > 0 ? { destination_port: port } : {}), prefix_ranges, application_protocols },
          filters: protocol === 'HTTP' ? [http] : [...tcp],
        }),
      ),
    ),
  });
  return makeResource(listener.name, Listener, listener);
}

export const mainInternalCluster: Resource = makeResource(
  MAIN_INTERNAL,
  Cluster,
  Cluster.fromPartial({
    name: MAIN_INTERNAL,
    alt_stat_name: `${MAIN_INTERNAL};`,
    cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.STATIC },
    load_assignment: {
      cluster_name: MAIN_INTERNAL,
      endpoints: [{ lb_endpoints: [{ host_identifier: { $case: 'endpoint', value: { address: internalAddress(MAIN_INTERNAL) } } }] }],
    },
    circuit_breakers,
    typed_extension_protocol_options: passthroughUpstream,
    transport_socket: {
      name: 'internal_upstream',
      config_type: { $case: 'typed_config', value: pack(InternalUpstreamTransport, InternalUpstreamTransport.fromPartial({ transport_socket: { ...rawBufferSocket, name: 'raw_buffer' } })) },
    },
  }),
);
