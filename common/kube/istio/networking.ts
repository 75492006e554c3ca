/**
 * Istio's networking.istio.io kinds in full: VirtualService, DestinationRule, Gateway, Sidecar.
 * Every field of the API is here, acted on or not; which ones are is what the schemas say.
 */
import type { KubeObject } from '../object.js';
import type { WorkloadSelector } from './selectors.js';

/** Exactly one field is set; in a header's or parameter's match none means that it is present. */
export interface StringMatch {
  exact?: string;
  prefix?: string;
  regex?: string;
}

export interface Destination {
  host: string;
  subset?: string;
  port?: { number: number };
}

/** From 0 to 100. */
export interface Percent {
  value?: number;
}

export interface HeaderOperations {
  set?: Record<string, string>;
  add?: Record<string, string>;
  remove?: string[];
}

export interface Headers {
  request?: HeaderOperations;
  response?: HeaderOperations;
}

export interface HttpMatchRequest {
  name?: string;
  uri?: StringMatch;
  scheme?: StringMatch;
  method?: StringMatch;
  authority?: StringMatch;
  headers?: Record<string, StringMatch>;
  withoutHeaders?: Record<string, StringMatch>;
  queryParams?: Record<string, StringMatch>;
  ignoreUriCase?: boolean;
  port?: number;
  sourceLabels?: Record<string, string>;
  sourceNamespace?: string;
  gateways?: string[];
  statPrefix?: string;
}

export interface HttpRetry {
  attempts?: number;
  perTryTimeout?: string;
  retryOn?: string;
  retryRemoteLocalities?: boolean;
  retryIgnorePreviousHosts?: boolean;
  backoff?: string;
}

export interface HttpRedirect {
  uri?: string;
  /** In place of `uri`: only the matched prefix is replaced. */
  prefixRewrite?: string;
  authority?: string;
  port?: number;
  derivePort?: 'FROM_PROTOCOL_DEFAULT' | 'FROM_REQUEST_PORT';
  scheme?: string;
  redirectCode?: number;
}

export interface HttpDirectResponse {
  status: number;
  /** `bytes` is base64. */
  body?: { string?: string; bytes?: string };
}

export interface HttpRewrite {
  uri?: string;
  authority?: string;
  uriRegexRewrite?: { match: string; rewrite: string };
}

export interface HttpFaultInjection {
  delay?: {
    /** Deprecated and still read: percent of requests; `percentage` wins. */
    percent?: number;
    percentage?: Percent;
    fixedDelay?: string;
    exponentialDelay?: string;
  };
  abort?: {
    percentage?: Percent;
    httpStatus?: number;
    /** A name (`UNAVAILABLE`) or a number as text. */
    grpcStatus?: string;
    http2Error?: string;
  };
}

export interface CorsPolicy {
  /** Deprecated and still read: exact origins. */
  allowOrigin?: string[];
  allowOrigins?: StringMatch[];
  allowMethods?: string[];
  allowHeaders?: string[];
  exposeHeaders?: string[];
  maxAge?: string;
  allowCredentials?: boolean;
  unmatchedPreflights?: 'UNSPECIFIED' | 'FORWARD' | 'IGNORE';
}

export interface HttpRouteDestination {
  destination: Destination;
  weight?: number;
  headers?: Headers;
}

export interface HttpRoute {
  name?: string;
  match?: HttpMatchRequest[];
  /** Exactly one of route, redirect, directResponse, delegate. */
  route?: HttpRouteDestination[];
  redirect?: HttpRedirect;
  directResponse?: HttpDirectResponse;
  delegate?: { name?: string; namespace?: string };
  rewrite?: HttpRewrite;
  timeout?: string;
  retries?: HttpRetry;
  fault?: HttpFaultInjection;
  mirror?: Destination;
  /** Deprecated and still read: whole percent; `mirrorPercentage` wins. */
  mirrorPercent?: number;
  mirrorPercentage?: Percent;
  mirrors?: { destination: Destination; percentage?: Percent }[];
  corsPolicy?: CorsPolicy;
  headers?: Headers;
}

export interface L4MatchAttributes {
  destinationSubnets?: string[];
  port?: number;
  sourceSubnet?: string;
  sourceLabels?: Record<string, string>;
  sourceNamespace?: string;
  gateways?: string[];
}

