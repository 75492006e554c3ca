/** From the classes' xDS state and the node's pods to the one snapshot that the shared Envoy gets. */
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { Cluster as ClusterCodec } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { encode, pack } from '../../common/xds/any.js';
import { contentHash, hashBytes, type XdsResource } from '../xds/resource-type.js';
import { edsNames } from '../xds/resource-types.js';
import type { SidecarState } from '../xds/sidecar-stream.js';
import { Memo } from '../../common/memo.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import type { Teaching } from '../http/names.js';
import { taughtName } from '../http/taught-clusters.js';
import { canBeTaughtOf, TaughtFold, taughtOfPod } from '../http/teach.js';
import type { EnvoyExtensions } from './extensions.js';
import { asksForMeshTls, ClusterEntries } from './cluster-entries.js';
import { twinOf, type ClusterSet } from './cluster-sets.js';
import { boundTo, foldCluster, isFoldedCluster } from './fold-clusters.js';
import { ofAccount } from './fold-identity.js';
import { FoldedBase, FoldedEndpoints, type ClusterSource, type FoldedCluster } from './folded-cluster.js';
import { foldListener, foldListeners, isNamedSo, renameInChain, type FoldedListeners } from './fold-listeners.js';
import { CLOSED, foldInbound, inboundListeners, isInboundCluster, meshListenerName, type FoldedInbound } from './fold-inbound.js';
import { mirrorClusterName, mirroredClusters, spansClusterName, type Rename } from './fold-routes.js';
import { sidecarId, tracerCluster, withGivenName } from './fold-tracing.js';
import { observed } from './access-logs.js';
import { RouteTables, type FoldedRoutes } from './route-tables.js';
import { originateCluster, originateListener } from './hbone-originate.js';
import { withHeadless } from './headless.js';
import { canEndTunnels, hboneEntries } from './hbone-terminate.js';
import { INSPECTION_KINDS, inspectionCluster, inspectionListener } from './inspection.js';
import { PlainListeners, plainChains, type PlainChains } from './plain-listeners.js';
import { podCallEntries, withPodCalls, type CalledPod, type PodCalls } from './pod-calls.js';
import { markPolicy } from './pool-renewal.js';
import { podClusterName, podListener, podListenerKey, podListenerName, type ListenerPod } from './pod-listener.js';
import { endingIdle, portsTo } from './shown-callers.js';
import { CDS, EDS, LDS, RDS, sameOrNew, Snapshot, type Entry } from './snapshot.js';
import { inboundClusters, listenerFact, listenerFacts } from './state-facts.js';
import { FoldError } from './stock.js';
import { NameBook, Renamed, type Content, type GivenNames, type Names } from './variants.js';
import { NO_WAYPOINTS, type WaypointTable } from './waypoint-table.js';
import { addWaypoints, isWaypoint, OF_A_WAYPOINT, WaypointClusters, waypointOf, withWaypoints } from './waypoints.js';

export interface FoldClass {
  key: string;
  state: SidecarState;
  /** The SPIFFE id of its pods, when there is a CA that signs certificates for it. */
  identity?: string;
  /** As what a sidecar of its pods would name itself: Envoy's `--service-cluster`. */
  serviceName?: string;
  /** Its certificate is there. Until it is, what comes over the network with mutual TLS is refused, and the listener need not wait. */
  certified?: boolean;
}

export interface FoldPod extends ListenerPod {
  classKey: string;
}

export interface FoldProblem {
  classKey: string;
  resource: string;
  message: string;
}

/** Names of Envoy's resources. */
export interface RepeatedSources {
  /** Pods' own listeners, by uid. */
  pods: ReadonlyMap<string, string>;
  listeners: readonly string[];
  routes: readonly string[];
  clusters: readonly string[];
}

export interface FoldResult {
  snapshot: Snapshot;
  problems: FoldProblem[];
  /** `TYPE name` of what exists only because classes do not agree. */
  split: ReadonlySet<string>;
  /** Destination ports for which any class has a listener, ascending; `all` when a class has a say in every connection. */
  ports: readonly number[] | 'all';
  /** Addresses of the node's pods that have a waypoint as workloads: what goes there is Envoy's on whatever port. */
  proxied: readonly string[];
  /** Pods whose own policy has a say in who calls them. */
  enforcing: ReadonlySet<string>;
  /** They and those that are still redirected, and the names of their internal inbound listeners. */
  inbound: ReadonlyMap<string, string>;
  /** Pods for which HBONE ends here. */
  tunnelled: ReadonlySet<string>;
  /** By class, what pods of its that are taught need at Envoy. */
  repeated: ReadonlyMap<string, RepeatedSources>;
}

