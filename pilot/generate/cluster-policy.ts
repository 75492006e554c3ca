/**
 * What a traffic policy makes of a cluster: connection pools, outlier detection, load balancing. Defaults and shapes are
 * istiod's; what is not set is left to Envoy.
 */
import { Cluster, Cluster_DiscoveryType, Cluster_LbPolicy, type Cluster_SlowStartConfig } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { CircuitBreakers } from '../../proto/generated/envoy/config/cluster/v3/circuit_breaker.js';
import { OutlierDetection as EnvoyOutlierDetection } from '../../proto/generated/envoy/config/cluster/v3/outlier_detection.js';
import type { Duration } from '../../proto/generated/google/protobuf/duration.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { HttpProtocolOptions } from '../../proto/generated/envoy/extensions/upstreams/http/v3/http_protocol_options.js';
import { parseDurationMs } from '../../common/kube/schema.js';
import type { ConnectionPool, LoadBalancer, OutlierDetection, TcpKeepalive } from '../../common/kube/types.js';
import { pack } from '../../common/xds/any.js';
import type { MeshConfig } from '../model/mesh.js';
import { isHttp, isHttp2, type Protocol } from '../model/protocol.js';
import type { PortPolicy } from '../model/traffic-policy.js';
import { HTTP_PROTOCOL_OPTIONS, millis } from './envoy.js';

const UNLIMITED = 0xffff_ffff;
const DEFAULT_RING_SIZE = 1_024;
const WARMUP_MIN_PERCENT = 10;

/** How the upstream is spoken to; put into the cluster at the end, by httpProtocolOptions(). */
export interface UpstreamHttp {
  protocol?: 'http2' | 'downstream';
  idleTimeout?: Duration;
  maxConnectionDuration?: Duration;
  maxRequestsPerConnection?: number;
  maxConcurrentStreams?: number;
  http2KeepAlive?: { interval: Duration; timeout: Duration };
  /** The SNI is the request's Host. */
  autoSni?: boolean;
  /** The certificate's names are checked against it. */
  autoSanValidation?: boolean;
}

export function durationOf(written: string | undefined): Duration | undefined {
  const ms = written === undefined ? undefined : parseDurationMs(written);
  return ms === undefined ? undefined : millis(ms);
}

/** The protocol of a port, unless its policy upgrades it or leaves it to the client. */
export function upstreamHttp(protocol: Protocol, pool: ConnectionPool | undefined, mesh: MeshConfig, outbound = true, followsClient = true): UpstreamHttp {
  const { http, tcp } = pool ?? {};
  const idleTimeout = durationOf(http?.idleTimeout ?? tcp?.idleTimeout);
  const maxConnectionDuration = durationOf(tcp?.maxConnectionDuration);
  const [interval, timeout] = [durationOf(http?.http2KeepAlive?.interval), durationOf(http?.http2KeepAlive?.timeout)];
  const upgrade = outbound && !http?.useClientProtocol && (http?.h2UpgradePolicy === 'UPGRADE' || (http?.h2UpgradePolicy !== 'DO_NOT_UPGRADE' && isHttp(protocol) && mesh.h2UpgradePolicy === 'UPGRADE'));
  const spoken = http?.useClientProtocol || (protocol === 'auto' && !upgrade && followsClient) ? 'downstream' : isHttp2(protocol) || upgrade ? 'http2' : undefined;
  return {
    ...(spoken ? { protocol: spoken } : {}),
    ...(idleTimeout ? { idleTimeout } : {}),
    ...(maxConnectionDuration ? { maxConnectionDuration } : {}),
    ...(http?.maxRequestsPerConnection ? { maxRequestsPerConnection: http.maxRequestsPerConnection } : {}),
    ...(http?.maxConcurrentStreams ? { maxConcurrentStreams: http.maxConcurrentStreams } : {}),
    ...(interval && timeout ? { http2KeepAlive: { interval, timeout } } : {}),
  };
}

