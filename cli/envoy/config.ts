/** The shared Envoy's configuration as it has it (`config_dump`, `clusters`), and what of it is one pod's. */
import { stripVTControlCharacters } from 'node:util';
import type { AgentHandle } from '../agents.js';
import { parseAnswer } from '../output.js';

/** Envoy's JSON, of which only what is asked for here is named. */
export interface Json { readonly [key: string]: any }

export interface EnvoyConfig {
  listeners: Json[];
  routes: Json[];
  clusters: Json[];
  /** By cluster. */
  endpoints: Map<string, Json>;
  secrets: Json[];
}

export interface PodConfig extends EnvoyConfig {
  /** The SPIFFE id by which the pod's connections are known; absent without one. */
  principal?: string;
}

export interface Host {
  cluster: string;
  address: string;
  /** 0: an address inside of Envoy. */
  port: number;
  health: 'healthy' | 'unhealthy' | 'degraded' | 'draining' | 'ejected' | 'unknown';
  weight: number;
  priority: number;
  locality: string;
  stats: Record<string, number>;
}

export interface ClusterName {
  direction: 'outbound' | 'inbound' | '';
  port: number | undefined;
  subset: string;
  /** The service's host name, or the cluster's own name. */
  host: string;
  /** Of clusters that show one account's certificate: `namespace/account`. */
  account: string | undefined;
}

export async function askEnvoy(agent: AgentHandle, path: string, method: 'GET' | 'POST' = 'GET'): Promise<string> {
  return agent.ask(`/v1/envoy?${new URLSearchParams({ path })}`, { method, timeoutMs: 60_000 });
}

export async function readConfig(agent: AgentHandle): Promise<EnvoyConfig> {
  return configOf(parseAnswer<Json>(await askEnvoy(agent, '/config_dump?include_eds'), 'Envoy\'s configuration'));
}

export function configOf(dump: Json): EnvoyConfig {
  const parts = (dump['configs'] ?? []) as Json[];
  const all = (...keys: string[]): Json[] => parts.flatMap((part) => keys.flatMap((key) => (part[key] ?? []) as Json[]));
  return {
    listeners: [...all('static_listeners').map((each) => each['listener'] as Json), ...all('dynamic_listeners').flatMap((each) => each['active_state']?.listener ?? each['warming_state']?.listener ?? [])],
    routes: all('static_route_configs', 'dynamic_route_configs').map((each) => each['route_config'] as Json),
    clusters: all('static_clusters', 'dynamic_active_clusters', 'dynamic_warming_clusters').map((each) => each['cluster'] as Json),
    endpoints: new Map(all('static_endpoint_configs', 'dynamic_endpoint_configs').map((each) => [String(each['endpoint_config']?.cluster_name), each['endpoint_config'] as Json])),
    secrets: redact(all('static_secrets', 'dynamic_active_secrets', 'dynamic_warming_secrets')) as Json[],
  };
}

