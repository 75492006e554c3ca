/** What becomes of one HTTP request of a pod, from the configuration and the state that its node's Envoy has now. */
import { isIPv6 } from 'node:net';
import type { PodStatus } from '../../agent/client.js';
import { podConfig, readClusterName, type EnvoyConfig, type Host, type Json, type PodConfig } from './config.js';
import { judge, rangeHolds, routeOf, virtualHostOf, type RbacVerdict, type ShownRequest } from './match.js';

export interface ChosenEndpoint {
  cluster: string;
  /** Of requests, as weights of routes, priorities, health and endpoints have it; sums up to 1 where all is known. */
  share: number;
  address: string;
  port: number;
  health: Host['health'];
  locality: string;
  weight: number;
  /** `namespace/name`, of this node's pods. */
  pod?: string;
  policy?: RbacVerdict;
}

export interface ChosenCluster {
  name: string;
  host: string;
  subset: string;
  share: number;
  lbPolicy: string;
  outlierDetection: boolean;
  /** Where the DestinationRule comes from, if one has a say. */
  config?: string;
  mtls: boolean;
}

export interface RequestExplanation {
  request: { method: string; target: string; host: string };
  listener?: string;
  routeTable?: string;
  virtualHost?: string;
  route?: { name: string; index: number; of: number; config?: string; action: string; rewrite?: string };
  clusters: ChosenCluster[];
  endpoints: ChosenEndpoint[];
  /** `unknown`: it hangs on what is not known here, e.g. a policy on another node. `mixed`: on the endpoint. */
  verdict: 'allow' | 'deny' | 'mixed' | 'unknown' | 'not-routed' | 'answered-by-envoy';
  reason: string;
}

const HTTP_MANAGER = /\.http_connection_manager\.v3\.HttpConnectionManager$/;
const WHOLE = 1e-9;

/** @param addresses of the destination, the first counts where chains are chosen by address */
export function explainRequest(config: EnvoyConfig, hosts: readonly Host[], from: PodStatus, addresses: readonly string[], port: number, request: ShownRequest, pods: readonly PodStatus[]): RequestExplanation {
  const shown = { method: request.method, target: request.target, host: request.host };
  const ends = (verdict: RequestExplanation['verdict'], reason: string, more: Partial<RequestExplanation> = {}): RequestExplanation => ({ request: shown, clusters: [], endpoints: [], verdict, reason, ...more });
  const own = podConfig(config, from.uid);
  if (!own) return ends('unknown', 'the pod has no listener in the node\'s Envoy');
  const found = chainOf(own.listeners.find(({ name }) => name === `pod/${from.uid}/outbound`), addresses, port);
  if (!found) return ends('not-routed', `no listener takes HTTP for port ${port}: it is passed on as TCP`);
  const { listener, manager } = found;
  const tableName = manager['rds']?.route_config_name as string | undefined;
  const table = tableName === undefined ? (manager['route_config'] as Json | undefined) : own.routes.find(({ name }) => name === tableName);
  if (!table) return ends('unknown', `Envoy waits for the route table ${tableName}`, { listener });
  const where = { listener, routeTable: tableName ?? String(table['name']) };
  const host = virtualHostOf(table, request.host);
  if (!host) return ends('not-routed', `no virtual host has ${request.host}: 404`, where);
  const virtualHost = String(host.virtualHost['name']);
  const chosen = routeOf(host.virtualHost, request);
  if (!chosen) return ends('not-routed', `no route of ${virtualHost} fits: 404`, { ...where, virtualHost });
  const route = describeRoute(chosen.route, chosen.index, (host.virtualHost['routes'] as Json[]).length);
  if (chosen.route['direct_response'] || chosen.route['redirect']) return ends('answered-by-envoy', route.action, { ...where, virtualHost, route });
  const clusters = clustersOf(chosen.route, own);
  const seen = rewritten(chosen.route, request);
  const endpoints = clusters.flatMap((cluster) => endpointsOf(cluster, hosts)).map((endpoint) => withPolicy(endpoint, config, own, from, pods, seen));
  return { request: shown, ...where, virtualHost, route, clusters, endpoints, ...verdictOf(endpoints, chosen.doubtful) };
}

