/** Patches of a listener: itself, its listener filters, filter chains, their network filters and HTTP filters. */
import type { Message } from '@bufbuild/protobuf';
import { reflect, type ReflectMessage } from '@bufbuild/protobuf/reflect';
import type { Any } from '@bufbuild/protobuf/wkt';
import { changeList, type Names } from './patch-list.js';
import { patchRouteConfiguration } from './patch-routes.js';
import { clone, descOf, merge, mergePatch, packInto, plain, unpackAny } from './registry.js';
import { worksOn, type Phase, type WasmFilter } from '../wasm/wasm-plugins.js';
import { isMerge, type CompiledPatch, type FilterClass, type PatchContext, type Place } from './types.js';

type PlainFilter = Message & {
  name: string;
  configType: { case?: string; value?: Any };
};
type PlainChain = Message & {
  name: string;
  filterChainMatch?: { destinationPort?: { value?: number } | number; serverNames: string[]; transportProtocol: string; applicationProtocols: string[] };
  filters: PlainFilter[];
};
interface PlainListener {
  name: string;
  address?: { address: { case?: string; value?: { portSpecifier?: { value?: number } } } };
  listenerFilters: PlainFilter[];
  filterChains: PlainChain[];
  defaultFilterChain?: PlainChain;
}
interface PlainManager {
  httpFilters: PlainFilter[];
  routeSpecifier: { case?: string; value?: Message };
}

const MANAGER = 'envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager';

/** Names that Istio's documentation used before Envoy renamed its filters. */
const OLD_NAMES: Record<string, string> = {
  'envoy.http_connection_manager': 'envoy.filters.network.http_connection_manager',
  'envoy.tcp_proxy': 'envoy.filters.network.tcp_proxy',
  'envoy.router': 'envoy.filters.http.router',
  'envoy.cors': 'envoy.filters.http.cors',
  'envoy.fault': 'envoy.filters.http.fault',
  'envoy.lua': 'envoy.filters.http.lua',
  'envoy.ext_authz': 'envoy.filters.http.ext_authz',
};
const currentName = (name: string): string => OLD_NAMES[name] ?? name;

/** Where Istio puts a filter of a class: after those that belong to it or come before it; its own filter of statistics is not here. */
const AUTHN = ['envoy.filters.http.jwt_authn', 'istio_authn'];
const AUTHZ = [...AUTHN, 'envoy.filters.http.ext_authz', 'envoy.filters.http.rbac'];
const CLASS_FILTERS: Record<FilterClass, readonly string[]> = { AUTHN, AUTHZ, STATS: AUTHZ };

function listenerPort(listener: PlainListener): number | undefined {
  return listener.address?.address.value?.portSpecifier?.value;
}

function destinationPort(chain: PlainChain): number | undefined {
  const port = chain.filterChainMatch?.destinationPort;
  return typeof port === 'object' ? port.value : port;
}

/** These take in all ports: what is said about a port's listener is about the chains for that port. */
const VIRTUAL: ReadonlySet<string> = new Set(['virtualInbound', 'virtualOutbound', 'main_internal']);

function matchesListener({ applyTo, listener: match }: CompiledPatch, listener: PlainListener): boolean {
  if (match.name && match.name !== listener.name) return false;
  return !match.portNumber || (applyTo !== 'LISTENER' && VIRTUAL.has(listener.name)) || match.portNumber === listenerPort(listener);
}

function matchesChain({ listener: { filterChain, portNumber } }: CompiledPatch, chain: PlainChain, isVirtual: boolean): boolean {
  if (isVirtual && portNumber && portNumber !== destinationPort(chain)) return false;
  if (!filterChain) return true;
  const match = chain.filterChainMatch;
  if (filterChain.name && filterChain.name !== chain.name) return false;
  if (filterChain.sni && !match?.serverNames.includes(filterChain.sni)) return false;
  if (filterChain.transportProtocol && filterChain.transportProtocol !== match?.transportProtocol) return false;
  if (filterChain.applicationProtocols && !filterChain.applicationProtocols.split(',').every((protocol) => match?.applicationProtocols.includes(protocol.trim()))) return false;
  return !filterChain.destinationPort || filterChain.destinationPort === destinationPort(chain);
}