export interface TlsMatchAttributes {
  sniHosts: string[];
  destinationSubnets?: string[];
  port?: number;
  sourceLabels?: Record<string, string>;
  sourceNamespace?: string;
  gateways?: string[];
}

export interface RouteDestination {
  destination: Destination;
  weight?: number;
}

export interface TcpRoute {
  match?: L4MatchAttributes[];
  route: RouteDestination[];
}

export interface TlsRoute {
  match: TlsMatchAttributes[];
  route: RouteDestination[];
}

export interface VirtualService extends KubeObject {
  kind: 'VirtualService';
  /** A delegate has no hosts. */
  spec: { hosts?: string[]; gateways?: string[]; exportTo?: string[]; http?: HttpRoute[]; tcp?: TcpRoute[]; tls?: TlsRoute[] };
}

/** LEAST_CONN is the deprecated name of LEAST_REQUEST. */
export type SimpleLb = 'UNSPECIFIED' | 'LEAST_REQUEST' | 'LEAST_CONN' | 'ROUND_ROBIN' | 'RANDOM' | 'PASSTHROUGH';

export interface ConsistentHash {
  /** Exactly one of the four keys. */
  httpHeaderName?: string;
  httpCookie?: { name: string; path?: string; ttl?: string; attributes?: { name: string; value?: string }[] };
  useSourceIp?: boolean;
  httpQueryParameterName?: string;
  ringHash?: { minimumRingSize?: number };
  maglev?: { tableSize?: number };
  /** Deprecated and still read: ringHash.minimumRingSize. */
  minimumRingSize?: number;
}

export interface LocalityLbSetting {
  enabled?: boolean;
  /** `region/zone/subzone`, with `*` in place of a part; percents that sum to 100. */
  distribute?: { from: string; to: Record<string, number> }[];
  failover?: { from: string; to: string }[];
  failoverPriority?: string[];
}

export interface LoadBalancer {
  simple?: SimpleLb;
  consistentHash?: ConsistentHash;
  localityLbSetting?: LocalityLbSetting;
  zoneAwareLbSetting?: { enabled?: boolean; failover?: { from: string; to: string }[]; failoverPriority?: string[]; minClusterSize?: number };
  /** Deprecated and still read: warmup.duration. */
  warmupDurationSecs?: string;
  warmup?: { duration: string; minimumPercent?: number; aggression?: number };
}

export interface TcpKeepalive {
  probes?: number;
  time?: string;
  interval?: string;
}

export interface TcpConnectionPool {
  maxConnections?: number;
  connectTimeout?: string;
  tcpKeepalive?: TcpKeepalive;
  maxConnectionDuration?: string;
  idleTimeout?: string;
}

export interface HttpConnectionPool {
  http1MaxPendingRequests?: number;
  http2MaxRequests?: number;
  maxRequestsPerConnection?: number;
  maxRetries?: number;
  idleTimeout?: string;
  h2UpgradePolicy?: 'DEFAULT' | 'DO_NOT_UPGRADE' | 'UPGRADE';
  useClientProtocol?: boolean;
  maxConcurrentStreams?: number;
  http2KeepAlive?: { interval?: string; timeout?: string };
}

export interface ConnectionPool {
  tcp?: TcpConnectionPool;
  http?: HttpConnectionPool;
}

export interface OutlierDetection {
  /** Deprecated name, from before the kinds of errors were told apart. */
  consecutiveErrors?: number;
  splitExternalLocalOriginErrors?: boolean;
  consecutiveLocalOriginFailures?: number;
  consecutiveGatewayErrors?: number;
  consecutive5xxErrors?: number;
  interval?: string;
  baseEjectionTime?: string;
  maxEjectionPercent?: number;
  minHealthPercent?: number;
  outlierDetectionHttpErrorCodes?: number[];
}

export interface ClientTls {
  mode?: 'DISABLE' | 'SIMPLE' | 'MUTUAL' | 'ISTIO_MUTUAL';
  clientCertificate?: string;
  privateKey?: string;
  caCertificates?: string;
  credentialName?: string;
  subjectAltNames?: string[];
  sni?: string;
  insecureSkipVerify?: boolean;
  caCrl?: string;
}

