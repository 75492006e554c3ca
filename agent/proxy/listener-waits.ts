/** Waits for Envoy's listeners of pods: until one listens with its routes, and until nothing of a pod's is left. */
import { UnderpassError } from '../../common/errors.js';
import { taughtName } from '../http/taught-clusters.js';
import type { AdsServer } from './ads-server.js';
import type { Envoy } from './envoy.js';
import { inboundListenerName } from './fold-inbound.js';
import { INSPECTION_KINDS, inspectionName } from './inspection.js';
import { podHboneName, podListenerName, podOfListener } from './pod-listener.js';
import { CDS, LDS, RDS, type Entry, type Snapshot } from './snapshot.js';

export interface ListenerWaitsOptions {
  ads: Pick<AdsServer, 'status' | 'connected' | 'mayHold' | 'changedSoon' | 'changedWithin'>;
  envoy: Envoy;
  stopping: AbortSignal;
  /** The newest that Envoy was given. */
  snapshot(): Snapshot | undefined;
  isWanted(uid: string): boolean;
  /** Whose pods' listeners the pod's is made like; undefined before it was made. */
  classOf(uid: string): string | undefined;
  /** Whether this agent has started Envoy, or taken it over. */
  isStarted(): boolean;
  /** Whether anybody listens on the pod's outbound port, by the kernel; rejects where that can't be told. */
  isOpen?: (uid: string) => Promise<boolean>;
}

const READY_POLL_MS = 10;
/** An answer is a change, which wakes whoever waits: what else may come about meanwhile is that the pod is wanted. */
const UNANSWERED_POLL_MS = 250;
const REMOVED_POLL_MS = 250;

export class ListenerWaits {
  readonly #options: ListenerWaitsOptions;
  #listed: Promise<ReadonlySet<string>> | undefined;
  readonly #removals = new Map<string, Promise<void>>();
  /** Versions of classes' internal listeners that listened when Envoy was asked. */
  readonly #seen = new Map<string, string>();

  constructor(options: ListenerWaitsOptions) {
    this.#options = options;
  }

