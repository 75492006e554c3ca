import type { ChangeSet } from '../model/changes.js';
import { hostMatches } from '../model/hosts.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { inboundChanged, outboundChanged } from './affected.js';
import { proxyClusters, serviceClusters } from './clusters.js';
import type { Generator } from './generator.js';
import { TYPE, type Resource } from './resource.js';

/** Clusters of a service differ between clients only by the DestinationRule that applies to them. */
export class ClusterGenerator implements Generator {
  readonly typeUrl = TYPE.cluster;
  readonly wildcard = true;
  /** By host, then by the service's own key and the rule that applies. */
  readonly #byHost = new Map<string, Map<string, Resource[]>>();
  constructor(readonly model: Model) {}

  all(proxy: Proxy): Resource[] {
    const scope = this.model.scopeOf(proxy);
    const resources: Resource[] = [];
    for (const service of scope.services) {
      let made = this.#byHost.get(service.host);
      if (!made) this.#byHost.set(service.host, (made = new Map()));
      const key = `${service.key} ${scope.rule(service.host)?.key ?? ''}`;
      let clusters = made.get(key);
      if (!clusters) made.set(key, (clusters = serviceClusters(scope, service)));
      for (const cluster of clusters) resources.push(cluster);
    }
    return [...resources, ...proxyClusters(this.model, proxy)];
  }

  one(proxy: Proxy, name: string): Resource | undefined {
    return this.all(proxy).find((resource) => resource.name === name);
  }

  affected(proxy: Proxy, change: ChangeSet): 'all' | Iterable<string> {
    return outboundChanged(change) || inboundChanged(this.model, proxy, change) ? 'all' : [];
  }

  invalidate(change: ChangeSet): void {
    if (change.full) this.#byHost.clear();
    for (const host of [...change.services, ...change.identities]) this.#byHost.delete(host);
    for (const pattern of change.rules) {
      if (!pattern.startsWith('*')) this.#byHost.delete(pattern);
      else for (const host of this.#byHost.keys()) if (hostMatches(pattern, host)) this.#byHost.delete(host);
    }
  }
}
