import type { ChangeSet } from '../model/changes.js';
import { hostMatches } from '../model/hosts.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { clientKey, clusterEndpoints } from './endpoints.js';
import type { Generator, Names } from './generator.js';
import { whereabouts, type Whereabouts } from './locality.js';
import { parseClusterName } from './names.js';
import { TYPE, type Resource } from './resource.js';

/** Endpoint sets. The one type whose changes are frequent: a change finds its names without looking at all that are watched. */
export class EndpointGenerator implements Generator {
  readonly typeUrl = TYPE.endpoint;
  readonly wildcard = false;
  /** By host, then by what makes results differ between clients, and the cluster's name. */
  readonly #byHost = new Map<string, Map<string, Resource>>();
  /** Every name that was ever asked for, by its host. */
  readonly #namesByHost = new Map<string, Set<string>>();
  constructor(readonly model: Model) {}

  all(): Resource[] {
    return [];
  }

  one(proxy: Proxy, name: string): Resource {
    const cluster = parseClusterName(name);
    const host = cluster?.host ?? '';
    const scope = this.model.scopeOf(proxy);
    const [service, rule] = [scope.service(host), scope.rule(host)];
    let where: Whereabouts | undefined;
    const client = (): Whereabouts => (where ??= whereabouts(this.model, proxy));
    let made = this.#byHost.get(host);
    if (!made) this.#byHost.set(host, (made = new Map()));
    // Most services are the same wherever the client is, and are found to be so at no cost.
    const dependent = cluster && service && (rule || service.trafficDistribution || this.model.mesh.localityLbSetting.distribute || this.model.clusters.several || this.model.clusters.severalNetworks || cluster.passes);
    const key = `${service?.key ?? ''} ${rule?.key ?? ''} ${name} ${dependent ? clientKey(scope, service, cluster, client) : ''}`;
    let resource = made.get(key);
    if (resource) return resource;
    made.set(key, (resource = clusterEndpoints(scope, name, client())));
    let names = this.#namesByHost.get(host);
    if (!names) this.#namesByHost.set(host, (names = new Set()));
    names.add(name);
    return resource;
  }

  affected(proxy: Proxy, change: ChangeSet, names: Names): 'all' | Iterable<string> {
    // What a client sees may be something else now.
    if (change.touches('Sidecar') || (change.touches('VirtualService') && this.model.scopeOf(proxy).egress)) return names;
    const found: string[] = [];
    for (const host of this.#touchedHosts(change)) for (const name of this.#namesByHost.get(host) ?? []) if (names.has(name)) found.push(name);
    return found;
  }

  invalidate(change: ChangeSet): void {
    if (change.full) this.#byHost.clear();
    else for (const host of this.#touchedHosts(change)) this.#byHost.delete(host);
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
