/**
 * The part of a fold that is for pods that the kernel learns from ("Envoy teaches"; docs/http-fast-path.md), kept from one fold
 * to the next where nothing of it has changed.
 */
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { EnvoyExtensions } from '../proxy/extensions.js';
import { boundTo } from '../proxy/fold-clusters.js';
import type { FoldedInbound } from '../proxy/fold-inbound.js';
import type { ClusterSource } from '../proxy/folded-cluster.js';
import type { FoldedListeners } from '../proxy/fold-listeners.js';
import { inspectionCluster, inspectionListener } from '../proxy/inspection.js';
import { podListener } from '../proxy/pod-listener.js';
import type { Entry } from '../proxy/snapshot.js';
import type { Names } from '../proxy/variants.js';
import { originateListener } from '../proxy/hbone-originate.js';
import type { FoldPod } from '../proxy/fold.js';
import type { LocalPod } from './compile.js';
import { outlierSettings } from './compile-outliers.js';
import type { Teaching } from './names.js';
import { canBeTaught, speaksHttp1, taughtCopies, taughtInboundCluster, taughtName, type TaughtCopies } from './taught-clusters.js';
import type { TaughtSource, TaughtView } from './taught-tables.js';
import { taughtInbound } from './taught-inbound.js';
import { TAUGHT_KINDS, taughtListeners } from './taught-listeners.js';
import { taughtTable, taughtTableEntry, taughtTableName } from './taught-routes.js';

/** Without one of these nobody is taught. */
const EXTENSIONS = ['envoy.built_in_formatters.cel', 'envoy.filters.http.header_mutation', 'envoy.filters.http.upstream_codec', 'envoy.load_balancing_policies.override_host'];

export interface ClassSource {
  key: string;
  clusters: ReadonlyMap<string, ClusterSource>;
  routes: ReadonlyMap<string, { source: RouteConfiguration }>;
  clusterNames: Names;
  routeNames: Names;
  /** Of clusters that lead to a waypoint, which is not in this Envoy. */
  leadsAway(source: ClusterSource): boolean;
}

export interface TableClass extends Pick<TaughtSource, 'key' | 'state' | 'clusters'> {}

export interface TableSurroundings extends Pick<ClassSource, 'leadsAway'> {
  /** By class: what its pods ask of their callers. */
  judged: ReadonlyMap<string, FoldedInbound | undefined>;
  /** By uid, the internal listener that callers are led to. */
  reached: ReadonlyMap<string, string>;
  /** Pods whose callers pass such a listener. */
  behind: ReadonlySet<FoldPod>;
  teachable: ReadonlySet<string>;
  tunnels: boolean;
  /** That `leadsAway` is of. */
  waypoints: unknown;
}

export interface TaughtClass {
  /** Copies by the control plane's names. */
  clusters: ReadonlyMap<string, TaughtCopies>;
  tables: readonly Entry[];
}

export interface SharedListeners {
  folded: FoldedListeners;
  hash: string;
  needs: readonly string[];
  inner: readonly { cluster: Entry; listener: Entry }[];
}

interface KnownTable {
  as: string;
  teachable: ReadonlySet<string>;
  clusters: ReadonlySet<string>;
  entry: Entry;
}

interface KnownClass {
  teachable: ReadonlySet<string>;
  tables: WeakMap<RouteConfiguration, KnownTable>;
  result: TaughtClass | undefined;
  template: { of: SharedListeners; result: SharedListeners } | undefined;
}

export class TaughtFold {
  readonly #classes = new Map<string, KnownClass>();
  readonly #can = new WeakMap<ClusterSource, boolean>();
  readonly #copies = new WeakMap<ClusterSource, { headers: string; copies: TaughtCopies }>();
  readonly #inbound = new Map<string, { as: string; result: FoldedInbound }>();

  constructor(readonly extensions: EnvoyExtensions) {}

  /** Whether this Envoy can teach. */
  get possible(): boolean {
    return EXTENSIONS.every((name) => this.extensions.hasName(name));
  }

