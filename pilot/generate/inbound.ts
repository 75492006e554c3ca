/**
 * LDS, inbound side: `virtualInbound` on 15006, where the sidecar's iptables rules send what arrives for the pod. Each
 * port that a service names has its chains; others pass through. PeerAuthentication says of each port which ways in it
 * has; the filters of policies stand in all of them.
 */
import { pack } from '../../common/xds/any.js';
import { HeaderValueOption, HeaderValueOption_HeaderAppendAction, TrafficDirection, type TransportSocket } from '../../proto/generated/envoy/config/core/v3/base.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import {
  FilterChain,
  ListenerFilter,
  ListenerFilterChainMatchPredicate,
  type Filter,
} from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { OriginalDst } from '../../proto/generated/envoy/extensions/filters/listener/original_dst/v3/original_dst.js';
import { TlsInspector } from '../../proto/generated/envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.js';
import type { Model } from '../model/model.js';
import { effectivePeerAuthentication, type MtlsMode } from '../model/peer-authentication.js';
import { isHttp, isHttp2 } from '../model/protocol.js';
import type { Proxy } from '../model/proxy.js';
import { gatewayTls } from './gateway/tls.js';
import { istioDownstreamTls, seconds, socketAddress } from './envoy.js';
import { inboundHttp, tcpProxy } from './http-filters.js';
import { hasIpv4, hasIpv6, inboundPorts, proxyIps, type InboundPort } from './inbound-ports.js';
import { httpInspector, PLAINTEXT_HTTP } from './listeners.js';
import { inboundClusterName } from './names.js';
import { makeResource, type Resource } from './resource.js';
import { securityFilters } from './security/filters.js';
import { PEER_PRINCIPAL } from './security/rules.js';
import { policyKeys, policyTarget } from './security/targets.js';
import { trustDomains } from './security/trust-domains.js';

export const INBOUND_PORT = 15_006;

/** ALPN of Istio's clients: by it mesh TLS is told from the application's own. */
const ISTIO_HTTP = ['istio-http/1.0', 'istio-http/1.1', 'istio-h2'];
const ISTIO_TCP = ['istio-peer-exchange', 'istio'];
/** What clients of the mesh offer in the handshake of mutual TLS. */
export const ISTIO_ANY = ['istio', 'istio-peer-exchange', ...ISTIO_HTTP];
const HTTP_ALPN = ['h2', 'http/1.1'];
const TCP_ALPN = ['istio-peer-exchange', 'h2', 'http/1.1'];

/** Where a service's chains have `host:port/*`. */
const UNKNOWN_OPERATION = ':0/*';

export interface Way {
  protocol: 'HTTP' | 'TCP';
  transport_protocol: 'tls' | 'raw_buffer';
  application_protocols?: string[];
  /** The mesh's TLS is terminated; otherwise bytes are taken as they come. */
  terminate?: boolean;
}

/** The ways into a port, by its protocol and by the mutual TLS that it takes; the first that matches a connection counts. */
const WAYS: Record<'HTTP' | 'TCP' | 'auto', Record<MtlsMode, readonly Way[]>> = {
  HTTP: {
    STRICT: [{ protocol: 'HTTP', transport_protocol: 'tls', terminate: true }],
    PERMISSIVE: [{ protocol: 'HTTP', transport_protocol: 'tls', application_protocols: ISTIO_ANY, terminate: true }, { protocol: 'HTTP', transport_protocol: 'raw_buffer' }],
    DISABLE: [{ protocol: 'HTTP', transport_protocol: 'raw_buffer' }],
  },
  TCP: {
    STRICT: [{ protocol: 'TCP', transport_protocol: 'tls', terminate: true }],
    PERMISSIVE: [
      { protocol: 'TCP', transport_protocol: 'tls', application_protocols: ISTIO_ANY, terminate: true },
      { protocol: 'TCP', transport_protocol: 'tls' },
      { protocol: 'TCP', transport_protocol: 'raw_buffer' },
    ],
    DISABLE: [{ protocol: 'TCP', transport_protocol: 'raw_buffer' }],
  },
  auto: {
    STRICT: [
      { protocol: 'HTTP', transport_protocol: 'tls', application_protocols: ISTIO_HTTP, terminate: true },
      { protocol: 'TCP', transport_protocol: 'tls', terminate: true },
    ],
    PERMISSIVE: [
      { protocol: 'HTTP', transport_protocol: 'tls', application_protocols: ISTIO_HTTP, terminate: true },
      { protocol: 'HTTP', transport_protocol: 'raw_buffer', application_protocols: PLAINTEXT_HTTP },
      { protocol: 'TCP', transport_protocol: 'tls', application_protocols: ISTIO_TCP, terminate: true },
      { protocol: 'TCP', transport_protocol: 'raw_buffer' },
      { protocol: 'TCP', transport_protocol: 'tls' },
    ],
    DISABLE: [
      { protocol: 'HTTP', transport_protocol: 'raw_buffer', application_protocols: PLAINTEXT_HTTP },
      { protocol: 'TCP', transport_protocol: 'raw_buffer' },
    ],
  },
};

