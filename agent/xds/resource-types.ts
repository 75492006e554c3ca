/** The types that the agent subscribes to. Validation covers what folding relies on; the rest is Envoy's to judge. */
import { Cluster, Cluster_DiscoveryType } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { Config as SetFilterState } from '../../proto/generated/envoy/extensions/filters/network/set_filter_state/v3/set_filter_state.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { DownstreamTlsContext, UpstreamTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import { TypedStruct as UdpaTypedStruct } from '../../proto/generated/udpa/type/v1/typed_struct.js';
import { TypedStruct } from '../../proto/generated/xds/type/v3/typed_struct.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import type { TransportSocket } from '../../proto/generated/envoy/config/core/v3/base.js';
import { Authorization } from '../../proto/generated/istio/security/authorization.js';
import { Address, type GatewayAddress, type Port } from '../../proto/generated/istio/workload/workload.js';
import { typeUrl, unpack } from '../../common/xds/any.js';
import { checkAuthorization } from '../policy/authorization.js';
import { Facts, XdsResourceType, type MessageCodec } from './resource-type.js';
import { routeTableHash, RouteTable } from './route-codec.js';

type Report = (field: string, problem: string) => void;

function expectName(found: string, name: string, field: string, report: Report): void {
  if (found !== name) report(field, `is "${found}", but the resource is called "${name}"`);
}

/** What folding reads inside of an Any: it has to decode, or the resource is refused before anybody relies on it. */
const NESTED: ReadonlyMap<string, { decode(bytes: Uint8Array): unknown }> = new Map(
  [HttpConnectionManager, TcpProxy, SetFilterState, UpstreamTlsContext, DownstreamTlsContext, UdpaTypedStruct, TypedStruct].map((codec) => [typeUrl(codec), codec]),
);

function checkNested(any: Any | undefined, field: string, report: Report): unknown {
  const codec = any && NESTED.get(any.type_url);
  if (!codec) return undefined;
  try {
    return codec.decode(any.value);
  } catch (error) {
    report(field, `does not decode as ${any.type_url}: ${(error as Error).message}`);
    return undefined;
  }
}

function checkSocket(socket: TransportSocket | undefined, field: string, report: Report): void {
  checkNested(socket?.config_type?.value, `${field}.typed_config`, report);
}

function checkOverrides(overrides: Readonly<Record<string, Any>>, field: string, report: Report): void {
  for (const [name, any] of Object.entries(overrides)) checkNested(any, `${field}.typed_per_filter_config[${JSON.stringify(name)}]`, report);
}

function checkRoutes(routes: RouteConfiguration, prefix: string, report: Report): void {
  checkOverrides(routes.typed_per_filter_config, `${prefix}route_config`, report);
  routes.virtual_hosts.forEach((host, i) => checkHost(host, `${prefix}virtual_hosts[${i}]`, report));
}

function checkHost(host: VirtualHost, prefix: string, report: Report): void {
  checkOverrides(host.typed_per_filter_config, prefix, report);
  host.routes.forEach((route, j) => {
    const field = `${prefix}.routes[${j}]`;
    checkOverrides(route.typed_per_filter_config, field, report);
    const specifier = route.action?.$case === 'route' ? route.action.value.cluster_specifier : undefined;
    if (specifier?.$case !== 'weighted_clusters') return;
    specifier.value.clusters.forEach((weight, k) => checkOverrides(weight.typed_per_filter_config, `${field}.route.weighted_clusters.clusters[${k}]`, report));
  });
}

function checkChain(chain: FilterChain, field: string, report: Report): void {
  checkSocket(chain.transport_socket, `${field}.transport_socket`, report);
  chain.filters.forEach((filter, j) => {
    const path = `${field}.filters[${j}].typed_config`;
    if (filter.config_type?.$case === undefined) report(path, 'is missing');
    if (filter.config_type?.$case !== 'typed_config') return;
    const message = checkNested(filter.config_type.value, path, report);
    if (message === undefined || filter.config_type.value.type_url !== typeUrl(HttpConnectionManager)) return;
    const manager = message as HttpConnectionManager;
    manager.http_filters.forEach((inner, k) => {
      if (inner.config_type?.$case === 'typed_config') checkNested(inner.config_type.value, `${path}.http_filters[${k}].typed_config`, report);
    });
    if (manager.route_specifier?.$case === 'route_config') checkRoutes(manager.route_specifier.value, `${path}.route_config.`, report);
  });
}

