/**
 * What the shared Envoy counts of each TCP connection that it carries, and of each tunnel that ends at it: by keys, for the
 * reasons that request-log.ts has. A connection is counted when it is up and when it ends, its bytes at its end; what one that
 * lasts has carried so far is a number of its own until then, as Istio reports such connections now and then.
 */
import { AccessLogFilter, ComparisonFilter_Op, type AccessLog } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import { AccessLogType } from '../../proto/generated/envoy/data/accesslog/v3/accesslog.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { Config } from '../../proto/generated/envoy/extensions/access_loggers/stats/v3/stats.js';
import { HttpConnectionManager_HcmAccessLogOptions, type HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy, TcpProxy_TcpAccessLogOptions } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { both, countsBy, endsAlone, isFailed, isUp, ofType, RECEIVED, SENT, STATS_LOGGER } from '../../common/telemetry/stats-logger.js';
import { pack, unpack } from '../../common/xds/any.js';
import { CEL_FILTER } from '../../common/xds/cel-filter.js';
import type { EnvoyExtensions } from './extensions.js';
import { countingRequests, KEY_SEPARATOR, keyStart, type CountedSide } from './request-log.js';

/** Names of these statistics begin so; behind it come the quantity, `.k.` and the key. */
export const CONNECTION_STATS = 'underpass_connections';
/** `failed`: what never was. */
export const CONNECTION_QUANTITIES = ['opened', 'closed', 'failed', 'received', 'sent'] as const;
/** Of connections that are open: behind the key come `.id.` and the connection's own number. */
export const OPEN_QUANTITIES = ['received_open', 'sent_open'] as const;
/** Of each quantity that Envoy counts by at a time. */
export const MAX_CONNECTION_KEYS = 4_096;
/** Connections at a time whose bytes are told before they end. */
export const MAX_LASTING_CONNECTIONS = 2_048;
/** Istio's: https://github.com/istio/proxy/blob/master/source/extensions/filters/http/istio_stats/istio_stats.cc, tcp_reporting_duration. */
const REPORT_EVERY_SECONDS = 15;

/** How Envoy calls what happens to what is counted, and what tells one from another. */
interface Records {
  up: AccessLogType;
  lasting: AccessLogType;
  end: AccessLogType;
  id: string;
}
const CONNECTION: Records = { up: AccessLogType.TcpUpstreamConnected, lasting: AccessLogType.TcpPeriodic, end: AccessLogType.TcpConnectionEnd, id: '%CONNECTION_ID%' };
const TUNNEL: Records = { up: AccessLogType.DownstreamTunnelSuccessfullyEstablished, lasting: AccessLogType.DownstreamPeriodic, end: AccessLogType.DownstreamEnd, id: '%STREAM_ID%' };

/** What is carried here is never sent again by Envoy itself. */
const ZERO = '%PACKETS_RETRANSMITTED%';

/** A key that runtime has no value for is the one default. */
const hasLasted = AccessLogFilter.fromPartial({ filter_specifier: { $case: 'duration_filter', value: { comparison: { op: ComparisonFilter_Op.GE, value: { default_value: REPORT_EVERY_SECONDS * 1_000, runtime_key: 'underpass.lasted_ms' } } } } });
const hasStatus = (op: ComparisonFilter_Op, code: number): AccessLogFilter => AccessLogFilter.fromPartial({ filter_specifier: { $case: 'status_code_filter', value: { comparison: { op, value: { default_value: code, runtime_key: `underpass.status_${code}` } } } } });

function logger(of: AccessLogFilter, { counters = [], gauges = [] }: Parameters<typeof Config.fromPartial>[0]): AccessLog {
  // One scope for all listeners, as that of requests.
  const limits = { max_counters: MAX_CONNECTION_KEYS * CONNECTION_QUANTITIES.length, max_gauges: MAX_LASTING_CONNECTIONS * OPEN_QUANTITIES.length };
  return countsBy('underpass.connections', of, { counters, gauges, stats_scope: { prefix: CONNECTION_STATS, sharing_name: CONNECTION_STATS, enable_eviction: true, ...limits } });
}

