/** What a route does with a request: to draw one of some clusters and nothing more, or why that is not all. */
import type { HeaderValueOption } from '../../proto/generated/envoy/config/core/v3/base.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { RetryPolicy, Route, RouteAction, VirtualHost, WeightedCluster_ClusterWeight } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import type { Duration } from '../../proto/generated/google/protobuf/duration.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { isEmpty, isNeutral } from '../proxy/neutral-chain.js';
import { HTTP_SPLITS } from './limits.js';

export interface Reason {
  reason: string;
}

/** Weights are above 0. */
export type Destinations = readonly { cluster: string; weight: number }[];

/** Istio's default: what it names happens before a request was sent, is a client's own to repeat, or a 503. */
const USUAL_RETRIES: ReadonlySet<string> = new Set(['connect-failure', 'refused-stream', 'unavailable', 'cancelled', 'retriable-status-codes', 'reset-before-request']);

/** Why no request of a whole table is the kernel's. */
export function tableReason(routes: RouteConfiguration): string | undefined {
  if (routes.vhds) return 'its virtual hosts are asked for one by one';
  if (routes.request_mirror_policies.length > 0) return 'requests are mirrored';
  const common = editReason(routes) ?? overrideReason(routes.typed_per_filter_config);
  if (common !== undefined) return common;
  if (routes.ignore_path_parameters_in_path_matching) return 'parameters within paths are ignored';
  const rest: RouteConfiguration = {
    ...withoutEdits(routes), name: '', virtual_hosts: [], validate_clusters: undefined, ignore_port_in_host_matching: false, max_direct_response_body_size_bytes: undefined,
    cluster_specifier_plugins: [], metadata: undefined, typed_per_filter_config: {}, most_specific_header_mutations_wins: false,
  };
  return isEmpty(RouteConfiguration, rest) ? undefined : 'its routes have settings for all hosts';
}

const hosts = new WeakMap<VirtualHost, { reason: string | undefined }>();

/** Why no request to a virtual host is the kernel's. */
export function hostReason(host: VirtualHost): string | undefined {
  let found = hosts.get(host);
  if (!found) hosts.set(host, (found = { reason: readHost(host) }));
  return found.reason;
}

function readHost(host: VirtualHost): string | undefined {
  if (host.matcher) return 'its routes are a tree of matchers';
  if (host.require_tls !== 0) return 'it asks for TLS';
  if (host.rate_limits.length > 0) return 'its rate is limited';
  if (host.cors) return 'it answers to CORS';
  if (host.request_mirror_policies.length > 0) return 'requests are mirrored';
  const common = editReason(host) ?? overrideReason(host.typed_per_filter_config) ?? retryReason(host.retry_policy);
  if (common !== undefined) return common;
  // The attempt's number is 1 where nothing is tried again.
  const rest: VirtualHost = { ...withoutEdits(host), name: '', domains: [], routes: [], include_request_attempt_count: false, retry_policy: undefined, metadata: undefined, typed_per_filter_config: {} };
  return isEmpty(VirtualHost, rest) ? undefined : 'its virtual host has settings';
}

export function destinationsOf(route: Route): Destinations | Reason {
  const { action } = route;
  if (action?.$case === 'redirect') return { reason: 'it redirects' };
  if (action?.$case === 'direct_response') return { reason: 'it answers by itself' };
  if (action?.$case !== 'route') return { reason: 'it forwards nothing' };
  const common = editReason(route) ?? overrideReason(route.typed_per_filter_config);
  if (common !== undefined) return { reason: common };
  const rest: Route = { ...withoutEdits(route), name: '', match: undefined, action: undefined, decorator: undefined, metadata: undefined, typed_per_filter_config: {}, tracing: undefined };
  if (!isEmpty(Route, rest)) return { reason: 'it has settings of its own' };
  const reason = actionReason(action.value);
  return reason === undefined ? clustersOf(action.value) : { reason };
}

