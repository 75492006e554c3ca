/**
 * The mesh as the generators see it: every object once, with the indexes that generation needs. Changed only by apply(),
 * in one go, so that a generator always reads a consistent state.
 */
import type { LoadedObject } from '../../common/kube/yaml.js';
import type { DestinationRule, EndpointSlice, KubeObject, Namespace, Node, Pod, Service, ServicePort, VirtualService } from '../../common/kube/types.js';
import { ChangeSet } from './changes.js';
import { HostIndex, resolveHost, serviceHost } from './hosts.js';
import { DEFAULT_MESH_CONFIG, type MeshConfig } from './mesh.js';
import { selectProtocol, type Protocol } from './protocol.js';

export interface MeshPort {
  name: string;
  port: number;
  targetPort: number | string;
  protocol: Protocol;
}

export interface MeshService {
  host: string;
  name: string;
  namespace: string;
  /** Without `None`; empty for a headless service. */
  addresses: readonly string[];
  headless: boolean;
  /** TCP ports only. */
  ports: readonly MeshPort[];
  udpPorts: readonly MeshPort[];
  selector: Readonly<Record<string, string>>;
  object: Service;
}

export interface Locality {
  region: string;
  zone: string;
  subzone: string;
}

export interface Endpoint {
  address: string;
  /** By the Service's port name. */
  ports: ReadonlyMap<string, number>;
  ready: boolean;
  locality: Locality;
  pod: Pod | undefined;
  labels: Readonly<Record<string, string>>;
  serviceAccount: string | undefined;
  /** `istio` when the workload has a sidecar that takes mutual TLS. */
  tlsMode: string | undefined;
}

export interface ObjectChange {
  key: string;
  /** Absent: the object is gone. */
  loaded?: LoadedObject;
}

export const TLS_MODE_LABEL = 'security.istio.io/tlsMode';
const SERVICE_NAME_LABEL = 'kubernetes.io/service-name';
const NO_LOCALITY: Locality = { region: '', zone: '', subzone: '' };

export class Model {
  readonly mesh: MeshConfig;
  readonly objects = new Map<string, LoadedObject>();
  readonly services = new Map<string, MeshService>();
  readonly pods = new Map<string, Pod>();
  readonly namespaces = new Map<string, Namespace>();
  readonly nodes = new Map<string, Node>();
  readonly #slices = new Map<string, Map<string, EndpointSlice>>();
  readonly #podByIp = new Map<string, Pod>();
  readonly #podsByNamespace = new Map<string, Map<string, Pod>>();
  /** Hosts whose endpoints point to a pod, by the pod. */
  readonly #hostsByPod = new Map<string, Set<string>>();
  readonly #servicesByNamespace = new Map<string, Map<string, MeshService>>();
  readonly #endpoints = new Map<string, readonly Endpoint[]>();
  #virtualServices: LoadedObject<VirtualService>[] = [];
  #sourceLabelKeys: readonly string[] = [];
  #sourceNamespaceMatters = false;
  readonly #virtualServicesByHost = new HostIndex<LoadedObject<VirtualService>>();
  readonly #rulesByHost = new HostIndex<LoadedObject<DestinationRule>>();

  constructor(mesh: Partial<MeshConfig> = {}) {
    this.mesh = { ...DEFAULT_MESH_CONFIG, ...mesh };
  }

