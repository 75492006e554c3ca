/** Writes the objects as a control plane would read them from the API server: one YAML file a kind, replaced atomically. */
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { isEndpoint, type Cluster, type Endpoints, type ServiceState } from './cluster.js';
import { hash, keyOf, stableUid, type KubeObject } from './kube.js';
import type { Pod } from './pod.js';

export interface NodeState {
  name: string;
  ips: string[];
  podCidrs: string[];
}

export class ObjectsDir {
  readonly #written = new Map<string, string>();

  constructor(readonly path: string) {
    mkdirSync(path, { recursive: true });
  }

  /** @returns the files that changed */
  write(cluster: Cluster, nodes: readonly NodeState[], pods: readonly Pod[]): string[] {
    const files: Record<string, KubeObject[]> = {
      'namespaces.yaml': namespaces(cluster),
      'nodes.yaml': nodes.map((node) => nodeObject(cluster, node)),
      'serviceaccounts.yaml': serviceAccounts(cluster, pods),
      'services.yaml': [...cluster.services.values()].map(serviceObject),
      'pods.yaml': pods.map((pod) => podObject(pod, nodes)),
      'endpointslices.yaml': [...cluster.services.values()].flatMap((service) => endpointSlices(cluster, service, pods)),
    };
    const changed: string[] = [];
    for (const [name, objects] of Object.entries(files)) {
      const sorted = objects.sort((a, b) => (keyOf(a.metadata) < keyOf(b.metadata) ? -1 : 1));
      const text = sorted.map((object) => stringify(object, { aliasDuplicateObjects: false })).join('---\n');
      if (this.#written.get(name) === text) continue;
      // Hidden while it is being written: readers of the directory leave such files out.
      const temporary = join(this.path, `.${name}.new`);
      writeFileSync(temporary, text);
      renameSync(temporary, join(this.path, name));
      this.#written.set(name, text);
      changed.push(name);
    }
    return changed;
  }
}

function namespaces(cluster: Cluster): KubeObject[] {
  return [...cluster.namespaces.values()].map(({ name, labels, annotations }) => ({
    apiVersion: 'v1',
    kind: 'Namespace',
    metadata: {
      name,
      uid: stableUid('Namespace', name),
      labels: { ...labels },
      ...(Object.keys(annotations).length ? { annotations } : {}),
    },
  }));
}

function nodeObject(cluster: Cluster, { name, ips, podCidrs }: NodeState): KubeObject {
  return {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name, uid: stableUid('Node', name), labels: cluster.nodeLabels(name) },
    spec: { podCIDR: podCidrs[0], podCIDRs: podCidrs },
    status: {
      addresses: [...ips.map((address) => ({ type: 'InternalIP', address })), { type: 'Hostname', address: name }],
      conditions: [{ type: 'Ready', status: 'True' }],
    },
  };
}

/** Each namespace has a `default` one, and the API server refuses pods whose account is missing: so they are all here. */
function serviceAccounts(cluster: Cluster, pods: readonly Pod[]): KubeObject[] {
  const found = new Map<string, KubeObject>();
  const add = (namespace: string, name: string, object?: KubeObject): void => {
    const uid = stableUid('ServiceAccount', namespace, name);
    const metadata = { ...object?.metadata, name, namespace, uid };
    found.set(`${namespace}/${name}`, { ...object, apiVersion: 'v1', kind: 'ServiceAccount', metadata });
  };
  for (const namespace of cluster.namespaces.keys()) add(namespace, 'default');
  for (const pod of pods) add(pod.desired.namespace, pod.desired.spec.serviceAccountName ?? 'default');
  for (const object of cluster.serviceAccounts) add(object.metadata.namespace ?? 'default', object.metadata.name, object);
  return [...found.values()];
}

function serviceObject({ object, families, address, external }: ServiceState): KubeObject {
  const clusterIPs = address
    ? families.map((family) => (family === 'IPv4' ? address.ipv4 : address.ipv6))
    : object.spec.clusterIP === 'None'
      ? ['None']
      : [];
  const ports = object.spec.ports?.map((port) => ({
    ...port,
    protocol: port.protocol ?? 'TCP',
    targetPort: port.targetPort ?? port.port,
  }));
  return {
    ...object,
    metadata: { ...object.metadata, uid: stableUid('Service', keyOf(object.metadata)) },
    spec: {
      ...object.spec,
      type: object.spec.type ?? 'ClusterIP',
      ...(ports ? { ports } : {}),
      ...(clusterIPs.length ? { clusterIP: clusterIPs[0], clusterIPs } : {}),
      ipFamilies: families,
      ipFamilyPolicy: object.spec.ipFamilyPolicy ?? 'SingleStack',
    },
    ...(external ? { status: { loadBalancer: { ingress: families.map((family) => ({ ip: family === 'IPv4' ? external.ipv4 : external.ipv6 })) } } } : {}),
  };
}

