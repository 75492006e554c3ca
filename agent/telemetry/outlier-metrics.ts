/** Outlier detection in the kernel, by cluster and named as Envoy's own statistics of a cluster are. */
import type { OutlierStatus } from '../dataplane/kernel-http-outliers.js';
import type { PrometheusText } from './prometheus.js';

/** @param detections each cluster once for each config class that has it */
export function addOutlierMetrics(text: PrometheusText, detections: readonly OutlierStatus[]): void {
  const sums = new Map<string, { active: number; fiveXx: number; gateway: number; overflow: number }>();
  for (const { cluster, ejected, ejections, overflows } of detections) {
    const sum = sums.get(cluster) ?? { active: 0, fiveXx: 0, gateway: 0, overflow: 0 };
    sums.set(cluster, { active: sum.active + ejected.length, fiveXx: sum.fiveXx + ejections.consecutive5xx, gateway: sum.gateway + ejections.consecutiveGatewayFailure, overflow: sum.overflow + overflows });
  }
  for (const [cluster, { active, fiveXx, gateway, overflow }] of sums) {
    text.add('underpass_http_outlier_ejections_active', 'gauge', 'Endpoints that the kernel leaves out of its draws since they failed.', active, { cluster });
    text.add('underpass_http_outlier_ejections_enforced_total', 'counter', 'Endpoints that the kernel ejected.', fiveXx, { cluster, type: 'consecutive_5xx' });
    text.add('underpass_http_outlier_ejections_enforced_total', 'counter', 'Endpoints that the kernel ejected.', gateway, { cluster, type: 'consecutive_gateway_failure' });
    text.add('underpass_http_outlier_ejections_overflow_total', 'counter', 'Endpoints that were not ejected since more were out than may be.', overflow, { cluster });
  }
}
