/**
 * A pod's inbound chains as clients of its own node meet them, where some of these clients are taught: a request that comes with
 * a class, on a connection that says whose it is, goes to the taught copy of the cluster, which writes the lesson. A caller
 * from elsewhere has no such connection, whatever it writes into its headers.
 */
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HeaderMatcher, RouteMatch, type Route } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { FilterStateMatcher } from '../../proto/generated/envoy/type/matcher/v3/filter_state.js';
import { contentHash } from '../xds/resource-type.js';
import type { FoldedInbound } from '../proxy/fold-inbound.js';
import { pooledBy } from '../proxy/filter-state.js';
import { CLASS_HEADER, CLIENT_STATE, CONNECTION_STATE, LESSON_HEADER } from './names.js';
import { taughtName } from './taught-clusters.js';
import { changeManager } from './taught-listeners.js';

/**
 * The connection to this chain is inside Envoy and its client's own. Nobody but Envoy can end it, who does not see when the client
 * goes: so it ends when it was idle for so long. What it has opened to the server stays the client's, for the next one.
 */
const IDLE = { seconds: 60n, nanos: 0 };
const OF_ONE_CLIENT = pooledBy('underpass.pool', 'underpass.pool', `%CEL('${CLASS_HEADER}' in request.headers ? filter_state['${CONNECTION_STATE}'] : '')%`);

/** @param canTeach whether there is a taught copy of one of the pod's own clusters */
export function taughtInbound(folded: FoldedInbound, canTeach: (cluster: string) => boolean): FoldedInbound {
  const mesh = folded.mesh.map((chain): FilterChain => changeManager(chain, (manager) => {
    if (manager.route_specifier?.$case !== 'route_config') return;
    const table = manager.route_specifier.value;
    const given = manager.common_http_protocol_options ?? HttpConnectionManager.fromPartial({ common_http_protocol_options: {} }).common_http_protocol_options!;
    manager.common_http_protocol_options = { ...given, idle_timeout: given.idle_timeout ?? IDLE };
    manager.http_filters.splice(-1, 0, OF_ONE_CLIENT);
    table.request_headers_to_remove.push(LESSON_HEADER);
    for (const host of table.virtual_hosts) host.routes = host.routes.flatMap((route) => [...taughtRoute(route, canTeach), { ...route, request_headers_to_remove: [...route.request_headers_to_remove, CLASS_HEADER] }]);
  }));
  const direct = folded.direct.map((chain): FilterChain => changeManager(chain, ({ route_specifier: specifier }) => {
    if (specifier?.$case === 'route_config') specifier.value.request_headers_to_remove.push(LESSON_HEADER, CLASS_HEADER);
  }));
  const hash = contentHash(Listener, { ...Listener.fromPartial({}), filter_chains: [...direct, ...mesh] });
  return { ...folded, direct, mesh, hash };
}

function taughtRoute(route: Route, canTeach: (cluster: string) => boolean): Route[] {
  const { action, match } = route;
  if (action?.$case !== 'route' || !match || action.value.request_mirror_policies.length > 0) return [];
  const specifier = action.value.cluster_specifier;
  if (specifier?.$case !== 'cluster' || !canTeach(specifier.value)) return [];
  const ofClient: RouteMatch = {
    ...match,
    headers: [...match.headers, HeaderMatcher.fromPartial({ name: CLASS_HEADER, header_match_specifier: { $case: 'present_match', value: true } })],
    filter_state: [...match.filter_state, FilterStateMatcher.fromPartial({ key: CLIENT_STATE, matcher: { $case: 'string_match', value: { match_pattern: { $case: 'safe_regex', value: { regex: '.+' } } } } })],
  };
  return [{ ...route, match: ofClient, action: { ...action, value: { ...action.value, cluster_specifier: { ...specifier, value: taughtName(specifier.value) } } } }];
}