/** Names that are not the plain ones, to go on with after a restart. */
export interface FoldedNames {
  clusters: GivenNames;
  routes: GivenNames;
  /** See PlainListeners. */
  plain?: Readonly<Record<string, string>>;
}

interface InboundEntries {
  key: string;
  listeners: Entry[];
  clusters: Entry[];
  /** The internal listener under the policies of before. */
  older: Entry | undefined;
}

interface TunnelEntries {
  key: string;
  listener: Entry;
  cluster: Entry;
  routes: Entry;
}

/** With the clusters for what Envoy sends by itself. */
type MirroredClusters = Map<string, ClusterSource & Content>;

/** What a class's pods' listeners have in common, as it was folded from this object. */
interface Template {
  listeners: object;
  names: string;
  waypoints: WaypointTable;
  folded: FoldedListeners;
  hash: string;
  needs: string[];
  /** The class's internal listeners, but for plain TCP. */
  inner: { cluster: Entry; listener: Entry }[];
  plain: PlainChains;
  problems: FoldProblem[];
}

/** Keeps what it folded before, by resource object: an unchanged resource is folded once. */
export class Folder {
  /** By identity, '' for none; like the others that follow by the source's bytes. */
  readonly #clusters = new Map<string, WeakMap<Any, FoldedBase>>();
  /** By class. */
  readonly #clusterSets = new Map<string, ClusterSet<FoldedCluster, FoldProblem>>();
  /** By class. */
  readonly #mirrors = new Map<string, { clusters: object; as: string; result: MirroredClusters }>();
  readonly #clusterEntries = new ClusterEntries();
  readonly #templates = new Map<string, Template>();
  readonly #plain: PlainListeners;
  /** Clusters that have had an endpoint for the mesh's mutual TLS: they stay an account's own, since a change of a cluster's name ends connections. */
  readonly accountClusters: Set<string>;
  readonly #clusterBook: NameBook;
  readonly #routeBook: NameBook;
  #clusterNames: { of: readonly { key: string; contents: ReadonlyMap<string, Content> | undefined }[]; names: Names } | undefined;
  readonly #assignments = new Memo<Any, FoldedEndpoints>();
  readonly #routeTables: RouteTables;
  readonly #taught: TaughtFold;
  readonly #routes = new Memo<Any, FoldedRoutes>();
  readonly #chains = new Memo<Any, Map<boolean, FilterChain[]>>();
  readonly #renamedRoutes = new Renamed<FoldedRoutes, FoldedRoutes>();
  readonly #renamedChains = new Renamed<FilterChain, FilterChain>();
  readonly #inbound = new Map<string, WeakMap<Any, FoldedInbound>>();
  /** By class and type, then by name: the last version that could be folded. */
  #lastGood: ReadonlyMap<string, ReadonlyMap<string, Any>> = new Map();
  /** The same of the fold under way: what is not in it is forgotten. */
  #nextGood = new Map<string, Map<string, Any>>();
  /** The last one. */
  #snapshot = new Snapshot();
  #podEntries = new Map<string, { key: string; entry: Entry }>();
  #inboundEntries = new Map<string, InboundEntries>();
  #tunnelEntries = new Map<string, TunnelEntries>();
  #podCalls: { key: string; entries: PodCalls } | undefined;
  /** By account and peers. */
  #originates: ReadonlyMap<string, Entry> = new Map();

  /** @param former what an agent before this one had decided, whose Envoy may be taken over */
  constructor(readonly extensions: EnvoyExtensions, { accountClusters = [], names, classes = [] }: { accountClusters?: Iterable<string>; names?: FoldedNames; classes?: readonly { key: string }[] } = {}) {
    this.accountClusters = new Set(accountClusters);
    this.#clusterBook = new NameBook(names?.clusters);
    this.#routeBook = new NameBook(names?.routes);
    // Before classes shared them each had one of its own.
    this.#plain = new PlainListeners(names?.plain ?? Object.fromEntries(classes.map(({ key }) => [key, key])));
    this.#routeTables = new RouteTables(extensions);
    this.#taught = new TaughtFold(extensions);
  }

