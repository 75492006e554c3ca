/**
 * Tracing as istiod configures it: which provider a side of a proxy sends spans to, how many, with which tags, and what of that is
 * said to Envoy (pilot/pkg/networking/core/tracing.go of istio/istio).
 */
import { parseDurationMs } from '../../common/kube/schema.js';
import type { Telemetry, TelemetryTracing } from '../../common/kube/types.js';
import { pack } from '../../common/xds/any.js';
import { HeaderValueOption_HeaderAppendAction, type HeaderValueOption } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { TypedExtensionConfig } from '../../proto/generated/envoy/config/core/v3/extension.js';
import type { HttpService } from '../../proto/generated/envoy/config/core/v3/http_service.js';
import { OpenTelemetryConfig } from '../../proto/generated/envoy/config/trace/v3/opentelemetry.js';
import { ZipkinConfig, ZipkinConfig_CollectorEndpointVersion, ZipkinConfig_TraceContextOption } from '../../proto/generated/envoy/config/trace/v3/zipkin.js';
import { HttpConnectionManager_Tracing } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { DynatraceResourceDetectorConfig } from '../../proto/generated/envoy/extensions/tracers/opentelemetry/resource_detectors/v3/dynatrace_resource_detector.js';
import { EnvironmentResourceDetectorConfig } from '../../proto/generated/envoy/extensions/tracers/opentelemetry/resource_detectors/v3/environment_resource_detector.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { CustomTag } from '../../proto/generated/envoy/type/tracing/v3/custom_tag.js';
import { millis } from '../generate/envoy.js';
import { clusterName } from '../generate/names.js';
import { policyTarget } from '../generate/security/targets.js';
import type { CustomTagSetting, ProviderHeader, TracingServiceProvider } from '../model/mesh.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { stateOf, tunnelState } from './caller-state.js';
import { meant, providerOf, type Side } from './layers.js';
import { ENDPOINT_WORKLOAD, type WorkloadPart } from './workload-metadata.js';

export interface TracingSettings {
  kind: 'zipkin' | 'opentelemetry';
  cluster: string;
  host: string;
  provider: TracingServiceProvider;
  maxTagLength: number | undefined;
  /** Percent. */
  sampling: number;
  /** As which the proxy names itself to OpenTelemetry. */
  serviceName: string;
  tags: readonly (readonly [tag: string, setting: CustomTagSetting | { metadata: string }])[];
  /** Requests are drawn by the id that they have, so that all proxies draw alike. */
  byRequestId: boolean;
  propagates: boolean;
  /** A gateway has one span for what comes and one for what goes. */
  spawnsUpstreamSpan: boolean;
}

const DEFAULT_TIMEOUT_MS = 5_000;
const ZIPKIN_PATH = '/api/v2/spans';
const CANONICAL_NAME = ['service.istio.io/canonical-name', 'app.kubernetes.io/name', 'app'];
const CANONICAL_REVISION = ['service.istio.io/canonical-revision', 'app.kubernetes.io/version', 'version'];
/** What policies that are tried without effect would have done; where there are none Envoy writes none of these tags. */
const DRY_RUN_TAGS: readonly (readonly [string, { metadata: string }])[] = (['allow', 'deny'] as const).flatMap((action) => [
  [`istio.authorization.dry_run.${action}_policy.name`, { metadata: `istio_dry_run_${action}_shadow_effective_policy_id` }] as const,
  [`istio.authorization.dry_run.${action}_policy.result`, { metadata: `istio_dry_run_${action}_shadow_engine_result` }] as const,
]);

/** What Istio calls the parts of a workload in a waypoint's spans. Names of pods and kinds of workloads, which it tells too, nobody tells here. */
const PEER_TAGS: Readonly<Record<string, WorkloadPart>> = { workload: 'workload', namespace: 'namespace', cluster_id: 'cluster', canonical_service: 'name', canonical_revision: 'revision', app: 'name', app_version: 'revision' };
/** A waypoint is neither end of what passes it: both are told, whatever `enableIstioTags` says. */
const WAYPOINT_TAGS: TracingSettings['tags'] = Object.entries(PEER_TAGS).flatMap(([tag, part]) => [
  [`istio.source_${tag}`, { formatter: { value: stateOf(tunnelState(part)) } }] as const,
  [`istio.destination_${tag}`, { formatter: { value: `%UPSTREAM_METADATA(${ENDPOINT_WORKLOAD}:${part})%` } }] as const,
]);

