/**
 * The static configuration of a pod's Envoy, sidecar or gateway, as Istio's agent writes it: node and metadata, clusters for
 * control plane, certificates and its own admin interface, the two ports for statistics and health; all else by delta ADS.
 */
export type ProxyRole = 'sidecar' | 'router' | 'waypoint';

/** Of Istio's ports: merged statistics, and health for the kubelet. */
export const PROMETHEUS_PORT = 15090;
export const HEALTH_PORT = 15021;

/** What the pod is, as far as its Envoy tells the control plane. */
export interface ProxyPod {
  readonly desired: {
    name: string;
    namespace: string;
    owner: string;
    spec: { serviceAccountName?: string; containers: readonly { name: string }[] };
  };
  readonly labels: Record<string, string>;
  readonly annotations: Record<string, string>;
  readonly ips: string[];
  readonly nodeName: string;
  readonly netns: string;
}

export interface BootstrapOptions {
  role: ProxyRole;
  pod: ProxyPod;
  /** The cluster that the pod is of, as multi-cluster meshes name them. */
  clusterId: string;
  /** The proxy container's variables: what begins with ISTIO_META_ becomes metadata, as in Istio's agent. */
  env: Record<string, string>;
  discoverySocket: string;
  sdsSocket: string;
  adminSocket: string;
}

const HTTP_OPTIONS = 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions';
const CONNECTION_MANAGER = 'envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager';
const ROUTER = 'envoy.extensions.filters.http.router.v3.Router';
const type = (name: string): string => `type.googleapis.com/${name}`;

/** `Deployment shop/web` is `web`. */
export function workloadName(owner: string): string {
  return owner.slice(owner.lastIndexOf('/') + 1);
}

export function nodeId({ role, pod }: Pick<BootstrapOptions, 'role' | 'pod'>): string {
  const { name, namespace } = pod.desired;
  return `${role}~${pod.ips[0]}~${name}.${namespace}~${namespace}.svc.cluster.local`;
}

/** ISTIO_META_X is the string X, ISTIO_METAJSON_X an object whose fields are all metadata (istio/istio, pkg/bootstrap/config.go). */
export function metadataOf(env: Record<string, string>): Record<string, unknown> {
  const found: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(env)) {
    if (name.startsWith('ISTIO_META_')) found[name.slice('ISTIO_META_'.length)] = value;
    if (name.startsWith('ISTIO_METAJSON_')) {
      try {
        const parsed: unknown = JSON.parse(value);
        if (typeof parsed === 'object' && parsed !== null && !Array.isArray(parsed)) Object.assign(found, parsed);
      } catch {
        // As in Istio: what is no JSON is no metadata.
      }
    }
  }
  return found;
}

function metadata({ pod, clusterId, env }: BootstrapOptions): Record<string, unknown> {
  const { name, namespace, owner, spec } = pod.desired;
  const network = pod.labels['topology.istio.io/network'];
  return {
    NAME: name,
    NAMESPACE: namespace,
    LABELS: pod.labels,
    ANNOTATIONS: pod.annotations,
    SERVICE_ACCOUNT: spec.serviceAccountName ?? 'default',
    WORKLOAD_NAME: workloadName(owner),
    NODE_NAME: pod.nodeName,
    INSTANCE_IPS: pod.ips.join(','),
    APP_CONTAINERS: spec.containers.flatMap((container) => (container.name === 'istio-proxy' ? [] : container.name)).join(','),
    INTERCEPTION_MODE: 'REDIRECT',
    CLUSTER_ID: clusterId,
    MESH_ID: 'cluster.local',
    ISTIO_VERSION: '1.27.0',
    PROXY_CONFIG: {},
    ...(network === undefined ? {} : { NETWORK: network }),
    ...metadataOf(env),
  };
}

function pipeCluster(name: string, path: string, http2: boolean): unknown {
  const endpoint = { endpoint: { address: { pipe: { path } } } };
  return {
    name,
    type: 'STATIC',
    connect_timeout: '1s',
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [endpoint] }] },
    ...(http2
      ? {
          typed_extension_protocol_options: {
            [HTTP_OPTIONS]: { '@type': type(HTTP_OPTIONS), explicit_http_config: { http2_protocol_options: {} } },
          },
        }
      : {}),
  };
}

function adminListener(ipv6: boolean, port: number, prefix: string, rewrite: string): unknown {
  const routes = [{ match: { prefix }, route: { cluster: 'admin', prefix_rewrite: rewrite } }];
  const manager = {
    '@type': type(CONNECTION_MANAGER),
    stat_prefix: `static_${port}`,
    route_config: { virtual_hosts: [{ name: 'backend', domains: ['*'], routes }] },
    http_filters: [{ name: 'envoy.filters.http.router', typed_config: { '@type': type(ROUTER) } }],
  };
  return {
    name: `static_${port}`,
    address: {
      socket_address: ipv6 ? { address: '::', port_value: port, ipv4_compat: true } : { address: '0.0.0.0', port_value: port },
    },
    filter_chains: [{ filters: [{ name: 'envoy.filters.network.http_connection_manager', typed_config: manager }] }],
  };
}

export function bootstrap(options: BootstrapOptions): unknown {
  const { pod, discoverySocket, sdsSocket, adminSocket } = options;
  const { labels, desired } = pod;
  const canonical =
    labels['service.istio.io/canonical-name'] ?? labels['app.kubernetes.io/name'] ?? labels['app'] ?? workloadName(desired.owner);
  const ipv6 = pod.ips.length > 1;
  const fromAds = { ads: {}, initial_fetch_timeout: '0s', resource_api_version: 'V3' };
  return {
    node: { id: nodeId(options), cluster: `${canonical}.${desired.namespace}`, metadata: metadata(options) },
    // The admin layer is Istio's too: runtime values, e.g. a fault's percentage, can be set at /runtime_modify.
    layered_runtime: { layers: [{ name: 'global config', static_layer: {} }, { name: 'admin', admin_layer: {} }] },
    bootstrap_extensions: [
      {
        name: 'envoy.bootstrap.internal_listener',
        typed_config: { '@type': type('envoy.extensions.bootstrap.internal_listener.v3.InternalListener'), buffer_size_kb: 64 },
      },
    ],
    admin: { address: { pipe: { path: adminSocket } } },
    dynamic_resources: {
      ads_config: {
        api_type: 'DELTA_GRPC',
        transport_api_version: 'V3',
        set_node_on_first_message_only: true,
        grpc_services: [{ envoy_grpc: { cluster_name: 'xds-grpc' } }],
      },
      cds_config: fromAds,
      lds_config: fromAds,
    },
    static_resources: {
      clusters: [
        pipeCluster('xds-grpc', discoverySocket, true),
        pipeCluster('sds-grpc', sdsSocket, true),
        pipeCluster('admin', adminSocket, false),
      ],
      listeners: [
        adminListener(ipv6, PROMETHEUS_PORT, '/stats/prometheus', '/stats/prometheus'),
        adminListener(ipv6, HEALTH_PORT, '/healthz/ready', '/ready'),
      ],
    },
  };
}