export function httpProtocolOptions({ protocol, autoSni, autoSanValidation, maxConcurrentStreams, http2KeepAlive, ...common }: UpstreamHttp): Record<string, Any> | undefined {
  const commonOptions = Object.keys(common).length > 0;
  if (!protocol && !autoSni && !autoSanValidation && !commonOptions) return undefined;
  const http2_protocol_options = { ...(maxConcurrentStreams ? { max_concurrent_streams: maxConcurrentStreams } : {}), ...(http2KeepAlive ? { connection_keepalive: http2KeepAlive } : {}) };
  const options = HttpProtocolOptions.fromPartial({
    ...(commonOptions
      ? {
          common_http_protocol_options: {
            ...(common.idleTimeout ? { idle_timeout: common.idleTimeout } : {}),
            ...(common.maxConnectionDuration ? { max_connection_duration: common.maxConnectionDuration } : {}),
            ...(common.maxRequestsPerConnection ? { max_requests_per_connection: common.maxRequestsPerConnection } : {}),
          },
        }
      : {}),
    ...(autoSni || autoSanValidation ? { upstream_http_protocol_options: { auto_sni: autoSni ?? false, auto_san_validation: autoSanValidation ?? false } } : {}),
    upstream_protocol_options:
      protocol === 'downstream'
        ? { $case: 'use_downstream_protocol_config', value: { http_protocol_options: {}, http2_protocol_options } }
        : { $case: 'explicit_http_config', value: { protocol_config: protocol === 'http2' ? { $case: 'http2_protocol_options', value: http2_protocol_options } : { $case: 'http_protocol_options', value: {} } } },
  });
  return { [HTTP_PROTOCOL_OPTIONS]: pack(HttpProtocolOptions, options) };
}

/** Circuit breakers, connect timeout and TCP keepalive. */
export function applyConnectionPool(cluster: Cluster, { connectionPool, retryBudget }: PortPolicy, mesh: MeshConfig): void {
  const { http, tcp } = connectionPool ?? {};
  cluster.connect_timeout = durationOf(tcp?.connectTimeout) ?? durationOf(mesh.connectTimeout);
  cluster.circuit_breakers = CircuitBreakers.fromPartial({
    thresholds: [
      {
        max_connections: tcp?.maxConnections || UNLIMITED,
        max_pending_requests: http?.http1MaxPendingRequests || UNLIMITED,
        max_requests: http?.http2MaxRequests || UNLIMITED,
        max_retries: http?.maxRetries || UNLIMITED,
        ...(retryBudget ? { retry_budget: { budget_percent: { value: retryBudget.percent ?? 20 }, min_retry_concurrency: retryBudget.minRetryConcurrency ?? 3 } } : {}),
      },
    ],
  });
  const keepalive: TcpKeepalive | undefined = mesh.tcpKeepalive || tcp?.tcpKeepalive ? { ...mesh.tcpKeepalive, ...tcp?.tcpKeepalive } : undefined;
  if (!keepalive) return;
  const seconds = (written: string | undefined): number | undefined => (written === undefined ? undefined : Math.round((parseDurationMs(written) ?? 0) / 1_000));
  const [time, interval] = [seconds(keepalive.time), seconds(keepalive.interval)];
  cluster.upstream_connection_options = Cluster.fromPartial({
    upstream_connection_options: {
      tcp_keepalive: {
        ...(keepalive.probes ? { keepalive_probes: keepalive.probes } : {}),
        ...(time ? { keepalive_time: time } : {}),
        ...(interval ? { keepalive_interval: interval } : {}),
      },
    },
  }).upstream_connection_options;
}