/** A port of a listener, with what its chains are made from. Port 0: every port that no other entry names. */
export interface ChainSet {
  port: number;
  ways: readonly Way[];
  httpName: string;
  tcpName: string;
  http: Filter;
  tcp: readonly Filter[];
  /** In place of the mesh's own TLS. */
  socket?: TransportSocket;
}

/** The same for workloads whose inbound listener is the same, such as the replicas of one. */
export function inboundKey(model: Model, proxy: Proxy): string {
  const target = policyTarget(model, proxy);
  const { mode, ports } = effectivePeerAuthentication(model, target.namespace, target.labels);
  const families = { ips: proxyIps(model, proxy) };
  const known = inboundPorts(model, proxy).map(({ service, port, targetPort, tls }) => [service.host, port.port, port.protocol, targetPort, tls ?? null]);
  return JSON.stringify([hasIpv4(families), hasIpv6(families), mode, [...ports], policyKeys(model, target), known]);
}

/** The workload's ports as others reach them: under its mutual TLS, or out of a tunnel, in which nothing is left to decrypt. */
export function inboundChainSets(model: Model, proxy: Proxy, hbone: boolean): ChainSet[] {
  const { mesh } = model;
  const { namespace, labels } = policyTarget(model, proxy);
  const authentication = effectivePeerAuthentication(model, namespace, labels);
  const modeOf = (port: number): MtlsMode => (hbone ? 'DISABLE' : (authentication.ports.get(port) ?? authentication.mode));
  const policies = securityFilters(model, proxy, hbone);
  const httpPolicies = [...policies.custom, ...policies.authentication, ...policies.authorization];
  const headers = hbone ? [peerHeader] : [];

  const ports = inboundPorts(model, proxy);
  const passthrough = 'InboundPassthroughCluster';
  const unknown = (port: number): ChainSet => ({
    port,
    ways: WAYS.auto[modeOf(port)],
    httpName: 'virtualInbound-catchall-http',
    tcpName: 'virtualInbound',
    http: inboundHttp(mesh, passthrough, inboundRoutes(passthrough, 0, UNKNOWN_OPERATION, headers), false, httpPolicies),
    tcp: [...policies.network, tcpProxy(passthrough)],
  });
  const known = ({ service, port, targetPort, tls: own }: InboundPort): ChainSet => {
    const name = `0.0.0.0_${targetPort}`;
    const cluster = inboundClusterName(targetPort);
    const kind = port.protocol === 'auto' ? 'auto' : isHttp(port.protocol) ? 'HTTP' : 'TCP';
    // Both can't be had on one port: the mesh's TLS comes first, as in Istio.
    const terminated = own !== undefined && own.mode !== 'PASSTHROUGH' && kind !== 'auto' && !hbone && modeOf(targetPort) === 'DISABLE';
    return {
      port: targetPort,
      ways: terminated ? [{ protocol: kind, transport_protocol: 'tls', terminate: true }] : WAYS[kind][modeOf(targetPort)],
      ...(terminated ? { socket: gatewayTls(own, kind === 'HTTP', mesh) } : {}),
      httpName: name,
      tcpName: name,
      http: inboundHttp(mesh, `inbound_${name}`, inboundRoutes(cluster, targetPort, `${service.host}:${port.port}/*`, headers), isHttp2(port.protocol), httpPolicies),
      tcp: [...policies.network, tcpProxy(cluster)],
    };
  };
  // A port with a mode of its own needs chains of its own, known to a service or not.
  const ofTheirOwn = hbone ? [] : [...authentication.ports.keys()].filter((port) => !ports.some(({ targetPort }) => targetPort === port));
  return [unknown(0), ...ofTheirOwn.map(unknown), ...ports.map(known)];
}