export class ClusterType extends XdsResourceType<Cluster> {
  readonly shortName = 'CDS';
  readonly wildcard = true;
  protected readonly codec: MessageCodec<Cluster> = Cluster;
  protected override readonly shared = true;

  protected validate(cluster: Cluster, name: string, report: Report): void {
    expectName(cluster.name, name, 'name', report);
    if (edsServiceName(cluster) !== undefined && !cluster.eds_cluster_config?.eds_config) {
      report('eds_cluster_config.eds_config', 'is missing in a cluster of type EDS');
    }
    cluster.filters.forEach((filter, i) => checkNested(filter.typed_config, `filters[${i}].typed_config`, report));
    checkSocket(cluster.transport_socket, 'transport_socket', report);
    cluster.transport_socket_matches.forEach((match, i) => checkSocket(match.transport_socket, `transport_socket_matches[${i}].transport_socket`, report));
  }
}

export class EndpointType extends XdsResourceType<ClusterLoadAssignment> {
  readonly shortName = 'EDS';
  readonly wildcard = false;
  protected readonly codec: MessageCodec<ClusterLoadAssignment> = ClusterLoadAssignment;
  protected override readonly shared = true;

  protected validate(assignment: ClusterLoadAssignment, name: string, report: Report): void {
    expectName(assignment.cluster_name, name, 'cluster_name', report);
    assignment.endpoints.forEach((locality, i) => {
      locality.lb_endpoints.forEach((endpoint, j) => {
        const field = `endpoints[${i}].lb_endpoints[${j}]`;
        if (endpoint.host_identifier?.$case !== 'endpoint') return report(`${field}.endpoint`, 'is missing');
        if (!endpoint.host_identifier.value.address?.address) report(`${field}.endpoint.address`, 'is missing');
      });
    });
  }
}

export class ListenerType extends XdsResourceType<Listener> {
  readonly shortName = 'LDS';
  readonly wildcard = true;
  protected readonly codec: MessageCodec<Listener> = Listener;
  protected override readonly shared = true;

  protected validate(listener: Listener, name: string, report: Report): void {
    expectName(listener.name, name, 'name', report);
    const internal = listener.listener_specifier?.$case === 'internal_listener';
    if (!internal && listener.address?.address?.$case !== 'socket_address' && listener.address?.address?.$case !== 'pipe') {
      report('address', 'is missing in a listener that is not internal');
    }
    listener.filter_chains.forEach((chain, i) => checkChain(chain, `filter_chains[${i}]`, report));
    if (listener.default_filter_chain) checkChain(listener.default_filter_chain, 'default_filter_chain', report);
  }
}

/** In which no fault was found. */
const soundHosts = new WeakSet<VirtualHost>();

export class RouteType extends XdsResourceType<RouteConfiguration> {
  readonly shortName = 'RDS';
  readonly wildcard = false;
  protected readonly codec = RouteTable;
  protected override readonly shared = true;
  protected override readonly staysDecoded = true;

  protected override hashOf(message: RouteConfiguration): string {
    return routeTableHash(message);
  }

  protected validate(routes: RouteConfiguration, name: string, report: Report): void {
    expectName(routes.name, name, 'name', report);
    checkOverrides(routes.typed_per_filter_config, 'route_config', report);
    routes.virtual_hosts.forEach((host, i) => {
      if (soundHosts.has(host)) return;
      let isSound = true;
      const reportHost: Report = (field, problem) => {
        isSound = false;
        report(field, problem);
      };
      if (host.domains.length === 0) reportHost(`virtual_hosts[${i}].domains`, 'is empty');
      host.routes.forEach((route, j) => {
        const field = `virtual_hosts[${i}].routes[${j}]`;
        if (!route.match?.path_specifier) reportHost(`${field}.match`, 'has no path specifier');
        if (!route.action) reportHost(field, 'has no action');
      });
      checkHost(host, `virtual_hosts[${i}]`, reportHost);
      if (isSound) soundHosts.add(host);
    });
  }
}

