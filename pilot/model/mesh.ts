/** Mesh-wide settings in force: Istio's MeshConfig as far as it is acted on, with Istio's defaults and names. */
import type { HttpRetry, LocalityLbSetting, TcpKeepalive } from '../../common/kube/types.js';

/** Where external authorization, tracing, metrics and access logs go; exactly one kind is set. Fields are Istio's, unchanged. */
export interface ExtensionProvider {
  name: string;
  envoyExtAuthzHttp?: ExtAuthzHttpProvider;
  envoyExtAuthzGrpc?: ExtAuthzGrpcProvider;
  zipkin?: TracingServiceProvider;
  opentelemetry?: TracingServiceProvider;
  prometheus?: Record<string, never>;
  envoyFileAccessLog?: { path?: string; logFormat?: { text?: string; labels?: Record<string, unknown> }; omitEmptyValues?: boolean };
  envoyHttpAls?: LogServiceProvider;
  envoyTcpAls?: LogServiceProvider;
  envoyOtelAls?: LogServiceProvider;
}

interface ServiceProvider {
  /** A host of the mesh, or `namespace/host`. */
  service: string;
  port: number;
  timeout?: string;
}

export interface ExtAuthzHttpProvider extends ServiceProvider {
  pathPrefix?: string;
  failOpen?: boolean;
  statusOnError?: string;
  clearRouteCache?: boolean;
  includeRequestHeadersInCheck?: string[];
  /** Deprecated name of includeRequestHeadersInCheck. */
  includeHeadersInCheck?: string[];
  includeAdditionalHeadersInCheck?: Record<string, string>;
  includeRequestBodyInCheck?: { maxRequestBytes?: number; allowPartialMessage?: boolean; packAsBytes?: boolean };
  headersToUpstreamOnAllow?: string[];
  headersToDownstreamOnDeny?: string[];
  headersToDownstreamOnAllow?: string[];
}

export interface ExtAuthzGrpcProvider extends ServiceProvider {
  failOpen?: boolean;
  statusOnError?: string;
  clearRouteCache?: boolean;
  includeRequestBodyInCheck?: { maxRequestBytes?: number; allowPartialMessage?: boolean; packAsBytes?: boolean };
}

/** Of envoyHttpAls, envoyTcpAls and envoyOtelAls; each has some of these. */
export interface LogServiceProvider extends ServiceProvider {
  logName?: string;
  filterStateObjectsToLog?: string[];
  additionalRequestHeadersToLog?: string[];
  additionalResponseHeadersToLog?: string[];
  additionalResponseTrailersToLog?: string[];
  logFormat?: { text?: string; labels?: Record<string, unknown> };
}

export interface ProviderHeader {
  name: string;
  value?: string;
  /** A variable of the control plane's environment that has the value. */
  envName?: string;
}

/** Of zipkin, which is Jaeger's too, or of opentelemetry. */
export interface TracingServiceProvider extends ServiceProvider {
  maxTagLength?: number;
  enable64bitTraceId?: boolean;
  path?: string;
  traceContextOption?: 'USE_B3' | 'USE_B3_WITH_W3C_PROPAGATION';
  headers?: ProviderHeader[];
  /** OTLP by HTTP. */
  http?: { path?: string; timeout?: string; headers?: ProviderHeader[] };
  grpc?: { timeout?: string; initialMetadata?: ProviderHeader[] };
  resourceDetectors?: { environment?: object; dynatrace?: object };
}

/** A tag of spans; one of these. */
export interface CustomTagSetting {
  literal?: { value: string };
  header?: { name: string; defaultValue?: string };
  environment?: { name: string; defaultValue?: string };
  /** As in an access log's format. */
  formatter?: { value: string };
}

export interface LabelSelectorSetting {
  matchLabels?: Record<string, string>;
  matchExpressions?: { key: string; operator: string; values?: string[] }[];
}

/** One of meshNetworks; fields are Istio's, unchanged. */
export interface NetworkSetting {
  endpoints?: { fromCidr?: string; fromRegistry?: string }[];
  gateways?: { address?: string; registryServiceName?: string; port?: number; locality?: string }[];
}

/** One of serviceScopeConfigs; fields are Istio's, unchanged. A selector that is left out takes everything. */
export interface ServiceScopeSetting {
  namespaceSelector?: LabelSelectorSetting;
  servicesSelector?: LabelSelectorSetting;
  scope?: 'LOCAL' | 'GLOBAL';
}

