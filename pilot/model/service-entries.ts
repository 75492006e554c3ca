/**
 * ServiceEntries as services of the mesh, and WorkloadEntries as endpoints: of ServiceEntries, which name them inline or
 * select them, and of Services whose selector fits.
 */
import { isIP } from 'node:net';
import type { Pod, ServiceEntry, ServiceEntryPort, WorkloadEntry, WorkloadEntrySpec } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { AddressAllocator } from './addresses.js';
import { clusterOf, type Clusters } from './clusters.js';
import { byAge, selects } from './configs.js';
import { parseExportTo } from './export-to.js';
import type { MeshConfig } from './mesh.js';
import { isAlive, isReady, podIps, podsEndpoint, TLS_MODE_LABEL, NETWORK_LABEL } from './pods.js';
import { protocolOf } from './protocol.js';
import { labelledLocality, parseLocality } from './locality.js';
import type { Endpoint, Locality, MeshPort, MeshService, Resolution } from './types.js';

const AUTO_ALLOCATE_LABEL = 'networking.istio.io/enable-autoallocate-ip';

const RESOLUTIONS: Record<string, Resolution> = { NONE: 'ORIGINAL_DST', STATIC: 'EDS', DNS: 'DNS', DNS_ROUND_ROBIN: 'DNS_ROUND_ROBIN' };

type Labels = Readonly<Record<string, string>>;

/** What of the model it looks at. */
export interface Placed {
  mesh(): MeshConfig;
  clusters: Clusters;
  localityOf(nodeName: string | undefined, zone: string | undefined, cluster: string, pod: Pod | undefined): Locality;
  podsOf(namespace: string): Iterable<Pod>;
}

export class ServiceEntries {
  readonly #byHost = new Map<string, Map<string, LoadedObject<ServiceEntry>>>();
  readonly #selecting = new Map<string, Map<string, LoadedObject<ServiceEntry>>>();
  readonly #byName = new Map<string, ServiceEntry>();
  readonly #workloads = new Map<string, Map<string, WorkloadEntry>>();
  readonly #allocator = new AddressAllocator();

  constructor(readonly placed: Placed) {}

