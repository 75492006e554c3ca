/**
 * All pods of this node: one controller each, the set of listeners that the proxy is to serve, and what a former agent
 * left in place, taken over as it is.
 */
import { isDeepStrictEqual } from 'node:util';
import { errorMessage } from '../../common/errors.js';
import type { PodRecord } from '../../common/lab-api.js';
import type { Logger } from '../../common/log.js';
import { Backoff, sleep, waitFor } from '../../common/retry.js';
import type { Check, Drift } from '../consistency/drift.js';
import { enrolmentOf, type Acceleration, type Enrolment, type EnrolmentDefaults, type Mode } from '../workloads/enrolment.js';
import type { InboundPods, InboundSteering, KernelPod, ListenerPod, Namespaces, PodKernel, PodProxy } from './collaborators.js';
import { AS_IT_IS, PodController, type Actual, type PodState, type Surroundings } from './pod-controller.js';
import { listenerPod, type PodTarget, type Way } from './pod-target.js';
import { RulesAudit } from './rules-audit.js';
import { InboundWay } from './inbound-way.js';
import { CALLERS_HEAR_MS, type SetPodMetadata } from './announcement.js';

const ENROLLED_POLL_MS = 5;

export interface Capabilities {
  /** Why pods can't be captured by the BPF hooks; undefined when they can. */
  bpfProblem: string | undefined;
}

export interface DataplaneOptions {
  kernel: (PodKernel & { pods(): (KernelPod & { isRooted?: boolean })[] }) | undefined;
  namespaces: Namespaces;
  proxy: PodProxy;
  defaults: EnrolmentDefaults;
  logger: Logger;
  /** How often a pod that is let go of is asked for live connections. */
  drainPollMs?: number;
  /** Absent where pods' labels and annotations can't be set: the mesh is not told which pods take mutual TLS and HBONE. */
  setMetadata?: SetPodMetadata;
  callersHearMs?: number;
  readyTimeoutMs?: number;
  /** Resolves when it is known which policies hold for a pod: none comes into the mesh before. Absent: nobody enforces any. */
  policiesKnown?: (uid: string, signal: AbortSignal) => Promise<void>;
  backoff?: () => Backoff;
  /** Told of every change of whether what comes to a pod over the network is led to the proxy. */
  setBehindProxy?: (uid: string, isBehind: boolean, isPassable?: boolean) => void;
  /** Absent where the kernel side can't be used. */
  steering?: InboundSteering;
  /** Whether what pods with acceleration l7 want is still to come, in the kernel. */
  isFastPathLoading?: () => boolean;
}

export interface PodStatus {
  uid: string;
  name: string;
  namespace: string;
  ips: string[];
  mode: Mode;
  state: PodState;
  /** How new connections leave the pod. */
  way: Way | 'plain';
  wantedWay: Way | 'plain';
  /** Where the kernel's hooks of the pod are: its own cgroup, or the root of the hierarchy, since it has none. Absent without hooks. */
  hooks?: 'cgroup' | 'root';
  acceleration: Acceleration;
  wantedAcceleration: Acceleration;
  listener: boolean;
  settled: boolean;
  reason?: string;
  error?: string;
  notes: string[];
  drainingConnections?: number;
}

export class Dataplane {
  readonly #options: DataplaneOptions;
  readonly #around: Surroundings;
  readonly #controllers = new Map<string, PodController>();
  readonly #listeners = new Map<string, ListenerPod>();
  /** Pods that ended while no agent ran, and of which something was left. */
  readonly #ended = new Map<string, PodController>();
  readonly #warned = new Set<string>();
  #capabilities: Capabilities = { bpfProblem: 'the self-test has not finished yet' };
  #records: readonly PodRecord[] = [];
  #inbound: InboundPods | undefined;
  #started = false;
  #flush: Promise<void> | undefined;

