/** From what an EnvoyFilter says to patches, with everything that is wrong named by its place. */
import { RE2JS } from 're2js';
import type { Problem } from '../../common/kube/schema.js';
import type { EnvoyFilter, EnvoyFilterApplyTo, EnvoyFilterOperation, EnvoyFilterPatch, KubeObject } from '../../common/kube/types.js';
import { parse } from './registry.js';
import type { CompiledPatch, PatchContext } from './types.js';

const HTTP_FILTER = 'envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter';

const MESSAGES: Partial<Record<EnvoyFilterApplyTo, string>> = {
  LISTENER: 'envoy.config.listener.v3.Listener',
  FILTER_CHAIN: 'envoy.config.listener.v3.FilterChain',
  NETWORK_FILTER: 'envoy.config.listener.v3.Filter',
  LISTENER_FILTER: 'envoy.config.listener.v3.ListenerFilter',
  HTTP_FILTER,
  ROUTE_CONFIGURATION: 'envoy.config.route.v3.RouteConfiguration',
  VIRTUAL_HOST: 'envoy.config.route.v3.VirtualHost',
  HTTP_ROUTE: 'envoy.config.route.v3.Route',
  CLUSTER: 'envoy.config.cluster.v3.Cluster',
  EXTENSION_CONFIG: 'envoy.config.core.v3.TypedExtensionConfig',
};

/** The message that patches of this kind hold. */
export function valueMessageOf(applyTo: string | undefined): string | undefined {
  return MESSAGES[applyTo as EnvoyFilterApplyTo];
}

const FILTERS: readonly EnvoyFilterApplyTo[] = ['NETWORK_FILTER', 'HTTP_FILTER', 'LISTENER_FILTER'];
/** What has an order; of anything else an insertion is an addition. */
const ORDERED: readonly EnvoyFilterApplyTo[] = [...FILTERS, 'HTTP_ROUTE'];
const REPLACEABLE: readonly EnvoyFilterApplyTo[] = [...FILTERS, 'VIRTUAL_HOST'];
const OPERATIONS: readonly EnvoyFilterOperation[] = ['ADD', 'REMOVE', 'MERGE', 'MERGE_AND_REPLACE_LIST', 'INSERT_BEFORE', 'INSERT_AFTER', 'INSERT_FIRST', 'REPLACE'];
const ALL_CONTEXTS: readonly PatchContext[] = ['SIDECAR_INBOUND', 'SIDECAR_OUTBOUND', 'GATEWAY', 'WAYPOINT'];

export interface CompileResult {
  patches: CompiledPatch[];
  problems: Problem[];
}

/** Everything in an EnvoyFilter that Envoy's own messages do not have: a misspelt key, a wrong type, an operation without order. */
export function checkEnvoyFilter(object: KubeObject): Problem[] {
  return compilePatches((object as EnvoyFilter).spec?.configPatches ?? []).problems;
}

/** @param path of the list of patches in the object, for the problems */
export function compilePatches(written: readonly EnvoyFilterPatch[], path: readonly (string | number)[] = ['spec', 'configPatches']): CompileResult {
  const result: CompileResult = { patches: [], problems: [] };
  written.forEach((patch, index) => {
    const compiled = compileOne(patch, [...path, index], result.problems);
    if (compiled) result.patches.push(compiled);
  });
  return result;
}

function compileOne({ applyTo, match = {}, patch = {} }: EnvoyFilterPatch, path: readonly (string | number)[], problems: Problem[]): CompiledPatch | undefined {
  const before = problems.length;
  const wrong = (below: (string | number)[], message: string): void => void problems.push({ path: [...path, ...below], severity: 'error', message });
  const name = valueMessageOf(applyTo);
  if (!applyTo || !name) {
    wrong(['applyTo'], applyTo === 'BOOTSTRAP' ? "found BOOTSTRAP: a proxy's bootstrap is not this control plane's to change" : `found ${String(applyTo)}, expected one of ${Object.keys(MESSAGES).join(', ')}`);
    return undefined;
  }
  const operation = patch.operation as EnvoyFilterOperation;
  if (!OPERATIONS.includes(operation)) wrong(['patch', 'operation'], `found ${patch.operation ?? 'nothing'}, expected one of ${OPERATIONS.join(', ')}`);
  if (operation === 'REPLACE' && !REPLACEABLE.includes(applyTo)) wrong(['patch', 'operation'], `found REPLACE, which is for ${REPLACEABLE.join(', ')} only`);
  if (operation === 'MERGE_AND_REPLACE_LIST' && FILTERS.includes(applyTo)) wrong(['patch', 'operation'], `found MERGE_AND_REPLACE_LIST, which filters can't do; expected MERGE`);
  let value: CompiledPatch['value'];
  if (operation !== 'REMOVE') {
    if (patch.value === undefined || patch.value === null) wrong(['patch', 'value'], `found nothing, expected ${name}`);
    else {
      try {
        value = parse(name, patch.value);
      } catch (error) {
        wrong(['patch', 'value'], `not a ${name}: ${(error as Error).message}`);
      }
    }
  }
  const proxyVersion = match.proxy?.proxyVersion;
  let versionPattern: RE2JS | undefined;
  if (proxyVersion) {
    try {
      versionPattern = RE2JS.compile(proxyVersion);
    } catch (error) {
      wrong(['match', 'proxy', 'proxyVersion'], `found ${JSON.stringify(proxyVersion)}, expected a regular expression: ${(error as Error).message}`);
    }
  }
  if (problems.length > before) return undefined;
  const context = match.context ?? 'ANY';
  // A waypoint's listeners and routes are told apart by the services' ports alone.
  const { waypoint } = match;
  return {
    applyTo,
    operation: operation.startsWith('INSERT_') && !ORDERED.includes(applyTo) ? 'ADD' : operation,
    filterClass: patch.filterClass === 'UNSPECIFIED' ? undefined : patch.filterClass,
    contexts: new Set(context === 'ANY' ? ALL_CONTEXTS : [context]),
    proxyVersion: versionPattern,
    proxyMetadata: match.proxy?.metadata ?? {},
    listener: match.listener ?? (waypoint && { portNumber: waypoint.portNumber, ...(waypoint.filter ? { filterChain: { filter: waypoint.filter } } : {}) }) ?? {},
    route: match.routeConfiguration ?? (waypoint && { portNumber: waypoint.portNumber, ...(waypoint.route ? { vhost: { route: waypoint.route } } : {}) }) ?? {},
    cluster: match.cluster ?? {},
    value,
  };
}