export interface MeshConfig {
  /** The SPIFFE trust domain of all identities. */
  trustDomain: string;
  /** Trust domains that count as this one in policies and certificates of peers. */
  trustDomainAliases: readonly string[];
  /** The DNS suffix of services: `<name>.<namespace>.svc.<clusterDomain>`. */
  clusterDomain: string;
  clusterId: string;
  /** The network of workloads that say none; empty in a mesh of one network. */
  network: string;
  /** Clusters besides the one that has the configuration, by name; the network may be empty. */
  clusters: Readonly<Record<string, { network: string }>>;
  /** meshNetworks, by the network's name. */
  networks: Readonly<Record<string, NetworkSetting>>;
  /** Hosts, `*` in front allowed, whose endpoints are for clients of their own cluster alone. */
  clusterLocalHosts: readonly string[];
  clusterGlobalHosts: readonly string[];
  /** Which Services other networks reach by HBONE; of several that select one, one that is GLOBAL counts. */
  serviceScopes: readonly ServiceScopeSetting[];
  /** Where mesh-wide policies, rules and filters live. */
  rootNamespace: string;
  /** What happens to traffic towards hosts that are no service. */
  outboundTrafficPolicy: 'ALLOW_ANY' | 'REGISTRY_ONLY';
  defaultServiceExportTo: readonly string[];
  defaultVirtualServiceExportTo: readonly string[];
  defaultDestinationRuleExportTo: readonly string[];
  /** Clients use mutual TLS towards whoever has a sidecar, with no DestinationRule. */
  enableAutoMtls: boolean;
  /** Duration; Istio's default is 10s. */
  connectTimeout: string;
  tcpKeepalive: TcpKeepalive | undefined;
  localityLbSetting: LocalityLbSetting;
  /** For routes that say nothing of retries; undefined is Istio's own default of two. */
  defaultHttpRetryPolicy: HttpRetry | undefined;
  h2UpgradePolicy: 'DO_NOT_UPGRADE' | 'UPGRADE';
  pathNormalization: 'NONE' | 'BASE' | 'MERGE_SLASHES' | 'DECODE_AND_MERGE_SLASHES';
  extensionProviders: readonly ExtensionProvider[];
  /** Empty: no access log. */
  accessLogFile: string;
  accessLogEncoding: 'TEXT' | 'JSON';
  /** Empty: Istio's own format. */
  accessLogFormat: string;
  enableTracing: boolean;
  /** Percent of requests. */
  tracingSampling: number;
  /** Those of defaultConfig.tracing, where no Telemetry has any. */
  tracingCustomTags: Readonly<Record<string, CustomTagSetting>>;
  /** 0: Envoy's own. */
  tracingMaxPathTagLength: number;
  /** Where no Telemetry speaks of tracing. */
  tracingIstioTags: boolean;
  /** `host:port` of defaultConfig.tracing.zipkin, where it is given; else providers decide. */
  tracingZipkinAddress: string;
  defaultTracingProviders: readonly string[];
  defaultMetricsProviders: readonly string[];
  /** Without any, and without a Telemetry that has some: accessLogFile. */
  defaultAccessLogProviders: readonly string[];
  /** Namespaces that take part at all; empty: every one. */
  discoverySelectors: readonly LabelSelectorSetting[];
  meshMtlsMinProtocolVersion: 'TLSV1_2' | 'TLSV1_3';
}

export const DEFAULT_MESH_CONFIG: MeshConfig = {
  trustDomain: 'cluster.local',
  trustDomainAliases: [],
  clusterDomain: 'cluster.local',
  clusterId: 'Kubernetes',
  network: '',
  clusters: {},
  networks: {},
  clusterLocalHosts: [],
  clusterGlobalHosts: [],
  // What Istio's ambient profile installs.
  serviceScopes: [{ servicesSelector: { matchExpressions: [{ key: 'istio.io/global', operator: 'In', values: ['true'] }] }, scope: 'GLOBAL' }],
  rootNamespace: 'istio-system',
  outboundTrafficPolicy: 'ALLOW_ANY',
  defaultServiceExportTo: ['*'],
  defaultVirtualServiceExportTo: ['*'],
  defaultDestinationRuleExportTo: ['*'],
  enableAutoMtls: true,
  connectTimeout: '10s',
  tcpKeepalive: undefined,
  localityLbSetting: { enabled: true },
  defaultHttpRetryPolicy: undefined,
  h2UpgradePolicy: 'DO_NOT_UPGRADE',
  pathNormalization: 'BASE',
  extensionProviders: [],
  accessLogFile: '',
  accessLogEncoding: 'TEXT',
  accessLogFormat: '',
  enableTracing: false,
  tracingSampling: 1,
  tracingCustomTags: {},
  tracingMaxPathTagLength: 0,
  tracingIstioTags: true,
  tracingZipkinAddress: '',
  defaultTracingProviders: [],
  // What Istio installs.
  defaultMetricsProviders: ['prometheus'],
  defaultAccessLogProviders: [],
  discoverySelectors: [],
  meshMtlsMinProtocolVersion: 'TLSV1_2',
};
