/** What the API server would hold: the user's objects with live labels and allocated addresses, and what follows from them. */
import { UnderpassError } from '../common/errors.js';
import type { LabelPatch } from '../common/lab-api.js';
import { clusterIp, loadBalancerIp, ServiceAddresses, type DualAddress } from './addresses.js';
import { CLUSTER_DOMAIN, type ZoneEntry } from './dns.js';
import { configData } from './environment.js';
import {
  keyOf,
  matches,
  podsOf,
  serviceFamilies,
  targetPort,
  WORKLOAD_KINDS,
  type DesiredPod,
  type KubeObject,
  type Service,
  type ServicePort,
  type ServiceSpec,
} from './kube.js';
import { familiesOf, type Family } from './families.js';
import type { Pod } from './pod.js';
import type { VirtualAddress } from './service-proxy.js';

/** Names outside of the cluster that the lab's DNS answers with this pod's address, e.g. `www.example.com,*.example.org`. */
export const HOSTNAMES_ANNOTATION = 'lab.underpass.io/hostnames';

/** A namespace or pod whose labels change while it lives. */
interface Labelled {
  /** As the user's YAML had them last. */
  written: Record<string, string>;
  labels: Record<string, string>;
}

export interface NamespaceState extends Labelled {
  name: string;
  annotations: Record<string, string>;
}

export interface ServiceState {
  object: Service;
  families: ('IPv4' | 'IPv6')[];
  /** Absent for headless and ExternalName services. */
  address: DualAddress | undefined;
  /** Of services of type LoadBalancer: reachable from every pod. */
  external: DualAddress | undefined;
}

/** One service port with the pods behind it, per port number that they listen on. */
export interface Endpoints {
  pod: Pod;
  ports: { port: ServicePort; number: number }[];
}

export class Cluster {
  readonly namespaces = new Map<string, NamespaceState>();
  readonly services = new Map<string, ServiceState>();
  serviceAccounts: KubeObject[] = [];
  #configs: KubeObject[] = [];
  nodeObjects: KubeObject[] = [];
  #workloads: KubeObject[] = [];
  readonly #addresses: ServiceAddresses;
  readonly #external: ServiceAddresses;

  /** @param index position of this lab among the clusters of its mesh */
  constructor(readonly ipv6: boolean, index = 0) {
    this.#addresses = new ServiceAddresses(clusterIp(index));
    this.#external = new ServiceAddresses(loadBalancerIp(index));
  }

  setObjects(all: readonly KubeObject[]): void {
    this.#workloads = all.filter(({ kind }) => WORKLOAD_KINDS.has(kind));
    this.#configs = all.filter(({ kind }) => kind === 'ConfigMap' || kind === 'Secret');
    this.serviceAccounts = all.filter(({ kind }) => kind === 'ServiceAccount');
    this.nodeObjects = all.filter(({ kind }) => kind === 'Node');
    this.#setNamespaces(all);
    this.#setServices(all.filter((object): object is Service => object.kind === 'Service' && object.apiVersion === 'v1'));
  }

