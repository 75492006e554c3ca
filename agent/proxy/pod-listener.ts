/** The one listener of a pod's outbound side, inside the pod's network namespace. */
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { ListenerFilter, ListenerFilterChainMatchPredicate, type FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { TrafficDirection } from '../../proto/generated/envoy/config/core/v3/base.js';
import { OriginalDst } from '../../proto/generated/envoy/extensions/filters/listener/original_dst/v3/original_dst.js';
import { TlsInspector } from '../../proto/generated/envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.js';
import { HttpInspector } from '../../proto/generated/envoy/extensions/filters/listener/http_inspector/v3/http_inspector.js';
import { pack } from '../../common/xds/any.js';
import { contentHash } from '../xds/resource-type.js';
import { sharedString } from './filter-state.js';
import { NETNS_FILTER_STATE, socketAddress } from './fold-clusters.js';
import { OUTBOUND_PORT, type FoldedListeners } from './fold-listeners.js';
import type { Entry } from './snapshot.js';

export interface ListenerPod {
  uid: string;
  netnsPath: string;
  /** The pod has an IPv6 address, so [::1]:15001 exists in its namespace. */
  ipv6: boolean;
}

/**
 * How long a connection to a port whose protocol is sniffed may stay silent before it is treated as a protocol in which
 * the server speaks first. Ports that are declared as TCP are never sniffed and do not wait.
 */
const SNIFF_TIMEOUT_SECONDS = 1;

export function podListenerName(uid: string): string {
  return `pod/${uid}/outbound`;
}

/** `listener.<this>.downstream_cx_active` counts the pod's connections. */
export function podStatPrefix(uid: string): string {
  return `pod_${uid}`;
}

export function podListenerKey(pod: ListenerPod): string {
  return JSON.stringify([pod.uid, pod.netnsPath, pod.ipv6]);
}

/** @param needs RDS names that the chains refer to */
export function podListener(pod: ListenerPod, folded: FoldedListeners, needs: readonly string[]): Entry {
  const name = podListenerName(pod.uid);
  const netns = sharedString('underpass.upstream_netns', NETNS_FILTER_STATE, pod.netnsPath);
  const inPod = (chain: FilterChain): FilterChain => ({ ...chain, filters: [netns, ...chain.filters] });
  const listener = Listener.fromPartial({
    name,
    stat_prefix: podStatPrefix(pod.uid),
    address: socketAddress('127.0.0.1', OUTBOUND_PORT, pod.netnsPath),
    additional_addresses: pod.ipv6 ? [{ address: socketAddress('::1', OUTBOUND_PORT, pod.netnsPath) }] : [],
    traffic_direction: TrafficDirection.OUTBOUND,
    listener_filters_timeout: { seconds: BigInt(SNIFF_TIMEOUT_SECONDS) },
    continue_on_listener_filters_timeout: true,
  });
  listener.listener_filters = listenerFilters(folded);
  listener.filter_chains = folded.chains.map(inPod);
  listener.default_filter_chain = inPod(folded.defaultChain);
  listener.access_log = folded.accessLog;
  return { name, version: contentHash(Listener, listener), any: pack(Listener, listener), needs };
}

function listenerFilters({ tlsPorts, httpPorts }: FoldedListeners): ListenerFilter[] {
  const filters = [listenerFilter('envoy.filters.listener.original_dst', pack(OriginalDst, OriginalDst.fromPartial({})))];
  if (tlsPorts.length > 0) filters.push({ ...listenerFilter('envoy.filters.listener.tls_inspector', pack(TlsInspector, TlsInspector.fromPartial({}))), filter_disabled: portsExcept(tlsPorts) });
  if (httpPorts.length > 0) filters.push({ ...listenerFilter('envoy.filters.listener.http_inspector', pack(HttpInspector, HttpInspector.fromPartial({}))), filter_disabled: portsExcept(httpPorts) });
  return filters;
}

function listenerFilter(name: string, config: ReturnType<typeof pack>): ListenerFilter {
  return ListenerFilter.fromPartial({ name, config_type: { $case: 'typed_config', value: config } });
}

/** Runs after original_dst, so the port is the one that the client dialled. */
function portsExcept(ports: readonly number[]): ListenerFilterChainMatchPredicate {
  const rules = ports.map((port) => ({ rule: { $case: 'destination_port_range' as const, value: { start: port, end: port + 1 } } }));
  const [only] = rules;
  const any = rules.length === 1 && only ? only : { rule: { $case: 'or_match' as const, value: { rules } } };
  return ListenerFilterChainMatchPredicate.fromPartial({ rule: { $case: 'not_match', value: any } });
}
