/**
 * Tables of routes for pods that the kernel learns from: the same ones, with the class of each route that it may repeat, and
 * with nothing of the fast path's headers on the others, whoever wrote it there.
 */
import { HeaderValueOption, HeaderValueOption_HeaderAppendAction as AppendAction, Metadata } from '../../proto/generated/envoy/config/core/v3/base.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { HeaderMatcher, Tracing, type Route, type RouteAction } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { pack } from '../../common/xds/any.js';
import { hashBytes } from '../xds/resource-type.js';
import type { EnvoyExtensions } from '../proxy/extensions.js';
import { foldRoutes, renameClusters, type Rename } from '../proxy/fold-routes.js';
import type { Entry } from '../proxy/snapshot.js';
import { FractionalPercent_DenominatorType as Denominator } from '../../proto/generated/envoy/type/v3/percent.js';
import { CLASS_HEADER, LESSON_HEADER, sampledName, TEACH_METADATA, TRIED_HEADER, type ClassOf, type DrawHeaders } from './names.js';
import { drawnName, taughtName } from './taught-clusters.js';

/** Classes may see different tables under one name, and have classes of their own in any case. */
export function taughtTableName(name: string, classKey: string): string {
  return `${name}~taught~${classKey}`;
}

export interface TaughtTable {
  table: RouteConfiguration;
  /** Whose taught copies its routes lead to, by the control plane's names. */
  clusters: ReadonlySet<string>;
}

export interface TaughtTableOptions {
  classOf: ClassOf;
  headers: DrawHeaders;
  canTeach(cluster: string): boolean;
  isTraced?: boolean;
  isWatched?(cluster: string): boolean;
}

/**
 * @param source as the control plane sent it
 * @param rename gives clusters the names that they have in this Envoy
 * @param canTeach whether there is a taught copy of a cluster of the control plane's
 * @param isTraced whether the kernel draws which requests are traced
 * @param isWatched whether the kernel ejects a cluster's endpoints
 * @throws FoldError when Envoy lacks what a route needs
 */
export function taughtTable(source: RouteConfiguration, extensions: EnvoyExtensions, rename: Rename, { classOf, headers, canTeach, isTraced = false, isWatched = () => false }: TaughtTableOptions): TaughtTable {
  const clusters = new Set<string>();
  const table = renameClusters(foldRoutes(source, extensions), rename);
  table.request_headers_to_remove = [...table.request_headers_to_remove, LESSON_HEADER, CLASS_HEADER];
  const draws = [headers.weight, sampledName(headers), headers.endpoint, ...(headers.other === undefined ? [] : [headers.other])];
  table.virtual_hosts.forEach((host, hostIndex) => {
    const mayBe = host.request_mirror_policies.length === 0 && table.request_mirror_policies.length === 0;
    host.routes = host.routes.flatMap((route, index): Route[] => {
      const original = actionOf(source.virtual_hosts[hostIndex]!.routes[index]!);
      const name = classOf(source.name, host.name, index);
      const targets = original && targetsOf(original);
      const untaught = { ...route, request_headers_to_remove: [...route.request_headers_to_remove, ...draws] };
      if (name === undefined || !targets || !mayBe || !targets.every(canTeach)) return [untaught];
      for (const target of targets) clusters.add(target);
      const watched = targets.map(isWatched);
      // What the kernel has drawn no endpoint for that it could learn of is as it would be without it.
      const taught = (weight: DrawHeaders): Route => telling(taughtRoute(route, name, weight), watched);
      const drawn = (weight: DrawHeaders): Route => telling(matching(drawing(route, weight, drawnName), headers.other!), watched);
      const ordinary = headers.other === undefined ? untaught : drawing(route, headers, drawnName);
      if (isTraced) return [...decided(taught, headers), ...(headers.other === undefined ? [] : decided(drawn, headers)), ordinary];
      return [taught(headers), ...(headers.other !== undefined && watched.includes(true) ? [drawn(headers)] : []), ordinary];
    });
  });
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

/** Of a request that comes with a draw the kernel has decided whether it is traced; of all others Envoy does. */
function decided(copy: (headers: DrawHeaders) => Route, headers: DrawHeaders): Route[] {
  const traced = copy({ ...headers, weight: sampledName(headers) });
  return [traces(matching(traced, sampledName(headers)), 100), traces(copy(headers), 0)];
}

function traces(route: Route, percent: number): Route {
  return { ...route, tracing: Tracing.fromPartial({ random_sampling: { numerator: percent, denominator: Denominator.HUNDRED }, custom_tags: route.tracing?.custom_tags ?? [] }) };
}

function matching(route: Route, header: string): Route {
  const isThere = HeaderMatcher.fromPartial({ name: header, header_match_specifier: { $case: 'present_match', value: true } });
  return { ...route, match: route.match && { ...route.match, headers: [...route.match.headers, isThere] } };
}

function taughtRoute(route: Route, name: string, headers: DrawHeaders): Route {
  const { filter_metadata = {}, ...rest } = route.metadata ?? {};
  return {
    ...matching(drawing(route, headers, taughtName), headers.endpoint),
    metadata: Metadata.fromPartial({ ...rest, filter_metadata: { ...filter_metadata, [TEACH_METADATA]: { class: name } } }),
  };
}

/**
 * Answers say how often Envoy has tried: the kernel has drawn the first endpoint only, and an answer of another says nothing of it.
 * @param watched by destination
 */
function telling(route: Route, watched: readonly boolean[]): Route {
  const action = actionOf(route)!;
  const specifier = action.cluster_specifier;
  const tried = HeaderValueOption.fromPartial({ header: { key: TRIED_HEADER, value: '%UPSTREAM_REQUEST_ATTEMPT_COUNT%' }, append_action: AppendAction.OVERWRITE_IF_EXISTS_OR_ADD });
  if (specifier?.$case !== 'weighted_clusters') return watched[0] ? { ...route, response_headers_to_add: [...route.response_headers_to_add, tried] } : route;
  const clusters = specifier.value.clusters.map((each, at) => (watched[at] ? { ...each, response_headers_to_add: [...each.response_headers_to_add, tried] } : each));
  return { ...route, action: { $case: 'route', value: { ...action, cluster_specifier: { ...specifier, value: { ...specifier.value, clusters } } } } };
}

/** To copies of its clusters. The draw's headers stay until the endpoint is chosen, which is after a route removes headers. */
function drawing(route: Route, { weight: header }: DrawHeaders, copyName: Rename): Route {
  const action = actionOf(route)!;
  const specifier = action.cluster_specifier;
  if (specifier?.$case === 'cluster') return { ...route, action: { $case: 'route', value: { ...action, cluster_specifier: { ...specifier, value: copyName(specifier.value) } } } };
  if (specifier?.$case !== 'weighted_clusters') return route;
  const value = { ...specifier.value, random_value_specifier: { $case: 'header_name' as const, value: header }, clusters: specifier.value.clusters.map((weight) => ({ ...weight, name: copyName(weight.name) })) };
  return { ...route, action: { $case: 'route', value: { ...action, cluster_specifier: { ...specifier, value } } } };
}
