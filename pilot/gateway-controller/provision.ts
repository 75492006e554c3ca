/**
 * What a Gateway of the Gateway API brings up: a ServiceAccount, a Deployment with one gateway proxy and a Service, named and
 * labelled as Istio's deployment controller does. A pure function of the Gateway and the installation's values.
 */
import type { InjectionValues } from '../../common/injection/config.js';
import type { GatewayClass, KubeGateway, KubeObject } from '../../common/kube/types.js';

/** Classes that are there without a GatewayClass object. */
const EAST_WEST_CLASS = 'istio-east-west';
const WAYPOINT_CLASS = 'istio-waypoint';
const WAYPOINT_CONTROLLER = 'istio.io/mesh-controller';
export const BUILTIN_CLASSES: ReadonlySet<string> = new Set(['istio', 'underpass', EAST_WEST_CLASS, WAYPOINT_CLASS]);
export const CONTROLLERS: ReadonlySet<string> = new Set(['istio.io/gateway-controller', 'underpass.io/gateway-controller', 'istio.io/eastwest-controller']);
export const GATEWAY_NAME_LABEL = 'gateway.networking.k8s.io/gateway-name';
const GATEWAY_CLASS_LABEL = 'gateway.networking.k8s.io/gateway-class-name';
/** Istio's older name of the label, still selected by. */
const OLD_NAME_LABEL = 'istio.io/gateway-name';
const NAME_OVERRIDE = 'gateway.istio.io/name-override';
const ACCOUNT_OVERRIDE = 'gateway.istio.io/service-account';
const SERVICE_TYPE = 'networking.istio.io/service-type';
/** On Deployments that were brought up. */
export const MANAGED_LABEL = 'gateway.istio.io/managed';
const STATUS_PORT = 15021;
const MAX_NAME_LENGTH = 63;
const OWN_ANNOTATIONS: ReadonlySet<string> = new Set(['kubectl.kubernetes.io/last-applied-configuration', NAME_OVERRIDE, ACCOUNT_OVERRIDE, 'gateway.istio.io/controller-version']);

/** The class's controller is this one's, by a GatewayClass object or by its well-known name. */
export function isOurs(gateway: KubeGateway, classes: ReadonlyMap<string, GatewayClass>): boolean {
  const name = gateway.spec.gatewayClassName;
  const given = classes.get(name);
  if (!given) return BUILTIN_CLASSES.has(name);
  return CONTROLLERS.has(given.spec.controllerName) || isWaypointClass(given);
}

/** Of the controller's other classes waypoints are run by others. */
export function isWaypointClass({ metadata, spec }: GatewayClass): boolean {
  return metadata.name === WAYPOINT_CLASS && spec.controllerName === WAYPOINT_CONTROLLER;
}

/** Services and workloads are reached through it. */
export function isWaypoint({ spec }: KubeGateway): boolean {
  return spec.gatewayClassName === WAYPOINT_CLASS;
}

/** It takes HBONE from other networks. */
export function isEastWest({ spec }: KubeGateway): boolean {
  return spec.gatewayClassName === EAST_WEST_CLASS;
}

/**
 * Without addresses, or with one IP that the Service is to ask for, the gateway's proxy is brought up. A host name is that of
 * a Service that somebody else runs, and several addresses fit no Service.
 */
export function isManaged({ spec }: KubeGateway): boolean {
  const { addresses = [] } = spec;
  return addresses.length === 0 || (addresses.length === 1 && (addresses[0]?.type ?? 'IPAddress') === 'IPAddress');
}

export function deploymentName(gateway: KubeGateway): string {
  const { metadata, spec } = gateway;
  return metadata.annotations?.[NAME_OVERRIDE] ?? (isEastWest(gateway) || isWaypoint(gateway) ? metadata.name : `${metadata.name}-${spec.gatewayClassName}`);
}

interface ServicePort {
  name: string;
  port: number;
  protocol: 'TCP';
  appProtocol: string;
}

/** One port a number; names are the listeners', as far as a port's name can hold them. */
export function servicePorts({ spec }: KubeGateway): ServicePort[] {
  const ports: ServicePort[] = [{ name: 'status-port', port: STATUS_PORT, protocol: 'TCP', appProtocol: 'tcp' }];
  spec.listeners.forEach((listener, index) => {
    if (ports.some(({ port }) => port === listener.port)) return;
    const protocol = listener.protocol.toLowerCase();
    const wanted = (listener.name || `${protocol}-${index}`).toLowerCase().replaceAll(/[^a-z0-9-]/g, '-').slice(0, MAX_NAME_LENGTH).replaceAll(/^-+|-+$/g, '');
    const name = wanted === '' || ports.some((port) => port.name === wanted) ? `port-${listener.port}` : wanted;
    ports.push({ name, port: listener.port, protocol: 'TCP', appProtocol: protocol });
  });
  return ports;
}