  constructor(options: DataplaneOptions) {
    this.#options = options;
    const { proxy } = options;
    const afterFlush = async (): Promise<void> => this.#flush;
    this.#around = {
      kernel: options.kernel,
      namespaces: options.namespaces,
      logger: options.logger,
      drainPollMs: options.drainPollMs ?? 500,
      setMetadata: options.setMetadata,
      callersHearMs: options.callersHearMs ?? CALLERS_HEAR_MS,
      readyTimeoutMs: options.readyTimeoutMs ?? 20_000,
      backoff: options.backoff ?? (() => new Backoff({ initialMs: 500, maxMs: 30_000, factor: 1.6, jitter: 0.2 })),
      ...(options.policiesKnown ? { policiesKnown: options.policiesKnown } : {}),
      ...(options.setBehindProxy ? { setBehindProxy: options.setBehindProxy } : {}),
      ...(options.steering ? { steering: options.steering } : {}),
      setListener: (uid, pod) => this.#setListener(uid, pod),
      proxy: {
        setPods: (pods) => proxy.setPods(pods),
        whenReady: async (uid, signal) => {
          await afterFlush();
          await proxy.whenReady(uid, signal);
        },
        whenRemoved: async (uid, signal) => {
          await afterFlush();
          await proxy.whenRemoved(uid, signal);
        },
        activeConnections: (uid) => proxy.activeConnections(uid),
      },
    };
  }

  /**
   * Takes over what is in place, for the node's first known set of pods, and gives the proxy the listeners that have to
   * stay. Changes nothing: call it before the proxy talks to Envoy, then `start`.
   */
  async adopt(records: readonly PodRecord[]): Promise<void> {
    const { namespaces, kernel, logger } = this.#options;
    const pinned = new Set(namespaces.pinned());
    const inKernel = new Map((kernel?.pods() ?? []).map((pod) => [pod.uid, pod]));
    const known = new Map(records.map((record) => [record.uid, record]));
    for (const uid of new Set([...pinned, ...inKernel.keys()])) {
      const record = known.get(uid);
      const actual: Actual = { pinned: pinned.has(uid), listener: pinned.has(uid), kernel: inKernel.get(uid), rules: 'none', inbound: { rules: 'none', steered: this.#options.steering?.state(uid) ?? 'none' } };
      if (record && actual.pinned) {
        const path = namespaces.path(uid);
        try {
          for (const [target, rules] of [[actual, namespaces.rules(path)], [actual.inbound, namespaces.inboundRules(path)]] as const) {
            const state = await rules.state();
            target.rules = state.active ? (state.outdated ? 'unknown' : 'active') : state.present ? 'stopped' : 'none';
          }
        } catch (error) {
          // Rules that are there and forgotten would redirect the pod to nobody once its listener is gone.
          actual.rules = actual.inbound.rules = 'unknown';
          logger.warn({ pod: `${record.namespace}/${record.name}`, reason: errorMessage(error) }, "can't read the pod's iptables rules; they count as there");
        }
        const { isActive, isPassable } = new InboundWay(undefined, actual.inbound);
        if (isActive) this.#around.setBehindProxy?.(uid, true, isPassable);
        this.#listeners.set(uid, listenerPod(record, path, actual.rules !== 'none', new InboundWay(undefined, actual.inbound).isPresent, undefined, false, taughtCookie(actual)));
      }
      const controller = new PodController(this.#around, this.#targetOf(record ?? lost(uid)), actual);
      if (!record) {
        controller.setTarget('gone');
        this.#ended.set(uid, controller);
      }
      this.#controllers.set(uid, controller);
    }
    this.#records = records;
    this.#options.proxy.setPods([...this.#listeners.values()]);
    if (this.#controllers.size > 0) {
      const gone = [...this.#controllers.values()].filter((controller) => controller.target === 'gone').length;
      logger.info({ pods: this.#controllers.size - gone, gone }, 'took over the pods of a former agent');
    }
  }

  /** Lets the controllers run, now that it is known what this node can do. */
  start(capabilities: Capabilities): void {
    this.#capabilities = capabilities;
    this.#started = true;
    this.setPods(this.#records);
  }

  /** The full current set of the node's pods. */
  setPods(records: readonly PodRecord[]): void {
    this.#records = records;
    if (!this.#started) return;
    const present = new Set(records.map((record) => record.uid));
    for (const [uid, controller] of this.#controllers) {
      if (!present.has(uid)) controller.setTarget('gone');
      if (controller.finished) this.#controllers.delete(uid);
    }
    for (const record of records) {
      const target = this.#targetOf(record);
      const controller = this.#controllers.get(record.uid);
      if (controller) controller.setTarget(target);
      else this.#controllers.set(record.uid, new PodController(this.#around, target, { pinned: false, listener: false, kernel: undefined, rules: 'none', inbound: { rules: 'none', steered: 'none' } }));
    }
    this.#options.kernel?.keepFormer?.(new Set([...this.#controllers].flatMap(([uid, { target }]) => (target !== 'gone' && target.mode === 'node' ? [uid] : []))));
    this.#tellInbound();
    for (const controller of this.#controllers.values()) controller.start();
  }

  /** Which pods' callers have to pass their policy; until the first call all stay as they are. */
  setInbound(pods: InboundPods): void {
    this.#inbound = pods;
    this.#tellInbound();
  }

  #tellInbound(): void {
    if (!this.#inbound) return;
    const { wanted, ready, certified, tunnelled, takingTunnels } = this.#inbound;
    for (const [uid, controller] of this.#controllers) {
      const isRedirected = ready.has(uid);
      const mutualTls = certified?.has(uid) ? 'taken' : isRedirected && certified ? 'as it is' : 'not taken';
      const tunnels = takingTunnels.has(uid) ? 'taken' : tunnelled.has(uid) ? 'as it is' : 'not taken';
      controller.setInbound({ ...(isRedirected ? { way: 'redirected', mutualTls } : wanted.has(uid) ? AS_IT_IS : { way: 'plain', mutualTls: 'not taken' }), tunnels });
    }
  }

  /** What compares the pods' rules with those that were made, and tells what was left of pods that ended while no agent ran. */
  checks(): Check[] {
    const rules = new RulesAudit(this.#options.namespaces, () => this.#controllers);
    return [{ name: 'ended pods', parts: () => this.#left() }, { name: 'rules', parts: () => rules.parts() }];
  }

  *#left(): Generator<Drift[]> {
    for (const [uid, controller] of this.#ended) {
      const repair = (): Promise<unknown> => waitFor('the rest of the pod to be removed', () => controller.finished, { timeoutMs: 2_000, everyMs: 20 });
      yield [{ kind: 'pod', state: 'orphaned', name: uid, pod: uid, detail: 'it ended while no agent ran', repair: async () => void (await repair()) }];
      if (controller.finished) this.#ended.delete(uid);
    }
  }

  /** Resolves when all is in place that the pod's labels ask for; a pod that is not known yet is waited for. Rejects when the signal aborts, or the pod is gone. */
  async whenEnrolled(uid: string, signal: AbortSignal): Promise<void> {
    const isSo = (): boolean => {
      const controller = this.#controllers.get(uid);
      return controller?.status().state === 'enrolled' && controller.settled;
    };
    let wasThere = false;
    while (!isSo()) {
      const isThere = this.#records.some((record) => record.uid === uid);
      if (wasThere && !isThere) throw new Error('the pod was deleted meanwhile');
      wasThere ||= isThere;
      await sleep(ENROLLED_POLL_MS, signal);
    }
  }

  status(): PodStatus[] {
    const rows: PodStatus[] = [];
    const inKernel = new Map((this.#options.kernel?.pods() ?? []).map(({ uid, isRooted }) => [uid, isRooted === true ? 'root' as const : 'cgroup' as const]));
    for (const record of this.#records) {
      const target = this.#targetOf(record);
      const now = this.#controllers.get(record.uid)?.status() ?? { state: 'off' as const, way: 'plain' as const, acceleration: 'off' as const, listener: false, notes: [], reason: undefined };
      const isLoading = target.acceleration === 'l7' && (this.#options.isFastPathLoading?.() ?? false);
      const settled = !isLoading && (this.#controllers.get(record.uid)?.settled ?? false);
      const reasons = [target.reason, now.reason].filter((reason) => reason !== undefined);
      rows.push({
        uid: record.uid,
        name: record.name,
        namespace: record.namespace,
        ips: record.ips,
        mode: target.mode,
        ...now,
        wantedWay: target.mode === 'off' ? 'plain' : target.way,
        wantedAcceleration: target.mode === 'off' ? 'off' : target.acceleration,
        settled,
        ...(inKernel.has(record.uid) ? { hooks: inKernel.get(record.uid)! } : {}),
        // What its labels come to, and what the pod's own controller met on the way there.
        ...(reasons.length === 0 ? {} : { reason: reasons.join('; ') }),
      });
    }
    return rows.sort((a, b) => `${a.namespace}/${a.name}`.localeCompare(`${b.namespace}/${b.name}`));
  }

  /** Stops the controllers where they are; everything in place stays. */
  async stop(): Promise<void> {
    this.#started = false;
    await Promise.all([...this.#controllers.values()].map((controller) => controller.stop()));
  }

  #enrolment(record: PodRecord): Enrolment {
    return enrolmentOf(record, this.#options.defaults);
  }

  #targetOf(record: PodRecord): PodTarget {
    const enrolment = this.#enrolment(record);
    for (const unknown of enrolment.unknown) {
      // A namespace's label is one mistake, not one for each of its pods.
      const owner = unknown.on === 'pod' ? `pod ${record.namespace}/${record.name}` : `namespace ${record.namespace}`;
      const key = `${owner} ${unknown.label}=${unknown.value}`;
      if (this.#warned.has(key)) continue;
      this.#warned.add(key);
      const { label, value, expected, usedInstead } = unknown;
      this.#options.logger.warn({ owner, label, value, expected, usedInstead }, 'unknown label value');
    }
    const { way, reason } = this.#way(enrolment);
    const why = enrolment.reason ?? reason ?? enrolment.conflict ?? (enrolment.unknown.length > 0 ? enrolment.unknown.map(({ label, value }) => `${label}=${value} is unknown`).join('; ') : undefined);
    const mode = enrolment.mode === 'sidecar' && !this.#options.kernel ? 'off' : enrolment.mode;
    const { acceleration, splices, l7Auto } = enrolment;
    return { record, mode, acceleration, ...(splices === undefined ? {} : { splices }), ...(l7Auto ? { l7Auto } : {}), way, mayFallBack: enrolment.redirection !== 'bpf', ...(why === undefined ? {} : { reason: why }) };
  }

  #way({ mode, redirection }: Enrolment): { way: Way; reason?: string } {
    if (mode === 'off') return { way: 'bpf' };
    const { bpfProblem } = this.#capabilities;
    if (redirection === 'iptables') return { way: 'iptables' };
    if (bpfProblem === undefined) return { way: 'bpf' };
    const consequence = mode === 'node' ? 'redirected by iptables' : 'left to its sidecar\'s own iptables rules';
    return { way: 'iptables', reason: `${consequence}, since ${bpfProblem}` };
  }

  #setListener(uid: string, pod: ListenerPod | undefined): void {
    if (pod && isDeepStrictEqual(this.#listeners.get(uid), pod)) return;
    if (!pod && !this.#listeners.has(uid)) return;
    if (pod) this.#listeners.set(uid, pod);
    else this.#listeners.delete(uid);
    // Many pods that change together are one batch for Envoy.
    this.#flush ??= Promise.resolve().then(() => {
      this.#flush = undefined;
      this.#options.proxy.setPods([...this.#listeners.values()]);
    });
  }
}

/** Of a pod that the kernel learns from. */
function taughtCookie({ kernel, rules }: Pick<Actual, 'kernel' | 'rules'>): bigint | undefined {
  return kernel?.mode === 'node' && kernel.capture && kernel.acceleration === 'l7' && rules === 'none' ? kernel.netnsCookie : undefined;
}

/** Stands for a pod of which only a pin or a kernel entry is left. */
function lost(uid: string): PodRecord {
  return {
    uid, name: uid, namespace: '', labels: {}, annotations: {}, namespaceLabels: {}, nodeName: '', serviceAccount: '', ips: [],
    netns: '', cgroup: '', hostNetwork: false, phase: 'Failed', ready: false, terminating: true, hasSidecar: false, containers: [],
  };
}
