/**
 * RDS of a waypoint: which authorities its tunnels may have, and of each service's HTTP port the routes that clients of the
 * mesh would have, led to the waypoint's own clusters. Apart from the listeners, so that a change of routes ends no tunnel.
 */
import { RouteConfiguration } from '../../../proto/generated/envoy/config/route/v3/route.js';
import { VirtualHost, type Route } from '../../../proto/generated/envoy/config/route/v3/route_components.js';
import type { Proxy } from '../../model/proxy.js';
import type { Scope } from '../../model/scope.js';
import type { MeshService } from '../../model/types.js';
import { appliesToMesh } from '../../model/virtual-services.js';
import { bracketed } from '../envoy.js';
import { connectHost, connectTable } from '../hbone.js';
import { clusterName, CONNECT_TERMINATE, MAIN_INTERNAL, parseClusterName } from '../names.js';
import { makeResource, type Resource } from '../resource.js';
import { meshSource } from '../route-match.js';
import { defaultRoute, virtualServiceRoutes } from '../routes-http.js';
import { tcpClusters } from './tcp.js';
import { addressesOf, attachedServices, attachedWorkloads, parseWaypointCluster, spokenOn, waypointClusterName } from './attached.js';

const MAX_DIRECT_RESPONSE_BYTES = 1_048_576;

/** An unknown name has an empty one. */
export function waypointRoutes(scope: Scope, proxy: Proxy, name: string): Resource {
  const attached = attachedServices(scope.model, proxy);
  if (name === CONNECT_TERMINATE) return makeResource(name, RouteConfiguration, connectTable(name, authorities(scope, proxy, attached)));
  const key = parseWaypointCluster(name);
  const service = key?.spoken === 'http' && !key.subset ? attached.find(({ host }) => host === key.host) : undefined;
  const isKnown = service?.ports.some(({ port, protocol }) => port === key?.port && spokenOn(protocol).includes('http'));
  const virtual_hosts = service && isKnown ? [VirtualHost.fromPartial({ name: `inbound|http|${key!.port}`, domains: ['*'], routes: portRoutes(scope, proxy, service, key!.port, attached) })] : [];
  return makeResource(name, RouteConfiguration, RouteConfiguration.fromPartial({ name, virtual_hosts, validate_clusters: false, max_direct_response_body_size_bytes: MAX_DIRECT_RESPONSE_BYTES }));
}

/** What no route has is answered 404, and no socket is opened for it. */
function authorities({ model }: Scope, proxy: Proxy, attached: readonly MeshService[]): VirtualHost[] {
  const workloads = attachedWorkloads(model, proxy);
  const taken = new Set<string>();
  // Of two services with one address the first is served: Envoy refuses a table that names a domain twice.
  const free = (domain: string): boolean => taken.size < taken.add(domain).size;
  const services = attached.flatMap((service) => {
    const domains = addressesOf(service).flatMap((address) => service.ports.map(({ port }) => `${bracketed(address)}:${port}`)).filter(free);
    return domains.length > 0 ? [connectHost(service.key, domains, MAIN_INTERNAL)] : [];
  });
  return [...services, ...(workloads.length > 0 ? [connectHost('workloads', workloads.map((ip) => `${bracketed(ip)}:*`), MAIN_INTERNAL)] : [])];
}

function portRoutes(scope: Scope, proxy: Proxy, service: MeshService, port: number, attached: readonly MeshService[]): Route[] {
  const own = new Set(attached.map(({ host }) => host));
  for (const loaded of scope.virtualServicesFor(service.host)) {
    const routes = appliesToMesh(loaded) ? virtualServiceRoutes(scope, meshSource(proxy, port), loaded) : [];
    if (routes.length > 0) return routes.map((route) => led(route, own));
  }
  return [led(defaultRoute(scope, service.host, port), own)];
}

/** The route, new as it is, with this waypoint's clusters for those of its own services. */
function led(route: Route, own: ReadonlySet<string>): Route {
  const clusterOf = (name: string): string => {
    const key = parseClusterName(name);
    return key && own.has(key.host) ? waypointClusterName({ ...key, spoken: 'http' }) : name;
  };
  if (route.action?.$case !== 'route') return route;
  const { cluster_specifier: to, request_mirror_policies: mirrors } = route.action.value;
  if (to?.$case === 'cluster') to.value = clusterOf(to.value);
  if (to?.$case === 'weighted_clusters') for (const weight of to.value.clusters) weight.name = clusterOf(weight.name);
  for (const mirror of mirrors) mirror.cluster = clusterOf(mirror.cluster);
  return route;
}

/** Of the services that MeshConfig's providers name, for spans, log lines and questions to authorizers. */
function providerClusters({ model: { mesh } }: Scope): string[] {
  const services = mesh.extensionProviders.flatMap(({ zipkin, opentelemetry, envoyHttpAls, envoyTcpAls, envoyOtelAls, envoyExtAuthzHttp, envoyExtAuthzGrpc }) => [zipkin, opentelemetry, envoyHttpAls, envoyTcpAls, envoyOtelAls, envoyExtAuthzHttp, envoyExtAuthzGrpc]);
  return services.flatMap((found) => (found ? [clusterName(found.port, '', found.service.slice(found.service.indexOf('/') + 1))] : []));
}

/** Clusters of other services that routes lead to, or that this proxy itself asks. */
export function referencedElsewhere(scope: Scope, proxy: Proxy, attached: readonly MeshService[]): Set<string> {
  const found = new Set<string>(providerClusters(scope));
  const hosts = new Set(attached.map(({ host }) => host));
  for (const service of attached) {
    if (scope.virtualServicesFor(service.host).length === 0) continue;
    for (const servicePort of service.ports) {
      const { port, protocol } = servicePort;
      if (spokenOn(protocol).includes('tcp')) for (const name of tcpClusters(scope, proxy, service, servicePort)) if (!hosts.has(name.split('|')[3]!)) found.add(name);
      if (!spokenOn(protocol).includes('http')) continue;
      for (const { action } of portRoutes(scope, proxy, service, port, attached)) {
        if (action?.$case !== 'route') continue;
        const { cluster_specifier: to, request_mirror_policies: mirrors } = action.value;
        const names = [...(to?.$case === 'cluster' ? [to.value] : to?.$case === 'weighted_clusters' ? to.value.clusters.map(({ name }) => name) : []), ...mirrors.map(({ cluster }) => cluster)];
        for (const name of names) if (name.startsWith('outbound|')) found.add(name);
      }
    }
  }
  return found;
}
