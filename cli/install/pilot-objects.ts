/** Underpass's own control plane in a cluster, under the names that Istio's proxies know: the Service `istiod` of `istio-system`. */
import { webhookConfigurations } from '../../pilot/injector/configurations.js';
import { image } from './agent-objects.js';
import { LABELS, PILOT_ACCOUNT, ROOT_NAMESPACE, account, namespace, pilotRbac } from './rbac.js';
import { Json, Merged, Spread, Text, all, comment, is, optional, value, when, type Mapping, type Template } from './template.js';

export const PILOT = 'underpass-pilot';
const INJECTION = 'underpass-injection';
const VALIDATOR = 'ValidatingWebhookConfiguration';
/** On each of its pods. */
export const PILOT_PORTS = { secure: 15012, monitoring: 15014, webhook: 15017 };
const LABEL = { app: PILOT };
/** Until nobody is sent there any more. */
const DRAIN_SECONDS = 10;

const labels = { ...LABEL, ...LABELS, 'app.kubernetes.io/name': PILOT };
const meta = (name: string): Mapping => ({ name, namespace: ROOT_NAMESPACE, labels: LABELS });

/** As most configurations of Prometheus look for. */
const SCRAPED = { 'prometheus.io/scrape': 'true', 'prometheus.io/port': `${PILOT_PORTS.monitoring}`, 'prometheus.io/path': '/metrics' };

const podMonitor: Mapping = {
  apiVersion: 'monitoring.coreos.com/v1',
  kind: 'PodMonitor',
  metadata: { name: PILOT, namespace: ROOT_NAMESPACE, labels: new Merged('monitoring.labels', LABELS) },
  spec: { selector: { matchLabels: LABEL }, podMetricsEndpoints: [{ port: 'http-monitoring', path: '/metrics' }] },
};

const container: Mapping = {
  name: 'pilot',
  image,
  imagePullPolicy: value('image.pullPolicy'),
  args: [
    'pilot',
    `--secure-listen=0.0.0.0:${PILOT_PORTS.secure}`,
    `--webhook-listen=0.0.0.0:${PILOT_PORTS.webhook}`,
    `--monitoring-listen=0.0.0.0:${PILOT_PORTS.monitoring}`,
    '--injection-config=/etc/underpass/injection.yaml',
    `--drain-time=${DRAIN_SECONDS}s`,
    when(value('trustDomain'), new Text(['--trust-domain=', value('trustDomain')])),
    new Spread('pilot.extraArgs'),
  ],
  ports: [
    { name: 'tls-xds', containerPort: PILOT_PORTS.secure },
    { name: 'http-monitoring', containerPort: PILOT_PORTS.monitoring },
    { name: 'https-webhook', containerPort: PILOT_PORTS.webhook },
  ],
  securityContext: { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: ['ALL'] } },
  resources: value('pilot.resources'),
  startupProbe: comment('It lives, and is not ready, while the API server is away.', { httpGet: { path: '/live', port: PILOT_PORTS.monitoring }, periodSeconds: 1, failureThreshold: 60 }),
  readinessProbe: { httpGet: { path: '/ready', port: PILOT_PORTS.monitoring }, periodSeconds: 5 },
  livenessProbe: { httpGet: { path: '/live', port: PILOT_PORTS.monitoring }, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6 },
  volumeMounts: [{ name: 'injection', mountPath: '/etc/underpass', readOnly: true }],
};

const deployment: Mapping = {
  apiVersion: 'apps/v1',
  kind: 'Deployment',
  metadata: { name: PILOT, namespace: ROOT_NAMESPACE, labels },
  spec: {
    replicas: value('pilot.replicas'),
    selector: { matchLabels: LABEL },
    strategy: { type: 'RollingUpdate', rollingUpdate: { maxSurge: 1, maxUnavailable: 0 } },
    template: {
      metadata: { labels: { ...labels, 'sidecar.istio.io/inject': 'false' }, annotations: new Merged('pilot.podAnnotations', SCRAPED) },
      spec: {
        serviceAccountName: PILOT_ACCOUNT,
        priorityClassName: value('pilot.priorityClassName'),
        nodeSelector: optional('pilot.nodeSelector'),
        affinity: optional('pilot.affinity'),
        tolerations: optional('pilot.tolerations'),
        imagePullSecrets: optional('imagePullSecrets'),
        terminationGracePeriodSeconds: comment('One and a half times what it drains for, and a little.', 3 * DRAIN_SECONDS),
        securityContext: { runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, seccompProfile: { type: 'RuntimeDefault' } },
        topologySpreadConstraints: [{ maxSkew: 1, topologyKey: 'kubernetes.io/hostname', whenUnsatisfiable: 'ScheduleAnyway', labelSelector: { matchLabels: LABEL } }],
        containers: [container],
        volumes: [{ name: 'injection', configMap: { name: INJECTION } }],
      },
    },
  },
};

