/**
 * LDS, inbound side: `virtualInbound` on 15006, where the sidecar's iptables rules send what arrives for the pod. Each
 * port that a service names has its chains; others pass through. PERMISSIVE: mutual TLS of the mesh is terminated,
 * everything else is taken as it comes.
 */
import { pack } from '../../common/xds/any.js';
import { TrafficDirection } from '../../proto/generated/envoy/config/core/v3/base.js';
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
import { isHttp, isHttp2 } from '../model/protocol.js';
import type { Proxy } from '../model/proxy.js';
import { istioDownstreamTls, seconds, socketAddress } from './envoy.js';
import { inboundHttp, tcpProxy } from './http-filters.js';
import { hasIpv4, hasIpv6, inboundPorts, proxyIps, type InboundPort } from './inbound-ports.js';
import { httpInspector, PLAINTEXT_HTTP } from './listeners.js';
import { inboundClusterName } from './names.js';
import { makeResource, type Resource } from './resource.js';

const INBOUND_PORT = 15_006;

/** ALPN of Istio's clients: by it mesh TLS is told from the application's own. */
const ISTIO_HTTP = ['istio-http/1.0', 'istio-http/1.1', 'istio-h2'];
const ISTIO_TCP = ['istio-peer-exchange', 'istio'];
const ISTIO_ANY = ['istio', 'istio-peer-exchange', ...ISTIO_HTTP];
const HTTP_ALPN = ['h2', 'http/1.1'];
const TCP_ALPN = ['istio-peer-exchange', 'h2', 'http/1.1'];

type Match = { destination_port?: number; transport_protocol?: string; application_protocols?: string[] };

export function virtualInbound(model: Model, proxy: Proxy): Resource {
  const { trustDomain } = model.mesh;
  const httpTls = istioDownstreamTls(HTTP_ALPN, trustDomain);
  const tcpTls = istioDownstreamTls(TCP_ALPN, trustDomain);
  const chain = (name: string, match: Match, filter: Filter, tls?: typeof httpTls): FilterChain =>
    FilterChain.fromPartial({ name, filter_chain_match: match, filters: [filter], ...(tls ? { transport_socket: tls } : {}) });

  /** Sniffed: five ways in. Port undefined: every port that no service names. */
  const sniffed = (name: { http: string; tcp: string }, port: { destination_port?: number }, http: Filter, tcp: Filter): FilterChain[] => [
    chain(name.http, { ...port, transport_protocol: 'tls', application_protocols: ISTIO_HTTP }, http, httpTls),
    chain(name.http, { ...port, transport_protocol: 'raw_buffer', application_protocols: PLAINTEXT_HTTP }, http),
    chain(name.tcp, { ...port, transport_protocol: 'tls', application_protocols: ISTIO_TCP }, tcp, tcpTls),
    chain(name.tcp, { ...port, transport_protocol: 'raw_buffer' }, tcp),
    chain(name.tcp, { ...port, transport_protocol: 'tls' }, tcp),
  ];

  const portChains = ({ service, port, targetPort }: InboundPort): FilterChain[] => {
    const name = `0.0.0.0_${targetPort}`;
    const cluster = inboundClusterName(targetPort);
    const match = { destination_port: targetPort };
    const http = inboundHttp(`inbound_${name}`, inboundRoutes(cluster, targetPort, `${service.host}:${port.port}/*`), isHttp2(port.protocol));
    const tcp = tcpProxy(cluster);
    if (port.protocol === 'auto') return sniffed({ http: name, tcp: name }, match, http, tcp);
    if (isHttp(port.protocol)) {
      return [chain(name, { ...match, transport_protocol: 'tls', application_protocols: ISTIO_ANY }, http, httpTls), chain(name, { ...match, transport_protocol: 'raw_buffer' }, http)];
    }
    return [
      chain(name, { ...match, transport_protocol: 'tls', application_protocols: ISTIO_ANY }, tcp, tcpTls),
      chain(name, { ...match, transport_protocol: 'tls' }, tcp),
      chain(name, { ...match, transport_protocol: 'raw_buffer' }, tcp),
    ];
  };

  const ports = inboundPorts(model, proxy);
  const passthrough = 'InboundPassthroughCluster';
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
      ListenerFilter.fromPartial({
        name: 'envoy.filters.listener.tls_inspector',
        config_type: { $case: 'typed_config', value: pack(TlsInspector, TlsInspector.fromPartial({ initial_read_buffer_size: 512 })) },
        filter_disabled: onPorts([INBOUND_PORT]),
      }),
      // A port whose protocol is known is not sniffed: a server that speaks first would wait for its client for ever.
      { ...httpInspector, filter_disabled: onPorts([...ports.filter(({ port }) => port.protocol !== 'auto').map(({ targetPort }) => targetPort), INBOUND_PORT]) },
    ],
    filter_chains: [
      chain('virtualInbound-blackhole', { destination_port: INBOUND_PORT }, tcpProxy('BlackHoleCluster')),
      ...sniffed({ http: 'virtualInbound-catchall-http', tcp: 'virtualInbound' }, {}, inboundHttp(passthrough, inboundRoutes(passthrough, 0, ':0/*')), tcpProxy(passthrough)),
      ...ports.flatMap(portChains),
    ],
  });
  return makeResource('virtualInbound', Listener, listener);
}

function onPorts(ports: readonly number[]): ListenerFilterChainMatchPredicate {
  const rules = ports.map((port) => ListenerFilterChainMatchPredicate.fromPartial({ rule: { $case: 'destination_port_range', value: { start: port, end: port + 1 } } }));
  return rules.length === 1 ? rules[0]! : ListenerFilterChainMatchPredicate.fromPartial({ rule: { $case: 'or_match', value: { rules } } });
}

function inboundRoutes(cluster: string, port: number, operation: string): RouteConfiguration {
  return RouteConfiguration.fromPartial({
    name: cluster,
    validate_clusters: false,
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
