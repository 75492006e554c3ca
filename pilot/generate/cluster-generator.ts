import type { ChangeSet } from '../model/changes.js';
import { hostMatches } from '../model/hosts.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { inboundChanged, outboundChanged } from './affected.js';
import { clusterClientKey, proxyClusters, serviceClusters, type ClusterVariant } from './clusters.js';
import type { Generator } from './generator.js';
import { hasIpv4, hasIpv6, proxyIps } from './inbound-ports.js';
import { whereabouts } from './locality.js';
import { TYPE, type Resource } from './resource.js';

/** Clusters of a service differ between clients by the DestinationRule that applies, and where names are resolved by what the client can reach. */
export class ClusterGenerator implements Generator {
  readonly typeUrl = TYPE.cluster;
  readonly wildcard = true;
  /** By host, then by the service's own key and the rule that applies. */
  readonly #byHost = new Map<string, Map<string, Resource[]>>();
  constructor(readonly model: Model) {}

  all(proxy: Proxy): Resource[] {
    const scope = this.model.scopeOf(proxy);
    const resources: Resource[] = [];
    let variant: ClusterVariant | undefined;
    const variantOf = (): ClusterVariant => {
      if (!variant) {
        const ips = { ips: proxyIps(this.model, proxy) };
        variant = { ipv4: hasIpv4(ips), ipv6: hasIpv6(ips), client: whereabouts(this.model, proxy), isGateway: proxy.type === 'router' };
      }
      return variant;
    };
    for (const service of scope.services) {
      let made = this.#byHost.get(service.host);
      if (!made) this.#byHost.set(service.host, (made = new Map()));
      const key = `${proxy.type === 'router' ? 'gateway ' : ''}${service.key} ${scope.rule(service.host)?.key ?? ''} ${clusterClientKey(scope, service, variantOf)}`;
      let clusters = made.get(key);
      if (!clusters) made.set(key, (clusters = serviceClusters(scope, service, variantOf())));
      for (const cluster of clusters) resources.push(cluster);
    }
    return [...resources, ...proxyClusters(scope, proxy)];
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
