/**
 * Access logs as istiod configures them: which providers a side of a proxy logs by, and what of that is said to Envoy
 * (pilot/pkg/model/telemetry_logging.go of istio/istio).
 */
import type { Telemetry, TelemetryAccessLogging } from '../../common/kube/types.js';
import { JSON_FORMAT, TEXT_FORMAT } from '../../common/telemetry/access-log-format.js';
import { pack } from '../../common/xds/any.js';
import { celFilter } from '../../common/xds/cel-filter.js';
import { AccessLog, AccessLogFilter } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import { ApiVersion } from '../../proto/generated/envoy/config/core/v3/config_source.js';
import type { TypedExtensionConfig } from '../../proto/generated/envoy/config/core/v3/extension.js';
import { SubstitutionFormatString } from '../../proto/generated/envoy/config/core/v3/substitution_format_string.js';
import { FileAccessLog } from '../../proto/generated/envoy/extensions/access_loggers/file/v3/file.js';
import { HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig, type CommonGrpcAccessLogConfig } from '../../proto/generated/envoy/extensions/access_loggers/grpc/v3/als.js';
import { OpenTelemetryAccessLogConfig } from '../../proto/generated/envoy/extensions/access_loggers/open_telemetry/v3/logs_service.js';
import { clusterName } from '../generate/names.js';
import type { ExtensionProvider, LogServiceProvider } from '../model/mesh.js';
import type { Model } from '../model/model.js';
import { meant, providerOf, type Side } from './layers.js';

interface Filtered {
  /** CEL. */
  filter: string | undefined;
}

interface ToFile extends Filtered {
  kind: 'file';
  path: string;
  /** Text, or the fields of a JSON object; undefined is Istio's own. */
  format: string | Readonly<Record<string, unknown>> | undefined;
  isJson: boolean;
  omitsEmpty: boolean;
}

interface ToService extends Filtered {
  kind: 'http' | 'tcp' | 'opentelemetry';
  cluster: string;
  host: string;
  provider: LogServiceProvider;
}

export type AccessLogSettings = ToFile | ToService;

/** Istio has it without a definition. */
const BUILT_IN = { name: 'envoy', envoyFileAccessLog: { path: '/dev/stdout' } };
const NAMES = { http: 'http_envoy_accesslog', tcp: 'tcp_envoy_accesslog', opentelemetry: 'otel_envoy_accesslog' } as const;
/** What Istio's own Envoys know of peers. */
const PEERS = ['upstream_peer', 'downstream_peer'];
const OLD_PEERS = ['wasm.upstream_peer', 'wasm.upstream_peer_id', 'wasm.downstream_peer', 'wasm.downstream_peer_id'];
const WITHOUT_QUERY = 'type.googleapis.com/envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery';

interface Chosen extends Filtered {
  isDisabled: boolean;
}

/**
 * By provider: of the most specific level that names any for the side; who names none speaks of those that the level before did.
 * @param levels from the least specific to the most
 */
function chosenProviders(levels: readonly (readonly TelemetryAccessLogging[])[], defaults: readonly string[], side: Side): Map<string, Chosen> {
  const chosen = new Map<string, Chosen>();
  if (levels.length === 0) for (const name of defaults) chosen.set(name, { isDisabled: false, filter: undefined });
  const namesOf = ({ providers = [] }: TelemetryAccessLogging): string[] => providers.map(({ name }) => name);
  const filters = new Map<string, string | undefined>();
  let inScope: readonly string[] = defaults;
  for (const level of levels) {
    const own = level.filter(({ match }) => meant(match?.mode, side));
    for (const entry of own) for (const name of namesOf(entry)) filters.set(name, entry.filter?.expression);
    const names = own.flatMap(namesOf);
    if (names.length > 0) inScope = names;
  }
  let parents: readonly string[] = defaults;
  for (const entry of levels.flat()) {
    const names = namesOf(entry);
    if (names.length > 0) parents = names;
    if (!meant(entry.match?.mode, side)) continue;
    // Who only has a filter means the providers that there are.
    for (const name of parents) if (inScope.includes(name)) chosen.set(name, { isDisabled: entry.disabled === true, filter: filters.get(name) ?? (names.length === 0 ? entry.filter?.expression : undefined) });
  }
  return chosen;
}

export function accessLogSettings(model: Model, layers: readonly Telemetry[], side: Side): AccessLogSettings[] {
  const { mesh } = model;
  const levels = layers.flatMap(({ spec }) => (spec?.accessLogging?.length ? [spec.accessLogging] : []));
  const chosen = chosenProviders(levels, mesh.defaultAccessLogProviders, side);
  const found = [...chosen].sort(([a], [b]) => (a < b ? -1 : 1)).flatMap(([name, { isDisabled, filter }]) => {
    const provider = providerOf(model, name) ?? (name === BUILT_IN.name ? BUILT_IN : undefined);
    return provider ? [{ isDisabled, settings: settingsOf(model, provider, filter) }] : [];
  });
  if (found.length > 0) return found.flatMap(({ isDisabled, settings }) => (isDisabled || !settings ? [] : settings));
  // Nobody names a provider: what is said is said of the mesh's own log.
  const own = levels.flat().filter(({ match, providers = [] }) => meant(match?.mode, side) && providers.length === 0);
  const isOff = own.findLast(({ disabled }) => disabled !== undefined)?.disabled === true;
  return mesh.accessLogFile && !isOff ? [{ ...meshLog(mesh, mesh.accessLogFile), filter: own.findLast(({ filter }) => filter)?.filter?.expression }] : [];
}