  apply(changes: readonly ObjectChange[]): ChangeSet {
    const changed = new ChangeSet();
    let networking = false;
    // Identities as they were, of every host that may change; compared when all is in.
    const before = new Map<string, string>();
    const touch = (host: string): void => {
      if (!before.has(host)) before.set(host, this.#identityOf(host));
      this.#endpoints.delete(host);
      changed.endpoints.add(host);
    };
    for (const { key, loaded } of changes) {
      const old = this.objects.get(key);
      if (loaded) this.objects.set(key, loaded);
      else this.objects.delete(key);
      const object = loaded?.object ?? old?.object;
      if (!object) continue;
      switch (object.kind) {
        case 'Namespace':
          replace(this.namespaces, object.metadata.name, loaded?.object as Namespace | undefined);
          break;
        case 'Node':
          replace(this.nodes, object.metadata.name, loaded?.object as Node | undefined);
          for (const pod of this.pods.values()) if (pod.spec.nodeName === object.metadata.name) this.#podTouched(pod, changed, touch);
          break;
        case 'Pod':
          this.#applyPod(old?.object as Pod | undefined, loaded?.object as Pod | undefined, changed, touch);
          break;
        case 'Service':
          this.#applyService(old?.object as Service | undefined, loaded?.object as Service | undefined, changed, touch);
          break;
        case 'EndpointSlice':
          for (const slice of [old?.object, loaded?.object] as (EndpointSlice | undefined)[]) {
            const host = slice && this.#hostOfSlice(slice);
            if (host) touch(host);
          }
          this.#applySlice(key, old?.object as EndpointSlice | undefined, loaded?.object as EndpointSlice | undefined);
          break;
        case 'VirtualService':
          networking = true;
          for (const version of [old, loaded]) if (version) for (const host of (version.object as VirtualService).spec.hosts) changed.routes.add(this.resolve(host, version.object));
          break;
        case 'DestinationRule':
          networking = true;
          for (const version of [old, loaded]) if (version) changed.rules.add(this.resolve((version.object as DestinationRule).spec.host, version.object));
          break;
        default:
          break;
      }
    }
    if (networking) this.#indexNetworking();
    for (const [host, identity] of before) {
      if (this.#identityOf(host) !== identity) changed.identities.add(host);
    }
    return changed;
  }

  /** The full name of a host that `object` names. */
  resolve(host: string, object: KubeObject): string {
    return resolveHost(host, object.metadata.namespace ?? 'default', this.mesh.clusterDomain);
  }

  podByIp(ip: string): Pod | undefined {
    return this.#podByIp.get(ip);
  }

  /** All services, by host. */
  sortedServices(): MeshService[] {
    return [...this.services.values()].sort((a, b) => (a.host < b.host ? -1 : 1));
  }

  /** The services of a namespace that select these labels: whose inbound ports a pod has. */
  servicesSelecting(namespace: string, labels: Readonly<Record<string, string>>): MeshService[] {
    const found: MeshService[] = [];
    for (const service of this.#servicesByNamespace.get(namespace)?.values() ?? []) {
      const wanted = Object.entries(service.selector);
      if (wanted.length > 0 && wanted.every(([key, value]) => labels[key] === value)) found.push(service);
    }
    return found.sort((a, b) => (a.host < b.host ? -1 : 1));
  }

  /** VirtualServices whose hosts cover `host`, most specific host first, then the oldest. */
  virtualServicesFor(host: string): LoadedObject<VirtualService>[] {
    return this.#virtualServicesByHost.matching(host).flat();
  }

  /** Labels of clients that some VirtualService asks for: by these clients may get different routes. */
  sourceLabelKeys(): readonly string[] {
    return this.#sourceLabelKeys;
  }

  /** Whether some VirtualService asks for the client's namespace. */
  sourceNamespaceMatters(): boolean {
    return this.#sourceNamespaceMatters;
  }

  /** All VirtualServices in the order of their precedence: the oldest first. */
  virtualServices(): readonly LoadedObject<VirtualService>[] {
    return this.#virtualServices;
  }

  /**
   * The DestinationRule that applies to `host` for clients in `clientNamespace`: the client's own namespace's, then the
   * service's, then the root's; of several the oldest. (Istio merges several rules of one host; that is not done here.)
   */
  destinationRuleFor(host: string, clientNamespace: string): LoadedObject<DestinationRule> | undefined {
    const candidates = this.#rulesByHost.matching(host);
    if (candidates.length === 0) return undefined;
    for (const namespace of new Set([clientNamespace, this.services.get(host)?.namespace, 'istio-system'])) {
      for (const rules of candidates) {
        const rule = rules.find(({ object }) => object.metadata.namespace === namespace);
        if (rule) return rule;
      }
    }
    // Rules are visible everywhere by default; one in a third namespace applies when nobody nearer has one.
    return candidates[0]![0];
  }

  endpoints(host: string): readonly Endpoint[] {
    let endpoints = this.#endpoints.get(host);
    if (!endpoints) {
      endpoints = this.#buildEndpoints(host);
      this.#endpoints.set(host, endpoints);
    }
    return endpoints;
  }

  localityOf(nodeName: string | undefined, zone?: string): Locality {
    const labels = (nodeName && this.nodes.get(nodeName)?.metadata.labels) || {};
    const region = labels['topology.kubernetes.io/region'] ?? '';
    const found = { region, zone: labels['topology.kubernetes.io/zone'] ?? zone ?? '', subzone: labels['topology.istio.io/subzone'] ?? '' };
    return found.region || found.zone || found.subzone ? found : NO_LOCALITY;
  }

  #applyPod(old: Pod | undefined, pod: Pod | undefined, changed: ChangeSet, touch: (host: string) => void): void {
    const name = podName((pod ?? old)!);
    for (const ip of old ? podIps(old) : []) if (this.#podByIp.get(ip) === old) this.#podByIp.delete(ip);
    const namespace = (pod ?? old)!.metadata.namespace ?? 'default';
    let inNamespace = this.#podsByNamespace.get(namespace);
    if (!inNamespace) this.#podsByNamespace.set(namespace, (inNamespace = new Map()));
    replace(inNamespace, name, pod);
    if (pod) {
      this.pods.set(name, pod);
      // Pods on the host's network share its address: it says nothing about which of them is meant.
      if (isAlive(pod) && !pod.spec.hostNetwork) for (const ip of podIps(pod)) this.#podByIp.set(ip, pod);
    } else {
      this.pods.delete(name);
    }
    this.#podTouched((pod ?? old)!, changed, touch);
  }

  #podTouched(pod: Pod, changed: ChangeSet, touch: (host: string) => void): void {
    const name = podName(pod);
    changed.pods.add(name);
    changed.addresses.add(this.workloadUid(pod));
    for (const host of this.#hostsByPod.get(name) ?? []) touch(host);
  }

  workloadUid(pod: Pod): string {
    return `${this.mesh.clusterId}//Pod/${podName(pod)}`;
  }

  #applyService(old: Service | undefined, service: Service | undefined, changed: ChangeSet, touch: (host: string) => void): void {
    const { name, namespace = 'default' } = (service ?? old)!.metadata;
    const host = serviceHost(name, namespace, this.mesh.clusterDomain);
    let inNamespace = this.#servicesByNamespace.get(namespace);
    if (!inNamespace) this.#servicesByNamespace.set(namespace, (inNamespace = new Map()));
    const built = service && buildService(host, name, namespace, service);
    replace(this.services, host, built);
    replace(inNamespace, host, built);
    touch(host);
    changed.services.add(host);
    changed.inboundNamespaces.add(namespace);
    changed.addresses.add(`${namespace}/${host}`);
    // Workloads name the services that they serve.
    for (const version of [old, service]) {
      for (const pod of version ? this.#podsSelectedBy(namespace, version.spec.selector) : []) changed.addresses.add(this.workloadUid(pod));
    }
  }

  #podsSelectedBy(namespace: string, selector: Record<string, string> | undefined): Pod[] {
    const wanted = Object.entries(selector ?? {});
    if (wanted.length === 0) return [];
    return [...(this.#podsByNamespace.get(namespace)?.values() ?? [])].filter(({ metadata }) => wanted.every(([key, value]) => metadata.labels?.[key] === value));
  }

  #hostOfSlice(slice: EndpointSlice): string | undefined {
    const service = slice.metadata.labels?.[SERVICE_NAME_LABEL];
    return service && serviceHost(service, slice.metadata.namespace ?? 'default', this.mesh.clusterDomain);
  }

  #applySlice(key: string, old: EndpointSlice | undefined, slice: EndpointSlice | undefined): void {
    const oldHost = old && this.#hostOfSlice(old);
    if (oldHost) this.#slices.get(oldHost)?.delete(key);
    const host = slice && this.#hostOfSlice(slice);
    if (!host) return;
    let slices = this.#slices.get(host);
    if (!slices) this.#slices.set(host, (slices = new Map()));
    slices.set(key, slice);
    for (const { targetRef } of slice.endpoints ?? []) {
      if (targetRef?.kind !== 'Pod' || !targetRef.name) continue;
      const pod = `${targetRef.namespace ?? slice.metadata.namespace}/${targetRef.name}`;
      let hosts = this.#hostsByPod.get(pod);
      if (!hosts) this.#hostsByPod.set(pod, (hosts = new Set()));
      hosts.add(host);
    }
  }

  #buildEndpoints(host: string): Endpoint[] {
    const service = this.services.get(host);
    if (!service) return [];
    const found = new Map<string, Endpoint>();
    const notReadyCounts = service.object.spec.publishNotReadyAddresses === true;
    for (const [, slice] of [...(this.#slices.get(host) ?? [])].sort(([a], [b]) => (a < b ? -1 : 1))) {
      if (slice.addressType === 'FQDN') continue;
      const ports = new Map<string, number>();
      for (const { name, port } of slice.ports ?? []) if (port !== undefined) ports.set(name ?? '', port);
      for (const { addresses, conditions, nodeName, zone, targetRef } of slice.endpoints ?? []) {
        // Terminating endpoints get no new connections, unless they are all that is left; Istio drops them.
        if (conditions?.terminating) continue;
        const pod = targetRef?.kind === 'Pod' && targetRef.name ? this.pods.get(`${targetRef.namespace ?? slice.metadata.namespace}/${targetRef.name}`) : this.#podByIp.get(addresses[0]!);
        const labels = pod?.metadata.labels ?? {};
        for (const address of addresses.slice(0, 1)) {
          found.set(address, {
            address,
            ports,
            ready: notReadyCounts || conditions?.ready !== false,
            locality: this.localityOf(nodeName ?? pod?.spec.nodeName, zone),
            pod,
            labels,
            serviceAccount: pod && (pod.spec.serviceAccountName || 'default'),
            tlsMode: labels[TLS_MODE_LABEL],
          });
        }
      }
    }
    return [...found.values()];
  }

  /** What a client's cluster for `host` depends on besides the Service. */
  #identityOf(host: string): string {
    const service = this.services.get(host);
    const endpoints = this.endpoints(host);
    const accounts = [...new Set(endpoints.map(({ serviceAccount }) => serviceAccount ?? ''))].sort();
    // A headless service's cluster and listeners know its endpoints one by one.
    const headless = service?.headless ? [endpoints.every(({ tlsMode }) => tlsMode === 'istio'), ...endpoints.map(({ address }) => address).sort()] : [];
    return JSON.stringify([accounts, headless]);
  }

  #indexNetworking(): void {
    const all = [...this.objects.values()];
    this.#virtualServices = (all.filter(({ object }) => object.kind === 'VirtualService') as LoadedObject<VirtualService>[]).sort(byAge);
    this.#virtualServicesByHost.clear();
    const keys = new Set<string>();
    this.#sourceNamespaceMatters = false;
    for (const loaded of this.#virtualServices) {
      const { hosts, http = [], tcp = [] } = loaded.object.spec;
      for (const host of hosts) this.#virtualServicesByHost.add(this.resolve(host, loaded.object), loaded);
      for (const match of [...http, ...tcp].flatMap((route) => route.match ?? [])) {
        for (const key of Object.keys(match.sourceLabels ?? {})) keys.add(key);
        this.#sourceNamespaceMatters ||= Boolean(match.sourceNamespace);
      }
    }
    this.#sourceLabelKeys = [...keys].sort();
    this.#rulesByHost.clear();
    for (const loaded of (all.filter(({ object }) => object.kind === 'DestinationRule') as LoadedObject<DestinationRule>[]).sort(byAge)) {
      this.#rulesByHost.add(this.resolve(loaded.object.spec.host, loaded.object), loaded);
    }
  }
}

