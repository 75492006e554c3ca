/** Which way a connection of a pod would take, and why: the connect hook's own questions (bpf/connect.h), asked of the live maps. */
import { isIP, isIPv6 } from 'node:net';
import { UnderpassError } from '../../common/errors.js';
import type { KernelPod } from '../dataplane/kernel.js';
import { decodeAddress, encodeAddress } from '../dataplane/kernel-codec.js';
import type { PolicyAnswer } from '../dataplane/kernel-policies.js';
import type { LiveService } from '../dataplane/kernel-services.js';
import type { ExplainedHttp } from '../http/explain-http.js';
import type { WaypointTable } from '../proxy/waypoint-table.js';
import { probationOf, type PodName, type PodProbation } from '../dataplane/probation.js';
import type { ServiceResolver } from './service-resolver.js';

/**
 * `endpoint`: to one of the service's, without a proxy. `pod`: to the pod that has the address. `envoy`: through the node's.
 * `waypoint`:
 * through Envoy to the destination's waypoint. `sidecar`: through the pod's own. `refused`: ECONNREFUSED. `untouched`: as without a mesh.
 */
export type ConnectWay = 'endpoint' | 'pod' | 'envoy' | 'waypoint' | 'sidecar' | 'refused' | 'untouched';

export interface ExplainedAddress {
  address: string;
  way: ConnectWay;
  reasons: string[];
  /** From which one is drawn. */
  endpoints?: LiveService['endpoints'];
  /** Of pods of this node that it may lead to: what they make of the caller. */
  destinations?: ExplainedDestination[];
}

export interface ExplainedDestination {
  /** `namespace/name` */
  pod: string;
  address: string;
  port: number;
  policy: ExplainedPolicy;
  /** Whether the two sockets are moved by the kernel once they are connected; absent where a proxy is between them. */
  probation?: { listener: PodProbation | undefined; clients: PodProbation[] };
}

export interface ExplainedPolicy {
  /** `none`: the kernel has no policy for the pod. `unknown`: it can't judge by the pod's, and Envoy does. */
  answer: 'none' | 'allow' | 'deny' | 'unknown';
  reason: string;
  /** Who is asked. What comes by the node's Envoy, or is led to it on arrival, it judges by the same policies, and by those of L7. */
  judge: 'kernel' | 'envoy';
}

export interface Explanation {
  pod: string;
  host: string;
  port: number;
  /** Where the kernel's hooks of the pod are: its own cgroup, or the root of the hierarchy, since it has none. Absent without hooks. */
  hooks?: 'cgroup' | 'root';
  /** One for each address of the host. */
  addresses: ExplainedAddress[];
  /** Of its HTTP, where the way is Envoy's: what the kernel repeats; absent without the HTTP fast path. */
  http?: ExplainedHttp;
}

/** What the kernel's maps say. */
export interface LiveMaps {
  pods(): readonly (KernelPod & { isRooted?: boolean })[];
  /** The pod's that has the address. */
  netnsOf(address: string): bigint | undefined;
  /** Whether a connection to this address, a local pod's own, and port is left alone. */
  isPlain(address: string, port: number): boolean;
  readonly waypoints: WaypointTable;
  /** Whether the kernel judges callers of this node for a pod that is behind its proxy. */
  isJudged(uid: string, port: number): boolean;
  /** undefined: no policy. */
  judge(from: string, to: bigint, source: string, destination: string, port: number): PolicyAnswer | undefined;
  /** The policy that the deciding term is of, if that is known. */
  policyOf(uid: string, term: { version: bigint; term: number }): string | undefined;
  nameOf(uid: string): PodName | undefined;
  probation(): readonly PodProbation[];
}

export interface ExplainedPod {
  uid: string;
  name: string;
  namespace: string;
  ips: readonly string[];
  /** Why it is not enrolled. */
  reason?: string;
}