export function virtualInbound(model: Model, proxy: Proxy): Resource {
  const { mesh } = model;
  const domains = trustDomains(mesh);
  const tls = { HTTP: istioDownstreamTls(HTTP_ALPN, domains, mesh.meshMtlsMinProtocolVersion), TCP: istioDownstreamTls(TCP_ALPN, domains, mesh.meshMtlsMinProtocolVersion) };
  const sets = inboundChainSets(model, proxy, false);
  const chains = sets.flatMap(({ port, ways, httpName, tcpName, http, tcp, socket }) =>
    ways.map(({ protocol, terminate, ...match }) =>
      FilterChain.fromPartial({
        name: protocol === 'HTTP' ? httpName : tcpName,
        filter_chain_match: { ...(port > 0 ? { destination_port: port } : {}), ...match },
        filters: protocol === 'HTTP' ? [http] : [...tcp],
        ...(terminate ? { transport_socket: socket ?? tls[protocol] } : {}),
      }),
    ),
  );

  const families = { ips: proxyIps(model, proxy) };
  const addresses = [...(hasIpv4(families) ? ['0.0.0.0'] : []), ...(hasIpv6(families) ? ['::'] : [])];
  const listener = Listener.fromPartial({
    name: 'virtualInbound',
    address: socketAddress(addresses[0]!, INBOUND_PORT),
    ...(addresses.length > 1 ? { additional_addresses: [{ address: socketAddress(addresses[1]!, INBOUND_PORT) }] } : {}),
    traffic_direction: TrafficDirection.INBOUND,
    continue_on_listener_filters_timeout: true,
    listener_filters_timeout: seconds(0),
    max_connections_to_accept_per_socket_event: 1,
    listener_filters: [
      ListenerFilter.fromPartial({ name: 'envoy.filters.listener.original_dst', config_type: { $case: 'typed_config', value: pack(OriginalDst, OriginalDst.fromPartial({})) } }),
      ...inspector(tlsInspector, sets, ({ transport_protocol }) => transport_protocol === 'tls', [INBOUND_PORT]),
      // A port whose protocol is known is not sniffed: a server that speaks first would wait for its client for ever.
      ...inspector(httpInspector, sets, ({ application_protocols }) => application_protocols === PLAINTEXT_HTTP, [INBOUND_PORT]),
    ],
    filter_chains: [FilterChain.fromPartial({ name: 'virtualInbound-blackhole', filter_chain_match: { destination_port: INBOUND_PORT }, filters: [tcpProxy('BlackHoleCluster')] }), ...chains],
  });
  return makeResource('virtualInbound', Listener, listener);
}

const tlsInspector = ListenerFilter.fromPartial({
  name: 'envoy.filters.listener.tls_inspector',
  config_type: { $case: 'typed_config', value: pack(TlsInspector, TlsInspector.fromPartial({ initial_read_buffer_size: 512 })) },
});

/**
 * A listener filter on those ports alone where some way asks for what it finds out; none if no port does.
 * @param own ports of the listener itself
 */
export function inspector(filter: ListenerFilter, sets: readonly ChainSet[], asks: (way: Way) => boolean, own: readonly number[]): ListenerFilter[] {
  const [asking, silent] = [sets.filter(({ ways }) => ways.some(asks)), sets.filter(({ ways }) => !ways.some(asks))].map((part) => part.map(({ port }) => port));
  if (asking!.length === 0) return [];
  const byNumber = (ports: readonly number[]): number[] => [...ports].sort((a, b) => a - b);
  const unasked = byNumber([...silent!, ...own]);
  if (asking!.includes(0)) return [unasked.length > 0 ? { ...filter, filter_disabled: onPorts(unasked) } : filter];
  return [{ ...filter, filter_disabled: ListenerFilterChainMatchPredicate.fromPartial({ rule: { $case: 'not_match', value: onPorts(byNumber(asking!)) } }) }];
}

function onPorts(ports: readonly number[]): ListenerFilterChainMatchPredicate {
  const rules = ports.map((port) => ListenerFilterChainMatchPredicate.fromPartial({ rule: { $case: 'destination_port_range', value: { start: port, end: port + 1 } } }));
  return rules.length === 1 ? rules[0]! : ListenerFilterChainMatchPredicate.fromPartial({ rule: { $case: 'or_match', value: { rules } } });
}

/** Tells the application who called, as the end of mutual TLS would; what the caller itself wrote there is dropped. */
const peerHeader = HeaderValueOption.fromPartial({ header: { key: 'x-forwarded-client-cert', value: `URI=%FILTER_STATE(${PEER_PRINCIPAL}:PLAIN)%` }, append_action: HeaderValueOption_HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD });

function inboundRoutes(cluster: string, port: number, operation: string, request_headers_to_add: HeaderValueOption[]): RouteConfiguration {
  return RouteConfiguration.fromPartial({
    name: cluster,
    validate_clusters: false,
    request_headers_to_add,
    virtual_hosts: [
      {
        name: `inbound|http|${port}`,
        domains: ['*'],
        routes: [
          {
            name: 'default',
            match: { path_specifier: { $case: 'prefix', value: '/' } },
            decorator: { operation },
            action: {
              $case: 'route',
              value: {
                cluster_specifier: { $case: 'cluster', value: cluster },
                timeout: seconds(0),
                max_stream_duration: { max_stream_duration: seconds(0), grpc_timeout_header_max: seconds(0) },
                // The application may have closed a kept connection just then; the request has not reached it.
                retry_policy: { retry_on: 'reset-before-request', num_retries: 2 },
              },
            },
          },
        ],
      },
    ],
  });
}
