/**
 * Pods that come many at a time get their listeners in two steps. Envoy takes some ten milliseconds for the chains of one pod, and its
 * main thread makes one listener after the other: so each first has those chains alone that hand connections on to its class's internal
 * listeners, which serve them as the pod's own would. The others follow, a few pods at a time, when all pods are in force: in Envoy
 * chains that are added change nothing for connections that are there. What is served in the pod's own listener saves the way through
 * an internal one.
 */
import { sleep } from '../../common/retry.js';
import type { AdsServer } from './ads-server.js';

export interface BriefListenersOptions {
  ads: Pick<AdsServer, 'rolledOut' | 'changedWithin'>;
  stopping: AbortSignal;
  /** Whether Envoy has, or may have, a listener of the pod's. */
  isThere(uid: string): boolean;
  /** Others are to be whole now. */
  onTurn(): void;
}

/** With fewer it is not worth making each listener twice. */
const MANY = 10;
const PODS_A_TURN = 20;
/** The last pods' hooks are put on once Envoy has their listeners. */
const AFTER_ALL_MS = 1_000;
const BETWEEN_MS = 100;
const LOOK_AGAIN_MS = 250;

export class BriefListeners {
  readonly #options: BriefListenersOptions;
  readonly #brief = new Set<string>();
  #waits = false;
  #pauseMs = AFTER_ALL_MS;
  /** Of the newest snapshot. */
  #rollout = 0;

  constructor(options: BriefListenersOptions) {
    this.#options = options;
  }

  /** All listeners are whole, or are about to be. */
  get settled(): boolean {
    return this.#brief.size === 0;
  }

  has(uid: string): boolean {
    return this.#brief.has(uid);
  }

  /** Before each snapshot. @param uids all pods that are to have a listener in it */
  choose(uids: readonly string[]): void {
    const wanted = new Set(uids);
    for (const uid of this.#brief) if (!wanted.has(uid)) this.#brief.delete(uid);
    const fresh = uids.filter((uid) => !this.#brief.has(uid) && !this.#options.isThere(uid));
    if (fresh.length < MANY) return;
    for (const uid of fresh) this.#brief.add(uid);
    this.#pauseMs = AFTER_ALL_MS;
  }

  /** After each snapshot. @param rollout its number */
  follow(rollout: number): void {
    this.#rollout = rollout;
    if (this.#waits || this.settled) return;
    this.#waits = true;
    this.#turn().catch(() => undefined).finally(() => (this.#waits = false));
  }

  async #turn(): Promise<void> {
    const { ads, stopping, onTurn } = this.#options;
    while (!this.settled) {
      while (ads.rolledOut < this.#rollout) await this.#within(LOOK_AGAIN_MS);
      await sleep(this.#pauseMs, stopping);
      // More have come meanwhile, and are to be in force first.
      if (ads.rolledOut < this.#rollout) continue;
      for (const uid of [...this.#brief].slice(0, PODS_A_TURN)) this.#brief.delete(uid);
      this.#pauseMs = BETWEEN_MS;
      const before = this.#rollout;
      onTurn();
      while (this.#rollout === before) await this.#within(LOOK_AGAIN_MS);
    }
  }

  async #within(ms: number): Promise<void> {
    const { ads, stopping } = this.#options;
    stopping.throwIfAborted();
    await ads.changedWithin(ms, stopping);
  }
}
