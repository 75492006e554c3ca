/**
 * Moves one pod from what it is to what its labels ask, one step at a time and in an order in which every moment is a
 * working state: what new connections need is up before they are sent there, and what live connections need stays until
 * they are gone. A step that fails leaves the pod as the steps before it left it; the whole is tried again later.
 */
import { errorMessage } from '../../common/errors.js';
import type { PodRecord } from '../../common/lab-api.js';
import type { Logger } from '../../common/log.js';
import type { Backoff } from '../../common/retry.js';
import type { CaptureRules, KernelPod, ListenerPod, Namespaces, PodKernel, PodProxy } from './collaborators.js';
import type { Acceleration, Mode } from '../workloads/enrolment.js';

export type Way = 'bpf' | 'iptables';

export interface PodTarget {
  record: PodRecord;
  mode: Mode;
  acceleration: Acceleration;
  /** How a pod in mode `node` or `sidecar` is captured; `iptables` in mode `sidecar` means its own rules. */
  way: Way;
  /** Why it is not what the labels ask for. */
  reason?: string;
}

export type PodState = 'off' | 'enrolling' | 'enrolled' | 'draining' | 'failed';

/** What is in place. */
export interface Actual {
  pinned: boolean;
  listener: boolean;
  kernel: KernelPod | undefined;
  rules: 'none' | 'active' | 'stopped';
}

export interface Surroundings {
  kernel: PodKernel | undefined;
  namespaces: Namespaces;
  proxy: PodProxy;
  /** Adds, changes or removes this pod in the set that the proxy is to serve. */
  setListener(uid: string, pod: ListenerPod | undefined): void;
  logger: Logger;
  drainPollMs: number;
  readyTimeoutMs: number;
  backoff: () => Backoff;
}

export class PodController {
  readonly #abort = new AbortController();
  readonly #around: Surroundings;
  readonly #backoff: Backoff;
  #target: PodTarget | 'gone';
  #record: PodRecord;
  #actual: Actual;
  #generation = 0;
  #wake: (() => void) | undefined;
  #running: Promise<void> | undefined;
  #state: PodState = 'off';
  #settled = false;
  #error: string | undefined;
  #notes: string[] = [];
  #connections: number | undefined;
  #drainPolls = 0;
  #logged = 'off, plain, acceleration off';

  constructor(around: Surroundings, target: PodTarget, actual: Actual) {
    this.#around = around;
    this.#backoff = around.backoff();
    this.#target = target;
    this.#record = target.record;
    this.#actual = actual;
  }

  get record(): PodRecord {
    return this.#record;
  }

  get target(): PodTarget | 'gone' {
    return this.#target;
  }

  /** Nothing of ours is left at a pod that is gone. */
  get finished(): boolean {
    return this.#target === 'gone' && this.#settled;
  }

  /** What is in place is what was asked for. */
  get settled(): boolean {
    return this.#settled;
  }

  start(): void {
    this.#running ??= this.#run();
  }