/** Filters that stand before, or belong to, each phase of a WasmPlugin; what has no phase comes last, before the router. */
const PHASE_AFTER: Record<Phase, readonly string[] | undefined> = {
  AUTHN: ['envoy.filters.http.ext_authz'],
  AUTHZ: [...AUTHN, 'envoy.filters.http.ext_authz'],
  STATS: AUTHZ,
  UNSPECIFIED_PHASE: undefined,
};

/** Puts plugins into the connection managers of a listener: AUTHN behind external authorization and before authentication, AUTHZ between that and authorization. */
export function insertPlugins(message: ReflectMessage, plugins: readonly WasmFilter[], context: PatchContext): void {
  const listener = plain<PlainListener>(message);
  for (const chain of [...listener.filterChains, ...(listener.defaultFilterChain ? [listener.defaultFilterChain] : [])]) {
    const port = context === 'SIDECAR_INBOUND' || context === 'WAYPOINT' ? destinationPort(chain) : listenerPort(listener);
    const here = plugins.filter((plugin) => worksOn(plugin, context, port) && (plugin.host === undefined || chain.name.endsWith(`|http|${plugin.host}`)));
    if (here.length === 0) continue;
    for (const filter of chain.filters) {
      const any = filter.configType.value;
      const inner = any?.typeUrl.endsWith(MANAGER) ? unpackAny(any) : undefined;
      if (!any || !inner) continue;
      const manager = plain<PlainManager>(inner);
      // From the last phase to the first: where two have one place, the earlier phase's come to stand before.
      for (const phase of ['UNSPECIFIED_PHASE', 'STATS', 'AUTHZ', 'AUTHN'] as const) {
        const after = PHASE_AFTER[phase];
        const router = manager.httpFilters.findIndex(({ name }) => name === 'envoy.filters.http.router');
        const place = after ? manager.httpFilters.findLastIndex(({ name }) => after.includes(name)) + 1 : router < 0 ? manager.httpFilters.length : router;
        const mine = here.filter((plugin) => plugin.phase === phase).map(({ message: made }) => plain<PlainFilter>(clone(made)));
        manager.httpFilters.splice(place, 0, ...mine);
      }
      packInto(any, inner);
    }
  }
}

/** @returns whether the listener itself stays */
export function patchListener(message: ReflectMessage, patches: readonly CompiledPatch[], place: Place): boolean {
  const listener = plain<PlainListener>(message);
  const mine = patches.filter((patch) => patch.contexts.has(place.context) && matchesListener(patch, listener));
  const about = (applyTo: CompiledPatch['applyTo']): CompiledPatch[] => mine.filter((patch) => patch.applyTo === applyTo);
  for (const patch of about('LISTENER')) {
    if (patch.operation === 'REMOVE') return false;
    if (isMerge(patch)) mergePatch(message, clone(patch.value!), patch);
  }
  for (const patch of about('LISTENER_FILTER')) {
    const names = named<PlainFilter>(patch.listener.listenerFilter);
    listener.listenerFilters = changeList(listener.listenerFilters, patch, names);
    if (names) mergeFilters(listener.listenerFilters, patch, names, 'envoy.config.listener.v3.ListenerFilter');
  }
  // Routes that stand in a listener are the inbound side's; they are found by patches of routes, which name no listener.
  const routes = place.context === 'SIDECAR_INBOUND' ? patches.filter(({ applyTo }) => applyTo === 'ROUTE_CONFIGURATION' || applyTo === 'VIRTUAL_HOST' || applyTo === 'HTTP_ROUTE') : [];
  const chains = about('FILTER_CHAIN');
  const [network, http] = [about('NETWORK_FILTER'), about('HTTP_FILTER')];
  const stays = (chain: PlainChain): boolean => {
    const ofChain = (all: readonly CompiledPatch[]): CompiledPatch[] => all.filter((patch) => matchesChain(patch, chain, VIRTUAL.has(listener.name)));
    for (const patch of ofChain(chains)) {
      if (patch.operation === 'REMOVE') return false;
      if (isMerge(patch)) mergePatch(reflect(descOf('envoy.config.listener.v3.FilterChain'), chain), clone(patch.value!), patch);
    }
    patchFilters(chain, ofChain(network), ofChain(http), { patches: routes, place });
    return true;
  };
  listener.filterChains = listener.filterChains.filter(stays);
  if (listener.defaultFilterChain && !stays(listener.defaultFilterChain)) delete listener.defaultFilterChain;
  // What is added comes last: no patch is about it.
  for (const patch of chains) if (patch.operation === 'ADD') listener.filterChains.push(plain<PlainChain>(clone(patch.value!)));
  return true;
}

