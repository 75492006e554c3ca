/**
 * Moves one pod from what it is to what its labels ask, one step at a time and in an order in which every moment is a
 * working state: what new connections need is up before they are sent there, and what live connections need stays until
 * they are gone. A step that fails leaves the pod as the steps before it left it; the whole is tried again later.
 */
import { errorMessage } from '../../common/errors.js';
import { HBONE_PORT, INBOUND_PORT } from '../../common/istio-iptables.js';
import type { PodRecord } from '../../common/lab-api.js';
import type { Logger } from '../../common/log.js';
import type { Backoff } from '../../common/retry.js';
import { Announcement, HBONE, MUTUAL_TLS, type SetPodMetadata } from './announcement.js';
import type { CaptureRules, InboundSteering, KernelPod, ListenerPod, Namespaces, PodKernel, PodProxy } from './collaborators.js';
import { InboundWay, type InboundState } from './inbound-way.js';
import { PodPorts } from './pod-ports.js';
import { kernelIdentity, listenerPod, sameTarget, type PodTarget, type Way } from './pod-target.js';
import type { Direction } from './iptables.js';
import type { Acceleration } from '../workloads/enrolment.js';

export type PodState = 'off' | 'enrolling' | 'enrolled' | 'draining' | 'failed';

/** What is in place. */
export interface Actual {
  pinned: boolean;
  listener: boolean;
  kernel: KernelPod | undefined;
  /** `unknown`: they could not be read, so whatever relies on them makes them, and whoever leaves takes them away. */
  rules: 'none' | 'active' | 'stopped' | 'unknown';
  /** What leads to the proxy what comes to the pod. */
  inbound: InboundState;
}

/** What the pod's policy asks: its callers go through the proxy, no longer do so, or stay as they are until that is known. */
export interface InboundWish {
  way: 'redirected' | 'plain' | 'as it is';
  /** Whether Envoy can end mutual TLS for the pod. */
  mutualTls: 'taken' | 'not taken' | 'as it is';
  /** Whether HBONE ends at Envoy for the pod. */
  tunnels: 'taken' | 'not taken' | 'as it is';
}

export const AS_IT_IS: InboundWish = { way: 'as it is', mutualTls: 'as it is', tunnels: 'as it is' };

export interface Surroundings {
  kernel: PodKernel | undefined;
  namespaces: Namespaces;
  proxy: PodProxy;
  /** Absent where rules have to do it. */
  steering?: InboundSteering;
  /** Whether what comes to this pod over the network is led to the proxy's inbound listener, and passes it where the kernel has judged. */
  setBehindProxy?: (uid: string, isBehind: boolean, isPassable?: boolean) => void;
  /** Adds, changes or removes this pod in the set that the proxy is to serve. */
  setListener(uid: string, pod: ListenerPod | undefined): void;
  logger: Logger;
  drainPollMs: number;
  setMetadata: SetPodMetadata | undefined;
  callersHearMs: number;
  readyTimeoutMs: number;
  policiesKnown?: (uid: string, signal: AbortSignal) => Promise<void>;
  backoff: () => Backoff;
}

export class PodController {
  readonly #abort = new AbortController();
  readonly #around: Surroundings;
  readonly #backoff: Backoff;
  #target: PodTarget | 'gone';
  #record: PodRecord;
  #actual: Actual;
  #inbound = AS_IT_IS;
  readonly #mutualTls: Announcement;
  readonly #tunnels: Announcement;
  readonly #ports = new PodPorts();
  /** Of its network namespace. */
  #cookie: bigint | undefined;
  #generation = 0;
  #wake: (() => void) | undefined;
  #running: Promise<void> | undefined;
  #state: PodState = 'off';
  #settled = false;
  #error: string | undefined;
  /** Why the kernel's hooks are not for this pod, until its labels change. */
  #refusal: string | undefined;
  #notes: string[] = [];
  readonly #arrivals: InboundWay;
  #connections: number | undefined;
  #drainPolls = 0;
  #logged = 'off, plain, acceleration off';