  setTarget(target: PodTarget | 'gone'): void {
    if (target !== 'gone') this.#record = target.record;
    if (sameTarget(this.#target, target)) {
      this.#target = target;
      return;
    }
    this.#target = target;
    this.#generation++;
    this.#drainPolls = 0;
    this.#settled = false;
    this.#backoff.reset();
    this.#wakeUp();
  }

  async stop(): Promise<void> {
    this.#abort.abort();
    this.#wakeUp();
    await this.#running;
  }

  /** The way that new connections of the pod take. */
  get way(): Way | 'plain' {
    if (this.#actual.kernel?.capture) return 'bpf';
    return this.#actual.rules === 'active' || this.#actual.kernel?.redirected ? 'iptables' : 'plain';
  }

  status(): {
    state: PodState;
    way: Way | 'plain';
    acceleration: Acceleration;
    listener: boolean;
    error?: string;
    notes: string[];
    drainingConnections?: number;
  } {
    return {
      state: this.#state,
      way: this.way,
      acceleration: this.#actual.kernel?.acceleration ?? 'off',
      listener: this.#actual.listener,
      notes: this.#notes,
      ...(this.#error === undefined ? {} : { error: this.#error }),
      ...(this.#connections === undefined ? {} : { drainingConnections: this.#connections }),
    };
  }

  #wakeUp(): void {
    this.#wake?.();
    this.#wake = undefined;
  }

  async #run(): Promise<void> {
    const { signal } = this.#abort;
    while (!signal.aborted) {
      const generation = this.#generation;
      let again: number | undefined;
      try {
        again = await this.#converge(this.#target);
        this.#error = undefined;
        this.#logChange();
        this.#backoff.reset();
        if (this.#generation === generation) this.#settled = again === undefined;
      } catch (error) {
        if (signal.aborted) return;
        // Superseded in the middle of a step: not a failure.
        if (this.#generation !== generation) continue;
        again = this.#backoff.next();
        this.#state = 'failed';
        const known = this.#error === errorMessage(error);
        this.#error = errorMessage(error);
        this.#around.logger[known ? 'debug' : 'warn']({ pod: this.#name(), way: this.way, reason: this.#error, retryMs: Math.round(again) }, 'a step failed; the pod stays on its present way');
      }
      if (this.#generation !== generation) continue;
      if (this.finished) return;
      await this.#pause(again);
    }
  }

  /** Until something changes, or the time has passed. */
  async #pause(ms: number | undefined): Promise<void> {
    if (this.#abort.signal.aborted) return;
    await new Promise<void>((resolve) => {
      const timer = ms === undefined ? undefined : setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** One pass. Returns after how many milliseconds to look again, or nothing when the target is reached. */
  async #converge(target: PodTarget | 'gone'): Promise<number | undefined> {
    if (target === 'gone') return this.#bury();
    const present = this.#actual.kernel?.mode ?? (this.#actual.listener ? 'node' : undefined);
    if (target.mode === 'off' || (present !== undefined && present !== target.mode)) return this.#leave(target);
    return target.mode === 'node' ? this.#enrol(target) : this.#enrolWithSidecar(target);
  }

  async #enrol(target: PodTarget): Promise<number | undefined> {
    const { namespaces, proxy, kernel } = this.#around;
    const { uid, netns } = target.record;
    if (this.way !== target.way) this.#state = 'enrolling';
    this.#connections = undefined;
    const path = namespaces.pin(uid, netns);
    this.#actual.pinned = true;

    const keepsRedirected = target.way === 'iptables' || this.#actual.rules !== 'none';
    this.#around.setListener(uid, listenerPod(target.record, path, keepsRedirected));
    this.#actual.listener = true;
    await this.#bounded((signal) => proxy.whenReady(uid, signal));
    this.#current(target);

    const cookie = kernel ? await namespaces.cookie(path) : undefined;
    this.#current(target);
    const rules = namespaces.rules(path);
    const kernelPod = (capture: boolean, redirected: boolean): KernelPod | undefined =>
      cookie === undefined ? undefined : { ...kernelIdentity(target.record, cookie), mode: 'node', capture, redirected, acceleration: target.acceleration };
    if (target.way === 'bpf') {
      this.#putPod(kernelPod(true, false));
      if (this.#actual.rules === 'active') await this.#stopRules(rules);
      this.#notes = [];
    } else {
      if (this.#actual.rules !== 'active') {
        const { backend, notes } = await rules.start();
        this.#actual.rules = 'active';
        this.#notes = [`iptables backend ${backend}`, ...notes];
      }
      this.#putPod(kernelPod(false, true));
    }
    this.#state = 'enrolled';
    if (target.way === 'iptables' || this.#actual.rules === 'none') return undefined;
    // Redirected connections from before live from the rules that are left.
    const { redirected } = await namespaces.capturedSockets(path);
    this.#connections = redirected;
    if (redirected > 0) return this.#drainDelay();
    this.#current(target);
    await rules.remove();
    this.#actual.rules = 'none';
    this.#connections = undefined;
    this.#around.setListener(uid, listenerPod(target.record, path, false));
    return undefined;
  }

  async #enrolWithSidecar(target: PodTarget): Promise<number | undefined> {
    const { namespaces, kernel } = this.#around;
    if (!kernel) {
      this.#state = 'off';
      return undefined;
    }
    const cookie = await namespaces.cookie(target.record.netns);
    this.#current(target);
    const captured = target.way === 'bpf';
    this.#putPod({ ...kernelIdentity(target.record, cookie), mode: 'sidecar', capture: captured, redirected: !captured, acceleration: target.acceleration });
    this.#state = 'enrolled';
    return undefined;
  }

  async #leave(target: PodTarget): Promise<number | undefined> {
    const { namespaces, proxy, kernel } = this.#around;
    const { uid } = this.#record;
    const path = namespaces.path(uid);
    const was = this.#actual.kernel;
    let stopped = false;
    if (was && (was.capture || was.redirected || was.acceleration !== 'off')) {
      this.#putPod({ ...was, capture: false, redirected: false, acceleration: 'off' });
      stopped = true;
    }
    if (this.#actual.rules === 'active') {
      await this.#stopRules(namespaces.rules(path));
      stopped = true;
    }
    if (this.#actual.pinned || was) {
      this.#state = 'draining';
      // A connect() that was under way when capture stopped becomes a connection only now.
      if (stopped) return this.#around.drainPollMs;
      const live = await this.#liveConnections(uid, path);
      if (live > 0) {
        this.#connections = live;
        return this.#drainDelay();
      }
    }
    this.#current(target);
    this.#connections = undefined;
    if (this.#actual.listener) await this.#removeListener(uid, proxy);
    // From here on the pod is let go of for good: a target that changes now starts from nothing, in the next pass.
    if (this.#actual.kernel) kernel?.removePod(uid);
    this.#actual.kernel = undefined;
    if (this.#actual.rules !== 'none') await namespaces.rules(path).remove();
    this.#actual.rules = 'none';
    if (this.#actual.pinned) namespaces.unpin(uid);
    this.#actual.pinned = false;
    this.#state = 'off';
    this.#notes = [];
    // A pod that changes between the modes leaves one first.
    return target.mode === 'off' ? undefined : 0;
  }

  /** The pod's processes are gone, and with them its connections. */
  async #bury(): Promise<undefined> {
    const { namespaces, proxy, kernel } = this.#around;
    const { uid } = this.#record;
    this.#state = 'draining';
    if (this.#actual.kernel) kernel?.removePod(uid);
    this.#actual.kernel = undefined;
    this.#actual.rules = 'none';
    if (this.#actual.listener) await this.#removeListener(uid, proxy);
    if (this.#actual.pinned) namespaces.unpin(uid);
    this.#actual.pinned = false;
    this.#state = 'off';
    return undefined;
  }

  /** Connections that stay at all often stay for long: ask them less and less. */
  #drainDelay(): number {
    return Math.min(this.#around.drainPollMs * 1.5 ** this.#drainPolls++, this.#around.drainPollMs * 10);
  }

  async #removeListener(uid: string, proxy: PodProxy): Promise<void> {
    this.#around.setListener(uid, undefined);
    await this.#bounded((signal) => proxy.whenRemoved(uid, signal));
    this.#actual.listener = false;
  }

  async #liveConnections(uid: string, path: string): Promise<number> {
    const { namespaces, proxy, kernel } = this.#around;
    const captured = this.#actual.kernel ? (kernel?.liveConnections(uid) ?? 0) : 0;
    if (captured > 0 || !this.#actual.pinned) return captured;
    const [sockets, active] = await Promise.all([namespaces.capturedSockets(path), proxy.activeConnections(uid)]);
    return Math.max(sockets.total, active);
  }

  async #stopRules(rules: CaptureRules): Promise<void> {
    await rules.stop();
    this.#actual.rules = 'stopped';
  }

  #putPod(pod: KernelPod | undefined): void {
    if (!pod) return;
    this.#around.kernel?.putPod(pod);
    this.#actual.kernel = pod;
  }

  /** Ends a pass whose target was replaced while it waited. */
  #current(target: PodTarget): void {
    if (this.#target !== target && !sameTarget(this.#target, target)) throw new Error('superseded');
  }

  /** A wait that ends with the controller, with a new target, or after its time. */
  async #bounded(wait: (signal: AbortSignal) => Promise<void>): Promise<void> {
    const superseded = new AbortController();
    const generation = this.#generation;
    this.#wake = () => this.#generation !== generation && superseded.abort();
    const timeout = AbortSignal.timeout(this.#around.readyTimeoutMs);
    const signal = AbortSignal.any([this.#abort.signal, superseded.signal, timeout]);
    try {
      await Promise.race([wait(signal), aborted(signal)]);
    } catch (error) {
      if (timeout.aborted) throw new Error(`Envoy did not acknowledge the listener within ${this.#around.readyTimeoutMs} ms`);
      throw error;
    } finally {
      this.#wake = undefined;
    }
  }

  /** One line for each change that a user asked for, none for a pass that found nothing to do. */
  #logChange(): void {
    const change = `${this.#state}, ${this.way}, acceleration ${this.#actual.kernel?.acceleration ?? 'off'}`;
    if (change === this.#logged) return;
    this.#logged = change;
    this.#around.logger.info({ pod: this.#name(), state: this.#state, way: this.way, acceleration: this.#actual.kernel?.acceleration ?? 'off' }, 'pod changed');
  }

  #name(): string {
    return `${this.#record.namespace}/${this.#record.name}`;
  }
}

/** Rejects when the signal aborts, for waits that do not look at it themselves. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason as Error);
    else signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true });
  });
}

function sameTarget(a: PodTarget | 'gone', b: PodTarget | 'gone'): boolean {
  if (a === 'gone' || b === 'gone') return a === b;
  return (
    a.mode === b.mode && a.acceleration === b.acceleration && a.way === b.way && a.record.netns === b.record.netns &&
    a.record.cgroup === b.record.cgroup && a.record.serviceAccount === b.record.serviceAccount &&
    JSON.stringify([a.record.ips, a.record.labels, a.record.annotations]) === JSON.stringify([b.record.ips, b.record.labels, b.record.annotations])
  );
}

function kernelIdentity(record: PodRecord, netnsCookie: bigint): Pick<KernelPod, 'uid' | 'netnsCookie' | 'cgroupPath' | 'addresses'> {
  return { uid: record.uid, netnsCookie, cgroupPath: record.cgroup, addresses: record.ips };
}

export function listenerPod(record: PodRecord, netnsPath: string, iptables: boolean): ListenerPod {
  const { uid, name, namespace, labels, annotations, serviceAccount, ips } = record;
  return { uid, name, namespace, labels, annotations, serviceAccount, ips, netnsPath, iptables };
}