/** Filters that end their list: Envoy refuses what stands behind them. */
const TERMINAL = [MANAGER, 'envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy', 'envoy.extensions.filters.http.router.v3.Router'];

function isTerminal({ configType }: PlainFilter): boolean {
  return TERMINAL.some((type) => configType.value?.typeUrl.endsWith(type));
}

/** Names those of that name; nothing when none is given. */
function named<T extends { name: string }>(wanted: string | undefined): Names<T> {
  return wanted ? ({ name }) => name === currentName(wanted) : undefined;
}

interface RoutePatches {
  patches: readonly CompiledPatch[];
  place: Place;
}

function patchFilters(chain: PlainChain, network: readonly CompiledPatch[], http: readonly CompiledPatch[], routes: RoutePatches): void {
  const names = ({ listener }: CompiledPatch): Names<PlainFilter> => named(listener.filterChain?.filter?.name);
  for (const patch of network) chain.filters = changeList(chain.filters, patch, names(patch), isTerminal);
  for (const patch of network) mergeFilters(chain.filters, patch, names(patch), 'envoy.config.listener.v3.Filter');
  if (http.length + routes.patches.length > 0) for (const filter of chain.filters) patchManager(filter, http, routes);
}

function patchManager(filter: PlainFilter, http: readonly CompiledPatch[], routes: RoutePatches): void {
  const any = filter.configType.value;
  if (!any?.typeUrl.endsWith(MANAGER)) return;
  const message = unpackAny(any);
  if (!message) return;
  const manager = plain<PlainManager>(message);
  const mine = http.filter(({ listener }) => named(listener.filterChain?.filter?.name)?.(filter) ?? true);
  const names = ({ listener }: CompiledPatch): Names<PlainFilter> => named(listener.filterChain?.filter?.subFilter?.name);
  for (const patch of mine) {
    if (patch.filterClass && patch.operation === 'ADD') insertByClass(manager, patch, patch.filterClass);
    else manager.httpFilters = changeList(manager.httpFilters, patch, names(patch), isTerminal);
  }
  for (const patch of mine) mergeFilters(manager.httpFilters, patch, names(patch), 'envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter');
  if (manager.routeSpecifier.case === 'routeConfig' && routes.patches.length > 0) {
    patchRouteConfiguration(reflect(descOf('envoy.config.route.v3.RouteConfiguration'), manager.routeSpecifier.value!), routes.patches, routes.place);
  }
  packInto(any, message);
}

function insertByClass(manager: PlainManager, patch: CompiledPatch, filterClass: FilterClass): void {
  const before = CLASS_FILTERS[filterClass];
  const last = manager.httpFilters.findLastIndex(({ name }) => before.includes(name));
  manager.httpFilters.splice(last + 1, 0, plain<PlainFilter>(clone(patch.value!)));
}

/** Merges are done after all else, into every filter where none is named; one of another type is none that could be meant. */
function mergeFilters(list: readonly PlainFilter[], patch: CompiledPatch, names: Names<PlainFilter>, type: string): void {
  if (patch.operation !== 'MERGE') return;
  const theirs = plain<PlainFilter>(patch.value!).configType.value?.typeUrl;
  for (const filter of list) {
    const mine = filter.configType.value?.typeUrl;
    if ((names && !names(filter)) || mine === undefined || (theirs !== undefined && theirs !== mine)) continue;
    merge(reflect(descOf(type), filter), clone(patch.value!));
  }
}
