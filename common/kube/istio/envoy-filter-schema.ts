/** EnvoyFilter and ProxyConfig. What the patches hold is Envoy's own, checked against its messages by pilot. */
import { anything, choice, ignored, integer, list, object, open, port, stringMap, text, withCheck, word, type Report, type Schema } from '../schema.js';
import { pattern, policySelector, targetRef, workloadSelector } from './fields.js';
import type { EnvoyFilter, EnvoyFilterPatch } from './envoy-filter.js';

const MANAGER = 'envoy.filters.network.http_connection_manager';
const ANY_PORT = integer(0, 65_535);

const filterMatch = object({ name: text, subFilter: object({ name: text }) });

const match = object({
  context: choice('ANY', 'SIDECAR_INBOUND', 'SIDECAR_OUTBOUND', 'GATEWAY', 'WAYPOINT'),
  proxy: object({ proxyVersion: pattern, metadata: stringMap }),
  listener: object({
    portNumber: ANY_PORT,
    portName: ignored(text, 'Istio does not act on it either'),
    name: text,
    listenerFilter: text,
    filterChain: object({ name: text, sni: text, transportProtocol: text, applicationProtocols: text, destinationPort: ANY_PORT, filter: filterMatch }),
  }),
  routeConfiguration: object({
    portNumber: ANY_PORT,
    portName: text,
    gateway: text,
    name: text,
    vhost: object({ name: text, domainName: text, route: object({ name: text, action: choice('ANY', 'ROUTE', 'REDIRECT', 'DIRECT_RESPONSE') }) }),
  }),
  cluster: object({ portNumber: ANY_PORT, service: text, subset: text, name: text }),
  waypoint: object({ portNumber: port, route: object({ name: text }), filter: filterMatch }),
});
const exclusiveMatch: Schema = { ...match, atMostOne: [['listener', 'routeConfiguration', 'cluster', 'waypoint']] } as Schema;

const APPLY_TO = ['LISTENER', 'FILTER_CHAIN', 'NETWORK_FILTER', 'HTTP_FILTER', 'ROUTE_CONFIGURATION', 'VIRTUAL_HOST', 'HTTP_ROUTE', 'CLUSTER', 'EXTENSION_CONFIG', 'BOOTSTRAP', 'LISTENER_FILTER'];

/** Which kind of match goes with which object. */
const MATCH_OF: Record<string, 'listener' | 'routeConfiguration' | 'cluster'> = {
  LISTENER: 'listener', FILTER_CHAIN: 'listener', NETWORK_FILTER: 'listener', HTTP_FILTER: 'listener', LISTENER_FILTER: 'listener',
  ROUTE_CONFIGURATION: 'routeConfiguration', VIRTUAL_HOST: 'routeConfiguration', HTTP_ROUTE: 'routeConfiguration', CLUSTER: 'cluster',
};

function checkPatch({ applyTo, match: where, patch }: EnvoyFilterPatch, report: Report, warn: Report): void {
  if (where?.waypoint && where.context !== 'WAYPOINT') report('found a waypoint match, expected context WAYPOINT with it', ['match', 'waypoint']);
  if (patch?.operation !== 'REMOVE' && !patch?.value) report('found nothing, this field is required unless the operation is REMOVE', ['patch', 'value']);
  const expected = MATCH_OF[applyTo ?? ''];
  for (const kind of ['listener', 'routeConfiguration', 'cluster'] as const) {
    if (where?.[kind] && expected && kind !== expected) report(`found a match of ${kind} with ${applyTo}, expected ${expected}`, ['match', kind]);
  }
  const filter = where?.listener?.filterChain?.filter;
  if (!filter) return;
  const path = ['match', 'listener', 'filterChain', 'filter'];
  if (applyTo === 'LISTENER' || applyTo === 'FILTER_CHAIN') warn(`found a match of a filter, which has no effect with ${applyTo}`, path);
  if (!filter.name) report('found nothing, expected the name of a network filter', [...path, 'name']);
  if (!filter.subFilter) return;
  if (applyTo !== 'HTTP_FILTER') report(`found a match of an HTTP filter with ${applyTo}, expected HTTP_FILTER`, [...path, 'subFilter']);
  if (filter.name && filter.name !== MANAGER && filter.name !== 'envoy.http_connection_manager') report(`found "${filter.name}", expected ${MANAGER} with subFilter`, [...path, 'name']);
  if (!filter.subFilter.name) report('found nothing, expected the name of an HTTP filter', [...path, 'subFilter', 'name']);
}

const OPERATIONS = ['MERGE', 'ADD', 'REMOVE', 'INSERT_BEFORE', 'INSERT_AFTER', 'INSERT_FIRST', 'REPLACE', 'MERGE_AND_REPLACE_LIST'];

const patch = object({ operation: choice(...OPERATIONS), value: open({}), filterClass: choice('UNSPECIFIED', 'AUTHN', 'AUTHZ', 'STATS') }, ['operation']);

export const envoyFilter: Schema = withCheck<EnvoyFilter['spec']>(
  object({
    workloadSelector,
    targetRefs: list(targetRef),
    configPatches: list(withCheck<EnvoyFilterPatch>(object({ applyTo: choice(...APPLY_TO), match: exclusiveMatch, patch }, ['applyTo', 'patch']), checkPatch)),
    priority: integer(-0x8000_0000, 0x7fff_ffff),
  }),
  ({ workloadSelector: selector, targetRefs, configPatches }, report, warn) => {
    if (selector && targetRefs?.length) report('found workloadSelector and targetRefs, expected one of them', ['targetRefs']);
    if (!configPatches?.length) warn('found no patch: nothing is changed', ['configPatches']);
  },
);

export const proxyConfig: Schema = object({
  selector: policySelector,
  concurrency: integer(0, 0x7fff_ffff),
  environmentVariables: { type: 'map', values: anything },
  image: object({ imageType: word }),
});
