/**
 * Tables of routes for pods that the kernel learns from: the same ones, with the class of each route that it may repeat, and
 * with nothing of the fast path's headers on the others, whoever wrote it there.
 */
import { Metadata } from '../../proto/generated/envoy/config/core/v3/base.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { Route, RouteAction } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { pack } from '../../common/xds/any.js';
import { hashBytes } from '../xds/resource-type.js';
import type { EnvoyExtensions } from '../proxy/extensions.js';
import { foldRoutes, renameClusters, type Rename } from '../proxy/fold-routes.js';
import type { Entry } from '../proxy/snapshot.js';
import { CLASS_HEADER, LESSON_HEADER, TEACH_METADATA, type ClassOf, type DrawHeaders } from './names.js';
import { taughtName } from './taught-clusters.js';

/** Classes may see different tables under one name, and have classes of their own in any case. */
export function taughtTableName(name: string, classKey: string): string {
  return `${name}~taught~${classKey}`;
}

export interface TaughtTable {
  table: RouteConfiguration;
  /** Whose taught copies its routes lead to, by the control plane's names. */
  clusters: ReadonlySet<string>;
}

/**
 * @param source as the control plane sent it
 * @param rename gives clusters the names that they have in this Envoy
 * @param canTeach whether there is a taught copy of a cluster of the control plane's
 * @throws FoldError when Envoy lacks what a route needs
 */
export function taughtTable(source: RouteConfiguration, extensions: EnvoyExtensions, rename: Rename, { classOf, headers, canTeach }: { classOf: ClassOf; headers: DrawHeaders; canTeach: (cluster: string) => boolean }): TaughtTable {
  const clusters = new Set<string>();
  const table = renameClusters(foldRoutes(source, extensions), rename);
  table.request_headers_to_remove = [...table.request_headers_to_remove, LESSON_HEADER, CLASS_HEADER];
  table.virtual_hosts.forEach((host, hostIndex) => host.routes.forEach((route, index) => {
    const original = actionOf(source.virtual_hosts[hostIndex]!.routes[index]!);
    const name = classOf(source.name, host.name, index);
    const targets = original && targetsOf(original);
    if (name === undefined || !targets || host.request_mirror_policies.length > 0 || table.request_mirror_policies.length > 0 || !targets.every(canTeach)) {
      route.request_headers_to_remove = [...route.request_headers_to_remove, headers.weight, headers.endpoint];
      return;
    }
    for (const target of targets) clusters.add(target);
    teach(route, name, headers);
  }));
  return { table, clusters };
}

export function taughtTableEntry(name: string, table: RouteConfiguration): Entry {
  const any = pack(RouteConfiguration, { ...table, name });
  return { name, version: hashBytes(any.value), any, needs: [] };
}

function actionOf({ action }: Route): RouteAction | undefined {
  return action?.$case === 'route' ? action.value : undefined;
}

/** Undefined where it is not for the kernel to choose. */
function targetsOf({ cluster_specifier: specifier, request_mirror_policies }: RouteAction): string[] | undefined {
  if (request_mirror_policies.length > 0) return undefined;
  if (specifier?.$case === 'cluster') return [specifier.value];
  if (specifier?.$case !== 'weighted_clusters' || specifier.value.random_value_specifier || specifier.value.clusters.some(({ name }) => name === '')) return undefined;
  return specifier.value.clusters.map(({ name }) => name);
}

/** In place. The draw's headers stay until the endpoint is chosen, which is after a route removes headers. */
function teach(route: Route, name: string, headers: DrawHeaders): void {
  const { filter_metadata = {}, ...rest } = route.metadata ?? {};
  route.metadata = Metadata.fromPartial({ ...rest, filter_metadata: { ...filter_metadata, [TEACH_METADATA]: { class: name } } });
  const specifier = actionOf(route)?.cluster_specifier;
  if (specifier?.$case === 'cluster') specifier.value = taughtName(specifier.value);
  if (specifier?.$case !== 'weighted_clusters') return;
  specifier.value.random_value_specifier = { $case: 'header_name', value: headers.weight };
  for (const weight of specifier.value.clusters) weight.name = taughtName(weight.name);
}