/** What a port's policy can say; what it leaves out is not taken from the policy of the host. */
export interface PortTrafficPolicy {
  port?: { number: number };
  loadBalancer?: LoadBalancer;
  connectionPool?: ConnectionPool;
  outlierDetection?: OutlierDetection;
  tls?: ClientTls;
}

export interface TrafficPolicy {
  loadBalancer?: LoadBalancer;
  connectionPool?: ConnectionPool;
  outlierDetection?: OutlierDetection;
  tls?: ClientTls;
  portLevelSettings?: PortTrafficPolicy[];
  tunnel?: { protocol?: string; targetHost: string; targetPort: number };
  proxyProtocol?: { version?: 'V1' | 'V2' };
  retryBudget?: { percent?: number; minRetryConcurrency?: number; budgetInterval?: string };
}

export interface Subset {
  name: string;
  labels?: Record<string, string>;
  trafficPolicy?: TrafficPolicy;
}

export interface DestinationRule extends KubeObject {
  kind: 'DestinationRule';
  spec: { host: string; exportTo?: string[]; trafficPolicy?: TrafficPolicy; subsets?: Subset[]; workloadSelector?: WorkloadSelector };
}

export type TlsProtocol = 'TLS_AUTO' | 'TLSV1_0' | 'TLSV1_1' | 'TLSV1_2' | 'TLSV1_3';

export interface ServerTls {
  httpsRedirect?: boolean;
  mode?: 'PASSTHROUGH' | 'SIMPLE' | 'MUTUAL' | 'AUTO_PASSTHROUGH' | 'ISTIO_MUTUAL' | 'OPTIONAL_MUTUAL';
  serverCertificate?: string;
  privateKey?: string;
  caCertificates?: string;
  caCrl?: string;
  credentialName?: string;
  credentialNames?: string[];
  caCertCredentialName?: string;
  tlsCertificates?: { serverCertificate?: string; privateKey?: string; caCertificates?: string }[];
  subjectAltNames?: string[];
  verifyCertificateSpki?: string[];
  verifyCertificateHash?: string[];
  minProtocolVersion?: TlsProtocol;
  maxProtocolVersion?: TlsProtocol;
  cipherSuites?: string[];
  insecureSkipVerify?: boolean;
}

export interface Port {
  number: number;
  /** HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, TCP, TLS, REDIS, MYSQL, HTTP_PROXY, HBONE. */
  protocol: string;
  name: string;
  /** Deprecated. */
  targetPort?: number;
}

export interface GatewayServer {
  port: Port;
  bind?: string;
  /** `host`, or `namespace/host` with `*` and `.` as namespaces. */
  hosts: string[];
  tls?: ServerTls;
  defaultEndpoint?: string;
  name?: string;
}

/** networking.istio.io/Gateway; the Gateway API's is KubeGateway. */
export interface Gateway extends KubeObject {
  kind: 'Gateway';
  spec: { servers?: GatewayServer[]; selector?: Record<string, string> };
}

export interface SidecarPort {
  number: number;
  protocol?: string;
  name?: string;
  /** Deprecated. */
  targetPort?: number;
}

export type CaptureMode = 'DEFAULT' | 'IPTABLES' | 'NONE';

export interface SidecarIngress {
  port: SidecarPort;
  bind?: string;
  captureMode?: CaptureMode;
  defaultEndpoint?: string;
  tls?: ServerTls;
  connectionPool?: ConnectionPool;
}

export interface SidecarEgress {
  port?: SidecarPort;
  bind?: string;
  captureMode?: CaptureMode;
  /** `namespace/host`: namespaces `*`, `.`, `~`; host names or wildcards. */
  hosts: string[];
}

export interface Sidecar extends KubeObject {
  kind: 'Sidecar';
  spec: {
    workloadSelector?: { labels?: Record<string, string> };
    ingress?: SidecarIngress[];
    egress?: SidecarEgress[];
    inboundConnectionPool?: ConnectionPool;
    outboundTrafficPolicy?: { mode?: 'ALLOW_ANY' | 'REGISTRY_ONLY'; egressProxy?: Destination };
  };
}
