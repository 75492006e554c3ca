/** What an installation can be told: the chart's values.yaml, its schema, the table in docs/install.md and `--set` are all this list. */
import { VERSION } from '../../common/version.js';

interface Shared<T> {
  default: T;
  /** One line; the reader knows Kubernetes. */
  description: string;
}

export type Setting =
  | (Shared<string> & { type: 'string'; values?: readonly string[]; pattern?: string; expected?: string })
  | (Shared<boolean> & { type: 'boolean' })
  | (Shared<number> & { type: 'integer'; minimum: number; maximum?: number })
  | (Shared<readonly unknown[]> & { type: 'array'; items: 'string' | 'object' })
  /** `isTyped`: what is in it are not texts alone, so that `true` and numbers of `--set` are what they look like. */
  | (Shared<Readonly<Record<string, unknown>>> & { type: 'object'; isTyped?: boolean });

const string = (fallback: string, description: string, more: { values?: readonly string[]; pattern?: string; expected?: string } = {}): Setting => ({ type: 'string', default: fallback, description, ...more });
const boolean = (fallback: boolean, description: string): Setting => ({ type: 'boolean', default: fallback, description });
const integer = (fallback: number, minimum: number, description: string, maximum?: number): Setting => ({ type: 'integer', default: fallback, minimum, description, ...(maximum === undefined ? {} : { maximum }) });
const list = (items: 'string' | 'object', fallback: readonly unknown[], description: string): Setting => ({ type: 'array', items, default: fallback, description });
const mapping = (fallback: Readonly<Record<string, unknown>>, description: string): Setting => ({ type: 'object', default: fallback, description });
const typed = (description: string): Setting => ({ type: 'object', default: {}, description, isTyped: true });
const requests = (cpu: string, memory: string): Record<string, unknown> => ({ requests: { cpu, memory } });

const ADDRESS = { pattern: '^[^\\s:]+:[0-9]+$', expected: 'host:port' };
const PATH = { pattern: '^/', expected: 'an absolute path' };
const NAME = { pattern: '^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$', expected: 'a name' };
const NAME_OR_NONE = { pattern: '^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$', expected: 'a name, or nothing' };

