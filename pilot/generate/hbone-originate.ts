/**
 * How sidecars and gateways reach endpoints that take HBONE and no mutual TLS of Istio's (pods in ambient mode), as istiod
 * has it: such an endpoint is an address of the internal listener `connect_originate`, which tunnels to port 15008 of the
 * address that the endpoint's metadata says.
 */
import { HBONE_PORT } from '../../common/istio-iptables.js';
import { pack } from '../../common/xds/any.js';
import { Cluster, Cluster_DiscoveryType, Cluster_LbPolicy, type Cluster_TransportSocketMatch } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { Address } from '../../proto/generated/envoy/config/core/v3/address.js';
import type { TransportSocket } from '../../proto/generated/envoy/config/core/v3/base.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { InternalUpstreamTransport } from '../../proto/generated/envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.js';
import { SubjectAltNameMatcher, SubjectAltNameMatcher_SanType } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/common.js';
import { Memo } from '../../common/memo.js';
import type { MeshConfig } from '../model/mesh.js';
import { durationOf } from './cluster-policy.js';
import { bracketed, circuit_breakers, http2ConnectUpstream, internalAddress, istioUpstreamTls, seconds } from './envoy.js';
import { ORIGINAL_DST, originalDstFilter } from './hbone.js';
import { makeResource, type Resource } from './resource.js';
import { trustDomains } from './security/trust-domains.js';

export const CONNECT_ORIGINATE = 'connect_originate';
const IDLE_SECONDS = 3_600;

/** In the place of the endpoint's own address; with the metadata that the other two read. */
export function tunnelledAddress(address: string, port: number): { address: Address; metadata: Record<string, Record<string, string>> } {
  const endpoint_id = `${bracketed(address)}:${port}`;
  return {
    address: internalAddress(CONNECT_ORIGINATE, endpoint_id),
    metadata: { [ORIGINAL_DST]: { local: endpoint_id }, 'envoy.transport_socket_match': { tunnel: 'http' } },
  };
}

/** @param inside what is spoken within the tunnel */
export function tunnelledMatch(inside: TransportSocket): Cluster_TransportSocketMatch {
  const transport = InternalUpstreamTransport.fromPartial({
    passthrough_metadata: [
      { kind: { kind: { $case: 'host', value: {} } }, name: ORIGINAL_DST },
      { kind: { kind: { $case: 'cluster', value: {} } }, name: 'istio' },
      { kind: { kind: { $case: 'host', value: {} } }, name: 'istio' },
    ],
    transport_socket: inside,
  });
  return { name: 'hbone', match: { tunnel: 'http' }, transport_socket: { name: 'envoy.transport_sockets.internal_upstream', config_type: { $case: 'typed_config', value: pack(InternalUpstreamTransport, transport) } } };
}

export const originateListener: Resource = makeResource(
  CONNECT_ORIGINATE,
  Listener,
  Listener.fromPartial({
    name: CONNECT_ORIGINATE,
    listener_specifier: { $case: 'internal_listener', value: {} },
    use_original_dst: false,
    listener_filters: [originalDstFilter],
    filter_chains: [
      {
        filters: [
          {
            name: 'envoy.filters.network.tcp_proxy',
            config_type: {
              $case: 'typed_config',
              value: pack(TcpProxy, TcpProxy.fromPartial({ stat_prefix: CONNECT_ORIGINATE, cluster_specifier: { $case: 'cluster', value: CONNECT_ORIGINATE }, tunneling_config: { hostname: '%DOWNSTREAM_LOCAL_ADDRESS%' } })),
            },
          },
        ],
      },
    ],
  }),
);

const clusters = new Memo<MeshConfig, Resource>();

/** The peer is anybody of the mesh: which identities a service has is not known here. */
export function originateCluster(mesh: MeshConfig): Resource {
  return clusters.once(mesh, () => {
    const names = trustDomains(mesh).map((domain) => SubjectAltNameMatcher.fromPartial({ san_type: SubjectAltNameMatcher_SanType.URI, matcher: { match_pattern: { $case: 'prefix', value: `spiffe://${domain}/` } } }));
    return makeResource(
      CONNECT_ORIGINATE,
      Cluster,
      Cluster.fromPartial({
        name: CONNECT_ORIGINATE,
        alt_stat_name: `${CONNECT_ORIGINATE};`,
        cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.ORIGINAL_DST },
        lb_policy: Cluster_LbPolicy.CLUSTER_PROVIDED,
        lb_config: { $case: 'original_dst_lb_config', value: { upstream_port_override: HBONE_PORT } },
        connect_timeout: durationOf(mesh.connectTimeout),
        cleanup_interval: seconds(60),
        circuit_breakers,
        typed_extension_protocol_options: http2ConnectUpstream(IDLE_SECONDS),
        transport_socket: { ...istioUpstreamTls('', ['h2'], { match_typed_subject_alt_names: names }, 'TLSV1_3'), name: 'tls' },
      }),
    );
  });
}
