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
import { DeltaAdsStream, type Change, type StreamStatus, type TypeState } from './delta-stream.js';
import { listenerClusters, visitRouteClusters } from './references.js';
import { changedHosts } from './route-codec.js';
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
  /** What was there when it was last whole. */
  #whole: SidecarState | undefined;
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

  preload(state: SidecarState): void {
    for (const key of Object.keys(sidecarTypes) as (keyof typeof sidecarTypes)[]) {
      this.#stream.preload(sidecarTypes[key], state[key].values() as Iterable<XdsResource<unknown>>);
    }
    this.#stream.setNames(sidecarTypes.endpoints, this.#endpointNames());
    this.#stream.setNames(sidecarTypes.routes, this.#routeNames());
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
      clusters: this.#stream.state(clusters).resources,
      endpoints: this.#stream.state(endpoints).resources,
      listeners: this.#stream.state(listeners).resources,
      routes: this.#stream.state(routes).resources,
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
    if (change.type === clusters) this.#stream.setNames(endpoints, this.#endpointNames());
    if (change.type === listeners) this.#stream.setNames(routes, this.#routeNames());
    if (!this.#stream.state(clusters).answered || !this.#stream.state(listeners).answered) return;
    const isComplete = missing(this.#stream.state(endpoints)) + missing(this.#stream.state(routes)) === 0;
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
    if (this.#stream.status.connected) this.#take();
    else this.#timer = setTimeout(() => this.#waited(), this.#fetchTimeoutMs);
  }

  /** From now on `state` is what is there now. */
  #take(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const now = this.#now;
    // Where all that was led to was there and still is, only what is new can dangle.
    const known = this.#changedKinds.has('clusters') || this.#dangling.size > 0 ? undefined : this.#whole;
    // A map that is the same object has the same in it.
    const taken = <K extends keyof SidecarState>(kind: K): SidecarState[K] => (this.#whole && !this.#changedKinds.has(kind) ? this.#whole[kind] : (new Map(now[kind] as ReadonlyMap<string, unknown>) as unknown as SidecarState[K]));
    this.#whole = { clusters: taken('clusters'), endpoints: taken('endpoints'), listeners: taken('listeners'), routes: taken('routes') };
    this.#changedKinds.clear();
    const dangling = new Set<string>();
    this.#visitReferences(known, (name) => {
      if (!now.clusters.has(name)) dangling.add(name);
    });
    this.#dangling = dangling;
    this.#options.onUpdate();
  }

  #endpointNames(): Set<string> {
    const names = new Set<string>();
    for (const cluster of this.#stream.state(sidecarTypes.clusters).resources.values()) {
      const name = edsNames.of(cluster);
      if (name !== undefined) names.add(name);
    }
    return names;
  }

  #routeNames(): Set<string> {
    const names = new Set<string>();
    for (const listener of this.#stream.state(sidecarTypes.listeners).resources.values()) {
      for (const name of routeNames.of(listener)) names.add(name);
    }
    return names;
  }
}

/** Names that were all answered for; what the control plane takes away it answers for, too. */
const answered = new WeakSet<ReadonlySet<string>>();

/** How many of the subscribed names have no answer yet. */
function missing(state: TypeState): number {
  if (answered.has(state.names)) return 0;
  let count = 0;
  for (const name of state.names) if (!state.resources.has(name) && !state.absent.has(name) && !state.rejected.has(name)) count++;
  if (count === 0) answered.add(state.names);
  return count;
}
