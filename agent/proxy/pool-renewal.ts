/**
 * Connections that Envoy pooled towards a server in probation stay plain TCP for as long as they live, and a busy pool
 * never closes them. So a cluster says which of its endpoints are known to be event-driven: when that changes, Envoy takes
 * the cluster for a changed one, drains its pools once, and the new connections pair. It is a hash and not a count, so that
 * the next agent arrives at the same one and sends an adopted Envoy nothing. A pod's own clusters are renewed in the same way
 * when its policy changes.
 */
import { SocketAddress, isIPv6 } from 'node:net';
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { Metadata } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { hashBytes } from '../xds/resource-type.js';
import { parseEndpointId } from './fold-endpoints.js';

export const RENEWAL_METADATA = 'underpass';

/** One spelling for an address and port, whoever wrote it. */
export function endpointKey(address: string, port: number): string {
  return isIPv6(address) ? `[${new SocketAddress({ address, family: 'ipv6' }).address}]:${port}` : `${address}:${port}`;
}

/** `10.0.0.1:80` and `[fd00::1]:80` as `endpointKey` spells them; what is neither is left out. */
export function endpointKeys(endpoints: Iterable<string>): Set<string> {
  const parsed = [...endpoints].map(parseEndpointId).filter((endpoint) => endpoint !== undefined);
  return new Set(parsed.map(({ address, port }) => endpointKey(address, port)));
}

/** The cluster, marked with those of its endpoints that are event-driven; unmarked when none is. */
export function markEventDriven(cluster: Cluster, assignment: ClusterLoadAssignment | undefined, eventDriven: ReadonlySet<string>): Cluster {
  if (eventDriven.size === 0) return cluster;
  const known = new Set<string>();
  for (const { lb_endpoints } of (assignment ?? cluster.load_assignment)?.endpoints ?? []) {
    for (const { host_identifier } of lb_endpoints) {
      const address = host_identifier?.$case === 'endpoint' ? host_identifier.value.address?.address : undefined;
      if (address?.$case !== 'socket_address' || address.value.port_specifier?.$case !== 'port_value') continue;
      const key = endpointKey(address.value.address, address.value.port_specifier.value);
      if (eventDriven.has(key)) known.add(key);
    }
  }
  return known.size === 0 ? cluster : marked(cluster, { event_driven: hashBytes([...known].sort().join()).slice(0, 16) });
}

/** A pod's own cluster, marked with the policy that its callers are led to: what is pooled under another one is not used any more. */
export function markPolicy(cluster: Cluster, listener: string | undefined): Cluster {
  return listener === undefined ? cluster : marked(cluster, { policy: listener });
}

function marked(cluster: Cluster, own: Record<string, string>): Cluster {
  const { filter_metadata = {}, ...rest } = cluster.metadata ?? {};
  return { ...cluster, metadata: Metadata.fromPartial({ ...rest, filter_metadata: { ...filter_metadata, [RENEWAL_METADATA]: own } }) };
}