function actionReason(action: RouteAction): string | undefined {
  if (action.request_mirror_policies.length > 0) return 'requests are mirrored';
  if (action.prefix_rewrite !== '' || action.regex_rewrite || action.path_rewrite_policy || action.host_rewrite_specifier) return 'it rewrites the path or the host';
  // Envoy's own is 15 seconds.
  if (action.timeout === undefined || isSet(action.timeout)) return 'it has a timeout';
  if (isSet(action.idle_timeout)) return 'its requests may be silent for a limited time only';
  const { max_stream_duration: limit } = action;
  if (isSet(action.max_grpc_timeout) || [limit?.max_stream_duration, limit?.grpc_timeout_header_max, limit?.grpc_timeout_header_offset].some(isSet)) return 'it has a timeout';
  if (action.hash_policy.length > 0) return 'its endpoint is chosen by a hash';
  if (action.rate_limits.length > 0) return 'its rate is limited';
  if (action.cors) return 'it answers to CORS';
  if (action.metadata_match) return 'its endpoints are a subset';
  const retries = retryReason(action.retry_policy);
  if (retries !== undefined) return retries;
  const rest: RouteAction = {
    ...action, cluster_specifier: undefined, cluster_not_found_response_code: 0, timeout: undefined, idle_timeout: undefined, max_grpc_timeout: undefined, max_stream_duration: undefined, retry_policy: undefined,
  };
  return isEmpty(RouteAction, rest) ? undefined : 'its action has settings';
}

function clustersOf({ cluster_specifier: specifier }: RouteAction): Destinations | Reason {
  if (specifier?.$case === 'cluster') return [{ cluster: specifier.value, weight: 1 }];
  if (specifier?.$case === 'cluster_header') return { reason: 'a header names its cluster' };
  if (specifier?.$case !== 'weighted_clusters') return { reason: 'a plugin chooses its cluster' };
  const { clusters, runtime_key_prefix, random_value_specifier } = specifier.value;
  if (runtime_key_prefix !== '' || random_value_specifier) return { reason: 'its weights are chosen by more than chance' };
  for (const each of clusters) {
    const common = editReason(each) ?? overrideReason(each.typed_per_filter_config);
    if (common !== undefined) return { reason: common };
    if (!isEmpty(WeightedCluster_ClusterWeight, { ...withoutEdits(each), name: '', weight: undefined, typed_per_filter_config: {} })) return { reason: 'one of its destinations has settings of its own' };
  }
  const drawn = clusters.flatMap(({ name, weight = 0 }) => (weight > 0 ? [{ cluster: name, weight }] : []));
  if (drawn.length > HTTP_SPLITS) return { reason: `it has more than ${HTTP_SPLITS} destinations` };
  return drawn.length === 0 ? { reason: 'it has no destination' } : drawn;
}

function retryReason(retry: RetryPolicy | undefined): string | undefined {
  if (!retry) return undefined;
  const words = retry.retry_on.split(',').map((word) => word.trim()).filter((word) => word !== '');
  const isUsual = words.every((word) => USUAL_RETRIES.has(word)) && retry.retriable_status_codes.every((code) => code === 503);
  const rest: RetryPolicy = { ...retry, retry_on: '', num_retries: undefined, retry_host_predicate: [], host_selection_retry_max_attempts: 0n, retriable_status_codes: [] };
  return isUsual && isEmpty(RetryPolicy, rest) ? undefined : "its retries are not Istio's default";
}

interface Edited {
  request_headers_to_add: HeaderValueOption[];
  request_headers_to_remove: string[];
  response_headers_to_add: HeaderValueOption[];
  response_headers_to_remove: string[];
}

function editReason(of: Edited): string | undefined {
  if (of.request_headers_to_add.length > 0 || of.request_headers_to_remove.length > 0) return 'it changes headers of requests';
  return of.response_headers_to_add.length > 0 || of.response_headers_to_remove.length > 0 ? 'it changes headers of answers' : undefined;
}

function withoutEdits<T extends Edited>(of: T): T {
  return { ...of, request_headers_to_add: [], request_headers_to_remove: [], response_headers_to_add: [], response_headers_to_remove: [] };
}

function overrideReason(overrides: Readonly<Record<string, Any>>): string | undefined {
  const found = Object.entries(overrides).find(([, config]) => !isNeutral(config) || config.value.length > 0);
  return found && `the filter ${found[0]} has settings for it`;
}

function isSet(duration: Duration | undefined): boolean {
  return duration !== undefined && (duration.seconds !== 0n || duration.nanos !== 0);
}
