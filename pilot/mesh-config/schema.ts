/** Istio's MeshConfig as users write it: every field of the API named, those that are not acted on marked. */
import { anything, bool, duration, integer, list, object, port, stringMap, text, type Schema } from '../../common/kube/schema.js';

const ignored: Schema = { type: 'any', support: 'ignored' };
const oneOf = (...values: string[]): Schema => ({ type: 'string', values });
const number: Schema = { type: 'number', min: 0, max: 100 };

const labelSelector = object({ matchLabels: stringMap, matchExpressions: list(object({ key: text, operator: oneOf('In', 'NotIn', 'Exists', 'DoesNotExist'), values: list(text) }, ['key', 'operator'])) });

const body = object({ maxRequestBytes: integer(0, 0xffff_ffff), allowPartialMessage: bool, packAsBytes: bool });
const serviceFields = { service: text, port, timeout: duration };
const service = (more: Record<string, Schema>): Schema => object({ ...serviceFields, ...more }, ['service', 'port']);

const headers = list({ ...object({ name: { type: 'string', nonEmpty: true }, value: text, envName: text }, ['name']), atMostOne: [['value', 'envName']] } as Schema);
const customTags: Schema = {
  type: 'map',
  values: { ...object({ literal: object({ value: text }), environment: object({ name: text, defaultValue: text }), header: object({ name: text, defaultValue: text }) }), atMostOne: [['literal', 'environment', 'header']] } as Schema,
};

const logFormat = object({ text, labels: { type: 'map', values: anything } });

const PROVIDERS: Record<string, Schema> = {
  envoyExtAuthzHttp: service({
    pathPrefix: text, failOpen: bool, statusOnError: text, clearRouteCache: bool, includeHeadersInCheck: list(text), includeRequestHeadersInCheck: list(text),
    includeAdditionalHeadersInCheck: stringMap, includeRequestBodyInCheck: body, headersToUpstreamOnAllow: list(text), headersToDownstreamOnDeny: list(text), headersToDownstreamOnAllow: list(text),
  }),
  envoyExtAuthzGrpc: service({ failOpen: bool, statusOnError: text, clearRouteCache: bool, includeRequestBodyInCheck: body }),
  zipkin: service({ maxTagLength: integer(0), enable64bitTraceId: bool, path: text, traceContextOption: oneOf('USE_B3', 'USE_B3_WITH_W3C_PROPAGATION'), headers }),
  opentelemetry: {
    ...service({
      maxTagLength: integer(0), http: object({ path: text, timeout: duration, headers }), grpc: object({ timeout: duration, initialMetadata: headers }), resourceDetectors: object({ environment: object({}), dynatrace: object({}) }), dynatraceSampler: ignored, serviceAttributeEnrichment: ignored,
    }),
    atMostOne: [['http', 'grpc']],
  } as Schema,
  envoyFileAccessLog: object({ path: text, logFormat, omitEmptyValues: bool }),
  envoyHttpAls: service({ logName: text, filterStateObjectsToLog: list(text), additionalRequestHeadersToLog: list(text), additionalResponseHeadersToLog: list(text), additionalResponseTrailersToLog: list(text) }),
  envoyTcpAls: service({ logName: text, filterStateObjectsToLog: list(text) }),
  envoyOtelAls: service({ logName: text, logFormat }),
  lightstep: ignored, datadog: ignored, stackdriver: ignored, opencensus: ignored, skywalking: ignored, prometheus: object({}),
  sds: ignored,
};

const extensionProvider: Schema = {
  ...object({ name: { type: 'string', nonEmpty: true }, ...PROVIDERS }, ['name']),
  check: (value, report) => {
    const kinds = Object.keys(value as object).filter((key) => key in PROVIDERS);
    if (kinds.length !== 1) report(`found ${kinds.length === 0 ? 'no kind of provider' : kinds.join(' and ')}, expected exactly one of ${Object.keys(PROVIDERS).join(', ')}`);
  },
};

const locality = object({
  enabled: bool,
  distribute: list(object({ from: text, to: { type: 'map', values: integer(0, 100) } }, ['from', 'to'])),
  failover: list(object({ from: text, to: text }, ['from', 'to'])),
  failoverPriority: list(text),
});

const retries = object({ attempts: integer(0, 0x7fff_ffff), perTryTimeout: { type: 'duration', minMs: 1 }, retryOn: text, retryRemoteLocalities: bool, retryIgnorePreviousHosts: bool, backoff: { type: 'duration', minMs: 1 } });

/** The ConfigMap's other key, `meshNetworks`. */
export const meshNetworksSchema = object({
  networks: {
    type: 'map',
    values: object({
      endpoints: list(object({ fromCidr: text, fromRegistry: text })),
      gateways: list(object({ address: text, registryServiceName: text, port, locality: text })),
    }),
  },
});

export const meshConfigSchema = object({
  accessLogFile: text,
  accessLogFormat: text,
  accessLogEncoding: oneOf('TEXT', 'JSON'),
  enableTracing: bool,
  enableAutoMtls: bool,
  trustDomain: { type: 'string', nonEmpty: true },
  trustDomainAliases: list(text),
  rootNamespace: { type: 'string', nonEmpty: true },
  outboundTrafficPolicy: object({ mode: oneOf('ALLOW_ANY', 'REGISTRY_ONLY') }),
  connectTimeout: { type: 'duration', minMs: 1 },
  tcpKeepalive: object({ probes: integer(0), time: duration, interval: duration }),
  localityLbSetting: locality,
  defaultHttpRetryPolicy: retries,
  h2UpgradePolicy: oneOf('DO_NOT_UPGRADE', 'UPGRADE'),
  pathNormalization: object({ normalization: oneOf('DEFAULT', 'NONE', 'BASE', 'MERGE_SLASHES', 'DECODE_AND_MERGE_SLASHES') }),
  extensionProviders: list(extensionProvider),
  defaultProviders: object({ tracing: list(text), accessLogging: list(text), metrics: list(text) }),
  discoverySelectors: list(labelSelector),
  serviceScopeConfigs: list(object({ namespaceSelector: labelSelector, servicesSelector: labelSelector, scope: oneOf('LOCAL', 'GLOBAL') })),
  serviceSettings: list(object({ settings: object({ clusterLocal: bool }), hosts: list(text) })),
  meshMTLS: object({ minProtocolVersion: oneOf('TLS_AUTO', 'TLSV1_2', 'TLSV1_3'), ecdhCurves: ignored, cipherSuites: ignored }),
  defaultServiceExportTo: list(text),
  defaultVirtualServiceExportTo: list(text),
  defaultDestinationRuleExportTo: list(text),
  defaultConfig: {
    ...object({ tracing: { ...object({ sampling: number, zipkin: object({ address: text }), customTags, maxPathTagLength: integer(0), enableIstioTags: bool }), open: true } as Schema }),
    open: true,
  } as Schema,
  // Of the API, but about what this control plane does not do, or does in one way only.
  ...Object.fromEntries(
    [
      'proxyListenPort', 'proxyInboundListenPort', 'proxyHttpPort', 'protocolDetectionTimeout', 'ingressClass', 'ingressService', 'ingressControllerMode', 'ingressSelector', 'enableEnvoyAccessLogService',
      'disableEnvoyListenerLog', 'configSources', 'dnsRefreshRate', 'certificates', 'thriftConfig', 'enablePrometheusMerge', 'verifyCertificateAtClient', 'ca', 'hboneUpgrade',
      'caCertificates', 'tlsDefaults', 'inboundTrafficPolicy',
    ].map((key) => [key, ignored]),
  ),
});
