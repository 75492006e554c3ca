/** Which node a pod runs on, and which Envoy is in it: what scheduler and injector decide when a pod is made. */
import { UnderpassError } from '../common/errors.js';
import type { Cluster } from './cluster.js';
import type { ProxyRole } from './envoy-bootstrap.js';
import { imageName } from './images.js';
import { keyOf, type ContainerSpec, type DesiredPod } from './kube.js';

/** A pod that has its place already. */
export interface PlacedPod {
  nodeName: string;
  desired: { owner: string };
}

/**
 * The named node, else of those that fit the nodeSelector the one with the fewest pods of the same workload, then the
 * fewest at all.
 */
export function placePod(pod: DesiredPod, nodes: readonly string[], placed: readonly PlacedPod[], cluster: Cluster): string {
  const name = pod.spec.nodeName ?? pod.spec.nodeSelector?.['kubernetes.io/hostname'];
  if (name) {
    if (nodes.includes(name)) return name;
    throw new UnderpassError('UNDERPASS_LAB_NODE', `placing pod ${keyOf(pod)}: there is no node ${name}`);
  }
  const selector = Object.entries(pod.spec.nodeSelector ?? {});
  const fitting = nodes.filter((node) => selector.every(([key, value]) => cluster.nodeLabels(node)[key] === value));
  const loads = fitting.map((node) => {
    const here = placed.filter(({ nodeName }) => nodeName === node);
    return { node, same: here.filter(({ desired }) => desired.owner === pod.owner).length, all: here.length };
  });
  const best = loads.sort((a, b) => a.same - b.same || a.all - b.all)[0];
  if (best) return best.node;
  throw new UnderpassError('UNDERPASS_LAB_NODE', `placing pod ${keyOf(pod)}: no node has the labels of its nodeSelector`);
}

/** As Istio's injector decides; `underpass.io/mode` beats `istio-injection`, a pod's label beats its namespace's. */
export function wantsSidecar(pod: DesiredPod, namespaceLabels: Record<string, string>): boolean {
  if (pod.spec.hostNetwork) return false;
  const mode = pod.labels['underpass.io/mode'] ?? namespaceLabels['underpass.io/mode'];
  if (mode !== undefined) return mode === 'sidecar';
  const inject = pod.labels['sidecar.istio.io/inject'];
  return inject === undefined ? namespaceLabels['istio-injection'] === 'enabled' : inject === 'true';
}

/** An Envoy in a pod: added to it, or one of its own containers. */
export interface ProxyPlan {
  role: ProxyRole;
  container?: ContainerSpec;
}

/** Names that an image of Istio's proxy goes by; `auto` stands for it until the injector has seen the pod. */
const PROXY_IMAGES: ReadonlySet<string> = new Set(['auto', 'istio-proxy', 'proxyv2']);

/**
 * A gateway is a pod whose own container is Istio's proxy, started as `proxy router` or to be filled in from the injector's
 * template `gateway`; any other pod has an Envoy when it gets a sidecar.
 */
export function proxyPlan(pod: DesiredPod, namespaceLabels: Record<string, string>): ProxyPlan | undefined {
  const container = pod.spec.containers.find(({ image }) => image !== undefined && PROXY_IMAGES.has(imageName(image)));
  const templates = (pod.annotations['inject.istio.io/templates'] ?? '').split(',');
  if (container && (container.args?.[1] === 'router' || templates.includes('gateway'))) return { role: 'router', container };
  return wantsSidecar(pod, namespaceLabels) ? { role: 'sidecar', ...(container ? { container } : {}) } : undefined;
}