export function tracingSettings(model: Model, proxy: Proxy, layers: readonly Telemetry[], side: Side): TracingSettings | undefined {
  const { mesh } = model;
  const merged: Omit<TelemetryTracing, 'match'> = {};
  let isAsked = mesh.defaultTracingProviders.length > 0;
  for (const { match, ...entry } of layers.flatMap(({ spec }) => spec?.tracing ?? [])) {
    isAsked = true;
    if (!meant(match?.mode, side)) continue;
    for (const [key, value] of Object.entries(entry)) if (value !== undefined && !(key === 'providers' && (value as unknown[]).length === 0)) Object.assign(merged, { [key]: value });
  }
  if (merged.disableSpanReporting || (!isAsked && !mesh.enableTracing)) return undefined;
  const name = isAsked ? (merged.providers?.[0]?.name ?? mesh.defaultTracingProviders[0]) : undefined;
  const chosen = name === undefined ? undefined : providerOf(model, name);
  const provider = chosen?.zipkin ?? chosen?.opentelemetry ?? (isAsked ? undefined : addressOf(mesh.tracingZipkinAddress));
  const host = provider && provider.service.slice(provider.service.indexOf('/') + 1);
  // Without a service to send spans to there is no cluster of that name, and Envoy would refuse the listener.
  if (!provider || host === undefined || !model.services.has(host)) return undefined;
  const { labels } = policyTarget(model, proxy);
  const canonicalName = canonical(labels, CANONICAL_NAME, proxy.name.split('.')[0] ?? proxy.name);
  const own: TracingSettings['tags'] = (isAsked ? merged.enableIstioTags : mesh.tracingIstioTags) === false ? [] : [
    ['istio.canonical_revision', literal(canonical(labels, CANONICAL_REVISION, 'latest'))],
    ['istio.canonical_service', literal(canonicalName)],
    ['istio.cluster_id', literal(mesh.clusterId)],
    ['istio.mesh_id', literal(mesh.trustDomain)],
    ['istio.namespace', literal(proxy.namespace)],
    ...DRY_RUN_TAGS,
  ];
  const given = Object.keys(merged.customTags ?? {}).length > 0 ? merged.customTags! : mesh.tracingCustomTags;
  return {
    kind: chosen?.opentelemetry ? 'opentelemetry' : 'zipkin',
    cluster: clusterName(provider.port, '', host),
    host,
    provider,
    maxTagLength: provider.maxTagLength || mesh.tracingMaxPathTagLength || undefined,
    sampling: merged.randomSamplingPercentage ?? mesh.tracingSampling,
    serviceName: proxy.cluster || `${canonicalName}.${proxy.namespace}`,
    tags: [...own, ...(proxy.type === 'waypoint' && proxy.canCount ? WAYPOINT_TAGS : []), ...Object.entries(given)].sort(([a], [b]) => (a < b ? -1 : 1)),
    byRequestId: merged.useRequestIdForTraceSampling !== false,
    propagates: merged.disableContextPropagation !== true,
    spawnsUpstreamSpan: proxy.type === 'router',
  };
}

const literal = (value: string): CustomTagSetting => ({ literal: { value } });

function canonical(labels: Readonly<Record<string, string>>, names: readonly string[], fallback: string): string {
  return names.map((name) => labels[name]).find((value) => value) ?? fallback;
}

/** `host:port` */
function addressOf(address: string): TracingServiceProvider | undefined {
  const colon = address.lastIndexOf(':');
  return colon > 0 ? { service: address.slice(0, colon), port: Number(address.slice(colon + 1)) } : undefined;
}

export function tracingConfig(settings: TracingSettings): HttpConnectionManager_Tracing {
  const { kind, sampling, tags, maxTagLength, propagates, spawnsUpstreamSpan } = settings;
  return HttpConnectionManager_Tracing.fromPartial({
    client_sampling: { value: 100 },
    random_sampling: { value: sampling },
    overall_sampling: { value: 100 },
    custom_tags: tags.flatMap(([tag, setting]) => customTag(tag, setting) ?? []),
    ...(maxTagLength ? { max_path_tag_length: maxTagLength } : {}),
    ...(spawnsUpstreamSpan ? { spawn_upstream_span: true } : {}),
    no_context_propagation: !propagates,
    provider: { name: `envoy.tracers.${kind}`, config_type: { $case: 'typed_config', value: kind === 'zipkin' ? zipkin(settings) : openTelemetry(settings) } },
  });
}

