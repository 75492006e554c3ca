/**
 * RDS of workloads. A route configuration is named by its port (`80`), with one virtual host a service or VirtualService
 * host, or by `host:port` for a port whose protocol is sniffed. Names, order and defaults are istiod's.
 */
import { isIP } from 'node:net';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { Route, RouteAction, VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { Memo } from '../../common/memo.js';
import type { VirtualService } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { hostMatches, namespaceOfHost } from '../model/hosts.js';
import type { MeshService } from '../model/model.js';
import { isHttp } from '../model/protocol.js';
import type { Proxy } from '../model/proxy.js';
import type { Scope } from '../model/scope.js';
import { appliesToMesh, destinationsOf } from '../model/virtual-services.js';
import { bracketed, seconds } from './envoy.js';
import type { Resource } from './resource.js';
import { encodedHost, generalHostsOnce, routeResource, serviceRoutesOnce, virtualHostOnce, virtualServiceRoutesOnce } from './route-cache.js';
import { defaultRoute, virtualServiceRoutes } from './routes-http.js';
import { destinationCluster, meshSource, sourceKey } from './route-match.js';

/** The route configuration of that name for this client; an unknown name has an empty one, as istiod answers. */
export function routeConfiguration(scope: Scope, proxy: Proxy, name: string): Resource {
  const sniffed = /^(.+):(\d+)$/.exec(name);
  let virtual_hosts: VirtualHost[] = [];
  if (sniffed) {
    const [, host, port] = sniffed;
    const service = scope.service(host!);
    if (service?.ports.some((candidate) => candidate.port === Number(port))) virtual_hosts = [virtualHost(serviceRoutes(scope, proxy, service, Number(port)), name, ['*'])];
  } else if (/^\d+$/.test(name)) {
    const number = Number(name);
    virtual_hosts = [...(scope.egress ? portVirtualHosts(scope, proxy, listenerScope(scope, number)) : visiblePortHosts(scope, proxy, number)), fallbackVirtualHost(scope)];
  }
  return routeResource(name, routeTable(name, []), virtual_hosts);
}

/** What all route tables have in common: a Host header's port says nothing, answers of up to 1 MiB may be Envoy's own. */
export function routeTable(name: string, virtual_hosts: VirtualHost[]): RouteConfiguration {
  return RouteConfiguration.fromPartial({ name, virtual_hosts, validate_clusters: false, ignore_port_in_host_matching: true, max_direct_response_body_size_bytes: 1_048_576 });
}

export const virtualHost = (routes: Route[], name: string, domains: string[]): VirtualHost => VirtualHost.fromPartial({ name, domains, routes, include_request_attempt_count: true });

export interface PortScope {
  port: number;
  /** Default: all that the client sees, as far as they have the port. */
  services?: readonly MeshService[];
  virtualServices?: readonly LoadedObject<VirtualService>[];
  /** Whose short names are domains; default: the client's namespace. */
  namespace?: string;
}

/**
 * The virtual hosts of one listening port as a client sees them, without the one for everything else. Clients of different
 * namespaces differ only in the short names of their own namespace's services: the rest is made once for all of them.
 */
function visiblePortHosts(scope: Scope, proxy: Proxy, port: number): VirtualHost[] {
  const { namespace } = proxy;
  const general = generalHostsOnce(scope, `${port} ${sourceKey(proxy, scope)}`, () => portVirtualHosts(scope, proxy, { port, namespace: NO_NAMESPACE }));
  const own = scope.visibility.servicesOnPort(port).filter(({ host }) => namespaceOfHost(host, scope.model.mesh.clusterDomain) === namespace);
  const exchanged = new Map<string, VirtualHost>();
  for (const service of own) {
    const name = `${service.host}:${port}`;
    const host = general.byName.get(name);
    if (!host) continue;
    const wanted = domains(service, namespace, scope.model.mesh.clusterDomain);
    const before = domains(service, NO_NAMESPACE, scope.model.mesh.clusterDomain);
    const added = wanted.filter((domain) => !before.includes(domain));
    // A short name that somebody else has, or a host that lost some of its own, is sorted out the long way.
    if (host.domains.length !== before.length || added.some((domain) => general.shortDomains.has(domain.toLowerCase()))) return portVirtualHosts(scope, proxy, { port });
    exchanged.set(name, virtualHostOnce(host.routes, wanted, () => virtualHost(host.routes, name, [...wanted])));
  }
  return exchanged.size === 0 ? general.hosts : general.hosts.map((host) => exchanged.get(host.name) ?? host);
}

/** Makes the virtual host of a service that nobody routes, as most clients have it. */
export function prepareVirtualHost(scope: Scope, service: MeshService, port: number): void {
  if (scope.virtualServicesFor(service.host).length > 0 || !service.ports.some((candidate) => candidate.port === port && isHttp(candidate.protocol))) return;
  const routes = serviceRoutesOnce(scope, service, port, () => [defaultRoute(scope, service.host, port)]);
  const [name, names] = [`${service.host}:${port}`, domains(service, NO_NAMESPACE, scope.model.mesh.clusterDomain)];
  encodedHost(virtualHostOnce(routes, names, () => virtualHost(routes, name, [...names])));
}

/** No namespace has this name. */
const NO_NAMESPACE = '-';

/** A Sidecar's egress listeners have services and VirtualServices each of its own. */
function listenerScope(scope: Scope, port: number): PortScope {
  const { services = [], virtualServices = [] } = scope.egressListener(port) ?? {};
  return { port, services: services.filter((service) => service.ports.some((candidate) => candidate.port === port)), virtualServices };
}

/** The virtual hosts of one listening port, without the one for everything else. */
export function portVirtualHosts(scope: Scope, proxy: Proxy, { port, services = scope.visibility.servicesOnPort(port), virtualServices = scope.virtualServices, namespace = proxy.namespace }: PortScope): VirtualHost[] {
  const { clusterDomain } = scope.model.mesh;
  const onPort = new Map(services.map((service) => [service.host, service]));
  const routed = new Set(services.filter((service) => service.ports.some((candidate) => candidate.port === port && (isHttp(candidate.protocol) || candidate.protocol === 'auto'))));
  const split = virtualServices.filter((loaded) => appliesToMesh(loaded) && loaded.object.spec.http?.length).map((loaded) => ({ loaded, ...splitHosts(scope, loaded, onPort) }));
  // Kubernetes' own names are all different: only with what others chose freely can they collide; and addresses of several clusters.
  const contested = new Set<string>();
  const addresses = new Set<string>();
  for (const service of routed) for (const address of service.addresses) if (addresses.size === addresses.add(address).size) contested.add(bracketed(address));
  for (const { foreign } of split) for (const host of foreign) contested.add(bracketed(host));
  for (const service of routed) if (service.object.kind !== 'Service') for (const domain of domains(service, namespace, clusterDomain)) contested.add(domain.toLowerCase());
  const taken = new Set<string>();
  /** Envoy refuses a table that names a domain twice: the first keeps it. A host's own name beats another's short form. */
  const isFree = (domain: string, host: string): boolean => {
    const name = domain.toLowerCase();
    if (!contested.has(name)) return true;
    if (taken.has(name) || (domain !== host && onPort.has(domain) && routed.has(onPort.get(domain)!))) return false;
    taken.add(name);
    return true;
  };
  const hosts = new Map<string, VirtualHost>();
  const add = (routes: Route[], host: string, domains: readonly string[]): void => {
    const name = `${host}:${port}`;
    if (hosts.has(name)) return;
    const free = domains.some((domain) => contested.has(domain.toLowerCase())) ? domains.filter((domain) => isFree(domain, host)) : domains;
    if (free.length > 0) hosts.set(name, virtualHostOnce(routes, free, () => virtualHost(routes, name, [...free])));
  };
  const served = new Set<MeshService>();
  const source = sourceKey(proxy, scope);
  for (const { loaded, foreign, matched } of split) {
    const own = matched.filter((service) => routed.has(service));
    // Hosts that are no service of the port come along with one that is; alone they are served on port 80.
    if (own.length === 0 && port !== 80) continue;
    const leadsTo = destinationsOf(loaded.object).map((destination) => destinationCluster(scope, destination, port));
    const routes = virtualServiceRoutesOnce(scope, loaded, `${port} ${source} ${leadsTo.join(' ')}`, () => virtualServiceRoutes(scope, meshSource(proxy, port), loaded));
    if (routes.length === 0) continue;
    for (const host of foreign) add(routes, host, [bracketed(host)]);
    for (const service of own) {
      add(routes, service.host, domains(service, namespace, clusterDomain));
      served.add(service);
    }
  }
  for (const service of routed) {
    if (!served.has(service)) add(serviceRoutesOnce(scope, service, port, () => [defaultRoute(scope, service.host, port)]), service.host, domains(service, namespace, clusterDomain));
  }
  return [...hosts.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** A VirtualService's hosts: services of the port, of a wildcard those for which no other VirtualService is nearer; and the rest. */
function splitHosts(scope: Scope, loaded: LoadedObject<VirtualService>, onPort: ReadonlyMap<string, MeshService>): { foreign: string[]; matched: MeshService[] } {
  const foreign: string[] = [];
  const matched: MeshService[] = [];
  for (const host of loaded.object.spec.hosts ?? []) {
    const exact = onPort.get(host);
    if (exact) matched.push(exact);
    else if (!host.startsWith('*')) foreign.push(host);
    else {
      const covered = [...onPort.values()].filter((service) => hostMatches(host, service.host));
      if (covered.length === 0) foreign.push(host);
      matched.push(...covered.filter((service) => nearest(scope, service.host)?.key === loaded.key));
    }
  }
  return { foreign, matched };
}

const nearest = (scope: Scope, host: string): LoadedObject<VirtualService> | undefined => scope.virtualServicesFor(host).find(appliesToMesh);

export function fallbackVirtualHost(scope: Scope): VirtualHost {
  if (scope.outboundTrafficPolicy === 'REGISTRY_ONLY') {
    const route = Route.fromPartial({ name: 'block_all', match: { path_specifier: { $case: 'prefix', value: '/' } }, action: { $case: 'direct_response', value: { status: 502 } } });
    return virtualHost([route], 'block_all', ['*']);
  }
  const action = RouteAction.fromPartial({ cluster_specifier: { $case: 'cluster', value: scope.passthroughCluster }, timeout: seconds(0), max_grpc_timeout: seconds(0) });
  const route = Route.fromPartial({ name: 'allow_any', match: { path_specifier: { $case: 'prefix', value: '/' } }, action: { $case: 'route', value: action } });
  return virtualHost([route], 'allow_any', ['*']);
}

const domainsOf = new Memo<MeshService, Map<string, readonly string[]>>();

/** Every name under which a client may ask for the service: short forms as its namespace's DNS search resolves them. */
export function domains(service: MeshService, clientNamespace: string, clusterDomain: string): readonly string[] {
  const namespace = namespaceOfHost(service.host, clusterDomain);
  const isOwn = namespace === clientNamespace;
  const known = domainsOf.once(service, () => new Map());
  const key = `${isOwn} ${clusterDomain}`;
  let found = known.get(key);
  if (!found) known.set(key, (found = makeDomains(service, namespace, isOwn, clusterDomain)));
  return found;
}

function makeDomains({ host, addresses, headless, object }: MeshService, namespace: string | undefined, isOwn: boolean, clusterDomain: string): string[] {
  const forms = [host, ...(isIP(host) ? [] : [`${host}.`])];
  if (namespace !== undefined) {
    const withNamespace = host.slice(0, -`.svc.${clusterDomain}`.length);
    forms.push(...(isOwn ? [withNamespace.slice(0, -namespace.length - 1), `${withNamespace}.svc`, withNamespace] : [withNamespace, `${withNamespace}.svc`]));
  }
  // A pod of a headless service is asked for by its own name.
  if (headless && object.kind === 'Service') forms.push(...forms.map((form) => `*.${form}`));
  return [...forms, ...addresses.map(bracketed)];
}

function serviceRoutes(scope: Scope, proxy: Proxy, service: MeshService, port: number): Route[] {
  for (const loaded of scope.virtualServicesFor(service.host)) {
    const routes = appliesToMesh(loaded) ? virtualServiceRoutes(scope, meshSource(proxy, port), loaded) : [];
    if (routes.length > 0) return routes;
  }
  return [defaultRoute(scope, service.host, port)];
}
