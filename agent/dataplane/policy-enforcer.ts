/**
 * Keeps the kernel's policies as the control plane has them, and ends connections that a change forbids. What comes to a pod
 * without a proxy's word is judged by the kernel; a policy that can't be read, or does not fit its tables, lets nobody new in.
 */
import { cgroupId, destroyTcpSockets, KernelError, tcpSockets, type TcpSocket } from '../../native/index.js';
import { Action } from '../../proto/generated/istio/security/authorization.js';
import { errorMessage } from '../../common/errors.js';
import { DEFAULT_TRUST_DOMAIN } from '../../common/identity/spiffe.js';
import type { PodRecord } from '../../common/lab-api.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { sleep } from '../../common/retry.js';
import type { Identity } from '../policy/authorization.js';
import { allows, compilePolicy, type CompiledPolicy } from '../policy/compile.js';
import { judgedPorts, type JudgedPorts } from '../policy/judged-ports.js';
import { policiesNamed, policiesOf, type PodPolicies, type WorkloadView } from '../policy/workload-policies.js';
import type { InboundNeeds } from '../proxy/inbound-needs.js';
import type { Change } from '../xds/delta-stream.js';
import { hashBytes } from '../xds/resource-type.js';
import { AddressType } from '../xds/resource-types.js';
import { encodeAddress } from './kernel-codec.js';
import type { KernelPod } from './kernel.js';
import type { PodPolicy } from './kernel-policies.js';
import { forbiddenDirect, openedByProxy, throughProxy, type ProxysSocket, type SocketOwner } from './revocation.js';

export interface PolicyKernel {
  pods(): KernelPod[];
  setPolicies(policies: ReadonlyMap<string, PodPolicy | 'as it is'>): void;
  /** Of the policies in force, a former agent's too. */
  policyVersions(): ReadonlyMap<string, bigint>;
  /** An agent of another version enforced the pod's policies, and they hold until this one's do. */
  isFormer?(uid: string): boolean;
  /** What the node itself opened, and what no policy is about. */
  readonly host?: { opened(podCookie: bigint, remote: Place, local: Place): boolean };
}

interface Place {
  address: Buffer;
  port: number;
}

export interface PolicyEnforcerOptions {
  kernel: PolicyKernel;
  /** cgroup v2 folder of the shared proxy. */
  proxyCgroupPath?: string;
  /** The proxy has, and has acknowledged, all that the control plane said. */
  proxySettled: () => boolean;
  /**
   * How long a pod that gets its first policy is left as it is, for the proxy to take over its callers: what HTTP policies say
   * the proxy alone knows, and the kernel would refuse whom they allow. A SYN that it drops never comes to the proxy: conntrack has
   * decided by then that the connection is not redirected. Default 5,000, while the proxy is still busy with what it was told 30,000.
   */
  proxyFirstMs?: number;
  /** How long to wait for a first answer about workloads. */
  workloadsMs?: number;
  /** How long after a failure policies are written to the kernel again. Default 1,000. */
  retryMs?: number;
  /** How long requests that are under way when a policy changes have to end, at least. Default 5,000. */
  requestsEndMs?: number;
  clusterId?: string;
  trustDomain?: string;
  /** Other pods are behind the proxy than before, or the kernel judges other ports of theirs. */
  onJudged?: () => void;
  logger: Logger;
}

/** Who says whether a connection that is led to the proxy may come. */
export interface InboundDecision {
  pod: string;
  /** Of pods of this node: at connect(), without the proxy. */
  kernel: readonly number[];
  /** Why others are the proxy's; a port that is in neither has nothing of its own in its rules, and is the proxy's. */
  envoy: Record<number, string>;
}

