/**
 * What objects say about each other, by the facts that checks ask for: the Services of a host, the Gateways on a port, the
 * pods of a namespace. Each check notes which facts it read, so that a change makes only those objects be looked at again
 * whose facts it touches. Endpoints touch none.
 */
import type { DestinationRule, Gateway, KubeObject, Pod, ReferenceGrant, ServiceEntry, VirtualService } from '../../common/kube/types.js';
import { apiGroup } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { byAge, selects } from '../model/configs.js';
import { resolveHost, serviceHost } from '../model/hosts.js';

export const GATEWAY_API = 'gateway.networking.k8s.io';

export const namespaceOf = ({ metadata }: KubeObject): string => metadata.namespace ?? 'default';

/** One name for each thing that a check can ask for. */
export const fact = {
  /** Services and ServiceEntries of a host. */
  host: (host: string): string => `host ${host.toLowerCase()}`,
  /** ServiceEntries whose host has a wildcard. */
  wildHosts: 'host *',
  rules: (host: string): string => `rules ${host.toLowerCase()}`,
  wildRules: 'rules *',
  virtualServicesOf: (host: string): string => `routes ${host.toLowerCase()}`,
  virtualService: (namespace: string, name: string): string => `VirtualService ${namespace}/${name}`,
  gateway: (namespace: string, name: string): string => `Gateway ${namespace}/${name}`,
  gatewaysOn: (port: number): string => `Gateways on ${port}`,
  kubeGateway: (namespace: string, name: string): string => `KubeGateway ${namespace}/${name}`,
  secret: (namespace: string, name: string): string => `Secret ${namespace}/${name}`,
  configMap: (namespace: string, name: string): string => `ConfigMap ${namespace}/${name}`,
  grants: (namespace: string): string => `grants ${namespace}`,
  pods: (namespace: string): string => `pods ${namespace}`,
  /** Touched by pods that have the label; nothing is kept under it. */
  label: (key: string, value: string): string => `label ${key}=${value}`,
  /** Objects of a kind that are about all workloads of a namespace. */
  namespaceWide: (kind: string, namespace: string): string => `${kind} of ${namespace}`,
  address: (address: string): string => `address ${address}`,
};

/** Workloads of all kinds that a selector can mean. */
const isWorkload = ({ kind }: KubeObject): boolean => kind === 'Pod' || kind === 'WorkloadEntry';

const NO_LABELS: Readonly<Record<string, string>> = {};

function workloadLabels(object: KubeObject): Readonly<Record<string, string>> {
  const own = object.metadata.labels ?? NO_LABELS;
  return object.kind === 'WorkloadEntry' ? { ...own, ...(object as { spec?: { labels?: Record<string, string> } }).spec?.labels } : own;
}

/** Without a selector, or with one that asks for nothing. */
export function isNamespaceWide(object: KubeObject): boolean {
  const { selector, workloadSelector } = (object as { spec?: { selector?: { matchLabels?: object }; workloadSelector?: { labels?: object } } }).spec ?? {};
  return Object.keys({ ...selector?.matchLabels, ...workloadSelector?.labels }).length === 0;
}

/** The facts under which an object is kept. */
function provided(object: KubeObject, clusterDomain: string): string[] {
  const namespace = namespaceOf(object);
  const { name } = object.metadata;
  const group = apiGroup(object.apiVersion);
  switch (object.kind) {
    case 'Service':
      return [fact.host(serviceHost(name, namespace, clusterDomain))];
    case 'ServiceEntry': {
      const { hosts, addresses = [] } = (object as ServiceEntry).spec;
      return [...hosts.map((host) => (host.startsWith('*') ? fact.wildHosts : fact.host(host))), ...addresses.map(fact.address)];
    }
    case 'DestinationRule': {
      const host = resolveHost((object as DestinationRule).spec.host, namespace, clusterDomain);
      return [host.startsWith('*') ? fact.wildRules : fact.rules(host)];
    }
    case 'VirtualService':
      return [fact.virtualService(namespace, name), ...((object as VirtualService).spec.hosts ?? []).map((host) => fact.virtualServicesOf(resolveHost(host, namespace, clusterDomain)))];
    case 'Gateway':
      if (group === GATEWAY_API) return [fact.kubeGateway(namespace, name)];
      return [fact.gateway(namespace, name), ...((object as Gateway).spec.servers ?? []).map(({ port }) => fact.gatewaysOn(port.number))];
    case 'Secret':
      return [fact.secret(namespace, name)];
    case 'ConfigMap':
      return [fact.configMap(namespace, name)];
    case 'Sidecar':
    case 'PeerAuthentication':
      return isNamespaceWide(object) ? [fact.namespaceWide(object.kind, namespace)] : [];
    case 'ReferenceGrant':
      return [fact.grants(namespace)];
    default:
      return isWorkload(object) ? [fact.pods(namespace)] : [];
  }
}

