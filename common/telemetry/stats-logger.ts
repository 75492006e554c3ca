/**
 * Envoy's access logger for statistics, as the shared Envoy counts by it (agent/proxy/request-log.ts, agent/proxy/connection-log.ts)
 * and sidecars and gateways do (pilot/telemetry/metrics.ts): what is counted of requests and connections, and when.
 */
import { AccessLog, type AccessLogFilter } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import { AccessLogType } from '../../proto/generated/envoy/data/accesslog/v3/accesslog.js';
import { Config, Config_Histogram_Unit } from '../../proto/generated/envoy/extensions/access_loggers/stats/v3/stats.js';
import { pack } from '../xds/any.js';
import { celFilter } from '../xds/cel-filter.js';

export const STATS_LOGGER = 'envoy.access_loggers.stats';

/** What is counted of a request. */
export const REQUEST_QUANTITIES = ['duration', 'request', 'answer'] as const;
export type RequestQuantity = (typeof REQUEST_QUANTITIES)[number];

/** As Istio's metrics are measured: https://github.com/istio/proxy/blob/master/source/extensions/filters/http/istio_stats/istio_stats.cc */
export const REQUEST_VALUES: Record<RequestQuantity, { format: string; unit: Config_Histogram_Unit }> = {
  duration: { format: '%DURATION%', unit: Config_Histogram_Unit.Milliseconds },
  request: { format: '%DOWNSTREAM_WIRE_BYTES_RECEIVED%', unit: Config_Histogram_Unit.Bytes },
  answer: { format: '%DOWNSTREAM_WIRE_BYTES_SENT%', unit: Config_Histogram_Unit.Bytes },
};
/** Of a connection: from the client, and to it. */
export const RECEIVED = '%BYTES_RECEIVED%';
export const SENT = '%BYTES_SENT%';

export function countsBy(name: string, of: AccessLogFilter, config: Parameters<typeof Config.fromPartial>[0]): AccessLog {
  return { ...AccessLog.fromPartial({ name, config_type: { $case: 'typed_config', value: pack(Config, Config.fromPartial(config)) } }), filter: of };
}

type Filter = NonNullable<AccessLogFilter['filter_specifier']>;
export const accept = (specifier: Filter): AccessLogFilter => ({ filter_specifier: specifier, _unknownFields: {} });
export const both = (...filters: AccessLogFilter[]): AccessLogFilter => (filters.length === 1 ? filters[0]! : accept({ $case: 'and_filter', value: { filters, _unknownFields: {} } }));
export const ofType = (types: AccessLogType[], exclude = false): AccessLogFilter => accept({ $case: 'log_type_filter', value: { types, exclude, _unknownFields: {} } });

/** Istio's word for it, too: what says so in its content type. */
export const isGrpc = (inverted: boolean): AccessLogFilter => AccessLog.fromPartial({ filter: { filter_specifier: { $case: 'header_filter', value: { header: {
  name: 'content-type', invert_match: inverted, treat_missing_header_as_empty: true,
  header_match_specifier: { $case: 'string_match', value: { match_pattern: { $case: 'prefix', value: 'application/grpc' } } },
} } } } }).filter!;

/** Servers may make up any status: only those that gRPC has are told. */
const GRPC_STATUSES = Array.from({ length: 17 }, (_, status) => status);
export const GRPC_STATUS = '%GRPC_STATUS_NUMBER%';
export const hasKnownStatus = (exclude: boolean): AccessLogFilter => AccessLog.fromPartial({ filter: { filter_specifier: { $case: 'grpc_status_filter', value: { statuses: GRPC_STATUSES, exclude } } } }).filter!;

/** Flags don't tell: of what a network filter has ended there are none. */
const UPSTREAM = 'has(upstream.local_address)';
/** Whether a connection led to one upstream. */
export const isUp = (): AccessLogFilter => celFilter(UPSTREAM);
export const isFailed = (): AccessLogFilter => celFilter(`!${UPSTREAM}`);

/** Who logs connections for another reason is told of their ends, as before, where a log is kept of their beginnings, too. */
export function endsAlone(logs: AccessLog[]): void {
  for (const log of logs) log.filter = both(...(log.filter ? [log.filter] : []), ofType([AccessLogType.TcpUpstreamConnected, AccessLogType.TcpPeriodic], true));
}