export const SETTINGS = {
  controlPlane: string('pilot', 'whose configuration the agents follow: `pilot` installs Underpass\'s own in `istio-system`; `istiod` is one that is there already', { values: ['pilot', 'istiod'] }),
  discoveryAddress: string('istiod.istio-system.svc:15012', 'of control plane and CA, over TLS', ADDRESS),
  clusterId: string('Kubernetes', 'what the proxies name as the cluster that they are in', NAME),
  trustDomain: string('', 'SPIFFE trust domain; empty: what the control plane says', NAME_OR_NONE),
  meshConfig: typed("Istio's MeshConfig, as the ConfigMap `istio` of `istio-system`; empty: none is written. With `controlPlane: pilot` alone"),
  'image.repository': string('underpass', 'without tag', { pattern: '^[^\\s@]+$', expected: 'the name of an image' }),
  'image.tag': string(VERSION, 'used when there is no digest', { pattern: '^[\\w][\\w.-]{0,127}$', expected: 'a tag' }),
  'image.digest': string('', '`sha256:…`; goes before the tag', { pattern: '^(sha256:[0-9a-f]{64})?$', expected: 'sha256: and 64 hexadecimal digits, or nothing' }),
  'image.pullPolicy': string('IfNotPresent', 'of every container', { values: ['Always', 'IfNotPresent', 'Never'] }),
  imagePullSecrets: list('object', [], 'of every pod, e.g. `[{name: registry}]`'),
  'agent.ambientLabel': boolean(false, "`istio.io/dataplane-mode: ambient` counts as `underpass.io/mode: node`"),
  'agent.acceleration': string('l4', 'for pods without a label of their own', { values: ['off', 'l4', 'l7', 'force'] }),
  'agent.redirection': string('auto', 'for pods without a label of their own', { values: ['auto', 'bpf', 'iptables'] }),
  'agent.cniWhenAway': string('wait-labelled', 'what becomes of new pods while no agent answers', { values: ['wait-labelled', 'wait', 'go-on'] }),
  'agent.cniConfDir': string('/etc/cni/net.d', "of the node: where the container runtime reads its CNI configuration", PATH),
  'agent.cniBinDir': string('/opt/cni/bin', 'of the node: where the container runtime finds CNI plugins', PATH),
  'agent.runtimeNetnsDir': string('/run/netns', "of the node: where the container runtime keeps pods' network namespaces", PATH),
  'agent.podTokens': boolean(false, "for an istiod that does not trust the agents: they ask by tokens of their pods' accounts ([what that gives them](control-plane.md#with-istiod))"),
  'agent.extraArgs': list('string', [], 'further options of `underpass agent`'),
  'agent.resources': mapping(requests('100m', '150Mi'), "of the agent's container"),
  'agent.envoyResources': mapping(requests('100m', '128Mi'), "of the container of the node's Envoy; a memory limit that it reaches ends every connection through it"),
  'agent.priorityClassName': string('system-node-critical', 'of the agent', NAME),
  'agent.nodeSelector': mapping({ 'kubernetes.io/os': 'linux' }, 'which nodes have an agent'),
  'agent.affinity': typed('of the agent'),
  'agent.tolerations': list('object', [{ operator: 'Exists' }], 'by default it runs on every node'),
  'agent.metricsPort': integer(15020, 0, "of each node's address, where the agent serves `/metrics` [to whoever reaches it](#who-may-reach-what); 0: nowhere", 65_535),
  'agent.dashboardPort': integer(0, 0, 'of 127.0.0.1 of each node, where the agent serves [its node\'s dashboard](observability.md#the-dashboard) to who has its token; 0: nowhere', 65_535),
  'agent.podMonitor': boolean(false, "a PodMonitor of Prometheus' operator, whose kinds have to be there"),
  'agent.podAnnotations': mapping({}, "of the agent's pods, beside `prometheus.io/scrape` and its like, or in their place"),
  'agent.terminationGracePeriodSeconds': integer(120, 1, 'within which an agent that is uninstalled cleans up its node, and Envoy ends: 60 s in which a successor may take it over, 45 s of draining'),
  'pilot.replicas': integer(2, 1, 'all serve, one of them writes to the cluster'),
  'pilot.proxyImage': string('docker.io/istio/proxyv2:1.27.0', "of sidecars and gateways: Istio's", { pattern: '^[A-Za-z0-9[][A-Za-z0-9._/:@[\\]-]*$', expected: 'the name of an image' }),
  'pilot.extraArgs': list('string', [], 'further options of `underpass pilot`'),
  'pilot.resources': mapping(requests('100m', '256Mi'), 'of its container'),
  'pilot.priorityClassName': string('system-cluster-critical', 'of its pods', NAME),
  'pilot.nodeSelector': mapping({ 'kubernetes.io/os': 'linux' }, 'of its pods'),
  'pilot.affinity': typed('of its pods, which prefer different nodes by themselves'),
  'pilot.tolerations': list('object', [], 'of its pods'),
  'pilot.podMonitor': boolean(false, "a PodMonitor of Prometheus' operator, whose kinds have to be there"),
  'pilot.podAnnotations': mapping({}, 'of its pods, beside `prometheus.io/scrape` and its like, or in their place'),
  'monitoring.dashboards': boolean(false, '[Grafana dashboards](observability.md#dashboards), each a ConfigMap of `underpass-system`'),
  'monitoring.dashboardLabels': mapping({ grafana_dashboard: '1' }, "of these ConfigMaps, by which the sidecar of Grafana's chart finds them"),
  'monitoring.prometheusRule': boolean(false, "[recordings and alerts](observability.md#rules-and-alerts) as a PrometheusRule of Prometheus' operator, whose kinds have to be there"),
  'monitoring.labels': mapping({}, 'of PrometheusRule and PodMonitors, where the operator selects them by labels, e.g. `{release: kube-prometheus-stack}`'),
  'networkPolicy.enabled': boolean(true, 'who may reach pilot and the gateways. Agents are on the nodes\' own network, where NetworkPolicy has no say'),
  'networkPolicy.monitoringNamespaces': mapping({ 'kubernetes.io/metadata.name': 'monitoring' }, 'labels of the namespaces that may read metrics'),
  ...gateway('ingress', 'for traffic from outside, `istio: ingressgateway`', 'LoadBalancer'),
  ...gateway('egress', 'for traffic to the outside, `istio: egressgateway`', 'ClusterIP'),
  ...gateway('eastWest', 'for traffic from other networks of the mesh, `istio: eastwestgateway`', 'LoadBalancer'),
  'gateways.eastWest.network': string('', 'whose gateway it is; needed when it is enabled', NAME_OR_NONE),
} satisfies Record<string, Setting>;

