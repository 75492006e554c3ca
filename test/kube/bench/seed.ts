/**
 * A big cluster behind a real API server: Services by the API (it gives each its address), all else put into etcd as the API
 * server would have, from an object that it made itself, so that 50,000 Pods with all fields of real ones take seconds.
 */
import { randomUUID } from 'node:crypto';
import { resourceOf } from '../../../common/kube/client.js';
import type { EndpointSlice, KubeObject, Pod, Service } from '../../../common/kube/types.js';
import { base64, type KubeCluster } from '../cluster.js';

export interface ClusterSize {
  services: number;
  pods: number;
  nodes: number;
  namespaces: number;
}

/** etcd takes 128 operations at a time. */
const PUTS = 100;
const CREATES_AT_ONCE = 16;

type Put = readonly [key: string, object: KubeObject];

const namespaceOf = (index: number, { namespaces }: ClusterSize): string => `team-${index % namespaces}`;
const podAddress = (index: number): string => `10.${128 + (index >> 16)}.${(index >> 8) & 255}.${index & 255}`;

/** HTTP for the most part, as meshes are. */
const portOf = (index: number): { name: string; port: number } => (index % 5 === 4 ? { name: 'tcp-db', port: 5432 } : { name: 'http', port: index % 2 === 0 ? 80 : 8080 });

export async function seed(cluster: KubeCluster, size: ClusterSize): Promise<void> {
  await inParallel(size.namespaces, (i) => cluster.namespace(namespaceOf(i, size)));
  const services: Service[] = [];
  await inParallel(size.services, async (i) => {
    const { name, port } = portOf(i);
    services[i] = await cluster.client.create(resourceOf('v1', 'Service'), { apiVersion: 'v1', kind: 'Service', metadata: { name: `service-${i}`, namespace: namespaceOf(i, size) }, spec: { selector: { app: `service-${i}` }, ports: [{ name, port, targetPort: 8080 }] } } satisfies Service as Service);
  });
  const template = await podTemplate(cluster, namespaceOf(0, size));
  const pods = Array.from({ length: size.pods }, (_, i) => podOf(i, size, template));
  await putAll(cluster, pods.map((pod) => [`pods/${pod.metadata.namespace}/${pod.metadata.name}`, pod]));
  const slices = services.map((service, i): Put => {
    const of: Pod[] = [];
    for (let at = i; at < size.pods; at += size.services) of.push(pods[at]!);
    const slice = sliceOf(service, of);
    return [`endpointslices/${slice.metadata.namespace}/${slice.metadata.name}`, slice];
  });
  await putAll(cluster, slices);
}

async function inParallel(count: number, make: (index: number) => Promise<unknown>): Promise<void> {
  let next = 0;
  await Promise.all(Array.from({ length: CREATES_AT_ONCE }, async () => {
    while (next < count) await make(next++);
  }));
}

/** A Pod as a Deployment makes it, with what kubelet says of it, and who wrote which field. */
async function podTemplate(cluster: KubeCluster, namespace: string): Promise<Pod> {
  const place = { namespace, name: 'template' };
  await cluster.apply(JSON.stringify({
    apiVersion: 'v1', kind: 'Pod',
    metadata: { ...place, labels: { app: 'template', version: 'v1', 'pod-template-hash': '6d4b75cb6d' }, annotations: { 'prometheus.io/scrape': 'true' } },
    spec: {
      nodeName: 'elsewhere-0',
      containers: [{
        name: 'app', image: 'registry.example/team/app:1.2.3', ports: [{ name: 'http', containerPort: 8080 }],
        env: Array.from({ length: 10 }, (_, i) => ({ name: `SETTING_${i}`, value: `value of setting ${i}` })),
        resources: { requests: { cpu: '100m', memory: '128Mi' } },
        readinessProbe: { httpGet: { path: '/ready', port: 8080 } },
        volumeMounts: [{ name: 'token', mountPath: '/var/run/secrets/kubernetes.io/serviceaccount', readOnly: true }],
      }],
      volumes: [{ name: 'token', projected: { sources: [{ serviceAccountToken: { path: 'token' } }, { configMap: { name: 'kube-root-ca.crt' } }] } }],
    },
  }));
  const at = new Date().toISOString();
  await cluster.setStatus('v1', 'Pod', place, {
    phase: 'Running', hostIP: '10.0.0.1', podIP: '10.1.1.1', podIPs: [{ ip: '10.1.1.1' }], startTime: at, qosClass: 'Burstable',
    conditions: ['PodScheduled', 'Initialized', 'ContainersReady', 'Ready'].map((type) => ({ type, status: 'True', lastTransitionTime: at })),
    containerStatuses: [{ name: 'app', ready: true, started: true, restartCount: 0, image: 'registry.example/team/app:1.2.3', imageID: `registry.example/team/app@sha256:${'0'.repeat(64)}`, containerID: `containerd://${'0'.repeat(64)}`, state: { running: { startedAt: at } } }],
  });
  const template = (await cluster.get<Pod>('v1', 'Pod', place))!;
  await cluster.client.request('DELETE', `/api/v1/namespaces/${namespace}/pods/template`, { body: { gracePeriodSeconds: 0 } });
  return template;
}

function podOf(index: number, size: ClusterSize, { metadata, spec, status }: Pod): Pod {
  const service = index % size.services;
  const { resourceVersion: _, ...kept } = metadata;
  const ip = podAddress(index);
  return {
    apiVersion: 'v1', kind: 'Pod',
    metadata: { ...kept, uid: randomUUID(), name: `app-${index}`, namespace: namespaceOf(service, size), labels: { ...metadata.labels, app: `service-${service}` } },
    spec: { ...spec, nodeName: `elsewhere-${index % size.nodes}` },
    status: { ...status, podIP: ip, podIPs: [{ ip }] },
  };
}

function sliceOf({ metadata: { name, namespace, uid, creationTimestamp }, spec }: Service, pods: readonly Pod[]): EndpointSlice {
  return {
    apiVersion: 'discovery.k8s.io/v1', kind: 'EndpointSlice',
    metadata: { name: `${name}-1`, namespace: namespace!, uid: randomUUID(), creationTimestamp: creationTimestamp!, labels: { 'kubernetes.io/service-name': name }, ownerReferences: [{ apiVersion: 'v1', kind: 'Service', name, uid: uid!, controller: true }] },
    addressType: 'IPv4',
    endpoints: pods.map((pod) => ({ addresses: [pod.status!.podIP!], conditions: { ready: true, serving: true, terminating: false }, nodeName: pod.spec.nodeName!, targetRef: { kind: 'Pod', name: pod.metadata.name, namespace: namespace!, uid: pod.metadata.uid! } })),
    ports: (spec.ports ?? []).map((port) => ({ name: port.name!, port: 8080, protocol: 'TCP' })),
  };
}

async function putAll(cluster: KubeCluster, puts: readonly Put[]): Promise<void> {
  for (let at = 0; at < puts.length; at += PUTS) {
    const success = puts.slice(at, at + PUTS).map(([key, object]) => ({ requestPut: { key: base64(`/registry/${key}`), value: base64(JSON.stringify(object)) } }));
    const answer = await fetch(`http://127.0.0.1:${cluster.ports.etcd}/v3/kv/txn`, { method: 'POST', body: JSON.stringify({ success }) });
    if (!answer.ok) throw new Error(`etcd: ${answer.status} ${await answer.text()}`);
    await answer.arrayBuffer();
  }
}
