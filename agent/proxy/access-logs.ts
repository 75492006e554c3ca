/**
 * Access logs of the shared Envoy. A sidecar's lines are its pod's; here each line says whose pod it is. And every chain has one
 * more logger, for `underpass flows`, that sends to the agent while a runtime key says so: Envoy sends what it has in batches, waits
 * for nobody, and counts what it dropped.
 */
import { AccessLog, type AccessLogFilter } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { SubstitutionFormatString } from '../../proto/generated/envoy/config/core/v3/substitution_format_string.js';
import { FileAccessLog } from '../../proto/generated/envoy/extensions/access_loggers/file/v3/file.js';
import { CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig } from '../../proto/generated/envoy/extensions/access_loggers/grpc/v3/als.js';
import { OpenTelemetryAccessLogConfig } from '../../proto/generated/envoy/extensions/access_loggers/open_telemetry/v3/logs_service.js';
import { StderrAccessLog, StdoutAccessLog } from '../../proto/generated/envoy/extensions/access_loggers/stream/v3/stream.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { CustomTag } from '../../proto/generated/envoy/type/tracing/v3/custom_tag.js';
import { JSON_FORMAT } from '../../common/telemetry/access-log-format.js';
import { pack, unpack } from '../../common/xds/any.js';
import { ADS_CLUSTER } from './bootstrap.js';
import type { EnvoyExtensions } from './extensions.js';
import { POD_STATE } from './filter-state.js';
import { NETNS_FILTER_STATE } from './fold-clusters.js';
import { GIVEN_CLUSTER, OUTBOUND_NODE, tagSpans } from './fold-tracing.js';
import { counting } from './connection-log.js';
import { bounded } from './log-bound.js';
import type { CountedSide } from './request-log.js';

/** What an outbound chain writes for it; chains of one class serve many pods. */
export const OUTBOUND_OWNER = `%FILTER_STATE(${POD_STATE}:PLAIN)%`;
/** Percentage of requests and connections that are sent to the agent. */
export const FLOWS_RUNTIME_KEY = 'underpass.flows';
export const FLOWS_LOGGER = 'underpass.flows';
const EXTENSION = 'envoy.access_loggers.open_telemetry';
/** What clients choose is cut to this. */
const MAX_TEXT = 256;
const CUT: ReadonlySet<string> = new Set(['method', 'path', 'x_forwarded_for', 'user_agent', 'request_id', 'authority']);

/** What the agent is told beside Istio's keys. */
export type OwnKey = 'side' | 'owner' | 'client_netns' | 'caller' | 'upstream_workload';
export type FlowsSide = 'outbound' | 'inbound';

function flowsLogger(side: CountedSide, owner: string): AccessLog {
  const own: Record<OwnKey, string> = {
    side: side === 'outbound' ? 'outbound' : 'inbound', owner, client_netns: `%FILTER_STATE(${NETNS_FILTER_STATE}:PLAIN)%`,
    caller: side === 'outbound' || side.from === 'network' ? '-' : OUTBOUND_OWNER, upstream_workload: '%UPSTREAM_METADATA(istio:workload)%',
  };
  // A pod's own clusters have its uid in their names.
  const formats = side === 'outbound' ? JSON_FORMAT : { ...JSON_FORMAT, upstream_cluster: '%UPSTREAM_CLUSTER%' };
  const keys = Object.entries(formats).map(([key, format]) => [key, CUT.has(key) ? format.replace(/%$/, `:${MAX_TEXT}%`) : format] as const);
  const config = OpenTelemetryAccessLogConfig.fromPartial({
    log_name: FLOWS_LOGGER,
    grpc_service: { target_specifier: { $case: 'envoy_grpc', value: { cluster_name: ADS_CLUSTER } }, timeout: { seconds: 5n, nanos: 0 } },
    disable_builtin_labels: true,
    stat_prefix: 'underpass_flows',
    attributes: { values: [...keys, ...Object.entries(own)].map(([key, value]) => ({ key, value: { value: { $case: 'string_value', value } } })) },
  });
  return AccessLog.fromPartial({
    name: FLOWS_LOGGER, config_type: { $case: 'typed_config', value: pack(OpenTelemetryAccessLogConfig, config) },
    filter: { filter_specifier: { $case: 'runtime_filter', value: { runtime_key: FLOWS_RUNTIME_KEY, percent_sampled: { numerator: 0 }, use_independent_randomness: true } } } as AccessLogFilter,
  });
}

/**
 * The chain with its HTTP requests counted, its own loggers' lines and its spans saying whose pod they are of, and what passes it told
 * to the agent when somebody listens.
 * @param owner `NAMESPACE/NAME`, or what Envoy writes for it
 * @param nodeId that a sidecar of the pod would have, or the same
 */
