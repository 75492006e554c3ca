/**
 * Hand-made resources in Istio's shapes, for tests that need more, or worse, than the recordings hold. Messages inside an
 * Any are found by name, hence the imports without a name.
 */
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import '../../proto/generated/envoy/extensions/filters/http/grpc_stats/v3/config.js';
import '../../proto/generated/envoy/extensions/filters/http/router/v3/router.js';
import '../../proto/generated/envoy/extensions/filters/listener/http_inspector/v3/http_inspector.js';
import '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { pack } from '../../common/xds/any.js';
import type { AnyResourceType } from '../xds/resource-type.js';
import { sidecarTypes, type SidecarState } from '../xds/sidecar-stream.js';

/** What a class was sent, by `kind name`, e.g. `cds outbound|80||web`; what kind each is says its type. */
export function sidecarState(resources: Readonly<Record<string, Any>>): SidecarState {
  const result = { clusters: new Map(), endpoints: new Map(), listeners: new Map(), routes: new Map() };
  // As the streams of the agent do: what is sent with equal bytes is one object.
  const types = Object.entries(sidecarTypes) as [keyof SidecarState, AnyResourceType][];
  for (const [key, any] of Object.entries(resources)) {
    const name = key.slice(key.indexOf(' ') + 1);
    for (const [kind, type] of types) if (type.typeUrl === any.type_url) result[kind].set(name, type.decode(name, '', any));
  }
  return result;
}

export function edsCluster(name: string): Any {
  return pack(Cluster, Cluster.fromJSON({ name, type: 'EDS', eds_cluster_config: { eds_config: { ads: {}, resource_api_version: 'V3' }, service_name: name }, connect_timeout: { seconds: '1' } }));
}

export function passthroughCluster(): Any {
  return pack(Cluster, Cluster.fromJSON({ name: 'PassthroughCluster', type: 'ORIGINAL_DST', lb_policy: 'CLUSTER_PROVIDED', connect_timeout: { seconds: '1' } }));
}

export function blackHoleCluster(): Any {
  return pack(Cluster, Cluster.fromJSON({ name: 'BlackHoleCluster', type: 'STATIC', connect_timeout: { seconds: '1' } }));
}

export function assignment(name: string, endpoints: readonly string[]): Any {
  const lb_endpoints = endpoints.map((endpoint) => {
    const colon = endpoint.lastIndexOf(':');
    const [address, port] = [endpoint.slice(0, colon), endpoint.slice(colon + 1)];
    return { endpoint: { address: { socket_address: { address, port_value: Number(port) } } }, health_status: 'HEALTHY' };
  });
  return pack(ClusterLoadAssignment, ClusterLoadAssignment.fromJSON({ cluster_name: name, endpoints: [{ lb_endpoints }] }));
}

const router = { name: 'envoy.filters.http.router', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.router.v3.Router' } };

/** As in each of Istio's chains. */
const grpcStats = { name: 'envoy.filters.http.grpc_stats', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig', emit_filter_state: true, stats_for_all_methods: false } };

/** Istio's listener of an HTTP port: RDS by port, passthrough for what is not HTTP. */
export function httpListener(port: number): Any {
  return pack(Listener, Listener.fromJSON({
    name: `0.0.0.0_${port}`,
    address: { socket_address: { address: '0.0.0.0', port_value: port } },
    bind_to_port: false,
    traffic_direction: 'OUTBOUND',
    listener_filters: [{ name: 'envoy.filters.listener.http_inspector', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector' } }],
    filter_chains: [{
      filter_chain_match: { transport_protocol: 'raw_buffer', application_protocols: ['http/1.1', 'h2c'] },
      filters: [{
        name: 'envoy.filters.network.http_connection_manager',
        typed_config: {
          '@type': 'type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager',
          stat_prefix: `outbound_0.0.0.0_${port};`,
          rds: { route_config_name: `${port}`, config_source: { ads: {}, resource_api_version: 'V3', initial_fetch_timeout: '0s' } },
          http_filters: [grpcStats, router],
        },
      }],
    }],
    default_filter_chain: { filters: [tcpProxy('PassthroughCluster')] },
  }));
}

/** Istio's listener of a port of unknown protocol: HTTP when it looks like it, else TCP to the same service. */
export function sniffedListener(address: string, port: number, cluster: string): Any {
  const listener = Listener.decode(httpListener(port).value);
  const tcp = Listener.decode(tcpListener(address, port, cluster).value);
  return pack(Listener, { ...listener, name: tcp.name, address: tcp.address, default_filter_chain: tcp.filter_chains[0] });
}

export function tcpListener(address: string, port: number, cluster: string): Any {
  return pack(Listener, Listener.fromJSON({
    name: `${address}_${port}`,
    address: { socket_address: { address, port_value: port } },
    bind_to_port: false,
    traffic_direction: 'OUTBOUND',
    filter_chains: [{ filters: [tcpProxy(cluster)] }],
  }));
}

export function tcpProxy(cluster: string): object {
  return {
    name: 'envoy.filters.network.tcp_proxy',
    typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy', stat_prefix: cluster, cluster },
  };
}

export function routes(port: number, hosts: Readonly<Record<string, string>>): Any {
  return pack(RouteConfiguration, RouteConfiguration.fromPartial({
    name: `${port}`,
    virtual_hosts: Object.entries(hosts).map(([host, cluster]) => ({
      name: `${host}:${port}`,
      domains: [host, `${host}:${port}`],
      routes: [{
        match: { path_specifier: { $case: 'prefix' as const, value: '/' } },
        action: { $case: 'route' as const, value: { cluster_specifier: { $case: 'cluster' as const, value: cluster } } },
      }],
    })),
  }));
}