/** A target of 0 is a port that each workload names for itself. */
function checkPorts(ports: readonly Port[], field: string, report: Report): void {
  ports.forEach(({ service_port, target_port }, i) => {
    if (service_port < 1 || service_port > 65_535) report(`${field}[${i}].service_port`, `is ${service_port}, expected 1 to 65535`);
    if (target_port > 65_535) report(`${field}[${i}].target_port`, `is ${target_port}, expected at most 65535`);
  });
}

/** Workloads and services, as ztunnel gets them. */
export class AddressType extends XdsResourceType<Address> {
  readonly shortName = 'WDS';
  readonly wildcard = true;
  protected readonly codec: MessageCodec<Address> = Address;
  protected override readonly packed = true;

  protected validate(address: Address, _name: string, report: Report): void {
    const type = address.type;
    if (!type) return report('type', 'is neither workload nor service');
    checkWaypoint(type.value.waypoint, `${type.$case}.waypoint`, report);
    if (type.$case === 'workload') {
      if (!type.value.uid) report('workload.uid', 'is empty');
      type.value.addresses.forEach((bytes, i) => {
        if (bytes.length !== 4 && bytes.length !== 16) report(`workload.addresses[${i}]`, `has ${bytes.length} bytes, expected 4 or 16`);
      });
      for (const [service, list] of Object.entries(type.value.services)) checkPorts(list.ports, `workload.services["${service}"].ports`, report);
    } else {
      if (!type.value.hostname) report('service.hostname', 'is empty');
      type.value.addresses.forEach(({ address: bytes }, i) => {
        if (bytes.length !== 4 && bytes.length !== 16) report(`service.addresses[${i}].address`, `has ${bytes.length} bytes, expected 4 or 16`);
      });
      checkPorts(type.value.ports, 'service.ports', report);
    }
  }
}

function checkWaypoint(waypoint: GatewayAddress | undefined, field: string, report: Report): void {
  if (!waypoint) return;
  const { destination, hbone_mtls_port: port } = waypoint;
  if (port < 1 || port > 65_535) report(`${field}.hbone_mtls_port`, `is ${port}, expected 1 to 65535`);
  if (destination?.$case === 'address' && ![4, 16].includes(destination.value.address.length)) report(`${field}.address.address`, `has ${destination.value.address.length} bytes, expected 4 or 16`);
}

export class AuthorizationType extends XdsResourceType<Authorization> {
  readonly shortName = 'AUTHZ';
  readonly wildcard = true;
  protected readonly codec: MessageCodec<Authorization> = Authorization;
  protected override readonly staysDecoded = true;

  protected validate(policy: Authorization, _name: string, report: Report): void {
    checkAuthorization(policy, report);
  }
}

/** The EDS resource that a cluster asks for, or undefined when its endpoints come another way. */
export function edsServiceName(cluster: Cluster): string | undefined {
  const discovery = cluster.cluster_discovery_type;
  if (discovery?.$case !== 'type' || discovery.value !== Cluster_DiscoveryType.EDS) return undefined;
  return cluster.eds_cluster_config?.service_name || cluster.name;
}

export const edsNames = new Facts(edsServiceName);

/** The RDS resources that a listener's connection managers ask for. */
export const routeNames = new Facts((listener: Listener): readonly string[] => {
  const found = new Set<string>();
  for (const chain of [...listener.filter_chains, ...(listener.default_filter_chain ? [listener.default_filter_chain] : [])]) {
    for (const filter of chain.filters) {
      if (filter.config_type?.$case !== 'typed_config') continue;
      const manager = unpack(HttpConnectionManager, filter.config_type.value);
      if (manager?.route_specifier?.$case === 'rds') found.add(manager.route_specifier.value.route_config_name);
    }
  }
  return [...found];
});
