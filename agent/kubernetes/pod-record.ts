/** What the agent keeps of a Pod of the API; all else is dropped when it is read. */
import type { ContainerRecord } from '../../common/lab-api.js';
import type { Container, Pod } from '../../common/kube/types.js';
import type { PodRecord } from '../workloads/source.js';

/** A pod as the API has it: where it is on the node, and its namespace's labels, come from elsewhere. */
export type ApiPod = Omit<PodRecord, 'netns' | 'cgroup' | 'namespaceLabels'>;

const PROXY = 'istio-proxy';
const PHASES: ReadonlySet<string> = new Set(['Pending', 'Running', 'Succeeded', 'Failed'] satisfies PodRecord['phase'][]);

export function apiPod({ metadata, spec, status = {} }: Pod): ApiPod {
  const { podIPs, podIP, conditions = [], containerStatuses = [] } = status;
  const proxy = [...(spec.initContainers ?? []), ...spec.containers].find(({ name }) => name === PROXY);
  const statuses = new Map(containerStatuses.map((of) => [of.name, of]));
  return {
    uid: metadata.uid ?? '',
    name: metadata.name,
    namespace: metadata.namespace ?? '',
    labels: metadata.labels ?? {},
    annotations: metadata.annotations ?? {},
    nodeName: spec.nodeName ?? '',
    serviceAccount: spec.serviceAccountName ?? 'default',
    ips: podIPs?.map(({ ip }) => ip) ?? (podIP ? [podIP] : []),
    hostNetwork: spec.hostNetwork === true,
    // `Unknown` is of a node that is away; as this node asks, its kubelet will say better.
    phase: PHASES.has(status.phase ?? '') ? (status.phase as PodRecord['phase']) : 'Pending',
    ready: conditions.some(({ type, status: is }) => type === 'Ready' && is === 'True'),
    terminating: metadata.deletionTimestamp !== undefined,
    hasSidecar: proxy !== undefined,
    ...(proxy?.args?.includes('router') ? { isGateway: true } : {}),
    containers: spec.containers.map((container): ContainerRecord => {
      const { ready, restartCount } = statuses.get(container.name) ?? {};
      return { name: container.name, image: container.image ?? '', ports: portsOf(container), ...(ready === undefined ? {} : { ready }), ...(restartCount === undefined ? {} : { restarts: restartCount }) };
    }),
  };
}

function portsOf({ ports = [] }: Container): ContainerRecord['ports'] {
  return ports.map(({ name, containerPort, protocol }) => ({ ...(name === undefined ? {} : { name }), containerPort, ...(protocol === undefined ? {} : { protocol }) }));
}
