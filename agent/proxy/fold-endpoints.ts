/** Endpoints as the shared Envoy reaches them. */
import { SocketAddress_Protocol, type Address, type SocketAddress } from '../../proto/generated/envoy/config/core/v3/address.js';
import type { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import type { LbEndpoint } from '../../proto/generated/envoy/config/endpoint/v3/endpoint_components.js';

/** Metadata that a cluster's transport socket is chosen by. */
export const SOCKET_MATCH = 'envoy.transport_socket_match';
/** Filter, and metadata of endpoints, that give a connection within Envoy the destination that it was meant for. */
export const ORIGINAL_DST = 'envoy.filters.listener.original_dst';

/** What an endpoint that HBONE reaches has; without such a socket in its cluster it is spoken to in plaintext. */
const TUNNELLED = { tunnel: 'http' };

/** A mesh has very many endpoints: those that stay as they are are the source's own objects. */
export function foldAssignment(source: ClusterLoadAssignment): ClusterLoadAssignment {
  return { ...source, endpoints: source.endpoints.map((locality) => ({ ...locality, lb_endpoints: locality.lb_endpoints.map(foldEndpoint).filter((endpoint) => endpoint !== undefined) })) };
}

/**
 * `connect_originate` with endpoint_id "ip:port" is a pod that HBONE reaches, a plain address one that it does not. A Unix
 * socket is of the pod's file system, and what has its path on the node (Envoy's own sockets, the container runtime's) is
 * nobody's to name.
 */
function foldEndpoint(endpoint: LbEndpoint): LbEndpoint | undefined {
  if (endpoint.host_identifier?.$case !== 'endpoint') return endpoint;
  const inner = endpoint.host_identifier.value;
  const address = inner.address?.address;
  const metadata = endpoint.metadata?.filter_metadata;
  if (address?.$case === 'pipe') return undefined;
  if (address?.$case !== 'envoy_internal_address') {
    const match = metadata?.[SOCKET_MATCH];
    if (match === undefined || match['tlsMode'] === 'istio') return endpoint;
    const { [SOCKET_MATCH]: _, ...kept } = metadata!;
    return withMetadata(endpoint, kept);
  }
  const target = parseEndpointId(address.value.endpoint_id);
  if (!target) return undefined;
  const folded: LbEndpoint = { ...endpoint, host_identifier: { $case: 'endpoint', value: { ...inner, address: socketAddress(target.address, target.port) } } };
  if (!metadata) return folded;
  // What the internal listener of the control plane would dial.
  const { [ORIGINAL_DST]: _, ...kept } = metadata;
  return withMetadata(folded, { ...kept, [SOCKET_MATCH]: TUNNELLED });
}

type FilterMetadata = NonNullable<LbEndpoint['metadata']>['filter_metadata'];

function withMetadata(endpoint: LbEndpoint, filter_metadata: FilterMetadata): LbEndpoint {
  return { ...endpoint, metadata: { ...endpoint.metadata!, filter_metadata } };
}

export function isTunnelled({ metadata }: LbEndpoint): boolean {
  return metadata?.filter_metadata?.[SOCKET_MATCH]?.['tunnel'] === TUNNELLED.tunnel;
}

/** An endpoint that Istio's mutual TLS is for. */
export function hasTlsMode({ metadata }: LbEndpoint): boolean {
  return metadata?.filter_metadata?.[SOCKET_MATCH]?.['tlsMode'] !== undefined;
}

export interface SocketEndpoint {
  item: LbEndpoint;
  address: string;
  port: number;
}

const socketEndpointsOf = new WeakMap<ClusterLoadAssignment, SocketEndpoint[]>();

/** Those that have an address and a port; kept for as long as the assignment is. */
export function socketEndpoints(assignment: ClusterLoadAssignment | undefined): readonly SocketEndpoint[] {
  if (!assignment) return [];
  let found = socketEndpointsOf.get(assignment);
  if (!found) {
    found = assignment.endpoints.flatMap(({ lb_endpoints }) => lb_endpoints.flatMap((item) => {
      const target = targetOf(item);
      return target ? { item, ...target } : [];
    }));
    socketEndpointsOf.set(assignment, found);
  }
  return found;
}

/** A copy in which `change` has had its say on each endpoint that has an address and a port. */
export function mapEndpoints(from: ClusterLoadAssignment, change: (item: LbEndpoint, target: { address: string; port: number }) => LbEndpoint): ClusterLoadAssignment {
  return {
    ...from,
    endpoints: from.endpoints.map((locality) => ({
      ...locality,
      lb_endpoints: locality.lb_endpoints.map((item) => {
        const target = targetOf(item);
        return target ? change(item, target) : item;
      }),
    })),
  };
}

function targetOf({ host_identifier }: LbEndpoint): { address: string; port: number } | undefined {
  const address = host_identifier?.$case === 'endpoint' ? host_identifier.value.address?.address : undefined;
  return address?.$case === 'socket_address' ? hostPort(address.value) : undefined;
}

function hostPort({ address, port_specifier }: SocketAddress): { address: string; port: number } | undefined {
  return port_specifier?.$case === 'port_value' ? { address, port: port_specifier.value } : undefined;
}

/** `10.0.0.1:80` or `[fd00::1]:80`; an endpoint behind another cluster's gateway has a name instead and is not ours to dial. */
export function parseEndpointId(id: string): { address: string; port: number } | undefined {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|(\d+\.\d+\.\d+\.\d+)):(\d+)$/.exec(id);
  if (!match) return undefined;
  return { address: (match[1] ?? match[2]) as string, port: Number(match[3]) };
}

/** Of a listener within this Envoy. @param endpoint_id tells several endpoints apart that lead there */
export function internalAddress(listener: string, endpoint_id = ''): Address {
  return { address: { $case: 'envoy_internal_address', value: { address_name_specifier: { $case: 'server_listener_name', value: listener }, endpoint_id } } };
}

export function socketAddress(address: string, port: number, netnsPath = ''): Address {
  return {
    address: {
      $case: 'socket_address',
      value: {
        protocol: SocketAddress_Protocol.TCP, address, port_specifier: { $case: 'port_value', value: port },
        resolver_name: '', ipv4_compat: false, network_namespace_filepath: netnsPath,
      },
    },
  };
}
