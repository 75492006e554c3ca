/**
 * Gateways that Istio's own Gateway objects select by their labels. Their proxy is put in by the control plane's injector, pilot's
 * or istiod's, as in Istio's chart. Those of the Gateway API need none of this: pilot brings their proxies up.
 */
import { LABELS, ROOT_NAMESPACE, account } from './rbac.js';
import { monitoringOnly } from './pilot-objects.js';
import { all, comment, optional, value, when, type Mapping, type Template } from './template.js';

interface Kind {
  key: 'ingress' | 'egress' | 'eastWest';
  name: string;
  /** Of the label `istio`. */
  role: string;
  /** Of the Service; `target`: where the proxy listens, if elsewhere. */
  ports: readonly { name: string; port: number }[];
}

const STATUS = { name: 'status-port', port: 15021 };
const KINDS: readonly Kind[] = [
  { key: 'ingress', name: 'istio-ingressgateway', role: 'ingressgateway', ports: [STATUS, { name: 'http2', port: 80 }, { name: 'https', port: 443 }] },
  { key: 'egress', name: 'istio-egressgateway', role: 'egressgateway', ports: [{ name: 'http2', port: 80 }, { name: 'https', port: 443 }] },
  { key: 'eastWest', name: 'istio-eastwestgateway', role: 'eastwestgateway', ports: [STATUS, { name: 'tls', port: 15443 }] },
];
/** Statistics, and the merged ones of Istio's agent. */
const METRICS_PORTS = [15020, 15090];

export function gatewayObjects(): Template[] {
  return KINDS.flatMap((kind) => gateway(kind));
}

function gateway({ key, name, role, ports }: Kind): Template[] {
  const isEastWest = key === 'eastWest';
  const enabled = value(`gateways.${key}.enabled`);
  const selector = { app: name, istio: role };
  const network: Mapping = isEastWest ? { 'topology.istio.io/network': value('gateways.eastWest.network') } : {};
  const meta: Mapping = { name, namespace: ROOT_NAMESPACE, labels: { ...selector, ...LABELS, ...network } };
  const proxy: Mapping = {
    name: 'istio-proxy',
    image: comment('The injector names it.', 'auto'),
    ...(isEastWest ? { env: [{ name: 'ISTIO_META_REQUESTED_NETWORK_VIEW', value: value('gateways.eastWest.network') }] } : {}),
    resources: value(`gateways.${key}.resources`),
  };
  const deployment: Mapping = {
    apiVersion: 'apps/v1',
    kind: 'Deployment',
    metadata: meta,
    spec: {
      replicas: value(`gateways.${key}.replicas`),
      selector: { matchLabels: selector },
      strategy: { type: 'RollingUpdate', rollingUpdate: { maxSurge: 1, maxUnavailable: 0 } },
      template: {
        metadata: { labels: { ...selector, ...LABELS, ...network, 'sidecar.istio.io/inject': 'true' }, annotations: { 'inject.istio.io/templates': 'gateway' } },
        spec: {
          serviceAccountName: name,
          imagePullSecrets: optional('imagePullSecrets'),
          topologySpreadConstraints: [{ maxSkew: 1, topologyKey: 'kubernetes.io/hostname', whenUnsatisfiable: 'ScheduleAnyway', labelSelector: { matchLabels: selector } }],
          containers: [proxy],
        },
      },
    },
  };
  const service: Mapping = {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: { ...meta, annotations: optional(`gateways.${key}.serviceAnnotations`) },
    spec: { type: value(`gateways.${key}.serviceType`), selector, ports: ports.map((port) => ({ ...port, targetPort: port.port, protocol: 'TCP' })) },
  };
  const callers: Template = key === 'egress' ? { from: [comment('Pods of this cluster alone.', { namespaceSelector: {} })], ports: portsOf(ports) } : { ports: portsOf(ports) };
  const policy: Mapping = {
    apiVersion: 'networking.k8s.io/v1',
    kind: 'NetworkPolicy',
    metadata: meta,
    spec: { podSelector: { matchLabels: selector }, policyTypes: ['Ingress'], ingress: [callers, ...METRICS_PORTS.map((port) => monitoringOnly(port))] },
  };
  return [
    ...[account(name, ROOT_NAMESPACE), service, deployment, { apiVersion: 'policy/v1', kind: 'PodDisruptionBudget', metadata: meta, spec: { maxUnavailable: 1, selector: { matchLabels: selector } } }].map((object) => when(enabled, object)),
    when(all(enabled, value('networkPolicy.enabled')), policy),
  ];
}

const portsOf = (ports: Kind['ports']): Template => ports.map(({ port }) => ({ port, protocol: 'TCP' }));
