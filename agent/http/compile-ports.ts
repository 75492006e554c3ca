/** Which addresses and ports of a class's outbound side lead to which table of routes, where nothing but routes has a say. */
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain, FilterChainMatch } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { unpack } from '../../common/xds/any.js';
import { configType } from '../proxy/extensions.js';
import { inspectionOf } from '../proxy/inspection.js';
import { isEmpty, isNeutral } from '../proxy/neutral-chain.js';
import { listenerFact } from '../proxy/state-facts.js';
import { Facts, type XdsResource } from '../xds/resource-type.js';
import { tracedAs, type Traced } from './compile-tracing.js';

export interface RoutedPort {
  /** undefined: any that has no entry of its own. */
  address: string | undefined;
  port: number;
  /** `tcp`: no HTTP. */
  leads: { routes: string; traced?: Traced } | { reason: string } | 'tcp';
}

export type ListenerResource = Pick<XdsResource<Listener>, 'any' | 'message'>;

type Leads = RoutedPort['leads'];

const WILDCARDS: ReadonlySet<string> = new Set(['0.0.0.0', '::']);
const leadsOf = new Facts(read);

/** @param listeners as the control plane sent them */
export function routedPorts(listeners: Iterable<ListenerResource>): RoutedPort[] {
  const found = new Map<string, RoutedPort>();
  for (const listener of listeners) {
    const { isOutbound, addresses, port } = listenerFact.of(listener);
    if (!isOutbound) continue;
    const leads = leadsOf.of(listener);
    for (const each of new Set(addresses.map((text) => (WILDCARDS.has(text) ? undefined : text)))) {
      const key = `${each ?? '*'} ${port}`;
      const before = found.get(key);
      found.set(key, { address: each, port, leads: before && !isSame(before.leads, leads) ? { reason: 'several listeners claim it' } : leads });
    }
  }
  return [...found.values()];
}

function isSame(a: Leads, b: Leads): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

function read(listener: Listener): Leads {
  const fallback = listener.default_filter_chain;
  const chains = [...listener.filter_chains, ...(fallback ? [fallback] : [])].map((chain) => ({ chain, manager: managerOf(chain) }));
  const http = chains.filter(({ manager }) => manager);
  if (http.length === 0) return 'tcp';
  // Of a client that is silent at first Envoy takes what follows for plain TCP.
  if (inspectionOf(listener) === 'unknown') return { reason: "its protocol is not declared, so it is the client's first bytes that decide" };
  const found: Extract<Leads, { routes: string }>[] = [];
  for (const { chain, manager } of http) {
    const leads = readChain(chain, manager!);
    if ('reason' in leads) return leads;
    found.push(leads);
  }
  const [first, ...others] = found;
  if (!first || others.some(({ routes }) => routes !== first.routes)) return { reason: 'its listener has several tables of routes' };
  return others.every((each) => isSame(each, first)) ? first : { reason: 'its listener traces requests in several ways' };
}

function managerOf({ filters }: FilterChain): HttpConnectionManager | undefined {
  const last = filters.at(-1)?.config_type;
  return last?.$case === 'typed_config' ? unpack(HttpConnectionManager, last.value) : undefined;
}

function readChain(chain: FilterChain, manager: HttpConnectionManager): Exclude<Leads, 'tcp'> {
  const { filter_chain_match: match } = chain;
  if (chain.transport_socket) return { reason: 'TLS ends in its listener' };
  if (match && !isEmpty(FilterChainMatch, { ...match, application_protocols: [], transport_protocol: '' })) return { reason: 'its listener tells connections apart by more than their protocol' };
  const rest: FilterChain = { ...chain, name: '', filter_chain_match: undefined, filters: [], transport_socket_connect_timeout: undefined, metadata: undefined };
  if (!isEmpty(FilterChain, rest)) return { reason: 'its filter chain has settings of its own' };
  for (const { name, config_type } of chain.filters.slice(0, -1)) if (config_type?.$case !== 'typed_config' || !isNeutral(config_type.value)) return { reason: `the filter ${name} has a say` };
  const reason = reasonOf(manager);
  if (reason !== undefined) return { reason };
  if (manager.route_specifier?.$case !== 'rds') return { reason: 'its routes stand in its listener' };
  const traced = tracedAs(manager);
  if (traced && 'reason' in traced) return traced;
  return { routes: manager.route_specifier.value.route_config_name, ...(traced && { traced }) };
}

/** Why requests have to pass a client's HTTP connection manager. */
function reasonOf(manager: HttpConnectionManager): string | undefined {
  for (const { name, config_type } of manager.http_filters) {
    if (config_type?.$case !== 'typed_config' || !isNeutral(config_type.value)) return `the filter ${name} has a say`;
    if (configType(config_type.value) === 'stats.PluginConfig' && config_type.value.value.length > 0) return 'its metrics are changed by a Telemetry resource';
  }
  return managerReason(manager);
}

const ROUTER = 'envoy.extensions.filters.http.router.v3.Router';

/** Why requests have to pass a HTTP connection manager, whatever its filters and routes are, and however it traces. What it does to paths it does to none that the kernel reads. */
export function managerReason(manager: HttpConnectionManager): string | undefined {
  if (manager.access_log.length > 0) return 'requests are logged';
  if (manager.http_filters.some(({ config_type, disabled }) => disabled || (config_type?.$case === 'typed_config' && configType(config_type.value) === ROUTER && config_type.value.value.length > 0))) return 'its filters have settings';
  const { stream_idle_timeout: idle } = manager;
  if (idle && (idle.seconds !== 0n || idle.nanos !== 0)) return 'requests may be silent for a limited time only';
  if (manager.upgrade_configs.some(({ upgrade_type, filters }) => upgrade_type !== 'websocket' || filters.length > 0)) return 'requests may be upgraded';
  const rest: HttpConnectionManager = {
    ...manager, codec_type: 0, stat_prefix: '', route_specifier: undefined, http_filters: [], tracing: undefined, stream_idle_timeout: undefined, proxy_100_continue: false,
    upgrade_configs: [], normalize_path: undefined, merge_slashes: false, path_with_escaped_slashes_action: 0, request_id_extension: undefined, use_remote_address: undefined,
    server_name: '', server_header_transformation: 0, forward_client_cert_details: 0, set_current_client_cert_details: undefined,
  };
  return isEmpty(HttpConnectionManager, rest) ? undefined : 'requests have settings of their own';
}