export interface PolicyStatus {
  /** Pods of this node that some policy holds for. */
  pods: number;
  /** Pods that take nobody new except by the proxy's word, and why. */
  unreadable: { pod: string; reasons: string[] }[];
  /** Of pods that are behind the proxy. */
  inbound: InboundDecision[];
  /** Connections that a change of policy ended. */
  connectionsClosed: number;
  /** Pods whose policy has just changed: it may not be in force everywhere, and connections that it forbids may still end. At least 1 while it is not known whose. */
  settling: number;
  /** Why they could not be ended. */
  problem?: string;
}

interface Governed {
  policies: PodPolicies;
  compiled: CompiledPolicy | undefined;
  reasons: readonly string[];
  version: bigint;
  judged: JudgedPorts;
  /** Until when the proxy may take over before the kernel enforces; undefined: it does. UNHEARD: what a former agent enforced holds. */
  waitsUntil: number | undefined;
  /** Nobody is let in until the control plane has said which policies hold. */
  isHeld?: true;
}

/** The control plane has not named the pod's workload since this agent started. */
const UNHEARD = Infinity;
const NONE: PodPolicies = { policies: [], problems: [] };
const NO_PORTS: JudgedPorts = { ports: [], reasons: new Map() };
const HELD = 'the control plane has not named it yet';
const HELD_VERSION = 1n;
const SETTLE_MS = 20;
/** A handshake that the kernel let through just before the change is a connection by then. */
const LOOK_AGAIN_MS = 250;
/** The proxy hears of policies on streams of its own, sooner or later than this does: for the status, how long it is given. */
const PROXY_HEARS_MS = 1_000;
const PROXY_FOLLOWS_MS = 5_000;
/** The proxy's threads take what it has acknowledged one after the other. */
const PROXY_THREADS_MS = 100;
const REQUESTS_END_MS = 5_000;
const REQUESTS_LOOK_MS = 250;
/** Of those connections that the proxy accepted it asks for their end by its answers, and keeps the idle ones. */
const LEAST_LOOKS = 2;
const PROXY_POLL_MS = 20;
const PROXY_FIRST_MS = 5_000;
/** More than that. What the kernel drops of the proxy's own way to the pod costs a request its time limit, three times over. */
const PROXY_BUSY_MS = 25_000;
const RETRY_MS = 1_000;
const WORKLOADS_MS = 5_000;

export class PolicyEnforcer implements Closable {
  readonly #options: PolicyEnforcerOptions;
  readonly #abort = new AbortController();
  readonly #behindProxy = new Set<string>();
  /** Those of them where what the kernel has judged passes the proxy. */
  readonly #passable = new Set<string>();
  #needs: ReadonlyMap<string, InboundNeeds> = new Map();
  #records: readonly PodRecord[] = [];
  #localUids: ReadonlySet<string> = new Set();
  #view: WorkloadView | undefined;
  #governed = new Map<string, Governed>();
  #timer: NodeJS.Timeout | undefined;
  /** The control plane has said something that `#apply` is still to look at. */
  #isDue = false;
  /** Of a former agent; undefined once this one's own are known. */
  #versionsBefore: Map<string, bigint> | undefined;
  /** What the workloads of pods named last: a pod that runs on keeps it, also when its workload is taken away. */
  readonly #named = new Map<string, readonly string[]>();
  readonly #awaitingWorkload = new Set<() => void>();
  #servesNoWorkloads = false;
  #noWorkloadsTimer: NodeJS.Timeout | undefined;
  /** Pods whose policy let in more a moment ago, and since when. */
  readonly #narrowed = new Map<string, number>();
  /** Connections through the proxy that end when nothing is led to the former policy any more. */
  readonly #doomed = new Map<string, ProxysSocket[]>();
  readonly #ending = new Map<string, number>();
  #connectionsClosed = 0;
  readonly #problems = new Map<'kernel' | 'connections', string>();

  constructor(options: PolicyEnforcerOptions) {
    this.#options = options;
    this.#versionsBefore = new Map(options.kernel.policyVersions());
  }

