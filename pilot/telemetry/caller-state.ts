/**
 * Filter state by which metrics and spans name a caller. Who comes by HBONE has said of its workload, in the request for the tunnel,
 * what ztunnels say there: `baggage` with its cluster, workload, canonical service and revision. As of what proxies say in a header
 * its namespace is its certificate's, so that a workload can give itself other names in its own namespace alone.
 */
import { UNKNOWN } from '../../common/telemetry/istio-metrics.js';
import { pack } from '../../common/xds/any.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { FilterStateValue, FilterStateValue_SharedWithUpstream } from '../../proto/generated/envoy/extensions/filters/common/set_filter_state/v3/value.js';
import { Config as SetFilterState } from '../../proto/generated/envoy/extensions/filters/http/set_filter_state/v3/set_filter_state.js';
import type { HttpFilter } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { editManagers } from './managers.js';
import { WORKLOAD_PARTS, type WorkloadPart } from './workload-metadata.js';

export const stateOf = (key: string): string => `%FILTER_STATE(${key}:PLAIN)%`;

/** Nothing is set where the format has no value. @param shared the connection within Envoy that this request leads to has it, too */
export function state(key: string, format: string, shared = false): FilterStateValue {
  return FilterStateValue.fromPartial({
    key: { $case: 'object_key', value: key },
    factory_key: 'envoy.string',
    value: { $case: 'format_string', value: { format: { $case: 'text_format_source', value: { specifier: { $case: 'inline_string', value: format } } }, omit_empty_values: true } },
    skip_if_empty: true,
    ...(shared ? { shared_with_upstream: FilterStateValue_SharedWithUpstream.ONCE } : {}),
  });
}

const extract = (from: string, pattern: string, max = ''): string => `%CEL(re.extract(${from}, '${pattern}', '\\\\1'))${max}%`;
/** By the caller's certificate. */
export const CALLER_NAMESPACE = extract('connection.uri_san_peer_certificate', '^spiffe://[^/]+/ns/([^/]+)/sa/.+$');

/** A value of baggage, as long as Kubernetes lets a name be. */
const said = (key: string): string => extract("request.headers['baggage']", `(?:^|,)${key}=([^,;]+)`, ':253');
/** As ztunnel writes them: the workload's key says what kind it is of. */
const KIND = 'k8s[.](?:deployment|daemonset|statefulset|replicaset|job|cronjob|pod)[.]name';
const SAID: Readonly<Record<WorkloadPart, string>> = { workload: said(KIND), namespace: CALLER_NAMESPACE, name: said('service[.]name'), revision: said('service[.]version'), cluster: said('k8s[.]cluster[.]name') };

export const tunnelState = (part: WorkloadPart): string => `underpass.tunnel.${part}`;

const tunnelCaller: HttpFilter = {
  name: 'underpass.caller',
  is_optional: false,
  disabled: false,
  // Of two for one key the last that has a value counts.
  config_type: { $case: 'typed_config', value: pack(SetFilterState, SetFilterState.fromPartial({ on_request_headers: WORKLOAD_PARTS.flatMap((part) => [state(tunnelState(part), UNKNOWN, true), state(tunnelState(part), SAID[part], true)]) })) },
};

/** Where tunnels end: what comes out of one knows whose it is. */
export function readTunnelCaller(chain: FilterChain): void {
  editManagers(chain, (manager) => void manager.http_filters.unshift(tunnelCaller));
}
