import type { ChangeSet } from '../model/changes.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { gatewayChanged, inboundChanged, outboundChanged, waypointChanged } from './affected.js';
import { gatewayRoutes } from './gateway/routes.js';
import type { Generator, Names } from './generator.js';
import { TYPE, type Resource } from './resource.js';
import { sourceKey } from './route-match.js';
import { routeConfiguration } from './routes.js';
import { waypointRoutes } from './waypoint/routes.js';

/** Route configurations; a client's namespace counts, since short names are domains there. */
export class RouteGenerator implements Generator {
  readonly typeUrl = TYPE.route;
  readonly wildcard = false;
  readonly #made = new Map<string, Resource>();
  constructor(readonly model: Model) {}

  all(): Resource[] {
    return [];
  }

  one(proxy: Proxy, name: string): Resource {
    // Few proxies have the same servers, and few routes: they are made when asked for.
    if (proxy.type === 'router') return gatewayRoutes(this.model, proxy, name);
    const scope = this.model.scopeOf(proxy);
    if (proxy.type === 'waypoint') return waypointRoutes(scope, proxy, name);
    const key = `${proxy.namespace} ${scope.visibility.id} ${scope.sidecar?.key ?? ''} ${scope.selectors} ${sourceKey(proxy, scope)} ${name}`;
    let resource = this.#made.get(key);
    if (!resource) this.#made.set(key, (resource = routeConfiguration(scope, proxy, name)));
    return resource;
  }

  /** Of gateways they are made each time. */
  isLarge({ type }: Proxy): boolean {
    return type !== 'router' && type !== 'waypoint';
  }

  affected(proxy: Proxy, change: ChangeSet, names: Names): Iterable<string> {
    return outboundChanged(change) || waypointChanged(proxy, change) || gatewayChanged(proxy, change) || (proxy.type === 'router' && inboundChanged(this.model, proxy, change)) ? names : [];
  }

  invalidate(change: ChangeSet): void {
    if (outboundChanged(change)) this.#made.clear();
  }
}
