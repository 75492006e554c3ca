/**
 * Several clusters in one mesh: which of them an object is from, on which network a workload is, and by which gateways a
 * network is entered from others. The config cluster, whose objects are named as if it were alone, is the empty string here.
 */
import { BlockList, isIP } from 'node:net';
import { HBONE_PORT } from '../../common/istio-iptables.js';
import type { KubeGateway, KubeObject, Namespace, Service } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { hostMatches } from './hosts.js';
import type { MeshConfig } from './mesh.js';
import { NETWORK_LABEL } from './pods.js';

/** What of a cluster besides the config cluster takes part; Istio's own configuration counts from the config cluster alone. */
export const CLUSTER_KINDS: ReadonlySet<string> = new Set(['Pod', 'Service', 'EndpointSlice', 'Node', 'Namespace', 'ServiceAccount']);

const GATEWAY_PORT = 15_443;
const GATEWAY_PORT_LABEL = 'networking.istio.io/gatewayPort';
/** A Gateway of this class describes one that runs where nothing is read. */
const REMOTE_CLASS = 'istio-remote';

export interface NetworkGateway {
  network: string;
  /** The cluster whose Service it is; undefined for one that is written in meshNetworks. */
  cluster: string | undefined;
  /** A host name is of use to those alone that are told of gateways by WDS. */
  address: string;
  /** Where the workloads' mutual TLS is told by its SNI. */
  port: number | undefined;
  /** Where HBONE is taken. */
  hbonePort: number | undefined;
  /** The Service or Gateway that says so; undefined for meshNetworks. */
  source: KubeObject | undefined;
}

/** The ports at which it is entered, as Istio has it: a gateway may have but one of them. */
type GatewayPorts = Pick<NetworkGateway, 'port' | 'hbonePort'>;

interface Gateways {
  byNetwork: ReadonlyMap<string, readonly NetworkGateway[]>;
  areForSni: boolean;
  forHbone: readonly NetworkGateway[];
}

/** Empty: the config cluster. */
export function clusterOf({ metadata }: KubeObject): string {
  return metadata.clusterName ?? '';
}

/** A name that is unique in one cluster, made so in the mesh. */
export function inCluster(cluster: string, name: string): string {
  return cluster === '' ? name : `@${cluster}/${name}`;
}

/** The same object as one of another cluster than the config cluster. */
export function placedIn(cluster: string, loaded: LoadedObject): LoadedObject {
  const { object } = loaded;
  return { ...loaded, key: inCluster(cluster, loaded.key), object: { ...object, metadata: { ...object.metadata, clusterName: cluster } } };
}

export class Clusters {
  /** What the label of each cluster's root namespace says. */
  readonly #labelled = new Map<string, string>();
  readonly #services = new Map<string, Service>();
  readonly #remotes = new Map<string, KubeGateway>();
  #gateways: Gateways | undefined;
  #blocks: { network: string; list: BlockList }[] | undefined;

  /** @param serviceOf for gateways that are named as a host of the mesh */
  constructor(readonly mesh: () => MeshConfig, readonly serviceOf: (host: string) => Iterable<Service>) {}

  /** There are others than the config cluster. */
  get several(): boolean {
    return Object.keys(this.mesh().clusters).length > 0;
  }

  /** The cluster that a client says it is of; one that no source has counts as the config cluster. */
  named(id: unknown): string {
    return typeof id === 'string' && id !== this.mesh().clusterId && Object.hasOwn(this.mesh().clusters, id) ? id : '';
  }

  /** As clients and telemetry know it. */
  idOf(cluster: string): string {
    return cluster === '' ? this.mesh().clusterId : cluster;
  }

  /** What was given with the source, else the label of its root namespace, else meshNetworks' word, by registry or by address. */
  networkOf(cluster: string, address?: string): string {
    const mesh = this.mesh();
    const own = (cluster === '' ? mesh.network : mesh.clusters[cluster]?.network) || this.#labelled.get(cluster);
    if (own) return own;
    const id = this.idOf(cluster);
    for (const [network, { endpoints = [] }] of Object.entries(mesh.networks)) if (endpoints.some(({ fromRegistry }) => fromRegistry === id)) return network;
    if (address === undefined || isIP(address) === 0) return '';
    return this.#cidrs().find(({ list }) => list.check(address, isIP(address) === 6 ? 'ipv6' : 'ipv4'))?.network ?? '';
  }

