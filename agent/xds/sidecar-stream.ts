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
import type { AdsChannel } from './channel.js';
import { DeltaAdsStream, type Change, type StreamStatus, type TypeState } from './delta-stream.js';
import { ClusterType, EndpointType, ListenerType, RouteType, edsServiceName, routeNames } from './resource-types.js';
import type { AnyResourceType, XdsResource } from './resource-type.js';

export const sidecarTypes = { clusters: new ClusterType(), endpoints: new EndpointType(), listeners: new ListenerType(), routes: new RouteType() };

export interface SidecarState {
  readonly clusters: ReadonlyMap<string, XdsResource<Cluster>>;
  readonly endpoints: ReadonlyMap<string, XdsResource<ClusterLoadAssignment>>;
  readonly listeners: ReadonlyMap<string, XdsResource<Listener>>;
  readonly routes: ReadonlyMap<string, XdsResource<RouteConfiguration>>;
}

export interface SidecarStreamOptions {
  channel: AdsChannel;
  node: Node;
  logger: Logger;
  /** Content changed, or the stream became synced. */
  onUpdate: () => void;
  backoff?: Backoff;
  /** How long to wait for a named resource before treating it as absent, as Envoy's initial_fetch_timeout; default 15 s. */
  fetchTimeoutMs?: number;
}

export class SidecarStream implements Closable {
  readonly #stream: DeltaAdsStream;
  readonly #options: SidecarStreamOptions;
  readonly #fetchTimeoutMs: number;
  #waitingSince: number | undefined;
  #timer: NodeJS.Timeout | undefined;
  #synced = false;

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

  /** All four types answered, and everything that clusters and listeners name is there (or known to be absent). */
  get synced(): boolean {
    return this.#synced;
  }

  get status(): Readonly<StreamStatus> {
    return this.#stream.status;
  }

  get state(): SidecarState {
    const { clusters, listeners, endpoints, routes } = sidecarTypes;
    return {
      clusters: this.#stream.state(clusters).resources,
      endpoints: this.#stream.state(endpoints).resources,
      listeners: this.#stream.state(listeners).resources,
      routes: this.#stream.state(routes).resources,
    };
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

  #changed(change: Change): void {
    const { clusters, listeners, endpoints, routes } = sidecarTypes;
    if (change.type.typeUrl === clusters.typeUrl) this.#stream.setNames(endpoints, this.#endpointNames());
    if (change.type.typeUrl === listeners.typeUrl) this.#stream.setNames(routes, this.#routeNames());
    const before = this.#synced;
    this.#checkSynced();
    if (change.updated.length > 0 || change.removed.length > 0 || this.#synced !== before) this.#options.onUpdate();
  }

  #checkSynced(): void {
    if (this.#synced) return;
    const { clusters, listeners, endpoints, routes } = sidecarTypes;
    if (!this.#stream.state(clusters).answered || !this.#stream.state(listeners).answered) return;
    const missing = complete(this.#stream.state(endpoints)) + complete(this.#stream.state(routes));
    this.#waitingSince ??= performance.now();
    const waited = performance.now() - this.#waitingSince;
    if (missing === 0 || waited >= this.#fetchTimeoutMs) {
      clearTimeout(this.#timer);
      this.#synced = true;
      return;
    }
    this.#timer ??= setTimeout(() => {
      this.#checkSynced();
      if (this.#synced) this.#options.onUpdate();
    }, this.#fetchTimeoutMs + 1 - waited);
  }

  #endpointNames(): Set<string> {
    const names = new Set<string>();
    for (const cluster of this.#stream.state(sidecarTypes.clusters).resources.values()) {
      const name = edsServiceName(cluster.message);
      if (name !== undefined) names.add(name);
    }
    return names;
  }

  #routeNames(): Set<string> {
    const names = new Set<string>();
    for (const listener of this.#stream.state(sidecarTypes.listeners).resources.values()) {
      for (const name of routeNames(listener.message)) names.add(name);
    }
    return names;
  }
}

/** How many of the subscribed names have no answer yet. */
function complete(state: TypeState): number {
  let missing = 0;
  for (const name of state.names) if (!state.resources.has(name) && !state.absent.has(name) && !state.rejected.has(name)) missing++;
  return missing;
}
