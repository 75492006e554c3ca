/** Patches of route configurations, virtual hosts and routes; inline ones of a connection manager as well. */
import type { ReflectMessage } from '@bufbuild/protobuf/reflect';
import { clone, merge, plain } from './registry.js';
import { reflect } from '@bufbuild/protobuf/reflect';
import type { Message } from '@bufbuild/protobuf';
import type { CompiledPatch, PatchContext } from './types.js';
import { descOf } from './registry.js';

interface PlainRoute {
  name: string;
  action: { case?: string };
}
interface PlainHost {
  name: string;
  domains: string[];
  routes: (PlainRoute & Message)[];
}
interface PlainConfiguration {
  name: string;
  virtualHosts: (PlainHost & Message)[];
}

/** The port that a route configuration is about: `80`, `host:80`, `http.8080`, `https.443.name.gateway.ns`. */
function portOf(name: string): number | undefined {
  const found = /^(\d+)$/.exec(name) ?? /:(\d+)$/.exec(name) ?? /^https?\.(\d+)(\.|$)/.exec(name) ?? /^inbound\|(\d+)\|/.exec(name);
  return found ? Number(found[1]) : undefined;
}

/** `https.443.<server's port name>.<gateway>.<namespace>` */
function matchesGateway(name: string, { gateway, portName }: CompiledPatch['route']): boolean {
  const parts = /^https\.\d+\.(.+)\.([^.]+)\.([^.]+)$/.exec(name);
  if (gateway && (!parts || `${parts[3]}/${parts[2]}` !== gateway)) return false;
  return !portName || parts?.[1] === portName;
}

function matchesConfiguration(patch: CompiledPatch, name: string): boolean {
  const { route } = patch;
  if (route.name && route.name !== name) return false;
  if (route.portNumber && route.portNumber !== portOf(name)) return false;
  return matchesGateway(name, route);
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

/** @returns whether anything was changed */
export function patchRouteConfiguration(message: ReflectMessage, patches: readonly CompiledPatch[], context: PatchContext): boolean {
  const configuration = plain<PlainConfiguration>(message);
  const mine = patches.filter((patch) => patch.contexts.has(context) && matchesConfiguration(patch, configuration.name));
  if (mine.length === 0) return false;
  for (const patch of mine) if (patch.applyTo === 'ROUTE_CONFIGURATION' && patch.operation === 'MERGE') merge(message, clone(patch.value!));
  const hosts = mine.filter(({ applyTo }) => applyTo === 'VIRTUAL_HOST');
  for (const patch of hosts) {
    if (patch.operation === 'ADD') configuration.virtualHosts.push(plain<PlainHost>(clone(patch.value!)));
    else if (patch.operation === 'REMOVE') configuration.virtualHosts = configuration.virtualHosts.filter((host) => !matchesHost(patch, host));
    else for (const host of configuration.virtualHosts) if (matchesHost(patch, host)) merge(reflect(descOf('envoy.config.route.v3.VirtualHost'), host), clone(patch.value!));
  }
  const routes = mine.filter(({ applyTo }) => applyTo === 'HTTP_ROUTE');
  for (const host of configuration.virtualHosts) for (const patch of routes) if (matchesHost(patch, host)) patchRoutes(host, patch);
  return true;
}

function patchRoutes(host: PlainHost, patch: CompiledPatch): void {
  const fresh = (): PlainRoute & Message => plain<PlainRoute>(clone(patch.value!));
  const first = host.routes.findIndex((route) => matchesRoute(patch, route));
  switch (patch.operation) {
    case 'ADD':
      host.routes.push(fresh());
      break;
    case 'INSERT_FIRST':
      host.routes.unshift(fresh());
      break;
    case 'INSERT_BEFORE':
      if (first >= 0) host.routes.splice(first, 0, fresh());
      break;
    case 'INSERT_AFTER':
      if (first >= 0) host.routes.splice(first + 1, 0, fresh());
      break;
    case 'REMOVE':
      host.routes = host.routes.filter((route) => !matchesRoute(patch, route));
      break;
    default:
      for (const route of host.routes) if (matchesRoute(patch, route)) merge(reflect(descOf('envoy.config.route.v3.Route'), route), clone(patch.value!));
  }
}