export function applyOutlierDetection(cluster: Cluster, outlier: OutlierDetection | undefined): void {
  if (!outlier) return;
  const enforced = (count: number): number => (count > 0 ? 100 : 0);
  const { consecutive5xxErrors, consecutiveGatewayErrors, consecutiveLocalOriginFailures, minHealthPercent } = outlier;
  const [interval, base] = [durationOf(outlier.interval), durationOf(outlier.baseEjectionTime)];
  // consecutiveErrors, the deprecated name, is not among them: istiod has stopped to read it.
  cluster.outlier_detection = EnvoyOutlierDetection.fromPartial({
    enforcing_success_rate: 0,
    ...(consecutive5xxErrors === undefined ? {} : { consecutive_5xx: consecutive5xxErrors, enforcing_consecutive_5xx: enforced(consecutive5xxErrors) }),
    ...(consecutiveGatewayErrors === undefined ? {} : { consecutive_gateway_failure: consecutiveGatewayErrors, enforcing_consecutive_gateway_failure: enforced(consecutiveGatewayErrors) }),
    ...(interval ? { interval } : {}),
    ...(base ? { base_ejection_time: base } : {}),
    ...(outlier.maxEjectionPercent ? { max_ejection_percent: outlier.maxEjectionPercent } : {}),
    ...(outlier.splitExternalLocalOriginErrors
      ? {
          split_external_local_origin_errors: true,
          enforcing_local_origin_success_rate: 0,
          ...(consecutiveLocalOriginFailures ? { consecutive_local_origin_failure: consecutiveLocalOriginFailures, enforcing_consecutive_local_origin_failure: 100 } : {}),
        }
      : {}),
  });
  if (minHealthPercent) cluster.common_lb_config = { ...cluster.common_lb_config!, healthy_panic_threshold: { value: minHealthPercent } };
}

/** The cluster's discovery type is final before this but for PASSTHROUGH, which makes it an original-destination one. */
export function applyLoadBalancer(cluster: Cluster, loadBalancer: LoadBalancer | undefined): void {
  const { simple = 'UNSPECIFIED', consistentHash } = loadBalancer ?? {};
  const isOriginalDestination = cluster.cluster_discovery_type?.$case === 'type' && cluster.cluster_discovery_type.value === Cluster_DiscoveryType.ORIGINAL_DST;
  if (isOriginalDestination || (simple === 'PASSTHROUGH' && !consistentHash)) {
    cluster.cluster_discovery_type = { $case: 'type', value: Cluster_DiscoveryType.ORIGINAL_DST };
    cluster.lb_policy = Cluster_LbPolicy.CLUSTER_PROVIDED;
    cluster.load_assignment = undefined;
    cluster.eds_cluster_config = undefined;
    return;
  }
  if (consistentHash) {
    const { maglev, ringHash } = consistentHash;
    if (maglev) {
      cluster.lb_policy = Cluster_LbPolicy.MAGLEV;
      if (maglev.tableSize) cluster.lb_config = Cluster.fromPartial({ lb_config: { $case: 'maglev_lb_config', value: { table_size: BigInt(maglev.tableSize) } } }).lb_config;
      return;
    }
    cluster.lb_policy = Cluster_LbPolicy.RING_HASH;
    const size = ringHash ? ringHash.minimumRingSize : consistentHash.minimumRingSize || DEFAULT_RING_SIZE;
    if (size) cluster.lb_config = Cluster.fromPartial({ lb_config: { $case: 'ring_hash_lb_config', value: { minimum_ring_size: BigInt(size) } } }).lb_config;
    return;
  }
  const slow_start_config = slowStart(loadBalancer);
  switch (simple) {
    case 'RANDOM':
      cluster.lb_policy = Cluster_LbPolicy.RANDOM;
      return;
    case 'ROUND_ROBIN':
      cluster.lb_policy = Cluster_LbPolicy.ROUND_ROBIN;
      if (slow_start_config) cluster.lb_config = Cluster.fromPartial({ lb_config: { $case: 'round_robin_lb_config', value: { slow_start_config } } }).lb_config;
      return;
    default:
      cluster.lb_policy = Cluster_LbPolicy.LEAST_REQUEST;
      if (slow_start_config) cluster.lb_config = Cluster.fromPartial({ lb_config: { $case: 'least_request_lb_config', value: { slow_start_config } } }).lb_config;
  }
}

/** Warm-up; the deprecated field has Envoy's own aggression and floor. */
function slowStart(loadBalancer: LoadBalancer | undefined): Partial<Cluster_SlowStartConfig> | undefined {
  const { warmup, warmupDurationSecs } = loadBalancer ?? {};
  const slow_start_window = durationOf(warmup?.duration ?? warmupDurationSecs);
  if (!slow_start_window) return undefined;
  if (!warmup) return { slow_start_window };
  return {
    slow_start_window,
    // Envoy insists on a runtime key; nobody sets it, and this is istiod's.
    aggression: { default_value: warmup.aggression ?? 1, runtime_key: '(' },
    min_weight_percent: { value: warmup.minimumPercent ?? WARMUP_MIN_PERCENT },
  };
}