  #cidrs(): { network: string; list: BlockList }[] {
    if (this.#blocks) return this.#blocks;
    const found = Object.entries(this.mesh().networks).map(([network, { endpoints = [] }]) => {
      const list = new BlockList();
      for (const { fromCidr } of endpoints) {
        const [base = '', prefix = ''] = (fromCidr ?? '').split('/');
        if (isIP(base) !== 0 && prefix !== '') list.addSubnet(base, Number(prefix), isIP(base) === 6 ? 'ipv6' : 'ipv4');
      }
      return { network, list };
    });
    return (this.#blocks = found);
  }

  /** @returns whether the network of a whole cluster is another now */
  setNamespace(namespace: Namespace, isThere: boolean): boolean {
    if (namespace.metadata.name !== this.mesh().rootNamespace) return false;
    const cluster = clusterOf(namespace);
    const network = isThere ? namespace.metadata.labels?.[NETWORK_LABEL] : undefined;
    if (this.#labelled.get(cluster) === network) return false;
    if (network === undefined) this.#labelled.delete(cluster);
    else this.#labelled.set(cluster, network);
    return true;
  }

  /** @returns the networks whose gateways may be others now */
  setService(key: string, old: Service | undefined, service: Service | undefined): string[] {
    const networks = [old, service].flatMap((version) => version?.metadata.labels?.[NETWORK_LABEL] ?? []);
    if (service?.metadata.labels?.[NETWORK_LABEL]) this.#services.set(key, service);
    else this.#services.delete(key);
    const named = Object.values(this.mesh().networks).some(({ gateways = [] }) => gateways.some(({ registryServiceName }) => registryServiceName));
    if (networks.length > 0 || named) this.#gateways = undefined;
    if (networks.length > 0 && JSON.stringify([old?.metadata.labels, old?.spec, old?.status]) === JSON.stringify([service?.metadata.labels, service?.spec, service?.status])) return [];
    return networks;
  }

  /** @returns the networks whose gateways may be others now */
  setGateway(key: string, old: KubeObject | undefined, gateway: KubeObject | undefined): string[] {
    const [before, after] = [old, gateway].map((version) => (version && isRemoteGateway(version) ? version : undefined));
    if (after) this.#remotes.set(key, after);
    else this.#remotes.delete(key);
    if (before || after) this.#gateways = undefined;
    return [before, after].flatMap((version) => version?.metadata.labels?.[NETWORK_LABEL] ?? []);
  }

  settingsChanged(): void {
    this.#gateways = this.#blocks = undefined;
  }

  /** Some network has a gateway for mutual TLS: only then are workloads of other networks reached in another way, as in Istio. */
  get severalNetworks(): boolean {
    return this.#all().areForSni;
  }

  /** Of those that take mutual TLS the ones of the cluster that the workload is of, else all that its network has. */
  gateways(network: string, cluster: string): readonly NetworkGateway[] {
    const all = (this.#all().byNetwork.get(network) ?? []).filter(takesSni);
    const own = all.filter((gateway) => gateway.cluster === cluster);
    return own.length > 0 ? own : all;
  }

  /** The gateways that take HBONE, one a network: Istio's clients know no more either. */
  hboneGateways(): readonly NetworkGateway[] {
    return this.#all().forHbone;
  }

  #all(): Gateways {
    if (this.#gateways) return this.#gateways;
    const found = new Map<string, NetworkGateway[]>();
    const add = (gateway: NetworkGateway): void => {
      const list = found.get(gateway.network) ?? [];
      found.set(gateway.network, list);
      if (!list.some(({ address, port, hbonePort }) => address === gateway.address && port === gateway.port && hbonePort === gateway.hbonePort)) list.push(gateway);
    };
    const ofService = (network: string, service: Service, ports: GatewayPorts): void => {
      if (ports.port === undefined && ports.hbonePort === undefined) return;
      for (const address of externalAddresses(service)) add({ network, cluster: this.idOf(clusterOf(service)), address, ...ports, source: service });
    };
    for (const [network, { gateways = [] }] of Object.entries(this.mesh().networks)) {
      for (const { address, registryServiceName, port = GATEWAY_PORT } of gateways) {
        const ports = port === HBONE_PORT ? { port: undefined, hbonePort: port } : { port, hbonePort: undefined };
        if (address !== undefined && isIP(address) !== 0) add({ network, cluster: undefined, address, ...ports, source: undefined });
        if (registryServiceName !== undefined) for (const service of this.serviceOf(registryServiceName)) ofService(network, service, ports);
      }
    }
    for (const service of this.#services.values()) {
      const has = (port: number): number | undefined => (service.spec.ports?.some((candidate) => candidate.port === port) ? port : undefined);
      ofService(service.metadata.labels![NETWORK_LABEL]!, service, { port: has(sniPort(service)), hbonePort: has(HBONE_PORT) });
    }
    for (const gateway of this.#remotes.values()) {
      const { listeners, addresses = [] } = gateway.spec;
      const port = listeners.find((one) => one.protocol === 'TLS' && one.port === sniPort(gateway))?.port;
      const hbonePort = listeners.find(({ protocol }) => protocol === 'HBONE')?.port;
      if (port === undefined && hbonePort === undefined) continue;
      for (const { value = '' } of [...addresses, ...(gateway.status?.addresses ?? [])]) if (value) add({ network: gateway.metadata.labels![NETWORK_LABEL]!, cluster: this.idOf(''), address: value, port, hbonePort, source: gateway });
    }
    for (const list of found.values()) list.sort((a, b) => (`${a.address} ${a.port} ${a.hbonePort}` < `${b.address} ${b.port} ${b.hbonePort}` ? -1 : 1));
    const lists = [...found.values()];
    return (this.#gateways = { byNetwork: found, areForSni: lists.some((list) => list.some(takesSni)), forHbone: lists.flatMap((list) => list.find(({ hbonePort }) => hbonePort !== undefined) ?? []) });
  }

  /** Its endpoints are for clients of their own cluster alone: `clusterLocal` in serviceSettings, and what Kubernetes itself serves. */
  isLocal(host: string): boolean {
    const { clusterLocalHosts, clusterGlobalHosts, clusterDomain } = this.mesh();
    const named = (patterns: readonly string[]): boolean => patterns.some((pattern) => hostMatches(pattern, host));
    if (named(clusterLocalHosts) || named(clusterGlobalHosts)) return !clusterGlobalHosts.includes(host) && (clusterLocalHosts.includes(host) || !named(clusterGlobalHosts));
    return host.endsWith(`.kube-system.svc.${clusterDomain}`) || host === `kubernetes.default.svc.${clusterDomain}`;
  }
}

const takesSni = ({ port, address }: NetworkGateway): boolean => port !== undefined && isIP(address) !== 0;

/** Where what leads into a network passes the workloads' own TLS through. */
export const sniPort = ({ metadata }: KubeObject): number => Number(metadata.labels?.[GATEWAY_PORT_LABEL]) || GATEWAY_PORT;

function isRemoteGateway(object: KubeObject): object is KubeGateway {
  return object.kind === 'Gateway' && (object as KubeGateway).spec.gatewayClassName === REMOTE_CLASS && object.metadata.labels?.[NETWORK_LABEL] !== undefined;
}

/** Where a Service is reached from outside of its network. Names are left out: an endpoint of EDS has to be an address. */
function externalAddresses({ spec, status }: Service): string[] {
  const balanced = (status?.loadBalancer?.ingress ?? []).flatMap(({ ip }) => ip ?? []);
  return [...new Set([...(spec.externalIPs ?? []), ...balanced])].filter((address) => isIP(address) !== 0);
}