function meshLog({ accessLogFormat, accessLogEncoding }: Model['mesh'], path: string): ToFile {
  const isJson = accessLogEncoding === 'JSON';
  const format = accessLogFormat && isJson ? parsed(accessLogFormat) : accessLogFormat || undefined;
  return { kind: 'file', path, format, isJson, omitsEmpty: false, filter: undefined };
}

function parsed(text: string): Record<string, unknown> | undefined {
  try {
    return JSON.parse(text) as Record<string, unknown>;
  } catch {
    return undefined;
  }
}

function settingsOf(model: Model, provider: ExtensionProvider, filter: string | undefined): AccessLogSettings | undefined {
  const { name, envoyFileAccessLog: file, envoyHttpAls: http, envoyTcpAls: tcp, envoyOtelAls: opentelemetry } = provider;
  if (file) {
    const path = file.path || BUILT_IN.envoyFileAccessLog.path;
    if (name === BUILT_IN.name && !file.logFormat && !file.omitEmptyValues) return { ...meshLog(model.mesh, path), filter };
    const { labels, text } = file.logFormat ?? {};
    return { kind: 'file', path, format: labels && Object.keys(labels).length > 0 ? labels : text, isJson: labels !== undefined, omitsEmpty: file.omitEmptyValues === true, filter };
  }
  const service = http ?? tcp ?? opentelemetry;
  if (!service) return undefined;
  const host = service.service.slice(service.service.indexOf('/') + 1);
  // Without the service there is no cluster of that name, and Envoy would refuse the listener.
  if (!model.services.has(host)) return undefined;
  return { kind: http ? 'http' : tcp ? 'tcp' : 'opentelemetry', cluster: clusterName(service.port, '', host), host, provider: service, filter };
}

/** @param only more that has to hold */
export function accessLog(settings: AccessLogSettings, only?: AccessLogFilter): AccessLog {
  const filters = [...(only ? [only] : []), ...(settings.filter ? [celFilter(settings.filter)] : [])];
  const filter = filters.length > 1 ? AccessLogFilter.fromPartial({ filter_specifier: { $case: 'and_filter', value: { filters } } }) : filters[0];
  const { name, value } = settings.kind === 'file' ? fileLogger(settings) : serviceLogger(settings);
  return AccessLog.fromPartial({ name, ...(filter ? { filter } : {}), config_type: { $case: 'typed_config', value } });
}

interface Logger {
  name: string;
  value: ReturnType<typeof pack>;
}

function fileLogger({ path, format, isJson, omitsEmpty }: ToFile): Logger {
  const text = typeof format === 'string' ? (format.endsWith('\n') ? format : `${format}\n`) : TEXT_FORMAT;
  const fields = (typeof format === 'object' ? format : { ...JSON_FORMAT }) as Record<string, unknown>;
  const log_format = SubstitutionFormatString.fromPartial({
    format: isJson ? { $case: 'json_format', value: fields } : { $case: 'text_format_source', value: { specifier: { $case: 'inline_string', value: text } } },
    omit_empty_values: omitsEmpty,
    formatters: formattersOf(isJson ? JSON.stringify(fields) : text),
  });
  return { name: 'envoy.access_loggers.file', value: pack(FileAccessLog, FileAccessLog.fromPartial({ path, access_log_format: { $case: 'log_format', value: log_format } })) };
}

function formattersOf(text: string): TypedExtensionConfig[] {
  return text.includes('%REQ_WITHOUT_QUERY') ? [{ name: 'envoy.formatter.req_without_query', typed_config: { type_url: WITHOUT_QUERY, value: Buffer.alloc(0) } } as TypedExtensionConfig] : [];
}

function serviceLogger({ kind, cluster, host, provider }: ToService): Logger {
  const common = (objects: readonly string[]): Partial<CommonGrpcAccessLogConfig> => ({
    log_name: provider.logName || NAMES[kind], transport_api_version: ApiVersion.V3,
    grpc_service: { target_specifier: { $case: 'envoy_grpc', value: { cluster_name: cluster, authority: host } } } as never,
    filter_state_objects_to_log: provider.filterStateObjectsToLog?.length ? provider.filterStateObjectsToLog : [...objects],
  });
  if (kind === 'tcp') return { name: 'envoy.tcp_grpc_access_log', value: pack(TcpGrpcAccessLogConfig, TcpGrpcAccessLogConfig.fromPartial({ common_config: common(PEERS) } as never)) };
  if (kind === 'http') {
    const config = HttpGrpcAccessLogConfig.fromPartial({
      common_config: common(PEERS), additional_request_headers_to_log: provider.additionalRequestHeadersToLog ?? [], additional_response_headers_to_log: provider.additionalResponseHeadersToLog ?? [],
      additional_response_trailers_to_log: provider.additionalResponseTrailersToLog ?? [],
    } as never);
    return { name: 'envoy.access_loggers.http_grpc', value: pack(HttpGrpcAccessLogConfig, config) };
  }
  const { text = TEXT_FORMAT, labels = {} } = provider.logFormat ?? {};
  const config = OpenTelemetryAccessLogConfig.fromPartial({
    common_config: common([...PEERS, ...OLD_PEERS]), disable_builtin_labels: true, body: { value: { $case: 'string_value', value: text || TEXT_FORMAT } },
    attributes: { values: Object.keys(labels).sort().map((key) => ({ key, value: { value: { $case: 'string_value' as const, value: String(labels[key] ?? '') } } })) },
    formatters: formattersOf(`${text}${JSON.stringify(labels)}`),
  } as never);
  return { name: 'envoy.access_loggers.open_telemetry', value: pack(OpenTelemetryAccessLogConfig, config) };
}