/** @throws UnderpassError `UNDERPASS_UNKNOWN_HOST` for a name that no service has, `UNDERPASS_BAD_ADDRESS` for an address with a zone */
export function explain(pod: ExplainedPod, host: string, port: number, maps: LiveMaps, resolver: ServiceResolver | undefined): Explanation {
  const addresses = addressesOf(host, pod, resolver);
  const own = maps.pods().find(({ uid }) => uid === pod.uid);
  return { pod: `${pod.namespace}/${pod.name}`, host, port, ...(own ? { hooks: own.isRooted ? 'root' : 'cgroup' } : {}), addresses: addresses.map((address) => withDestinations(pod, port, { address, ...wayTo(pod, address, port, maps, resolver) }, maps, resolver)) };
}

/** A pod's policy may refuse what its way leads to, and its probation keep what is let in from being moved by the kernel. */
function withDestinations(pod: ExplainedPod, port: number, explained: ExplainedAddress, maps: LiveMaps, resolver: ServiceResolver | undefined): ExplainedAddress {
  const { address, way, endpoints } = explained;
  // A waypoint judges its callers, and comes to the pods as itself.
  if (way === 'refused' || way === 'waypoint') return explained;
  const services = way === 'envoy' ? (resolver?.decisions(address, port, pod.namespace).services ?? []) : [];
  const targets = endpoints ?? (services.length > 0 ? resolver!.endpoints(services, address, port) : [{ address, port }]);
  // What rules lead to Envoy and no service has is passed on as it is.
  const isPassedOn = way === 'envoy' && services.length === 0 && maps.pods().some(({ uid, redirected }) => uid === pod.uid && redirected) && !resolver?.isNamed(address, port);
  const destinations = targets.flatMap((target) => destinationOf(pod, target, isPassedOn ? 'passed-on' : way, maps) ?? []);
  if (destinations.length === 0) return explained;
  const [only] = destinations;
  const isRefused = (way === 'pod' || way === 'endpoint') && destinations.length === targets.length && destinations.every(({ policy }) => policy.answer === 'deny' && policy.judge === 'kernel');
  return isRefused ? { ...explained, way: 'refused', reasons: [`the policy of ${only!.pod}: ${only!.policy.reason}`], destinations } : { ...explained, destinations };
}

function destinationOf(pod: ExplainedPod, { address, port }: { address: string; port: number }, way: ConnectWay | 'passed-on', maps: LiveMaps): ExplainedDestination | undefined {
  const netns = maps.netnsOf(address);
  const owner = netns === undefined ? undefined : maps.pods().find(({ netnsCookie }) => netnsCookie === netns);
  const name = owner && maps.nameOf(owner.uid);
  const source = pod.ips.find((ip) => isIPv6(ip) === isIPv6(address));
  if (!owner || !name || owner.uid === pod.uid || source === undefined) return undefined;
  const own = maps.judge(pod.uid, owner.netnsCookie, source, address, port);
  // What is opened straight to the pod and led to its proxy there arrives as plaintext from an address: without an identity.
  const isJudged = way !== 'envoy' && way !== 'passed-on' && maps.isJudged(owner.uid, port);
  const isAnonymous = way !== 'envoy' && own?.behindProxy === true && !isJudged;
  const answer = isAnonymous ? maps.judge('', owner.netnsCookie, source, address, port) : own;
  const policy = policyOf(answer, way === 'envoy' || (answer?.behindProxy && !isJudged) ? 'envoy' : 'kernel', isAnonymous, owner.uid, maps);
  const isDirect = way === 'endpoint' || way === 'pod';
  return { pod: `${name.namespace}/${name.name}`, address, port, policy, ...(isDirect ? { probation: probationOf(maps.probation(), pod, { ...name, address, port }) } : {}) };
}