function verdictOf(endpoints: readonly ChosenEndpoint[], doubtful: boolean): Pick<RequestExplanation, 'verdict' | 'reason'> {
  if (doubtful) return { verdict: 'unknown', reason: 'an earlier route hangs on what is not known here' };
  const reached = endpoints.filter(({ share }) => share > WHOLE);
  if (reached.length === 0) return { verdict: 'not-routed', reason: 'no endpoint takes requests: 503' };
  const answers = new Set(reached.map(({ policy }) => policy?.answer ?? 'allow'));
  const deciding = reached.find(({ policy }) => policy?.answer === 'deny')?.policy ?? reached.find(({ policy }) => policy?.answer === 'unknown')?.policy ?? reached.find(({ policy }) => policy !== undefined)?.policy;
  const verdict = answers.has('unknown') ? 'unknown' : answers.size > 1 ? 'mixed' : answers.has('deny') ? 'deny' : 'allow';
  return { verdict, reason: deciding?.reason ?? 'no policy applies' };
}

interface Chain { listener: string; manager: Json }

/** The chain for plaintext HTTP/1.1 to that port: by port, then the narrowest address range, then protocol. */
function chainOf(listener: Json | undefined, addresses: readonly string[], port: number): Chain | undefined {
  if (!listener) return undefined;
  const chains = ((listener['filter_chains'] ?? []) as Json[]).filter(({ filter_chain_match: match }) => match?.transport_protocol !== 'tls');
  const ofPort = chains.filter(({ filter_chain_match: match }) => match?.destination_port === port);
  const candidates = [...ofPort, ...chains.filter(({ filter_chain_match: match }) => match?.destination_port === undefined)];
  const rank = ({ filter_chain_match: match }: Json): number => {
    const ranges = (match?.prefix_ranges ?? []) as Json[];
    const fits = ranges.filter((range) => addresses.some((address) => rangeHolds(range, address) === true));
    if (ranges.length > 0 && fits.length === 0) return -1;
    return (match?.destination_port === port ? 1_000 : 0) + Math.max(0, ...fits.map((range) => Number(range['prefix_len'] ?? 0) + 1)) * 2 + ((match?.application_protocols ?? []).includes('http/1.1') ? 1 : 0);
  };
  const [best] = candidates.map((chain) => ({ chain, rank: rank(chain) })).filter((each) => each.rank >= 0).sort((a, b) => b.rank - a.rank);
  const manager = (best?.chain['filters'] as Json[] | undefined)?.map((filter) => filter['typed_config'] as Json | undefined).find((typed) => HTTP_MANAGER.test(String(typed?.['@type'])));
  return manager && { listener: String(listener['name']), manager };
}

const configOfRule = (item: Json): string | undefined => {
  const [, namespace, kind, name] = /\/namespaces\/([^/]+)\/([^/]+)\/([^/]+)$/.exec(String(item['metadata']?.filter_metadata?.istio?.config ?? '')) ?? [];
  const kinds: Record<string, string> = { 'virtual-service': 'VirtualService', 'destination-rule': 'DestinationRule', 'http-route': 'HTTPRoute', httproute: 'HTTPRoute' };
  return namespace === undefined ? undefined : `${kinds[kind!.toLowerCase()] ?? kind} ${namespace}/${name}`;
};

function describeRoute(route: Json, index: number, of: number): NonNullable<RequestExplanation['route']> {
  const { route: forward = {}, redirect, direct_response: direct } = route as Record<string, any>;
  const config = configOfRule(route);
  const rewrite = forward.prefix_rewrite ?? forward.regex_rewrite?.substitution;
  const action = redirect ? `redirects${redirect.host_redirect ? ` to ${redirect.host_redirect}` : ''}${redirect.path_redirect ? ` ${redirect.path_redirect}` : ''}` : direct ? `answers ${direct.status}` : 'forwards';
  return { name: String(route['name'] ?? ''), index, of, ...(config === undefined ? {} : { config }), action, ...(rewrite === undefined ? {} : { rewrite: String(rewrite) }) };
}

