import { specCases } from '../testing.js';

const patch = (text: string): string => `{configPatches: [{${text}}]}`;
const PATCH = 'spec.configPatches[0]';
const ADD = 'patch: {operation: ADD, value: {name: a}}';
const MANAGER = 'envoy.filters.network.http_connection_manager';

specCases({
  apiVersion: 'networking.istio.io/v1alpha3',
  kind: 'EnvoyFilter',
  good: {
    'an HTTP filter before another': `{workloadSelector: {labels: {app: a}}, priority: -10, configPatches: [{applyTo: HTTP_FILTER, match: {context: SIDECAR_INBOUND, proxy: {proxyVersion: '^1\\.2.*'}, listener: {portNumber: 8080, filterChain: {filter: {name: ${MANAGER}, subFilter: {name: envoy.filters.http.router}}}}}, patch: {operation: INSERT_BEFORE, filterClass: AUTHZ, value: {name: a, typed_config: {"@type": b, anything: [1]}}}}]}`,
    'a removal': patch('applyTo: CLUSTER, match: {cluster: {service: a.b, portNumber: 80, subset: v1}}, patch: {operation: REMOVE}'),
    'a virtual host': patch(`applyTo: VIRTUAL_HOST, match: {context: GATEWAY, routeConfiguration: {gateway: a/b, vhost: {name: a:80, route: {action: ANY}}}}, patch: {operation: MERGE, value: {}}`),
  },
  bad: [
    ['no applyTo', patch(ADD), `${PATCH}.applyTo`, /required/],
    ['an unknown applyTo', patch(`applyTo: HTTP_FILTERS, ${ADD}`), `${PATCH}.applyTo`, /did you mean HTTP_FILTER/],
    ['no patch', patch('applyTo: CLUSTER'), `${PATCH}.patch`, /required/],
    ['no operation', patch('applyTo: CLUSTER, patch: {value: {}}'), `${PATCH}.patch.operation`, /required/],
    ['an unknown operation', patch('applyTo: CLUSTER, patch: {operation: INSERT, value: {}}'), `${PATCH}.patch.operation`, /expected one of MERGE/],
    ['no value', patch('applyTo: CLUSTER, patch: {operation: MERGE}'), `${PATCH}.patch.value`, /unless the operation is REMOVE/],
    ['a match of another kind', patch(`applyTo: CLUSTER, match: {listener: {}}, ${ADD}`), `${PATCH}.match.listener`, /expected cluster/],
    ['a match of listeners for routes', patch(`applyTo: HTTP_ROUTE, match: {listener: {}}, ${ADD}`), `${PATCH}.match.listener`, /expected routeConfiguration/],
    ['two matches', patch(`applyTo: BOOTSTRAP, match: {listener: {}, cluster: {}}, ${ADD}`), `${PATCH}.match`, /found listener and cluster/],
    ['a filter without a name', patch(`applyTo: NETWORK_FILTER, match: {listener: {filterChain: {filter: {}}}}, ${ADD}`), `${PATCH}.match.listener.filterChain.filter.name`, /name of a network filter/],
    ['a sub-filter of a network filter', patch(`applyTo: NETWORK_FILTER, match: {listener: {filterChain: {filter: {name: ${MANAGER}, subFilter: {name: a}}}}}, ${ADD}`), `${PATCH}.match.listener.filterChain.filter.subFilter`, /expected HTTP_FILTER/],
    ['a sub-filter of another filter', patch(`applyTo: HTTP_FILTER, match: {listener: {filterChain: {filter: {name: a, subFilter: {name: b}}}}}, ${ADD}`), `${PATCH}.match.listener.filterChain.filter.name`, /http_connection_manager/],
    ['a pattern of versions that is none', patch(`applyTo: CLUSTER, match: {proxy: {proxyVersion: "("}}, ${ADD}`), `${PATCH}.match.proxy.proxyVersion`, /regular expression/],
    ['a selector and targets', '{workloadSelector: {labels: {a: b}}, targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: a}], configPatches: []}', 'spec.targetRefs', /found workloadSelector and targetRefs/],
  ],
  warned: [
    ['a match that has no effect', patch(`applyTo: LISTENER, match: {listener: {filterChain: {filter: {name: a}}}}, ${ADD}`), `${PATCH}.match.listener.filterChain.filter`, /no effect with LISTENER/],
    ['no patch at all', '{configPatches: []}', 'spec.configPatches', /nothing is changed/],
  ],
});