function customTag(tag: string, setting: TracingSettings['tags'][number][1]): CustomTag | undefined {
  if ('metadata' in setting) return CustomTag.fromPartial({ tag, type: { $case: 'metadata', value: { kind: { kind: { $case: 'request', value: {} } }, metadata_key: { key: 'envoy.filters.http.rbac', path: [{ segment: { $case: 'key', value: setting.metadata } }] } } } });
  const { literal: text, header, environment, formatter } = setting;
  if (text) return CustomTag.fromPartial({ tag, type: { $case: 'literal', value: { value: text.value } } });
  if (header) return CustomTag.fromPartial({ tag, type: { $case: 'request_header', value: { name: header.name, default_value: header.defaultValue ?? '' } } });
  if (environment) return CustomTag.fromPartial({ tag, type: { $case: 'environment', value: { name: environment.name, default_value: environment.defaultValue ?? '' } } });
  return formatter && CustomTag.fromPartial({ tag, type: { $case: 'value', value: formatter.value } });
}

function zipkin({ cluster, host, provider }: TracingSettings): Any {
  const path = provider.path || ZIPKIN_PATH;
  // Envoy has one form for a collector alone, and one for a collector with what is asked in addition.
  const asks = provider.timeout !== undefined || (provider.headers?.length ?? 0) > 0;
  const collector = asks ? { collector_service: httpService(`http://${host}${path}`, cluster, provider.timeout, provider.headers) } : { collector_cluster: cluster, collector_hostname: host, collector_endpoint: path };
  return pack(ZipkinConfig, ZipkinConfig.fromPartial({
    ...collector, collector_endpoint_version: ZipkinConfig_CollectorEndpointVersion.HTTP_JSON, trace_id_128bit: provider.enable64bitTraceId !== true, shared_span_context: false,
    trace_context_option: provider.traceContextOption === 'USE_B3_WITH_W3C_PROPAGATION' ? ZipkinConfig_TraceContextOption.USE_B3_WITH_W3C_PROPAGATION : ZipkinConfig_TraceContextOption.USE_B3,
  } as never));
}

function openTelemetry({ cluster, host, provider, serviceName }: TracingSettings): Any {
  const { http, grpc, resourceDetectors } = provider;
  const timeout = grpc?.timeout ?? provider.timeout;
  const sink = http
    ? { http_service: httpService([host, http.path?.replace(/^\/+/, '') ?? ''].join('/'), cluster, http.timeout, http.headers) }
    : { grpc_service: {
      target_specifier: { $case: 'envoy_grpc' as const, value: { cluster_name: cluster, authority: host } },
      ...(timeout ? { timeout: millis(parseDurationMs(timeout) ?? DEFAULT_TIMEOUT_MS) } : {}),
      initial_metadata: (grpc?.initialMetadata ?? []).map((header) => ({ key: header.name, value: headerValue(header) })),
    } };
  const detectors: TypedExtensionConfig[] = [
    ...(resourceDetectors?.environment ? [detector('environment', pack(EnvironmentResourceDetectorConfig, EnvironmentResourceDetectorConfig.fromPartial({})))] : []),
    ...(resourceDetectors?.dynatrace ? [detector('dynatrace', pack(DynatraceResourceDetectorConfig, DynatraceResourceDetectorConfig.fromPartial({})))] : []),
  ];
  return pack(OpenTelemetryConfig, OpenTelemetryConfig.fromPartial({ service_name: serviceName, ...sink, resource_detectors: detectors } as never));
}

const detector = (kind: string, typed_config: Any): TypedExtensionConfig => ({ name: `envoy.tracers.opentelemetry.resource_detectors.${kind}`, typed_config });

/** Envoy refuses one without a time-out. */
function httpService(uri: string, cluster: string, timeout: string | undefined, headers: readonly ProviderHeader[] = []): Partial<HttpService> {
  const added = headers.map((header) => ({ header: { key: header.name, value: headerValue(header) }, append_action: HeaderValueOption_HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD }));
  return { http_uri: { uri, http_upstream_type: { $case: 'cluster', value: cluster }, timeout: millis((timeout && parseDurationMs(timeout)) || DEFAULT_TIMEOUT_MS) }, request_headers_to_add: added as HeaderValueOption[] } as Partial<HttpService>;
}

/** A variable is one of the control plane's own environment, as istiod reads it. */
const headerValue = ({ value, envName }: ProviderHeader): string => value ?? (envName === undefined ? '' : (process.env[envName] ?? ''));