/** Policies of the server see the path that arrives. */
function rewritten({ route, match }: Json, request: ShownRequest): ShownRequest {
  const prefix = match?.prefix ?? match?.path ?? match?.path_separated_prefix;
  const host = route?.host_rewrite_literal === undefined ? request.host : String(route.host_rewrite_literal);
  const target = route?.prefix_rewrite !== undefined && typeof prefix === 'string' && request.target.startsWith(prefix) ? `${route.prefix_rewrite}${request.target.slice(prefix.length)}` : request.target;
  return { ...request, host, target };
}

function clustersOf({ route = {} }: Json, { clusters }: PodConfig): ChosenCluster[] {
  const weighted = route.weighted_clusters?.clusters as Json[] | undefined;
  const parts = weighted ?? (route.cluster === undefined ? [] : [{ name: route.cluster, weight: 1 }]);
  const sum = parts.reduce((total, { weight = 0 }) => total + Number(weight), 0);
  return parts.map(({ name, weight = 0 }) => {
    const cluster = clusters.find((each) => each['name'] === name);
    const { host, subset } = readClusterName(String(name));
    const config = cluster && configOfRule(cluster);
    return { name: String(name), host, subset, share: sum === 0 ? 0 : Number(weight) / sum, lbPolicy: String(cluster?.['lb_policy'] ?? 'ROUND_ROBIN'), outlierDetection: cluster?.['outlier_detection'] !== undefined, mtls: JSON.stringify(cluster?.['transport_socket_matches'] ?? cluster?.['transport_socket'] ?? {}).includes('UpstreamTlsContext'), ...(config === undefined ? {} : { config }) };
  });
}

/** Of the first priority that has a healthy host, by weight; those that are ejected or unhealthy have no share. */
function endpointsOf({ name, share }: ChosenCluster, hosts: readonly Host[]): ChosenEndpoint[] {
  const own = hosts.filter(({ cluster }) => cluster === name);
  const takes = ({ health }: Host): boolean => health === 'healthy' || health === 'degraded';
  const first = Math.min(...own.filter(takes).map(({ priority }) => priority));
  const sum = own.filter((host) => takes(host) && host.priority === first).reduce((total, { weight }) => total + weight, 0);
  return own.map((host) => ({ cluster: name, share: takes(host) && host.priority === first && sum > 0 ? (share * host.weight) / sum : 0, address: host.address, port: host.port, health: host.health, locality: host.locality, weight: host.weight }));
}

function withPolicy(endpoint: ChosenEndpoint, config: EnvoyConfig, own: PodConfig, from: PodStatus, pods: readonly PodStatus[], request: ShownRequest): ChosenEndpoint {
  const target = pods.find(({ ips }) => ips.includes(endpoint.address));
  if (!target) return { ...endpoint, policy: { answer: 'unknown', reason: `${endpoint.address} is no pod of this node: its policy is judged where it is` } };
  const listener = config.listeners.find(({ name }) => String(name).startsWith(`pod/${target.uid}/inbound`));
  const pod = `${target.namespace}/${target.name}`;
  if (!listener) return { ...endpoint, pod };
  const found = chainOf(listener, [endpoint.address], endpoint.port);
  const source = from.ips.find((ip) => isIPv6(ip) === isIPv6(endpoint.address));
  const peer = { principal: own.principal, address: source, destination: endpoint.address, port: endpoint.port };
  const filters = found ? (found.manager['http_filters'] as Json[] | undefined) ?? [] : ((listener['filter_chains'] ?? []) as Json[]).find(({ filter_chain_match: match }) => match?.destination_port === endpoint.port)?.['filters'] ?? [];
  return { ...endpoint, pod, policy: judge(filters as Json[], found ? request : undefined, peer) };
}