function without(map: Readonly<Record<string, string>>, keys: (key: string) => boolean): Record<string, string> {
  return Object.fromEntries(Object.entries(map).filter(([key]) => !keys(key)));
}

export interface ProvisionOptions {
  values: InjectionValues;
  revision: string;
}

/** ServiceAccount, Deployment and Service. */
export function provision(gateway: KubeGateway, { values, revision }: ProvisionOptions): KubeObject[] {
  const { metadata, spec } = gateway;
  const namespace = metadata.namespace ?? 'default';
  const name = deploymentName(gateway);
  const account = metadata.annotations?.[ACCOUNT_OVERRIDE] ?? name;
  // What infrastructure says goes before the Gateway's own, as soon as it says anything.
  const given = spec.infrastructure;
  const annotations = without(given ? (given.annotations ?? {}) : (metadata.annotations ?? {}), (key) => OWN_ANNOTATIONS.has(key));
  const infrastructure = without(given ? (given.labels ?? {}) : (metadata.labels ?? {}), (key) => key === 'istio.io/rev');
  const labels = { ...infrastructure, [GATEWAY_NAME_LABEL]: metadata.name, [GATEWAY_CLASS_LABEL]: spec.gatewayClassName };
  const waypoint = isWaypoint(gateway);
  const managed = { ...labels, [MANAGED_LABEL]: waypoint ? 'istio.io-mesh-controller' : isEastWest(gateway) ? 'istio.io-eastwest-controller' : 'istio.io-gateway-controller' };
  const selector = { [GATEWAY_NAME_LABEL]: metadata.name };
  const ownerReferences = [{ apiVersion: gateway.apiVersion, kind: 'Gateway', name: metadata.name, ...(metadata.uid ? { uid: metadata.uid } : {}), controller: true }];
  const meta = (own: string, more: Record<string, string>): KubeObject['metadata'] => ({ name: own, namespace, labels: more, ...(Object.keys(annotations).length ? { annotations } : {}), ownerReferences });
  const type = (metadata.annotations ?? {})[SERVICE_TYPE] ?? given?.annotations?.[SERVICE_TYPE] ?? (waypoint ? 'ClusterIP' : 'LoadBalancer');
  const address = spec.addresses?.[0]?.value;
  const template = {
    metadata: {
      labels: { 'sidecar.istio.io/inject': 'false', 'service.istio.io/canonical-name': name, 'service.istio.io/canonical-revision': 'latest', ...managed, [OLD_NAME_LABEL]: metadata.name, ...(waypoint ? { 'istio.io/dataplane-mode': 'none' } : {}) },
      annotations: { ...annotations, 'istio.io/rev': revision },
    },
    spec: {
      serviceAccountName: account,
      securityContext: { sysctls: [{ name: 'net.ipv4.ip_unprivileged_port_start', value: '0' }] },
      containers: [proxyContainer(waypoint ? 'waypoint' : 'router', name, namespace, values, infrastructure['topology.istio.io/network'])],
      volumes: proxyVolumes(values),
    },
  };
  const service = { type, ipFamilyPolicy: 'PreferDualStack', selector, ports: servicePorts(gateway), ...(address && type === 'LoadBalancer' ? { loadBalancerIP: address } : {}) };
  const objects = [
    { apiVersion: 'v1', kind: 'ServiceAccount', metadata: meta(account, labels) },
    { apiVersion: 'apps/v1', kind: 'Deployment', metadata: meta(name, managed), spec: { selector: { matchLabels: selector }, template } },
    { apiVersion: 'v1', kind: 'Service', metadata: waypoint ? nearby(meta(name, managed)) : meta(name, labels), spec: service },
  ];
  // An account that the Gateway names is somebody else's.
  return metadata.annotations?.[ACCOUNT_OVERRIDE] === undefined ? objects : objects.slice(1);
}

/** Clients go to the waypoints of their zone first, as Istio has it. */
function nearby(metadata: KubeObject['metadata']): KubeObject['metadata'] {
  return { ...metadata, annotations: { 'networking.istio.io/traffic-distribution': 'PreferClose', ...metadata.annotations } };
}

