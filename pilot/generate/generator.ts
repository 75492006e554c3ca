/**
 * One generator per resource type, behind one interface, with what it made kept until something that it depends on
 * changes: a thousand proxies of a namespace share one generation.
 */
import type { ChangeSet } from '../model/changes.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { hostMatches } from '../model/hosts.js';
import { proxyClusters, serviceClusters } from './clusters.js';
import { clusterEndpoints } from './endpoints.js';
import { virtualInbound } from './inbound.js';
import { hasIpv4, hasIpv6, podOf, proxyIps } from './inbound-ports.js';
import { outboundListeners } from './listeners.js';
import { parseClusterName } from './names.js';
import { TYPE, type Resource } from './resource.js';
import { routeConfiguration } from './routes.js';
import { addressNames, workloadAddress } from './workloads.js';

export interface Generator {
  readonly typeUrl: string;
  /** Whether a stream that asks for nothing by name gets everything. */
  readonly wildcard: boolean;
  /** Everything that a wildcard subscription of this proxy has. */
  all(proxy: Proxy): Resource[];
  /** Undefined: there is no such resource, and that is the answer. */
  one(proxy: Proxy, name: string): Resource | undefined;
  /** Which of the subscribed `names` a change may alter for this proxy; `all` when it can't be told by name. */
  affected(proxy: Proxy, change: ChangeSet, names: ReadonlySet<string>): 'all' | Iterable<string>;
  /** Forgets what `change` has made stale. Called once a change, before anything is generated from it. */
  invalidate(change: ChangeSet): void;
}

/** What of a proxy makes its outbound listeners differ: everything else is the same for all. */
function scopeOf(model: Model, proxy: Proxy): string {
  const ips = { ips: proxyIps(model, proxy) };
  return `${hasIpv4(ips) ? 4 : ''}${hasIpv6(ips) ? 6 : ''} ${model.sourceNamespaceMatters() ? proxy.namespace : ''} ${sourceScope(model, proxy)}`;
}

/** The proxy's labels as far as some VirtualService asks for them. */
function sourceScope(model: Model, proxy: Proxy): string {
  const keys = model.sourceLabelKeys();
  return keys.length === 0 ? '' : JSON.stringify(keys.map((key) => proxy.labels[key] ?? null));
}

/** Clusters and endpoints differ between clients only by the DestinationRule that applies to them. */
function ruleScope(model: Model, proxy: Proxy, host: string): string {
  return model.destinationRuleFor(host, proxy.namespace)?.key ?? '';
}

/** The proxy's own inbound side may have changed. */
function inboundChanged(model: Model, proxy: Proxy, change: ChangeSet): boolean {
  const pod = podOf(model, proxy);
  const name = pod ? `${pod.metadata.namespace}/${pod.metadata.name}` : `${proxy.namespace}/${proxy.name}`;
  return change.inboundNamespaces.has(proxy.namespace) || change.pods.has(name) || change.pods.has(`${proxy.namespace}/${proxy.name}`);
}

class Clusters implements Generator {
  readonly typeUrl = TYPE.cluster;
  readonly wildcard = true;
  /** By host, then by the rule that applies. */
  readonly #byHost = new Map<string, Map<string, Resource[]>>();
  constructor(readonly model: Model) {}

  all(proxy: Proxy): Resource[] {
    const resources: Resource[] = [];
    for (const service of this.model.sortedServices()) {
      let made = this.#byHost.get(service.host);
      if (!made) this.#byHost.set(service.host, (made = new Map()));
      const scope = ruleScope(this.model, proxy, service.host);
      let clusters = made.get(scope);
      if (!clusters) made.set(scope, (clusters = serviceClusters(this.model, service, proxy.namespace)));
      resources.push(...clusters);
    }
    return [...resources, ...proxyClusters(this.model, proxy)];
  }

  one(proxy: Proxy, name: string): Resource | undefined {
    return this.all(proxy).find((resource) => resource.name === name);
  }

  affected(proxy: Proxy, change: ChangeSet): 'all' | Iterable<string> {
    const outbound = change.services.size + change.rules.size + change.identities.size > 0;
    return outbound || inboundChanged(this.model, proxy, change) ? 'all' : [];
  }

  invalidate(change: ChangeSet): void {
    for (const host of [...change.services, ...change.identities]) this.#byHost.delete(host);
    for (const pattern of change.rules) for (const host of this.#byHost.keys()) if (hostMatches(pattern, host)) this.#byHost.delete(host);
  }
}

class Endpoints implements Generator {
  readonly typeUrl = TYPE.endpoint;
  readonly wildcard = false;
  /** By host, then by the rule that applies and the cluster's name. */
  readonly #byHost = new Map<string, Map<string, Resource>>();
  constructor(readonly model: Model) {}

  all(): Resource[] {
    return [];
  }

  one(proxy: Proxy, name: string): Resource {
    const { host = '', subset = '' } = parseClusterName(name) ?? {};
    let made = this.#byHost.get(host);
    if (!made) this.#byHost.set(host, (made = new Map()));
    const key = `${subset ? ruleScope(this.model, proxy, host) : ''} ${name}`;
    let resource = made.get(key);
    if (!resource) made.set(key, (resource = clusterEndpoints(this.model, name, proxy.namespace)));
    return resource;
  }

