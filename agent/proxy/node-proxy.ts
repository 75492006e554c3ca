/**
 * The node's proxy: config classes' streams from the control plane, folded for the one shared Envoy, and that Envoy.
 * Data flows one way: streams → snapshot → ADS server → Envoy.
 */
import { mkdirSync } from 'node:fs';
import { isIPv6 } from 'node:net';
import { join } from 'node:path';
import type { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import type { Logger } from '../../common/log.js';
import { DEFAULT_TRUST_DOMAIN, spiffeId } from '../../common/identity/spiffe.js';
import { NodeCertificates, type NodeCaFactory } from '../identity/certificates.js';
import { TlsChannels, type DiscoveryTls } from '../xds/tls-channels.js';
import type { Check } from '../consistency/drift.js';
import type { SourcedResource } from '../consistency/object-status.js';
import { classKey, sidecarNode } from '../xds/config-class.js';
import { likelyState } from '../xds/likely-state.js';
import { SidecarStream, type SidecarState } from '../xds/sidecar-stream.js';
import type { Change } from '../xds/delta-stream.js';
import { WorkloadStream } from '../xds/workload-stream.js';
import { AdsServer } from './ads-server.js';
import { EnvoyAudit } from './envoy-audit.js';
import { ConnectionCounts } from './connection-counts.js';
import { Envoy, type EnvoyOptions } from './envoy.js';
import { EnvoyFlowLogs } from './envoy-flow-logs.js';
import { EnvoyReports } from './envoy-reports.js';
import { logBoundPath, writeLogBound } from './log-bound.js';
import { EnvoyExtensions } from './extensions.js';
import { Folder, type FoldProblem, type FoldResult } from './fold.js';
import { inboundListenerName } from './fold-inbound.js';
import { needsOfPods, type InboundNeeds } from './inbound-needs.js';
import { BriefListeners } from './brief-listeners.js';
import { InboundFollower, type InboundPods } from './inbound-follower.js';
import { HealthRelay } from './health-relay.js';
import { tunnelHeaders } from './hbone-originate.js';
import { ListenerWaits, type ListenerWaitsOptions } from './listener-waits.js';
import { podHboneName, podListenerName, podOfListener, type ListenerPod } from './pod-listener.js';
import { NarrowingFollower, policiesOfPods, savedPolicies, type NarrowingOptions } from './narrowing.js';
import { PlainPorts } from './plain-ports.js';
import type { ProxyPod } from './proxy-pod.js';
import type { NodeProxyStatus } from './proxy-status.js';
import { proxyRequests, type RequestView } from './request-view.js';
import { RepeatFollower, type RepeatFollowerOptions } from './repeat-follower.js';
import { endpointKeys } from './pool-renewal.js';
import { serviceAuthorities } from './service-authorities.js';
import { LDS, SDS, type Snapshot } from './snapshot.js';
import { WaypointIndex, type WaypointTable } from './waypoint-table.js';
import { StateFile } from './xds-state.js';

export type { ProxyPod } from './proxy-pod.js';
export type { NodeProxyStatus } from './proxy-status.js';

/**
 * Ports of all outbound listeners of all classes, ascending; `all` when a class refuses what matches no service
 * (REGISTRY_ONLY), so that no connection is without a listener's say.
 */
export type ListenerPorts = readonly number[] | 'all';

export interface NodeProxyOptions extends Pick<NarrowingOptions, 'onNarrowing' | 'onNarrowed'>, Pick<ListenerWaitsOptions, 'isOpen'>, Pick<EnvoyOptions, 'execPath' | 'launcherSocket' | 'handover' | 'drainSeconds'> {
  nodeName: string;
  /** The node's address, for the WDS stream's node id; default 127.0.0.1. */
  nodeAddress?: string;
  /** `<run>/<instance>` */
  runDir: string;
  /** `host:port` or `unix:/path` */
  discoveryAddress: string;
  discoveryTls?: DiscoveryTls;
  envoyPath: string;
  /** cgroup v2 folder of Envoy. */
  cgroupPath?: string;
  concurrency?: number;
  /** Where Envoy runs and which DNS servers it asks, if not as this process does. */
  netnsPath?: string;
  dnsServers?: readonly string[];
  /** Lines of access logs that Envoy writes in a second at most. */
  accessLogRate?: number;
  clusterId?: string;
  logger: Logger;
  /** With the first snapshot and on every change. @param proxied local pods' own addresses that are the proxy's on every port */
  onListenerPorts?: (ports: ListenerPorts, proxied: readonly string[]) => void;
  /** Which pods' connections are to be redirected to their inbound listeners; called on every change. */
  onInbound?: (pods: InboundPods) => void;
  /** What the control plane says of workloads and their policies; called on every change. */
  onWorkloads?: (view: WorkloadStream, change: Change) => void;
  /** By uid, before Envoy is told: for which ports it has no more to say of callers than L4 policies do. */
  onInboundNeeds?: (needs: ReadonlyMap<string, InboundNeeds>) => void;
  /** With every change of what the control plane sends: how ports are to be judged, and the pods that have a say in who calls them or of which it is not known. */
  onPlainPorts?: (ports: PlainPorts, behind: ReadonlySet<string>) => void;
  /** After a start, how long to wait for the control plane before the saved state is used; default 5 s. */
  staleAfterMs?: number;
  /** The kernel's hooks are on Envoy's cgroup: programs are told whom it calls for. */
  showsCallers?: boolean;
  /** Signs the certificates of the pods' service accounts; without it there is no mutual TLS. */
  ca?: NodeCaFactory;
  /** Default: what the control plane says of each workload. */
  trustDomain?: string;
  /** What the kernel repeats for pods that are taught; without it nobody is. */
  fastPath?: Pick<RepeatFollowerOptions, 'repeater' | 'tables'>;
}

interface ConfigClass {
  key: string;
  node: Node;
  /** uid of the pod whose identity the stream uses. */
  representative: string;
  stream: SidecarStream;
  /** From disk, while the control plane has not answered. */
  saved: SidecarState | undefined;
}

/** Updates of one push reach the classes' streams within milliseconds of each other; they go out as one. */
const SETTLE_MS = 25;
/** How long classes may disagree about a resource that they shared before it is split in two. */
const SPLIT_AFTER_MS = 400;
/** The same where one of them gets a table of routes of another name, which drains its HTTP connections. */
const DRAIN_AFTER_MS = 2_000;
const SAVE_DELAY_MS = 1_000;
/** Of the time that the last saving took: one that takes long is rare. */
const SAVE_DELAY_FACTOR = 20;

export class NodeProxy {
  readonly envoy: Envoy;
  readonly #connections: ConnectionCounts;
  readonly #options: NodeProxyOptions;
  readonly #logger: Logger;
  readonly #channels: TlsChannels;
  readonly #workloads: WorkloadStream;
  readonly #ads: AdsServer;
  readonly #audit: EnvoyAudit;
  readonly #healthRelay: HealthRelay;
  readonly #certificates: NodeCertificates | undefined;
  readonly #inbound: InboundFollower;
  readonly #narrowing: NarrowingFollower;
  readonly #brief: BriefListeners;
  readonly #classes = new Map<string, ConfigClass>();
  readonly #waits: ListenerWaits;
  readonly #stopping = new AbortController();
  #pods = new Map<string, ProxyPod>();
  /** The class that each pod's listener was last made from: it stays until the pod's new class is synced. */
  #folded = new Map<string, string>();
  #podsGiven = false;
  #eventDriven: ReadonlySet<string> = new Set();
  readonly #repeat: RepeatFollower | undefined;
  /** Until it is over Envoy has the snapshot before. */
  #holding: Promise<void> | undefined;
  #started = false;
  #listenerPorts: ListenerPorts = [];
  #reportedPorts: string | undefined;
  /** By WDS, as far as it counts here. */
  #saidOfPods = '';
  #folder: Folder | undefined;
  #snapshot: Snapshot | undefined;
  #problems: FoldProblem[] = [];
  #split: ReadonlySet<string> = new Set();
  /** Keys of the classes that the last snapshot was folded from. */
  #published: ReadonlySet<string> = new Set();
  /** Listeners that an adopted Envoy has on pods' ports of HBONE and of redirected callers. */
  #held: ReadonlySet<string> = new Set();
  /** Classes for which an adopted Envoy may hold what this agent has not heard of yet. */
  #unheard = new Set<string>();
  readonly #waypoints: WaypointIndex;
  readonly #file: StateFile;
  readonly #formerPolicies: ReturnType<typeof savedPolicies>;
  /** Those of the last snapshot. */
  #foldedWaypoints: WaypointTable | undefined;
  #staleAllowed = false;
  #timer: NodeJS.Timeout | undefined; #dirtySince: number | undefined;
  #saveTimer: NodeJS.Timeout | undefined; #staleTimer: NodeJS.Timeout | undefined;

  constructor(options: NodeProxyOptions) {
    this.#options = options;
    this.#logger = options.logger;
    const { discoveryTls: tls, clusterId } = options;
    this.#channels = new TlsChannels({ address: options.discoveryAddress, ...(tls ? { tls } : {}), ...(options.ca ? { certificateOf: (id) => this.#certificates?.certificate(id) } : {}) });
    this.#workloads = new WorkloadStream({
      channel: this.#channels.own, nodeName: options.nodeName, nodeAddress: options.nodeAddress ?? '127.0.0.1', logger: options.logger, ...(tls?.account ? { account: tls.account } : {}), ...(clusterId === undefined ? {} : { clusterId }),
      onChange: (change) => {
        this.#workloadsChanged(change);
        options.onWorkloads?.(this.#workloads, change);
      },
    });
    this.envoy = new Envoy({ ...options, cgroupPath: options.cgroupPath, isSettled: () => this.settled });
    this.#connections = new ConnectionCounts(this.envoy.admin);
    const accepts = (node: Node): boolean => this.envoy.isServed(node);
    this.#healthRelay = new HealthRelay({
      open: () => this.#channels.openHealth(),
      nodeName: options.nodeName, accepts,
      podOf: (ip) => [...this.#pods.values()].find(({ ips }) => ips.includes(ip)),
      logger: options.logger,
    });
    this.#ads = new AdsServer({
      socketPath: this.envoy.adsSocketPath, accepts,
      logger: options.logger,
      onNode: (node) => this.#envoyConnected(node),
      beforeListeners: (names) => this.#narrowing.beforeListeners(names), refusalOf: (name) => this.envoy.admin.refusal(name),
      register: (server) => [this.#healthRelay, this.flowLogs].forEach((each) => each.addTo(server)),
    });
    this.#audit = new EnvoyAudit({ ads: this.#ads, admin: this.envoy.admin, envoy: () => this.envoy.identity, file: join(options.runDir, 'envoy-prints') });
    this.#certificates = options.ca && new NodeCertificates({ ca: options.ca, onChange: () => (this.#channels.certificatesChanged(), this.#schedule()), logger: options.logger });
    const envoysAnswers = { ads: this.#ads, stopping: this.#stopping.signal };
    this.#repeat = options.fastPath && new RepeatFollower({ ...envoysAnswers, ...options.fastPath });
    this.#narrowing = new NarrowingFollower({ ...envoysAnswers, ...options });
    this.#brief = new BriefListeners({ ...envoysAnswers, isThere: (uid) => this.#folded.has(uid) || (this.envoy.status.adopted && this.#ads.mayHold(LDS, podListenerName(uid))), onTurn: () => this.#schedule() });
    this.#inbound = new InboundFollower({
      ...envoysAnswers,
      unknown: () => [...this.#pods.keys()].filter((uid) => !this.#folded.has(uid)),
      untried: () => [...this.#pods.values()].flatMap(({ uid, hbonePortFree }) => (hbonePortFree === undefined ? uid : [])),
      ...(this.#certificates ? { hasCertificate: (uid) => this.#pods.has(uid) && this.#ads.status(SDS, this.#identity(this.#pods.get(uid)!)).acked } : {}),
      beforeReached: (uids) => this.#narrowing.before(uids),
      onReached: () => this.#schedule(),
      onInbound: (pods) => options.onInbound?.(pods),
    });
    this.#waits = new ListenerWaits({
      ...envoysAnswers, envoy: this.envoy,
      snapshot: () => this.#snapshot, isWanted: (uid) => this.#pods.has(uid), classOf: (uid) => this.#folded.get(uid), isStarted: () => this.#started, ...(options.isOpen ? { isOpen: options.isOpen } : {}),
    });
    this.#waypoints = new WaypointIndex(options.nodeName);
    this.#file = new StateFile(join(options.runDir, 'xds-state.bin'), this.#logger);
    this.#formerPolicies = savedPolicies(this.#file.saved.classes);
  }

  /** Which destinations are reached through a waypoint; before the control plane has told, as it was last known. */
  get waypoints(): WaypointTable {
    return this.#workloads.synced ? this.#waypoints.table : this.#file.saved.waypoints;
  }

  /** The workloads and services of the mesh, from the WDS stream. */
  get workloads(): WorkloadStream {
    return this.#workloads;
  }

  readonly flowLogs: EnvoyFlowLogs = new EnvoyFlowLogs(() => this.envoy.admin);
  readonly reports: EnvoyReports = new EnvoyReports(() => this.envoy.admin);
  readonly requests: RequestView = proxyRequests(() => (this.#snapshot ? this.envoy : undefined), () => this.#pods, (pod) => [...this.#classes.values()].flatMap(({ key, stream }) => (!pod || classKey(pod) === key ? stream.state : [])));

  /**
   * Opens the streams and the ADS server, adopts or starts Envoy. Returns as soon as Envoy runs; it gets its first
   * configuration once `setPods` was called (before or after this) and every class is synced.
   */
  async start(signal?: AbortSignal): Promise<void> {
    mkdirSync(this.#options.runDir, { recursive: true, mode: 0o700 });
    writeLogBound(this.#options.runDir, this.#options.accessLogRate);
    await this.#ads.start();
    this.#workloads.start();
    this.#staleTimer = setTimeout(() => {
      this.#staleAllowed = true;
      this.#schedule();
    }, this.#options.staleAfterMs ?? 5_000);
    try {
      await this.envoy.start(signal);
    } catch (error) {
      await this.stop({ keepEnvoy: true });
      throw error;
    }
    this.#started = true;
    this.#schedule();
  }

  /** The pods that are to have a listener; call again with the whole set on every change. */
  setPods(pods: readonly ProxyPod[]): void {
    this.#podsGiven = true;
    const wanted = new Map(pods.map((pod) => [pod.uid, pod]));
    const gone = [...this.#pods.keys()].filter((uid) => !wanted.has(uid));
    this.#pods = wanted;
    this.#healthRelay.podsChanged();
    for (const uid of gone) this.#folded.delete(uid);
    this.#waits.changed(gone, wanted.keys());
    this.#wantCertificates();
    this.#reconcileClasses();
    this.#schedule();
  }

  /**
   * Local servers whose connections can be short-circuited, as `10.0.0.1:80` or `[fd00::1]:80`: connections that Envoy
   * pooled towards one before it was among them are drained and opened anew. The whole set; call it before `start` with
   * what is known then, so that an adopted Envoy has nothing to renew.
   */
  setEventDriven(endpoints: ReadonlySet<string>): void {
    const keys = endpointKeys(endpoints);
    if (keys.size === this.#eventDriven.size && [...keys].every((key) => this.#eventDriven.has(key))) return;
    this.#eventDriven = keys;
    this.#schedule();
  }

  /** See ListenerWaits. */
  whenReady(uid: string, signal?: AbortSignal): Promise<void> {
    return this.#waits.whenReady(uid, signal);
  }

  /** See ListenerWaits. */
  whenRemoved(uid: string, signal?: AbortSignal): Promise<void> {
    return this.#waits.whenRemoved(uid, signal);
  }

  /** Ports of all outbound listeners of all classes; empty before the first snapshot. */
  listenerPorts(): ListenerPorts {
    return this.#listenerPorts;
  }

  /** Everything that was heard from the control plane has been folded, sent and answered by Envoy. */
  get settled(): boolean {
    return this.#snapshot !== undefined && this.#dirtySince === undefined && !this.#holding && this.#ads.idle && this.#inbound.settled;
  }

  activeConnections(uid: string): Promise<number> {
    return this.#connections.of(uid);
  }

  status(): NodeProxyStatus {
    const waiting = [...this.#classes.values()].some(({ stream }) => stream.isWaiting);
    const streams = [...this.#classes.values()].map((item) => item.stream.status);
    const wds = this.#workloads.status;
    return {
      envoy: { ...this.envoy.status, connected: this.#ads.connected },
      controlPlane: {
        address: this.#options.discoveryAddress,
        connected: wds.connected || streams.some((stream) => stream.connected),
        streams: streams.filter((stream) => stream.connected).length,
        lastError: wds.lastError ?? streams.find((stream) => stream.lastError !== undefined)?.lastError,
      },
      classes: [...this.#classes.values()].map((item) => {
        const state = item.stream.synced ? item.stream.state : (item.saved ?? item.stream.state);
        return {
          key: item.key,
          node: item.node.id,
          pods: [...this.#pods.values()].filter((pod) => classKey(pod) === item.key).map((pod) => pod.uid),
          synced: item.stream.synced,
          stale: !item.stream.status.connected, ...(item.stream.status.since === undefined ? {} : { since: item.stream.status.since }),
          clusters: state.clusters.size,
          listeners: state.listeners.size,
          routes: state.routes.size,
          rejected: item.stream.rejected,
        };
      }),
      workloads: { addresses: this.#workloads.addresses.size, authorizations: this.#workloads.authorizations.size, synced: this.#workloads.synced },
      ...(this.#certificates ? { certificates: this.#certificates.status() } : {}),
      pushes: this.#ads.pushes,
      nacks: [
        ...this.#ads.nacks.map(({ type, name, message, objects }) => ({ type, name, message, objects })),
        ...this.#problems.map(({ classKey: key, resource, message }) => ({ type: 'fold', name: `${key}: ${resource}`, message })),
      ],
      settled: this.settled && this.#brief.settled && !waiting,
    };
  }

  checks(): Check[] {
    return this.#audit.checks();
  }

  /** What Envoy is to have, with the objects that it comes from. */
  resources(): Iterable<SourcedResource> {
    return this.#audit.resources();
  }

  /** @param keepEnvoy leave Envoy running, with its configuration, for the next agent to adopt */
  async stop({ keepEnvoy }: { keepEnvoy: boolean }): Promise<void> {
    this.#stopping.abort(new UnderpassError('UNDERPASS_STOPPED', 'the node proxy was stopped'));
    for (const timer of [this.#timer, this.#saveTimer, this.#staleTimer]) clearTimeout(timer);
    await this.#save();
    for (const item of this.#classes.values()) item.stream.close();
    this.#workloads.close();
    await this.#certificates?.close();
    this.#healthRelay.close();
    this.#channels.close();
    this.#ads.close();
    if (keepEnvoy) this.envoy.close();
    else await this.envoy.stop();
  }

  #reconcileClasses(): void {
    const members = new Map<string, ProxyPod[]>();
    for (const pod of this.#pods.values()) members.set(classKey(pod), [...(members.get(classKey(pod)) ?? []), pod]);
    for (const [key, pods] of members) {
      const existing = this.#classes.get(key);
      if (!existing) {
        this.#classes.set(key, this.#openClass(key, pods[0] as ProxyPod));
      } else if (!pods.some((pod) => pod.uid === existing.representative)) {
        const next = pods[0] as ProxyPod;
        existing.representative = next.uid;
        existing.node = sidecarNode(next, this.#options);
        existing.stream.setNode(existing.node);
      }
    }
    const inUse = new Set(this.#folded.values());
    for (const [key, item] of this.#classes) {
      if (members.has(key) || inUse.has(key)) continue;
      item.stream.close();
      this.#classes.delete(key);
    }
  }

  #openClass(key: string, pod: ProxyPod): ConfigClass {
    const node = sidecarNode(pod, this.#options);
    const stream = new SidecarStream({ channel: this.#channels.as(() => this.#identity(pod)), node, logger: this.#logger, onUpdate: () => this.#schedule() });
    const saved = this.#file.saved.classes.find((item) => item.key === key)?.state;
    if (saved) stream.preload(saved);
    else this.#announceLikely(stream, pod);
    // What is known of it is published first: all names of a mesh, to be said to the control plane, take their time.
    if (saved && this.#staleAllowed) setTimeout(() => stream.start(), 2 * SETTLE_MS);
    else stream.start();
    return { key, node, representative: pod.uid, stream, saved };
  }

  #announceLikely(stream: SidecarStream, { namespace }: ProxyPod): void {
    const isNear = ({ representative }: ConfigClass): boolean => this.#pods.get(representative)?.namespace === namespace;
    const synced = [...this.#classes.values()].filter((item) => item.stream.synced).sort((a, b) => Number(isNear(b)) - Number(isNear(a)));
    const likely = likelyState([...synced.map((item) => item.stream.state), ...this.#file.saved.classes.map(({ state }) => state)]);
    if (likely) stream.preload(likely, { isOthers: true });
  }

  #envoyConnected(node: Node): void {
    if (!this.#folder) {
      const extensions = new EnvoyExtensions(node.extensions, { logBound: logBoundPath(this.#options.runDir) });
      this.#logger.info({ extensions: extensions.size }, 'Envoy connected');
      this.#folder = new Folder(extensions, this.#file.saved);
    }
    this.#schedule();
  }

  #schedule(): void {
    if (this.#stopping.signal.aborted) return;
    this.#dirtySince ??= performance.now();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#publish(), SETTLE_MS);
  }

  #publish(): void {
    // Again when Envoy has what is held back.
    if (this.#holding) return;
    try {
      this.#publishNow();
    } catch (error) {
      this.#dirtySince = undefined;
      this.#logger.error({ error: errorMessage(error) }, 'the configuration could not be made; Envoy keeps the last good one');
    }
  }

  #publishNow(): void {
    // An Envoy may ask before it is known whether it is one that has all already: it is not to be told as one that has nothing.
    if (!this.#folder || !this.#podsGiven || !this.#started) return;
    const ready = new Map<string, { key: string; state: SidecarState }>();
    for (const item of this.#classes.values()) {
      const state = item.stream.synced ? item.stream.state : this.#staleAllowed ? item.saved : undefined;
      if (state) ready.set(item.key, { key: item.key, state });
    }
    // The first snapshot takes away what is not in it: it has to be whole, and nothing may lead around a waypoint.
    if (this.#snapshot === undefined && (ready.size < this.#classes.size || !this.#workloads.synced) && !this.#staleAllowed) return;
    // Of an adopted Envoy it takes away only what is known to be gone: pods of a class without an answer go on as they are.
    if (this.#snapshot === undefined && this.envoy.status.adopted) this.#unheard = new Set(this.#classes.keys());
    for (const key of this.#unheard) if (ready.has(key) || !this.#classes.has(key)) this.#unheard.delete(key);
    // Its own listeners are what keeps their ports from being free.
    if (this.#snapshot === undefined && this.envoy.status.adopted) this.#held = new Set([...this.#pods.keys()].flatMap((uid) => [podHboneName(uid), inboundListenerName(uid)]).filter((name) => this.#ads.mayHold(LDS, name)));
    const served = [...this.#pods.values()].flatMap((pod) => {
      const own = classKey(pod);
      const key = ready.has(own) ? own : this.#folded.get(pod.uid);
      return key !== undefined && ready.has(key) ? [{ pod, key }] : [];
    });
    this.#brief.choose(served.map(({ pod: { uid } }) => uid));
    const pods = served.map(({ pod, key }) => ({ ...this.#listenerPod(pod), classKey: key }));
    const folder = this.#folder;
    const classes = this.#file.bySeniority(ready).map((item) => ({ ...item, serviceName: this.#classes.get(item.key)?.node.cluster ?? '', ...this.#certificateOf(pods.find(({ classKey: of }) => of === item.key)?.identity) }));
    const fold = (): FoldResult => folder.fold(classes, pods, this.#eventDriven, this.#inbound.reached, this.waypoints, this.#repeat?.tables);
    // An adopted Envoy has the internal listeners of pods that are redirected: their endpoints go on leading there.
    if (this.#snapshot === undefined && this.envoy.status.adopted) this.#inbound.adopt(new Map([...fold().inbound].filter(([uid]) => this.#pods.get(uid)?.redirected)));
    const reached = this.#inbound.reached;
    let folded = fold();
    if (this.#repeat?.renews(folded, this.#snapshot)) folded = fold();
    const { problems, split } = folded;
    const waited = performance.now() - (this.#dirtySince ?? 0);
    const sameClasses = ready.size === this.#published.size && [...ready.keys()].every((key) => this.#published.has(key));
    const parting = [...split].filter((name) => !this.#split.has(name));
    const patience = parting.length === 0 ? 0 : parting.some((name) => name.startsWith('RDS ')) ? DRAIN_AFTER_MS : SPLIT_AFTER_MS;
    if (sameClasses && waited < patience) {
      this.#timer = setTimeout(() => this.#publish(), patience - waited);
      return;
    }
    this.#dirtySince = undefined;
    folder.commit();
    this.#foldedWaypoints = this.waypoints;
    this.#split = split;
    this.#published = new Set(ready.keys());
    this.#reportProblems(problems);
    const give = (): void => this.#give(folded, { pods, ready, reached });
    const held = this.#repeat?.before(folded);
    if (!held) return give();
    this.#holding = held.finally(() => (this.#holding = undefined)).then(() => {
      if (this.#stopping.signal.aborted) return;
      give();
      if (this.#dirtySince !== undefined) this.#schedule();
    }).catch((error: unknown) => this.#logger.error({ error: errorMessage(error) }, 'the configuration could not be given to Envoy'));
  }

  /** What was folded, to Envoy and to all that follow it. */
  #give(folded: FoldResult, { pods, ready, reached }: { pods: readonly (ListenerPod & { classKey: string })[]; ready: ReadonlyMap<string, { key: string; state: SidecarState }>; reached: ReadonlyMap<string, string> }): void {
    const { snapshot, ports, proxied } = folded;
    const whole = this.#certificates ? snapshot.with(SDS, this.#certificates.secrets) : snapshot;
    this.#snapshot = this.#unheard.size === 0 ? whole : whole.keeping((type, name) => type !== LDS || !this.#isGonePod(name));
    this.#options.onInboundNeeds?.(needsOfPods(pods, (of) => ready.get(of)?.state));
    this.#folded = new Map(pods.map((pod) => [pod.uid, pod.classKey]));
    const rollout = this.#ads.setSnapshot(this.#snapshot);
    this.#brief.follow(rollout);
    this.#narrowing.follow(policiesOfPods(pods, (of) => ready.get(of)?.state), folded.inbound, reached, rollout, (uid) => (this.envoy.status.adopted ? this.#formerPolicies.get(this.#folded.get(uid)!) : undefined));
    this.#inbound.follow(folded);
    this.#repeat?.follow(folded, rollout);
    this.#reportPorts(ports, proxied);
    // Of an adopted Envoy's pods some may follow what nobody here has heard of yet.
    const known = this.#unheard.size === 0 ? [...ready.values()].flatMap(({ key }) => pods.find(({ classKey: of }) => of === key) ?? []).map(({ classKey: key, addresses = [] }) => ({ key, state: ready.get(key)!.state, addresses })) : [];
    this.#options.onPlainPorts?.(new PlainPorts(known), new Set([...folded.enforcing, ...[...this.#pods.keys()].filter((uid) => !this.#folded.has(uid))]));
    this.#reconcileClasses();
    this.#saveTimer ??= setTimeout(() => void this.#save(), Math.max(SAVE_DELAY_MS, SAVE_DELAY_FACTOR * this.#file.tookMs));
  }

  #listenerPod(pod: ProxyPod): ListenerPod {
    const { uid, netnsPath, ips, redirected = false } = pod;
    const [endsTunnels, canRedirect] = [pod.hbonePortFree === true || this.#held.has(podHboneName(uid)), pod.inboundPortFree !== false || this.#held.has(inboundListenerName(uid))];
    return { ...(pod.taught ? { taught: pod.taught } : {}), ...(this.#brief.has(uid) ? { brief: true } : {}), ...(this.#certificates ? tunnelHeaders(pod, this.#options.clusterId ?? 'Kubernetes') : {}), endsTunnels, canRedirect, showsCallers: this.#options.showsCallers === true, uid, name: `${pod.namespace}/${pod.name}`, netnsPath, ipv6: ips.some((ip) => isIPv6(ip)), addresses: [...ips].sort((a, b) => Number(isIPv6(a)) - Number(isIPv6(b))), identity: this.#identity(pod), redirected, ...(endsTunnels && this.#certificates ? { services: serviceAuthorities(this.#workloads.addresses, this.#workloadUid(pod)) } : {}) };
  }

  /** In WDS. */
  #workloadUid({ name, namespace }: Pick<ProxyPod, 'name' | 'namespace'>): string {
    return `${this.#options.clusterId ?? 'Kubernetes'}//Pod/${namespace}/${name}`;
  }

  #identity({ name, namespace, serviceAccount }: ProxyPod): string {
    const address = this.#workloads.addresses.get(this.#workloadUid({ name, namespace }))?.message.type;
    const trustDomain = this.#options.trustDomain ?? ((address?.$case === 'workload' && address.value.trust_domain) || DEFAULT_TRUST_DOMAIN);
    return spiffeId({ trustDomain, namespace, serviceAccount: serviceAccount || 'default' });
  }

  /** An adopted Envoy may have a certificate from the agent before this one. */
  #certificateOf(identity: string | undefined): { identity?: string; certified?: boolean } {
    const certificates = this.#certificates;
    if (!certificates || identity === undefined) return {};
    return { identity, certified: certificates.secrets.has(identity) || (this.envoy.status.adopted && this.#ads.mayHold(SDS, identity)) };
  }

  #workloadsChanged({ updated, removed }: Change): void {
    this.#waypoints.update(this.#workloads.addresses, [...updated, ...removed]);
    if (this.waypoints !== this.#foldedWaypoints) this.#schedule();
    const now = JSON.stringify([...this.#pods.values()].map((pod) => [this.#identity(pod), ...(this.#certificates ? serviceAuthorities(this.#workloads.addresses, this.#workloadUid(pod)) : [])]));
    if (now === this.#saidOfPods) return;
    this.#saidOfPods = now;
    this.#wantCertificates();
    this.#schedule();
  }

  #wantCertificates(): void {
    this.#certificates?.want(new Set([...this.#pods.values()].map((pod) => this.#identity(pod))));
  }

  #isGonePod(listener: string): boolean {
    const uid = podOfListener(listener);
    return uid !== undefined && !this.#pods.has(uid);
  }

  #reportPorts(ports: ListenerPorts, proxied: readonly string[]): void {
    if (this.#reportedPorts === (this.#reportedPorts = `${ports} ${proxied}`)) return;
    this.#listenerPorts = ports;
    this.#options.onListenerPorts?.(ports, proxied);
  }

  #reportProblems(problems: FoldProblem[]): void {
    const before = new Set(this.#problems.map((problem) => JSON.stringify(problem)));
    for (const problem of problems) {
      if (!before.has(JSON.stringify(problem))) this.#logger.error({ ...problem }, 'can not be folded; the last good one stays');
    }
    this.#problems = problems;
  }

  async #save(): Promise<void> {
    clearTimeout(this.#saveTimer);
    this.#saveTimer = undefined;
    const classes = this.#file.bySeniority(new Map([...this.#classes].filter(([, item]) => item.stream.synced)))
      .map(({ key, node, stream }) => ({ key, node, state: stream.state }));
    // Nothing heard from the control plane in this run: what an earlier run saved is still the best there is.
    if (classes.length === 0) return;
    const former = this.#file.saved.classes.filter((old) => this.#classes.has(old.key) && !classes.some((item) => item.key === old.key));
    await this.#file.save({ classes: [...former, ...classes], waypoints: this.waypoints, accountClusters: [...(this.#folder?.accountClusters ?? this.#file.saved.accountClusters)], ...(this.#folder ? { names: this.#folder.names } : this.#file.saved.names ? { names: this.#file.saved.names } : {}) });
  }
}
