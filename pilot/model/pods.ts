/** What the mesh reads of a pod. */
import { REDIRECTION_ANNOTATION, REDIRECTION_ENABLED, TLS_MODE_LABEL } from '../../common/identity/announcements.js';
import { isIP } from 'node:net';
import type { KubeObject, Pod, ServiceEntry, WorkloadEntry } from '../../common/kube/types.js';
import { inCluster, type Clusters } from './clusters.js';
import type { Endpoint, MeshPort } from './types.js';

export { TLS_MODE_LABEL };
export const NETWORK_LABEL = 'topology.istio.io/network';

/** `http` on a workload whose own proxy takes HBONE. */
const TUNNEL_LABEL = 'networking.istio.io/tunnel';

/** `namespace/name`, behind the cluster's name where that is not the config cluster. */
export function podName({ metadata }: Pod): string {
  return inCluster(metadata.clusterName ?? '', `${metadata.namespace ?? 'default'}/${metadata.name}`);
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

export function isReady(pod: Pod): boolean {
  return pod.status?.conditions?.find(({ type }) => type === 'Ready')?.status === 'True';
}

/** Pods of the config cluster by the node that they run on and the account that they run under. */
export class PodsByNode {
  readonly #pods = new Map<string, Set<Pod>>();

  replace(old: Pod | undefined, pod: Pod | undefined): void {
    if (old) {
      const left = this.#pods.get(keyOf(old));
      left?.delete(old);
      if (left?.size === 0) this.#pods.delete(keyOf(old));
    }
    if (!pod || pod.metadata.clusterName) return;
    const key = keyOf(pod);
    const known = this.#pods.get(key);
    if (known) known.add(pod);
    else this.#pods.set(key, new Set([pod]));
  }

  on(nodeName: string, namespace: string, serviceAccount: string): Iterable<Pod> {
    return this.#pods.get(`${nodeName} ${namespace}/${serviceAccount}`) ?? [];
  }
}

const keyOf = (pod: Pod): string => `${pod.spec.nodeName} ${pod.metadata.namespace ?? 'default'}/${accountOf(pod)}`;

export function accountOf({ spec }: Pod): string {
  return spec.serviceAccountName || 'default';
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

export function hasOwnTunnel(labels: Readonly<Record<string, string>>): boolean {
  return labels[TUNNEL_LABEL] === 'http';
}

/** It is reached by HBONE on port 15008: its own proxy's, or its node's. */
export function takesHbone({ labels, pod }: Pick<Endpoint, 'labels' | 'pod'>): boolean {
  return hasOwnTunnel(labels) || pod?.metadata.annotations?.[REDIRECTION_ANNOTATION] === REDIRECTION_ENABLED;
}

/** Sidecars and gateways reach it by HBONE: where mutual TLS would do as well it is that, as in Istio. */
export function isTunnelled(endpoint: Pick<Endpoint, 'labels' | 'pod' | 'address'>): boolean {
  return takesHbone(endpoint) && endpoint.labels[TLS_MODE_LABEL] !== 'istio' && isIP(endpoint.address) !== 0;
}

/** Whether the object may stand for such an endpoint. */
export function hasTunnelled(object: KubeObject): boolean {
  const labelled = (labels: Readonly<Record<string, string>> = {}, pod?: Pod): boolean => isTunnelled({ labels, pod, address: '::' });
  if (object.kind === 'Pod') return labelled(object.metadata.labels, object as Pod);
  if (object.kind === 'WorkloadEntry') return labelled({ ...object.metadata.labels, ...(object as WorkloadEntry).spec.labels });
  return object.kind === 'ServiceEntry' && ((object as ServiceEntry).spec.endpoints ?? []).some(({ labels }) => labelled(labels));
}

/** What an endpoint has from the pod behind it. */
export function podsEndpoint(pod: Pod, clusters: Clusters): Omit<Endpoint, 'address' | 'ports' | 'ready' | 'locality'> {
  const labels = pod.metadata.labels ?? {};
  const cluster = pod.metadata.clusterName ?? '';
  return {
    pod,
    workloadName: undefined,
    labels,
    namespace: pod.metadata.namespace,
    serviceAccount: accountOf(pod),
    tlsMode: labels[TLS_MODE_LABEL],
    weight: 1,
    network: labels[NETWORK_LABEL] ?? clusters.networkOf(cluster, podIps(pod)[0]),
    cluster: clusters.idOf(cluster),
  };
}