function proxyContainer(role: 'router' | 'waypoint', name: string, namespace: string, values: InjectionValues, ownNetwork: string | undefined): object {
  const field = (variable: string, fieldPath: string): object => ({ name: variable, valueFrom: { fieldRef: { fieldPath } } });
  const network = ownNetwork ?? values.network;
  const health = { httpGet: { path: '/healthz/ready', port: STATUS_PORT, scheme: 'HTTP' }, successThreshold: 1, timeoutSeconds: 1 };
  return {
    name: 'istio-proxy',
    image: values.proxyImage,
    ports: [
      { name: 'metrics', containerPort: 15020, protocol: 'TCP' },
      { name: 'status-port', containerPort: STATUS_PORT, protocol: 'TCP' },
      { name: 'http-envoy-prom', containerPort: 15090, protocol: 'TCP' },
    ],
    args: ['proxy', role, '--domain', `$(POD_NAMESPACE).svc.${values.clusterDomain}`, '--proxyLogLevel', values.logLevel, '--proxyComponentLogLevel', values.componentLogLevel, '--log_output_level', values.agentLogLevel],
    env: [
      { name: 'PILOT_CERT_PROVIDER', value: 'istiod' },
      { name: 'CA_ADDR', value: values.caAddress },
      field('POD_NAME', 'metadata.name'),
      field('POD_NAMESPACE', 'metadata.namespace'),
      field('INSTANCE_IP', 'status.podIP'),
      field('SERVICE_ACCOUNT', 'spec.serviceAccountName'),
      field('HOST_IP', 'status.hostIP'),
      { name: 'PROXY_CONFIG', value: JSON.stringify(values.proxyConfig) },
      { name: 'ISTIO_META_POD_PORTS', value: '[]' },
      { name: 'ISTIO_META_APP_CONTAINERS', value: '' },
      { name: 'ISTIO_META_CLUSTER_ID', value: values.clusterId },
      field('ISTIO_META_NODE_NAME', 'spec.nodeName'),
      { name: 'ISTIO_META_INTERCEPTION_MODE', value: 'REDIRECT' },
      ...(network ? [{ name: 'ISTIO_META_NETWORK', value: network }] : []),
      { name: 'ISTIO_META_WORKLOAD_NAME', value: name },
      { name: 'ISTIO_META_OWNER', value: `kubernetes://apis/apps/v1/namespaces/${namespace}/deployments/${name}` },
      { name: 'ISTIO_META_MESH_ID', value: values.meshId },
      { name: 'TRUST_DOMAIN', value: values.trustDomain },
      ...(ownNetwork ? [{ name: 'ISTIO_META_REQUESTED_NETWORK_VIEW', value: ownNetwork }] : []),
    ],
    resources: values.resources,
    startupProbe: { ...health, initialDelaySeconds: 1, periodSeconds: 1, failureThreshold: 30 },
    readinessProbe: { ...health, initialDelaySeconds: 0, periodSeconds: 15, failureThreshold: 4 },
    securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: ['ALL'] }, privileged: false, readOnlyRootFilesystem: true, runAsGroup: 1337, runAsNonRoot: true, runAsUser: 1337 },
    volumeMounts: [
      { name: 'workload-socket', mountPath: '/var/run/secrets/workload-spiffe-uds' },
      { name: 'credential-socket', mountPath: '/var/run/secrets/credential-uds' },
      { name: 'workload-certs', mountPath: '/var/run/secrets/workload-spiffe-credentials' },
      { name: 'istiod-ca-cert', mountPath: '/var/run/secrets/istio' },
      { name: 'istio-data', mountPath: '/var/lib/istio/data' },
      { name: 'istio-envoy', mountPath: '/etc/istio/proxy' },
      { name: 'istio-token', mountPath: '/var/run/secrets/tokens' },
      { name: 'istio-podinfo', mountPath: '/etc/istio/pod' },
    ],
  };
}

function proxyVolumes({ tokenAudience }: InjectionValues): object[] {
  const item = (path: string): object => ({ path, fieldRef: { fieldPath: `metadata.${path}` } });
  return [
    ...['workload-socket', 'credential-socket', 'workload-certs', 'istio-data'].map((name) => ({ name, emptyDir: {} })),
    { name: 'istio-envoy', emptyDir: { medium: 'Memory' } },
    { name: 'istio-podinfo', downwardAPI: { items: [item('labels'), item('annotations')] } },
    { name: 'istio-token', projected: { sources: [{ serviceAccountToken: { path: 'istio-token', expirationSeconds: 43200, audience: tokenAudience } }] } },
    { name: 'istiod-ca-cert', configMap: { name: 'istio-ca-root-cert' } },
  ];
}
