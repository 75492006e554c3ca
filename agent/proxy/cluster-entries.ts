/** Clusters and their endpoints as this node sees them, made anew only when something that concerns one of them has changed. */
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { packHeld } from '../../common/xds/any.js';
import { canonical, Facts, hashBytes, type XdsResource } from '../xds/resource-type.js';
import { edsServiceName } from '../xds/resource-types.js';
import { drawnName, markTeachable, taughtName, type TaughtCopies } from '../http/taught-clusters.js';
import { opensForCallers } from './fold-clusters.js';
import { directWithinNode, meshSockets } from './fold-identity.js';
import { throughInbound } from './fold-inbound.js';
import { withGivenName } from './fold-tracing.js';
import { FoldedCluster, tlsAddresses, type ClusterSource, type FoldedEndpoints } from './folded-cluster.js';
import { throughTunnels } from './hbone-originate.js';
import { MadeAny } from './made-any.js';
import { endpointKey, markEventDriven } from './pool-renewal.js';
import { markPlaces } from './request-log.js';
import { CDS, type Entry } from './snapshot.js';
import type { Names } from './variants.js';
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

type Messages = Pick<ClusterSource, 'cluster' | 'assignment'>;

interface Made {
  /** What it was made from. */
  of: readonly object[];
  view: string;
  cds: Entry;
  eds: Entry | undefined;
  recipe: Recipe | undefined;
}

/** What a cluster and its endpoints are made of, once more when somebody asks for their bytes. */
interface Recipe {
  readonly name: string;
  readonly source: Messages;
  /** The newest: in one before it the same was seen of the cluster. */
  view: NodeView;
}

class ClusterAny extends MadeAny {
  constructor(type_url: string, bytes: Buffer, readonly recipe: Recipe) {
    super(type_url, bytes);
  }

  protected make(): Buffer {
    const { name, source, view } = this.recipe;
    const { cluster, assignment } = named(name, asReached(source, view));
    return (this.type_url === CDS ? packed(Cluster, cluster) : packed(ClusterLoadAssignment, assignment!)).value;
  }
}

export interface ClassClusters {
  key: string;
  clusters: ReadonlyMap<string, ClusterSource>;
  /** Copies of some of them for pods that the kernel learns from, under the same names. */
  taught?: ReadonlyMap<string, TaughtCopies>;
}

interface MadeEntries {
  cds: ReadonlyMap<string, Entry>;
  eds: ReadonlyMap<string, Entry>;
}

export class ClusterEntries {
  #made = new Map<string, Made>();
  #all: (MadeEntries & { of: readonly ClassClusters[]; names: Names; view: NodeView }) | undefined;

  /** Of all classes; a name's first cluster counts. The same maps for as long as the clusters, their names and the view are the same. */
  all(classes: readonly ClassClusters[], names: Names, view: NodeView): MadeEntries {
    const before = this.#all;
    const isSame = before?.names === names && before.of.length === classes.length && sameView(before.view, view) && classes.every(({ key, clusters, taught }, index) => before.of[index]!.key === key && before.of[index]!.clusters === clusters && before.of[index]!.taught === taught);
    if (isSame) return before;
    const next = new Map<string, Made>();
    const [cds, eds] = [new Map<string, Entry>(), new Map<string, Entry>()];
    const isSameView = before !== undefined && sameView(before.view, view);
    const add = (called: string, of: readonly object[], source: ClusterSource, isTaught = false): void => {
      if (next.has(called)) return;
      const known = this.#made.get(called);
      const isKnown = known && !view.waypoints.mayReplace(source.name) && known.of.length === of.length && known.of.every((each, index) => each === of[index]);
      const made = isKnown && (isSameView || known.view === viewOf(source, view)) ? known : this.#make(called, of, source, view, isTaught);
      if (made.recipe) made.recipe.view = view;
      next.set(called, made);
      cds.set(called, made.cds);
      if (made.eds) eds.set(called, made.eds);
    };
    const added = new Set<ReadonlyMap<string, ClusterSource>>();
    for (const { key, clusters, taught = [] } of classes) {
      // Classes that are sent the same have the same map.
      const isRenamed = names.renames(key);
      if (isRenamed || !added.has(clusters)) for (const [name, source] of clusters) add(names.of(key, name), [source], source);
      if (!isRenamed) added.add(clusters);
      for (const [name, copies] of taught) {
        const [called, source] = [names.of(key, name), clusters.get(name)!];
        const copyOf = (cluster: Cluster): ClusterSource => ({ name, cluster, assignment: source.assignment, targets: source.targets });
        add(taughtName(called), [copies, source], copyOf(copies.taught), true);
        if (copies.drawn) add(drawnName(called), [copies, source], copyOf(copies.drawn));
      }
    }
    this.#made = next;
    this.#all = { of: classes, names, view, cds, eds };
    return this.#all;
  }

