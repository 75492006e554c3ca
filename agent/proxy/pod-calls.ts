/**
 * What pods open to the own address of a pod of their node whose policy Envoy judges: in plaintext over the network nobody
 * would know there who calls, so the kernel leads it to the caller's own listener instead (`call_pod` in bpf/connect.h), under
 * an address that only says whom it is for. From there it goes to the other pod's inbound chains, with the caller's identity,
 * as what is opened to a service does. No route is applied on the way, as ztunnels apply none to pods' addresses.
 */
import { isIPv6 } from 'node:net';
import { Cluster, Cluster_DiscoveryType } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { CidrRange } from '../../proto/generated/envoy/config/core/v3/address.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain, ListenerFilter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { OriginalDst } from '../../proto/generated/envoy/extensions/filters/listener/original_dst/v3/original_dst.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { pack } from '../../common/xds/any.js';
import { contentHash } from '../xds/resource-type.js';
import { narrowed } from './chain-match.js';
import { sharedAddress } from './filter-state.js';
import { internalAddress, ORIGINAL_DST } from './fold-endpoints.js';
import { calledBy } from './fold-inbound.js';
import { blackHole, OUTBOUND_PORT, type FoldedListeners } from './fold-listeners.js';
import { unlimited } from './hbone-terminate.js';
import { inspectionChain } from './inspection.js';
import { internalSocket } from './internal-endpoints.js';
import { RAW_BUFFER } from './fold-identity.js';
import { podClusterName } from './pod-listener.js';
import type { Entry } from './snapshot.js';

/** In which the kernel marks addresses; nothing else that is captured is opened to one of these. */
const MARKS: readonly CidrRange[] = [{ address_prefix: '127.0.0.0', prefix_len: 8 }, { address_prefix: '100::', prefix_len: 64 }];
/** The internal listener that knows the pods by their marked addresses. */
const LISTENER = 'pods';
/** The same for callers that are waypoints: what they open does not come back to them. */
const FROM_WAYPOINTS = 'pods/from-waypoints';

/** As `mark_pod` in bpf/pair.h makes it. */
export function markedAddress(address: string): string {
  if (!isIPv6(address)) return `127.${address.split('.').slice(1).join('.')}`;
  const [head = '', tail] = address.split('::');
  const left = head.split(':').filter((group) => group !== '');
  const right = (tail ?? '').split(':').filter((group) => group !== '');
  const groups = tail === undefined ? left : [...left, ...Array<string>(8 - left.length - right.length).fill('0'), ...right];
  return new URL(`http://[100::${groups.slice(4).join(':')}]`).hostname.slice(1, -1);
}

/** A class's listeners with a way for such calls, on whatever port. @param fromWaypoint the class's pods are a waypoint's */
export function withPodCalls(folded: FoldedListeners, fromWaypoint: boolean): FoldedListeners {
  // A chain for addresses on any port is not looked at for a port that has chains of its own.
  const listened = new Set(folded.chains.flatMap(({ filter_chain_match: match }) => match?.destination_port ?? []));
  listened.delete(OUTBOUND_PORT);
  const to = fromWaypoint ? FROM_WAYPOINTS : LISTENER;
  const chains = [0, ...listened].map((port) => inspectionChain(`pods/${port || 'others'}`, to, narrowed(undefined, port || undefined, MARKS)));
  return { ...folded, chains: [...folded.chains, ...chains] };
}

/** A pod that is called by its own address. */
export interface CalledPod {
  uid: string;
  addresses?: readonly string[];
  /** The internal listener that it is reached by. */
  inbound: string;
  /** Its waypoint's, for all that is opened to its addresses. */
  waypoint?: string;
}

export interface PodCalls {
  listeners: Entry[];
  clusters: Entry[];
}

