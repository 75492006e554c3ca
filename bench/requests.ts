/** What share of a load's requests the kernel moved past Envoy, and why not the others: from the kernel's counters, which each request raises once. */
import { percent } from './statistics.js';

/** Why a request went through Envoy, by the name of the counter. */
export const REASONS: Readonly<Record<string, string>> = {
  http_switched_off: 'the fast path was off for a moment',
  http_pod_off: 'its pod has no live table',
  http_no_routes: 'its port is Envoy\'s',
  http_no_host: 'its host is Envoy\'s',
  http_no_class: 'its route is Envoy\'s',
  http_class_envoy: 'its class is Envoy\'s',
  http_class_paused: 'an answer of its class was a 5xx a moment ago',
  http_no_endpoint: 'there is no endpoint',
  http_ejected: 'too many of its endpoints are ejected',
  http_policy_envoy: 'its policy is Envoy\'s to judge',
  http_body: 'its body is chunked or too long',
  http_close: 'it ends its connection',
  http_sampled: 'it was drawn for tracing',
  http_traced: 'its trace context asks for a trace',
  http_not_teachable: 'its endpoint is not one to learn of',
  http_not_learnt: 'not learnt yet',
  http_connections_bound: 'its server has as many connections of clients\' own as it may have',
  http_busy: 'its server was busy',
  http_not_drained: 'bytes that went by TCP were still to be read',
  http_redirect_failed: 'it could not be moved',
};
/** Requests that no counter has seen: the kernel has given up their connection, whose reasons `underpass_kernel_http_lost_…` has. */
const GIVEN_UP = 'its connection is Envoy\'s for good';

/** Numbers of requests, or shares that add up to 1. */
export interface RequestShares {
  fast: number;
  /** The others, by reason. */
  envoy: Record<string, number>;
}

/**
 * @param begun requests that the client sent between the two readings
 * @returns undefined where none of them came to the fast path's programs
 */
export function requestsBetween(begun: number, before: Readonly<Record<string, number>>, after: Readonly<Record<string, number>>): RequestShares | undefined {
  const grown = (name: string): number => (after[name] ?? 0) - (before[name] ?? 0);
  const shares: RequestShares = { fast: grown('http_requests_fast'), envoy: {} };
  let seen = shares.fast;
  for (const [name, reason] of Object.entries(REASONS)) {
    const count = grown(name);
    if (count > 0) shares.envoy[reason] = count;
    seen += count;
  }
  if (seen === 0) return undefined;
  if (begun > seen) shares.envoy[GIVEN_UP] = begun - seen;
  return shares;
}

/** All rounds together. */
export function sharesOf(counts: readonly RequestShares[]): RequestShares | undefined {
  if (counts.length === 0) return undefined;
  const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
  const all = sum(counts.flatMap(({ fast, envoy }) => [fast, ...Object.values(envoy)]));
  const reasons = [...new Set(counts.flatMap(({ envoy }) => Object.keys(envoy)))];
  const share = (count: number): number => count / Math.max(1, all);
  return { fast: share(sum(counts.map(({ fast }) => fast))), envoy: Object.fromEntries(reasons.map((reason) => [reason, share(sum(counts.map(({ envoy }) => envoy[reason] ?? 0)))])) };
}

/** e.g. `fast 89.8 %; through Envoy: its route is Envoy's 10.0 %, not learnt yet 0.20 %` */
export function sharesText({ fast, envoy }: RequestShares): string {
  const reasons = Object.entries(envoy).sort(([, a], [, b]) => b - a);
  return `fast ${percent(fast)}${reasons.length > 0 ? `; through Envoy: ${reasons.map(([reason, share]) => `${reason} ${percent(share)}`).join(', ')}` : ''}`;
}
