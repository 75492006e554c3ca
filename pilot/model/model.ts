/**
 * The mesh as the generators see it: every object once, with the indexes that generation needs. Changed only by apply(),
 * in one go, so that a generator always reads a consistent state.
 */
import type { LoadedObject } from '../../common/kube/yaml.js';
import { apiGroup, type AuthorizationPolicy, type DestinationRule, type EndpointSlice, type Gateway, type KubeObject, type Namespace, type Node, type PeerAuthentication, type Pod, type RequestAuthentication, type Secret, type Service, type ServiceEntry, type VirtualService, type WorkloadEntry } from '../../common/kube/types.js';
import { convertGatewayApi, type ConvertedGatewayApi } from '../gateway-api/convert.js';
import { refersToSecret } from '../gateway-api/listeners.js';
import { certificateProblem } from '../generate/secret-generator.js';
import { ChangeSet } from './changes.js';
import { clusterOf, Clusters, inCluster } from './clusters.js';
import { byAge, Configs, selects } from './configs.js';
import { resolveHost, serviceHost } from './hosts.js';
import { jwksSource } from './jwks.js';
import { labelledLocality, NO_LOCALITY, parseLocality } from './locality.js';
import { DEFAULT_MESH_CONFIG, type MeshConfig } from './mesh.js';
import { selectorLabels } from './peer-authentication.js';
import { hasTunnelled, isAlive, podIps, podName, PodsByNode } from './pods.js';
import type { Proxy } from './proxy.js';
import { DestinationRules } from './rules.js';
import type { Scope } from './scope.js';
import { Scopes } from './scopes.js';
import { ServiceEntries, workloadLabels } from './service-entries.js';
import { buildService, uniteServices } from './services.js';
import { identityOf, shapeOf } from './shapes.js';
import { EndpointSlices } from './slices.js';
import type { Endpoint, Locality, MeshService } from './types.js';
import { VirtualServiceResolver } from './virtual-services.js';
import { Waypoints } from './waypoints.js';

export { isAlive, podIps, podName, targetPortOf, TLS_MODE_LABEL } from './pods.js';
export type { Endpoint, Locality, MeshPort, MeshService } from './types.js';

export interface ObjectChange {
  key: string;
  /** Absent: the object is gone. */
  loaded?: LoadedObject;
}


/** Routes of the Gateway API, and what decides whether they count. */
export const GATEWAY_API_KINDS = ['Gateway', 'GatewayClass', 'HTTPRoute', 'GRPCRoute', 'TLSRoute', 'TCPRoute', 'ReferenceGrant'] as const;

/** Kinds that decide what a workload sees; with any of them all views are made anew. */
const VIEW_KINDS: ReadonlySet<string> = new Set(['Service', 'VirtualService', 'DestinationRule', 'Sidecar', ...GATEWAY_API_KINDS]);

const isUsable = (secret: LoadedObject | undefined): boolean => certificateProblem(secret?.object as Secret | undefined) === undefined;

/** What `Model.configs` holds: Istio's and the Gateway API's kinds, and what they refer to. */
function isConfig({ apiVersion, kind }: KubeObject): boolean {
  const group = apiGroup(apiVersion);
  return group.endsWith('.istio.io') || group === 'gateway.networking.k8s.io' || kind === 'Secret' || kind === 'ConfigMap';
}

