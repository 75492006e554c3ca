/** Where the requests of a service's port are led, as far as its routes ask for nothing more. */
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { RetryPolicy, VirtualHost, type Route } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import type { Duration } from '../../proto/generated/google/protobuf/duration.js';
import { changedHosts } from '../xds/route-codec.js';
import type { SidecarState } from '../xds/sidecar-stream.js';
import { isEmpty, isPlainRoute } from './neutral-chain.js';

/** The one cluster of all requests, or why it is not so. */
type Target = { cluster: string } | { reason: string };

/** By domain; what a table has otherwise than an earlier one stands before that one's. */
interface Routes {
  own: Map<string, Target | undefined>;
  earlier: Routes | undefined;
  depth: number;
}

/** Beyond so many tables one behind the other all is put into one again. */
const MOST_DEPTH = 16;

const tables = new WeakMap<RouteConfiguration, Routes>();
const hosts = new WeakMap<VirtualHost, Target>();
const commons = new WeakMap<RouteConfiguration, { reason: string | undefined }>();
/** By the later table, which must not keep all of before. */
const differences = new WeakMap<RouteConfiguration, { before: WeakRef<RouteConfiguration>; domains: readonly string[] | undefined }>();

export function routeOf({ routes }: SidecarState, name: string, domains: readonly string[]): Target {
  const message = routes.get(name)?.message;
  if (!message) return { reason: `its routes (${name}) are not there` };
  let table = tables.get(message);
  if (!table) tables.set(message, (table = readRoutes(message)));
  const [host, ...others] = domains.map((domain) => find(table, domain));
  if (!host) return { reason: `no route of ${name} is for it` };
  const other = others.find((each) => each !== undefined && (('reason' in each) !== ('reason' in host) || ('cluster' in each && 'cluster' in host && each.cluster !== host.cluster)));
  return other ? { reason: 'its name and its address have different routes' } : host;
}

function find(table: Routes, domain: string): Target | undefined {
  for (let each: Routes | undefined = table; each; each = each.earlier) if (each.own.has(domain)) return each.own.get(domain);
  return undefined;
}

/** Domains whose target may be another one than in the table of before; undefined: any. */
export function changedDomains(before: RouteConfiguration, now: RouteConfiguration): readonly string[] | undefined {
  const found = differences.get(now);
  if (found?.before.deref() === before) return found.domains;
  const domains = commonOf(before) === commonOf(now) ? compare(before, now) : undefined;
  differences.set(now, { before: new WeakRef(before), domains });
  return domains;
}

function compare(before: RouteConfiguration, now: RouteConfiguration): readonly string[] {
  const { gone, added } = changedHosts(before, now);
  const earlier = tables.get(before);
  if (earlier && earlier.depth < MOST_DEPTH && !tables.has(now)) {
    const changes: Routes['own'] = new Map();
    for (const { domains } of gone) for (const domain of domains) changes.set(domain, undefined);
    for (const host of added) for (const domain of host.domains) changes.set(domain, targetOf(now, host));
    tables.set(now, { own: changes, earlier, depth: earlier.depth + 1 });
  }
  return [...gone, ...added].flatMap(({ domains }) => domains);
}

function readRoutes(routes: RouteConfiguration): Routes {
  const own: Routes['own'] = new Map();
  for (const host of routes.virtual_hosts) {
    const target = targetOf(routes, host);
    for (const domain of host.domains) own.set(domain, target);
  }
  return { own, earlier: undefined, depth: 0 };
}

function targetOf(routes: RouteConfiguration, host: VirtualHost): Target {
  const reason = commonOf(routes);
  return reason === undefined ? hostOf(host) : { reason };
}

/** Why no host of the table is plain, if that is so. */
function commonOf(routes: RouteConfiguration): string | undefined {
  let found = commons.get(routes);
  if (!found) {
    const rest: RouteConfiguration = { ...routes, name: '', virtual_hosts: [], validate_clusters: undefined, ignore_port_in_host_matching: false, max_direct_response_body_size_bytes: undefined };
    commons.set(routes, (found = { reason: isEmpty(RouteConfiguration, rest) ? undefined : 'its routes have settings for all hosts' }));
  }
  return found.reason;
}

function hostOf(host: VirtualHost): { cluster: string } | { reason: string } {
  let found = hosts.get(host);
  if (!found) hosts.set(host, (found = readHost(host)));
  return found;
}

function readHost(host: VirtualHost): { cluster: string } | { reason: string } {
  const [route, ...more] = host.routes;
  const config = host.routes.map((each) => each.metadata?.filter_metadata['istio']?.['config']).find((each) => each !== undefined);
  if (config !== undefined) return { reason: `${String(config)} has routes for it` };
  if (!route || more.length > 0) return { reason: `it has ${host.routes.length} routes` };
  const plain = isPlainRoute(route) && !hasTimeouts(route) && isEmpty(VirtualHost, { ...host, name: '', domains: [], routes: [], include_request_attempt_count: false });
  const specifier = route.action?.$case === 'route' ? route.action.value.cluster_specifier : undefined;
  if (!plain || specifier?.$case !== 'cluster') return { reason: 'its route has settings' };
  return { cluster: specifier.value };
}

/** Istio's own are 0: none. What it retries by default it retries before a request was sent, or is a client's own to retry. */
function hasTimeouts({ action }: Route): boolean {
  if (action?.$case !== 'route') return true;
  const { timeout, max_grpc_timeout, max_stream_duration, retry_policy: retry } = action.value;
  const isSet = (duration: Duration | undefined): boolean => duration !== undefined && (duration.seconds !== 0n || duration.nanos !== 0);
  if (isSet(timeout) || isSet(max_grpc_timeout) || max_stream_duration) return true;
  return retry !== undefined && !isEmpty(RetryPolicy, { ...retry, retry_on: '', num_retries: undefined, retry_host_predicate: [], host_selection_retry_max_attempts: 0n, retriable_status_codes: [] });
}
