/** Clusters and their endpoints as this node sees them, made anew only when something that concerns one of them has changed. */
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { pack } from '../../common/xds/any.js';
import { hashBytes } from '../xds/resource-type.js';
import { edsServiceName } from '../xds/resource-types.js';
import { opensForCallers } from './fold-clusters.js';
import { hasTlsMode, socketEndpoints } from './fold-endpoints.js';
import { directWithinNode, meshSockets } from './fold-identity.js';
import { throughInbound } from './fold-inbound.js';
import { throughTunnels } from './hbone-originate.js';
import { endpointKey, markEventDriven } from './pool-renewal.js';
import type { Entry } from './snapshot.js';
import type { WaypointClusters } from './waypoints.js';

export interface NodeView {
  eventDriven: ReadonlySet<string>;
  throughPolicy: ReadonlyMap<string, string>;
  /** Addresses of the pods that this Envoy serves. */
  local: ReadonlySet<string>;
  /** There are certificates: endpoints elsewhere that take HBONE are reached by it. */
  tunnels: boolean;
  waypoints: WaypointClusters;
}

export interface ClusterSource {
  cluster: Cluster;
  assignment: ClusterLoadAssignment | undefined;
}

interface Made extends ClusterSource {
  view: string;
  cds: Entry;
  eds: Entry | undefined;
}

export class ClusterEntries {
  #made = new Map<string, Made>();
  #next = new Map<string, Made>();

  /** What is not added between two calls of this is forgotten. */
  begin(): void {
    this.#made = this.#next;
    this.#next = new Map();
  }

  /** A name's first one counts. */
  add(name: string, source: ClusterSource, view: NodeView, cds: Map<string, Entry>, eds: Map<string, Entry>): void {
    if (cds.has(name)) return;
    const through = view.waypoints.replace(source.cluster);
    const seen = through ? 'waypoint' : viewOf(source, view);
    const before = this.#made.get(name);
    const isSame = !through && before?.cluster === source.cluster && before.assignment === source.assignment && before.view === seen;
    const made = isSame ? before : make(name, source, through ? { cluster: through, assignment: undefined } : asReached(source, view), seen);
    this.#next.set(name, made);
    cds.set(name, made.cds);
    if (made.eds) eds.set(name, made.eds);
  }
}

/** All of the node's view that what is made depends on. */
function viewOf({ cluster, assignment }: ClusterSource, { eventDriven, throughPolicy, local, tunnels }: NodeView): string {
  let seen = tunnels ? 'tunnels' : '';
  for (const { address, port } of socketEndpoints(assignment ?? cluster.load_assignment)) {
    const isLocal = local.has(address);
    const inbound = throughPolicy.get(address);
    const isDriven = eventDriven.size > 0 && eventDriven.has(endpointKey(address, port));
    if (isLocal || isDriven || inbound !== undefined) seen += ` ${address}:${port} ${isLocal} ${isDriven} ${inbound ?? ''}`;
  }
  return seen;
}

function asReached(source: ClusterSource, { eventDriven, throughPolicy, local, tunnels }: NodeView): ClusterSource {
  const direct = directWithinNode(markEventDriven(source.cluster, source.assignment, eventDriven), source.assignment, local);
  const inbound = throughInbound(direct.cluster, direct.assignment, throughPolicy);
  return tunnels && opensForCallers(source.cluster) ? throughTunnels(inbound.cluster, inbound.assignment, local) : inbound;
}

function make(name: string, source: ClusterSource, { cluster, assignment }: ClusterSource, view: string): Made {
  const renamed = { ...cluster, name };
  const isEds = edsServiceName(cluster) !== undefined;
  if (name !== cluster.name) renamed.alt_stat_name ||= cluster.name;
  // Under its own name, so that two clusters that ask for one service can still differ by class.
  if (isEds) renamed.eds_cluster_config = { ...cluster.eds_cluster_config, eds_config: cluster.eds_cluster_config?.eds_config, service_name: name };
  const own = assignment ? { ...assignment, cluster_name: name } : ClusterLoadAssignment.fromPartial({ cluster_name: name });
  return { cluster: source.cluster, assignment: source.assignment, view, cds: entry(Cluster, name, renamed, isEds ? [name] : []), eds: isEds ? entry(ClusterLoadAssignment, name, own, []) : undefined };
}

/** Folded messages have their maps in order, so that equal ones have equal bytes. */
function entry<T>(codec: Parameters<typeof pack<T>>[0], name: string, message: T, needs: readonly string[]): Entry {
  const any = pack(codec, message);
  return { name, version: hashBytes(any.value), any, needs };
}

/** Whether a cluster has sockets of the mesh's mutual TLS, and whether they are for those endpoints alone that say so. */
const kinds = new WeakMap<Cluster, 'none' | 'by endpoint' | 'always'>();

/**
 * Whether a cluster is to speak the mesh's mutual TLS with any of its endpoints. One that does not needs no account's
 * certificate.
 */
export function asksForMeshTls(source: Cluster, assignment: ClusterLoadAssignment | undefined, local: ReadonlySet<string>): boolean {
  let kind = kinds.get(source);
  if (!kind) {
    const sockets = meshSockets(source, '');
    kind = sockets.length === 0 ? 'none' : sockets.every(({ match = {} }) => 'tlsMode' in match) ? 'by endpoint' : 'always';
    kinds.set(source, kind);
  }
  if (kind !== 'by endpoint') return kind === 'always';
  const endpoints = assignment ?? source.load_assignment;
  if (!endpoints) return false;
  const targets = new Map(socketEndpoints(endpoints).map(({ item, address }) => [item, address]));
  return endpoints.endpoints.some(({ lb_endpoints }) => lb_endpoints.some((item) => hasTlsMode(item) && !local.has(targets.get(item) ?? '')));
}
