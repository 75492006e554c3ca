/** Endpoints behind listeners within this Envoy, which are told by the endpoint's metadata where a connection was to go. */
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { TransportSocket } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import type { LbEndpoint } from '../../proto/generated/envoy/config/endpoint/v3/endpoint_components.js';
import { InternalUpstreamTransport } from '../../proto/generated/envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.js';
import { pack } from '../../common/xds/any.js';
import { internalAddress, mapEndpoints, ORIGINAL_DST, SOCKET_MATCH } from './fold-endpoints.js';
import { RAW_BUFFER } from './fold-identity.js';

/**
 * The cluster and assignment with some of their endpoints behind internal listeners.
 * @param kind of endpoint: what its transport socket is chosen by
 * @param listenerOf the listener for an endpoint's address; undefined: it stays as it is
 * @param told what the listener is told of the address beside it
 */
export function throughInternal(cluster: Cluster, assignment: ClusterLoadAssignment | undefined, kind: string, listenerOf: (address: string, item: LbEndpoint) => string | undefined, told: (address: string) => Readonly<Record<string, string>> = () => ({})): { cluster: Cluster; assignment: ClusterLoadAssignment | undefined } {
  let found = false;
  const change = (from: ClusterLoadAssignment): ClusterLoadAssignment => mapEndpoints(from, (item, { address, port }) => {
    const listener = listenerOf(address, item);
    if (listener === undefined || item.host_identifier?.$case !== 'endpoint') return item;
    found = true;
    const id = `${address.includes(':') ? `[${address}]` : address}:${port}`;
    return {
      ...item,
      host_identifier: { $case: 'endpoint' as const, value: { ...item.host_identifier.value, additional_addresses: [], address: internalAddress(listener, id) } },
      metadata: { typed_filter_metadata: {}, ...item.metadata, filter_metadata: { ...item.metadata?.filter_metadata, [SOCKET_MATCH]: { underpass: kind }, [ORIGINAL_DST]: { local: id, ...told(address) } } },
    };
  });
  const changed = assignment && change(assignment);
  const inline = cluster.load_assignment && change(cluster.load_assignment);
  if (!found) return { cluster, assignment };
  const match = { name: kind, match: { underpass: kind }, transport_socket: internalSocket(cluster.transport_socket ?? RAW_BUFFER) };
  return { cluster: { ...cluster, load_assignment: inline, transport_socket_matches: [match, ...cluster.transport_socket_matches] }, assignment: changed };
}

/** Hands on where the connection was to go. @param within what is spoken through the connection */
export function internalSocket(within: TransportSocket): TransportSocket {
  const transport = InternalUpstreamTransport.fromPartial({ passthrough_metadata: [{ kind: { kind: { $case: 'host', value: {} } }, name: ORIGINAL_DST }] });
  transport.transport_socket = within;
  return { name: 'envoy.transport_sockets.internal_upstream', config_type: { $case: 'typed_config', value: pack(InternalUpstreamTransport, transport) } };
}
