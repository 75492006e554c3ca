import type { ChangeSet } from '../model/changes.js';
import { hostMatches } from '../model/hosts.js';
import type { MeshService, Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import type { Scope } from '../model/scope.js';
import { gatewayChanged, inboundChanged, outboundChanged, waypointChanged } from './affected.js';
import { clusterClientKey, proxyClusters, serviceClusters, type ClusterVariant } from './clusters.js';
import { gatewayServers, isAutoPassthrough, isHbone } from './gateway/servers.js';
import { hboneClusters } from './gateway/hbone.js';
import { sniClusters } from './gateway/sni-clusters.js';
import type { Generator } from './generator.js';
import { hasIpv4, hasIpv6, proxyIps } from './inbound-ports.js';
import { whereabouts } from './locality.js';
import { ResourceLists, type ResourceList, type Whole } from './resource-list.js';
import { TYPE, type Resource } from './resource.js';
import { waypointClusters } from './waypoint/clusters.js';

/** Lists of clusters that are kept of what clients see. */
const MAX_PLACES = 32;

/** Clusters of a service differ between clients by the DestinationRule that applies, and where names are resolved by what the client can reach. */
export class ClusterGenerator implements Generator {
  readonly typeUrl = TYPE.cluster;
  readonly wildcard = true;
  /** By host, then by the service's own key and the rule that applies. */
  readonly #byHost = new Map<string, Map<string, Resource[]>>();
  #outbound = new WeakMap<Scope['view'], Map<string, ResourceList>>();
  readonly #lists = new ResourceLists();
  #eastWest = new WeakMap<Scope, Map<typeof sniClusters, readonly Resource[]>>();
  constructor(readonly model: Model) {}

  all(proxy: Proxy): Resource[] {
    const { shared, own } = this.whole(proxy);
    return [...shared.resources, ...own];
  }

  whole(proxy: Proxy): Whole {
    const scope = this.model.scopeOf(proxy);
    if (proxy.type === 'waypoint') return { shared: this.#lists.intern([]), own: waypointClusters(scope, proxy, () => this.#variant(proxy)) };
    return { shared: this.#outboundOf(scope, proxy), own: [...proxyClusters(scope, proxy), ...this.#passing(scope, proxy)] };
  }

  /** Clients that see the same share their clusters; where some are resolved by name, which each does where it is, those of one place. */
  #outboundOf(scope: Scope, proxy: Proxy): ResourceList {
    const { type } = proxy;
    let variant: ClusterVariant | undefined;
    const variantOf = (): ClusterVariant => (variant ??= this.#variant(proxy));
    const places = scope.services.filter(({ resolution }) => resolution.startsWith('DNS')).map((service) => clusterClientKey(scope, service, variantOf));
    const key = `${type} ${places.join('|')}`;
    let lists = this.#outbound.get(scope.view);
    if (!lists) this.#outbound.set(scope.view, (lists = new Map()));
    let list = lists.get(key);
    if (list) return list;
    list = this.#lists.intern(scope.services.flatMap((service) => this.#ofService(scope, proxy, service, variantOf)));
    // Places may be as many as clients.
    if (lists.size < MAX_PLACES) lists.set(key, list);
    return list;
  }

  /** Of an east-west gateway, by what it passes on. */
  #passing(scope: Scope, proxy: Proxy): readonly Resource[] {
    if (proxy.type !== 'router') return [];
    const servers = gatewayServers(this.model, proxy);
    const kinds = [...(servers.some(isAutoPassthrough) ? [sniClusters] : []), ...(servers.some(isHbone) ? [hboneClusters] : [])];
    let made = this.#eastWest.get(scope);
    if (!made) this.#eastWest.set(scope, (made = new Map()));
    return kinds.flatMap((make) => made.get(make) ?? (made.set(make, make(scope)), made.get(make)!));
  }

  #ofService(scope: Scope, proxy: Proxy, service: MeshService, variantOf: () => ClusterVariant): readonly Resource[] {
    let made = this.#byHost.get(service.host);
    if (!made) this.#byHost.set(service.host, (made = new Map()));
    const key = `${proxy.type === 'router' ? 'gateway ' : ''}${service.key} ${scope.rule(service.host)?.key ?? ''} ${clusterClientKey(scope, service, variantOf)}`;
    let clusters = made.get(key);
    if (!clusters) made.set(key, (clusters = serviceClusters(scope, service, variantOf())));
    return clusters;
  }

  prepare(proxy: Proxy, service: MeshService): readonly Resource[] {
    if (service.resolution.startsWith('DNS')) return [];
    return this.#ofService(this.model.scopeOf(proxy), proxy, service, () => this.#variant(proxy));
  }

  #variant(proxy: Proxy): ClusterVariant {
    const ips = { ips: proxyIps(this.model, proxy) };
    return { ipv4: hasIpv4(ips), ipv6: hasIpv6(ips), client: whereabouts(this.model, proxy), isGateway: proxy.type === 'router' };
  }

  one(proxy: Proxy, name: string): Resource | undefined {
    return this.all(proxy).find((resource) => resource.name === name);
  }

  affected(proxy: Proxy, change: ChangeSet): 'all' | Iterable<string> {
    return outboundChanged(change) || inboundChanged(this.model, proxy, change) || gatewayChanged(proxy, change) || waypointChanged(proxy, change) ? 'all' : [];
  }

  invalidate(change: ChangeSet): void {
    if (outboundChanged(change)) {
      [this.#outbound, this.#eastWest] = [new WeakMap(), new WeakMap()];
      // A route's change leaves clusters as they are: clients that have them need not be compared with them one by one.
      this.#lists.renew();
    }
    if (change.full) this.#byHost.clear();
    for (const host of [...change.services, ...change.identities]) this.#byHost.delete(host);
    for (const pattern of change.rules) {
      if (!pattern.startsWith('*')) this.#byHost.delete(pattern);
      else for (const host of this.#byHost.keys()) if (hostMatches(pattern, host)) this.#byHost.delete(host);
    }
  }
}