  *affected(_proxy: Proxy, change: ChangeSet, names: ReadonlySet<string>): Iterable<string> {
    if (change.services.size + change.endpoints.size + change.rules.size === 0) return;
    for (const name of names) {
      const host = parseClusterName(name)?.host;
      if (host && this.#touched(change, host)) yield name;
    }
  }

  invalidate(change: ChangeSet): void {
    for (const host of this.#byHost.keys()) if (this.#touched(change, host)) this.#byHost.delete(host);
  }

  #touched(change: ChangeSet, host: string): boolean {
    return change.endpoints.has(host) || change.services.has(host) || [...change.rules].some((pattern) => hostMatches(pattern, host));
  }
}

class Listeners implements Generator {
  readonly typeUrl = TYPE.listener;
  readonly wildcard = true;
  readonly #outbound = new Map<string, Resource[]>();
  constructor(readonly model: Model) {}

  all(proxy: Proxy): Resource[] {
    const scope = scopeOf(this.model, proxy);
    let outbound = this.#outbound.get(scope);
    if (!outbound) this.#outbound.set(scope, (outbound = outboundListeners(this.model, proxy)));
    return [...outbound, virtualInbound(this.model, proxy)];
  }

  one(proxy: Proxy, name: string): Resource | undefined {
    return this.all(proxy).find((resource) => resource.name === name);
  }

  affected(proxy: Proxy, change: ChangeSet): 'all' | Iterable<string> {
    return this.#outboundChanged(change) || inboundChanged(this.model, proxy, change) ? 'all' : [];
  }

  invalidate(change: ChangeSet): void {
    if (this.#outboundChanged(change)) this.#outbound.clear();
  }

  /** TCP routes stand in listeners; a headless service has a listener for each of its pods. */
  #outboundChanged(change: ChangeSet): boolean {
    return change.services.size + change.routes.size + change.identities.size > 0;
  }
}

class Routes implements Generator {
  readonly typeUrl = TYPE.route;
  readonly wildcard = false;
  readonly #made = new Map<string, Resource>();
  constructor(readonly model: Model) {}

  all(): Resource[] {
    return [];
  }

  one(proxy: Proxy, name: string): Resource {
    const key = `${proxy.namespace} ${sourceScope(this.model, proxy)} ${name}`;
    let resource = this.#made.get(key);
    if (!resource) this.#made.set(key, (resource = routeConfiguration(this.model, proxy, name)));
    return resource;
  }

  affected(_proxy: Proxy, change: ChangeSet, names: ReadonlySet<string>): Iterable<string> {
    return change.services.size + change.routes.size > 0 ? names : [];
  }

  invalidate(change: ChangeSet): void {
    if (change.services.size + change.routes.size > 0) this.#made.clear();
  }
}

class Addresses implements Generator {
  readonly typeUrl = TYPE.address;
  readonly wildcard = true;
  readonly #made = new Map<string, Resource | undefined>();
  constructor(readonly model: Model) {}

  all(proxy: Proxy): Resource[] {
    return addressNames(this.model).flatMap((name) => this.one(proxy, name) ?? []);
  }

  one(_proxy: Proxy, name: string): Resource | undefined {
    if (!this.#made.has(name)) this.#made.set(name, workloadAddress(this.model, name));
    return this.#made.get(name);
  }

  affected(_proxy: Proxy, change: ChangeSet, names: ReadonlySet<string>): Iterable<string> {
    // On-demand names by address can't be told from the change; they are few.
    return change.addresses.size === 0 ? [] : [...change.addresses, ...[...names].filter((name) => /^[^/]*\/[0-9a-fA-F.:]+$/.test(name))];
  }

  invalidate(change: ChangeSet): void {
    if (change.addresses.size === 0) return;
    for (const name of this.#made.keys()) if (change.addresses.has(name) || /^[^/]*\/[0-9a-fA-F.:]+$/.test(name)) this.#made.delete(name);
  }
}

/** No policy kind is served yet: an empty set, which is an answer, and clients wait for one. */
class Authorizations implements Generator {
  readonly typeUrl = TYPE.authorization;
  readonly wildcard = true;
  all(): Resource[] {
    return [];
  }
  one(): undefined {
    return undefined;
  }
  affected(): Iterable<string> {
    return [];
  }
  invalidate(): void {}
}

export class Generators {
  readonly #byType: ReadonlyMap<string, Generator>;

  constructor(model: Model) {
    const all = [new Clusters(model), new Endpoints(model), new Listeners(model), new Routes(model), new Addresses(model), new Authorizations()];
    this.#byType = new Map(all.map((generator) => [generator.typeUrl, generator]));
  }

  get(typeUrl: string): Generator | undefined {
    return this.#byType.get(typeUrl);
  }

  invalidate(change: ChangeSet): void {
    for (const generator of this.#byType.values()) generator.invalidate(change);
  }
}