function policyOf(answer: PolicyAnswer | undefined, judge: ExplainedPolicy['judge'], isAnonymous: boolean, uid: string, maps: LiveMaps): ExplainedPolicy {
  if (!answer) return { answer: 'none', reason: 'it takes all that comes', judge: 'kernel' };
  if (answer.term === undefined && judge === 'envoy') return { answer: 'unknown', reason: 'the kernel has no room for its policies, can\'t read them, or does not know the caller yet', judge };
  return { answer: answer.allowed ? 'allow' : 'deny', reason: `${reasonOf(answer, uid, maps)}${isAnonymous ? ' (the caller arrives in plaintext, and so without an identity)' : ''}`, judge };
}

/** Istio's names for what istiod and pilot make of a PeerAuthentication that says STRICT. */
const STRICT_POLICY = /\/(?:istio_converted_static_strict|converted_peer_authentication_.+)$/;

function reasonOf({ term, version, allowed }: PolicyAnswer, uid: string, maps: LiveMaps): string {
  if (term === undefined) return 'it can\'t be judged by, or does not know the caller yet: nobody new is let in';
  if (term < 0) return allowed ? 'no DENY policy fits, and there is no ALLOW policy' : 'no ALLOW policy fits';
  const name = maps.policyOf(uid, { version, term });
  if (name === undefined) return 'by a policy that is just being replaced';
  return STRICT_POLICY.test(name) ? `PeerAuthentication STRICT (${name}): callers without an identity of the mesh are refused` : `${name} fits`;
}

function addressesOf(host: string, { namespace, ips }: ExplainedPod, resolver: ServiceResolver | undefined): string[] {
  // In the spelling that the tables have, mapped IPv4 as IPv4: so the hooks see it.
  if (isIP(host)) return [decodeAddress(encodeAddress(host))];
  const services = resolver?.decisions(host, 0, namespace).services ?? [];
  if (services.length === 0) throw new UnderpassError('UNDERPASS_UNKNOWN_HOST', `explaining a connection to ${host}: expected an IP address, or a host name that WDS has a service for`);
  const vips = [...new Set(services.flatMap((service) => resolver!.vips(service, ips)))];
  if (vips.length === 0) throw new UnderpassError('UNDERPASS_UNKNOWN_HOST', `explaining a connection to ${host}: the service has no address of its own, its name stands for its pods' addresses; ask for one of them`);
  return vips;
}

function wayTo(pod: ExplainedPod, address: string, port: number, maps: LiveMaps, resolver: ServiceResolver | undefined): Omit<ExplainedAddress, 'address'> {
  const own = maps.pods().find(({ uid }) => uid === pod.uid);
  if (!own) return { way: 'untouched', reasons: [`the pod is not in the kernel's tables${pod.reason === undefined ? '' : `: ${pod.reason}`}`] };
  if (/^127\.|^::1$|^0\.0\.0\.0$|^::$/.test(address) || own.addresses.includes(address)) return { way: 'untouched', reasons: ['the pod talks to itself'] };
  if (/^fe[89ab]/.test(address)) return { way: 'untouched', reasons: ['it is a link-local address, which means something with its interface alone'] };
  if (!own.capture) return own.redirected ? { way: own.mode === 'node' ? 'envoy' : 'sidecar', reasons: ['iptables redirect the pod\'s connections'] } : { way: 'untouched', reasons: ['the pod\'s connections are not captured'] };
  if (isIPv6(address) && !own.addresses.some((each) => isIPv6(each))) return { way: 'untouched', reasons: ['the pod has no IPv6 address, and so Envoy no listener for it'] };
  if (own.mode === 'sidecar') return { way: 'sidecar', reasons: ['its label is underpass.io/mode=sidecar'] };
  const waypoint = toWaypoint(address, maps.waypoints);
  if (waypoint) return waypoint;
  const netns = maps.netnsOf(address);
  if (isProxys(pod, address, port, maps)) return { way: 'envoy', reasons: ['it is the own address of an enrolled pod whose policy Envoy judges: the connection is led there with the caller\'s identity, and no route is applied to it'] };
  if (netns !== undefined && isKernels(pod, netns, address, port, maps)) return { way: 'pod', reasons: ['it is the own address of an enrolled pod whose policy the kernel judges'] };
  if (netns !== undefined && maps.isPlain(address, port)) return { way: 'pod', reasons: [`it is an enrolled pod's own address, and no listener of the control plane asks for port ${port}`] };
  return toService(own, pod, address, port, netns, resolver);
}

