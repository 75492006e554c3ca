/**
 * Sidecar injection as a pure function: a pod and its namespace's labels in, the pod with its proxy out, in Istio's shape.
 * The webhook answers with it, the lab applies it to its own pods.
 */
import { UnderpassError } from '../errors.js';
import { captureArguments, checkAnnotations, proxyConfig, proxyResources, userVolumes } from './annotations.js';
import type { InjectionConfig } from './config.js';
import { INIT_CONTAINER, PROXY_CONTAINER, STATUS_ANNOTATION, strategicMerge, type InjectableContainer, type InjectablePod } from './pod.js';
import { decide } from './policy.js';
import { rewriteProbes } from './probes.js';
import { render, type Scope } from './template.js';

export interface InjectionInput {
  pod: InjectablePod;
  namespace: string;
  namespaceLabels: Readonly<Record<string, string>>;
  config: InjectionConfig;
}

export type InjectionResult = { pod: InjectablePod; injected: true } | { pod: InjectablePod; injected: false; reason: string };

const HEALTH = { httpGet: { path: '/healthz/ready', port: 15021 } };

interface Workload {
  name: string;
  /** As Istio's proxies name it, `kubernetes://apis/apps/v1/namespaces/shop/deployments/web`. */
  owner: string | undefined;
}

/** A ReplicaSet stands for its Deployment: its name without the hash. */
export function workloadOf(pod: InjectablePod, namespace: string): Workload {
  const { name = '', generateName = '', ownerReferences = [], labels = {} } = pod.metadata;
  const controller = ownerReferences.find((reference) => reference.controller) ?? ownerReferences[0];
  const own = name || generateName.replace(/-$/, '');
  if (!controller) return { name: own, owner: own ? `kubernetes://apis/v1/namespaces/${namespace}/pods/${own}` : undefined };
  const hash = labels['pod-template-hash'];
  const isDeployment = controller.kind === 'ReplicaSet' && hash !== undefined && controller.name.endsWith(`-${hash}`);
  const workload = isDeployment ? controller.name.slice(0, -hash.length - 1) : controller.name;
  const kind = isDeployment ? 'deployment' : controller.kind.toLowerCase();
  return { name: workload, owner: `kubernetes://apis/${controller.apiVersion ?? 'apps/v1'}/namespaces/${namespace}/${kind}s/${workload}` };
}

/**
 * @returns the pod as it is to be; the one given when it is to be left alone, with the reason
 * @throws UnderpassError `UNDERPASS_INJECTION` when an annotation or a template is wrong
 */
export function injectPod(input: InjectionInput): InjectionResult {
  const { pod, namespace, config } = input;
  const decision = decide({ ...input, revision: config.revision, defaultTemplates: config.defaultTemplates });
  if (!decision.inject) return { pod, injected: false, reason: decision.reason };
  checkAnnotations(pod.metadata.annotations ?? {});
  const scope = scopeOf(input, decision.templates);
  let rendered: unknown = {};
  for (const name of decision.templates) {
    const template = config.templates[name];
    if (template === undefined)
      throw new UnderpassError('UNDERPASS_INJECTION', `metadata.annotations[inject.istio.io/templates]: there is no template ${name}; there are ${Object.keys(config.templates).sort().join(', ')}`);
    rendered = strategicMerge(rendered, render(template, scope));
  }
  const own = ownProxy(pod);
  const merged = strategicMerge(withoutOwnProxy(pod), rendered) as InjectablePod;
  const withOverride = own ? (strategicMerge(merged, { spec: { containers: [own] } }) as InjectablePod) : merged;
  return { pod: finished(withOverride, rendered as Partial<InjectablePod>, input, decision.templates), injected: true };
}

/** A container that the user wrote for the proxy: what it says goes over the template, but for the image `auto`. */
function ownProxy(pod: InjectablePod): InjectableContainer | undefined {
  const own = pod.spec.containers.find(({ name }) => name === PROXY_CONTAINER);
  if (!own) return undefined;
  const { image, ...rest } = own;
  return image === undefined || image === 'auto' ? rest : own;
}

function withoutOwnProxy(pod: InjectablePod): InjectablePod {
  return { ...pod, spec: { ...pod.spec, containers: pod.spec.containers.filter(({ name }) => name !== PROXY_CONTAINER) } };
}

