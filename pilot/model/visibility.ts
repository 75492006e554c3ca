/**
 * Which services and VirtualServices a workload's configuration is made from: what is exported to its namespace, and of
 * that what its Sidecar resource asks for. Workloads that see the same share one object, and what is made from it.
 */
import type { LoadedObject } from '../../common/kube/yaml.js';
import type { VirtualService } from '../../common/kube/types.js';
import { hostMatches, HostIndex } from './hosts.js';
import { isExportedTo, type ExportTo } from './export-to.js';
import type { MeshConfig } from './mesh.js';
import type { MeshService } from './types.js';
import { destinationsOf, virtualServiceExport } from './virtual-services.js';

/** One `hosts` entry of a Sidecar's egress listener, `namespace/host` taken apart. */
export interface EgressHost {
  /** `*`, or a namespace's name. */
  namespace: string;
  host: string;
}

export class Visibility {
  /** One service a host, in the order of hosts. */
  readonly services: readonly MeshService[];
  /** In the order of precedence: kept to the namespace itself, exported to it by name, then public; each oldest first. */
  readonly virtualServices: readonly LoadedObject<VirtualService>[];
  /** The labels of clients that some VirtualService's `sourceLabels` asks for. */
  readonly sourceLabelKeys: readonly string[];
  readonly sourceNamespaceMatters: boolean;
  readonly #byHost: ReadonlyMap<string, MeshService>;
  readonly #virtualServicesByHost = new HostIndex<LoadedObject<VirtualService>>();
  #byPort: Map<number, MeshService[]> | undefined;

  /** @param id the same for equal content; part of the key of whatever is kept about it */
  constructor(readonly id: string, services: Iterable<MeshService>, virtualServices: readonly LoadedObject<VirtualService>[]) {
    this.services = [...services].sort((a, b) => (a.host < b.host ? -1 : 1));
    this.#byHost = new Map(this.services.map((service) => [service.host, service]));
    this.virtualServices = virtualServices;
    const keys = new Set<string>();
    let namespaceMatters = false;
    for (const loaded of virtualServices) {
      const { spec } = loaded.object;
      for (const host of spec.hosts ?? []) this.#virtualServicesByHost.add(host, loaded);
      for (const match of [...(spec.http ?? []), ...(spec.tcp ?? []), ...(spec.tls ?? [])].flatMap((route) => route.match ?? [])) {
        for (const key of Object.keys(match.sourceLabels ?? {})) keys.add(key);
        namespaceMatters ||= Boolean(match.sourceNamespace);
      }
    }
    this.sourceLabelKeys = [...keys].sort();
    this.sourceNamespaceMatters = namespaceMatters;
  }

  service(host: string): MeshService | undefined {
    return this.#byHost.get(host);
  }

  /** In the order of hosts. */
  servicesOnPort(port: number): readonly MeshService[] {
    if (!this.#byPort) {
      this.#byPort = new Map();
      for (const service of this.services) {
        for (const number of new Set(service.ports.map((candidate) => candidate.port))) {
          const found = this.#byPort.get(number);
          if (found) found.push(service);
          else this.#byPort.set(number, [service]);
        }
      }
    }
    return this.#byPort.get(port) ?? [];
  }

  /** Those whose hosts cover `host`, the most specific host first, then the oldest. */
  virtualServicesFor(host: string): LoadedObject<VirtualService>[] {
    return this.#virtualServicesByHost.matching(host).flat();
  }
}

export interface VisibilitySources {
  mesh: MeshConfig;
  /** All services by host; of one host in several namespaces the order is Istio's: Kubernetes' own first, then the oldest. */
  servicesByHost: ReadonlyMap<string, readonly MeshService[]>;
  /** Resolved, oldest first. */
  virtualServices: readonly LoadedObject<VirtualService>[];
}