  #setNamespaces(all: readonly KubeObject[]): void {
    const given = new Map(all.filter(({ kind }) => kind === 'Namespace').map((object) => [object.metadata.name, object]));
    const names = new Set([...given.keys(), ...all.flatMap(({ metadata }) => metadata.namespace ?? [])]);
    for (const name of names) {
      const metadata = given.get(name)?.metadata;
      const written = { 'kubernetes.io/metadata.name': name, ...metadata?.labels };
      const known = this.namespaces.get(name);
      if (known) {
        applyWritten(known, written);
        known.annotations = { ...metadata?.annotations };
      } else {
        this.namespaces.set(name, { name, written, labels: { ...written }, annotations: { ...metadata?.annotations } });
      }
    }
    for (const name of this.namespaces.keys()) if (!names.has(name)) this.namespaces.delete(name);
  }

  #setServices(services: readonly Service[]): void {
    const keys = new Set(services.map(({ metadata }) => keyOf(metadata)));
    for (const key of this.services.keys()) {
      if (keys.has(key)) continue;
      this.services.delete(key);
      this.#addresses.release(key);
      this.#external.release(key);
    }
    for (const object of services) {
      const key = keyOf(object.metadata);
      const spec = (object.spec ??= {});
      const addressless = spec.clusterIP === 'None' || spec.type === 'ExternalName';
      const given = [...(spec.clusterIPs ?? []), ...(spec.clusterIP ? [spec.clusterIP] : [])].filter((ip) => ip !== 'None');
      this.services.set(key, {
        object,
        families: this.#families(spec),
        address: addressless ? undefined : this.#addresses.allocate(key, given),
        external: spec.type === 'LoadBalancer' ? this.#external.allocate(key, spec.loadBalancerIP ? [spec.loadBalancerIP] : []) : undefined,
      });
    }
  }

  #families(spec: ServiceSpec): ('IPv4' | 'IPv6')[] {
    const families = serviceFamilies(spec).filter((family) => family === 'IPv4' || this.ipv6);
    return families.length ? families : ['IPv4'];
  }

  desiredPods(nodes: readonly string[]): DesiredPod[] {
    return this.#workloads.flatMap((workload) => podsOf(workload, nodes));
  }

  /** Nodes that the YAML names: Node objects, nodeName, and selectors by host name. */
  namedNodes(): string[] {
    const names = new Set(this.nodeObjects.map(({ metadata }) => metadata.name));
    for (const { spec } of this.desiredPods([])) {
      const name = spec.nodeName ?? spec.nodeSelector?.['kubernetes.io/hostname'];
      if (name) names.add(name);
    }
    return [...names].sort();
  }

  config(kind: string, namespace: string, name: string): Record<string, string> | undefined {
    const found = this.#configs.find(
      (object) => object.kind === kind && object.metadata.namespace === namespace && object.metadata.name === name,
    );
    return found && configData(found);
  }

  nodeLabels(name: string): Record<string, string> {
    const given = this.nodeObjects.find(({ metadata }) => metadata.name === name)?.metadata.labels;
    return { 'kubernetes.io/hostname': name, 'kubernetes.io/os': 'linux', ...given };
  }

  /** Of the node's own addresses. */
  nodeFamilies(name: string): readonly Family[] {
    return familiesOf(this.nodeObjects.find(({ metadata }) => metadata.name === name)?.metadata.annotations ?? {});
  }

  namespaceLabels(name: string): Record<string, string> {
    return this.namespaces.get(name)?.labels ?? {};
  }

  patchNamespace({ name, labels = {} }: LabelPatch): void {
    const namespace = this.namespaces.get(name);
    if (!namespace) {
      throw new UnderpassError('UNDERPASS_LAB_NOT_FOUND', `labelling namespace ${name}: the lab has no such namespace`, {
        hint: `it has ${[...this.namespaces.keys()].sort().join(', ') || 'none'}`,
      });
    }
    patchLabels(namespace.labels, labels);
  }

  /** The pods that a service selects, each with the port numbers that the service's ports mean on it. */
  endpoints(service: ServiceState, pods: readonly Pod[]): Endpoints[] {
    const { metadata, spec } = service.object;
    return pods
      .filter(
        (pod) =>
          pod.desired.namespace === metadata.namespace &&
          matches(spec.selector, pod.labels) &&
          (pod.phase === 'Running' || pod.terminating),
      )
      .map((pod) => ({
        pod,
        ports: (spec.ports ?? []).flatMap((port) => {
          const number = targetPort(port, pod.desired.spec);
          return number === undefined ? [] : [{ port, number }];
        }),
      }));
  }

  zone(pods: readonly Pod[]): Map<string, ZoneEntry> {
    const zone = new Map<string, ZoneEntry>();
    for (const pod of pods) {
      if (pod.phase !== 'Running') continue;
      for (const name of (pod.annotations[HOSTNAMES_ANNOTATION] ?? '').split(',').filter(Boolean)) {
        zone.set(name.trim().toLowerCase(), { ips: [...(zone.get(name.trim().toLowerCase())?.ips ?? []), ...pod.ips] });
      }
    }
    for (const service of this.services.values()) {
      const { metadata, spec } = service.object;
      const name = `${metadata.name}.${metadata.namespace}.svc.${CLUSTER_DOMAIN}`;
      const hasFamily = (ip: string): boolean => service.families.includes(ip.includes(':') ? 'IPv6' : 'IPv4');
      if (spec.externalName) {
        zone.set(name, { ips: [], alias: spec.externalName });
      } else if (service.address) {
        zone.set(name, { ips: [service.address.ipv4, service.address.ipv6].filter(hasFamily) });
      } else {
        const behind = this.endpoints(service, pods).filter(({ pod }) => isEndpoint(pod, service));
        zone.set(name, { ips: behind.flatMap(({ pod }) => pod.ips.filter(hasFamily)) });
        for (const { pod } of behind) zone.set(`${pod.desired.name}.${name}`, { ips: pod.ips.filter(hasFamily) });
      }
    }
    return zone;
  }

  virtualAddresses(pods: readonly Pod[]): VirtualAddress[] {
    const found: VirtualAddress[] = [];
    for (const [key, service] of [...this.services].sort(([a], [b]) => (a < b ? -1 : 1))) {
      if (!service.address) continue;
      const behind = this.endpoints(service, pods).filter(({ pod }) => isEndpoint(pod, service));
      for (const [family, address] of [service.address, service.external ?? []].flat().flatMap((address) => service.families.map((family) => [family, address] as const))) {
        const ip = family === 'IPv4' ? address.ipv4 : address.ipv6;
        for (const port of service.object.spec.ports ?? []) {
          const protocol = (port.protocol ?? 'TCP').toLowerCase();
          if (protocol !== 'tcp' && protocol !== 'udp') continue;
          const endpoints = behind.flatMap(({ pod, ports }) => {
            const number = ports.find((candidate) => candidate.port === port)?.number;
            const own = pod.ips.find((each) => each.includes(':') === (family === 'IPv6'));
            return number === undefined || own === undefined ? [] : [{ ip: own, port: number }];
          });
          found.push({ service: `${key}:${port.name ?? port.port}`, ip, port: port.port, protocol, endpoints, ...(address === service.external ? { external: true } : {}) });
        }
      }
    }
    return found;
  }
}

export function isEndpoint(pod: Pod, service: ServiceState): boolean {
  return pod.ready || (service.object.spec.publishNotReadyAddresses === true && !pod.terminating);
}

/** Of labels or annotations; a null value removes one. */
export function patchLabels(labels: Record<string, string>, patch: Readonly<Record<string, string | null>>): void {
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete labels[key];
    else labels[key] = value;
  }
}

/** As `kubectl apply`: only what changed in the file changes the live labels, so that what `underpass label` set stays. */
export function applyWritten(target: Labelled, written: Record<string, string>): boolean {
  let changed = false;
  for (const key of new Set([...Object.keys(target.written), ...Object.keys(written)])) {
    if (target.written[key] === written[key]) continue;
    changed = true;
    if (written[key] === undefined) delete target.labels[key];
    else target.labels[key] = written[key];
  }
  target.written = { ...written };
  return changed;
}