function scopeOf({ pod, namespace, config }: InjectionInput, templates: readonly string[]): Scope {
  const { values, revision } = config;
  const { labels = {}, annotations = {} } = pod.metadata;
  const containers = pod.spec.containers.filter(({ name }) => name !== PROXY_CONTAINER);
  const workload = workloadOf(pod, namespace);
  const settings = proxyConfig(annotations, values);
  const interceptionMode = annotations['sidecar.istio.io/interceptionMode'] ?? (settings['interceptionMode'] as string | undefined) ?? 'REDIRECT';
  const metadata = (settings['proxyMetadata'] ?? {}) as Record<string, unknown>;
  const readiness = (field: string, otherwise: number): number => Number(annotations[`readiness.status.sidecar.istio.io/${field}`] ?? otherwise);
  const delay = readiness('initialDelaySeconds', 0);
  const probed = annotations['status.sidecar.istio.io/port'] !== '0';
  const isSidecar = !templates.includes('gateway');
  return {
    labels,
    annotations,
    namespace,
    revision,
    values,
    workload,
    network: labels['topology.istio.io/network'] ?? values.network,
    serviceAccount: pod.spec.serviceAccountName ?? 'default',
    canonical: {
      name: labels['service.istio.io/canonical-name'] ?? labels['app.kubernetes.io/name'] ?? labels['app'] ?? workload.name,
      revision: labels['service.istio.io/canonical-revision'] ?? labels['app.kubernetes.io/version'] ?? labels['version'] ?? 'latest',
    },
    app: {
      first: containers[0]?.name,
      containers: containers.map(({ name }) => name).join(','),
      ports: JSON.stringify(pod.spec.containers.flatMap(({ ports = [] }) => ports)),
    },
    capture: { arguments: isSidecar ? captureArguments(annotations, values, interceptionMode) : undefined },
    proxy: {
      image: annotations['sidecar.istio.io/proxyImage'] ?? values.proxyImage,
      config: JSON.stringify(settings),
      environment: Object.entries(metadata).map(([name, value]) => ({ name, value: String(value) })),
      interceptionMode,
      // Others are to know that it takes HBONE.
      tunnel: metadata['ISTIO_META_ENABLE_HBONE'] === 'true' ? (labels['networking.istio.io/tunnel'] ?? 'http') : undefined,
      logLevel: annotations['sidecar.istio.io/logLevel'] ?? values.logLevel,
      componentLogLevel: annotations['sidecar.istio.io/componentLogLevel'] ?? values.componentLogLevel,
      agentLogLevel: annotations['sidecar.istio.io/agentLogLevel'] ?? values.agentLogLevel,
      resources: proxyResources(annotations, values),
      startupProbe: probed ? { ...HEALTH, initialDelaySeconds: 0, periodSeconds: 1, timeoutSeconds: 3, failureThreshold: 600 } : undefined,
      readinessProbe: probed ? { ...HEALTH, ...(delay > 0 ? { initialDelaySeconds: delay } : {}), periodSeconds: readiness('periodSeconds', 15), timeoutSeconds: 3, failureThreshold: readiness('failureThreshold', 4) } : undefined,
      // The kubelet starts containers in order and waits for each one's postStart.
      lifecycle: settings['holdApplicationUntilProxyStarts'] === true ? { postStart: { exec: { command: ['pilot-agent', 'wait'] } } } : undefined,
      userVolumes: userVolumes(annotations, 'userVolume'),
      userMounts: userVolumes(annotations, 'userVolumeMount'),
    },
  };
}

/** Order of containers, rewritten probes, and the annotation that says what was done. */
function finished(pod: InjectablePod, rendered: Partial<InjectablePod>, { pod: before, config }: InjectionInput, templates: readonly string[]): InjectablePod {
  const { annotations = {} } = before.metadata;
  const hold = pod.spec.containers.some(({ name, lifecycle }) => name === PROXY_CONTAINER && lifecycle !== undefined);
  let apps = pod.spec.containers.filter(({ name }) => name !== PROXY_CONTAINER);
  let proxy = pod.spec.containers.filter(({ name }) => name === PROXY_CONTAINER);
  const rewrites = !templates.includes('gateway') && (annotations['sidecar.istio.io/rewriteAppHTTPProbers'] ?? String(config.values.rewriteAppHTTPProbe)) === 'true';
  if (rewrites) {
    const { containers, probers } = rewriteProbes(apps, Number(annotations['status.sidecar.istio.io/port'] ?? config.values.statusPort));
    apps = containers;
    if (Object.keys(probers).length) {
      const variable = { name: 'ISTIO_KUBE_APP_PROBERS', value: JSON.stringify(probers) };
      proxy = proxy.map((container) => ({ ...container, env: [...(container.env ?? []).filter(({ name }) => name !== variable.name), variable] }));
    }
  }
  const native = !templates.includes('gateway') && (annotations['sidecar.istio.io/nativeSidecar'] ?? String(config.values.nativeSidecars)) === 'true';
  const lasting = native ? proxy.map((container): InjectableContainer => ({ ...container, restartPolicy: 'Always' })) : [];
  if (native) proxy = [];
  const init = pod.spec.initContainers ?? [];
  // Rules come last: until then the pod's own init containers reach the network.
  const ordered = [...init.filter(({ name }) => name !== INIT_CONTAINER), ...init.filter(({ name }) => name === INIT_CONTAINER), ...lasting];
  const names = (items: readonly { name: string }[] | undefined): string[] | null => (items?.length ? items.map(({ name }) => name) : null);
  const [startedFirst, started] = [rendered.spec?.initContainers ?? [], rendered.spec?.containers ?? []];
  const status = { initContainers: names(native ? [...startedFirst, ...started] : startedFirst), containers: names(native ? [] : started), volumes: names(rendered.spec?.volumes), imagePullSecrets: names(rendered.spec?.['imagePullSecrets'] as { name: string }[] | undefined), revision: config.revision };
  return {
    ...pod,
    metadata: { ...pod.metadata, annotations: { ...pod.metadata.annotations, [STATUS_ANNOTATION]: JSON.stringify(status) } },
    spec: { ...pod.spec, containers: hold ? [...proxy, ...apps] : [...apps, ...proxy], ...(ordered.length ? { initContainers: ordered } : {}) },
  };
}