/** `outbound|80|v1|nginx.shop.svc.cluster.local~shop/default` */
export function readClusterName(name: string): ClusterName {
  const [, direction, port, subset, host, account] = /^(outbound|inbound)_?\.?\|(\d+)\|([^|]*)\|([^~]*)(?:~(.*))?$/.exec(name.replace(/^pod\/[0-9a-f-]{36}\//, '')) ?? [];
  return direction === undefined ? { direction: '', port: undefined, subset: '', host: name, account: undefined } : { direction: direction as 'outbound', port: Number(port), subset: subset!, host: host!, account };
}

/**
 * What a pod's connections can meet: its own listeners, and all routes, clusters and internal listeners that these lead to.
 * @returns undefined when the pod has no listener in this Envoy
 */
export function podConfig(config: EnvoyConfig, uid: string): PodConfig | undefined {
  // Where all pods' connections pass, the other pods' chains are not this one's; nor is what it leads to in another pod.
  const isOther = (name: string): boolean => /^(?:pod\/)?[0-9a-f]{8}-[0-9a-f]{4}-/.test(name) && !name.includes(uid);
  const ownChains = (listener: Json): Json => ({ ...listener, filter_chains: ((listener['filter_chains'] ?? []) as Json[]).filter(({ name }) => !isOther(String(name))) });
  const listeners = new Map(config.listeners.filter(({ name }) => !isOther(String(name))).map((each) => [String(each['name']), ownChains(each)]));
  const routes = new Map(config.routes.map((each) => [String(each['name']), each]));
  const clusters = new Map(config.clusters.map((each) => [String(each['name']), each]));
  const names = { listener: new Set<string>(), route: new Set<string>(), cluster: new Set<string>(), secret: new Set<string>() };
  const own = config.listeners.filter(({ name }) => String(name).startsWith(`pod/${uid}/`));
  if (own.length === 0) return undefined;
  let principal: string | undefined;
  const queue: unknown[] = [];
  const reach = (kind: keyof typeof names, name: unknown, target: Json | undefined): void => {
    if (typeof name !== 'string' || names[kind].has(name) || !target) return;
    names[kind].add(name);
    queue.push(target);
  };
  const visit = (value: unknown): void => {
    if (Array.isArray(value)) return value.forEach(visit);
    if (typeof value !== 'object' || value === null) return;
    for (const [key, item] of Object.entries(value as Json)) {
      if (key === 'route_config_name') reach('route', item, routes.get(item as string));
      else if (key === 'cluster') reachCluster(item);
      else if (key === 'server_listener_name') reach('listener', item, listeners.get(item as string));
      else if (key === 'sds_config' && typeof (value as Json)['name'] === 'string') names.secret.add((value as Json)['name'] as string);
      else if (key === 'clusters' && Array.isArray(item)) item.forEach((each: Json) => reachCluster(each['name']));
      visit(item);
    }
  };
  const reachCluster = (name: unknown): void => {
    if (typeof name !== 'string') return;
    reach('cluster', name, clusters.get(name));
    const endpoints = config.endpoints.get(name);
    if (endpoints) queue.push(endpoints);
  };
  for (const listener of own) reach('listener', listener['name'], listener);
  while (queue.length > 0) visit(queue.shift());
  for (const listener of own) principal ??= principalOf(listener);
  // The tunnel to other nodes is chosen by the connection's identity.
  if (principal !== undefined && clusters.has(`hbone/${principal}`)) {
    reachCluster(`hbone/${principal}`);
    while (queue.length > 0) visit(queue.shift());
  }
  return {
    listeners: [...listeners.values()].filter(({ name }) => names.listener.has(String(name))),
    routes: config.routes.filter(({ name }) => names.route.has(String(name))),
    clusters: config.clusters.filter(({ name }) => names.cluster.has(String(name))),
    endpoints: new Map([...config.endpoints].filter(([name]) => names.cluster.has(name))),
    secrets: config.secrets.filter(({ name }) => names.secret.has(String(name))),
    ...(principal === undefined ? {} : { principal }),
  };
}

/** What the pod's listener says of its connections, for policies and tunnels. */
function principalOf(listener: Json): string | undefined {
  const found = /"object_key":"io\.istio\.peer_principal","format_string":\{"text_format_source":\{"inline_string":"([^"]+)"/.exec(JSON.stringify(listener))?.[1];
  return found === undefined || found.includes('%') ? undefined : found;
}

/** Hosts of all clusters, with their health as Envoy has it now. */
export async function readHosts(agent: AgentHandle): Promise<Host[]> {
  const { cluster_statuses: statuses = [] } = parseAnswer<{ cluster_statuses?: Json[] }>(await askEnvoy(agent, '/clusters?format=json'), 'Envoy\'s clusters');
  return statuses.flatMap(({ name, host_statuses: hosts = [] }) => (hosts as Json[]).map((host): Host => {
    const socket = host['address']?.socket_address as Json | undefined;
    const { region = '', zone = '', sub_zone: subZone = '' } = (host['locality'] ?? {}) as { region?: string; zone?: string; sub_zone?: string };
    const internal = host['address']?.envoy_internal_address as Json | undefined;
    // What passes an internal listener on its way has its own address in the id.
    const [, v6, v4, port] = /^(?:\[(.+)\]|([^:]+)):(\d+)$/.exec(String(internal?.['endpoint_id'] ?? '')) ?? [];
    return {
      cluster: String(name),
      address: String(socket?.['address'] ?? v6 ?? v4 ?? internal?.['endpoint_id'] ?? internal?.['server_listener_name'] ?? ''),
      port: Number(socket?.['port_value'] ?? port ?? 0),
      health: healthOf((host['health_status'] ?? {}) as Json),
      weight: Number(host['weight'] ?? 1),
      priority: Number(host['priority'] ?? 0),
      locality: [region, zone, subZone].filter((part) => part !== '').join('/'),
      stats: Object.fromEntries(((host['stats'] ?? []) as Json[]).map((stat) => [String(stat['name']), Number(stat['value'] ?? 0)])),
    };
  }));
}

function healthOf(status: Json): Host['health'] {
  if (status['failed_outlier_check']) return 'ejected';
  if (status['failed_active_health_check'] || status['eds_health_status'] === 'UNHEALTHY' || status['eds_health_status'] === 'TIMEOUT') return 'unhealthy';
  if (status['eds_health_status'] === 'DRAINING') return 'draining';
  if (status['failed_active_degraded_check'] || status['eds_health_status'] === 'DEGRADED') return 'degraded';
  return 'healthy';
}

const SECRET_KEYS = /^(?:private_key|private_key_provider|(?:\w+_)?passwords?|session_ticket_keys|generic_secret|hmac_secret|token_secret|client_secret|session_id_context|api_key|(?:\w+_)?token)$/i;
const SECRET_NAME = '(?:token|secret|passw(?:or)?d|api[-_]?key|credential|signature)';
/** Of headers, and of variables of an environment. */
const SECRET_HEADERS = new RegExp(`^(?:(?:proxy-)?authorization|(?:set-)?cookie)$|${SECRET_NAME}`, 'i');
/** Fields with headers for collectors and other services that Envoy itself asks: by what name one lets a key in is its own affair. */
const ASKING = /^(?:initial_metadata|http_service|collector_service)$/;
const REDACTED = '[redacted]';

/** Envoy redacts private keys itself; this does it again, with what people write into headers, environment and YAML that is sent on. */
export function redact(value: unknown, isAsking = false): unknown {
  if (typeof value === 'string') return redactText(value);
  if (Array.isArray(value)) return value.map((item) => redact(item, isAsking));
  if (typeof value !== 'object' || value === null) return value;
  const { key, name, client } = value as Json;
  const isSecretHeader = [key, name].some((each) => typeof each === 'string' && (isAsking || SECRET_HEADERS.test(each)));
  // Of Envoy's filter for API keys.
  const isApiKey = typeof key === 'string' && typeof client === 'string';
  const isSecret = (field: string): boolean => SECRET_KEYS.test(field) || (isSecretHeader && (field === 'value' || field === 'raw_value')) || (isApiKey && field === 'key');
  return Object.fromEntries(Object.entries(value as Json).map(([field, item]) => [field, isSecret(field) ? REDACTED : redact(item, isAsking || ASKING.test(field))]));
}

/** `'cookie', 'a=b'` as Envoy logs headers, `"x-token":"…"` */
const QUOTED = new RegExp(`(["'])((?:proxy-)?authorization|(?:set-)?cookie|[\\w-]{0,40}${SECRET_NAME}[\\w-]{0,40})\\1(\\s*[:=,]\\s*)(["'])(?:\\\\.|(?!\\4)[^\\\\\\n])*\\4`, 'gi');
const PARAMETER = new RegExp(`([?&][\\w-]{0,40}${SECRET_NAME}[\\w-]{0,40}=)[^&\\s"'#]+`, 'gi');

/** PEM private keys, bearer tokens and JSON Web Tokens, headers and parameters of addresses with such names, wherever they stand. */
export function redactText(text: string): string {
  return stripVTControlCharacters(text)
    .replace(/-----BEGIN ([A-Z ]*)PRIVATE KEY-----[\s\S]*?(?:-----END \1PRIVATE KEY-----|$)/g, REDACTED)
    .replace(/\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*/g, REDACTED)
    .replace(/\b(Bearer|Basic)\s+[\w.~+/-]{6,}=*/gi, `$1 ${REDACTED}`)
    .replace(QUOTED, `$1$2$1$3$4${REDACTED}$4`)
    .replace(/\b((?:proxy-)?authorization|(?:set-)?cookie)([:=]\s*)(?!["'[])[^"'\n]+/gi, `$1$2${REDACTED}`)
    .replace(PARAMETER, `$1${REDACTED}`)
    .replace(/(:\/\/[^/\s:@"']{1,100}:)[^/\s:@"']{1,200}@/g, `$1${REDACTED}@`);
}