  /**
   * Resolves when Envoy acknowledged the pod's listener and it listens, with its routes.
   * @throws UnderpassError `UNDERPASS_ENVOY_REFUSED` when Envoy refuses it and has no older one
   */
  async whenReady(uid: string, signal?: AbortSignal): Promise<void> {
    const { ads, stopping } = this.#options;
    const any = signal ? AbortSignal.any([signal, stopping]) : stopping;
    const name = podListenerName(uid);
    for (;;) {
      any.throwIfAborted();
      // Most who ask, a hundred at a time, have no answer yet.
      const { acked, nack } = ads.status(LDS, name);
      const isAnswered = acked || nack !== undefined;
      // Before its own listener is there: Envoy answers when it has made those that it was sent meanwhile.
      if (!isAnswered && this.#inner(uid).some((each) => ads.status(LDS, each.name).acked && this.#seen.get(each.name) !== each.version)) void this.#listening();
      if (isAnswered && this.#options.isWanted(uid) && (await this.#isReady(uid, name, acked ? undefined : nack))) return;
      await ads.changedSoon(isAnswered ? READY_POLL_MS : UNANSWERED_POLL_MS);
    }
  }

  async #isReady(uid: string, name: string, nack: string | undefined): Promise<boolean> {
    const { ads } = this.#options;
    const snapshot = this.#options.snapshot();
    const entry = snapshot?.get(LDS, name);
    if (!snapshot || !entry) return false;
    if (nack !== undefined) {
      if ((await this.#listening()).has(name)) return true;
      throw new UnderpassError('UNDERPASS_ENVOY_REFUSED', `waiting for the listener of pod ${uid}: Envoy refuses it: ${nack}`);
    }
    if (!entry.needs.every((route) => ads.status(RDS, route).acked || ads.status(RDS, route).nack)) return false;
    // The kernel answers while Envoy is busy with other pods' listeners; Envoy has answered for this one.
    const isOpen = await this.#options.isOpen?.(uid).catch(() => undefined);
    if (isOpen === false) return false;
    const inner = this.#inner(uid);
    const isDecided = ({ name: each, version }: Entry): boolean => {
      const status = ads.status(LDS, each);
      return status.nack !== undefined || (status.acked && this.#seen.get(each) === version);
    };
    if (isOpen && inner.every(isDecided)) return true;
    const listening = await this.#listening();
    return (isOpen || listening.has(name)) && inner.every((each) => listening.has(each.name) || ads.status(LDS, each.name).nack !== undefined);
  }

  /** The class's internal listeners. */
  #inner(uid: string): Entry[] {
    const [key, snapshot] = [this.#options.classOf(uid), this.#options.snapshot()];
    if (key === undefined || !snapshot) return [];
    return [key, taughtName(key)].flatMap((own) => INSPECTION_KINDS.map((kind) => inspectionName(own, kind))).flatMap((each) => snapshot.get(LDS, snapshot.get(CDS, each)?.leadsTo ?? each) ?? []);
  }

  /** Names of the listeners that listen. Envoy is asked once for all who ask meanwhile: of many pods each asks again and again. */
  #listening(): Promise<ReadonlySet<string>> {
    this.#listed ??= this.#list().finally(() => (this.#listed = undefined));
    return this.#listed;
  }

  async #list(): Promise<ReadonlySet<string>> {
    const { ads, envoy, stopping, snapshot } = this.#options;
    // What Envoy took after it was asked may listen in the version before.
    const acked = [...(snapshot()?.entries(LDS).values() ?? [])].filter(({ name }) => podOfListener(name) === undefined && ads.status(LDS, name).acked);
    const listening = new Set(await envoy.admin.listeners(stopping).then((all) => all.map(({ name }) => name), () => []));
    for (const { name, version } of acked) if (listening.has(name)) this.#seen.set(name, version);
    return listening;
  }

  /** `gone` are wanted no more; `wanted` are, whatever was said before. */
  changed(gone: readonly string[], wanted: Iterable<string>): void {
    for (const uid of gone) {
      const removal = this.#removed(uid);
      this.#removals.set(uid, removal);
      const settled = (): void => {
        if (this.#removals.get(uid) === removal) this.#removals.delete(uid);
      };
      removal.then(settled, settled); // whoever waits hears of a failure
    }
    for (const uid of wanted) this.#removals.delete(uid);
    const snapshot = this.#options.snapshot();
    for (const name of this.#seen.keys()) if (!snapshot?.get(LDS, name)) this.#seen.delete(name);
  }

  /**
   * Resolves when Envoy has confirmed that it no longer has a listener of this pod, be it one that an earlier agent made:
   * its namespace may be unpinned. Rejects when the proxy is stopped, or `signal` aborts, before that.
   */
  async whenRemoved(uid: string, signal?: AbortSignal): Promise<void> {
    const removal = this.#removals.get(uid) ?? this.#removed(uid, signal);
    if (!signal) return removal;
    signal.throwIfAborted();
    const aborted = new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true }));
    return Promise.race([removal, aborted]);
  }

  async #removed(uid: string, given?: AbortSignal): Promise<void> {
    const { ads, envoy, stopping } = this.#options;
    const names = [podListenerName(uid), inboundListenerName(uid), podHboneName(uid)];
    const signal = given ? AbortSignal.any([given, stopping]) : stopping;
    for (;;) {
      // Nobody is told that an agent that stops has seen the end of the listener: its Envoy may still have it.
      signal.throwIfAborted();
      const snapshot = this.#options.snapshot();
      // An Envoy that this agent started has nothing but what this agent sent.
      if (!snapshot && this.#options.isStarted() && !envoy.status.adopted) return;
      if (snapshot && !names.some((name) => snapshot.get(LDS, name))) {
        if (!envoy.running && !ads.connected) return;
        if (ads.connected && !names.some((name) => ads.mayHold(LDS, name))) return;
      }
      await ads.changedSoon(REMOVED_POLL_MS);
    }
  }
}
