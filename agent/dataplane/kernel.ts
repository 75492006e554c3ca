/** The typed face of the BPF side: pods in, counters and verdicts out. Everything live is in pinned maps. */
import { rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { errorMessage, UnderpassError } from '../../common/errors.js';
import { ClosableStore } from '../../common/lifecycle.js';
import { BpfObject, cgroupId, KernelError, type BpfLink, type BpfMap } from '../../native/index.js';
import { ensureBpffsDir, pinName, removePins } from './bpffs.js';
import type { Check, Drift } from '../consistency/drift.js';
import { Clearance } from './kernel-clearance.js';
import { kernelChecks, type AuditedPod } from './kernel-audit.js';
import { KernelEvents } from './kernel-events.js';
import { DirectConnections } from './kernel-direct.js';
import { KernelFlows } from './kernel-flows.js';
import { KernelHost } from './kernel-host.js';
import { HttpTables } from './kernel-http.js';
import { HTTP_PROGRAMS, HttpPrograms } from './kernel-http-programs.js';
import { KernelHttpTotals } from './kernel-http-totals.js';
import { KernelHttpControl } from './kernel-http-control.js';
import { decodeAddress, encodeAddress, fnv1a, perCpu, StructCodec, u16, u32, u64 } from './kernel-codec.js';
import { FormerHttp } from './kernel-former-http.js';
import { FormerHooks } from './kernel-former.js';
import { leftEntries, leftHooks, lostNamespaces } from './kernel-leftovers.js';
import { KernelPolicies, type PodPolicy } from './kernel-policies.js';
import { PodCodec, type Slot } from './kernel-pods.js';
import { ProxyHooks } from './kernel-proxy-hooks.js';
import { cgroupIds, kernelDevice } from './kernel-processes.js';
import { containerByNetns, hierarchyRoot, ROOT_PROGRAMS, RootHooks } from './kernel-root.js';
import type { KernelPod, KernelPodState, PodCounters, KernelOptions } from './kernel-types.js';
import { ServiceTable } from './kernel-services.js';
import { KernelWatch } from './kernel-watch.js';
import { KernelSteering } from './kernel-steering.js';
import { Verdicts, type ListenerName, type ProbationEntry, type ProgramName, type Verdict } from './kernel-verdicts.js';

export type { Acceleration, KernelPod, KernelPodState, PodCounters, KernelOptions } from './kernel-types.js';
export type { ListenerName, ProbationEntry, ProgramName, Verdict } from './kernel-verdicts.js';

/** Programs of a pod's cgroup, in the order in which they are attached: the sockets' state comes before capture. */
const POD_PROGRAMS = [
  'pod_sockops', 'probe_egress', 'police_ingress', 'getsockopt', 'getpeername4', 'getpeername6', 'getsockname4', 'getsockname6', 'connect4', 'connect6',
] as const;

/** Whose numbers are kept in pinned maps, beside the maps' own layouts. */
const PINNED_ENUMS = ['http_channel_state', 'http_unknown', 'http_use'];

const TABLES = ['pods', 'netns_of_address', 'establishing', 'peers', 'sockets', 'client_verdicts', 'listener_verdicts', 'client_clearances', 'listener_clearances'];

const SETTINGS = ['acceleration', 'listener_ports_known', 'flow_log'] as const;
type Setting = (typeof SETTINGS)[number];

interface Attached {
  pod: KernelPodState;
  slot: Slot;
  /** False after a restart: the links that were found may not be all. */
  complete: boolean;
  links: BpfLink[];
}

export class Kernel {
  readonly #store = new ClosableStore();
  readonly #object: BpfObject;
  readonly #pinDir: string | null;
  readonly #pods = new Map<string, Attached>();
  #lastSlot = 0;
  #former: FormerHooks | undefined;
  readonly #proxy: ProxyHooks;
  /** What an agent that died left of pods that are not there, until somebody asks. */
  readonly #leftovers: Drift[] = [];
  readonly #root: RootHooks;
  /** Where they are loaded when they are wanted. */
  readonly httpPrograms: HttpPrograms | undefined;
  #httpRefused: string | undefined;
  readonly #rootId = hierarchyRoot()?.id ?? 0n;
  readonly #maps: Record<'pods' | 'addresses' | 'settings' | 'counters' | 'podCounters' | 'establishing' | 'peers', BpfMap>;
  readonly #podCodec: PodCodec;
  readonly #codecs: Record<'settings' | 'podCounters' | 'establishing' | 'tuple' | 'peer', StructCodec>;
  readonly #counterNames: string[];
  readonly #direct: DirectConnections;
  readonly #verdicts: Verdicts;
  /** What connections without a proxy carried. */
  readonly flows: KernelFlows;
  readonly policies: KernelPolicies;
  /** Single connections, messages and requests, for who asks. */
  readonly watch: KernelWatch;
  /** What the node itself opens. */
  readonly host: KernelHost;
  /** What comes to pods over the network. */
  readonly steering: KernelSteering;
  /** What the connect hook decides by itself. */
  readonly services: ServiceTable;
  readonly http: { control: KernelHttpControl; tables: HttpTables; totals: KernelHttpTotals; former: FormerHttp | undefined };
  readonly #layout: number;
  #settings: Buffer | undefined;
  /**
   * Loads the programs. Maps and links that a former agent pinned are taken over, programs are replaced in place;
   * connections do not notice. Acceleration is as it was left, off at first.
   * @throws KernelError when the kernel refuses, with the verifier's last lines
   */
  static async open(options: KernelOptions): Promise<Kernel> {
    if (options.bpffsDir !== null) ensureBpffsDir(options.bpffsDir);
    let kernel = Kernel.#load(options);
    if (options.bpffsDir !== null && !kernel.#layoutMatches()) {
      // Another version's maps: it is safe to leave them to the connections that use them, but not to read them.
      options.logger.warn({ instance: options.instance }, 'pinned maps have another layout, starting with new ones');
      await kernel.close();
      FormerHttp.setAside(join(options.bpffsDir, pinName(options.instance)));
      kernel = Kernel.#load(options);
    }
    kernel.#start();
    return kernel;
  }

  /** What is not pinned has all programs in one object, without those of the HTTP fast path where these alone are refused. */
  static #load(options: KernelOptions): Kernel {
    try {
      return new Kernel(options);
    } catch (error) {
      if (options.bpffsDir !== null || options.httpFastPath === false || !(error instanceof KernelError)) throw error;
      let kernel: Kernel;
      try {
        kernel = new Kernel({ ...options, httpFastPath: false });
      } catch {
        throw error;
      }
      kernel.#httpRefused = errorMessage(error);
      return kernel;
    }
  }

  private constructor(readonly options: KernelOptions) {
    this.#pinDir = options.bpffsDir === null ? null : join(options.bpffsDir, pinName(options.instance));
    const parameters = { pinDir: this.#pinDir, rodata: { root_cgroup_id: this.#rootId, ...options.rodata }, ...(options.maxEntries ? { maxEntries: options.maxEntries } : {}) };
    const object = this.#store.add(BpfObject.open({ ...parameters, without: [...ROOT_PROGRAMS, ...(this.#pinDir !== null || options.httpFastPath === false ? HTTP_PROGRAMS : [])] }));
    this.#object = object;
    const loadRoot = (): BpfObject => {
      if (this.#pinDir === null) throw new UnderpassError('UNDERPASS_NOT_PINNED', 'adding a pod without a cgroup of its own: its programs share the pinned maps, and nothing is pinned');
      return BpfObject.open({ ...parameters, programs: [...ROOT_PROGRAMS] });
    };
    this.#proxy = this.#store.add(new ProxyHooks(object, this.#pinDir));
    this.#root = this.#store.add(new RootHooks(loadRoot, this.#pinDir, options.logger));
    const http = { ...parameters, programs: [...HTTP_PROGRAMS] };
    if (this.#pinDir !== null && options.httpFastPath !== false) this.httpPrograms = this.#store.add(new HttpPrograms({ now: () => BpfObject.open(http), later: () => BpfObject.openLater(http) }, object.map('http_programs'), options.logger));
    const codec = (name: string): StructCodec => new StructCodec(object, name);
    this.#maps = {
      pods: object.map('pods'),
      addresses: object.map('netns_of_address'),
      settings: object.map('settings'),
      counters: object.map('counters'),
      podCounters: object.map('pod_counters'),
      establishing: object.map('establishing'),
      peers: object.map('peers'),
    };
    this.#podCodec = new PodCodec(object, this.#maps.pods);
    this.#codecs = {
      settings: codec('settings').check(this.#maps.settings, 'value'),
      podCounters: codec('pod_counters').check(this.#maps.podCounters, 'value'),
      establishing: codec('establishing').check(this.#maps.establishing, 'value'),
      tuple: codec('tuple').check(this.#maps.establishing, 'key'),
      peer: codec('peer').check(this.#maps.peers, 'value'),
    };
    this.#counterNames = Object.entries(object.enumValues('counter'))
      .filter(([name]) => name.startsWith('COUNTER_'))
      .sort(([, a], [, b]) => a - b)
      .map(([name]) => name.slice('COUNTER_'.length).toLowerCase());
    this.#direct = new DirectConnections(object);
    this.#verdicts = new Verdicts(object);
    this.flows = this.#store.add(new KernelFlows(object, this.#counterNames));
    this.watch = this.#store.add(new KernelWatch(object, this.#counterNames));
    this.policies = new KernelPolicies(object, () => this.#places());
    this.services = new ServiceTable(object);
    const tables = new HttpTables(object);
    this.http = { control: this.#store.add(new KernelHttpControl(object)), tables, totals: new KernelHttpTotals(object, tables.services), former: this.#pinDir === null ? undefined : this.#store.add(new FormerHttp({ pinDir: this.#pinDir, logger: options.logger, ...(options.formerDrainMs === undefined ? {} : { drainMs: options.formerDrainMs }) })) };
    this.#layout = fnv1a([object.mapsFingerprint(), ...PINNED_ENUMS.map((name) => JSON.stringify(object.enumValues(name))), ...this.#counterNames].join('\n'));
    this.host = this.#store.add(new KernelHost(object, this.#pinDir, this.#layout));
    this.steering = this.#store.add(new KernelSteering(object, this.#pinDir));
  }

  /** Why the programs of the HTTP fast path are not there, though they were wanted. */
  get httpProblem(): string | undefined {
    return this.httpPrograms?.problem ?? this.#httpRefused;
  }

  /** Envoy's cgroup. */
  attachProxy(cgroupPath: string): void {
    this.#proxy.attach(cgroupPath);
  }

  /** Adds a pod or changes it; changes apply to new connections only. */
  putPod(pod: KernelPod): void {
    const id = cgroupId(pod.cgroupPath);
    let current = this.#pods.get(pod.uid);
    if (current && current.pod.netnsCookie !== pod.netnsCookie) {
      this.removePod(pod.uid);
      current = undefined;
    }
    const state: KernelPodState = {
      uid: pod.uid,
      netnsCookie: pod.netnsCookie,
      cgroupPath: pod.cgroupPath,
      addresses: pod.addresses.map((address) => decodeAddress(encodeAddress(address))),
      mode: pod.mode,
      capture: pod.capture,
      acceleration: pod.acceleration,
      redirected: pod.redirected ?? false,
      ...(pod.l7Auto ? { l7Auto: true } : {}),
      ...(pod.splices === undefined ? {} : { splices: pod.splices }),
      cgroupId: id,
      isRooted: id === this.#rootId,
    };
    if (state.acceleration === 'l7') this.httpPrograms?.want().catch((error: unknown) => this.options.logger.error({ reason: errorMessage(error) }, 'loading the programs of the HTTP fast path failed'));
    const attached: Attached = current ?? { pod: state, slot: this.#freeSlot(), complete: false, links: [] };
    const before = current?.pod;
    const taken: [address: string, owner: Buffer | undefined][] = [];
    let former: BpfLink[] = [];
    this.#pods.set(pod.uid, attached);
    try {
      // Whom its policies forbid finds no moment between hooks and policies.
      if (!before) this.policies.refresh(pod.netnsCookie);
      // The hooks do nothing for a namespace that is in no map, so all of them begin at the same moment.
      if (!attached.complete || before?.cgroupId !== id) former = this.#attach(attached, state, before?.isRooted !== state.isRooted);
      for (const address of state.addresses) {
        const key = encodeAddress(address);
        taken.push([address, this.#maps.addresses.get(key)]);
        this.#maps.addresses.set(key, u64(pod.netnsCookie));
      }
      this.#maps.pods.set(u64(pod.netnsCookie), this.#podCodec.encode(state, attached.slot));
      attached.pod = state;
      if (before && before.isRooted !== state.isRooted) this.#leavePlace(pod.uid, former, state.isRooted);
      this.policies.refresh(pod.netnsCookie);
      this.#former?.taken(pod.uid);
    } catch (error) {
      for (const [address, owner] of taken) {
        if (owner) this.#maps.addresses.set(encodeAddress(address), owner);
        else this.#maps.addresses.delete(encodeAddress(address));
      }
      if (!before) this.removePod(pod.uid);
      throw error;
    }
    for (const gone of before?.addresses.filter((address) => !state.addresses.includes(address)) ?? []) {
      this.#forgetAddress(gone, pod.netnsCookie);
    }
    if (before && before.splices !== state.splices) this.#verdicts.forgetClearances(pod.netnsCookie);
  }

  /** @returns links of the place where the pod was, when `moves`, until that one's hooks have no pod any more */
  #attach(attached: Attached, pod: KernelPodState, moves: boolean): BpfLink[] {
    attached.complete = false;
    const former = attached.links.splice(0);
    if (!moves) for (const link of former.splice(0)) link.close();
    if (pod.isRooted) this.#root.attach();
    else for (const program of POD_PROGRAMS) attached.links.push(this.#object.attachCgroup(program, pod.cgroupPath, this.#pin(podPin(pod.uid, program))));
    attached.complete = true;
    return former;
  }

  /** What serves the pod is elsewhere now, as the map `pods` says. */
  #leavePlace(uid: string, links: readonly BpfLink[], toRoot: boolean): void {
    for (const link of links) link.close();
    if (toRoot) this.#unpinPod(uid);
    else this.#releaseRoot();
  }

  #unpinPod(uid: string): void {
    if (this.#pinDir !== null) rmSync(join(this.#pinDir, 'links', 'pods', pinName(uid)), { recursive: true, force: true });
  }

  #releaseRoot(): void {
    if (![...this.#pods.values()].some(({ pod }) => pod.isRooted)) this.#root.detach();
  }

  /**
   * Detaches a pod and forgets it. Its short-circuited connections go on, but are no longer counted, and captured ones
   * that are just being established would not learn where they go: switch `capture` off first and wait for
   * liveConnections() to reach 0 when the pod lives on.
   */
  removePod(uid: string): void {
    const attached = this.#pods.get(uid);
    if (!attached) return;
    this.steering.forget(uid);
    attached.complete = false;
    for (const link of attached.links.splice(0)) link.close();
    this.#unpinPod(uid);
    const cookie = attached.pod.netnsCookie;
    this.#maps.pods.delete(u64(cookie));
    // No hook of the pod's tells of its servers' ends any more.
    this.http.control.endExchangesAt(cookie);
    this.#forgetNamespace(cookie, attached.pod.addresses);
    // Last: what fails before is tried again.
    this.#pods.delete(uid);
    if (attached.pod.isRooted) this.#releaseRoot();
    this.policies.refresh(cookie);
  }

  /** Whether what an agent of another version enforced for the pod still holds; `keepFormer` ends that for all other pods. */
  readonly isFormer = (uid: string): boolean => this.#former?.has(uid) ?? false;
  readonly keepFormer = (uids: ReadonlySet<string>): void => [this.#former, this.steering].forEach((each) => each?.keep(uids));

  /** The pods as the kernel has them, those of a former agent too. */
  pods(): KernelPodState[] {
    return [...this.#pods.values()].map(({ pod }) => ({ ...pod, addresses: [...pod.addresses] }));
  }

  /** Captured connections that the pod opened and that still exist, and exchanges of others that the kernel has under way at its servers. */
  liveConnections(uid: string): number {
    const counters = this.#countersOf(uid);
    const captured = counters ? Number(counters.connections_captured - counters.captured_closed) : 0;
    const cookie = this.#pods.get(uid)?.pod.netnsCookie;
    return captured + (cookie === undefined ? 0 : this.http.control.exchangesAt(cookie).length);
  }

  /** Sums over all CPUs, by the names in enum counter of bpf/structs.h. */
  counters(): Record<string, bigint> {
    const out: Record<string, bigint> = {};
    this.#counterNames.forEach((name, index) => {
      const value = this.#maps.counters.get(u32(index));
      out[name] = value ? perCpu(value, 8).reduce((sum, part) => sum + part.readBigUInt64LE(), 0n) : 0n;
    });
    return out;
  }

  podCounters(): Map<string, PodCounters> {
    const out = new Map<string, PodCounters>();
    for (const uid of this.#pods.keys()) {
      const counters = this.#countersOf(uid);
      if (counters) out.set(uid, counters);
    }
    return out;
  }

  /** How full the tables of live connections and verdicts are. Walks them: for tests, status and metrics scrapes. */
  tables(): Record<string, { entries: number; maxEntries: number }> {
    return Object.fromEntries(
      TABLES.map((name) => {
        const map = this.#object.map(name);
        return [name, { entries: map.entries().length, maxEntries: map.maxEntries }];
      }),
    );
  }

  probation(): ProbationEntry[] {
    return this.#verdicts.list();
  }

  /** Ends a client program's probation by hand; `probation` starts it anew. */
  markProgram(program: ProgramName, verdict: Verdict): void {
    this.#verdicts.markProgram(program, verdict);
  }

  markListener(listener: ListenerName, verdict: Verdict): void {
    this.#verdicts.markListener(listener, verdict);
  }

  /** The self-test's verdict. Off: nothing is paired anew, and what is paired sends by TCP again. */
  setGlobalAcceleration(on: boolean): void {
    this.#writeSettings({ acceleration: on ? 1 : 0 });
  }

  /**
   * The ports that the control plane has outbound listeners for. From the first call on, a connection of a `node` pod
   * to a local pod's own address on any other port is not captured: the proxy would only pass its bytes on. `all`: every
   * port is captured; `proxied`: every port of these addresses.
   */
  setListenerPorts(ports: readonly number[] | 'all', proxied: readonly string[] = []): void {
    if (ports !== 'all') this.#direct.set(ports, proxied);
    this.#writeSettings({ listener_ports_known: ports === 'all' ? 0 : 1 });
  }

  /** Whether a record of each connection that ends is handed to `flows.onRecord`; of those that begin from now on. */
  setFlowLog(on: boolean): void {
    this.#writeSettings({ flow_log: on ? 1 : 0 });
  }

  /** Whether a connection to this address, a local pod's own, and port is left alone, as the maps say now. */
  isPlain(address: string, port: number): boolean {
    const value = this.#maps.settings.get(u32(0));
    return value !== undefined && this.#codecs.settings.number(value, 'listener_ports_known') !== 0 && !this.#direct.isProxys(address, port);
  }

  /** The namespace of the pod that has the address. */
  netnsOf(address: string): bigint | undefined {
    return this.#maps.addresses.get(encodeAddress(address))?.readBigUInt64LE();
  }

  #writeSettings(changes: Partial<Record<Setting, number>>): void {
    const { settings } = this.#codecs;
    const before = this.#maps.settings.get(u32(0));
    const kept = before ? Object.fromEntries(SETTINGS.map((name) => [name, settings.number(before, name)])) : {};
    this.#settings = settings.encode({ ...kept, ...changes, layout: this.#layout });
    this.#maps.settings.set(u32(0), this.#settings);
  }

  globalAcceleration(): boolean {
    const value = this.#maps.settings.get(u32(0));
    return value !== undefined && this.#codecs.settings.number(value, 'acceleration') !== 0;
  }

  /** Who may open connections to which pod, by uid; the whole set. Until the first call what a former agent gave holds. */
  setPolicies(policies: ReadonlyMap<string, PodPolicy | 'as it is'>): void {
    this.policies.set(policies);
  }

  /** Versions of the policies in force, by uid; those that a former agent gave, until the first call of `setPolicies`. */
  policyVersions(): Map<string, bigint> {
    return this.policies.versions();
  }

  /** What compares the kernel with what it was given, and mends it. */
  checks(): Check[] {
    const { pods, addresses, settings } = this.#maps;
    return kernelChecks({
      object: this.#object, maps: { pods, addresses, settings }, settings: () => this.#settings,
      pods: () => [...this.#pods.values()].map((attached) => this.#audited(attached)),
      pod: (uid) => this.#pods.has(uid) ? this.#audited(this.#pods.get(uid)!) : undefined,
      attach: (uid, program) => this.#attachAgain(uid, program),
      links: () => [this.#proxy, this.steering, this.host, this.#root].flatMap((each) => [...each.audited()]),
      leftovers: () => [...this.#leftovers.splice(0), ...this.steering.leftovers()],
      tables: [{ name: 'services', audit: () => this.services.audit() }, { name: 'policies', audit: () => this.policies.audit() }, { name: 'HTTP tables', audit: () => this.http.tables.audit() }, { name: 'listener ports', audit: () => this.#direct.audit() }],
    });
  }

  #audited({ pod, slot, complete }: Attached): AuditedPod {
    const hooks = complete && this.#pinDir !== null && !pod.isRooted ? POD_PROGRAMS.map((program) => ({ program, pin: join(this.#pinDir!, podPin(pod.uid, program)) })) : [];
    return { uid: pod.uid, netnsCookie: pod.netnsCookie, cgroupId: pod.cgroupId, cgroupPath: pod.cgroupPath, addresses: pod.addresses, hooks, value: () => this.#podCodec.encode(pod, slot) };
  }

  #attachAgain(uid: string, program: string): void {
    const attached = this.#pods.get(uid);
    if (!attached?.complete) return;
    const at = POD_PROGRAMS.findIndex((name) => name === program);
    const before = attached.links[at];
    // Both for a moment, rather than none.
    attached.links[at] = this.#object.attachCgroup(program, attached.pod.cgroupPath, this.#pin(podPin(uid, program)));
    before?.close();
  }

  #places(): { uid: string; netnsCookie: bigint; slot: number; isNode: boolean }[] {
    return [...this.#pods.values()].map(({ pod, slot }) => ({ uid: pod.uid, netnsCookie: pod.netnsCookie, slot: slot.index, isNode: pod.mode === 'node' }));
  }

  /** Lets go of everything; pins, and so the data plane, stay. */
  async close(): Promise<void> {
    for (const attached of this.#pods.values()) for (const link of attached.links) link.close();
    await this.#store.close();
  }

  /** Removes all that any agent of this instance pinned; the kernel then detaches the programs. */
  static cleanup(options: { bpffsDir: string; instance: string }): void {
    removePins(options.bpffsDir, pinName(options.instance));
  }

  #layoutMatches(): boolean {
    const value = this.#maps.settings.get(u32(0));
    if (!this.#object.adopted || !value) return true;
    return this.#codecs.settings.number(value, 'layout') === this.#layout;
  }

  #start(): void {
    this.#object.attachSockhash('move_message', 'sockets');
    this.#object.attachSockhash('keep_segment', 'sockets');
    if (this.#object.adopted) this.services.adopt();
    else this.setGlobalAcceleration(false);
    this.flows.start();
    this.watch.stopAll();
    if (!this.flows.tellsOpen) this.options.logger.warn('this kernel refuses tracing programs: the bytes of a connection are told when it ends, and not before');
    const clearance = this.#store.add(new Clearance(this.#verdicts, (cookie) => this.#podOf(cookie), this.options.logger));
    this.#store.add(new KernelEvents(this.#object, this.options.logger, this.#counterNames, {
      verdicts: this.#verdicts,
      clearance,
      onQuota: (cookie) => {
        const pod = this.#podOf(cookie);
        if (pod) this.#verdicts.prune(cookie, new Set(pod.isRooted ? [containerByNetns(cookie)] : cgroupIds(pod.cgroupPath)));
      },
    }));
    if (this.#pinDir === null) return;
    // Now, since what is under way there has a deadline, and pods come back with what they wanted.
    if (this.http.former?.hadPrograms()) this.httpPrograms?.ensure();
    this.httpPrograms?.adopt();
    // Before any of its hooks is another program's.
    this.http.former?.start();
    this.#proxy.adopt();
    this.host.adopt();
    this.#adoptPods(join(this.#pinDir, 'links', 'pods'));
    this.steering.adopt([...this.#pods.keys()]);
    clearance.recall();
  }

  #podOf(netnsCookie: bigint): KernelPodState | undefined {
    return [...this.#pods.values()].find(({ pod }) => pod.netnsCookie === netnsCookie)?.pod;
  }

  readonly #pin = (name: string): string | null => (this.#pinDir === null ? null : name);

  #adoptPods(folder: string): void {
    const addresses = new Map<bigint, string[]>();
    for (const [key, value] of this.#maps.addresses.entries()) {
      const cookie = value.readBigUInt64LE();
      addresses.set(cookie, [...(addresses.get(cookie) ?? []), decodeAddress(key)]);
    }
    for (const [key, value] of this.#maps.pods.entries()) {
      const netnsCookie = key.readBigUInt64LE();
      const { state, slot } = this.#podCodec.decode(netnsCookie, value, addresses.get(netnsCookie) ?? [], this.#rootId);
      const links: BpfLink[] = [];
      for (const program of state.isRooted ? [] : POD_PROGRAMS) {
        const link = this.#object.replaceLink(program, podPin(state.uid, program));
        if (link) links.push(link);
      }
      this.#pods.set(state.uid, { pod: state, slot, complete: false, links });
      this.#lastSlot = Math.max(this.#lastSlot, slot.index);
    }
    this.#root.adopt(this.pods().some(({ isRooted }) => isRooted), !this.#object.adopted);
    // Links of a pod that is in no map: an agent died between the two, or the maps are not what it wrote.
    this.#former = new FormerHooks(folder, new Set([...this.#pods.keys()].map(pinName)), !this.#object.adopted);
    this.#leftovers.push(...this.#former.removed.map(leftHooks));
    for (const cookie of lostNamespaces(this.#object, new Set(this.pods().map((pod) => pod.netnsCookie)))) {
      const of = addresses.get(cookie) ?? [];
      this.#forgetNamespace(cookie, of);
      this.#leftovers.push(leftEntries(cookie, of));
    }
  }

  #forgetNamespace(cookie: bigint, addresses: readonly string[]): void {
    for (const address of addresses) this.#forgetAddress(address, cookie);
    const { tuple, peer } = this.#codecs;
    for (const [key] of this.#maps.establishing.entries()) if (tuple.bigint(key, 'netns_cookie') === cookie) this.#maps.establishing.delete(key);
    for (const [key, value] of this.#maps.peers.entries()) {
      if (peer.bigint(value, 'netns_cookie') === cookie) this.#maps.peers.delete(key);
    }
    this.#verdicts.forgetNamespace(cookie);
    this.flows.forgetNamespace(cookie);
    this.policies.forget(cookie);
  }

  #forgetAddress(address: string, owner: bigint): void {
    const key = encodeAddress(address);
    // Another pod may have been given the address since.
    if (this.#maps.addresses.get(key)?.readBigUInt64LE() === owner) this.#maps.addresses.delete(key);
  }

  /** Slots start at 1 and go round; each use starts with zero counters and a generation of its own. */
  #freeSlot(): Slot {
    const used = new Set([...this.#pods.values()].map(({ slot }) => slot.index));
    const { podCounters: codec } = this.#codecs;
    const slots = this.#maps.podCounters.maxEntries - 1;
    for (let step = 0; step < slots; step++) {
      const index = ((this.#lastSlot + step) % slots) + 1;
      const current = used.has(index) ? undefined : this.#maps.podCounters.get(u32(index));
      if (!current) continue;
      const parts = perCpu(current, codec.sizeBytes);
      const generation = (Math.max(...parts.map((part) => codec.number(part, 'generation'))) + 1) >>> 0;
      const zero = codec.encode({ generation });
      const stride = current.length / parts.length;
      this.#maps.podCounters.set(u32(index), Buffer.concat(parts.map(() => Buffer.concat([zero, Buffer.alloc(stride - zero.length)]))));
      this.policies.forgetPlace(index);
      this.#lastSlot = index;
      return { index, generation };
    }
    throw new UnderpassError('UNDERPASS_TOO_MANY_PODS', `adding a pod: the kernel's tables hold ${slots}`);
  }

  #countersOf(uid: string): PodCounters | undefined {
    const attached = this.#pods.get(uid);
    const value = attached && this.#maps.podCounters.get(u32(attached.slot.index));
    if (!value) return undefined;
    const codec = this.#codecs.podCounters;
    const parts = perCpu(value, codec.sizeBytes);
    return Object.fromEntries(
      codec.counterFields().map((name) => [name, parts.reduce((sum, part) => sum + codec.bigint(part, name), 0n)]),
    ) as unknown as PodCounters;
  }
}

function podPin(uid: string, program: string): string {
  return `links/pods/${pinName(uid)}/${program}`;
}

/** `device:inode` of an executable as the kernel keeps it, for markProgram. */
export function executable(path: string): { device: number; inode: bigint } {
  const { dev, ino } = statSync(path, { bigint: true });
  return { device: kernelDevice(dev), inode: ino };
}
