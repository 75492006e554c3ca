/** Whether the kernel can draw a cluster's endpoints as Envoy does, and with which shares. */
import { isIP } from 'node:net';
import { Cluster, Cluster_CommonLbConfig, Cluster_DiscoveryType, Cluster_LbPolicy } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { HealthStatus } from '../../proto/generated/envoy/config/core/v3/health_check.js';
import type { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import type { LbEndpoint, LocalityLbEndpoints } from '../../proto/generated/envoy/config/endpoint/v3/endpoint_components.js';
import { HttpProtocolOptions } from '../../proto/generated/envoy/extensions/upstreams/http/v3/http_protocol_options.js';
import { unpack } from '../../common/xds/any.js';
import { isTunnelled, socketEndpoints } from '../proxy/fold-endpoints.js';
import { isEmpty, isNeutral } from '../proxy/neutral-chain.js';
import type { Reason } from './compile-action.js';
import { ejectionBounds, outlierSettings, type Population } from './compile-outliers.js';
import type { HttpService, OutlierDetection } from './table.js';

/** A folded cluster, as the control plane calls it; `reason`: why it is Envoy's in any case. */
export interface ClusterView {
  readonly cluster: Cluster;
  readonly assignment: ClusterLoadAssignment | undefined;
  readonly reason?: string | undefined;
  /** The same object, the same cluster and assignment. */
  readonly source?: object;
}

export interface DrawnEndpoint {
  address: string;
  port: number;
  /** Reached by HBONE where it is not on this node. */
  isTunnelled: boolean;
  weight: number;
}

export interface Draw {
  balance: 'least-request' | 'random';
  outlierDetection?: OutlierDetection;
  endpoints: readonly DrawnEndpoint[];
}

const UNLIMITED = 0xffff_ffff;

const draws = new WeakMap<object, Draw | Reason>();

export function drawOf(view: ClusterView): Draw | Reason {
  const { reason, source } = view;
  if (reason !== undefined) return { reason };
  let found = source && draws.get(source);
  if (!found) {
    found = readDraw(view.cluster, view.assignment);
    if (source) draws.set(source, found);
  }
  return found;
}

function readDraw(cluster: Cluster, assignment: ClusterLoadAssignment | undefined): Draw | Reason {
  const why = clusterReason(cluster);
  if (why !== undefined) return { reason: why };
  const endpoints = endpointsOf(assignment ?? cluster.load_assignment, cluster.common_lb_config);
  if ('reason' in endpoints) return endpoints;
  const { drawn, population } = endpoints;
  const settings = outlierSettings(cluster.outlier_detection);
  if (typeof settings === 'string') return { reason: settings };
  const outlierDetection = settings && population && { ...settings, hosts: population.hosts, ...ejectionBounds(population, cluster.common_lb_config) };
  return { balance: cluster.lb_policy === Cluster_LbPolicy.LEAST_REQUEST ? 'least-request' : 'random', ...(outlierDetection ? { outlierDetection } : {}), endpoints: drawn };
}

/** From Istio's metadata of clusters, else from the name `outbound|PORT|SUBSET|HOST`. */
export function serviceOf(name: string, view: ClusterView | undefined): HttpService | undefined {
  const services = view?.cluster.metadata?.filter_metadata['istio']?.['services'] as { host?: string; name?: string; namespace?: string }[] | undefined;
  const { host = /^outbound\|\d+\|[^|]*\|(.+)$/.exec(name)?.[1], name: own, namespace } = services?.[0] ?? {};
  if (host === undefined) return undefined;
  const [first = host, second = ''] = /^[^.]+\.[^.]+\.svc\./.test(host) ? host.split('.') : [host];
  return { hostname: host, name: own ?? first, namespace: namespace ?? second };
}

function clusterReason(cluster: Cluster): string | undefined {
  const type = cluster.cluster_discovery_type;
  if (type?.$case !== 'type' || (type.value !== Cluster_DiscoveryType.EDS && type.value !== Cluster_DiscoveryType.STATIC)) return 'its endpoints are not a list of addresses';
  if (cluster.transport_socket) return 'TLS is originated for it';
  if (cluster.lb_subset_config) return 'its endpoints are drawn in subsets';
  if (cluster.health_checks.length > 0) return 'its endpoints are checked by Envoy';
  const limits = (cluster.circuit_breakers?.thresholds ?? []).flatMap(({ max_connections, max_pending_requests, max_requests, max_connection_pools }) => [max_connections, max_pending_requests, max_requests, max_connection_pools]);
  if (limits.some((limit) => limit !== undefined && limit < UNLIMITED) || cluster.circuit_breakers?.per_host_thresholds.length) return 'its connections or requests are limited';
  const filter = cluster.filters.find(({ typed_config }) => !typed_config || !isNeutral(typed_config));
  if (filter) return `the filter ${filter.name} has a say`;
  const balance = balanceReason(cluster);
  if (balance !== undefined) return balance;
  if (cluster.max_requests_per_connection !== undefined || cluster.common_http_protocol_options || cluster.http_protocol_options || cluster.http2_protocol_options || cluster.upstream_http_protocol_options) return 'its requests have settings';
  for (const value of Object.values(cluster.typed_extension_protocol_options)) {
    const reason = protocolReason(unpack(HttpProtocolOptions, value));
    if (reason !== undefined) return reason;
  }
  const rest: Cluster = {
    ...cluster, name: '', alt_stat_name: '', cluster_discovery_type: undefined, eds_cluster_config: undefined, connect_timeout: undefined, lb_policy: 0, lb_config: undefined, circuit_breakers: undefined, metadata: undefined,
    transport_socket_matches: [], filters: [], common_lb_config: undefined, typed_extension_protocol_options: {}, dns_lookup_family: 0, upstream_bind_config: undefined, load_assignment: undefined,
    upstream_connection_options: undefined, per_connection_buffer_limit_bytes: undefined, outlier_detection: undefined,
  };
  return isEmpty(Cluster, rest) ? undefined : 'its cluster has settings';
}

function balanceReason({ lb_policy: policy, lb_config: config, load_balancing_policy, common_lb_config: common }: Cluster): string | undefined {
  const isKnown = policy === Cluster_LbPolicy.LEAST_REQUEST || policy === Cluster_LbPolicy.ROUND_ROBIN || policy === Cluster_LbPolicy.RANDOM;
  if (!isKnown || load_balancing_policy) return 'its endpoints are chosen by more than load and chance';
  const { slow_start_config, choice_count, active_request_bias } = (config?.value ?? {}) as { slow_start_config?: unknown; choice_count?: number; active_request_bias?: unknown };
  if (slow_start_config) return 'its endpoints start slowly';
  if ((choice_count ?? 2) !== 2 || active_request_bias) return 'its endpoints are chosen by more than load and chance';
  // Zones count where Envoy knows its own cluster, which this one does not.
  return common && !isEmpty(Cluster_CommonLbConfig, { ...common, healthy_panic_threshold: undefined, locality_config_specifier: undefined }) ? 'its load balancing has settings' : undefined;
}

function protocolReason(options: HttpProtocolOptions | undefined): string | undefined {
  if (!options) return 'its requests have settings';
  const common = options.common_http_protocol_options;
  if (common?.max_requests_per_connection !== undefined) return 'its connections end after some requests';
  const protocol = options.upstream_protocol_options;
  if (protocol && protocol.$case !== 'use_downstream_protocol_config' && (protocol.$case !== 'explicit_http_config' || protocol.value.protocol_config?.$case !== 'http_protocol_options')) return 'it speaks HTTP/2';
  return isEmpty(HttpProtocolOptions, { ...options, upstream_protocol_options: undefined }) ? undefined : 'its requests have settings';
}

/** Shares as Envoy gives them while all endpoints of the priority that counts are healthy. */
function endpointsOf(assignment: ClusterLoadAssignment | undefined, common: Cluster_CommonLbConfig | undefined): { drawn: DrawnEndpoint[]; population?: Population } | Reason {
  if (!assignment) return { drawn: [] };
  if ((assignment.policy?.drop_overloads.length ?? 0) > 0) return { reason: 'a part of its requests is dropped' };
  const priorities = [...new Set(assignment.endpoints.filter(({ lb_endpoints }) => lb_endpoints.length > 0).map(({ priority }) => priority))].sort((a, b) => a - b);
  if (assignment.endpoints.some(({ lb_config }) => lb_config)) return { reason: 'its endpoints are listed elsewhere' };
  const localities = assignment.endpoints.filter(({ priority }) => priority === priorities[0]);
  const all = localities.flatMap(({ lb_endpoints }) => lb_endpoints);
  const healthy = all.filter(isHealthy);
  const byLocality = common?.locality_config_specifier?.$case === 'locality_weighted_lb_config';
  if (all.some(({ health_status }) => health_status === HealthStatus.DEGRADED)) return { reason: 'some of its endpoints are degraded' };
  if (healthy.length < all.length) {
    if (priorities.length > 1) return { reason: 'some of its endpoints are not healthy, and others stand in for them' };
    if (byLocality) return { reason: 'some of its endpoints are not healthy, and localities have weights' };
    // Below it Envoy draws from all of them.
    if (healthy.length * 100 < all.length * (common?.healthy_panic_threshold?.value ?? 50)) return { reason: 'so few of its endpoints are healthy that all are used' };
  }
  const targets = new Map(socketEndpoints(assignment).map((each) => [each.item, each]));
  const drawn: DrawnEndpoint[] = [];
  const weights = byLocality ? localityWeights(localities) : undefined;
  for (const locality of localities) {
    const share = weights ? (weights.get(locality) ?? 0) : undefined;
    if (share === 0) continue;
    const sum = locality.lb_endpoints.reduce((total, each) => total + weightOf(each), 0);
    for (const item of locality.lb_endpoints.filter(isHealthy)) {
      const target = targets.get(item);
      if (!target || isIP(target.address) === 0) return { reason: 'one of its endpoints is no address and port' };
      const { address, port } = target;
      drawn.push({ address, port, isTunnelled: isTunnelled(item), weight: share === undefined ? weightOf(item) : (share * weightOf(item)) / sum });
    }
  }
  const population: Population = {
    hosts: assignment.endpoints.reduce((sum, { lb_endpoints }) => sum + lb_endpoints.length, 0), ofPriority: all.length, healthy: healthy.length,
    hasPriorities: priorities.length > 1, hasShares: weights !== undefined && [...weights.values()].filter((weight) => weight > 0).length > 1,
    overprovisioning: assignment.policy?.overprovisioning_factor ?? 140,
  };
  return { drawn, population };
}

/** Undefined: none has a weight, and then they do not count. */
function localityWeights(localities: readonly LocalityLbEndpoints[]): Map<LocalityLbEndpoints, number> | undefined {
  const weights = new Map(localities.map((locality) => [locality, locality.lb_endpoints.length > 0 ? (locality.load_balancing_weight ?? 0) : 0]));
  return [...weights.values()].some((weight) => weight > 0) ? weights : undefined;
}

function weightOf({ load_balancing_weight: weight }: LbEndpoint): number {
  return Math.max(1, weight ?? 1);
}

function isHealthy({ health_status: status }: LbEndpoint): boolean {
  return status === HealthStatus.UNKNOWN || status === HealthStatus.HEALTHY;
}
