/**
 * The sidecar-type stream of one config class: clusters and listeners by wildcard, the endpoints and routes that they
 * name by subscription.
 */
import type { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import type { Backoff } from '../../common/retry.js';
import type { StreamOpener } from './channel.js';
import { DeltaAdsStream, type Change, type StreamStatus } from './delta-stream.js';
import { listenerClusters, visitRouteClusters } from './references.js';
import { changedHosts } from './route-codec.js';
import { sameEntries } from './shared-maps.js';
import { ClusterType, EndpointType, ListenerType, RouteType, edsNames, routeNames } from './resource-types.js';
import type { AnyResourceType, XdsResource } from './resource-type.js';

/**
 * How long routes may lead to a cluster that is not there (not there yet, or not any more) before that is taken for what
 * the control plane means: the messages of one push are milliseconds apart, in whichever order.
 */
const REFERENCE_WAIT_MS = 1_000;

export const sidecarTypes = { clusters: new ClusterType(), endpoints: new EndpointType(), listeners: new ListenerType(), routes: new RouteType() };

export interface SidecarState {
  readonly clusters: ReadonlyMap<string, XdsResource<Cluster>>;
  readonly endpoints: ReadonlyMap<string, XdsResource<ClusterLoadAssignment>>;
  readonly listeners: ReadonlyMap<string, XdsResource<Listener>>;
  readonly routes: ReadonlyMap<string, XdsResource<RouteConfiguration>>;
}

export interface SidecarStreamOptions {
  channel: StreamOpener;
  node: Node;
  logger: Logger;
  /** `state` changed. */
  onUpdate: () => void;
  backoff?: Backoff;
  /** How long to wait for a named resource before treating it as absent, as Envoy's initial_fetch_timeout; default 15 s. */
  fetchTimeoutMs?: number;
}

export class SidecarStream implements Closable {
  readonly #stream: DeltaAdsStream;
  readonly #options: SidecarStreamOptions;
  readonly #fetchTimeoutMs: number;
  #timer: NodeJS.Timeout | undefined;
  #waitsForNames = false;
  /** Clusters that are referred to and not there, for good. */
  #dangling: ReadonlySet<string> = new Set();
  /** Of these another class's were announced as held, and the control plane has not answered for them: nothing of them counts. */
  readonly #unconfirmed = new Set<AnyResourceType>();
  /** All names were answered for that are subscribed to of these. */
  readonly #answered = new Set<AnyResourceType>();
  /** What was there when it was last whole. */
  #whole: SidecarState | undefined;
  /** What was known before the control plane was heard. */
  #preloaded: SidecarState | undefined;
  /** What has changed since. */
  readonly #changedKinds = new Set<keyof SidecarState>();

  constructor(options: SidecarStreamOptions) {
    this.#options = options;
    this.#fetchTimeoutMs = options.fetchTimeoutMs ?? 15_000;
    const { clusters, listeners, endpoints, routes } = sidecarTypes;
    this.#stream = new DeltaAdsStream({
      channel: options.channel, node: options.node, logger: options.logger,
      types: [clusters, endpoints, listeners, routes],
      onChange: (change) => this.#changed(change),
      ...(options.backoff ? { backoff: options.backoff } : {}),
    });
  }

  /** Whether `state` is there: all four types were answered, and everything that they name is there or known to be absent. */
  get synced(): boolean {
    return this.#whole !== undefined;
  }

  /** Part of a push has arrived, the rest is waited for. */
  get isWaiting(): boolean {
    return this.#timer !== undefined;
  }

  get status(): Readonly<StreamStatus> {
    return this.#stream.status;
  }

  /**
   * The newest state that is whole. A cluster arrives before its endpoints, a listener before its routes, and a cluster may
   * go before the routes that lead to it do; requests must not meet what is there in between.
   */
  get state(): SidecarState {
    return this.#whole ?? this.#now;
  }

  /** Resources that were rejected, `TYPE "name": field: problem`. */
  get rejected(): string[] {
    const rejected = (type: AnyResourceType): string[] => [...this.#stream.state(type).rejected.values()];
    return Object.values(sidecarTypes).flatMap(rejected);
  }

  /**
   * Says that this is held already, so that the control plane answers with what differs.
   * @param isOthers it is another class's: then nothing of it is taken for this one's before there is an answer for each type
   */
  preload(state: SidecarState, { isOthers = false } = {}): void {
    if (isOthers) for (const type of [sidecarTypes.endpoints, sidecarTypes.routes]) this.#unconfirmed.add(type);
    this.#preloaded = state;
    for (const key of Object.keys(sidecarTypes) as (keyof typeof sidecarTypes)[]) {
      this.#stream.preload(sidecarTypes[key], state[key].values() as Iterable<XdsResource<unknown>>);
    }
    this.#ask(sidecarTypes.endpoints, endpointNames(this.#now.clusters));
    this.#ask(sidecarTypes.routes, namesOfRoutes(this.#now.listeners));
  }

  start(): void {
    this.#stream.start();
  }

  setNode(node: Node): void {
    this.#stream.setNode(node);
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#stream.close();
  }

  get #now(): SidecarState {
    const { clusters, listeners, endpoints, routes } = sidecarTypes;
    return {
      clusters: this.#stream.settled(clusters),
      endpoints: this.#stream.settled(endpoints),
      listeners: this.#stream.settled(listeners),
      routes: this.#stream.settled(routes),
    };
  }

  #changed(change: Change): void {
    const { clusters, listeners, endpoints, routes } = sidecarTypes;
    if (change.updated.length > 0 || change.removed.length > 0) {
      // What is named no longer goes with what named it.
      if (change.type === clusters) this.#changedKinds.add('clusters').add('endpoints');
      else if (change.type === listeners) this.#changedKinds.add('listeners').add('routes');
      else this.#changedKinds.add(change.type === endpoints ? 'endpoints' : 'routes');
    }
    if (change.type === clusters) this.#ask(endpoints, endpointNames(this.#now.clusters));
    if (change.type === listeners) this.#ask(routes, namesOfRoutes(this.#now.listeners));
    if (!this.#stream.state(clusters).answered || !this.#stream.state(listeners).answered) return;
    const isComplete = this.#isAnswered(endpoints) && this.#isAnswered(routes);
    if (isComplete && !this.#dangles()) {
      if (!this.#whole || this.#timer || change.updated.length > 0 || change.removed.length > 0) this.#take();
      return;
    }
    // From unanswered names to mere dangling the wait becomes shorter.
    if (isComplete && this.#waitsForNames) {
      clearTimeout(this.#timer);
      this.#timer = undefined;
    }
    this.#waitsForNames = !isComplete;
    this.#timer ??= setTimeout(() => this.#waited(), isComplete ? REFERENCE_WAIT_MS : this.#fetchTimeoutMs);
  }

  /** Whether anything now leads to a cluster that is not there, but did not before: the other half of a push is on its way. */
  #dangles(): boolean {
    if (!this.#whole) return false;
    const { clusters } = this.#now;
    let found = false;
    this.#visitReferences(this.#changedKinds.has('clusters') ? undefined : this.#whole, (name) => {
      found ||= !clusters.has(name) && !this.#dangling.has(name);
    });
    return found;
  }

  /** What is led to now. @param known what this state leads to is left out */
  #visitReferences(known: SidecarState | undefined, visit: (name: string) => void): void {
    const { listeners, routes } = this.#now;
    for (const [name, { message }] of routes) {
      const before = known?.routes.get(name)?.message;
      if (before !== message) visitRouteClusters(before ? changedHosts(before, message).added : message.virtual_hosts, visit);
    }
    for (const [name, listener] of listeners) if (known?.listeners.get(name)?.any !== listener.any) listenerClusters.of(listener).forEach(visit);
  }

  /** A connected control plane that does not answer for a name will not: on without it. */
  #waited(): void {
    if (this.#stream.status.connected && this.#unconfirmed.size > 0) return this.#askAnew();
    if (this.#stream.status.connected) this.#take();
    else this.#timer = setTimeout(() => this.#waited(), this.#fetchTimeoutMs);
  }

  /** Without what another class was sent: a control plane that says nothing where all is as it was announced. */
  #askAnew(): void {
    for (const type of this.#unconfirmed) {
      const { names } = this.#stream.state(type);
      this.#stream.setNames(type, new Set());
      this.#ask(type, names);
    }
    this.#unconfirmed.clear();
    this.#timer = setTimeout(() => this.#waited(), this.#fetchTimeoutMs);
  }

  /** From now on `state` is what is there now. */
  #take(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const now = this.#now;
    // Where all that was led to was there and still is, only what is new can dangle.
    const known = this.#changedKinds.has('clusters') || this.#dangling.size > 0 ? undefined : this.#whole;
    // A map that is the same object has the same in it: what was known before, and was confirmed, need not be folded again.
    const taken = <K extends keyof SidecarState>(kind: K): SidecarState[K] => {
      if (this.#whole && !this.#changedKinds.has(kind)) return this.#whole[kind];
      // Whatever their versions are called.
      return this.#preloaded && sameEntries<{ readonly any: unknown }>(this.#preloaded[kind], now[kind], ({ any }) => any) ? this.#preloaded[kind] : now[kind];
    };
    this.#whole = { clusters: taken('clusters'), endpoints: taken('endpoints'), listeners: taken('listeners'), routes: taken('routes') };
    this.#preloaded = undefined;
    this.#changedKinds.clear();
    const dangling = new Set<string>();
    this.#visitReferences(known, (name) => {
      if (!now.clusters.has(name)) dangling.add(name);
    });
    this.#dangling = dangling;
    this.#options.onUpdate();
  }

  #ask(type: AnyResourceType, names: ReadonlySet<string>): void {
    if (this.#stream.state(type).names !== names) this.#answered.delete(type);
    this.#stream.setNames(type, names);
  }

  /** Whether all subscribed names have an answer; what the control plane takes away it answers for, too. */
  #isAnswered(type: AnyResourceType): boolean {
    if (this.#answered.has(type)) return true;
    const { names, resources, absent, rejected, answered } = this.#stream.state(type);
    if (this.#unconfirmed.has(type) && !answered && names.size > 0) return false;
    this.#unconfirmed.delete(type);
    for (const name of names) if (!resources.has(name) && !absent.has(name) && !rejected.has(name)) return false;
    this.#answered.add(type);
    return true;
  }
}

const ofClusters = new WeakMap<SidecarState['clusters'], ReadonlySet<string>>();
const ofListeners = new WeakMap<SidecarState['listeners'], ReadonlySet<string>>();

/** What the clusters of a map that is not altered ask for, in one set for all who have the map. */
function endpointNames(clusters: SidecarState['clusters']): ReadonlySet<string> {
  let names = ofClusters.get(clusters);
  if (!names) ofClusters.set(clusters, (names = new Set([...clusters.values()].flatMap((cluster) => edsNames.of(cluster) ?? []))));
  return names;
}

function namesOfRoutes(listeners: SidecarState['listeners']): ReadonlySet<string> {
  let names = ofListeners.get(listeners);
  if (!names) ofListeners.set(listeners, (names = new Set([...listeners.values()].flatMap((listener) => routeNames.of(listener)))));
  return names;
}