const service: Mapping = {
  apiVersion: 'v1',
  kind: 'Service',
  metadata: meta('istiod'),
  spec: {
    selector: LABEL,
    ports: [
      { name: 'https-dns', port: PILOT_PORTS.secure, targetPort: PILOT_PORTS.secure, protocol: 'TCP' },
      { name: 'https-webhook', port: 443, targetPort: PILOT_PORTS.webhook, protocol: 'TCP' },
      { name: 'http-monitoring', port: PILOT_PORTS.monitoring, targetPort: PILOT_PORTS.monitoring, protocol: 'TCP' },
    ],
  },
};

export const monitoringOnly = (port: number | string): Mapping => ({ from: [{ namespaceSelector: { matchLabels: value('networkPolicy.monitoringNamespaces') } }], ports: [{ port, protocol: 'TCP' }] });

const networkPolicy: Mapping = {
  apiVersion: 'networking.k8s.io/v1',
  kind: 'NetworkPolicy',
  metadata: meta(PILOT),
  spec: {
    podSelector: { matchLabels: LABEL },
    policyTypes: ['Ingress'],
    ingress: [
      comment('Agents and the API server come from nodes, sidecars and gateways from any namespace: who they are is proven by TLS and tokens.', { ports: [PILOT_PORTS.secure, PILOT_PORTS.webhook].map((port) => ({ port, protocol: 'TCP' })) }),
      monitoringOnly(PILOT_PORTS.monitoring),
    ],
  },
};

export function pilotObjects(): Template[] {
  const settings = [
    { apiVersion: 'v1', kind: 'ConfigMap', metadata: meta(INJECTION), data: { 'injection.yaml': new Text(['values: {proxyImage: "', value('pilot.proxyImage'), '", initImage: "', value('pilot.proxyImage'), '"}\n']) } },
  ];
  const always = [
    namespace(ROOT_NAMESPACE),
    account(PILOT_ACCOUNT, ROOT_NAMESPACE),
    ...pilotRbac(),
    ...settings,
    service,
    deployment,
    { apiVersion: 'policy/v1', kind: 'PodDisruptionBudget', metadata: meta(PILOT), spec: { maxUnavailable: 1, selector: { matchLabels: LABEL } } },
    ...webhooks(),
  ];
  return [
    ...always.map((object) => when(is('controlPlane', 'pilot'), object)),
    when(all(is('controlPlane', 'pilot'), value('meshConfig')), { apiVersion: 'v1', kind: 'ConfigMap', metadata: meta('istio'), data: { mesh: new Json('meshConfig') } }),
    when(all(is('controlPlane', 'pilot'), value('networkPolicy.enabled')), networkPolicy),
    when(all(is('controlPlane', 'pilot'), value('pilot.podMonitor')), podMonitor),
  ];
}

/** Without a CA: pilot writes its own there. */
function webhooks(): Mapping[] {
  const written = webhookConfigurations({ revision: 'default', caPem: '', target: { service: { name: 'istiod', namespace: ROOT_NAMESPACE, port: 443 } } }) as { kind: string; metadata: { labels: object }; webhooks: { clientConfig: { caBundle?: string } }[] }[];
  return written.map((configuration) => {
    const { metadata, webhooks: all, ...rest } = configuration;
    const without = all.map(({ clientConfig: { caBundle: _, ...clientConfig }, ...webhook }) => ({ ...webhook, clientConfig, ...(configuration.kind === VALIDATOR ? { failurePolicy: comment('Until pilot runs, which makes it Fail.', 'Ignore') } : {}) }));
    return { ...rest, metadata: { ...metadata, labels: { ...metadata.labels, ...LABELS } }, webhooks: without } as Mapping;
  });
}
