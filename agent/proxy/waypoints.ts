/**
 * The way to a waypoint: connections of a pod to a destination that has one are tunnelled to it as they are, by HBONE with the
 * caller's identity and the destination that the caller dialled as `:authority`. Nothing is routed here, since the waypoint
 * does it. What a route of another destination leads to a service that has one goes there, too, and so does a request that names
 * the service by its Host header. A waypoint that can't be reached ends the connection: nothing goes around it.
 */
import { isIPv6 } from 'node:net';
import { Cluster, Cluster_DiscoveryType } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { CidrRange } from '../../proto/generated/envoy/config/core/v3/address.js';
import { ApiVersion } from '../../proto/generated/envoy/config/core/v3/config_source.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { StringMatcher } from '../../proto/generated/envoy/type/matcher/v3/string.js';
import { pack } from '../../common/xds/any.js';
import { contentHash } from '../xds/resource-type.js';
import { narrowed } from './chain-match.js';
import { inCallersNamespace, opensForCallers } from './fold-clusters.js';
import { internalAddress, ORIGINAL_DST, parseEndpointId, socketAddress } from './fold-endpoints.js';
import { RAW_BUFFER } from './fold-identity.js';
import { OUTBOUND_PORT, blackHole, type FoldedListeners } from './fold-listeners.js';
import { tunnel, tunnelCluster, tunnelListener } from './hbone-originate.js';
import { unlimited } from './hbone-terminate.js';
import { internalSocket } from './internal-endpoints.js';
import type { ClusterSource } from './folded-cluster.js';
import type { Entry } from './snapshot.js';
import type { Waypoint, WaypointTable } from './waypoint-table.js';

export function waypointClusterName(waypoint: string, identity: string): string {
  return `waypoint/${waypoint}/${identity}`;
}

/** @param identity whose certificate it shows. The assignment is apart, so that another endpoint ends no connection. */
export function waypointEntries(name: string, { endpoints, peers }: Waypoint, identity: string): { cluster: Entry; assignment: Entry } {
  const own = waypointClusterName(name, identity);
  const names = peers.map((peer) => StringMatcher.fromPartial({ match_pattern: { $case: 'exact', value: peer } }));
  const cluster = tunnelCluster(own, identity, names, {
    cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.EDS },
    eds_cluster_config: { eds_config: { config_source_specifier: { $case: 'ads', value: {} }, resource_api_version: ApiVersion.V3 }, service_name: own },
  });
  const assignment = ClusterLoadAssignment.fromPartial({
    cluster_name: own,
    endpoints: [{ lb_endpoints: endpoints.flatMap((each) => {
      const found = parseEndpointId(each);
      return found ? [{ host_identifier: { $case: 'endpoint' as const, value: { address: socketAddress(found.address, found.port) } } }] : [];
    }) }],
  });
  return {
    cluster: { name: own, version: contentHash(Cluster, cluster), any: pack(Cluster, cluster), needs: [own] },
    assignment: { name: own, version: contentHash(ClusterLoadAssignment, assignment), any: pack(ClusterLoadAssignment, assignment), needs: [] },
  };
}

/**
 * The listeners of a class with its chains to waypoints before all others.
 * @param identity of the class; without one nobody would know who calls, and such connections are closed
 */
export function withWaypoints(folded: FoldedListeners, { waypoints, destinations }: WaypointTable, identity: string | undefined): FoldedListeners {
  if (destinations.length === 0) return folded;
  const listened = [...new Set(folded.chains.flatMap(({ filter_chain_match: match }) => match?.destination_port ?? []))].filter((port) => port !== OUTBOUND_PORT);
  /** By waypoint, then by port: 0 stands for all without a chain of their own. */
  const wanted = new Map<string, Map<number, Set<string>>>();
  const taken = new Map<string, string>();
  for (const { addresses, ports, waypoint } of destinations) {
    for (const port of [...(ports ?? listened), 0]) {
      for (const address of addresses) {
        // Of two that claim an address the first one counts: Envoy refuses chains that match the same.
        const key = `${port} ${address}`;
        if (port === OUTBOUND_PORT || (taken.get(key) ?? waypoint) !== waypoint) continue;
        taken.set(key, waypoint);
        const byPort = wanted.get(waypoint) ?? new Map<number, Set<string>>();
        wanted.set(waypoint, byPort.set(port, (byPort.get(port) ?? new Set()).add(address)));
      }
    }
  }
  const chains = [...wanted].flatMap(([waypoint, byPort]) => [...byPort].map(([port, addresses]) => {
    const name = `waypoint/${waypoint}/${port || 'others'}`;
    const match = narrowed(undefined, port || undefined, [...addresses].map((address) => ({ address_prefix: address, prefix_len: isIPv6(address) ? 128 : 32 })));
    if (identity === undefined || !waypoints[waypoint]) return blackHole(name, match);
    const chain = FilterChain.fromPartial({ name, filters: [tunnel({ cluster: waypointClusterName(waypoint, identity), statPrefix: `waypoint/${waypoint}` })] });
    chain.filter_chain_match = match;
    return chain;
  }));
  return { ...folded, chains: [...chains, ...folded.chains.flatMap((chain) => without(chain, taken))] };
}

