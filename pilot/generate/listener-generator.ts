import type { ChangeSet } from '../model/changes.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import type { Scope } from '../model/scope.js';
import { gatewayChanged, inboundChanged, outboundChanged, policyChanged, waypointChanged } from './affected.js';
import { gatewayListeners } from './gateway/listeners.js';
import type { Generator } from './generator.js';
import { originateListener } from './hbone-originate.js';
import { inboundKey, virtualInbound } from './inbound.js';
import { hboneListeners, takesTunnels } from './inbound-hbone.js';
import { hasIpv4, hasIpv6, proxyIps } from './inbound-ports.js';
import { outboundListeners } from './listeners.js';
import { TYPE, type Resource } from './resource.js';
import { SECURITY_KINDS } from './security/filters.js';
import { sourceKey } from './route-match.js';
import { waypointListeners } from './waypoint/listeners.js';

/** Outbound listeners are shared by all clients that see the same, the inbound one by workloads with the same ports and policies. */
export class ListenerGenerator implements Generator {
  readonly typeUrl = TYPE.listener;
  readonly wildcard = true;
  readonly #outbound = new Map<string, Resource[]>();
  readonly #inbound = new Map<string, Resource>();
  constructor(readonly model: Model) {}

  all(proxy: Proxy): Resource[] {
    if (proxy.type === 'waypoint') return waypointListeners(this.model, proxy);
    const originate = this.model.hasTunnelled ? [originateListener] : [];
    if (proxy.type === 'router') return [...gatewayListeners(this.model, proxy), ...originate];
    const scope = this.model.scopeOf(proxy);
    const key = this.#outboundKey(proxy, scope);
    let outbound = this.#outbound.get(key);
    if (!outbound) this.#outbound.set(key, (outbound = outboundListeners(scope, proxy)));
    return [...outbound, ...originate, this.#inboundOf(proxy), ...(takesTunnels(proxy) ? hboneListeners(this.model, proxy) : [])];
  }

  #inboundOf(proxy: Proxy): Resource {
    const key = inboundKey(this.model, proxy);
    let inbound = this.#inbound.get(key);
    if (!inbound) this.#inbound.set(key, (inbound = virtualInbound(this.model, proxy)));
    return inbound;
  }

  #outboundKey(proxy: Proxy, scope: Scope): string {
    const ips = { ips: proxyIps(this.model, proxy) };
    // Rules that only some namespaces obey set TCP listeners' time-outs and hashing.
    const rules = this.model.rulesShapeListeners ? proxy.namespace : '';
    return `${hasIpv4(ips) ? 4 : ''}${hasIpv6(ips) ? 6 : ''} ${rules} ${scope.visibility.id} ${scope.sidecar?.key ?? ''} ${scope.selectors} ${sourceKey(proxy, scope)}`;
  }

  one(proxy: Proxy, name: string): Resource | undefined {
    return this.all(proxy).find((resource) => resource.name === name);
  }

  affected(proxy: Proxy, change: ChangeSet): 'all' | Iterable<string> {
    return outboundChanged(change) || inboundChanged(this.model, proxy, change) || policyChanged(this.model, proxy, change) || gatewayChanged(proxy, change) || waypointChanged(proxy, change) ? 'all' : [];
  }

  invalidate(change: ChangeSet): void {
    // TCP routes stand in listeners; a headless service has a listener for each of its pods.
    if (outboundChanged(change)) this.#outbound.clear();
    // An external authorization service is a service.
    if (change.services.size > 0 || change.touches(...SECURITY_KINDS)) this.#inbound.clear();
  }
}
