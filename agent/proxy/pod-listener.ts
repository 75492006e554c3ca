/** The one listener of a pod's outbound side, inside the pod's network namespace. */
import { isIPv6 } from 'node:net';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { TrafficDirection } from '../../proto/generated/envoy/config/core/v3/base.js';
import { pack } from '../../common/xds/any.js';
import { hashBytes } from '../xds/resource-type.js';
import { ofClient, type TaughtPod } from '../http/taught-listeners.js';
import { NODE_STATE, PEER_ADDRESS_STATE, POD_STATE, sharedStrings } from './filter-state.js';
import { NETNS_FILTER_STATE } from './fold-clusters.js';
import { socketAddress } from './fold-endpoints.js';
import { OUTBOUND_PORT, type FoldedListeners } from './fold-listeners.js';
import { sidecarId } from './fold-tracing.js';
import { DIRECT_TIMEOUT_MS, directInspection } from './inspection.js';
import type { ServiceAuthority } from './service-authorities.js';
import { MadeAny } from './made-any.js';
import { LDS, type Entry } from './snapshot.js';

export interface ListenerPod {
  uid: string;
  /** `NAMESPACE/NAME`, for logs. */
  name?: string;
  netnsPath: string;
  /** The pod has an IPv6 address, so [::1]:15001 exists in its namespace. */
  ipv6: boolean;
  /** The pod's own addresses, IPv4 before IPv6. */
  addresses?: readonly string[];
  /** Its SPIFFE id: what destinations on this node know the caller by. */
  identity?: string;
  /** Connections to it are redirected to its inbound listener, whether or not a policy still asks for that. */
  redirected?: boolean;
  /** False where a program of the pod's has the port that its callers would be redirected to. */
  canRedirect?: boolean;
  /** The hooks are there that tell its programs whom this Envoy calls for. */
  showsCallers?: boolean;
  /** HBONE can end in its namespace. */
  endsTunnels?: boolean;
  /** Of services that it serves: by these names HBONE reaches it, too. */
  services?: readonly ServiceAuthority[];
  /** What tunnels of its say about it, in ztunnel's form, and the network that it is in. */
  baggage?: string;
  network?: string;
  /** Its listener has no chain for which an internal listener does as well; see brief-listeners.ts. */
  brief?: boolean;
  /** The kernel is to learn from its requests; docs/http-fast-path.md. */
  taught?: TaughtPod;
}

/** Istio's name for a caller's SPIFFE id in filter state. */
export const PEER_PRINCIPAL = 'io.istio.peer_principal';
export const SOURCE_ADDRESS = 'underpass.source_address';
/** The same for the caller's address of each family: what the application is to see where it is reached by that family. */
export const SHOWN_SOURCE = { ipv4: 'underpass.shown_source.ipv4', ipv6: 'underpass.shown_source.ipv6' } as const;
export const BAGGAGE = 'underpass.baggage';
export const NETWORK = 'underpass.network';

export function podListenerName(uid: string): string {
  return `pod/${uid}/outbound`;
}

/** Where HBONE ends for the pod. */
export function podHboneName(uid: string): string {
  return `pod/${uid}/hbone`;
}

export function podOfListener(name: string): string | undefined {
  return /^pod\/([^/]+)\/(?:outbound|inbound|inbound-mesh\/.+|hbone)$/.exec(name)?.[1];
}

/** A cluster of the pod's own: its connections are opened in the pod's namespace. */
export function podClusterName(uid: string, name: string): string {
  return `pod/${uid}/${name}`;
}

/** `listener.<this>.downstream_cx_active` counts the pod's connections. */
export function podStatPrefix(uid: string): string {
  return `pod_${uid}`;
}

/** `http.<this>.downstream_rq_active` counts the tunnels that end at the pod. */
export function podTunnelStatPrefix(uid: string): string {
  return `pod_${uid}_hbone`;
}

export function podListenerKey(pod: ListenerPod): string {
  return JSON.stringify([pod.uid, pod.name, pod.netnsPath, pod.ipv6, pod.addresses, pod.identity, pod.baggage, pod.network, pod.showsCallers, `${pod.taught?.netnsCookie ?? ''}`]);
}

class PodListenerAny extends MadeAny {
  constructor(readonly pod: ListenerPod, readonly folded: FoldedListeners) {
    super(LDS, encodePodListener(pod, folded));
  }

  protected make(): Buffer {
    return encodePodListener(this.pod, this.folded);
  }
}

/** @param folded is not altered any more @param needs RDS names that the chains refer to */
export function podListener(pod: ListenerPod, folded: FoldedListeners, needs: readonly string[]): Entry {
  const any = new PodListenerAny(pod, folded);
  return { name: podListenerName(pod.uid), version: hashBytes(any.value), any, needs };
}

function encodePodListener(pod: ListenerPod, folded: FoldedListeners): Buffer {
  const name = podListenerName(pod.uid);
  const [address] = pod.addresses ?? [];
  const netns = sharedStrings('underpass.upstream_netns', {
    [NETNS_FILTER_STATE]: pod.netnsPath,
    ...(pod.name === undefined ? {} : { [POD_STATE]: pod.name }),
    ...(folded.isTraced && pod.name !== undefined ? { [NODE_STATE]: sidecarId(pod.name, address ?? '127.0.0.1') } : {}),
    ...(pod.identity === undefined ? {} : { [PEER_PRINCIPAL]: pod.identity }),
    ...(pod.baggage === undefined ? {} : { [BAGGAGE]: pod.baggage }),
    ...(pod.network === undefined ? {} : { [NETWORK]: pod.network }),
    ...(address === undefined ? {} : { [SOURCE_ADDRESS]: withPort(address), [PEER_ADDRESS_STATE]: address }),
    ...(pod.showsCallers ? shownSources(pod.addresses ?? []) : {}),
  });
  const inPod = (chain: FilterChain): FilterChain => (pod.taught ? ofClient(chain, pod.taught) : chain);
  const listener = Listener.fromPartial({
    name,
    stat_prefix: podStatPrefix(pod.uid),
    address: socketAddress('127.0.0.1', OUTBOUND_PORT, pod.netnsPath),
    additional_addresses: pod.ipv6 ? [{ address: socketAddress('::1', OUTBOUND_PORT, pod.netnsPath) }] : [],
    traffic_direction: TrafficDirection.OUTBOUND,
    listener_filters_timeout: { seconds: 0n, nanos: DIRECT_TIMEOUT_MS * 1_000_000 },
    continue_on_listener_filters_timeout: true,
  });
  listener.listener_filters = [netns, ...directInspection()];
  const chains = pod.brief ? folded.chains.filter((chain) => !folded.dispensable.has(chain.name)) : folded.chains;
  listener.filter_chains = chains.map(inPod);
  // The same in both, lest what it took be ended with it.
  listener.default_filter_chain = inPod(folded.others);
  listener.access_log = folded.accessLog;
  // Folded chains have their maps in order, so that equal listeners have equal bytes.
  return pack(Listener, listener).value;
}

function withPort(address: string): string {
  return isIPv6(address) ? `[${address}]:0` : `${address}:0`;
}

function shownSources(addresses: readonly string[]): Record<string, string> {
  const first = (six: boolean): string | undefined => addresses.find((address) => isIPv6(address) === six);
  const [ipv4, ipv6] = [first(false), first(true)];
  return { ...(ipv4 === undefined ? {} : { [SHOWN_SOURCE.ipv4]: withPort(ipv4) }), ...(ipv6 === undefined ? {} : { [SHOWN_SOURCE.ipv6]: withPort(ipv6) }) };
}
