/** EndpointSlices by the host of their Service, and the endpoints that they make. */
import type { EndpointSlice, Pod, Service } from '../../common/kube/types.js';
import { clusterOf, inCluster, type Clusters } from './clusters.js';
import { serviceHost } from './hosts.js';
import type { MeshConfig } from './mesh.js';
import { podsEndpoint } from './pods.js';
import type { Endpoint, Locality, MeshService } from './types.js';

const SERVICE_NAME_LABEL = 'kubernetes.io/service-name';

/** What of the model it looks at. */
export interface SliceContext {
  mesh(): MeshConfig;
  clusters: Clusters;
  /** By podName(). */
  pod(name: string): Pod | undefined;
  podByIp(ip: string, cluster: string): Pod | undefined;
  localityOf(nodeName: string | undefined, zone: string | undefined, cluster: string, pod: Pod | undefined): Locality;
}

export class EndpointSlices {
  readonly #byHost = new Map<string, Map<string, EndpointSlice>>();
  /** Hosts whose endpoints point to a pod, by the pod. */
  readonly #hostsByPod = new Map<string, Set<string>>();
  /** Hosts with endpoints that point to none, by their addresses and nodes. */
  readonly #hostsByPlace = new Map<string, Set<string>>();

  constructor(readonly context: SliceContext) {}

  hostOf(slice: EndpointSlice): string | undefined {
    const service = slice.metadata.labels?.[SERVICE_NAME_LABEL];
    return service && serviceHost(service, slice.metadata.namespace ?? 'default', this.context.mesh().clusterDomain);
  }

  /** @param pod by podName() */
  hostsOfPod(pod: string): Iterable<string> {
    return this.#hostsByPod.get(pod) ?? [];
  }

  /** Those whose endpoints name no pod, and may mean one that has this address, or say that they are on this node. */
  hostsAt(cluster: string, place: { address: string } | { node: string }): Iterable<string> {
    return this.#hostsByPlace.get(inCluster(cluster, 'node' in place ? `node ${place.node}` : place.address)) ?? [];
  }

  /** Takes over one version of a slice for another. */
  set(key: string, old: EndpointSlice | undefined, slice: EndpointSlice | undefined): void {
    const oldHost = old && this.hostOf(old);
    if (oldHost) this.#byHost.get(oldHost)?.delete(key);
    const host = slice && this.hostOf(slice);
    if (!host) return;
    let slices = this.#byHost.get(host);
    if (!slices) this.#byHost.set(host, (slices = new Map()));
    slices.set(key, slice);
    const cluster = clusterOf(slice);
    const note = (index: Map<string, Set<string>>, key: string): void => {
      const hosts = index.get(key);
      if (hosts) hosts.add(host);
      else index.set(key, new Set([host]));
    };
    for (const { targetRef, addresses, nodeName } of slice.endpoints ?? []) {
      if (targetRef?.kind === 'Pod' && targetRef.name) {
        note(this.#hostsByPod, inCluster(cluster, `${targetRef.namespace ?? slice.metadata.namespace}/${targetRef.name}`));
        continue;
      }
      if (addresses[0] !== undefined) note(this.#hostsByPlace, inCluster(cluster, addresses[0]));
      if (nodeName !== undefined) note(this.#hostsByPlace, inCluster(cluster, `node ${nodeName}`));
    }
  }

  /** Of a Kubernetes Service; by address, since two slices may name the same. */
  endpoints(service: MeshService): Map<string, Endpoint> {
    const { host, namespace } = service;
    const { context } = this;
    const { clusters } = context;
    const found = new Map<string, Endpoint>();
    const notReadyCounts = (service.object as Service).spec.publishNotReadyAddresses === true;
    for (const [, slice] of [...(this.#byHost.get(host) ?? [])].sort(byClusterAndName)) {
      if (slice.addressType === 'FQDN') continue;
      const cluster = clusterOf(slice);
      const ports = new Map<string, number>();
      for (const { name, port } of slice.ports ?? []) if (port !== undefined) ports.set(name ?? '', port);
      for (const { addresses, conditions, nodeName, zone, targetRef } of slice.endpoints ?? []) {
        const address = addresses[0];
        // Terminating endpoints get no new connections, unless they are all that is left; Istio drops them.
        if (conditions?.terminating || address === undefined) continue;
        const pod = targetRef?.kind === 'Pod' && targetRef.name ? context.pod(inCluster(cluster, `${targetRef.namespace ?? slice.metadata.namespace}/${targetRef.name}`)) : context.podByIp(address, cluster);
        const workload = pod ? podsEndpoint(pod, clusters) : { pod, workloadName: undefined, labels: {}, namespace, serviceAccount: undefined, tlsMode: undefined, weight: 1, network: clusters.networkOf(cluster, address), cluster: clusters.idOf(cluster) };
        // Networks of their own may use the same addresses.
        found.set(clusters.several ? `${workload.network} ${address}` : address, { ...workload, address, ports, ready: notReadyCounts || conditions?.ready !== false, locality: context.localityOf(nodeName ?? pod?.spec.nodeName, zone, cluster, pod) });
      }
    }
    return found;
  }
}

function byClusterAndName([a, one]: [string, EndpointSlice], [b, other]: [string, EndpointSlice]): number {
  const [mine, theirs] = [clusterOf(one), clusterOf(other)];
  return (mine === theirs ? a < b : mine < theirs) ? -1 : 1;
}
