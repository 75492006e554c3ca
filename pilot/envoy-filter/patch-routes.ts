/** Patches of route configurations, virtual hosts and routes; inline ones of a connection manager as well. What a patch adds, no other patch changes. */
import type { Message } from '@bufbuild/protobuf';
import { reflect, type ReflectMessage } from '@bufbuild/protobuf/reflect';
import { changeList } from './patch-list.js';
import { clone, descOf, mergePatch, plain } from './registry.js';
import { isMerge, type CompiledPatch, type Place } from './types.js';

type PlainRoute = Message & {
  name: string;
  action: { case?: string };
};
type PlainHost = Message & {
  name: string;
  domains: string[];
  routes: PlainRoute[];
};
interface PlainConfiguration {
  name: string;
  virtualHosts: PlainHost[];
}

/** The port that a route configuration is about: `80`, `host:80`, `http.8080`, `https.443.name.gateway.ns`. */
export function portOf(name: string): number | undefined {
  const found = /^(\d+)$/.exec(name) ?? /:(\d+)$/.exec(name) ?? /^https?\.(\d+)(\.|$)/.exec(name) ?? /^inbound(?:-vip)?\|(\d+)\|/.exec(name);
  return found ? Number(found[1]) : undefined;
}

/** `https.443.<server's port name>.<gateway>.<namespace>` */
function matchesGateway(name: string, { gateway, portName }: CompiledPatch['route']): boolean {
  const parts = /^https\.\d+\.(.+)\.([^.]+)\.([^.]+)$/.exec(name);
  if (gateway && (!parts || `${parts[3]}/${parts[2]}` !== gateway)) return false;
  return !portName || parts?.[1] === portName;
}

function matchesConfiguration({ route }: CompiledPatch, name: string, { context, ports }: Place): boolean {
  if (route.name && route.name !== name) return false;
  if (context !== 'GATEWAY') return !route.portNumber || route.portNumber === portOf(name);
  return (!route.portNumber || ports.includes(route.portNumber)) && matchesGateway(name, route);
}

function matchesHost({ route: { vhost } }: CompiledPatch, host: PlainHost): boolean {
  if (vhost?.name && vhost.name !== host.name) return false;
  return !vhost?.domainName || host.domains.includes(vhost.domainName);
}

const ACTIONS: Record<string, string> = { ROUTE: 'route', REDIRECT: 'redirect', DIRECT_RESPONSE: 'directResponse' };

function matchesRoute({ route: { vhost } }: CompiledPatch, route: PlainRoute): boolean {
  const wanted = vhost?.route;
  if (wanted?.name && wanted.name !== route.name) return false;
  return !wanted?.action || wanted.action === 'ANY' || ACTIONS[wanted.action] === route.action.case;
}

/** @returns whether anything may have been changed */
export function patchRouteConfiguration(message: ReflectMessage, patches: readonly CompiledPatch[], place: Place): boolean {
  const configuration = plain<PlainConfiguration>(message);
  const mine = patches.filter((patch) => patch.contexts.has(place.context) && matchesConfiguration(patch, configuration.name, place));
  if (mine.length === 0) return false;
  for (const patch of mine) if (patch.applyTo === 'ROUTE_CONFIGURATION' && isMerge(patch)) mergePatch(message, clone(patch.value!), patch);
  const ofHosts = mine.filter(({ applyTo }) => applyTo === 'VIRTUAL_HOST');
  const ofRoutes = mine.filter(({ applyTo }) => applyTo === 'HTTP_ROUTE');
  configuration.virtualHosts = configuration.virtualHosts.flatMap((host) => patchHost(host, ofHosts, ofRoutes) ?? []);
  for (const patch of ofHosts) if (patch.operation === 'ADD') configuration.virtualHosts.push(plain<PlainHost>(clone(patch.value!)));
  return true;
}

function patchHost(given: PlainHost, ofHosts: readonly CompiledPatch[], ofRoutes: readonly CompiledPatch[]): PlainHost | undefined {
  let host = given;
  for (const patch of ofHosts) {
    if (!matchesHost(patch, host)) continue;
    if (patch.operation === 'REMOVE') return undefined;
    if (patch.operation === 'REPLACE') host = plain<PlainHost>(clone(patch.value!));
    else if (isMerge(patch)) mergePatch(reflect(descOf('envoy.config.route.v3.VirtualHost'), host), clone(patch.value!), patch);
  }
  const mine = ofRoutes.filter((patch) => matchesHost(patch, host));
  if (mine.length > 0) patchRoutes(host, mine);
  return host;
}

/** Removals and merges first, one route after the other; then what is added. */
function patchRoutes(host: PlainHost, patches: readonly CompiledPatch[]): void {
  host.routes = host.routes.filter((route) => {
    for (const patch of patches) {
      if (!matchesRoute(patch, route)) continue;
      if (patch.operation === 'REMOVE') return false;
      if (isMerge(patch)) mergePatch(reflect(descOf('envoy.config.route.v3.Route'), route), clone(patch.value!), patch);
    }
    return true;
  });
  for (const patch of patches) {
    if (patch.operation === 'REMOVE') continue;
    const names = patch.route.vhost?.route && ((route: PlainRoute): boolean => matchesRoute(patch, route));
    if (patch.operation === 'INSERT_FIRST' && names && !host.routes.some(names)) continue;
    host.routes = changeList(host.routes, patch, names);
  }
}