function podObject(pod: Pod, nodes: readonly NodeState[]): KubeObject {
  const { desired } = pod;
  const condition = (type: string, status: boolean): object => ({ type, status: status ? 'True' : 'False' });
  const containers = pod.containerRecords();
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name: desired.name,
      namespace: desired.namespace,
      uid: pod.uid,
      labels: { ...pod.labels },
      annotations: { ...pod.annotations },
      ...(desired.ownerReferences.length ? { ownerReferences: desired.ownerReferences } : {}),
      creationTimestamp: pod.createdAt,
      ...(pod.terminating ? { deletionTimestamp: pod.createdAt } : {}),
    },
    spec: {
      nodeName: pod.nodeName,
      serviceAccountName: desired.spec.serviceAccountName ?? 'default',
      hostNetwork: pod.hostNetwork,
      containers: containers.map(({ name, image, ports }) => ({ name, image, ...(ports.length ? { ports } : {}) })),
    },
    status: {
      phase: pod.phase,
      podIP: pod.ips[0],
      podIPs: pod.ips.map((ip) => ({ ip })),
      hostIP: nodes.find(({ name }) => name === pod.nodeName)?.ips[0],
      conditions: [
        condition('PodScheduled', true),
        condition('Initialized', true),
        condition('ContainersReady', pod.ready),
        condition('Ready', pod.ready),
      ],
      containerStatuses: containers.map(({ name, image, ready, restarts }) => ({ name, image, ready, restartCount: restarts })),
    },
  };
}

/** One slice per address family and set of port numbers, as the controller cuts them. */
function endpointSlices(cluster: Cluster, service: ServiceState, pods: readonly Pod[]): KubeObject[] {
  const { metadata, spec } = service.object;
  if (!spec.selector || spec.type === 'ExternalName') return [];
  const groups = new Map<string, Endpoints[]>();
  for (const endpoint of cluster.endpoints(service, pods)) {
    const key = endpoint.ports.map(({ number }) => number).join();
    groups.set(key, [...(groups.get(key) ?? []), endpoint]);
  }
  if (groups.size === 0) groups.set('', []);
  return service.families.flatMap((family) =>
    [...groups].sort().map(([portKey, behind], index) => {
      const name = `${metadata.name}-${hash([family, portKey, index === 0 ? '' : index], 5)}`;
      return {
        apiVersion: 'discovery.k8s.io/v1',
        kind: 'EndpointSlice',
        metadata: {
          name,
          namespace: metadata.namespace as string,
          uid: stableUid('EndpointSlice', metadata.namespace ?? '', name),
          labels: {
            'kubernetes.io/service-name': metadata.name,
            'endpointslice.kubernetes.io/managed-by': 'endpointslice-controller.k8s.io',
          },
          ownerReferences: [
            {
              apiVersion: 'v1',
              kind: 'Service',
              name: metadata.name,
              uid: stableUid('Service', keyOf(metadata)),
              controller: true,
            },
          ],
        },
        addressType: family,
        ports: (behind[0]?.ports ?? []).map(({ port, number }) => ({
          name: port.name ?? '',
          port: number,
          protocol: port.protocol ?? 'TCP',
          ...(port.appProtocol ? { appProtocol: port.appProtocol } : {}),
        })),
        endpoints: behind.map(({ pod }) => ({ pod, addresses: pod.ips.filter((ip) => ip.includes(':') === (family === 'IPv6')) })).filter(({ addresses }) => addresses.length > 0).map(({ pod, addresses }) => ({
          addresses,
          conditions: { ready: isEndpoint(pod, service), serving: pod.ready, terminating: pod.terminating },
          nodeName: pod.nodeName,
          ...(cluster.nodeLabels(pod.nodeName)['topology.kubernetes.io/zone']
            ? { zone: cluster.nodeLabels(pod.nodeName)['topology.kubernetes.io/zone'] }
            : {}),
          targetRef: { kind: 'Pod', name: pod.desired.name, namespace: pod.desired.namespace, uid: pod.uid },
        })),
      };
    }),
  );
}