const stat = (name: string, key: string, id?: string) => ({ name, tags: [{ name: 'k', value_format: key }, ...(id === undefined ? [] : [{ name: 'id', value_format: id }])] });
const opened = (key: string) => ({ stat: stat('opened', key), value_fixed: 1n });
/** By how it ended. */
const ended = (name: 'closed' | 'failed', key: string) => ({ stat: stat(name, [key, '%RESPONSE_FLAGS%'].join(KEY_SEPARATOR)), value_fixed: 1n });
const bytes = (key: string) => [{ stat: stat('received', key), value_format: RECEIVED }, { stat: stat('sent', key), value_format: SENT }];
const open = (key: string, { id }: Records, at: AccessLogType, received: string, sent: string) => [
  { stat: stat('received_open', key, id), value_format: received, set: { log_type: at } },
  { stat: stat('sent_open', key, id), value_format: sent, set: { log_type: at } },
];

/** Of what has come about. Envoy takes the loggers in turn: what was told of an open connection goes when its end is counted. */
function loggers(key: string, records: Records, cameUp: AccessLogFilter): AccessLog[] {
  const ends = ofType([records.end]);
  return [
    logger(ofType([records.up]), { counters: [opened(key)] }),
    logger(ofType([records.lasting]), { gauges: open(key, records, records.lasting, RECEIVED, SENT) }),
    logger(both(ends, cameUp), { counters: [ended('closed', key), ...bytes(key)] }),
    logger(both(ends, cameUp, hasLasted), { gauges: open(key, records, records.end, ZERO, ZERO) }),
  ];
}

const failure = (key: string, { end }: Records, failed: AccessLogFilter): AccessLog => logger(both(ofType([end]), failed), { counters: [ended('failed', key)] });

const canCount = (extensions: EnvoyExtensions): boolean => extensions.hasName(STATS_LOGGER) && extensions.hasName(CEL_FILTER);
const interval = { seconds: BigInt(REPORT_EVERY_SECONDS), nanos: 0 };

/** The chain, with its requests or connections counted; itself when this Envoy can't count. */
export function counting(chain: FilterChain, extensions: EnvoyExtensions, side: CountedSide): FilterChain {
  return countingConnections(countingRequests(chain, extensions, side), extensions, side);
}

function countingConnections(chain: FilterChain, extensions: EnvoyExtensions, side: CountedSide): FilterChain {
  if (!canCount(extensions)) return chain;
  let found = false;
  const filters = chain.filters.map((each) => {
    const proxy = each.config_type?.$case === 'typed_config' ? unpack(TcpProxy, each.config_type.value) : undefined;
    if (!proxy) return each;
    found = true;
    if (!proxy.access_log_options) endsAlone(proxy.access_log);
    const key = keyStart(side);
    proxy.access_log.push(...loggers(key, CONNECTION, isUp()), failure(key, CONNECTION, isFailed()));
    proxy.access_log_options = TcpProxy_TcpAccessLogOptions.fromPartial({ access_log_flush_interval: interval, ...proxy.access_log_options, flush_access_log_on_connected: true });
    return { ...each, config_type: { $case: 'typed_config' as const, value: pack(TcpProxy, proxy) } };
  });
  return found ? { ...chain, filters } : chain;
}

/** Tunnels that end at this manager for a pod, and go straight to its application: see hbone-terminate.ts. */
export function countTunnels(manager: HttpConnectionManager, extensions: EnvoyExtensions, uid: string): void {
  if (!canCount(extensions)) return;
  const start = (port: string): string => ['t', '', port, uid, '%DOWNSTREAM_PEER_URI_SAN%'].join(KEY_SEPARATOR);
  // A peer can name any port: only where something answered it is part of a key. What was no address of this pod is nobody's.
  manager.access_log.push(...loggers(start('%UPSTREAM_REMOTE_PORT%'), TUNNEL, hasStatus(ComparisonFilter_Op.EQ, 200)), failure(start(''), TUNNEL, hasStatus(ComparisonFilter_Op.GE, 500)));
  manager.access_log_options = HttpConnectionManager_HcmAccessLogOptions.fromPartial({ access_log_flush_interval: interval, flush_log_on_tunnel_successfully_established: true });
}