  /** The full current set of the node's pods; call it before the kernel is told of a new one. */
  setPods(records: readonly PodRecord[]): void {
    this.#records = records;
    this.#localUids = new Set(records.map((record) => this.#workloadUid(record)));
    const present = new Set(records.map(({ uid }) => uid));
    for (const uids of [this.#behindProxy, this.#passable]) for (const uid of uids) if (!present.has(uid)) uids.delete(uid);
    for (const each of [this.#named, this.#narrowed, this.#doomed]) for (const uid of each.keys()) if (!present.has(uid)) each.delete(uid);
    this.#apply();
  }

  /**
   * Resolves when the control plane has said which policies hold for the pod, and the kernel is told of them with it; or when
   * there are no workloads to be had, as from istiod without ambient mode: then policy is the proxy's alone, and a pod outside
   * of the mesh would have none.
   */
  whenKnown(uid: string, signal: AbortSignal): Promise<void> {
    const isKnown = (): boolean => this.#named.has(uid) || this.#governed.get(uid)?.isHeld === true;
    return new Promise((resolve, reject) => {
      const look = (): void => {
        if (!signal.aborted && !isKnown() && !this.#servesNoWorkloads) return;
        this.#awaitingWorkload.delete(look);
        signal.removeEventListener('abort', look);
        if (signal.aborted) reject(signal.reason as Error);
        else resolve();
      };
      this.#awaitingWorkload.add(look);
      signal.addEventListener('abort', look);
      this.#noWorkloadsTimer ??= setTimeout(() => this.#giveUpWorkloads(), this.#options.workloadsMs ?? WORKLOADS_MS);
      look();
    });
  }

  #giveUpWorkloads(): void {
    if (this.#view?.synced) return;
    this.#servesNoWorkloads = true;
    this.#options.logger.warn('the control plane has served no workloads (WDS) so far: the kernel enforces no policy of pods that come in now, Envoy does');
    for (const look of [...this.#awaitingWorkload]) look();
  }

  /** Called on every change of what the view shows; `change`: which, when that is known. */
  setWorkloads(view: WorkloadView, change?: Change): void {
    this.#view = view;
    // Most changes are of workloads elsewhere. Whom a policy that can't be read concerns may depend on any.
    const isElsewhere = change?.type instanceof AddressType && !change.first && ![...change.updated, ...change.removed].some((uid) => this.#localUids.has(uid));
    if (isElsewhere && view.rejectedAuthorizations.size === 0) return;
    this.#isDue = true;
    this.#timer ??= setTimeout(() => this.#apply(), SETTLE_MS);
  }

  /**
   * Whether what comes to the pod over the network is led to the proxy.
   * @param isPassable but for what the kernel has judged at connect()
   */
  setBehindProxy(uid: string, isBehind: boolean, isPassable = isBehind): void {
    if (this.#behindProxy.has(uid) === isBehind && this.#passable.has(uid) === isPassable) return;
    for (const [uids, has] of [[this.#behindProxy, isBehind], [this.#passable, isPassable]] as const) {
      if (has) uids.add(uid);
      else uids.delete(uid);
    }
    this.#apply();
    this.#options.onJudged?.();
  }

  isBehindProxy(uid: string): boolean {
    return this.#behindProxy.has(uid);
  }

  /** By uid, what the pods' proxies ask of callers; pods that are not in it are the proxy's on all ports. */
  setInboundNeeds(needs: ReadonlyMap<string, InboundNeeds>): void {
    const before = this.#needs;
    this.#needs = needs;
    if (needs.size !== before.size || [...needs].some(([uid, each]) => before.get(uid) !== each)) this.#apply();
  }

  /** Whether the kernel's word is enough for callers of this node. */
  isJudged(uid: string, port: number): boolean {
    return this.#governed.get(uid)?.judged.ports.includes(port) ?? false;
  }

  /** Why it is not; undefined when nothing is known of the port. */
  whyProxy(uid: string, port: number): string | undefined {
    return this.#governed.get(uid)?.judged.reasons.get(port);
  }

  status(): PolicyStatus {
    const unreadable = this.#records.flatMap(({ uid, namespace, name }) => {
      const reasons = this.#governed.get(uid)?.reasons ?? [];
      return reasons.length > 0 ? [{ pod: `${namespace}/${name}`, reasons: [...reasons] }] : [];
    });
    const inbound = this.#records.flatMap(({ uid, namespace, name }): InboundDecision[] => {
      const governed = this.#governed.get(uid);
      return governed && this.#behindProxy.has(uid) ? [{ pod: `${namespace}/${name}`, kernel: governed.judged.ports, envoy: Object.fromEntries(governed.judged.reasons) }] : [];
    });
    const problem = [...this.#problems.values()].join('; ');
    const settling = new Set([...this.#narrowed.keys()].filter((uid) => this.#isSettling(uid)));
    for (const uid of [...this.#doomed.keys(), ...this.#ending.keys()]) settling.add(uid);
    for (const [uid, { waitsUntil }] of this.#governed) if (waitsUntil !== undefined) settling.add(uid);
    return { pods: this.#governed.size, unreadable, inbound, settling: Math.max(settling.size, Number(this.#isDue)), connectionsClosed: this.#connectionsClosed, ...(problem === '' ? {} : { problem }) };
  }

  /** Which policy a term of the kernel's is of, by its index; undefined when what the kernel has is not what this enforcer knows. */
  policyOf(uid: string, { version, term }: { version: bigint; term: number }): string | undefined {
    const governed = this.#governed.get(uid);
    return governed?.version === version ? governed.compiled?.terms[term]?.policy : undefined;
  }

  /** Names of the policies that hold for the pod, as `namespace/name`. */
  policiesOf(uid: string): string[] {
    return this.#governed.get(uid)?.policies.policies.map(({ name }) => name) ?? [];
  }

  /** What the kernel is to have, by pod. */
  inForce(): { pod: string; policies: string[]; version: string; isWritten: boolean }[] {
    const written = this.#options.kernel.policyVersions();
    return this.#records.flatMap(({ uid, namespace, name }) => {
      const governed = this.#governed.get(uid);
      return governed ? [{ pod: `${namespace}/${name}`, policies: this.policiesOf(uid), version: governed.version.toString(16), isWritten: written.get(uid) === governed.version }] : [];
    });
  }

  close(): void {
    this.#abort.abort();
    clearTimeout(this.#timer);
    clearTimeout(this.#noWorkloadsTimer);
  }

  #apply(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#isDue = false;
    const view = this.#view;
    // Until all is known what a former agent wrote holds.
    if (!view?.synced || this.#abort.signal.aborted) return;
    const identities = new Map(this.#records.map((record) => [record.uid, this.#identity(view, record)]));
    const before = this.#governed;
    const governed = new Map<string, Governed>();
    for (const record of this.#records) {
      const found = this.#govern(view, record, identities, before.get(record.uid));
      if (found) governed.set(record.uid, found);
    }
    this.#governed = governed;
    const isAgain = this.#problems.has('kernel');
    try {
      this.#options.kernel.setPolicies(new Map([...governed].map(([uid, { compiled, version, waitsUntil, judged }]) => [uid, waitsUntil === undefined ? { compiled, version, behindProxy: this.#behindProxy.has(uid), judgedPorts: judged.ports } : 'as it is'])));
      this.#problems.delete('kernel');
      if ([...new Set([...before.keys(), ...governed.keys()])].some((uid) => String(before.get(uid)?.judged.ports ?? []) !== String(governed.get(uid)?.judged.ports ?? []))) this.#options.onJudged?.();
    } catch (error) {
      this.#report('kernel', `policies can't be written to the kernel: ${errorMessage(error)}`);
    }
    for (const [uid, { version, policies, waitsUntil }] of governed) {
      const was = before.get(uid);
      if (waitsUntil !== undefined || (was?.version === version && was.waitsUntil === undefined && !isAgain)) continue;
      const isKnown = this.#versionsBefore?.get(uid) === version;
      if (!isKnown && narrows(was?.waitsUntil === undefined ? (was?.policies ?? NONE) : NONE, policies)) this.#narrowed.set(uid, performance.now());
      this.#versionsBefore?.delete(uid);
      this.#background(this.#revoke(uid));
    }
    if (view.synced) this.#servesNoWorkloads = false;
    for (const look of [...this.#awaitingWorkload]) look();
    const isWaiting = [...governed.values()].some(({ waitsUntil }) => waitsUntil !== undefined);
    const isWaitingForProxy = [...governed.values()].some(({ waitsUntil }) => waitsUntil !== undefined && waitsUntil !== UNHEARD);
    const againMs = isWaitingForProxy ? PROXY_POLL_MS : this.#problems.has('kernel') ? (this.#options.retryMs ?? RETRY_MS) : undefined;
    if (againMs !== undefined) this.#timer = setTimeout(() => this.#apply(), againMs);
    if (!isWaiting) this.#versionsBefore = undefined;
  }

  #govern(view: WorkloadView, record: PodRecord, identities: ReadonlyMap<string, Identity>, before: Governed | undefined): Governed | undefined {
    const named = policiesNamed(view, this.#workloadUid(record));
    if (named) this.#named.set(record.uid, named);
    const former = this.#versionsBefore?.get(record.uid);
    if (!this.#named.has(record.uid) && former !== undefined) {
      if (!before) this.#options.logger.warn({ pod: `${record.namespace}/${record.name}` }, 'the control plane has not named this pod yet: the policies that a former agent enforced hold');
      return { policies: NONE, compiled: undefined, reasons: [], version: former, judged: NO_PORTS, waitsUntil: UNHEARD };
    }
    // The control plane hears of a pod's address when its programs run: until then nobody can be judged, and none has a reason to call.
    if (!this.#named.has(record.uid) && !this.#servesNoWorkloads && (record.starting || before?.isHeld)) return { policies: NONE, compiled: undefined, reasons: [HELD], version: HELD_VERSION, judged: NO_PORTS, waitsUntil: undefined, isHeld: true };
    const policies = policiesOf(view, this.#workloadUid(record), record.namespace, this.#named.get(record.uid));
    if (policies.policies.length === 0 && policies.problems.length === 0) return undefined;
    const version = BigInt(`0x${hashBytes(JSON.stringify([policies.policies.map(({ name, hash }) => [name, hash]), policies.problems])).slice(0, 16)}`);
    let compiled: CompiledPolicy | undefined;
    let reasons = policies.problems;
    try {
      if (reasons.length === 0) compiled = compilePolicy(policies.policies.map(({ message }) => message), identities);
    } catch (error) {
      reasons = [errorMessage(error)];
    }
    if (reasons.length > 0 && before?.reasons.join() !== reasons.join()) this.#options.logger.error({ pod: `${record.namespace}/${record.name}`, reasons }, "the pod's policy can't be judged by: the kernel lets nobody new in but by the node's Envoy");
    const waitsUntil = this.#waitsUntil(record.uid, before);
    return { policies, compiled, reasons, version, waitsUntil, judged: compiled && waitsUntil === undefined ? this.#judged(record.uid, policies, identities) : NO_PORTS };
  }

  #judged(uid: string, { policies }: PodPolicies, identities: ReadonlyMap<string, Identity>): JudgedPorts {
    const needs = this.#needs.get(uid);
    if (!needs) return NO_PORTS;
    if (!this.#passable.has(uid)) return { ports: [], reasons: new Map([...needs.keys()].map((port) => [port, 'rules redirect what comes to the pod, and know of no judgement'])) };
    return judgedPorts(needs, policies.map(({ message }) => message), identities.values());
  }

  #waitsUntil(uid: string, before: Governed | undefined): number | undefined {
    if ((before && before.waitsUntil === undefined) || this.#options.kernel.isFormer?.(uid)) return undefined;
    const waited = before?.waitsUntil === UNHEARD ? undefined : before?.waitsUntil;
    const until = waited ?? performance.now() + (this.#options.proxyFirstMs ?? PROXY_FIRST_MS);
    const isSettled = this.#options.proxySettled();
    const isTakenOver = this.#behindProxy.has(uid) && isSettled;
    return isTakenOver || performance.now() >= until + (isSettled ? 0 : PROXY_BUSY_MS) ? undefined : until;
  }

  #workloadUid({ namespace, name }: PodRecord): string {
    return `${this.#options.clusterId ?? 'Kubernetes'}//Pod/${namespace}/${name}`;
  }

  #identity(view: WorkloadView, record: PodRecord): Identity {
    const type = view.addresses.get(this.#workloadUid(record))?.message.type;
    const trustDomain = this.#options.trustDomain ?? ((type?.$case === 'workload' && type.value.trust_domain) || DEFAULT_TRUST_DOMAIN);
    return { trustDomain, namespace: record.namespace, serviceAccount: record.serviceAccount || 'default' };
  }

  async #revoke(uid: string): Promise<void> {
    const requests = await this.#close(uid);
    const settled = requests.length > 0 ? this.#nowEnding(uid) : undefined;
    try {
      await sleep(LOOK_AGAIN_MS, this.#abort.signal);
      requests.push(...(await this.#close(uid)));
      const record = this.#governedRecord(uid);
      if (!record || requests.length === 0) return;
      await this.#outlast(record, requests);
      const doomed = idsOf(requests);
      // Some may be allowed again.
      await this.#end(record, (await this.#forbidden(record)).filter((socket) => doomed.has(idOf(socket))));
    } finally {
      settled?.();
    }
  }

  /** For the status. @returns what says that it is over */
  #nowEnding(uid: string): () => void {
    this.#ending.set(uid, (this.#ending.get(uid) ?? 0) + 1);
    return () => {
      const left = this.#ending.get(uid)! - 1;
      if (left > 0) this.#ending.set(uid, left);
      else this.#ending.delete(uid);
    };
  }

  /**
   * Gives requests time to end: the proxy sends no new ones over these connections, and closes each behind its last answer. Time is
   * counted by looks, which take longer when the machine, and so the requests' server, is busy.
   */
  async #outlast({ netns }: PodRecord, opened: readonly TcpSocket[]): Promise<void> {
    const ids = idsOf(opened);
    const looks = Math.ceil((this.#options.requestsEndMs ?? REQUESTS_END_MS) / REQUESTS_LOOK_MS);
    for (let look = 0; look < looks && (ids.size > 0 || look < LEAST_LOOKS); look++) {
      await sleep(REQUESTS_LOOK_MS, this.#abort.signal);
      const there = ids.size > 0 ? idsOf(await tcpSockets(netns)) : ids;
      for (const id of ids) if (!there.has(id)) ids.delete(id);
    }
  }

  #isSettling(uid: string): boolean {
    const forMs = performance.now() - this.#narrowed.get(uid)!;
    const isSettling = forMs < PROXY_HEARS_MS || (forMs < PROXY_FOLLOWS_MS && !this.#options.proxySettled());
    if (!isSettling) this.#narrowed.delete(uid);
    return isSettling;
  }

  /** What the proxy accepts for the pod from now on, or opens to it, is under a policy that lets fewer in; what is there is not. */
  async proxyNarrows(uid: string, side: ProxysSocket['side']): Promise<void> {
    try {
      const sockets = (await this.#throughProxy(uid))?.sockets.filter((each) => each.side === side) ?? [];
      this.#doomed.set(uid, [...(this.#doomed.get(uid) ?? []), ...sockets]);
    } catch (error) {
      this.#report('connections', `connections that policy forbids go on: ${reasonOf(error)}`);
    }
  }

  /**
   * Nothing is led to the former policy any more, and what the proxy holds for the pod's callers ends once: whom a connection is
   * for is known to the proxy alone. Requests are given time, and new ones have connections of their own by now.
   * @param http ports on which all is HTTP
   */
  proxyNarrowed(uid: string, http: ReadonlySet<number>): void {
    const old = this.#doomed.get(uid) ?? [];
    this.#doomed.delete(uid);
    this.#background(this.#endThroughProxy(uid, old, http).finally(this.#nowEnding(uid)));
  }

  async #endThroughProxy(uid: string, old: readonly ProxysSocket[], http: ReadonlySet<number>): Promise<void> {
    await sleep(PROXY_THREADS_MS, this.#abort.signal);
    const found = await this.#throughProxy(uid);
    if (!found) return;
    const isRequests = ({ port }: ProxysSocket): boolean => port === undefined || http.has(port);
    // What came meanwhile may have met the former policy; of requests it is known that they go by connections that are new.
    await this.#end(found.record, [...old, ...found.sockets].filter((each) => !isRequests(each)).map(({ socket }) => socket));
    const requests = old.filter(isRequests);
    // What it accepted has a request under way as long as that has a connection to the pod.
    await this.#outlast(found.record, requests.flatMap(({ side, socket }) => (side === 'opened' ? socket : [])));
    await this.#end(found.record, requests.map(({ socket }) => socket));
  }

  async #throughProxy(uid: string): Promise<{ record: PodRecord; sockets: ProxysSocket[] } | undefined> {
    const record = this.#governedRecord(uid);
    return record && { record, sockets: throughProxy(await tcpSockets(record.netns), this.#owner(record)) };
  }

  /** A pod with a sidecar has its own proxy, whose business this is. */
  #governedRecord(uid: string): PodRecord | undefined {
    return this.#options.kernel.pods().find((pod) => pod.uid === uid)?.mode === 'node' ? this.#records.find((item) => item.uid === uid) : undefined;
  }

  #owner({ ips }: PodRecord): SocketOwner {
    return { addresses: new Set(ips.map((ip) => encodeAddress(ip).toString('hex'))), proxyCgroupId: this.#proxyCgroupId() };
  }

  /**
   * Ends what came past the proxy's inbound side and may not.
   * @returns what was left: requests of the node's own pods, whose later ones the proxy leads through that side by now
   */
  async #close(uid: string): Promise<TcpSocket[]> {
    const record = this.#governedRecord(uid);
    if (!record) return [];
    const forbidden = await this.#forbidden(record);
    const requests = new Set(await this.#proxysRequests(uid, forbidden));
    await this.#end(record, forbidden.filter((socket) => !requests.has(socket)));
    return [...requests];
  }

  async #forbidden(record: PodRecord): Promise<TcpSocket[]> {
    const { uid, netns } = record;
    const { host } = this.#options.kernel;
    const cookie = this.#options.kernel.pods().find((pod) => pod.uid === uid)?.netnsCookie;
    const owners = this.#owners();
    const sockets = await tcpSockets(netns);
    // Of this moment: what the policy before it forbade may have been allowed, and opened, meanwhile.
    const compiled = this.#governed.get(uid)?.compiled;
    if (!compiled) return [];
    const isAllowed = (source: Buffer, destination: Buffer, port: number, sourcePort: number): boolean => {
      if (cookie !== undefined && host?.opened(cookie, { address: source, port: sourcePort }, { address: destination, port })) return true;
      const caller = owners.get(source.toString('hex'));
      return allows(compiled, { class: (caller !== undefined && compiled.classes.get(caller)) || 0, source, destination, port });
    };
    return forbiddenDirect(sockets, this.#owner(record), isAllowed);
  }

  /** Those that the proxy opened for a pod of this node to a port where all is HTTP. */
  async #proxysRequests(uid: string, sockets: readonly TcpSocket[]): Promise<TcpSocket[]> {
    const [needs, proxy] = [this.#needs.get(uid), this.#proxyCgroupId()];
    const http = sockets.filter(({ localPort }) => needs?.get(localPort)?.isHttp);
    if (http.length === 0 || proxy === undefined) return [];
    const owners = this.#owners();
    const callers = new Set(http.flatMap(({ remote }) => owners.get(remote.toString('hex')) ?? []));
    const theirs = await Promise.all(this.#records.filter((record) => callers.has(record.uid)).map(({ netns }) => tcpSockets(netns)));
    return openedByProxy(http, theirs.flat(), proxy);
  }

  /** Of the node's pods, by address. */
  #owners(): ReadonlyMap<string, string> {
    return new Map(this.#options.kernel.pods().flatMap(({ addresses, uid }) => addresses.map((address) => [encodeAddress(address).toString('hex'), uid] as const)));
  }

  async #end(record: PodRecord, sockets: readonly TcpSocket[]): Promise<void> {
    const ends = new Map(sockets.map((socket) => [idOf(socket), socket]));
    if (ends.size === 0) return;
    const closed = await destroyTcpSockets(record.netns, [...ends.values()].map(({ id }) => id));
    this.#connectionsClosed += closed;
    this.#problems.delete('connections');
    if (closed > 0) this.#options.logger.info({ pod: `${record.namespace}/${record.name}`, closed }, 'connections that policy no longer allows were ended');
  }

  #proxyCgroupId(): bigint | undefined {
    const { proxyCgroupPath } = this.#options;
    return proxyCgroupPath === undefined ? undefined : cgroupId(proxyCgroupPath);
  }

  #background(work: Promise<void>): void {
    work.catch((error: unknown) => {
      if (this.#abort.signal.aborted) return;
      this.#report('connections', `connections that policy forbids go on: ${reasonOf(error)}`);
    });
  }

  #report(what: 'kernel' | 'connections', problem: string): void {
    if (problem !== this.#problems.get(what)) this.#options.logger.error({ reason: problem }, 'policy is not enforced in full');
    this.#problems.set(what, problem);
  }
}

function idOf({ id }: TcpSocket): string {
  return id.toString('hex');
}

function idsOf(sockets: readonly TcpSocket[]): Set<string> {
  return new Set(sockets.map(idOf));
}

/** What of the kernel is missing, where that is why connections can't be ended. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof KernelError) || error.syscall !== 'sock_diag') return errorMessage(error);
  if (error.errnoName === 'EOPNOTSUPP') return 'this kernel has no SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY)';
  if (error.errnoName === 'ENOENT') return 'this kernel lists no TCP sockets (CONFIG_INET_TCP_DIAG, often a module: modprobe tcp_diag)';
  return errorMessage(error);
}

/** Whether a connection that was allowed may be forbidden now. */
export function narrows(before: PodPolicies, now: PodPolicies): boolean {
  if (now.problems.length > 0) return false;
  const enforced = ({ policies }: PodPolicies, action: Action): ReadonlySet<string> => new Set(policies.filter(({ message }) => message.action === action && !message.dry_run).map(({ name, hash }) => `${name} ${hash}`));
  const [allowedBefore, allowedNow, deniedBefore, deniedNow] = [enforced(before, Action.ALLOW), enforced(now, Action.ALLOW), enforced(before, Action.DENY), enforced(now, Action.DENY)];
  if ([...deniedNow].some((policy) => !deniedBefore.has(policy))) return true;
  return allowedNow.size > 0 && (allowedBefore.size === 0 || [...allowedBefore].some((policy) => !allowedNow.has(policy)));
}