  #make(name: string, of: readonly object[], source: ClusterSource, view: NodeView, isTaught: boolean): Made {
    const through = view.waypoints.replace(source);
    // What is folded is decoded when somebody reads it; what these two are made of is not held for long.
    const recipe = through || isTaught || !(source instanceof FoldedCluster) ? undefined : { name, source, view };
    const messages = through ? { cluster: through, assignment: undefined } : asReached(isTaught ? markTeachable(source.cluster, source.assignment, view) : source, view);
    return { of, view: through ? 'waypoint' : viewOf(source, view), recipe, ...make(name, messages, recipe) };
  }
}

function sameView(a: NodeView, b: NodeView): boolean {
  const sameSet = (one: ReadonlySet<string>, other: ReadonlySet<string>): boolean => one === other || (one.size === other.size && [...one].every((each) => other.has(each)));
  return a.tunnels === b.tunnels && a.waypoints.table === b.waypoints.table && sameSet(a.eventDriven, b.eventDriven) && sameSet(a.local, b.local) &&
    a.throughPolicy.size === b.throughPolicy.size && [...a.throughPolicy].every(([address, listener]) => b.throughPolicy.get(address) === listener);
}

/** All of the node's view that what is made depends on. */
function viewOf({ targets }: ClusterSource, { eventDriven, throughPolicy, local, tunnels }: NodeView): string {
  let seen = tunnels ? 'tunnels' : '';
  for (const target of targets) {
    const [address = '', port] = target.split(' ');
    const isLocal = local.has(address);
    const inbound = throughPolicy.get(address);
    const isDriven = eventDriven.size > 0 && eventDriven.has(endpointKey(address, Number(port)));
    if (isLocal || isDriven || inbound !== undefined) seen += ` ${address}:${port} ${isLocal} ${isDriven} ${inbound ?? ''}`;
  }
  return seen;
}

function asReached(source: Messages, { eventDriven, throughPolicy, local, tunnels }: NodeView): Messages {
  const placed = markPlaces(markEventDriven(source.cluster, source.assignment, eventDriven), source.assignment, local, throughPolicy);
  const direct = directWithinNode(placed.cluster, placed.assignment, local);
  const inbound = throughInbound(direct.cluster, direct.assignment, throughPolicy);
  return tunnels && opensForCallers(source.cluster) ? throughTunnels(inbound.cluster, inbound.assignment, local) : inbound;
}

/** Under the name that they have in this Envoy; endpoints only where the cluster asks for them. */
function named(name: string, { cluster, assignment }: Messages): Messages {
  const renamed = { ...cluster, name };
  const isEds = edsServiceName(cluster) !== undefined;
  if (name !== cluster.name) renamed.alt_stat_name ||= cluster.name;
  renamed.metadata = withGivenName(renamed, cluster.name).metadata;
  // Under its own name, so that two clusters that ask for one service can still differ by class.
  if (isEds) renamed.eds_cluster_config = { ...cluster.eds_cluster_config, eds_config: cluster.eds_cluster_config?.eds_config, service_name: name };
  return { cluster: renamed, assignment: isEds ? (assignment ? { ...assignment, cluster_name: name } : ClusterLoadAssignment.fromPartial({ cluster_name: name })) : undefined };
}

function make(name: string, messages: Messages, recipe: Recipe | undefined): Pick<Made, 'cds' | 'eds'> {
  const { cluster, assignment } = named(name, messages);
  const entry = (any: Any, needs: readonly string[]): Entry => ({ name, version: hashBytes(any.value), any: recipe ? new ClusterAny(any.type_url, any.value, recipe) : any, needs });
  return { cds: entry(packed(Cluster, cluster), assignment ? [name] : []), eds: assignment && entry(packed(ClusterLoadAssignment, assignment), []) };
}

/** Maps in order, so that equal messages have equal bytes. */
function packed<T>(codec: Parameters<typeof packHeld<T>>[0], message: T): Any {
  return packHeld(codec, canonical(message) as T);
}

/** Whether a cluster has sockets of the mesh's mutual TLS, and whether they are for those endpoints alone that say so; with endpoints of its own, their addresses. */
const meshTls = new Facts((source: Cluster): { kind: 'none' | 'by endpoint' | 'always'; addresses: readonly string[] } => {
  const sockets = meshSockets(source, '');
  const kind = sockets.length === 0 ? 'none' : sockets.every(({ match = {} }) => 'tlsMode' in match) ? 'by endpoint' : 'always';
  return { kind, addresses: kind === 'by endpoint' && source.load_assignment ? tlsAddresses(source.load_assignment) : [] };
});

/**
 * Whether a cluster is to speak the mesh's mutual TLS with any of its endpoints. One that does not needs no account's
 * certificate.
 */
export function asksForMeshTls(source: XdsResource<Cluster>, endpoints: FoldedEndpoints | undefined, local: ReadonlySet<string>): boolean {
  const { kind, addresses } = meshTls.of(source);
  if (kind !== 'by endpoint') return kind === 'always';
  return (endpoints?.tlsAddresses ?? addresses).some((address) => !local.has(address));
}
