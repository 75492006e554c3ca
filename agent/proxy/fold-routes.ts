/** Route configurations and cluster references: what this Envoy lacks goes, clusters get the names they have here. */
import { PEER_HEADER } from '../../common/telemetry/peer-header.js';
import type { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { Route, RouteAction, VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { hostTargets } from '../xds/references.js';
import { canonical } from '../xds/resource-type.js';
import type { EnvoyExtensions } from './extensions.js';
import { keepOverrides } from './stock.js';

export type Rename = (name: string) => string;

/** Envoy's copies of requests carry no filter state, so they go to clusters that know by themselves whose connections to make. */
export const mirrorClusterName: Rename = (name) => `${name}~mirror`;
/** The same of spans, of which there is a bound. */
export const spansClusterName: Rename = (name) => `${name}~spans`;

/** The clusters that copies of requests go to. */
export function mirroredClusters(message: RouteConfiguration): ReadonlySet<string> {
  let found = mirrored.get(message);
  if (!found) mirrored.set(message, (found = findMirrored(message)));
  return found;
}

const mirrored = new WeakMap<RouteConfiguration, ReadonlySet<string>>();

function findMirrored({ virtual_hosts }: RouteConfiguration): Set<string> {
  return new Set(virtual_hosts.flatMap((host) => hostTargets(host).mirrors));
}

/** A table that listeners of clients' pods refer to by name. */
export function foldRoutes(source: RouteConfiguration, extensions: EnvoyExtensions): RouteConfiguration {
  return withHosts(foldTable(source, extensions), source, extensions);
}

/** A table that is part of a listener, as those of ports of servers' pods are. */
export function foldInlineRoutes(source: RouteConfiguration, extensions: EnvoyExtensions): RouteConfiguration {
  return withHosts(foldBareTable(source, extensions), source, extensions);
}

function withHosts(table: RouteConfiguration, { virtual_hosts }: RouteConfiguration, extensions: EnvoyExtensions): RouteConfiguration {
  return { ...table, virtual_hosts: virtual_hosts.map((host) => foldHost(host, extensions)) };
}

/**
 * One of `foldRoutes` without its virtual hosts. A server's sidecar believes what comes in the header of peers by mutual TLS, which this
 * Envoy adds: what a program says there of itself goes no further.
 */
export function foldTable(source: RouteConfiguration, extensions: EnvoyExtensions): RouteConfiguration {
  const routes = foldBareTable(source, extensions);
  return { ...routes, request_headers_to_remove: [...routes.request_headers_to_remove, PEER_HEADER] };
}

function foldBareTable(source: RouteConfiguration, extensions: EnvoyExtensions): RouteConfiguration {
  const routes = canonical({ ...source, virtual_hosts: [] }) as RouteConfiguration;
  // Routes and clusters come from one place but not in one message: a route to a cluster that is not there yet must not
  // be refused, it answers 503 until the cluster is.
  routes.validate_clusters ??= false;
  routes.typed_per_filter_config = keepOverrides(extensions, routes.typed_per_filter_config);
  return routes;
}

export function foldHost(source: VirtualHost, extensions: EnvoyExtensions): VirtualHost {
  const host = canonical(source) as VirtualHost;
  host.typed_per_filter_config = keepOverrides(extensions, host.typed_per_filter_config);
  for (const route of host.routes) {
    route.typed_per_filter_config = keepOverrides(extensions, route.typed_per_filter_config);
    const action = routeAction(route);
    for (const mirror of action?.request_mirror_policies ?? []) mirror.cluster = mirrorClusterName(mirror.cluster);
    if (action?.cluster_specifier?.$case === 'weighted_clusters') {
      for (const weight of action.cluster_specifier.value.clusters) {
        weight.typed_per_filter_config = keepOverrides(extensions, weight.typed_per_filter_config);
      }
    }
  }
  return host;
}

/** A copy whose routes lead to the renamed clusters. */
export function renameClusters(source: RouteConfiguration, rename: Rename): RouteConfiguration {
  const routes = canonical(source) as RouteConfiguration;
  return { ...renameInTable(routes, rename), virtual_hosts: routes.virtual_hosts.map((host) => renameInHost(host, rename)) };
}

/** In place; its virtual hosts are left out. */
export function renameInTable(routes: RouteConfiguration, rename: Rename): RouteConfiguration {
  for (const mirror of routes.request_mirror_policies) mirror.cluster = rename(mirror.cluster);
  return routes;
}

/** In place. */
export function renameInHost(host: VirtualHost, rename: Rename): VirtualHost {
  for (const mirror of host.request_mirror_policies) mirror.cluster = rename(mirror.cluster);
  for (const route of host.routes) {
    const action = routeAction(route);
    if (!action) continue;
    const specifier = action.cluster_specifier;
    if (specifier?.$case === 'cluster') specifier.value = rename(specifier.value);
    if (specifier?.$case === 'weighted_clusters') for (const weight of specifier.value.clusters) weight.name = rename(weight.name);
    for (const mirror of action.request_mirror_policies) mirror.cluster = rename(mirror.cluster);
  }
  return host;
}

/** All names that `renameInHost` may change once the host is folded. */
export function foldedClusters(source: VirtualHost): readonly string[] {
  const { clusters, mirrors } = hostTargets(source);
  return [...source.request_mirror_policies.map(({ cluster }) => cluster), ...clusters, ...mirrors.map(mirrorClusterName)];
}

function routeAction(route: Route): RouteAction | undefined {
  return route.action?.$case === 'route' ? route.action.value : undefined;
}