  /** Takes over one version of a ServiceEntry for another. */
  set(key: string, old: ServiceEntry | undefined, loaded: LoadedObject<ServiceEntry> | undefined): void {
    const namespace = (loaded?.object ?? old!).metadata.namespace ?? 'default';
    for (const host of old?.spec.hosts ?? []) this.#byHost.get(`${namespace}/${host}`)?.delete(key);
    this.#selecting.get(namespace)?.delete(key);
    const place = `${namespace}/${(loaded?.object ?? old!).metadata.name}`;
    if (!loaded) {
      this.#byName.delete(place);
      return;
    }
    this.#byName.set(place, loaded.object);
    for (const host of loaded.object.spec.hosts) inner(this.#byHost, `${namespace}/${host}`).set(key, loaded);
    if (loaded.object.spec.workloadSelector) inner(this.#selecting, namespace).set(key, loaded);
  }

  setWorkload(namespace: string, name: string, entry: WorkloadEntry | undefined): void {
    if (entry) inner(this.#workloads, namespace).set(name, entry);
    else this.#workloads.get(namespace)?.delete(name);
  }

  workload(namespace: string, name: string): WorkloadEntry | undefined {
    return this.#workloads.get(namespace)?.get(name);
  }

  *workloads(): Iterable<WorkloadEntry> {
    for (const entries of this.#workloads.values()) yield* entries.values();
  }

  /** The hosts of a namespace's ServiceEntries that select these labels. */
  hostsSelecting(namespace: string, labels: Labels): string[] {
    return [...(this.#selecting.get(namespace)?.values() ?? [])].filter(({ object }) => selects(object.spec.workloadSelector!.labels, labels)).flatMap(({ object }) => object.spec.hosts);
  }

  workloadsSelectedBy(namespace: string, selector: Labels | undefined): WorkloadEntry[] {
    return [...(this.#workloads.get(namespace)?.values() ?? [])].filter(({ spec, metadata }) => spec.address !== undefined && selects(selector, workloadLabels(spec, metadata.labels)));
  }

  all(): ServiceEntry[] {
    return [...this.#byName.values()];
  }

  named(namespace: string, name: string): ServiceEntry | undefined {
    return this.#byName.get(`${namespace}/${name}`);
  }

  entriesOf(namespace: string, host: string): ServiceEntry[] {
    return [...(this.#byHost.get(`${namespace}/${host}`)?.values() ?? [])].sort(byAge).map(({ object }) => object);
  }

  /** The host of a namespace; several entries that have it add up, the oldest decides what only one can. */
  service(namespace: string, host: string): MeshService | undefined {
    const mesh = this.placed.mesh();
    const entries = this.entriesOf(namespace, host);
    const first = entries[0];
    const place = `${namespace}/${host}`;
    if (!first) {
      this.#allocator.release(place);
      return undefined;
    }
    const ports = new Map<number, MeshPort>();
    for (const port of entries.flatMap(({ spec }) => spec.ports ?? [])) if (!ports.has(port.number)) ports.set(port.number, meshPort(port));
    const addresses = [...new Set(entries.flatMap(({ spec }) => spec.addresses ?? []).map(withoutHostPrefix))];
    const { spec, metadata } = first;
    const resolution = RESOLUTIONS[spec.resolution ?? 'NONE'] ?? 'ORIGINAL_DST';
    return {
      key: `entry ${place}`,
      host,
      name: host,
      namespace,
      addresses: addresses.filter((address) => isIP(address) !== 0),
      cidrs: addresses.filter((address) => address.includes('/')),
      autoAddresses: addresses.length === 0 ? this.#autoAddresses(first, host, resolution) : [],
      headless: false,
      resolution,
      external: spec.location !== 'MESH_INTERNAL',
      ports: [...ports.values()].filter(({ protocol }) => protocol !== 'UDP'),
      udpPorts: [...ports.values()].filter(({ protocol }) => protocol === 'UDP'),
      selector: spec.workloadSelector?.labels ?? {},
      subjectAltNames: [...new Set(entries.flatMap((entry) => entry.spec.subjectAltNames ?? []))],
      trafficDistribution: metadata.annotations?.['networking.istio.io/traffic-distribution'] ?? '',
      exportTo: parseExportTo(spec.exportTo, namespace, mesh.defaultServiceExportTo),
      createdAt: metadata.creationTimestamp ?? '',
      object: first,
    };
  }

  /** Istio's own controller writes them into the status; without it they are drawn here. */
  #autoAddresses({ metadata, status }: ServiceEntry, host: string, resolution: Resolution): readonly string[] {
    const given = (status?.addresses ?? []).filter((address) => address.host === undefined || address.host === host).map(({ value }) => value);
    if (given.length > 0) return given;
    if (host.startsWith('*') || resolution === 'ORIGINAL_DST' || metadata.labels?.[AUTO_ALLOCATE_LABEL] === 'false') return [];
    return this.#allocator.allocate(`${metadata.namespace ?? 'default'}/${host}`);
  }

  endpoints(service: MeshService): Endpoint[] {
    const { namespace, host } = service;
    const found: Endpoint[] = [];
    for (const entry of this.entriesOf(namespace, host)) {
      const { spec, metadata } = entry;
      const ports = (spec.ports ?? []).map(meshPort);
      if (spec.workloadSelector) {
        found.push(...this.selected(namespace, spec.workloadSelector.labels, ports));
        for (const pod of this.placed.podsOf(namespace)) {
          const usable = isAlive(pod) && isReady(pod) && podIps(pod).length > 0;
          if (usable && selects(spec.workloadSelector.labels, pod.metadata.labels ?? {})) found.push(this.#ofPod(pod, ports));
        }
        continue;
      }
      const inline = spec.endpoints ?? [];
      for (const endpoint of inline) found.push(this.endpointOf(endpoint, namespace, metadata.name, ports));
      // The host itself is what is resolved where nothing else is named.
      if (inline.length === 0 && service.resolution.startsWith('DNS') && !host.startsWith('*')) found.push(this.endpointOf({ address: host }, namespace, metadata.name, ports));
    }
    return found;
  }

  /** WorkloadEntries of the namespace with these labels. */
  selected(namespace: string, selector: Labels | undefined, ports: readonly MeshPort[]): Endpoint[] {
    return this.workloadsSelectedBy(namespace, selector)
      .sort((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1))
      .map(({ spec, metadata }) => this.endpointOf({ ...spec, labels: workloadLabels(spec, metadata.labels) }, namespace, metadata.name, ports));
  }

  endpointOf(spec: WorkloadEntrySpec, namespace: string, workloadName: string, ports: readonly MeshPort[]): Endpoint {
    const { clusters } = this.placed;
    const labels = spec.labels ?? {};
    return {
      address: spec.address ?? '',
      ports: new Map(ports.map((port) => [port.name, entryPort(spec, port)])),
      ready: undefined,
      locality: parseLocality(spec.locality ?? labelledLocality(labels) ?? ''),
      pod: undefined,
      workloadName,
      labels,
      namespace,
      serviceAccount: spec.serviceAccount,
      // A workload with an identity has a sidecar unless it says otherwise.
      tlsMode: labels[TLS_MODE_LABEL] ?? (spec.serviceAccount ? 'istio' : undefined),
      weight: spec.weight || 1,
      network: spec.network ?? labels[NETWORK_LABEL] ?? clusters.networkOf('', spec.address),
      cluster: clusters.idOf(''),
    };
  }

  /** The last parts of the WDS names of a ServiceEntry's inline endpoints, or of what its hosts resolve to. */
  workloadNames(entry: ServiceEntry | undefined): string[] {
    if (!entry || entry.spec.workloadSelector) return [];
    if (entry.spec.endpoints?.length) return entry.spec.endpoints.map(({ address = '' }) => address);
    return entry.spec.resolution?.startsWith('DNS') ? entry.spec.hosts.filter((host) => !host.startsWith('*')) : [];
  }

  #ofPod(pod: Pod, ports: readonly MeshPort[]): Endpoint {
    const numbers = new Map(ports.map((port) => [port.name, typeof port.targetPort === 'number' ? port.targetPort : port.port]));
    return { ...podsEndpoint(pod, this.placed.clusters), address: podIps(pod)[0]!, ports: numbers, ready: true, locality: this.placed.localityOf(pod.spec.nodeName, undefined, clusterOf(pod), pod) };
  }
}

/** A WorkloadEntry's labels are those of its spec and of its metadata, the spec's first. */
export function workloadLabels(spec: WorkloadEntrySpec, labels: Labels | undefined): Labels {
  return labels ? { ...labels, ...spec.labels } : (spec.labels ?? {});
}

/** By the name of the service's port, else of its target port, else the target port's number. */
function entryPort({ ports = {} }: WorkloadEntrySpec, port: MeshPort): number {
  const { targetPort } = port;
  return ports[port.name] ?? (typeof targetPort === 'number' ? targetPort : (ports[targetPort] ?? port.port));
}

function meshPort({ number, name, protocol = '', targetPort }: ServiceEntryPort): MeshPort {
  return { name, port: number, targetPort: targetPort || number, protocol: protocolOf(protocol) ?? 'auto' };
}

/** A block of one address is that address. */
function withoutHostPrefix(address: string): string {
  return address.replace(/^(.*\..*)\/32$/, '$1').replace(/^(.*:.*)\/128$/, '$1');
}

function inner<V>(map: Map<string, Map<string, V>>, key: string): Map<string, V> {
  let found = map.get(key);
  if (!found) map.set(key, (found = new Map()));
  return found;
}