/** What is exported to `namespace`; undefined stands for a namespace to which nothing is exported by its name. */
export function exportedTo(sources: VisibilitySources, id: string, namespace: string | undefined): Visibility {
  const visible = (exportTo: ExportTo): boolean => (namespace === undefined ? exportTo === 'all' : isExportedTo(exportTo, namespace));
  const services: MeshService[] = [];
  for (const candidates of sources.servicesByHost.values()) {
    const seen = candidates.filter(({ exportTo }) => visible(exportTo));
    // A namespace's own service comes before others of that host.
    const service = seen.find((candidate) => candidate.namespace === namespace) ?? seen[0];
    if (service) services.push(service);
  }
  const [own, named, everybody]: [LoadedObject<VirtualService>[], LoadedObject<VirtualService>[], LoadedObject<VirtualService>[]] = [[], [], []];
  for (const loaded of sources.virtualServices) {
    const exportTo = virtualServiceExport(loaded, sources.mesh);
    if (visible(exportTo)) (exportTo === 'all' ? everybody : (loaded.object.metadata.namespace ?? 'default') === namespace ? own : named).push(loaded);
  }
  return new Visibility(id, services, [...own, ...named, ...everybody]);
}

/** For clients whose DNS is captured: services that have no address are found at those that were made up for them. */
export function withAutoAddresses(seen: Visibility, id: string): Visibility {
  const services = seen.services.map((service) => (service.addresses.length + service.cidrs.length === 0 && service.autoAddresses.length > 0 ? { ...service, addresses: service.autoAddresses } : service));
  return new Visibility(id, services, seen.virtualServices);
}

/** For clients of one cluster: services that are in several have its addresses. */
export function withClusterAddresses(seen: Visibility, id: string, cluster: string): Visibility {
  const services = seen.services.map((service) => {
    const addresses = service.clusterAddresses?.[cluster];
    return addresses?.length ? { ...service, addresses } : service;
  });
  return new Visibility(id, services, seen.virtualServices);
}

/** Namespaces that see something that others don't: the rest share one view. */
export function namespacesWithOwnView(sources: VisibilitySources): ReadonlySet<string> {
  const found = new Set<string>();
  const add = (exportTo: ExportTo): void => {
    if (exportTo !== 'all') for (const namespace of exportTo) found.add(namespace);
  };
  for (const candidates of sources.servicesByHost.values()) {
    for (const { exportTo } of candidates) add(exportTo);
    // Of a host in several namespaces each sees its own.
    if (candidates.length > 1) for (const { namespace } of candidates) found.add(namespace);
  }
  for (const loaded of sources.virtualServices) add(virtualServiceExport(loaded, sources.mesh));
  return found;
}

/** `ns/host` of a Sidecar's egress; `.` is its own namespace, `~` none. */
export function parseEgressHost(written: string, namespace: string): EgressHost | undefined {
  const slash = written.indexOf('/');
  const [where, host] = slash < 0 ? ['*', written] : [written.slice(0, slash), written.slice(slash + 1)];
  if (where === '~') return undefined;
  return { namespace: where === '.' ? namespace : where, host };
}

/**
 * The part of `all` that the egress hosts of a Sidecar import. A VirtualService is imported when its host is, and what it
 * leads to comes along: otherwise its routes would lead nowhere.
 */
export function importedBy(all: Visibility, id: string, hosts: readonly EgressHost[]): Visibility {
  const from = (namespace: string): EgressHost[] => hosts.filter((entry) => entry.namespace === '*' || entry.namespace === namespace);
  const covers = (namespace: string, host: string): boolean => from(namespace).some((entry) => hostMatches(entry.host, host));
  const services = new Map(all.services.filter((service) => covers(service.namespace, service.host)).map((service) => [service.host, service]));
  const virtualServices = all.virtualServices.filter(({ object: { spec, metadata } }) => {
    const namespace = metadata.namespace ?? 'default';
    return (spec.hosts ?? []).some((host) => covers(namespace, host) || (host.startsWith('*') && from(namespace).some((entry) => hostMatches(host, entry.host))));
  });
  for (const { object } of virtualServices) {
    for (const { host } of destinationsOf(object)) {
      const service = all.service(host);
      if (service) services.set(host, service);
    }
  }
  return new Visibility(id, services.values(), virtualServices);
}
