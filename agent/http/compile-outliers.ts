/**
 * Whether the kernel can eject a cluster's endpoints as Envoy's outlier detection does, and up to how many that are out the draw is
 * the kernel's still. Defaults are Envoy's: https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/cluster/v3/outlier_detection.proto
 */
import type { Cluster_CommonLbConfig } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { OutlierDetection as EnvoyOutlierDetection } from '../../proto/generated/envoy/config/cluster/v3/outlier_detection.js';
import type { Duration } from '../../proto/generated/google/protobuf/duration.js';
import type { OutlierDetection } from './table.js';

export type OutlierSettings = Omit<OutlierDetection, 'hosts' | 'spare' | 'panic'>;

/** Of the endpoints of the priority that counts. */
export interface Population {
  /** In all priorities. */
  hosts: number;
  ofPriority: number;
  healthy: number;
  hasPriorities: boolean;
  /** More than one locality, each with its share. */
  hasShares: boolean;
  /** In percent; Envoy's is 140. */
  overprovisioning: number;
}

const NEVER = Infinity;
const DEFAULT_PANIC_PERCENT = 50;

/** Undefined: nobody is ever ejected. A string: why it is Envoy's. */
export function outlierSettings(outliers: EnvoyOutlierDetection | undefined): OutlierSettings | string | undefined {
  if (!outliers) return undefined;
  const enforced = { fiveXx: outliers.enforcing_consecutive_5xx ?? 100, gateway: outliers.enforcing_consecutive_gateway_failure ?? 0 };
  if ((outliers.enforcing_success_rate ?? 100) > 0) return 'its endpoints are ejected by their rate of success';
  if ((outliers.enforcing_failure_percentage ?? 0) > 0) return 'its endpoints are ejected by their share of failures';
  if (outliers.split_external_local_origin_errors) return 'its endpoints are ejected for failed connections apart from 5xx';
  if (outliers.monitors.length > 0) return 'its endpoints are ejected by an extension';
  if ([enforced.fiveXx, enforced.gateway].some((percent) => percent > 0 && percent < 100)) return 'its endpoints are ejected by chance';
  if (ms(outliers.max_ejection_time_jitter, 0) > 0) return 'its endpoints are ejected for a time that is drawn';
  const baseEjectionMs = ms(outliers.base_ejection_time, 30_000);
  const settings: OutlierSettings = {
    consecutive5xx: enforced.fiveXx > 0 ? (outliers.consecutive_5xx ?? 5) : 0,
    consecutiveGatewayFailure: enforced.gateway > 0 ? (outliers.consecutive_gateway_failure ?? 5) : 0,
    intervalMs: ms(outliers.interval, 10_000), baseEjectionMs, maxEjectionMs: ms(outliers.max_ejection_time, Math.max(300_000, baseEjectionMs)),
    maxEjectionPercent: Math.min(100, outliers.max_ejection_percent ?? 10), alwaysEjectOneHost: outliers.always_eject_one_host ?? false,
  };
  const isOff = settings.consecutive5xx === 0 && settings.consecutiveGatewayFailure === 0;
  return isOff ? undefined : settings;
}

/**
 * How many may be out until somebody else has to take a part, and from how many on Envoy takes all of them, ejected or not: the
 * rules of its load balancers' panic and priorities, source/extensions/load_balancing_policies/common/load_balancer_impl.cc.
 */
export function ejectionBounds({ ofPriority, healthy, hasPriorities, hasShares, overprovisioning }: Population, common: Cluster_CommonLbConfig | undefined): { spare: number; panic: number } {
  const threshold = common?.healthy_panic_threshold?.value ?? DEFAULT_PANIC_PERCENT;
  const isEnough = (out: number): boolean => Math.floor((overprovisioning * (healthy - out)) / ofPriority) >= 100;
  const isPanic = (out: number): boolean => !isEnough(out) && ((healthy - out) * 100) / ofPriority < threshold;
  let spare = 0;
  if (hasShares) return { spare, panic: NEVER };
  while (spare + 1 < healthy && (hasPriorities ? isEnough(spare + 1) : !isPanic(spare + 1))) spare++;
  if (hasPriorities || healthy < ofPriority) return { spare, panic: NEVER };
  const panic = Array.from({ length: healthy }, (_, at) => at + 1).find(isPanic);
  return { spare, panic: panic ?? NEVER };
}

function ms(duration: Duration | undefined, otherwise: number): number {
  return duration ? Number(duration.seconds) * 1_000 + duration.nanos / 1_000_000 : otherwise;
}