  constructor(around: Surroundings, target: PodTarget, actual: Actual) {
    this.#around = around;
    this.#backoff = around.backoff();
    const { setMetadata, logger, callersHearMs } = around;
    this.#mutualTls = new Announcement(MUTUAL_TLS, setMetadata, logger, callersHearMs);
    this.#tunnels = new Announcement(HBONE, setMetadata, logger, callersHearMs);
    this.#target = target;
    this.#record = target.record;
    this.#actual = actual;
    this.#arrivals = new InboundWay(around.steering, actual.inbound);
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
    this.#refusal = undefined;
    this.#arrivals.tryAgain();
    this.#settled = false;
    this.#backoff.reset();
    this.#wakeUp();
  }

  setInbound(wish: InboundWish): void {
    if (this.#inbound.way === wish.way && this.#inbound.mutualTls === wish.mutualTls && this.#inbound.tunnels === wish.tunnels) return;
    this.#inbound = wish;
    this.#generation++;
    this.#settled = false;
    this.#backoff.reset();
    this.#wakeUp();
  }

  /** The rules that lead the pod's connections, for who looks whether they are there; none while something changes. */
  get rulesInForce(): Direction[] {
    if (!this.#settled || this.#target === 'gone') return [];
    return [...(this.#actual.rules === 'active' ? ['outbound' as const] : []), ...(this.#arrivals.isRuled ? ['inbound' as const] : [])];
  }

  /** They are not what they were: the next pass makes them again. */
  lost(direction: Direction): void {
    if (direction === 'inbound') this.#arrivals.lost();
    else this.#actual.rules = 'unknown';
    this.#generation++;
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
    reason?: string;
    notes: string[];
    drainingConnections?: number;
  } {
    const reason = this.#reason();
    return {
      state: this.#state,
      way: this.way,
      acceleration: this.#actual.kernel?.acceleration ?? 'off',
      listener: this.#actual.listener,
      notes: [...this.#notes, ...this.#arrivals.notes, ...(this.#ports.hboneFree === false && this.#inbound.tunnels === 'not taken' ? [`takes no HBONE, since port ${HBONE_PORT} is a program's of its own`] : []), ...(this.#ports.inboundFree === false && this.#inbound.way === 'as it is' ? [`callers that its policy leaves to the proxy are refused, since port ${INBOUND_PORT} is a program's of its own`] : [])],
      ...(this.#error === undefined ? {} : { error: this.#error }),
      ...(reason === undefined ? {} : { reason }),
      ...(this.#connections === undefined ? {} : { drainingConnections: this.#connections }),
    };
  }

  #reason(): string | undefined {
    if (this.#refusal !== undefined) return this.#refusal;
    if (this.#state !== 'draining' || !this.#connections || this.#actual.kernel?.mode !== 'sidecar') return undefined;
    return `its sidecar keeps ${this.#connections} upstream connections in its pools, which were captured and stay so until it closes them (Envoy's idle time-out is an hour)`;
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
        again = await this.#convergeOrFallBack(this.#target);
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

  async #convergeOrFallBack(target: PodTarget | 'gone'): Promise<number | undefined> {
    try {
      return await this.#converge(target);
    } catch (error) {
      if (!(error instanceof KernelRefusal) || target === 'gone' || !target.mayFallBack || this.#refusal !== undefined || this.#target !== target) throw error;
      const instead = target.mode === 'node' ? 'redirected by iptables' : "left to its sidecar's own iptables rules";
      this.#refusal = `${instead}, since the kernel refuses this pod: ${error.message}`;
      this.#around.logger.warn({ pod: this.#name(), reason: this.#refusal }, 'the kernel refuses the pod; it goes without the hooks');
      return 0;
    }
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
    const way = this.#refusal === undefined ? target.way : 'iptables';
    if (this.way !== way) this.#state = 'enrolling';
    if (!this.#actual.listener) await this.#ports.beforeListening(namespaces, netns);
    this.#current(target);
    const path = namespaces.pin(uid, netns);
    this.#actual.pinned = true;

    const keepsRedirected = way === 'iptables' || this.#actual.rules !== 'none';
    this.#cookie = kernel ? await namespaces.cookie(path) : undefined;
    if (this.#actual.listener) await this.#ports.whileListening(namespaces, path, this.#around.logger, this.#name());
    this.#current(target);
    this.#setListener(target, path, keepsRedirected);
    this.#actual.listener = true;
    await this.#bounded((signal) => proxy.whenReady(uid, signal), 'Envoy did not acknowledge the listener');
    this.#current(target);
    const { policiesKnown } = this.#around;
    if (policiesKnown && this.way === 'plain') await this.#bounded((signal) => policiesKnown(uid, signal), 'the pod stays outside of the mesh: the control plane did not say which policies hold for it');
    this.#current(target);

    const cookie = this.#cookie;
    const rules = namespaces.rules(path);
    const kernelPod = (capture: boolean, redirected: boolean): KernelPod | undefined =>
      cookie === undefined ? undefined : { ...kernelIdentity(target, cookie), mode: 'node', capture, redirected, acceleration: target.acceleration };
    if (way === 'bpf') {
      this.#putPod(kernelPod(true, false));
      if (isActive(this.#actual)) await this.#stopRules(rules);
      this.#notes = [];
    } else {
      if (this.#actual.rules !== 'active') {
        const { backend, notes } = await rules.start(this.#actual.rules === 'unknown');
        this.#actual.rules = 'active';
        this.#notes = [`iptables backend ${backend}`, ...notes];
      }
      if (this.#refusal === undefined) this.#putPod(kernelPod(false, true));
      else this.#removeFromKernel(uid);
    }
    const again = soonest(await this.#redirectInbound(target, path, keepsRedirected), await this.#tellTunnels());
    if (way === 'iptables' || this.#actual.rules === 'none') {
      this.#state = 'enrolled';
      this.#connections = undefined;
      return again;
    }
    // Redirected connections from before live from the rules that are left.
    const { redirected } = await namespaces.capturedSockets(path);
    this.#connections = redirected;
    this.#state = 'enrolled';
    if (redirected > 0) return this.#drainDelay();
    this.#current(target);
    await rules.remove();
    this.#actual.rules = 'none';
    this.#connections = undefined;
    this.#setListener(target, path, false);
    return again;
  }

  #setListener({ record, acceleration }: PodTarget, path: string, iptables: boolean): void {
    const netnsCookie = iptables || acceleration !== 'l7' ? undefined : this.#cookie;
    this.#around.setListener(record.uid, listenerPod(record, path, iptables, this.#arrivals.isPresent, this.#ports.hboneFree, this.#ports.inboundFree, netnsCookie));
  }

  /** Where a policy decides who may call, all that comes for the pod passes its inbound listener. */
  async #redirectInbound(target: PodTarget, path: string, iptables: boolean): Promise<number | undefined> {
    const { namespaces, logger } = this.#around;
    const rules = namespaces.inboundRules(path);
    const { uid, ips } = target.record;
    const { way, mutualTls } = this.#inbound;
    const unheardMs = mutualTls === 'not taken' ? await this.#mutualTls.withdraw(this.#record) : undefined;
    if (way === 'redirected') {
      const maySteer = target.way === 'bpf' && this.#refusal === undefined;
      const reason = await this.#arrivals.lead({ uid, netnsPath: path, ips, cookie: () => namespaces.cookie(path), rules, maySteer });
      if (reason !== undefined) logger.warn({ pod: this.#name(), reason }, 'the pod is not steered');
    } else if (way === 'plain' && unheardMs === undefined && this.#arrivals.isActive) {
      this.#around.setBehindProxy?.(uid, false);
      await this.#arrivals.stop(uid, rules);
    }
    this.#around.setBehindProxy?.(uid, this.#arrivals.isActive, this.#arrivals.isPassable);
    // Connections that were redirected need the listener for as long as they live.
    this.#setListener(target, path, iptables);
    return mutualTls === 'taken' && this.#arrivals.isActive ? this.#mutualTls.announce(this.#record) : unheardMs;
  }

  /** Whether HBONE ends here depends on Envoy and the pod's certificate alone. */
  async #tellTunnels(): Promise<number | undefined> {
    if (this.#inbound.tunnels === 'as it is') return undefined;
    return this.#inbound.tunnels === 'taken' ? this.#tunnels.announce(this.#record) : this.#tunnels.withdraw(this.#record);
  }

  async #enrolWithSidecar(target: PodTarget): Promise<number | undefined> {
    const { namespaces, kernel } = this.#around;
    if (!kernel || this.#refusal !== undefined) {
      this.#removeFromKernel(target.record.uid);
      this.#state = 'off';
      return undefined;
    }
    const cookie = await namespaces.cookie(target.record.netns);
    this.#current(target);
    const captured = target.way === 'bpf';
    this.#putPod({ ...kernelIdentity(target, cookie), mode: 'sidecar', capture: captured, redirected: !captured, acceleration: target.acceleration });
    this.#state = 'enrolled';
    this.#connections = undefined;
    return undefined;
  }

  async #leave(target: PodTarget): Promise<number | undefined> {
    const { namespaces, proxy } = this.#around;
    const { uid } = this.#record;
    const path = namespaces.path(uid);
    const was = this.#actual.kernel;
    let stopped = false;
    if (was && (was.capture || was.redirected || was.acceleration !== 'off')) {
      try {
        this.#putPod({ ...was, capture: false, redirected: false, acceleration: 'off' });
      } catch (error) {
        // New connections have to go their plain way, whatever becomes of the count of those that live.
        this.#around.logger.warn({ pod: this.#name(), reason: errorMessage(error) }, 'the kernel can not switch the capture of the pod off; its hooks are removed');
        this.#removeFromKernel(uid);
      }
      stopped = true;
    }
    if (isActive(this.#actual)) {
      await this.#stopRules(namespaces.rules(path));
      stopped = true;
    }
    if (this.#actual.listener) {
      // Said of both ways before callers are given time for either.
      const unheardMs = await this.#tunnels.withdraw(this.#record);
      const mutualTlsMs = this.#arrivals.isActive ? await this.#mutualTls.withdraw(this.#record) : undefined;
      if (unheardMs !== undefined || mutualTlsMs !== undefined) return Math.max(unheardMs ?? 0, mutualTlsMs ?? 0);
    }
    if (this.#arrivals.isActive) {
      this.#around.setBehindProxy?.(uid, false);
      await this.#arrivals.stop(uid, namespaces.inboundRules(path));
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
    this.#removeFromKernel(uid);
    if (this.#actual.rules !== 'none') await namespaces.rules(path).remove();
    this.#actual.rules = 'none';
    await this.#arrivals.remove(uid, namespaces.inboundRules(path));
    if (this.#actual.pinned) namespaces.unpin(uid);
    this.#actual.pinned = false;
    this.#ports.forget();
    this.#state = 'off';
    this.#notes = [];
    // A pod that changes between the modes leaves one first.
    return target.mode === 'off' ? undefined : 0;
  }

  /** The pod's processes are gone, and with them its connections. */
  async #bury(): Promise<undefined> {
    const { namespaces, proxy } = this.#around;
    const { uid } = this.#record;
    this.#state = 'draining';
    // At once, while the pod's network is still there to carry the resets, and once more when nobody can come any more.
    if (this.#actual.pinned) await this.#closeConnections(namespaces.path(uid));
    // Whoever still is in the namespace must not be sent to a listener that is about to go.
    if (isActive(this.#actual)) {
      try {
        await this.#stopRules(namespaces.rules(namespaces.path(uid)));
      } catch (error) {
        this.#around.logger.debug({ pod: this.#name(), reason: errorMessage(error) }, "the rules in the namespace of a pod that is gone can't be stopped; they go away with it");
      }
    }
    this.#actual.rules = 'none';
    this.#arrivals.forget(uid);
    this.#removeFromKernel(uid);
    if (this.#actual.listener) await this.#removeListener(uid, proxy);
    if (this.#actual.pinned) {
      await this.#closeConnections(namespaces.path(uid));
      namespaces.unpin(uid);
    }
    this.#actual.pinned = false;
    this.#state = 'off';
    return undefined;
  }

  /** The shared proxy outlives the pod: callers that keep connections to it there would go on sending into nothing. */
  async #closeConnections(path: string): Promise<void> {
    try {
      await this.#around.namespaces.closeConnections(path);
    } catch (error) {
      this.#around.logger.warn({ pod: this.#name(), reason: errorMessage(error) }, "the proxy's connections at a pod that is gone can't be closed; callers find out by their keepalives");
    }
  }

  /** Connections that stay at all often stay for long: ask them less and less. */
  #drainDelay(): number {
    return Math.min(this.#around.drainPollMs * 1.5 ** this.#drainPolls++, this.#around.drainPollMs * 10);
  }

  async #removeListener(uid: string, proxy: PodProxy): Promise<void> {
    this.#around.setListener(uid, undefined);
    await this.#bounded((signal) => proxy.whenRemoved(uid, signal), 'Envoy did not acknowledge that the listener is gone');
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

  /** @throws KernelRefusal */
  #putPod(pod: KernelPod | undefined): void {
    const { kernel } = this.#around;
    if (!pod || !kernel) return;
    // A call that fails half-way has left something behind, which has to be removed with the pod.
    this.#actual.kernel ??= { ...pod, capture: false, redirected: false, acceleration: 'off' };
    try {
      kernel.putPod(pod);
    } catch (error) {
      throw new KernelRefusal(errorMessage(error), { cause: error });
    }
    this.#actual.kernel = pod;
  }

  #removeFromKernel(uid: string): void {
    if (this.#actual.kernel) this.#around.kernel?.removePod(uid);
    this.#actual.kernel = undefined;
  }

  /** Ends a pass whose target was replaced while it waited. */
  #current(target: PodTarget): void {
    if (this.#target !== target && !sameTarget(this.#target, target)) throw new Error('superseded');
  }

  /** A wait that ends with the controller, with a new target, or after its time. */
  async #bounded(wait: (signal: AbortSignal) => Promise<void>, otherwise: string): Promise<void> {
    const superseded = new AbortController();
    const generation = this.#generation;
    this.#wake = () => this.#generation !== generation && superseded.abort();
    const timeout = AbortSignal.timeout(this.#around.readyTimeoutMs);
    const signal = AbortSignal.any([this.#abort.signal, superseded.signal, timeout]);
    try {
      await Promise.race([wait(signal), aborted(signal)]);
    } catch (error) {
      if (timeout.aborted) throw new Error(`${otherwise} within ${this.#around.readyTimeoutMs} ms`);
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

/** The kernel's hooks or maps did not take one pod: EPERM or E2BIG on its cgroup, no more slots. */
class KernelRefusal extends Error {}

/** New connections are redirected by rules, as far as is known. */
function isActive({ rules }: Pick<Actual, 'rules'>): boolean {
  return rules === 'active' || rules === 'unknown';
}

/** Rejects when the signal aborts, for waits that do not look at it themselves. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason as Error);
    else signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true });
  });
}

/** Of times after which to look again. */
function soonest(...timesMs: (number | undefined)[]): number | undefined {
  const known = timesMs.filter((ms) => ms !== undefined);
  return known.length === 0 ? undefined : Math.min(...known);
}