export class Model {
  #mesh: MeshConfig;
  readonly objects = new Map<string, LoadedObject>();
  /** By host; of a host in several namespaces the first in Istio's order. */
  readonly services = new Map<string, MeshService>();
  readonly configs = new Configs();
  readonly pods = new Map<string, Pod>();
  readonly namespaces = new Map<string, Namespace>();
  readonly nodes = new Map<string, Node>();
  /** Fetched keys by their source; see jwksSource(). */
  readonly #jwks = new Map<string, string>();
  readonly #servicesByHost = new Map<string, MeshService[]>();
  /** By host, then by cluster. */
  readonly #kubeServices = new Map<string, Map<string, Service>>();
  readonly clusters = new Clusters(() => this.mesh, (host) => this.#kubeServices.get(host)?.values() ?? []);
  readonly #slices = new EndpointSlices({
    mesh: () => this.mesh,
    clusters: this.clusters,
    pod: (name) => this.pods.get(name),
    podByIp: (ip, cluster) => this.#podByIp.get(inCluster(cluster, ip)),
    localityOf: (node, zone, cluster, pod) => this.#endpointLocality(node, zone, cluster, pod),
  });
  readonly podsByNode = new PodsByNode();
  readonly #podByIp = new Map<string, Pod>();
  readonly #podsByNamespace = new Map<string, Map<string, Pod>>();
  readonly #servicesByNamespace = new Map<string, Map<string, MeshService>>();
  /** By host, then by the service's key. */
  readonly #endpoints = new Map<string, Map<string, readonly Endpoint[]>>();
  readonly serviceEntries = new ServiceEntries({
    clusters: this.clusters,
    localityOf: (node, zone, cluster, pod) => this.#endpointLocality(node, zone, cluster, pod),
    podsOf: (namespace) => this.#podsByNamespace.get(namespace)?.values() ?? [],
    mesh: () => this.mesh,
  });
  readonly waypoints = new Waypoints({
    configs: this.configs,
    clusterDomain: () => this.mesh.clusterDomain,
    namespaceLabels: (namespace) => this.namespaces.get(namespace)?.metadata.labels ?? {},
    hasService: (host) => this.services.has(host),
  });
  /** Keys of what takes HBONE and no mutual TLS. */
  readonly #tunnelled = new Set<string>();
  #sorted: readonly MeshService[] | undefined;
  /** Addresses that a health check found unhealthy, by host. */
  readonly #health = new Map<string, Map<string, boolean>>();
  #rules: DestinationRules | undefined;
  #usesHashing: boolean | undefined;
  #rulesShapeListeners: boolean | undefined;
  readonly #resolver = new VirtualServiceResolver();
  #virtualServices: readonly LoadedObject<VirtualService>[] | undefined;
  #gatewayApi: ConvertedGatewayApi | undefined;
  #scopes: Scopes | undefined;

  constructor(mesh: Partial<MeshConfig> = {}) {
    this.#mesh = { ...DEFAULT_MESH_CONFIG, ...mesh };
  }

  get mesh(): MeshConfig {
    return this.#mesh;
  }

  /** Takes over other mesh-wide settings; services are built anew, since what they export by default may have changed. */
  setMesh(mesh: MeshConfig): ChangeSet {
    const changed = new ChangeSet();
    this.#mesh = mesh;
    changed.full = true;
    this.#forgetViews();
    this.#endpoints.clear();
    this.clusters.settingsChanged();
    const services = [...this.objects.values()].filter(({ object }) => object.kind === 'Service' || object.kind === 'ServiceEntry');
    return changed.merge(this.apply(services.map((loaded) => ({ key: loaded.key, loaded }))));
  }

  /** Something may have to be reached by HBONE: only then do clients learn how. */
  get hasTunnelled(): boolean {
    return this.#tunnelled.size > 0;
  }

  get jwks(): ReadonlyMap<string, string> {
    return this.#jwks;
  }

  /** Takes over keys that were fetched; undefined forgets them. */
  setJwks(source: string, keys: string | undefined): ChangeSet {
    const changed = new ChangeSet();
    if (this.#jwks.get(source) === keys) return changed;
    replace(this.#jwks, source, keys);
    for (const { object } of this.configs.all<RequestAuthentication>('RequestAuthentication')) {
      const uses = object.spec?.jwtRules?.some((rule) => !rule.jwks && jwksSource(rule) === source);
      if (uses) changed.addConfig(object.kind, object.metadata.namespace ?? '', object.metadata.name);
    }
    return changed;
  }

  apply(changes: readonly ObjectChange[]): ChangeSet {
    const changed = new ChangeSet();
    // Identities as they were, of every host that may change; compared when all is in.
    const before = new Map<string, string>();
    const touch = (host: string): void => {
      if (!before.has(host)) before.set(host, identityOf(this, this.#servicesByHost.get(host) ?? []));
      this.#endpoints.delete(host);
      changed.endpoints.add(host);
    };
    this.waypoints.modelChanged();
    const relabelled = new Set<string>();
    let waypointsTouched = false;
    for (const { key, loaded } of changes) {
      const old = this.objects.get(key);
      if (loaded) this.objects.set(key, loaded);
      else this.objects.delete(key);
      const object = loaded?.object ?? old?.object;
      if (!object) continue;
      if (loaded && hasTunnelled(loaded.object)) this.#tunnelled.add(key);
      else this.#tunnelled.delete(key);
      if (isConfig(object)) {
        this.configs.set(object.kind, key, loaded);
        changed.addConfig(object.kind, object.metadata.namespace ?? '', object.metadata.name);
      }
      if (VIEW_KINDS.has(object.kind)) this.#forgetViews();
      waypointsTouched ||= this.waypoints.concerns(object);
      switch (object.kind) {
        case 'Namespace':
          if (this.clusters.setNamespace(object as Namespace, loaded !== undefined)) {
            this.#endpoints.clear();
            changed.full = true;
          }
          if (clusterOf(object) !== '') break;
          replace(this.namespaces, object.metadata.name, loaded?.object as Namespace | undefined);
          if (JSON.stringify(old?.object.metadata.labels) !== JSON.stringify(loaded?.object.metadata.labels)) relabelled.add(object.metadata.name);
          // Which services are global may be decided by their namespace's labels.
          if (this.mesh.serviceScopes.some(({ namespaceSelector }) => namespaceSelector) && JSON.stringify(old?.object.metadata.labels) !== JSON.stringify(loaded?.object.metadata.labels)) changed.full = true;
          // Listeners may take routes by their namespace's labels.
          if (this.configs.all('Gateway').length > 0) this.#listenersTouched(object, changed);
          break;
        case 'Secret':
          // A listener is served once its certificate is there.
          if (refersToSecret(this.configs, object.metadata.namespace ?? 'default', object.metadata.name) && isUsable(old) !== isUsable(loaded)) this.#listenersTouched(object, changed);
          break;
        case 'Node':
          replace(this.nodes, inCluster(clusterOf(object), object.metadata.name), loaded?.object as Node | undefined);
          for (const pod of this.pods.values()) if (pod.spec.nodeName === object.metadata.name && clusterOf(pod) === clusterOf(object)) this.#podTouched(pod, changed, touch);
          for (const host of this.#slices.hostsAt(clusterOf(object), { node: object.metadata.name })) touch(host);
          break;
        case 'Pod':
          this.#applyPod(old?.object as Pod | undefined, loaded?.object as Pod | undefined, changed, touch);
          break;
        case 'Service':
          this.#applyService(key, old?.object as Service | undefined, loaded?.object as Service | undefined, changed, touch);
          break;
        case 'ServiceEntry':
          this.#applyServiceEntry(key, old?.object as ServiceEntry | undefined, loaded as LoadedObject<ServiceEntry> | undefined, changed, touch);
          break;
        case 'WorkloadEntry':
          this.#applyWorkloadEntry(old?.object as WorkloadEntry | undefined, loaded?.object as WorkloadEntry | undefined, changed, touch);
          break;
        case 'EndpointSlice':
          for (const slice of [old?.object, loaded?.object] as (EndpointSlice | undefined)[]) {
            const host = slice && this.#slices.hostOf(slice);
            if (host) touch(host);
          }
          this.#slices.set(key, old?.object as EndpointSlice | undefined, loaded?.object as EndpointSlice | undefined);
          break;
        case 'Gateway':
          this.#networksTouched(this.clusters.setGateway(key, old?.object, loaded?.object), changed);
          break;
        case 'VirtualService':
          for (const version of [old, loaded]) if (version) for (const host of (version.object as VirtualService).spec.hosts ?? []) changed.routes.add(this.resolve(host, version.object));
          break;
        case 'DestinationRule':
          for (const version of [old, loaded]) if (version) changed.rules.add(this.resolve((version.object as DestinationRule).spec.host, version.object));
          break;
        case 'AuthorizationPolicy':
        case 'PeerAuthentication':
          for (const version of [old?.object, loaded?.object] as (AuthorizationPolicy | PeerAuthentication | undefined)[]) if (version) this.#policyTouched(version, changed);
          break;
        default:
          break;
      }
    }
    const waypoints = waypointsTouched ? this.waypoints.refresh() : new Set<string>();
    if (waypoints.size > 0 || (relabelled.size > 0 && this.waypoints.all.size > 0)) this.#waypointsTouched(waypoints, relabelled, changed);
    for (const [host, identity] of before) {
      if (identityOf(this, this.#servicesByHost.get(host) ?? []) !== identity) changed.identities.add(host);
    }
    return changed;
  }

  /** The full name of a host that `object` names. */
  resolve(host: string, object: KubeObject): string {
    return resolveHost(host, object.metadata.namespace ?? 'default', this.mesh.clusterDomain);
  }

  /** @param cluster where to look; the config cluster's pods come first when it is left out */
  podByIp(ip: string, cluster?: string): Pod | undefined {
    if (cluster !== undefined) return this.#podByIp.get(inCluster(cluster, ip));
    return ['', ...Object.keys(this.mesh.clusters)].flatMap((name) => this.#podByIp.get(inCluster(name, ip)) ?? [])[0];
  }

  /** Every service of every namespace, whoever sees it. */
  allServices(): MeshService[] {
    return [...this.#servicesByHost.values()].flat();
  }

  serviceIn(namespace: string, host: string): MeshService | undefined {
    return this.#servicesByHost.get(host)?.find((service) => service.namespace === namespace);
  }

  /** All services, one a host, in the order of hosts. */
  sortedServices(): readonly MeshService[] {
    return (this.#sorted ??= [...this.services.values()].sort((a, b) => (a.host < b.host ? -1 : 1)));
  }

  /** The services of a namespace that select these labels: whose inbound ports a pod has. */
  servicesSelecting(namespace: string, labels: Readonly<Record<string, string>>): MeshService[] {
    const found: MeshService[] = [];
    for (const service of this.#servicesByNamespace.get(namespace)?.values() ?? []) {
      if (Object.keys(service.selector).length > 0 && selects(service.selector, labels)) found.push(service);
    }
    return found.sort((a, b) => (a.host < b.host ? -1 : 1));
  }

  /** Whether any rule hashes requests: routes then say by what, and differ between clients that obey different rules. */
  get usesHashing(): boolean {
    return (this.#usesHashing ??= this.configs.all<DestinationRule>('DestinationRule').some(({ object }) => JSON.stringify(object.spec).includes('"consistentHash"')));
  }

  /** Whether any rule sets what stands in a client's TCP listeners: these differ then between clients that obey different rules. */
  get rulesShapeListeners(): boolean {
    return (this.#rulesShapeListeners ??= this.configs.all<DestinationRule>('DestinationRule').some(({ object }) => /"(consistentHash|idleTimeout|maxConnectionDuration|tunnel)"/.test(JSON.stringify(object.spec))));
  }

  get rules(): DestinationRules {
    return (this.#rules ??= new DestinationRules(this.configs.all<DestinationRule>('DestinationRule'), this.mesh));
  }

  /** Those with hosts, oldest first: names in full, delegates merged in. */
  get virtualServices(): readonly LoadedObject<VirtualService>[] {
    return (this.#virtualServices ??= this.#resolver.resolve([...this.configs.all<VirtualService>('VirtualService'), ...this.gatewayApi.virtualServices].sort(byAge), this.mesh));
  }

  /** The Gateway API's objects as Istio's. */
  get gatewayApi(): ConvertedGatewayApi {
    return (this.#gatewayApi ??= convertGatewayApi({ configs: this.configs, mesh: this.mesh, service: (host) => this.services.get(host), namespaceLabels: (namespace) => this.namespaces.get(namespace)?.metadata.labels ?? {} }));
  }

  /** Istio's Gateways, with those of the Gateway API, oldest first. */
  get gateways(): readonly LoadedObject<Gateway>[] {
    const written = this.configs.all<Gateway>('Gateway').filter(({ object }) => apiGroup(object.apiVersion) === 'networking.istio.io');
    return [...written, ...this.gatewayApi.gateways].sort(byAge);
  }

  /** What this client sees of the mesh. Clients of one namespace and one Sidecar resource share it. */
  scopeOf(proxy: Proxy): Scope {
    return (this.#scopes ??= new Scopes(this, this.#servicesByHost)).of(proxy);
  }

  #forgetViews(): void {
    this.#scopes = this.#rules = this.#sorted = this.#virtualServices = this.#gatewayApi = undefined;
    this.#usesHashing = this.#rulesShapeListeners = undefined;
  }

  endpoints(service: MeshService): readonly Endpoint[] {
    let ofHost = this.#endpoints.get(service.host);
    if (!ofHost) this.#endpoints.set(service.host, (ofHost = new Map()));
    let endpoints = ofHost.get(service.key);
    if (!endpoints) ofHost.set(service.key, (endpoints = this.#asChecked(service.host, service.object.kind === 'ServiceEntry' ? this.serviceEntries.endpoints(service) : this.#serviceEndpoints(service))));
    return endpoints;
  }

  /** What was found by checking counts beside what Kubernetes says: an endpoint has to be ready and healthy. */
  #asChecked(host: string, endpoints: readonly Endpoint[]): readonly Endpoint[] {
    const verdicts = this.#health.get(host);
    return verdicts ? endpoints.map((endpoint) => (verdicts.get(endpoint.address) === false ? { ...endpoint, ready: false } : endpoint)) : endpoints;
  }

  /** Notes what a health check has found; undefined: nothing is known any more. */
  setHealth(host: string, address: string, isHealthy: boolean | undefined): ChangeSet {
    const changed = new ChangeSet();
    let verdicts = this.#health.get(host);
    // Healthy and unknown are the same for clients.
    if ((verdicts?.get(address) ?? true) !== (isHealthy ?? true)) {
      changed.endpoints.add(host);
      this.#endpoints.delete(host);
    }
    if (isHealthy === false) {
      if (!verdicts) this.#health.set(host, (verdicts = new Map()));
      verdicts.set(address, false);
    } else verdicts?.delete(address);
    if (verdicts?.size === 0) this.#health.delete(host);
    return changed;
  }

  #serviceEndpoints(service: MeshService): Endpoint[] {
    const found = this.#slices.endpoints(service);
    if (Object.keys(service.selector).length > 0) for (const endpoint of this.serviceEntries.selected(service.namespace, service.selector, service.ports)) found.set(endpoint.address, endpoint);
    // A ServiceEntry with the host of a Service in its namespace adds endpoints to it, by the names of ports.
    for (const endpoint of this.serviceEntries.endpoints(service)) if (!found.has(endpoint.address)) found.set(endpoint.address, endpoint);
    return [...found.values()];
  }

  /** Endpoints are where their own label says; WDS, as Istio's, knows nodes alone. */
  #endpointLocality(nodeName: string | undefined, zone: string | undefined, cluster: string, pod: Pod | undefined): Locality {
    const own = labelledLocality(pod?.metadata.labels);
    return own ? parseLocality(own) : this.localityOf(nodeName, zone, cluster);
  }

  localityOf(nodeName: string | undefined, zone?: string, cluster = ''): Locality {
    const labels = (nodeName && this.nodes.get(inCluster(cluster, nodeName))?.metadata.labels) || {};
    const region = labels['topology.kubernetes.io/region'] ?? '';
    const found = { region, zone: labels['topology.kubernetes.io/zone'] ?? zone ?? '', subzone: labels['topology.istio.io/subzone'] ?? '' };
    return found.region || found.zone || found.subzone ? found : NO_LOCALITY;
  }

  #applyPod(old: Pod | undefined, pod: Pod | undefined, changed: ChangeSet, touch: (host: string) => void): void {
    const name = podName((pod ?? old)!);
    const placed = (ip: string): string => inCluster(clusterOf((pod ?? old)!), ip);
    for (const ip of old ? podIps(old) : []) if (this.#podByIp.get(placed(ip)) === old) this.#podByIp.delete(placed(ip));
    const namespace = (pod ?? old)!.metadata.namespace ?? 'default';
    for (const version of [old, pod]) if (version) for (const host of this.serviceEntries.hostsSelecting(namespace, version.metadata.labels ?? {})) touch(host);
    let inNamespace = this.#podsByNamespace.get(namespace);
    if (!inNamespace) this.#podsByNamespace.set(namespace, (inNamespace = new Map()));
    replace(inNamespace, name, pod);
    this.podsByNode.replace(old, pod);
    if (pod) {
      this.pods.set(name, pod);
      // Pods on the host's network share its address: it says nothing about which of them is meant.
      if (isAlive(pod) && !pod.spec.hostNetwork) for (const ip of podIps(pod)) this.#podByIp.set(placed(ip), pod);
    } else {
      this.pods.delete(name);
    }
    this.#podTouched((pod ?? old)!, changed, touch);
  }

  #podTouched(pod: Pod, changed: ChangeSet, touch: (host: string) => void): void {
    const name = podName(pod);
    changed.pods.add(name);
    changed.addresses.add(this.workloadUid(pod));
    for (const host of this.#slices.hostsOfPod(name)) touch(host);
    for (const address of podIps(pod)) for (const host of this.#slices.hostsAt(clusterOf(pod), { address })) touch(host);
  }

  /** WDS workloads name the policies that select them; whether endpoints take mutual TLS is up to PeerAuthentications. */
  #policyTouched(policy: AuthorizationPolicy | PeerAuthentication, changed: ChangeSet): void {
    const namespace = policy.metadata.namespace ?? 'default';
    const everywhere = namespace === this.mesh.rootNamespace;
    const selector = selectorLabels(policy.spec?.selector);
    if (policy.kind === 'AuthorizationPolicy' && !selector) return;
    const pods = everywhere ? this.pods.values() : (this.#podsByNamespace.get(namespace)?.values() ?? []);
    for (const pod of pods) if (selects(selector, pod.metadata.labels ?? {})) changed.addresses.add(this.workloadUid(pod));
    for (const { spec, metadata } of this.serviceEntries.workloads()) {
      const own = metadata.namespace ?? 'default';
      if ((everywhere || own === namespace) && selects(selector, workloadLabels(spec, metadata.labels))) changed.addresses.add(this.entryUid(own, metadata.name));
    }
    for (const { metadata, spec } of this.serviceEntries.workloads()) {
      if ((everywhere || metadata.namespace === namespace) && selects(selector, workloadLabels(spec, metadata.labels))) changed.addresses.add(this.entryUid(metadata.namespace ?? 'default', metadata.name));
    }
    for (const entry of this.serviceEntries.all()) {
      if (!everywhere && entry.metadata.namespace !== namespace) continue;
      for (const name of this.#entryWorkloads(entry)) changed.addresses.add(name);
    }
    if (policy.kind !== 'PeerAuthentication') return;
    const services = everywhere ? [...this.#servicesByHost.values()].flat() : (this.#servicesByNamespace.get(namespace)?.values() ?? []);
    for (const { host, headless } of services) {
      changed.endpoints.add(host);
      // Its cluster is told of no endpoint: the mutual TLS of all stands in the cluster itself.
      if (headless) changed.identities.add(host);
    }
  }

  workloadUid(pod: Pod): string {
    return `${this.clusters.idOf(clusterOf(pod))}//Pod/${pod.metadata.namespace ?? 'default'}/${pod.metadata.name}`;
  }

  #applyService(key: string, old: Service | undefined, service: Service | undefined, changed: ChangeSet, touch: (host: string) => void): void {
    const { name, namespace = 'default' } = (service ?? old)!.metadata;
    const host = serviceHost(name, namespace, this.mesh.clusterDomain);
    let inNamespace = this.#servicesByNamespace.get(namespace);
    if (!inNamespace) this.#servicesByNamespace.set(namespace, (inNamespace = new Map()));
    let versions = this.#kubeServices.get(host);
    if (!versions) this.#kubeServices.set(host, (versions = new Map()));
    replace(versions, clusterOf((service ?? old)!), service);
    if (versions.size === 0) this.#kubeServices.delete(host);
    const sorted = [...versions].sort(([a], [b]) => (a < b ? -1 : 1));
    const built = uniteServices(sorted.flatMap(([cluster, object]) => {
      const one = buildService(host, name, namespace, object, this.mesh);
      return one ? [{ cluster, service: one }] : [];
    }));
    const networks = this.clusters.setService(key, old, service);
    this.#networksTouched(networks, changed);
    this.#placeService(host, `${namespace}/${host}`, built);
    replace(inNamespace, `${namespace}/${host}`, built);
    touch(host);
    changed.services.add(host);
    changed.inboundNamespaces.add(namespace);
    changed.addresses.add(`${namespace}/${host}`);
    // Workloads name the services that they serve.
    for (const version of [old, service]) {
      for (const uid of this.#workloadsSelectedBy(namespace, version?.spec.selector)) changed.addresses.add(uid);
    }
  }

  /** What the Gateway API's listeners refer to is another now. */
  #listenersTouched({ metadata }: KubeObject, changed: ChangeSet): void {
    this.#forgetViews();
    changed.addConfig('Gateway', '', metadata.name);
  }

  /** WDS names the waypoint of each service and workload, which its own labels decide, or its namespace's. */
  #waypointsTouched(waypoints: ReadonlySet<string>, namespaces: ReadonlySet<string>, changed: ChangeSet): void {
    const concerned = (namespace: string, labels: Readonly<Record<string, string>> | undefined): boolean => namespaces.has(namespace) || waypoints.has(this.waypoints.named({ namespace, labels }) ?? '');
    for (const { namespace, host, object } of this.allServices()) if (concerned(namespace, object.metadata.labels)) changed.addresses.add(`${namespace}/${host}`);
    for (const pod of this.pods.values()) if (concerned(pod.metadata.namespace ?? 'default', pod.metadata.labels)) changed.addresses.add(this.workloadUid(pod));
    for (const { spec, metadata } of this.serviceEntries.workloads()) if (concerned(metadata.namespace ?? 'default', workloadLabels(spec, metadata.labels))) changed.addresses.add(this.entryUid(metadata.namespace ?? 'default', metadata.name));
    for (const entry of this.serviceEntries.all()) for (const name of this.#entryWorkloads(entry)) changed.addresses.add(name);
  }

  /** WDS names of a ServiceEntry's inline endpoints. */
  #entryWorkloads(entry: ServiceEntry | undefined): string[] {
    const { namespace = 'default', name } = entry?.metadata ?? { name: '' };
    return this.serviceEntries.workloadNames(entry).map((address) => `${this.mesh.clusterId}/networking.istio.io/ServiceEntry/${namespace}/${name}/${address}`);
  }

  /** Other clients' ways to the workloads of these networks are others now. */
  #networksTouched(networks: readonly string[], changed: ChangeSet): void {
    if (networks.length === 0) return;
    for (const network of networks) changed.networks.add(network);
    for (const service of this.allServices()) if (this.endpoints(service).some(({ network }) => networks.includes(network))) changed.endpoints.add(service.host);
  }

  #applyServiceEntry(key: string, old: ServiceEntry | undefined, loaded: LoadedObject<ServiceEntry> | undefined, changed: ChangeSet, touch: (host: string) => void): void {
    const entry = (loaded?.object ?? old)!;
    const { namespace = 'default', name } = entry.metadata;
    const hosts = new Set([...(old?.spec.hosts ?? []), ...(loaded?.object.spec.hosts ?? [])]);
    const shapes = new Map([...hosts].map((host) => [host, shapeOf(this.serviceEntries.service(namespace, host))]));
    for (const host of hosts) touch(host);
    this.serviceEntries.set(key, old, loaded);
    let inNamespace = this.#servicesByNamespace.get(namespace);
    if (!inNamespace) this.#servicesByNamespace.set(namespace, (inNamespace = new Map()));
    for (const host of hosts) {
      const built = this.serviceEntries.service(namespace, host);
      this.#placeService(host, `entry ${namespace}/${host}`, built);
      replace(inNamespace, `entry ${namespace}/${host}`, built);
      changed.addresses.add(`${namespace}/${host}`);
      // Other endpoints alone leave clusters, listeners and routes as they are.
      if (shapeOf(built) === shapes.get(host)) continue;
      changed.services.add(host);
      changed.inboundNamespaces.add(namespace);
      this.#forgetViews();
    }
    for (const version of [old, loaded?.object]) for (const name of this.#entryWorkloads(version)) changed.addresses.add(name);
    for (const version of [old, loaded?.object]) {
      const selector = version?.spec.workloadSelector;
      if (!selector) continue;
      for (const uid of this.#workloadsSelectedBy(namespace, selector.labels)) changed.addresses.add(uid);
    }
  }

  #applyWorkloadEntry(old: WorkloadEntry | undefined, entry: WorkloadEntry | undefined, changed: ChangeSet, touch: (host: string) => void): void {
    const { namespace = 'default', name } = (entry ?? old)!.metadata;
    for (const version of [old, entry]) {
      if (!version) continue;
      const labels = workloadLabels(version.spec, version.metadata.labels);
      for (const host of this.serviceEntries.hostsSelecting(namespace, labels)) touch(host);
      for (const service of this.servicesSelecting(namespace, labels)) touch(service.host);
    }
    this.serviceEntries.setWorkload(namespace, name, entry);
    changed.addresses.add(this.entryUid(namespace, name));
    // Its own proxy, if it has one, is known by the entry's name.
    changed.pods.add(`${namespace}/${name}`);
  }

  /** The name of a WorkloadEntry in WDS. */
  entryUid(namespace: string, name: string): string {
    return `${this.mesh.clusterId}/networking.istio.io/WorkloadEntry/${namespace}/${name}`;
  }

  /** Of a host in several namespaces Kubernetes' own Service comes first, then the oldest. */
  #placeService(host: string, key: string, service: MeshService | undefined): void {
    const others = (this.#servicesByHost.get(host) ?? []).filter((known) => known.key !== key);
    const all = service ? [...others, service].sort((a, b) => Number(b.object.kind === 'Service') - Number(a.object.kind === 'Service') || (`${a.createdAt}\0${a.key}` < `${b.createdAt}\0${b.key}` ? -1 : 1)) : others;
    if (all.length > 0) this.#servicesByHost.set(host, all);
    else this.#servicesByHost.delete(host);
    replace(this.services, host, all[0]);
  }

  /** WDS names of the pods and WorkloadEntries with these labels. */
  #workloadsSelectedBy(namespace: string, selector: Record<string, string> | undefined): string[] {
    if (Object.keys(selector ?? {}).length === 0) return [];
    const pods = [...(this.#podsByNamespace.get(namespace)?.values() ?? [])].filter(({ metadata }) => selects(selector, metadata.labels ?? {}));
    return [...pods.map((pod) => this.workloadUid(pod)), ...this.serviceEntries.workloadsSelectedBy(namespace, selector).map(({ metadata }) => this.entryUid(namespace, metadata.name))];
  }
}

function replace<K, V>(map: Map<K, V>, key: K, value: V | undefined): void {
  if (value === undefined) map.delete(key);
  else map.set(key, value);
}
