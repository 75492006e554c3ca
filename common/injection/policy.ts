/** Whether a pod gets a sidecar, or a gateway its proxy: labels of the pod and of its namespace, as Istio's webhooks select. */
import { PROXY_CONTAINER, STATUS_ANNOTATION, type InjectablePod } from './pod.js';

export const INJECT_LABEL = 'sidecar.istio.io/inject';
export const INJECTION_NAMESPACE_LABEL = 'istio-injection';
export const REVISION_LABEL = 'istio.io/rev';
export const TEMPLATES_ANNOTATION = 'inject.istio.io/templates';
const MODE_LABEL = 'underpass.io/mode';

/** Istio never injects there, whatever the labels say. */
const SYSTEM_NAMESPACES: ReadonlySet<string> = new Set(['kube-system', 'kube-public', 'kube-node-lease', 'local-path-storage']);
/** YAML's words for true, as Istio takes them. */
const YES: ReadonlySet<string> = new Set(['y', 'yes', 'true', 'on']);

export type Decision = { inject: true; templates: string[] } | { inject: false; reason: string };

export interface PolicyInput {
  pod: InjectablePod;
  namespace: string;
  namespaceLabels: Readonly<Record<string, string>>;
  /** This control plane's; the default one goes by `istio-injection: enabled` too. */
  revision: string;
  defaultTemplates: readonly string[];
}

const no = (reason: string): Decision => ({ inject: false, reason });

export function decide(input: PolicyInput): Decision {
  const { pod, namespace, namespaceLabels } = input;
  const { labels = {}, annotations = {} } = pod.metadata;
  if (pod.spec.hostNetwork === true) return no("it uses the node's own network (hostNetwork)");
  if (SYSTEM_NAMESPACES.has(namespace)) return no(`${namespace} is one of Kubernetes' own namespaces`);
  const injected = annotations[STATUS_ANNOTATION] !== undefined && [...pod.spec.containers, ...(pod.spec.initContainers ?? [])].some(({ name, image }) => name === PROXY_CONTAINER && image !== 'auto');
  if (injected) return no('it has been injected already');
  const given = annotations[TEMPLATES_ANNOTATION];
  const templates = given === undefined ? [...input.defaultTemplates] : given.split(',').map((name) => name.trim()).filter(Boolean);
  const refused = byLabels(input, templates);
  return refused === undefined ? { inject: true, templates } : no(refused);
}

/** Why the labels say no. */
function byLabels({ pod, namespaceLabels, revision }: PolicyInput, templates: readonly string[]): string | undefined {
  const { labels = {}, annotations = {} } = pod.metadata;
  const own = labels[INJECT_LABEL] ?? annotations[INJECT_LABEL];
  const wanted = own === undefined || own === '' ? undefined : YES.has(own.toLowerCase());
  // A gateway is no application: the node's proxy does not stand in for it.
  const mode = templates.includes('gateway') ? undefined : (labels[MODE_LABEL] ?? namespaceLabels[MODE_LABEL]);
  if (mode === 'node') return "underpass.io/mode=node: the node's proxy takes its traffic";
  if (mode === 'off') return 'underpass.io/mode=off';
  if (wanted === false) return `${INJECT_LABEL}=${own}`;
  if (mode === 'sidecar') return undefined;
  const injection = namespaceLabels[INJECTION_NAMESPACE_LABEL];
  if (injection === 'disabled') return `the namespace has ${INJECTION_NAMESPACE_LABEL}=disabled`;
  // `istio-injection` of a namespace goes before a revision, as in Istio.
  const named = injection === 'enabled' ? 'default' : (namespaceLabels[REVISION_LABEL] ?? (labels[INJECT_LABEL] !== undefined && wanted ? (labels[REVISION_LABEL] ?? 'default') : undefined));
  if (named === undefined) return 'neither the pod nor its namespace asks for injection';
  return named === revision ? undefined : `revision ${named} is another control plane's`;
}