/** The chain without the addresses that are a waypoint's on its port; nothing, if it has no others. */
function without(chain: FilterChain, taken: ReadonlyMap<string, string>): FilterChain[] {
  const match = chain.filter_chain_match;
  if (!match || match.prefix_ranges.length === 0) return [chain];
  const left = match.prefix_ranges.filter((range) => !(isOne(range) && taken.has(`${match.destination_port ?? 0} ${range.address_prefix}`)));
  if (left.length === match.prefix_ranges.length) return [chain];
  return left.length === 0 ? [] : [{ ...chain, filter_chain_match: { ...match, prefix_ranges: left } }];
}

function isOne({ address_prefix, prefix_len }: CidrRange): boolean {
  return prefix_len === (isIPv6(address_prefix) ? 128 : 32);
}

/** Clusters that lead to a service by their names, in the place of those that would lead around its waypoint. */
export class WaypointClusters {
  readonly #byHost = new Map<string, { address: string; waypoint: string }>();

  constructor(readonly table: WaypointTable) {
    for (const { hostname, addresses, waypoint } of table.destinations) {
      const address = addresses.find((each) => !isIPv6(each)) ?? addresses[0];
      if (hostname !== undefined && address !== undefined && !this.#byHost.has(hostname)) this.#byHost.set(hostname, { address, waypoint });
    }
  }

  listeners(): Entry[] {
    return Object.keys(this.table.waypoints).map((waypoint) => tunnelListener(waypointListenerName(waypoint), (identity) => waypointClusterName(waypoint, identity)));
  }

  /** By a cluster's name; without, `replace` has nothing for it. */
  mayReplace(name: string): boolean {
    if (this.#byHost.size === 0) return false;
    const [direction, , , host = ''] = name.split('|');
    return direction === 'outbound' && this.#byHost.has(host);
  }

  /** @param source of a cluster `outbound|PORT|SUBSET|HOST`, with connections of its own for each caller. Undefined: it is not for a waypoint. */
  replace(source: Pick<ClusterSource, 'name' | 'cluster'>): Cluster | undefined {
    if (!this.mayReplace(source.name)) return undefined;
    const { cluster } = source;
    if (!opensForCallers(cluster)) return undefined;
    const [, port = '', , host = ''] = source.name.split('|');
    const { address, waypoint } = this.#byHost.get(host)!;
    const id = `${isIPv6(address) ? `[${address}]` : address}:${port}`;
    // Which endpoint it is, how it is found and spoken to is the waypoint's to say.
    const through = Cluster.fromPartial({
      name: cluster.name,
      cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.STATIC },
      load_assignment: { cluster_name: cluster.name, endpoints: [{ lb_endpoints: [{ host_identifier: { $case: 'endpoint', value: { address: internalAddress(waypointListenerName(waypoint), id) } } }] }] },
      circuit_breakers: unlimited,
    });
    through.load_assignment!.endpoints[0]!.lb_endpoints[0]!.metadata = { typed_filter_metadata: {}, filter_metadata: { [ORIGINAL_DST]: { local: id } } };
    through.transport_socket = internalSocket(RAW_BUFFER);
    through.connect_timeout = cluster.connect_timeout;
    through.typed_extension_protocol_options = cluster.typed_extension_protocol_options;
    through.metadata = cluster.metadata;
    return inCallersNamespace(through);
  }
}

export function waypointListenerName(waypoint: string): string {
  return `waypoint/${waypoint}`;
}

/** For a waypoint's own connections: they go on as they are, since they would come back to it. */
export const OF_A_WAYPOINT: WaypointTable = { waypoints: {}, destinations: [] };

export function isWaypoint(pods: readonly { addresses?: readonly string[] }[], { waypoints }: WaypointTable): boolean {
  const addresses = new Set(pods.flatMap(({ addresses: own = [] }) => own));
  return Object.values(waypoints).some(({ endpoints }) => endpoints.some((endpoint) => addresses.has(parseEndpointId(endpoint)?.address ?? '')));
}

/** The internal listener that leads to a pod's waypoint. */
export function waypointOf(addresses: readonly string[] = [], { destinations }: WaypointTable): string | undefined {
  const found = destinations.find(({ ports, addresses: own }) => !ports && own.some((address) => addresses.includes(address)));
  return found && waypointListenerName(found.waypoint);
}

export function addWaypoints(classes: readonly { identity?: string; certified?: boolean }[], { waypoints }: WaypointTable, cds: Map<string, Entry>, eds: Map<string, Entry>): void {
  for (const identity of new Set(classes.flatMap(({ identity: own, certified }) => (own !== undefined && certified ? own : [])))) {
    for (const [name, waypoint] of Object.entries(waypoints)) {
      const { cluster, assignment } = waypointEntries(name, waypoint, identity);
      cds.set(cluster.name, cluster);
      eds.set(assignment.name, assignment);
    }
  }
}