  /** Forgets all other classes. */
  keep(classKeys: ReadonlySet<string>): void {
    for (const key of this.#classes.keys()) if (!classKeys.has(key)) this.#classes.delete(key);
    for (const key of this.#inbound.keys()) if (!classKeys.has(key)) this.#inbound.delete(key);
  }

  /** What classes' tables are made from. */
  view(classes: readonly TableClass[], pods: readonly FoldPod[], { judged, reached, behind, teachable, tunnels, leadsAway, waypoints }: TableSurroundings): TaughtView {
    const local = new Map<string, LocalPod>();
    const localAs: string[] = [];
    for (const pod of pods) {
      const [chains, listener] = [judged.get(pod.classKey), reached.get(pod.uid)];
      const of: LocalPod = !behind.has(pod) ? {} : !chains || listener === undefined ? { reason: 'its inbound side is not at Envoy yet' } : { inbound: chains.mesh, listener };
      for (const address of pod.addresses ?? []) local.set(address, of);
      localAs.push(JSON.stringify([pod.addresses, of.listener, of.reason, of.inbound && chains?.hash]));
    }
    return {
      local, localAs: localAs.sort().join(), teachable, tunnels: tunnels ? originateListener.name : undefined,
      classes: classes.map(({ key, state, clusters }) => ({
        key, state, clusters, reasons: waypoints, reasonOf: (source) => (leadsAway(source) ? 'it leads to a waypoint' : this.#canTeach(source) ? undefined : 'Envoy can not teach of it'),
        caller: { identity: pods.find(({ classKey }) => classKey === key)?.identity, addresses: pods.flatMap(({ classKey, taught, addresses = [] }) => (taught && classKey === key ? addresses : [])) },
      })),
    };
  }

  routes({ key, clusters, routes, clusterNames, routeNames, leadsAway }: ClassSource, teaching: Teaching): TaughtClass {
    const known = this.#of(key);
    const teachable = new Set([...clusters].flatMap(([name, source]) => (this.#canTeach(source) && !leadsAway(source) ? name : [])));
    if (!sameSet(known.teachable, teachable)) known.teachable = teachable;
    const as = [teaching.versionOf(key), JSON.stringify(teaching.headers), clusterNames.signature(key)].join();
    const classOf = teaching.of(key) ?? (() => undefined);
    const tables: Entry[] = [];
    const used = new Map<string, TaughtCopies>();
    for (const [name, { source }] of routes) {
      const called = taughtTableName(routeNames.of(key, name), key);
      let table = known.tables.get(source);
      if (table?.as !== as || table.teachable !== known.teachable || table.entry.name !== called) {
        const made = taughtTable(source, this.extensions, (cluster) => clusterNames.of(key, cluster), {
          classOf, headers: teaching.headers, canTeach: (cluster) => known.teachable.has(cluster), isTraced: teaching.isTraced?.(key) ?? false,
          isWatched: (cluster) => typeof outlierSettings(clusters.get(cluster)?.cluster.outlier_detection) === 'object',
        });
        known.tables.set(source, (table = { as, teachable: known.teachable, clusters: made.clusters, entry: taughtTableEntry(called, made.table) }));
      }
      tables.push(table.entry);
      for (const cluster of table.clusters) used.set(cluster, this.#copiesOf(clusters.get(cluster)!, teaching));
    }
    const before = known.result;
    const isSame = before && before.clusters.size === used.size && [...used].every(([name, copies]) => before.clusters.get(name) === copies);
    return (known.result = { clusters: isSame ? before.clusters : used, tables });
  }

  listeners(key: string, shared: SharedListeners): SharedListeners {
    const known = this.#of(key);
    if (known.template?.of === shared) return known.template.result;
    const folded = taughtListeners(shared.folded, key);
    const needs = shared.needs.map((name) => taughtTableName(name, key));
    const own = taughtName(key);
    const inner = TAUGHT_KINDS.map((kind) => ({ cluster: inspectionCluster(own, kind), listener: inspectionListener(own, kind, folded, needs) }));
    const result = { folded, hash: podListener({ uid: '', netnsPath: '', ipv6: true }, folded, []).version, needs, inner };
    known.template = { of: shared, result };
    return result;
  }

  /** @param clusters the class's own ones, as the control plane sent them */
  inbound(key: string, folded: FoldedInbound, clusters: readonly { name: string; message: Cluster }[]): FoldedInbound {
    const can = new Set(clusters.flatMap(({ name, message }) => (canBeTaughtOf(name, message) ? name : [])));
    const as = JSON.stringify([folded.hash, folded.enforces, [...can].sort()]);
    const known = this.#inbound.get(key);
    if (known?.as === as) return known.result;
    const result = taughtInbound(folded, (name) => can.has(name));
    this.#inbound.set(key, { as, result });
    return result;
  }

  #of(key: string): KnownClass {
    let known = this.#classes.get(key);
    if (!known) this.#classes.set(key, (known = { teachable: new Set(), tables: new WeakMap(), result: undefined, template: undefined }));
    return known;
  }

  #canTeach(source: ClusterSource): boolean {
    let can = this.#can.get(source);
    if (can === undefined) this.#can.set(source, (can = canBeTaught(source.cluster)));
    return can;
  }

  #copiesOf(source: ClusterSource, { headers }: Teaching): TaughtCopies {
    const as = JSON.stringify(headers);
    let known = this.#copies.get(source);
    if (known?.headers !== as) this.#copies.set(source, (known = { headers: as, copies: taughtCopies(source.cluster, headers) }));
    return known.copies;
  }
}

/** Whether a cluster of a pod's inbound side has a taught copy. */
export function canBeTaughtOf(name: string, message: Cluster): boolean {
  return name.startsWith('inbound|') && !message.transport_socket && speaksHttp1(message);
}

/** The copy of a pod's own cluster, as it stands in the pod's namespace. */
export function taughtOfPod(netnsPath: string, cluster: Cluster): Cluster {
  return taughtInboundCluster(boundTo(netnsPath, { ...cluster, name: taughtName(cluster.name), alt_stat_name: cluster.alt_stat_name || cluster.name }));
}

function sameSet(a: ReadonlySet<string>, b: ReadonlySet<string>): boolean {
  return a.size === b.size && [...a].every((each) => b.has(each));
}