export function podName(pod: Pod): string {
  return `${pod.metadata.namespace ?? 'default'}/${pod.metadata.name}`;
}

/** IPv4 first, as the pod's status has them. */
export function podIps(pod: Pod): string[] {
  const ips = (pod.status?.podIPs ?? []).map(({ ip }) => ip);
  return ips.length > 0 ? ips : pod.status?.podIP ? [pod.status.podIP] : [];
}

/** A pod that has come to its end keeps its address in its status while another may have got it. */
export function isAlive(pod: Pod): boolean {
  return pod.status?.phase !== 'Succeeded' && pod.status?.phase !== 'Failed';
}

/** The port number that a service's port leads to in a pod; undefined when the pod has no port of that name. */
export function targetPortOf(port: MeshPort, pod: Pod | undefined): number | undefined {
  if (typeof port.targetPort === 'number') return port.targetPort;
  for (const container of [...(pod?.spec.containers ?? []), ...(pod?.spec.initContainers ?? [])]) {
    const named = container.ports?.find(({ name }) => name === port.targetPort);
    if (named) return named.containerPort;
  }
  return undefined;
}

function buildService(host: string, name: string, namespace: string, object: Service): MeshService | undefined {
  // An ExternalName is an alias of another host: nothing of its own to route to.
  if (object.spec.type === 'ExternalName') return undefined;
  const given = object.spec.clusterIPs ?? (object.spec.clusterIP ? [object.spec.clusterIP] : []);
  const addresses = given.filter((ip) => ip !== 'None' && ip !== '');
  const ports = (object.spec.ports ?? []).map((port: ServicePort): MeshPort => ({ name: port.name ?? '', port: port.port, targetPort: port.targetPort ?? port.port, protocol: selectProtocol(port) }));
  return {
    host,
    name,
    namespace,
    addresses,
    // A Service that has no address yet is not headless: it has endpoints to balance between.
    headless: object.spec.clusterIP === 'None' || given.includes('None'),
    ports: ports.filter(({ protocol }) => protocol !== 'UDP'),
    udpPorts: ports.filter(({ protocol }) => protocol === 'UDP'),
    selector: object.spec.selector ?? {},
    object,
  };
}

function byAge(a: LoadedObject, b: LoadedObject): number {
  const [x, y] = [a, b].map(({ object: { metadata } }) => `${metadata.creationTimestamp ?? ''}\0${metadata.name}\0${metadata.namespace ?? ''}`);
  return x! < y! ? -1 : x! > y! ? 1 : 0;
}

function replace<K, V>(map: Map<K, V>, key: K, value: V | undefined): void {
  if (value === undefined) map.delete(key);
  else map.set(key, value);
}