/** The facts that may be others when an object comes, changes or goes. */
function touched(object: KubeObject, clusterDomain: string): string[] {
  if (!isWorkload(object)) return provided(object, clusterDomain);
  return Object.entries(workloadLabels(object)).map(([key, value]) => fact.label(key, value));
}

export class MeshIndex {
  readonly #providers = new Map<string, Set<LoadedObject>>();
  readonly #objects = new Map<string, LoadedObject>();

  constructor(readonly clusterDomain: string) {}

  /** @returns the facts that may be others now; none where nothing changed that a check asks for. */
  set(key: string, loaded: LoadedObject | undefined): readonly string[] {
    const old = this.#objects.get(key);
    if (loaded) this.#objects.set(key, loaded);
    else this.#objects.delete(key);
    const facts = new Set<string>();
    if (old) {
      for (const name of provided(old.object, this.clusterDomain)) this.#remove(name, old);
      for (const name of touched(old.object, this.clusterDomain)) facts.add(name);
    }
    if (loaded) {
      for (const name of provided(loaded.object, this.clusterDomain)) this.#add(name, loaded);
      for (const name of touched(loaded.object, this.clusterDomain)) facts.add(name);
    }
    if (old && loaded && isWorkload(loaded.object) && JSON.stringify(workloadLabels(old.object)) === JSON.stringify(workloadLabels(loaded.object))) return [];
    return [...facts];
  }

  #add(name: string, loaded: LoadedObject): void {
    const set = this.#providers.get(name);
    if (set) set.add(loaded);
    else this.#providers.set(name, new Set([loaded]));
  }

  #remove(name: string, loaded: LoadedObject): void {
    const set = this.#providers.get(name);
    if (!set?.delete(loaded)) return;
    if (set.size === 0) this.#providers.delete(name);
  }

  /** What is kept under a fact, oldest first. */
  of(name: string): readonly LoadedObject[] {
    const set = this.#providers.get(name);
    return !set ? [] : set.size === 1 ? [...set] : [...set].sort(byAge);
  }

  /** As `of`, in any order. */
  unordered(name: string): Iterable<LoadedObject> {
    return this.#providers.get(name) ?? [];
  }

  /** For hints alone: what is read here makes no object be looked at again. */
  *hosts(): Iterable<string> {
    for (const name of this.#providers.keys()) if (name.startsWith('host ') && name !== fact.wildHosts) yield name.slice('host '.length);
  }

  *namespacesOfPods(): Iterable<string> {
    for (const name of this.#providers.keys()) if (name.startsWith('pods ')) yield name.slice('pods '.length);
  }
}

/** The index as one check sees it: what is asked for is noted. */
export class View {
  readonly reads = new Set<string>();

  constructor(readonly index: MeshIndex) {}

  get clusterDomain(): string {
    return this.index.clusterDomain;
  }

  of<T extends KubeObject>(name: string): readonly LoadedObject<T>[] {
    this.reads.add(name);
    return this.index.of(name) as readonly LoadedObject<T>[];
  }

  /** Pods and WorkloadEntries with these labels, in one namespace or in all. At least one label has to be asked for. */
  workloads(selector: Readonly<Record<string, string>>, namespace?: string): Pod[] {
    const [first] = Object.entries(selector).sort();
    if (!first) return [];
    this.reads.add(fact.label(...first));
    const found: Pod[] = [];
    for (const place of namespace === undefined ? this.index.namespacesOfPods() : [namespace]) {
      for (const { object } of this.index.unordered(fact.pods(place))) if (selects(selector, workloadLabels(object))) found.push(object as Pod);
    }
    return found;
  }

  /** Does a ReferenceGrant in `to.namespace` let an object refer to one there? */
  isGranted(from: { group: string; kind: string; namespace: string }, to: { group: string; kind: string; namespace: string; name: string }): boolean {
    if (from.namespace === to.namespace) return true;
    return this.of<ReferenceGrant>(fact.grants(to.namespace)).some(
      ({ object: { spec } }) =>
        spec.from.some((entry) => entry.group === from.group && entry.kind === from.kind && entry.namespace === from.namespace) &&
        spec.to.some((entry) => entry.group === to.group && entry.kind === to.kind && (!entry.name || entry.name === to.name)),
    );
  }
}
