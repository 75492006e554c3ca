/** Patches of a listener: itself, its listener filters, filter chains, their network filters and HTTP filters. */
import type { Message } from '@bufbuild/protobuf';
import { reflect, type ReflectMessage } from '@bufbuild/protobuf/reflect';
import type { Any } from '@bufbuild/protobuf/wkt';
import { patchRouteConfiguration } from './patch-routes.js';
import { clone, descOf, merge, packInto, plain, unpackAny } from './registry.js';
import { worksOn, type Phase, type WasmFilter } from '../wasm/wasm-plugins.js';
import type { CompiledPatch, FilterClass, PatchContext } from './types.js';

interface PlainFilter {
  name: string;
  configType: { case?: string; value?: Any };
}
interface PlainChain {
  name: string;
  filterChainMatch?: { destinationPort?: { value?: number } | number; serverNames: string[]; transportProtocol: string; applicationProtocols: string[] };
  filters: (PlainFilter & Message)[];
}
interface PlainListener {
  name: string;
  address?: { address: { case?: string; value?: { portSpecifier?: { value?: number } } } };
  listenerFilters: (PlainFilter & Message)[];
  filterChains: (PlainChain & Message)[];
  defaultFilterChain?: PlainChain & Message;
}
interface PlainManager {
  httpFilters: (PlainFilter & Message)[];
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

/** Where Istio puts a filter of a class: after those that belong to it or come before it. */
const CLASS_FILTERS: Record<FilterClass, readonly string[]> = {
  AUTHN: ['envoy.filters.http.jwt_authn', 'istio_authn'],
  AUTHZ: ['envoy.filters.http.jwt_authn', 'istio_authn', 'envoy.filters.http.ext_authz', 'envoy.filters.http.rbac'],
  STATS: ['envoy.filters.http.jwt_authn', 'istio_authn', 'envoy.filters.http.ext_authz', 'envoy.filters.http.rbac', 'istio.stats'],
};

function listenerPort(listener: PlainListener): number | undefined {
  return listener.address?.address.value?.portSpecifier?.value;
}

function destinationPort(chain: PlainChain): number | undefined {
  const port = chain.filterChainMatch?.destinationPort;
  return typeof port === 'object' ? port.value : port;
}

/** The inbound side is one listener: what is said about a port's listener is about that port's chains. */
function matchesListener({ listener: match }: CompiledPatch, listener: PlainListener, isInbound: boolean): boolean {
  if (match.name && match.name !== listener.name) return false;
  return !match.portNumber || isInbound || match.portNumber === listenerPort(listener);
}

function matchesChain({ listener: { filterChain, portNumber } }: CompiledPatch, chain: PlainChain, isInbound: boolean): boolean {
  if (isInbound && portNumber && portNumber !== destinationPort(chain)) return false;
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
  AUTHZ: [...CLASS_FILTERS.AUTHN, 'envoy.filters.http.ext_authz'],
  STATS: CLASS_FILTERS.AUTHZ,
  UNSPECIFIED_PHASE: undefined,
};

/** Puts plugins into the connection managers of a listener: AUTHN behind external authorization and before authentication, AUTHZ between that and authorization. */
export function insertPlugins(message: ReflectMessage, plugins: readonly WasmFilter[], context: PatchContext): void {
  const listener = plain<PlainListener>(message);
  for (const chain of [...listener.filterChains, ...(listener.defaultFilterChain ? [listener.defaultFilterChain] : [])]) {
    const port = context === 'SIDECAR_INBOUND' ? destinationPort(chain) : listenerPort(listener);
    const here = plugins.filter((plugin) => worksOn(plugin, context, port));
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
export function patchListener(message: ReflectMessage, patches: readonly CompiledPatch[], context: PatchContext): boolean {
  const listener = plain<PlainListener>(message);
  const isInbound = context === 'SIDECAR_INBOUND';
  const mine = patches.filter((patch) => patch.contexts.has(context) && matchesListener(patch, listener, isInbound));
  for (const patch of mine.filter(({ applyTo }) => applyTo === 'LISTENER')) {
    if (patch.operation === 'REMOVE') return false;
    if (patch.operation === 'MERGE') merge(message, clone(patch.value!));
  }
  for (const patch of mine.filter(({ applyTo }) => applyTo === 'LISTENER_FILTER')) {
    listener.listenerFilters = changeList(listener.listenerFilters, patch, ({ name }) => !patch.listener.listenerFilter || name === currentName(patch.listener.listenerFilter), 'envoy.config.listener.v3.ListenerFilter');
  }
  for (const patch of mine.filter(({ applyTo }) => applyTo === 'FILTER_CHAIN')) {
    listener.filterChains = changeList(listener.filterChains, patch, (chain) => matchesChain(patch, chain, isInbound), 'envoy.config.listener.v3.FilterChain');
    if (patch.operation === 'MERGE' && listener.defaultFilterChain && matchesChain(patch, listener.defaultFilterChain, isInbound)) merge(reflect(descOf('envoy.config.listener.v3.FilterChain'), listener.defaultFilterChain), clone(patch.value!));
  }
  // Routes that stand in a listener are the inbound side's; they are found by patches of routes, which name no listener.
  const routePatches = isInbound ? patches.filter(({ applyTo }) => applyTo === 'ROUTE_CONFIGURATION' || applyTo === 'VIRTUAL_HOST' || applyTo === 'HTTP_ROUTE') : [];
  for (const chain of [...listener.filterChains, ...(listener.defaultFilterChain ? [listener.defaultFilterChain] : [])]) {
    const ofChain = mine.filter((patch) => matchesChain(patch, chain, isInbound));
    for (const patch of ofChain.filter(({ applyTo }) => applyTo === 'NETWORK_FILTER')) {
      const wanted = patch.listener.filterChain?.filter?.name;
      chain.filters = changeList(chain.filters, patch, ({ name }) => !wanted || name === currentName(wanted), 'envoy.config.listener.v3.Filter');
    }
    const http = ofChain.filter(({ applyTo }) => applyTo === 'HTTP_FILTER');
    if (http.length + routePatches.length > 0) for (const filter of chain.filters) patchManager(filter, http, routePatches);
  }
  return true;
}

function patchManager(filter: PlainFilter, http: readonly CompiledPatch[], routePatches: readonly CompiledPatch[]): void {
  const any = filter.configType.value;
  if (!any?.typeUrl.endsWith(MANAGER)) return;
  const message = unpackAny(any);
  if (!message) return;
  const manager = plain<PlainManager>(message);
  for (const patch of http) {
    const match = patch.listener.filterChain?.filter;
    if (match?.name && currentName(match.name) !== filter.name) continue;
    if (patch.filterClass && patch.operation === 'ADD') {
      insertByClass(manager, patch, patch.filterClass);
      continue;
    }
    const wanted = match?.subFilter?.name;
    manager.httpFilters = changeList(manager.httpFilters, patch, ({ name }) => !wanted || name === currentName(wanted), 'envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter');
  }
  if (manager.routeSpecifier.case === 'routeConfig' && routePatches.length > 0) {
    patchRouteConfiguration(reflect(descOf('envoy.config.route.v3.RouteConfiguration'), manager.routeSpecifier.value!), routePatches, 'SIDECAR_INBOUND');
  }
  packInto(any, message);
}

function insertByClass(manager: PlainManager, patch: CompiledPatch, filterClass: FilterClass): void {
  const before = CLASS_FILTERS[filterClass];
  const last = manager.httpFilters.findLastIndex(({ name }) => before.includes(name));
  manager.httpFilters.splice(last + 1, 0, plain<PlainFilter>(clone(patch.value!)));
}

/** One patch of an ordered list; INSERT_BEFORE, INSERT_AFTER and REPLACE are about the first that matches. */
function changeList<T extends Message>(list: T[], patch: CompiledPatch, matches: (item: T) => boolean, type: string): T[] {
  const fresh = (): T => clone(patch.value!).message as T;
  const first = list.findIndex(matches);
  switch (patch.operation) {
    case 'ADD':
      return [...list, fresh()];
    case 'INSERT_FIRST':
      return [fresh(), ...list];
    case 'INSERT_BEFORE':
      return first < 0 ? list : list.toSpliced(first, 0, fresh());
    case 'INSERT_AFTER':
      return first < 0 ? list : list.toSpliced(first + 1, 0, fresh());
    case 'REPLACE':
      return first < 0 ? list : list.toSpliced(first, 1, fresh());
    case 'REMOVE':
      return list.filter((item) => !matches(item));
    case 'MERGE':
      for (const item of list) if (matches(item)) merge(reflect(descOf(type), item), clone(patch.value!));
      return list;
  }
}