/** Whether it is a pod of this node whose callers, also those of this node, Envoy judges. */
function isProxys(pod: ExplainedPod, address: string, port: number, maps: LiveMaps): boolean {
  const netns = maps.netnsOf(address);
  const owner = netns === undefined ? undefined : maps.pods().find(({ netnsCookie }) => netnsCookie === netns);
  return owner !== undefined && owner.uid !== pod.uid && maps.judge(pod.uid, owner.netnsCookie, address, address, port)?.behindProxy === true && !maps.isJudged(owner.uid, port);
}

/** Whether it is a pod of this node with a policy, and the kernel judges its callers of this node. */
function isKernels(pod: ExplainedPod, netns: bigint, address: string, port: number, maps: LiveMaps): boolean {
  const owner = maps.pods().find(({ netnsCookie }) => netnsCookie === netns);
  const answer = owner && owner.uid !== pod.uid ? maps.judge(pod.uid, owner.netnsCookie, address, address, port) : undefined;
  return answer !== undefined && (!answer.behindProxy || maps.isJudged(owner!.uid, port));
}

function toWaypoint(address: string, { waypoints, destinations }: WaypointTable): Omit<ExplainedAddress, 'address'> | undefined {
  const found = destinations.find(({ addresses }) => addresses.includes(address));
  if (!found) return undefined;
  const { endpoints = [], problem = 'it is not known' } = waypoints[found.waypoint] ?? {};
  const reasons = [`${found.hostname ?? 'the workload'} has a waypoint, ${found.waypoint}`];
  if (endpoints.length === 0) return { way: 'waypoint', reasons: [...reasons, `the waypoint has no endpoint: ${problem}; connections are closed, nothing goes around it`] };
  return { way: 'waypoint', reasons: [...reasons, `HBONE to one of ${endpoints.join(', ')}`] };
}

function toService(own: KernelPod, pod: ExplainedPod, address: string, port: number, netns: bigint | undefined, resolver: ServiceResolver | undefined): Omit<ExplainedAddress, 'address'> {
  const live = resolver?.live({ address, port });
  const { decisions = [], services = [] } = resolver?.decisions(address, port, pod.namespace) ?? {};
  const names = services.map(({ namespace, hostname }) => `${namespace}/${hostname}`).join(', ');
  const foreign = services.length > 0 ? resolver?.whyForeign(own) : undefined;
  if (foreign !== undefined) return { way: 'envoy', reasons: [foreign] };
  if (live?.kind === 'http' && !own.l7Auto) return { way: 'envoy', reasons: [`${names}: HTTP that asks for nothing at L7, and the pod's label underpass.io/l7 is not auto`] };
  if (live && live.endpoints.length === 0) return { way: 'refused', reasons: [`${names}: it has no endpoint`] };
  if (live) return { way: 'endpoint', reasons: [`${names}: ${live.kind === 'http' ? 'HTTP' : 'TCP'} for which a proxy has nothing to do, and all its endpoints are pods of this node`, ...(live.affinity ? ['its sessionAffinity is ClientIP: a pod keeps to one of them'] : [])], endpoints: live.endpoints };
  const reasons = decisions.flatMap(({ address: of, service, reason }) => (of === address && reason !== undefined ? [`${service}: ${reason}`] : []));
  if (reasons.length > 0) return { way: 'envoy', reasons };
  if (services.length > 0) return { way: 'envoy', reasons: [`${names}: ${decisions.length > 0 ? 'the kernel has not been told of it, or has no room' : `it has no port ${port}, or not all is known yet`}`] };
  return { way: 'envoy', reasons: [netns === undefined ? 'no service has this address: it is Envoy\'s to pass through or to refuse' : `it is an enrolled pod's own address, and a listener of the control plane asks for port ${port}`] };
}