/** Where the calls go. @param fromWaypoints some of the callers are waypoints */
export function podCallEntries(given: readonly CalledPod[], fromWaypoints: boolean): PodCalls {
  // In whatever order an agent hears of them: the next one's listeners are to have the same bytes.
  const pods = [...given].sort((a, b) => (a.uid < b.uid ? -1 : 1));
  const entries = [LISTENER, ...(fromWaypoints ? [FROM_WAYPOINTS] : [])].map((name) => ({ listener: callsListener(name, pods, ({ waypoint }) => name === LISTENER && waypoint !== undefined), cluster: toListener(name, name) }));
  return {
    listeners: entries.map(({ listener }) => listener),
    clusters: [...entries.map(({ cluster }) => cluster), ...pods.flatMap(({ uid, addresses = [], inbound, waypoint }) => [...directCalls(uid, addresses, inbound), ...(waypoint === undefined ? [] : [toListener(throughWaypoint(uid), waypoint)])])],
  };
}

/** A pod's listener is told by which family it is called, and shows its program the caller's address of that one. */
function directCalls(uid: string, addresses: readonly string[], inbound: string): Entry[] {
  const byName = new Map(addresses.map((address) => [callCluster(uid, address), address]));
  return [...byName].map(([name, address]) => toListener(name, inbound, calledBy(address)));
}

function callCluster(uid: string, address: string): string {
  return podClusterName(uid, isIPv6(address) ? 'calls-ipv6' : 'calls');
}

function throughWaypoint(uid: string): string {
  return podClusterName(uid, 'calls-through-waypoint');
}

function callsListener(name: string, pods: readonly CalledPod[], isThroughWaypoint: (pod: CalledPod) => boolean): Entry {
  const byMark = new Map<string, { address: string; pod: CalledPod }[]>();
  for (const pod of pods) {
    for (const address of pod.addresses ?? []) {
      const mark = markedAddress(address);
      byMark.set(mark, [...(byMark.get(mark) ?? []), { address, pod }]);
    }
  }
  const chains = [...byMark].flatMap(([mark, [found, ...others]]): FilterChain[] => {
    // Two pods that look alike can't be told apart: neither is reached.
    if (!found || others.length > 0) return [];
    const { address, pod } = found;
    const match = narrowed(undefined, undefined, [{ address_prefix: mark, prefix_len: isIPv6(mark) ? 128 : 32 }]);
    const meant = sharedAddress('underpass.original_dst', { [`${ORIGINAL_DST}.local_ip`]: `${isIPv6(address) ? `[${address}]` : address}:%DOWNSTREAM_LOCAL_PORT%` });
    const proxy = TcpProxy.fromPartial({ stat_prefix: name, cluster_specifier: { $case: 'cluster', value: isThroughWaypoint(pod) ? throughWaypoint(pod.uid) : callCluster(pod.uid, address) }, idle_timeout: { seconds: 0n, nanos: 0 } });
    const chain = FilterChain.fromPartial({ name: `${pod.uid}/${address}`, filters: [meant, { name: 'envoy.filters.network.tcp_proxy', config_type: { $case: 'typed_config', value: pack(TcpProxy, proxy) } }] });
    return [{ ...chain, filter_chain_match: match }];
  });
  const listener = Listener.fromPartial({
    name,
    stat_prefix: name,
    listener_specifier: { $case: 'internal_listener', value: {} },
    listener_filters: [ListenerFilter.fromPartial({ name: ORIGINAL_DST, config_type: { $case: 'typed_config', value: pack(OriginalDst, OriginalDst.fromPartial({})) } })],
  });
  // Envoy wants one at least, and who is not known is not reached.
  listener.filter_chains = [blackHole('unknown', narrowed(undefined, OUTBOUND_PORT, [])), ...chains];
  return { name, version: contentHash(Listener, listener), any: pack(Listener, listener), needs: [] };
}

function toListener(name: string, listener: string, told: Readonly<Record<string, string>> = {}): Entry {
  const cluster = Cluster.fromPartial({
    name,
    cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.STATIC },
    connect_timeout: { seconds: 5n, nanos: 0 },
    circuit_breakers: unlimited,
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [{ host_identifier: { $case: 'endpoint', value: { address: internalAddress(listener) } }, metadata: { filter_metadata: { [ORIGINAL_DST]: told } } }] }] },
  });
  cluster.transport_socket = internalSocket(RAW_BUFFER);
  return { name, version: contentHash(Cluster, cluster), any: pack(Cluster, cluster), needs: [] };
}
