/**
 * What the shared Envoy counts of each HTTP request, by its own access logger for statistics. Envoy's formatters can't say Istio's
 * labels, and a change of workloads must not change a listener: so Envoy counts by a key of what it knows for certain, and the
 * agent makes labels of it (agent/telemetry/envoy-requests.ts). Nothing that a client or server can choose freely is in a key.
 */
import type { AccessLog, AccessLogFilter } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { both, countsBy, GRPC_STATUS, hasKnownStatus, isGrpc, REQUEST_QUANTITIES, REQUEST_VALUES, STATS_LOGGER } from '../../common/telemetry/stats-logger.js';
import { pack, unpack } from '../../common/xds/any.js';
import { CEL_FILTER, celFilter } from '../../common/xds/cel-filter.js';
import type { EnvoyExtensions } from './extensions.js';
import { NETNS_FILTER_STATE } from './fold-clusters.js';
import { mapEndpoints } from './fold-endpoints.js';
import { PEER_PRINCIPAL } from './pod-listener.js';

/** Names of Envoy's histograms begin so; behind it come the quantity, `.k.` and the key. */
export const REQUEST_STATS = 'underpass_requests';
/** The same of calls of gRPC, by how many messages they had. */
export const MESSAGE_STATS = 'underpass_messages';
/** Keys of theirs at a time. */
export const MAX_MESSAGE_KEYS = 4_096;
/** The filter that counts messages, which stands in every chain of Istio's, and the name of its object in filter state. */
const GRPC_STATS = 'envoy.filters.http.grpc_stats';
/** Of a key's parts: no name, address or path of this project's has one. */
export const KEY_SEPARATOR = '\t';
/** Keys that Envoy counts by at a time. */
export const MAX_REQUEST_KEYS = 4_096;
/** Metadata of endpoints that are pods of this node and have no inbound chain at Envoy: nobody but the client's side counts what they serve. */
const PLACE_METADATA = 'underpass.place';

/** `outbound`: where a pod's requests leave it. Otherwise where they come in, of the pod with this uid. */
export type CountedSide = 'outbound' | { inbound: string; from: 'node' | 'network' };

/**
 * The parts of a key, in their order.
 * - outbound: `s`, the client's namespace path, cluster, workload of the endpoint as Istio writes it, `node` where that is in this
 *   Envoy's charge alone, status, flags, protocol, status of gRPC
 * - inbound: `d`, the client's namespace path if it is a pod of this node, cluster, uid of the pod, the caller's principal, and the same
 */
function keyFormat(side: CountedSide, protocol: 'http' | 'grpc', grpcStatus: string): string {
  return [keyStart(side), '%RESPONSE_CODE%', '%RESPONSE_FLAGS%', protocol, grpcStatus].join(KEY_SEPARATOR);
}

/** The parts up to the status: all that a connection has. */
export function keyStart(side: CountedSide): string {
  const own = side === 'outbound'
    ? ['s', `%FILTER_STATE(${NETNS_FILTER_STATE}:PLAIN)%`, '%UPSTREAM_CLUSTER_RAW%', '%UPSTREAM_METADATA(istio:workload)%', `%UPSTREAM_METADATA(${PLACE_METADATA}:at)%`]
    : ['d', side.from === 'node' ? `%FILTER_STATE(${NETNS_FILTER_STATE}:PLAIN)%` : '', '%UPSTREAM_CLUSTER_RAW%', side.inbound, side.from === 'node' ? `%FILTER_STATE(${PEER_PRINCIPAL}:PLAIN)%` : '%DOWNSTREAM_PEER_URI_SAN%'];
  return own.join(KEY_SEPARATOR);
}

function logger(key: string, of: AccessLogFilter): AccessLog {
  return countsBy('underpass.requests', of, {
    histograms: REQUEST_QUANTITIES.map((name) => ({ stat: { name, tags: [{ name: 'k', value_format: key }] }, unit: REQUEST_VALUES[name].unit, value_format: REQUEST_VALUES[name].format })),
    // One for all listeners: what it holds outlives each of them. What was not counted up for an interval is dropped, see bootstrap.ts.
    stats_scope: { prefix: REQUEST_STATS, sharing_name: REQUEST_STATS, enable_eviction: true, max_histograms: MAX_REQUEST_KEYS * REQUEST_QUANTITIES.length },
  });
}

/** Where an answer was given before that filter came to it there is no object. */
const hasMessages: AccessLogFilter = celFilter(`'${GRPC_STATS}' in filter_state`);

function loggers(side: CountedSide, countsMessages: boolean): AccessLog[] {
  const [known, unknown] = [keyFormat(side, 'grpc', GRPC_STATUS), keyFormat(side, 'grpc', '')];
  const [isKnown, isUnknown] = [both(isGrpc(false), hasKnownStatus(false)), both(isGrpc(false), hasKnownStatus(true))];
  return [
    logger(keyFormat(side, 'http', ''), isGrpc(true)),
    logger(known, isKnown),
    logger(unknown, isUnknown),
    ...(countsMessages ? [messageLogger(known, isKnown), messageLogger(unknown, isUnknown)] : []),
  ];
}

/**
 * No formatter says one of the two numbers alone, so calls are counted by both: `2,3`, sent and received. There may be many in
 * streams; so these have a bound of their own, and what is counted beside them does not suffer.
 */
function messageLogger(key: string, of: AccessLogFilter): AccessLog {
  const counters = [{ stat: { name: 'calls', tags: [{ name: 'k', value_format: [key, `%FILTER_STATE(${GRPC_STATS}:PLAIN)%`].join(KEY_SEPARATOR) }] }, value_fixed: 1n }];
  return countsBy('underpass.messages', both(of, hasMessages), { counters, stats_scope: { prefix: MESSAGE_STATS, sharing_name: MESSAGE_STATS, enable_eviction: true, max_counters: MAX_MESSAGE_KEYS } });
}

/** The chain, with its requests counted; itself when it has no HTTP, or this Envoy can't count. */
export function countingRequests(chain: FilterChain, extensions: EnvoyExtensions, side: CountedSide): FilterChain {
  if (!extensions.hasName(STATS_LOGGER)) return chain;
  let found = false;
  const filters = chain.filters.map((each) => {
    const manager = each.config_type?.$case === 'typed_config' ? unpack(HttpConnectionManager, each.config_type.value) : undefined;
    if (!manager) return each;
    found = true;
    manager.access_log.push(...loggers(side, extensions.hasName(CEL_FILTER) && manager.http_filters.some(({ name }) => name === GRPC_STATS)));
    return { ...each, config_type: { $case: 'typed_config' as const, value: pack(HttpConnectionManager, manager) } };
  });
  return found ? { ...chain, filters } : chain;
}

/** The cluster and assignment with those endpoints marked that no inbound chain of this Envoy stands before, and that are its own pods'. */
export function markPlaces(cluster: Cluster, assignment: ClusterLoadAssignment | undefined, local: ReadonlySet<string>, behindChain: ReadonlyMap<string, string>): { cluster: Cluster; assignment: ClusterLoadAssignment | undefined } {
  const change = (from: ClusterLoadAssignment): ClusterLoadAssignment => mapEndpoints(from, (item, { address }) => {
    if (!local.has(address) || behindChain.has(address)) return item;
    return { ...item, metadata: { typed_filter_metadata: {}, ...item.metadata, filter_metadata: { ...item.metadata?.filter_metadata, [PLACE_METADATA]: { at: 'node' } } } };
  });
  return { cluster: cluster.load_assignment ? { ...cluster, load_assignment: change(cluster.load_assignment) } : cluster, assignment: assignment && change(assignment) };
}
