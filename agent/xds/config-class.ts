/**
 * Pods that get the same outbound configuration share one stream: istiod and pilot look at a client's namespace, service
 * account and labels (Sidecar, DestinationRule and policy selectors, tracing tags), never at its address, but at the families of
 * addresses that it has: listeners and endpoints are of these.
 */
import { createHash } from 'node:crypto';
import { isIPv4, isIPv6 } from 'node:net';
import { TLS_MODE_LABEL } from '../../common/identity/announcements.js';
import { DATAPLANE_MODE_LABEL } from '../workloads/enrolment.js';
import { Node } from '../../proto/generated/envoy/config/core/v3/base.js';

export interface ClassPod {
  name: string;
  namespace: string;
  serviceAccount: string;
  labels: Readonly<Record<string, string>>;
  ips: readonly string[];
}

/** Labels that a controller, or this agent, gives each pod or each roll-out: no selector that anybody writes matches on them. */
const IGNORED_LABELS: ReadonlySet<string> = new Set([
  'pod-template-hash',
  'pod-template-generation',
  'controller-revision-hash',
  'statefulset.kubernetes.io/pod-name',
  'apps.kubernetes.io/pod-index',
  'batch.kubernetes.io/controller-uid',
  'batch.kubernetes.io/job-completion-index',
  'controller-uid',
  TLS_MODE_LABEL,
  // As the labels of this project: whether a pod is enrolled must not move it to another class.
  DATAPLANE_MODE_LABEL,
]);

export function relevantLabels(labels: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(labels)
      // Enrolment is this agent's own business: a toggle must not move a pod to another class.
      .filter(([key]) => !IGNORED_LABELS.has(key) && !key.startsWith('underpass.io/'))
      .sort(([a], [b]) => (a < b ? -1 : 1)),
  );
}

const keys = new WeakMap<ClassPod, string>();

/** The class's id: 8 hex digits, the same after a restart. Of one object it is always the same. */
export function classKey(pod: ClassPod): string {
  let key = keys.get(pod);
  if (key === undefined) keys.set(pod, (key = makeKey(pod)));
  return key;
}

function makeKey(pod: ClassPod): string {
  const families = [pod.ips.some((ip) => isIPv4(ip)) ? '4' : '', pod.ips.some((ip) => isIPv6(ip)) ? '6' : ''].join('');
  const identity = [pod.namespace, pod.serviceAccount, relevantLabels(pod.labels), ...(families === '46' ? [] : [families])];
  return createHash('sha256').update(JSON.stringify(identity)).digest('hex').slice(0, 8);
}

/** The node that a sidecar in this pod would be. */
export function sidecarNode(pod: ClassPod, options: { nodeName: string; clusterId?: string }): Node {
  const labels = relevantLabels(pod.labels);
  const address = pod.ips.find((ip) => isIPv4(ip)) ?? pod.ips[0] ?? '127.0.0.1';
  return Node.fromPartial({
    id: `sidecar~${address}~${pod.name}.${pod.namespace}~${pod.namespace}.svc.cluster.local`,
    cluster: `${labels['app'] ?? labels['app.kubernetes.io/name'] ?? pod.name}.${pod.namespace}`,
    metadata: {
      NAME: pod.name,
      NAMESPACE: pod.namespace,
      SERVICE_ACCOUNT: pod.serviceAccount || 'default',
      LABELS: labels,
      CLUSTER_ID: options.clusterId ?? 'Kubernetes',
      ISTIO_VERSION: '1.32.0',
      NODE_NAME: options.nodeName,
      WORKLOAD_NAME: labels['app'] ?? pod.name,
      INSTANCE_IPS: pod.ips.join(','),
    },
    user_agent_name: 'underpass',
  });
}