export function observed(chain: FilterChain, extensions: EnvoyExtensions, side: CountedSide, owner: string = OUTBOUND_OWNER, nodeId: string = OUTBOUND_NODE): FilterChain {
  const told = extensions.hasName(EXTENSION) ? [flowsLogger(side, owner)] : [];
  const change = (logs: readonly AccessLog[]): AccessLog[] => [...logs.map((log) => bounded(named(log, owner, side !== 'outbound'), extensions)), ...told];
  const filters = chain.filters.map((each) => {
    const config = each.config_type?.$case === 'typed_config' ? each.config_type.value : undefined;
    const manager = config && unpack(HttpConnectionManager, config);
    if (manager) tagSpans(manager, nodeId, side !== 'outbound' && side.from === 'node');
    if (manager) return { ...each, config_type: { $case: 'typed_config' as const, value: pack(HttpConnectionManager, { ...manager, access_log: change(manager.access_log) }) } };
    const tcp = config && unpack(TcpProxy, config);
    return tcp ? { ...each, config_type: { $case: 'typed_config' as const, value: pack(TcpProxy, { ...tcp, access_log: change(tcp.access_log) }) } } : each;
  });
  return counting({ ...chain, filters }, extensions, side);
}

/**
 * The logger with lines that say whose pod they are of; one whose format is Envoy's own as it is.
 * @param isInbound of chains whose cluster has another name here than the control plane gave it
 */
export function named(log: AccessLog, owner: string, isInbound = false): AccessLog {
  const config = log.config_type?.$case === 'typed_config' ? log.config_type.value : undefined;
  if (!config) return log;
  const typed = (value: ReturnType<typeof pack>): AccessLog => ({ ...log, config_type: { $case: 'typed_config', value } });
  const file = unpack(FileAccessLog, config);
  if (file) return file.access_log_format?.$case === 'log_format' ? typed(pack(FileAccessLog, { ...file, access_log_format: { $case: 'log_format', value: namedFormat(file.access_log_format.value, owner, isInbound) } })) : log;
  for (const type of [StdoutAccessLog, StderrAccessLog]) {
    const stream = unpack(type, config);
    if (stream) return stream.access_log_format?.$case === 'log_format' ? typed(pack(type, { ...stream, access_log_format: { $case: 'log_format', value: namedFormat(stream.access_log_format.value, owner, isInbound) } })) : log;
  }
  const tag = (common: CommonGrpcAccessLogConfig | undefined): CommonGrpcAccessLogConfig => ({ ...CommonGrpcAccessLogConfig.fromPartial({}), ...common, custom_tags: [...(common?.custom_tags ?? []), CustomTag.fromPartial({ tag: 'pod', type: { $case: 'value', value: owner } })] });
  const http = unpack(HttpGrpcAccessLogConfig, config);
  if (http) return typed(pack(HttpGrpcAccessLogConfig, { ...http, common_config: tag(http.common_config) }));
  const tcp = unpack(TcpGrpcAccessLogConfig, config);
  if (tcp) return typed(pack(TcpGrpcAccessLogConfig, { ...tcp, common_config: tag(tcp.common_config) }));
  const otel = unpack(OpenTelemetryAccessLogConfig, config);
  if (!otel) return log;
  if (isInbound && otel.body?.value?.$case === 'string_value') otel.body.value.value = otel.body.value.value.replaceAll(RAW_CLUSTER, GIVEN_CLUSTER);
  if (otel.attributes?.values.some(({ key }) => key === 'pod')) return log;
  const values = [...(otel.attributes?.values ?? []), { key: 'pod', value: { value: { $case: 'string_value' as const, value: owner }, _unknownFields: {} }, _unknownFields: {} }];
  return typed(pack(OpenTelemetryAccessLogConfig, { ...otel, attributes: { values, _unknownFields: {} } }));
}

const RAW_CLUSTER = '%UPSTREAM_CLUSTER_RAW%';

/** Text: at the end of the line, in quotes. JSON: the key `pod`, if there is none. */
function namedFormat(format: SubstitutionFormatString, owner: string, isInbound: boolean): SubstitutionFormatString {
  const given = (text: string): string => (isInbound ? text.replaceAll(RAW_CLUSTER, GIVEN_CLUSTER) : text);
  const inLine = (text: string): string => given(text).replace(/\n?$/, ` "${owner}"\n`);
  const { format: of } = format;
  if (of?.$case === 'text_format') return { ...format, format: { $case: 'text_format', value: inLine(of.value) } };
  if (of?.$case === 'json_format') return { ...format, format: { $case: 'json_format', value: { pod: owner, ...(JSON.parse(given(JSON.stringify(of.value))) as Record<string, unknown>) } } };
  if (of?.$case !== 'text_format_source' || of.value.specifier?.$case !== 'inline_string') return format;
  return { ...format, format: { $case: 'text_format_source', value: { ...of.value, specifier: { $case: 'inline_string', value: inLine(of.value.specifier.value) } } } };
}
