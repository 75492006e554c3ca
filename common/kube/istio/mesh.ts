/** Istio's MeshConfig as users write it. What is in force of it, with defaults filled in, is pilot's model of its own. */
import type { LabelSelector } from '../types.js';
import type { ClientTls, ConnectionPool, HttpRetry, LocalityLbSetting, LoadBalancer, OutlierDetection, TcpKeepalive } from './networking.js';

export interface MeshTls {
  minProtocolVersion?: 'TLS_AUTO' | 'TLSV1_2' | 'TLSV1_3';
  ecdhCurves?: string[];
  cipherSuites?: string[];
}

interface ProviderService {
  /** A host of the mesh, or `namespace/host`. */
  service: string;
  port: number;
  timeout?: string;
}

interface ExtAuthzBody {
  maxRequestBytes?: number;
  allowPartialMessage?: boolean;
  packAsBytes?: boolean;
}

interface AccessLogFormat {
  text?: string;
  labels?: Record<string, unknown>;
}

/** Exactly one kind of provider beside the name. */
export interface IstioExtensionProvider {
  name: string;
  envoyExtAuthzHttp?: ProviderService & {
    pathPrefix?: string;
    failOpen?: boolean;
    clearRouteCache?: boolean;
    statusOnError?: string;
    includeHeadersInCheck?: string[];
    includeRequestHeadersInCheck?: string[];
    includeAdditionalHeadersInCheck?: Record<string, string>;
    includeRequestBodyInCheck?: ExtAuthzBody;
    headersToUpstreamOnAllow?: string[];
    headersToDownstreamOnDeny?: string[];
    headersToDownstreamOnAllow?: string[];
  };
  envoyExtAuthzGrpc?: ProviderService & { failOpen?: boolean; clearRouteCache?: boolean; statusOnError?: string; includeRequestBodyInCheck?: ExtAuthzBody };
  zipkin?: ProviderService & {
    maxTagLength?: number;
    enable64bitTraceId?: boolean;
    path?: string;
    traceContextOption?: 'USE_B3' | 'USE_B3_WITH_W3C_PROPAGATION';
    headers?: { name: string; value?: string; envName?: string }[];
  };
  opentelemetry?: ProviderService & {
    maxTagLength?: number;
    http?: { path?: string; timeout?: string; headers?: { name: string; value?: string; envName?: string }[] };
    grpc?: { timeout?: string; initialMetadata?: { name: string; value?: string; envName?: string }[] };
    resourceDetectors?: { environment?: object; dynatrace?: object };
  };
  envoyFileAccessLog?: { path: string; logFormat?: AccessLogFormat; omitEmptyValues?: boolean };
  envoyHttpAls?: ProviderService & {
    logName?: string;
    filterStateObjectsToLog?: string[];
    additionalRequestHeadersToLog?: string[];
    additionalResponseHeadersToLog?: string[];
    additionalResponseTrailersToLog?: string[];
  };
  envoyTcpAls?: ProviderService & { logName?: string; filterStateObjectsToLog?: string[] };
  envoyOtelAls?: ProviderService & { logName?: string; logFormat?: AccessLogFormat };
  lightstep?: ProviderService & { accessToken?: string; maxTagLength?: number };
  datadog?: ProviderService & { maxTagLength?: number };
  skywalking?: ProviderService & { accessToken?: string };
  stackdriver?: object;
  opencensus?: object;
  prometheus?: object;
  sds?: { name?: string; service: string; port: number };
}

/** The fields of a proxy's configuration that a mesh without an injector of Istio's own may meet. */
export interface IstioProxyConfig {
  concurrency?: number;
  discoveryAddress?: string;
  drainDuration?: string;
  holdApplicationUntilProxyStarts?: boolean;
  proxyMetadata?: Record<string, string>;
  proxyStatsMatcher?: { inclusionPrefixes?: string[]; inclusionSuffixes?: string[]; inclusionRegexps?: string[] };
  terminationDrainDuration?: string;
  tracing?: {
    sampling?: number;
    zipkin?: { address?: string };
    customTags?: Record<string, unknown>;
    maxPathTagLength?: number;
    enableIstioTags?: boolean;
    tlsSettings?: ClientTls;
  };
}

export interface IstioMeshConfig {
  proxyListenPort?: number;
  proxyInboundListenPort?: number;
  proxyHttpPort?: number;
  connectTimeout?: string;
  protocolDetectionTimeout?: string;
  tcpKeepalive?: TcpKeepalive;
  ingressClass?: string;
  ingressService?: string;
  ingressControllerMode?: 'UNSPECIFIED' | 'OFF' | 'DEFAULT' | 'STRICT';
  ingressSelector?: string;
  enableTracing?: boolean;
  accessLogFile?: string;
  accessLogFormat?: string;
  accessLogEncoding?: 'TEXT' | 'JSON';
  enableEnvoyAccessLogService?: boolean;
  disableEnvoyListenerLog?: boolean;
  defaultConfig?: IstioProxyConfig;
  outboundTrafficPolicy?: { mode?: 'REGISTRY_ONLY' | 'ALLOW_ANY' | 'ALLOW_ANY_DYNAMIC_DNS'; tls?: ClientTls };
  inboundTrafficPolicy?: { mode?: 'PASSTHROUGH' | 'LOCALHOST' };
  configSources?: { address?: string; tlsSettings?: ClientTls; subscribedResources?: string[] }[];
  enableAutoMtls?: boolean;
  trustDomain?: string;
  trustDomainAliases?: string[];
  caCertificates?: { pem?: string; spiffeBundleUrl?: string; certSigners?: string[]; trustDomains?: string[] }[];
  defaultServiceExportTo?: string[];
  defaultVirtualServiceExportTo?: string[];
  defaultDestinationRuleExportTo?: string[];
  rootNamespace?: string;
  localityLbSetting?: LocalityLbSetting;
  zoneAwareLbSetting?: LoadBalancer['zoneAwareLbSetting'];
  dnsRefreshRate?: string;
  h2UpgradePolicy?: 'DO_NOT_UPGRADE' | 'UPGRADE';
  inboundClusterStatName?: string;
  outboundClusterStatName?: string;
  serviceSettings?: { settings?: { clusterLocal?: boolean }; hosts?: string[] }[];
  serviceScopeConfigs?: { namespaceSelector?: LabelSelector; servicesSelector?: LabelSelector; scope?: 'LOCAL' | 'GLOBAL' }[];
  enablePrometheusMerge?: boolean;
  verifyCertificateAtClient?: boolean;
  ca?: { address?: string; tlsSettings?: ClientTls; requestTimeout?: string; istiodSide?: boolean };
  extensionProviders?: IstioExtensionProvider[];
  defaultProviders?: { tracing?: string[]; metrics?: string[]; accessLogging?: string[] };
  discoverySelectors?: LabelSelector[];
  pathNormalization?: { normalization?: 'DEFAULT' | 'NONE' | 'BASE' | 'MERGE_SLASHES' | 'DECODE_AND_MERGE_SLASHES' };
  defaultHttpRetryPolicy?: HttpRetry;
  meshMTLS?: MeshTls;
  tlsDefaults?: MeshTls;
  hboneIdleTimeout?: string;
  defaultTrafficPolicy?: { connectionPool?: ConnectionPool; outlierDetection?: OutlierDetection };
  serviceEntryVisibility?: object;
}
