import type { ChangeSet } from '../model/changes.js';
import { hostMatches } from '../model/hosts.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import type { Scope } from '../model/scope.js';
import { clientKey, clusterEndpoints, hasBothFamilies } from './endpoints.js';
import type { Generator, Names, SharedNames } from './generator.js';
import { onlyFamily, whereabouts, type Whereabouts } from './locality.js';
import { parseClusterName, type ClusterKey } from './names.js';
import { ResourceLists, type Whole } from './resource-list.js';
import { TYPE, type Resource } from './resource.js';
import { waypointChanged } from './affected.js';
import { waypointEndpoints } from './waypoint/clusters.js';

/** Names are clients' own choice: beyond so many it is looked who still watches them. */
const MAX_UNWATCHED = 100_000;

/** A cluster's name that somebody asked for. */
interface Known {
  cluster: ClusterKey | undefined;
  /** By what makes results differ between clients. */
  made: Map<string, Resource>;
}

/** Where a client is, found out when it is wanted, and whether somebody wanted to know for whom resources are the same. */
class Place {
  wasAsked = false;
  #where: Whereabouts | undefined;
  #family: { of: Whereabouts['family'] } | undefined;
  constructor(readonly model: Model, readonly proxy: Proxy) {}

  /** For whom resources are the same is known without a look at it: see `wholes`. */
  get family(): Whereabouts['family'] {
    return (this.#family ??= { of: onlyFamily(this.model, this.proxy) }).of;
  }

  get where(): Whereabouts {
    return (this.#where ??= whereabouts(this.model, this.proxy));
  }

  readonly ask = (): Whereabouts => {
    this.wasAsked = true;
    return this.where;
  };
}

/** Endpoint sets. The one type whose changes are frequent: a change finds its names without looking at all that are watched. */
export class EndpointGenerator implements Generator {
  readonly typeUrl = TYPE.endpoint;
  readonly wildcard = false;
  /** Every name that was asked for, and perhaps is no more. */
  readonly #known = new Map<string, Known>();
  /** With more than that they are looked through. */
  #mostKnown: number;
  readonly #namesByHost = new Map<string, Set<string>>();
  /** By the names that they are of, and the client's one family; undefined: they depend on more of the client than what it sees. */
  #wholes = new WeakMap<Scope['view'], WeakMap<SharedNames, Map<Whereabouts['family'], Whole | undefined>>>();
  #lists = new ResourceLists();
  constructor(readonly model: Model, readonly maxUnwatched = MAX_UNWATCHED) {
    this.#mostKnown = maxUnwatched;
  }

  all(): Resource[] {
    return [];
  }

  one(proxy: Proxy, name: string): Resource {
    if (proxy.type === 'waypoint' && name.startsWith('inbound-vip|')) {
      // So that a change of the host's endpoints finds the name.
      this.#knownAs(name);
      return waypointEndpoints(this.model.scopeOf(proxy), name, whereabouts(this.model, proxy));
    }
    return this.#of(this.model.scopeOf(proxy), name, new Place(this.model, proxy));
  }

  whole(proxy: Proxy, names: SharedNames | undefined): Whole | undefined {
    if (!names || proxy.type === 'waypoint') return undefined;
    const scope = this.model.scopeOf(proxy);
    let wholes = this.#wholes.get(scope.view);
    if (!wholes) this.#wholes.set(scope.view, (wholes = new WeakMap()));
    let ofNames = wholes.get(names);
    if (!ofNames) wholes.set(names, (ofNames = new Map()));
    const place = new Place(this.model, proxy);
    if (!ofNames.has(place.family)) ofNames.set(place.family, this.#wholeOf(scope, names, place));
    return ofNames.get(place.family);
  }

  #wholeOf(scope: Scope, names: SharedNames, place: Place): Whole | undefined {
    const resources: Resource[] = [];
    for (const name of names.keys()) {
      resources.push(this.#of(scope, name, place));
      if (place.wasAsked) return undefined;
    }
    return { shared: this.#lists.intern(resources), own: [] };
  }

  #of(scope: Scope, name: string, place: Place): Resource {
    const { cluster, made } = this.#knownAs(name);
    const host = cluster?.host ?? '';
    const [service, rule] = [scope.service(host), scope.rule(host)];
    const { clusters, mesh } = this.model;
    // Most services are the same wherever the client is, and are found to be so at no cost.
    const dependent = cluster && service && (rule || service.trafficDistribution || mesh.localityLbSetting.distribute || clusters.several || clusters.severalNetworks || cluster.passes);
    const key = `${service?.key ?? ''} ${rule?.key ?? ''} ${dependent ? clientKey(scope, service, cluster, place.ask) : ''} ${service && hasBothFamilies(this.model, service) ? (place.family ?? '') : ''}`;
    let resource = made.get(key);
    if (!resource) made.set(key, (resource = clusterEndpoints(scope, name, place.where)));
    return resource;
  }

  #knownAs(name: string): Known {
    let known = this.#known.get(name);
    if (known) return known;
    const cluster = parseClusterName(name);
    this.#known.set(name, (known = { cluster, made: new Map() }));
    const host = cluster?.host ?? '';
    const names = this.#namesByHost.get(host);
    if (names) names.add(name);
    else this.#namesByHost.set(host, new Set([name]));
    return known;
  }

  affected(proxy: Proxy, change: ChangeSet, names: Names): 'all' | Iterable<string> {
    // What a client sees may be something else now.
    if (waypointChanged(proxy, change)) return names;
    if (change.touches('Sidecar') || (change.touches('VirtualService') && this.model.scopeOf(proxy).egress)) return names;
    const found: string[] = [];
    for (const host of this.#touchedHosts(change)) for (const name of this.#namesByHost.get(host) ?? []) if (names.has(name)) found.push(name);
    return found;
  }

  forget(watched: () => Iterable<Names>): void {
    if (this.#known.size <= this.#mostKnown) return;
    const wanted = new Set<string>();
    for (const names of watched()) for (const name of names) wanted.add(name);
    for (const [name, { cluster }] of this.#known) {
      if (wanted.has(name)) continue;
      this.#known.delete(name);
      const host = cluster?.host ?? '';
      const names = this.#namesByHost.get(host);
      names?.delete(name);
      if (names?.size === 0) this.#namesByHost.delete(host);
    }
    this.#mostKnown = 2 * this.#known.size + this.maxUnwatched;
  }

  invalidate(change: ChangeSet): void {
    [this.#wholes, this.#lists] = [new WeakMap(), new ResourceLists()];
    if (change.full) for (const { made } of this.#known.values()) made.clear();
    else for (const host of this.#touchedHosts(change)) for (const name of this.#namesByHost.get(host) ?? []) this.#known.get(name)!.made.clear();
  }

  #touchedHosts(change: ChangeSet): Iterable<string> {
    const hosts = new Set([...change.endpoints, ...change.services, ...change.identities]);
    for (const pattern of change.rules) {
      if (!pattern.startsWith('*')) hosts.add(pattern);
      else for (const host of this.#namesByHost.keys()) if (hostMatches(pattern, host)) hosts.add(host);
    }
    return hosts;
  }
}
