/** Retry policies: a route's own, else the mesh's, else Istio's default of two attempts more. */
import type { HttpRetry } from '../../common/kube/types.js';
import { parseDurationMs } from '../../common/kube/schema.js';
import { pack } from '../../common/xds/any.js';
import { RetryPolicy } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { PreviousHostsPredicate } from '../../proto/generated/envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.js';
import { PreviousPrioritiesConfig } from '../../proto/generated/envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config.js';
import { millis } from './envoy.js';

const RETRY_ON = 'connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes';
const DEFAULT_RETRIES = 2;

const previousHosts = {
  name: 'envoy.retry_host_predicates.previous_hosts',
  config_type: { $case: 'typed_config' as const, value: pack(PreviousHostsPredicate, PreviousHostsPredicate.fromPartial({})) },
};
const previousPriorities = {
  name: 'envoy.retry_priorities.previous_priorities',
  config_type: { $case: 'typed_config' as const, value: pack(PreviousPrioritiesConfig, PreviousPrioritiesConfig.fromPartial({ update_frequency: 2 })) },
};

/**
 * @param retries undefined: Istio's default. A policy without attempts turns retries off
 * @param hashed the hash decides on the endpoint, for the retry as well
 */
export function retryPolicy(retries: HttpRetry | undefined, hashed = false): RetryPolicy | undefined {
  if (retries && (retries.attempts ?? 0) <= 0) return undefined;
  // A retry goes to another endpoint than the last attempt's, unless asked otherwise; it gives up looking for one after five draws.
  const elsewhere = retries?.retryIgnorePreviousHosts ?? !hashed;
  const policy = RetryPolicy.fromPartial({
    retry_on: RETRY_ON,
    num_retries: retries?.attempts ?? DEFAULT_RETRIES,
    host_selection_retry_max_attempts: 5n,
    retry_host_predicate: elsewhere ? [previousHosts] : [],
    ...(retries?.retryRemoteLocalities ? { retry_priority: previousPriorities } : {}),
  });
  const duration = (text: string): ReturnType<typeof millis> => millis(parseDurationMs(text) ?? 0);
  if (retries?.perTryTimeout) policy.per_try_timeout = duration(retries.perTryTimeout);
  if (retries?.backoff) policy.retry_back_off = { base_interval: duration(retries.backoff), max_interval: undefined };
  if (retries?.retryOn) {
    const words = retries.retryOn.split(',').map((word) => word.trim()).filter((word) => word !== '');
    policy.retriable_status_codes = words.filter((word) => /^\d+$/.test(word)).map(Number);
    const conditions = words.filter((word) => !/^\d+$/.test(word));
    if (policy.retriable_status_codes.length > 0 && !conditions.includes('retriable-status-codes')) conditions.push('retriable-status-codes');
    policy.retry_on = conditions.join(',');
  }
  return policy;
}
