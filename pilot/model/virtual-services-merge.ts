/**
 * How a delegate's routes take the place of a root VirtualService's route. Each keeps its own settings and takes the
 * root's where it has none; its conditions have to be narrower than the root's, else that route is dropped.
 */
import type { HttpMatchRequest, HttpRoute, StringMatch } from '../../common/kube/types.js';

export function mergeDelegate(root: HttpRoute, delegated: readonly HttpRoute[]): HttpRoute[] {
  return delegated.flatMap((route) => mergeRoute(root, route) ?? []);
}

const INHERITED = ['rewrite', 'directResponse', 'timeout', 'retries', 'fault', 'mirror', 'mirrorPercent', 'mirrorPercentage', 'mirrors', 'corsPolicy', 'headers'] as const;

function mergeRoute(root: HttpRoute, route: HttpRoute): HttpRoute | undefined {
  const match = mergeMatches(root.match ?? [], route.match ?? []);
  if (!match) return undefined;
  const inherited = Object.fromEntries(INHERITED.filter((key) => root[key] !== undefined && route[key] === undefined).map((key) => [key, root[key]]));
  const name = joined(root.name, route.name);
  return { ...route, ...inherited, match, ...(name ? { name } : {}) };
}

const joined = (root: string | undefined, own: string | undefined): string => [root, own].filter((part) => part).join('-');

/** Undefined: one of the delegate's conditions is within none of the root's. */
function mergeMatches(roots: readonly HttpMatchRequest[], own: readonly HttpMatchRequest[]): HttpMatchRequest[] | undefined {
  if (roots.length === 0 || own.length === 0) return [...(roots.length === 0 ? own : roots)];
  const merged: HttpMatchRequest[] = [];
  for (const match of own) {
    const wider = roots.filter((root) => !conflicts(root, match));
    if (wider.length === 0) return undefined;
    merged.push(...wider.map((root) => mergeMatch(root, match)));
  }
  return merged;
}

function mergeMatch(root: HttpMatchRequest, own: HttpMatchRequest): HttpMatchRequest {
  const name = joined(root.name, own.name);
  return {
    ...root,
    ...own,
    ...(name ? { name } : {}),
    headers: { ...root.headers, ...own.headers },
    withoutHeaders: { ...root.withoutHeaders, ...own.withoutHeaders },
    queryParams: { ...root.queryParams, ...own.queryParams },
    sourceLabels: { ...root.sourceLabels, ...own.sourceLabels },
    ...(own.gateways?.length ? {} : root.gateways ? { gateways: root.gateways } : {}),
  };
}

function conflicts(root: HttpMatchRequest, own: HttpMatchRequest): boolean {
  if ((['uri', 'scheme', 'method', 'authority'] as const).some((key) => outside(root[key], own[key]))) return true;
  for (const key of ['headers', 'withoutHeaders', 'queryParams'] as const) {
    for (const [name, match] of Object.entries(own[key] ?? {})) if (outside(root[key]?.[name], match)) return true;
  }
  if (Boolean(root.ignoreUriCase) !== Boolean(own.ignoreUriCase)) return true;
  if (root.port && own.port && root.port !== own.port) return true;
  // A root that names a namespace wants the delegate to name it too.
  if (root.sourceNamespace && own.sourceNamespace !== root.sourceNamespace) return true;
  for (const [key, value] of Object.entries(own.sourceLabels ?? {})) if (root.sourceLabels?.[key] !== undefined && root.sourceLabels[key] !== value) return true;
  return Boolean(root.gateways?.length && own.gateways?.length && !own.gateways.every((gateway) => root.gateways!.includes(gateway)));
}

/** Whether something may match `own` that `root` would not let through; regular expressions can't be compared. */
function outside(root: StringMatch | undefined, own: StringMatch | undefined): boolean {
  if (!root || !own) return false;
  if (root.regex || own.regex) return Boolean((root.regex ?? root.prefix ?? root.exact) && (own.regex ?? own.prefix ?? own.exact));
  if (root.exact) return own.exact !== root.exact;
  if (root.prefix) return !(own.prefix || own.exact || '').startsWith(root.prefix);
  return true;
}
