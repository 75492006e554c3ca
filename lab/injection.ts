/**
 * The lab's part of sidecar injection: pods go through the same function as at the webhook, and what it adds is what the lab
 * starts, a stock Envoy for the proxy's container and the rules for the init container's arguments.
 */
import { DEFAULT_INJECTION, type InjectionConfig } from '../common/injection/config.js';
import { injectPod } from '../common/injection/inject.js';
import { INIT_CONTAINER, PROXY_CONTAINER, type InjectablePod } from '../common/injection/pod.js';
import { TEMPLATES_ANNOTATION } from '../common/injection/policy.js';
import { parseIstioInit } from '../common/istio-iptables-arguments.js';
import type { CaptureSettings } from '../common/istio-iptables.js';
import { UnderpassError } from '../common/errors.js';
import type { ProxyRole } from './envoy-bootstrap.js';
import { imageName } from './images.js';
import { keyOf, type ContainerSpec, type DesiredPod, type PodSpec } from './kube.js';

/** Names that an image of Istio's proxy goes by. */
const PROXY_IMAGES: ReadonlySet<string> = new Set(['auto', 'istio-proxy', 'proxyv2']);
/** What Istio's agent keeps for itself: the lab serves certificates by a socket of its own. */
const AGENT_VOLUMES: ReadonlySet<string> = new Set([
  'workload-socket', 'credential-socket', 'workload-certs', 'istio-envoy', 'istio-data', 'istio-podinfo', 'istio-token', 'istiod-ca-cert',
]);

/** An Envoy in a pod: which of its containers it is, and what of the pod's traffic it takes. */
export interface ProxyPlan {
  role: ProxyRole;
  container: ContainerSpec;
  /** Absent when nothing is captured. */
  capture?: CaptureSettings;
}

export interface AdmittedPod {
  labels: Record<string, string>;
  annotations: Record<string, string>;
  spec: PodSpec;
  proxy?: ProxyPlan;
}

/** Probes enter the pod's own namespace here, so they meet no sidecar and need not be rewritten. */
export function labInjection(clusterId: string): InjectionConfig {
  return { ...DEFAULT_INJECTION, values: { ...DEFAULT_INJECTION.values, clusterId, rewriteAppHTTPProbe: false } };
}

/** @throws UnderpassError when an annotation is wrong, or the injector leaves a pod alone that can't do without it */
export function admit(desired: DesiredPod, namespaceLabels: Readonly<Record<string, string>>, config: InjectionConfig): AdmittedPod {
  const { name, namespace, labels, annotations, ownerReferences } = desired;
  const pod = { metadata: { name, namespace, labels, annotations, ownerReferences }, spec: desired.spec } as unknown as InjectablePod;
  const result = injectPod({ pod, namespace, namespaceLabels, config });
  const spec = withoutAgentVolumes(result.pod.spec as unknown as PodSpec);
  const proxy = proxyPlan(spec);
  if (!proxy && !result.injected && annotations[TEMPLATES_ANNOTATION] !== undefined)
    throw new UnderpassError('UNDERPASS_LAB_INJECTION', `starting pod ${keyOf(desired)}: it has the annotation ${TEMPLATES_ANNOTATION}, but the injector left it alone: ${result.reason}`);
  return { labels: { ...result.pod.metadata.labels }, annotations: { ...result.pod.metadata.annotations }, spec, ...(proxy ? { proxy } : {}) };
}

function withoutAgentVolumes(spec: PodSpec): PodSpec {
  const containers = spec.containers.map((container) =>
    container.volumeMounts ? { ...container, volumeMounts: container.volumeMounts.filter(({ name }) => !AGENT_VOLUMES.has(name)) } : container,
  );
  return { ...spec, containers, ...(spec.volumes ? { volumes: spec.volumes.filter(({ name }) => !AGENT_VOLUMES.has(name)) } : {}) };
}

const ROLES = ['router', 'waypoint'] as const;

/** Injected or written so by the user, a proxy is started as `proxy sidecar`, `proxy router` or `proxy waypoint`. */
function proxyPlan(spec: PodSpec): ProxyPlan | undefined {
  // A native sidecar is an init container that goes on running.
  const lasting = (spec.initContainers ?? []).filter(({ restartPolicy }) => restartPolicy === 'Always');
  const container = [...spec.containers, ...lasting].find(({ name, image, args }) => (name === PROXY_CONTAINER || (image !== undefined && PROXY_IMAGES.has(imageName(image)))) && args?.[0] === 'proxy');
  if (!container) return undefined;
  const init = spec.initContainers?.find(({ name }) => name === INIT_CONTAINER);
  return { role: ROLES.find((role) => role === container.args?.[1]) ?? 'sidecar', container, ...(init ? { capture: parseIstioInit(init.args ?? []).capture } : {}) };
}