function gateway<Name extends string>(name: Name, what: string, type: string): Record<`gateways.${Name}.${'enabled' | 'replicas' | 'serviceType' | 'serviceAnnotations' | 'resources'}`, Setting> {
  const of: Record<string, Setting> = {
    [`gateways.${name}.enabled`]: boolean(false, `a gateway ${what}; its proxy is what the control plane injects`),
    [`gateways.${name}.replicas`]: integer(2, 1, 'a PodDisruptionBudget keeps one'),
    [`gateways.${name}.serviceType`]: string(type, 'of its Service', { values: ['ClusterIP', 'NodePort', 'LoadBalancer'] }),
    [`gateways.${name}.serviceAnnotations`]: mapping({}, "of its Service, e.g. for the cloud's load balancer"),
    [`gateways.${name}.resources`]: mapping(requests('100m', '128Mi'), 'of its proxy'),
  };
  return of as Record<`gateways.${Name}.${'enabled' | 'replicas' | 'serviceType' | 'serviceAnnotations' | 'resources'}`, Setting>;
}

export type SettingPath = keyof typeof SETTINGS;

/** By path; every one is there. */
export type Values = Readonly<Record<SettingPath, unknown>>;

export const settings = Object.entries(SETTINGS) as [SettingPath, Setting][];

export const DEFAULTS = Object.fromEntries(settings.map(([path, setting]) => [path, setting.default])) as Values;

/** What is wrong with a value; undefined: nothing. */
export function problemOf(setting: Setting, found: unknown): string | undefined {
  const wrong = (expected: string): string => `found ${JSON.stringify(found)}, expected ${expected}`;
  switch (setting.type) {
    case 'string':
      if (typeof found !== 'string') return wrong('text');
      if (setting.values && !setting.values.includes(found)) return wrong(`one of ${setting.values.join(', ')}`);
      return setting.pattern !== undefined && !new RegExp(setting.pattern).test(found) ? wrong(setting.expected ?? setting.pattern) : undefined;
    case 'boolean':
      return typeof found === 'boolean' ? undefined : wrong('true or false');
    case 'integer':
      return Number.isSafeInteger(found) && (found as number) >= setting.minimum && (found as number) <= (setting.maximum ?? Infinity) ? undefined : wrong(`a whole number from ${setting.minimum}${setting.maximum === undefined ? '' : ` to ${setting.maximum}`}`);
    case 'array':
      return Array.isArray(found) && found.every((item) => (setting.items === 'string' ? typeof item === 'string' : isMapping(item))) ? undefined : wrong(`a list of ${setting.items === 'string' ? 'texts' : 'mappings'}`);
    case 'object':
      return isMapping(found) ? undefined : wrong('a mapping');
  }
}

export function isMapping(found: unknown): found is Record<string, unknown> {
  return typeof found === 'object' && found !== null && !Array.isArray(found);
}