  get names(): FoldedNames {
    return { clusters: this.#clusterBook.given, routes: this.#routeBook.given, plain: this.#plain.given };
  }

  /** Envoy is given what was last folded. */
  commit(): void {
    this.#plain.commit();
  }

  /** How many resources are remembered by their last good version. */
  get remembered(): number {
    return [...this.#lastGood.values()].reduce((sum, { size }) => sum + size, 0);
  }

  /**
   * @param classes in order of seniority: where two disagree about a name, the first keeps the plain name
   * @param pods whose class is among `classes`; others get no listener
   * @param eventDriven keys of endpoints, see pool-renewal.ts
   * @param waypoints which destinations are reached through one
   * @param teaching without it no pod is taught, whatever it says itself
   * @param reached pods that enforce policy, and which of their internal inbound listeners Envoy has: their endpoints lead there
   */
  fold(classes: readonly FoldClass[], given: readonly FoldPod[], eventDriven: ReadonlySet<string> = new Set(), reached: ReadonlyMap<string, string> = new Map(), waypoints: WaypointTable = NO_WAYPOINTS, teaching?: Teaching): FoldResult {
    const problems: FoldProblem[] = [];
    this.#nextGood = new Map();
    const teaches = teaching && this.#taught.possible && given.some(({ taught }) => taught) ? teaching : undefined;
    const pods = teaches ? given : given.map((pod) => (pod.taught ? { ...pod, taught: undefined } : pod));
    for (const cache of [this.#clusters, this.#inbound]) for (const key of cache.keys()) if (key !== '' && !classes.some(({ identity }) => identity === key)) cache.delete(key);
    const local = new Set(pods.flatMap(({ addresses = [] }) => addresses));
    const clusters = new Map(classes.map((item) => [item.key, this.#withMirrors(item, this.#foldClusters(item, local, problems), pods)]));
    const clusterNames = this.#namesOf(classes.map(({ key }) => ({ key, contents: clusters.get(key) })));
    const routes = new Map(classes.map((item) => [item.key, this.#foldRoutes(item, clusterNames, problems)]));
    const routeNamesOf = this.#routeBook.assign(classes.map(({ key }) => ({ key, contents: routes.get(key) })));

    const rds = new Map<string, Entry>();
    const lds = new Map<string, Entry>();
    const judged = new Map(classes.map((item) => [item.key, this.#foldInbound(item, problems)]));
    const inbound = teaches ? new Map(classes.map(({ key, state }) => [key, judged.get(key) && this.#taught.inbound(key, judged.get(key)!, inboundClusters(state.clusters))])) : judged;
    const enforcing = pods.filter(({ classKey }) => inbound.get(classKey)?.enforces);
    // Whoever is redirected is reached by its internal listener, so that no caller of this node meets the redirection.
    const behind = pods.filter((pod) => pod.redirected || inbound.get(pod.classKey)?.enforces);
    const throughPolicy = new Map(behind.flatMap(({ uid, addresses = [] }) => (reached.has(uid) ? addresses.map((address) => [address, reached.get(uid)!] as const) : [])));
    const tunnels = classes.some(({ identity }) => identity !== undefined);
    if (tunnels) lds.set(originateListener.name, originateListener);
    const behindWaypoints = new WaypointClusters(waypoints);
    for (const entry of behindWaypoints.listeners()) lds.set(entry.name, entry);
    const learners = new Set(pods.flatMap(({ classKey, taught }) => (taught ? classKey : [])));
    const leadsAway = (source: ClusterSource): boolean => behindWaypoints.replace(source) !== undefined;
    const isLearner = ({ key }: FoldClass): boolean => teaches !== undefined && learners.has(key);
    teaches?.compile?.(this.#taught.view(classes.filter(isLearner).map((item) => ({ ...item, clusters: clusters.get(item.key)! })), pods, { judged, reached, behind: new Set(behind), teachable: eventDriven, tunnels, leadsAway, waypoints }));
    const taught = new Map(classes.filter(isLearner).map(({ key }) => [key, this.#taught.routes({ key, clusters: clusters.get(key)!, routes: routes.get(key)!, clusterNames, routeNames: routeNamesOf, leadsAway }, teaches!)] as const));
    for (const { tables } of taught.values()) for (const entry of tables) rds.set(entry.name, entry);
    const made = this.#clusterEntries.all(classes.map(({ key }) => ({ key, clusters: clusters.get(key)!, taught: taught.get(key)?.clusters })), clusterNames, { eventDriven, throughPolicy, local, tunnels, waypoints: behindWaypoints });
    const [cds, eds] = [new Map(made.cds), new Map(made.eds)];
    for (const { key } of classes) for (const [name, folded] of routes.get(key) ?? []) this.#addRoutes(routeNamesOf.of(key, name), folded, rds);
    const podEntries = new Map<string, { key: string; entry: Entry }>();
    const repeated = new Map<string, RepeatedSources>();
    const handedOn: { key: string; plain: PlainChains }[] = [];
    for (const item of classes) {
      const own = pods.filter((pod) => pod.classKey === item.key);
      if (own.length === 0) continue;
      const template = this.#template(item, { clusterNames, routeNamesOf, waypoints: isWaypoint(own, waypoints) ? OF_A_WAYPOINT : waypoints }, problems);
      const ofTaught = taught.has(item.key) ? this.#taught.listeners(item.key, template) : undefined;
      for (const { cluster, listener } of [...template.inner, ...(ofTaught?.inner ?? [])]) {
        cds.set(cluster.name, cluster);
        lds.set(listener.name, listener);
      }
      handedOn.push({ key: item.key, plain: template.plain });
      for (const pod of own) {
        const { hash, folded, needs } = (pod.taught && ofTaught) || template;
        // Routes that only an internal listener asks for are in none of its bytes, but it is not ready without them.
        const key = [hash, podListenerKey(pod), pod.brief, ...needs].join();
        const known = this.#podEntries.get(pod.uid);
        const entry = known?.key === key ? known.entry : podListener(pod, folded, needs);
        podEntries.set(pod.uid, { key, entry });
        lds.set(entry.name, entry);
      }
      if (ofTaught) repeated.set(item.key, { pods: new Map(own.flatMap(({ uid, taught: isTaught }) => (isTaught ? [[uid, podListenerName(uid)] as const] : []))), listeners: ofTaught.inner.map(({ listener }) => listener.name), routes: ofTaught.needs, clusters: [...taught.get(item.key)!.clusters.keys()].map((name) => taughtName(clusterNames.of(item.key, name))) });
    }
    this.#podEntries = podEntries;
    const plain = this.#plain.entries(handedOn);
    for (const entry of plain.clusters) cds.set(entry.name, entry);
    for (const entry of plain.listeners) lds.set(entry.name, entry);
    this.#addInbound(classes, pods, inbound, reached, clusterNames, cds, lds, teaches !== undefined);
    addWaypoints(classes, waypoints, cds, eds);
    const calls = this.#callsOf(behind.map(({ uid, addresses, classKey }) => ({ uid, addresses, inbound: reached.get(uid) ?? meshListenerName(uid, inbound.get(classKey) ?? CLOSED), waypoint: waypointOf(addresses, waypoints) })), classes.some(({ key }) => isWaypoint(pods.filter(({ classKey }) => classKey === key), waypoints)));
    for (const entry of calls.listeners) lds.set(entry.name, entry);
    for (const entry of calls.clusters) cds.set(entry.name, entry);
    const tunnelled = this.#addTunnels(classes, pods, inbound, reached, { cds, lds, rds });
    this.#lastGood = this.#nextGood;
    for (const byClass of [this.#clusterSets, this.#mirrors, this.#templates]) for (const key of byClass.keys()) if (!clusters.has(key)) byClass.delete(key);
    this.#taught.keep(new Set(clusters.keys()));
    const split = new Set([...[...clusterNames.split].map((name) => `CDS ${name}`), ...[...routeNamesOf.split].map((name) => `RDS ${name}`), ...plain.split.map((name) => `LDS ${name}`)]);
    const ports = new Set(classes.flatMap(({ state }) => listenerFacts(state.listeners).ports));
    const proxied = [...new Set(waypoints.destinations.flatMap(({ ports: only, addresses }) => (only ? [] : addresses.filter((address) => local.has(address)))))].sort();
    const restricted = classes.some(({ state }) => !listenerFacts(state.listeners).passesThrough);
    this.#snapshot = new Snapshot(([[CDS, cds], [EDS, eds], [LDS, lds], [RDS, rds]] as const).map(([type, entries]) => [type, sameOrNew(this.#snapshot.entries(type), entries)] as const));
    return { snapshot: this.#snapshot, problems, split, ports: restricted ? 'all' : [...ports].sort((a, b) => a - b), proxied, enforcing: new Set(enforcing.map(({ uid }) => uid)), inbound: new Map(behind.map(({ uid, classKey }) => [uid, meshListenerName(uid, inbound.get(classKey) ?? CLOSED)])), tunnelled, repeated };
  }

  #callsOf(pods: readonly CalledPod[], fromWaypoints: boolean): PodCalls {
    const key = JSON.stringify([pods, fromWaypoints]);
    if (this.#podCalls?.key !== key) this.#podCalls = { key, entries: podCallEntries(pods, fromWaypoints) };
    return this.#podCalls.entries;
  }

  /** The same object for as long as the classes have the same. */
  #namesOf(of: readonly { key: string; contents: ReadonlyMap<string, Content> | undefined }[]): Names {
    const before = this.#clusterNames;
    if (before?.of.length === of.length && of.every(({ key, contents }, index) => before.of[index]!.key === key && before.of[index]!.contents === contents)) return before.names;
    const names = this.#clusterBook.assign(of);
    this.#clusterNames = { of, names };
    return names;
  }

  #foldClusters({ key, state, identity }: FoldClass, local: ReadonlySet<string>, problems: FoldProblem[]): Map<string, FoldedCluster> {
    const { clusters, endpoints: assignments } = state;
    const as = { clusters, endpoints: assignments, identity: identity ?? '', local: [...local].join(), accountClusters: this.accountClusters.size };
    const before = this.#clusterSets.get(key);
    if (before?.clusters === clusters && before.endpoints === assignments && before.identity === as.identity && before.local === as.local) {
      this.#keepGood(`${key} CDS`);
      problems.push(...before.problems);
      return before.result;
    }
    const twin = twinOf(this.#clusterSets, key, as);
    const good = twin && (this.#nextGood.get(`${twin.key} CDS`) ?? this.#lastGood.get(`${twin.key} CDS`));
    if (twin && good) {
      this.#nextGood.set(`${key} CDS`, good as Map<string, Any>);
      this.#clusterSets.set(key, { ...twin.set, ...as });
      return twin.set.result;
    }
    const found: FoldProblem[] = [];
    const result = new Map<string, FoldedCluster>();
    let isNeutral = true;
    for (const source of clusters.values()) {
      const { name } = source;
      if (!isFoldedCluster(name)) continue;
      const service = edsNames.of(source);
      const endpoints = service === undefined ? undefined : this.#foldAssignment(assignments.get(service));
      const account = identity !== undefined && this.#asksForMeshTls(source, endpoints, local) ? identity : undefined;
      if (account !== undefined) isNeutral = false;
      const base = this.#good(`${key} CDS`, key, `CDS ${name}`, source, found, () => this.#foldCluster(source, account), cacheOf(this.#clusters, account));
      if (!base) continue;
      const old = before?.result.get(name);
      result.set(name, old?.base === base && old.endpoints === endpoints ? old : base.with(endpoints));
    }
    this.#clusterSets.set(key, { ...as, accountClusters: this.accountClusters.size, result, problems: found, isNeutral });
    problems.push(...found);
    return result;
  }

  #foldCluster(source: XdsResource<Cluster>, account: string | undefined): FoldedBase {
    const fold = (message: Cluster): Cluster => foldCluster(message, this.extensions, account);
    return new FoldedBase(source, fold, (cluster) => contentHash(ClusterCodec, cluster), ({ transport_socket_matches }) => (transport_socket_matches.length > 0 ? ofAccount(account).account : undefined));
  }

  /**
   * Adds what a class's routes mirror to, and its listeners send spans to: made from the first of its pods, since all of them
   * have one identity and neither Envoy's copies of requests nor its spans say which pod asked.
   */
  #withMirrors({ key, state, serviceName }: FoldClass, clusters: Map<string, FoldedCluster>, pods: readonly FoldPod[]): MirroredClusters {
    const { names, tracers } = listenerFacts(state.listeners).callouts;
    const mirrored = new Set(names);
    for (const { message } of state.routes.values()) for (const name of mirroredClusters(message)) mirrored.add(name);
    const [netnsPath] = mirrored.size + tracers.size === 0 ? [] : pods.filter((pod) => pod.classKey === key).map((pod) => pod.netnsPath).sort();
    if (netnsPath === undefined) {
      this.#mirrors.delete(key);
      return clusters;
    }
    const as = JSON.stringify([netnsPath, [...mirrored].sort(), [...tracers].sort(), serviceName]);
    const before = this.#mirrors.get(key);
    if (before?.clusters === clusters && before.as === as) return before.result;
    const result: MirroredClusters = new Map(clusters);
    const add = (name: string, called: string, change: (cluster: Cluster) => Cluster, own: string): void => {
      const folded = clusters.get(name);
      if (!folded) return;
      const { account, assignment, targets } = folded;
      result.set(called, { name: called, ...(account === undefined ? {} : { account }), cluster: change(boundTo(netnsPath, { ...folded.cluster, name: called })), assignment, targets, hash: hashBytes(folded.hash, own) });
    };
    for (const name of mirrored) add(name, mirrorClusterName(name), (cluster) => cluster, netnsPath);
    for (const [name, isZipkin] of tracers) add(name, spansClusterName(name), (cluster) => tracerCluster(cluster, isZipkin ? serviceName : undefined, this.extensions), `${netnsPath} ${isZipkin ? serviceName : ''}`);
    this.#mirrors.set(key, { clusters, as, result });
    return result;
  }

  /** One that asks for no account's certificate is one cluster for all accounts, of which a node may have many. */
  #asksForMeshTls(source: XdsResource<Cluster>, endpoints: FoldedEndpoints | undefined, local: ReadonlySet<string>): boolean {
    if (this.accountClusters.has(source.name)) return true;
    const asks = asksForMeshTls(source, endpoints, local);
    if (asks) this.accountClusters.add(source.name);
    return asks;
  }

  /** What a class's pods ask of their callers; one that can't be folded, and never could, lets nobody in. */
  #foldInbound({ key, state, identity, certified }: FoldClass, problems: FoldProblem[]): FoldedInbound | undefined {
    const source = state.listeners.get('virtualInbound');
    if (!source) return undefined;
    const folded = this.#good(`${key} inbound`, key, 'LDS virtualInbound', source, problems, (message) => foldInbound(message, this.extensions, certified ? identity : undefined), cacheOf(this.#inbound, certified ? identity : undefined)) ?? CLOSED;
    for (const message of folded.refused) problems.push({ classKey: key, resource: 'LDS virtualInbound', message });
    // A Sidecar's ingress listeners deliver where they say, not where the caller meant.
    const delivered = inboundClusters(state.clusters).filter(({ message }) => message.load_assignment);
    for (const { name, message } of delivered) if (isOfSockets(message)) problems.push({ classKey: key, resource: `CDS ${name}`, message: "a Unix socket of the pod's, which the node's Envoy can't reach: requests get 503" });
    return delivered.length > 0 && !folded.enforces ? { ...folded, enforces: true } : folded;
  }

  #addInbound(classes: readonly FoldClass[], pods: readonly FoldPod[], inbound: ReadonlyMap<string, FoldedInbound | undefined>, reached: ReadonlyMap<string, string>, names: Names, cds: Map<string, Entry>, lds: Map<string, Entry>, teaches: boolean): void {
    const entries = new Map<string, InboundEntries>();
    for (const { key: classKey, state } of classes) {
      const folded = inbound.get(classKey);
      const own = pods.filter((pod) => pod.classKey === classKey && (folded?.enforces || pod.redirected));
      if (own.length === 0) continue;
      const sources = inboundClusters(state.clusters);
      const rename = (chain: FilterChain, uid: string): FilterChain => renameInChain(chain, (name) => (isInboundCluster(name) ? podClusterName(uid, name) : names.of(classKey, name)), (name) => name);
      const delivered = new Set(sources.flatMap(({ name, message }) => (message.load_assignment ? [name] : [])));
      const isObserved = listenerFacts(state.listeners).isObserved;
      // Of a control plane that has no inbound side for it nobody knows what the pod would let in.
      const template = folded ?? CLOSED;
      const common = contentHash(Listener, { ...Listener.fromPartial({}), filter_chains: template.direct.map((chain) => rename(chain, '')) });
      for (const pod of own) {
        const inUse = reached.get(pod.uid);
        const key = [common, template.hash, inUse, String(teaches), String(isObserved), podListenerKey(pod), String(pod.canRedirect), ...sources.map(({ name, version }) => `${name} ${version}`)].join();
        const before = this.#inboundEntries.get(pod.uid);
        let known = before;
        if (known?.key !== key) {
          const clusters = sources.flatMap(({ name, message }): Entry[] => {
            const inner = { ...foldCluster(message, this.extensions), name: podClusterName(pod.uid, name) };
            const cluster = boundTo(pod.netnsPath, pod.showsCallers ? endingIdle(inner) : inner);
            cluster.alt_stat_name ||= cluster.name;
            if (isObserved) cluster.metadata = withGivenName(cluster, name).metadata;
            const all = [cluster, ...(teaches && canBeTaughtOf(name, message) ? [taughtOfPod(pod.netnsPath, inner)] : [])].map((each) => markPolicy(each, inUse));
            return all.map((each) => ({ name: each.name, version: contentHash(ClusterCodec, each), any: pack(ClusterCodec, each), needs: [] }));
          });
          known = { key, clusters, listeners: inboundListeners(pod, template, (chain, from) => observed(rename(chain, pod.uid), this.extensions, { inbound: pod.uid, from }, pod.name ?? '-', sidecarId(pod.name ?? '-/-', pod.addresses?.[0] ?? '127.0.0.1')), portsTo(delivered, template)), older: undefined };
        }
        // Until Envoy has the new one endpoints lead to the old one.
        const older = known.listeners.some(({ name }) => name === inUse) ? undefined : [...(before?.listeners ?? []), ...(before?.older ? [before.older] : [])].find(({ name }) => name === inUse);
        known = { ...known, older };
        entries.set(pod.uid, known);
        for (const entry of known.clusters) cds.set(entry.name, entry);
        for (const entry of [...known.listeners, ...(older ? [older] : [])]) lds.set(entry.name, entry);
      }
    }
    this.#inboundEntries = entries;
  }

  /** HBONE needs the pod's certificate, and a word of the control plane's about who may call. */
  #addTunnels(classes: readonly FoldClass[], pods: readonly FoldPod[], inbound: ReadonlyMap<string, FoldedInbound | undefined>, reached: ReadonlyMap<string, string>, { cds, lds, rds }: Record<'cds' | 'lds' | 'rds', Map<string, Entry>>): ReadonlySet<string> {
    const entries = new Map<string, TunnelEntries>();
    const certified = new Set(classes.filter((item) => item.certified).map(({ key }) => key));
    const originates = new Map<string, Entry>();
    for (const { key, identity } of classes) {
      if (identity === undefined || !certified.has(key)) continue;
      const peers = inbound.get(key)?.peers ?? [];
      const as = JSON.stringify([identity, peers]);
      const cluster = originates.get(as) ?? this.#originates.get(as) ?? originateCluster(identity, peers);
      originates.set(as, cluster);
      if (!cds.has(cluster.name)) cds.set(cluster.name, cluster);
    }
    for (const pod of pods) {
      const folded = inbound.get(pod.classKey);
      if (!folded || !certified.has(pod.classKey) || !canEndTunnels(pod)) continue;
      const listener = folded.enforces ? (reached.get(pod.uid) ?? meshListenerName(pod.uid, folded)) : undefined;
      const key = JSON.stringify([podListenerKey(pod), listener, folded.peers, pod.services]);
      const before = this.#tunnelEntries.get(pod.uid);
      const known = before?.key === key ? before : { key, ...hboneEntries(pod, folded.peers, listener, this.extensions) };
      entries.set(pod.uid, known);
      cds.set(known.cluster.name, known.cluster);
      lds.set(known.listener.name, known.listener);
      rds.set(known.routes.name, known.routes);
    }
    this.#tunnelEntries = entries;
    this.#originates = originates;
    return new Set(entries.keys());
  }

  #foldAssignment(source: XdsResource<ClusterLoadAssignment> | undefined): FoldedEndpoints | undefined {
    return source && this.#assignments.once(source.any, () => new FoldedEndpoints(source));
  }

  /** Each account has tables of its own: where they were shared, a listener's would have another name when the other account's pods leave. */
  #foldRoutes({ key, state, identity }: FoldClass, clusterNames: Names, problems: FoldProblem[]): Map<string, FoldedRoutes> {
    const result = new Map<string, FoldedRoutes>();
    const signature = clusterNames.signature(key);
    for (const source of state.routes.values()) {
      const folded = this.#good(`${key} RDS`, key, `RDS ${source.name}`, source, problems, (message) => this.#routeTables.fold(message), this.#routes);
      if (!folded) continue;
      const own = clusterNames.renames(key) ? this.#renamedRoutes.get(folded, signature, () => this.#routeTables.renamed(folded.source, (name) => clusterNames.of(key, name))) : folded;
      result.set(source.name, { ...own, ...ofAccount(identity) });
    }
    // A listener waits for its routes: a name that the control plane does not know gets a table without routes.
    for (const name of listenerFacts(state.listeners).routeNames) {
      if (!result.has(name)) result.set(name, { ...this.#routeTables.fold(RouteConfiguration.fromPartial({ name })), ...ofAccount(identity) });
    }
    return result;
  }

  #addRoutes(name: string, { as, hash }: FoldedRoutes, rds: Map<string, Entry>): void {
    if (rds.has(name)) return;
    const version = hashBytes(name, hash);
    const before = this.#snapshot.get(RDS, name);
    rds.set(name, before?.version === version ? before : { name, version, any: as(name), needs: [] });
  }

  #template(item: FoldClass, { clusterNames, routeNamesOf, waypoints }: { clusterNames: Names; routeNamesOf: Names; waypoints: WaypointTable }, problems: FoldProblem[]): Template {
    const { key, identity = '', state: { listeners } } = item;
    const names = [identity, ...[clusterNames, routeNamesOf].map((each) => (each.renames(key) ? each.signature(key) : ''))].join();
    let template = this.#templates.get(key);
    if (template?.listeners === listeners && template.names === names && template.waypoints === waypoints) this.#keepGood(`${key} LDS`);
    else this.#templates.set(key, (template = { ...this.#makeTemplate(item, clusterNames, routeNamesOf, waypoints), listeners, names, waypoints }));
    problems.push(...template.problems);
    return template;
  }

  #makeTemplate({ key, state, identity }: FoldClass, clusterNames: Names, routeNames_: Names, waypoints: WaypointTable): Omit<Template, 'listeners' | 'names' | 'waypoints'> {
    const problems: FoldProblem[] = [];
    const sources = [...state.listeners.values()];
    const asSent = foldListeners(sources, key, this.extensions, (listener, extensions, twin) => this.#foldListener(key, listener, extensions, twin, problems), this.#templates.get(key)?.folded.handsOn);
    // Whether a cluster is a headless service's changes with the listeners.
    const folded = withHeadless(asSent, waypoints.headless ?? [], identity, (name) => state.clusters.get(name)?.message);
    for (const { listener, message } of folded.errors) problems.push({ classKey: key, resource: `LDS ${listener}`, message });
    for (const { name } of sources.filter((source) => listenerFact.of(source).isSocketOfItsOwn)) problems.push({ classKey: key, resource: `LDS ${name}`, message: 'a socket in the pod that programs are to dial (captureMode NONE), which the node\'s Envoy does not open: nobody listens there' });
    if (clusterNames.renames(key) || routeNames_.renames(key)) {
      const signature = `${clusterNames.signature(key)} ${routeNames_.signature(key)}`;
      const [cluster, route] = [clusterNames, routeNames_].map((names) => (name: string) => names.of(key, name)) as [Rename, Rename];
      const rename = (chain: FilterChain): FilterChain => (isNamedSo(chain, cluster, route) ? chain : this.#renamedChains.get(chain, signature, () => renameInChain(chain, cluster, route)));
      folded.chains = folded.chains.map(rename);
      for (const kind of INSPECTION_KINDS) folded.inspected[kind] = folded.inspected[kind].map(rename);
      folded.defaultChain = rename(folded.defaultChain);
    }
    const needs = new Set(listenerFacts(state.listeners).routeNames.map((name) => routeNames_.of(key, name)));
    folded.isTraced = listenerFacts(state.listeners).callouts.tracers.size > 0;
    const whole = withPodCalls(withWaypoints(folded, waypoints, identity), waypoints === OF_A_WAYPOINT);
    const probe = podListener({ uid: '', netnsPath: '', ipv6: true }, whole, []);
    const inner = (['http', 'unknown'] as const).map((kind) => ({ cluster: inspectionCluster(key, kind), listener: inspectionListener(key, kind, whole, [...needs]) }));
    const ofAccounts = new Set(clusterNames.renames(key) ? [...(this.#clusterSets.get(key)?.result ?? [])].flatMap(([name, { account }]) => (account === undefined ? [] : clusterNames.of(key, name))) : []);
    return { folded: whole, hash: probe.version, needs: [...needs], inner, plain: plainChains(whole, ofAccounts), problems };
  }

  #foldListener(key: string, listener: XdsResource<Listener>, extensions: EnvoyExtensions, twin: boolean, problems: FoldProblem[]): FilterChain[] {
    const { name, any } = listener;
    const cached = this.#chains.get(any)?.get(twin);
    const good = this.#goodOf(`${key} LDS`);
    if (cached) {
      good.set(name, any);
      return cached;
    }
    try {
      const chains = foldListener(listener.message, extensions, twin);
      this.#chains.once(any, () => new Map<boolean, FilterChain[]>()).set(twin, chains);
      good.set(name, any);
      return chains;
    } catch (error) {
      const last = this.#lastGood.get(`${key} LDS`)?.get(name);
      if (last) good.set(name, last);
      const chains = last && this.#chains.get(last)?.get(twin);
      if (!(error instanceof FoldError) || !chains) throw error;
      problems.push({ classKey: key, resource: `LDS ${name}`, message: error.message });
      return chains;
    }
  }

  #goodOf(group: string): Map<string, Any> {
    let found = this.#nextGood.get(group);
    if (!found) this.#nextGood.set(group, (found = new Map()));
    return found;
  }

  #keepGood(group: string): void {
    const good = this.#lastGood.get(group);
    if (good) this.#nextGood.set(group, good as Map<string, Any>);
  }

  /** The folded form of `source`, or the last good one with a problem noted, or none. @param group class and type */
  #good<S, F>(group: string, classKey: string, resource: string, source: XdsResource<S>, problems: FoldProblem[], fold: (message: S) => F, cache: Pick<WeakMap<Any, F>, 'get' | 'set'> | Memo<Any, F>): F | undefined {
    const good = this.#goodOf(group);
    const { name, any } = source;
    let found = cache.get(any);
    if (!found) {
      try {
        cache.set(any, (found = fold(source.message)));
      } catch (error) {
        if (!(error instanceof FoldError)) throw error;
        problems.push({ classKey, resource, message: error.message });
        const last = this.#lastGood.get(group)?.get(name);
        if (last) good.set(name, last);
        return last && cache.get(last);
      }
    }
    good.set(name, any);
    return found;
  }
}

function cacheOf<F>(caches: Map<string, WeakMap<Any, F>>, identity = ''): WeakMap<Any, F> {
  let found = caches.get(identity);
  if (!found) caches.set(identity, (found = new WeakMap()));
  return found;
}

function isOfSockets({ load_assignment }: Cluster): boolean {
  return load_assignment?.endpoints.some(({ lb_endpoints }) => lb_endpoints.some(({ host_identifier: host }) => host?.$case === 'endpoint' && host.value.address?.address?.$case === 'pipe')) ?? false;
}
