/**
 * When a pod's inbound policy lets fewer callers in, Envoy goes over to it in two steps: it takes the new listeners; then this
 * node's callers are led to the new internal one, and the pod's own clusters, which are marked with its name, open connections
 * anew. What Envoy accepted before the first step, and what it opened to the pod before the second, may be under the old policy.
 * This tells of both steps, and of their end, once for each change.
 */
import type { SidecarState } from '../xds/sidecar-stream.js';
import type { AdsServer } from './ads-server.js';
import { inboundListenerName } from './fold-inbound.js';
import { httpPorts, inboundPolicies, narrowsInbound, type InboundPolicy } from './inbound-policy.js';
import { podOfListener } from './pod-listener.js';

export interface NarrowingOptions {
  ads: Pick<AdsServer, 'rolledOut' | 'changedWithin'>;
  stopping: AbortSignal;
  /** Before what Envoy accepts for the pod from now on, or opens to it, is under the new policy. */
  onNarrowing?: (uid: string, side: 'accepted' | 'opened') => Promise<void>;
  /** Nothing is led to the old policy any more. @param http ports on which all is HTTP */
  onNarrowed?: (uid: string, http: ReadonlySet<number>) => void;
}

interface Narrowing {
  http: ReadonlySet<number>;
  begun: Promise<void>;
  /** The roll-out with which it is done. */
  rollout?: number;
}

const LOOK_AGAIN_MS = 250;

export class NarrowingFollower {
  readonly #options: NarrowingOptions;
  /** By pod: what the control plane says now, and what Envoy judged by last. */
  #wanted: ReadonlyMap<string, InboundPolicy> = new Map();
  readonly #judged = new Map<string, InboundPolicy>();
  readonly #narrowing = new Map<string, Narrowing>();

  constructor(options: NarrowingOptions) {
    this.#options = options;
  }

  /**
   * Called with each snapshot.
   * @param listeners by pod that is behind its policy, the internal listener that is to stand for it
   * @param reached the ones that this snapshot's endpoints and clusters lead to
   * @param rollout the snapshot's number
   * @param former what an adopted Envoy judges by
   */
  follow(wanted: ReadonlyMap<string, InboundPolicy>, listeners: ReadonlyMap<string, string>, reached: ReadonlyMap<string, string>, rollout: number, former: (uid: string) => InboundPolicy | undefined): void {
    this.#wanted = wanted;
    for (const uid of this.#judged.keys()) if (!wanted.has(uid)) this.#judged.delete(uid);
    for (const [uid, policy] of wanted) {
      if (!this.#judged.has(uid)) this.#judged.set(uid, former(uid) ?? policy);
      const listener = listeners.get(uid);
      if (listener !== undefined && reached.get(uid) !== listener) continue;
      const isBegun = this.#narrowing.get(uid)?.rollout === undefined && this.#narrowing.has(uid);
      // An adopted Envoy's callers are led to the new listener from the first snapshot on.
      if (listener !== undefined && !isBegun) void this.#begin(uid);
      this.#judged.set(uid, policy);
      const narrowing = this.#narrowing.get(uid);
      if (!narrowing || narrowing.rollout !== undefined) continue;
      narrowing.rollout = rollout;
      this.#finish(uid, narrowing, rollout).catch(() => undefined);
    }
  }

  /** Before Envoy is sent these, which changed. */
  async beforeListeners(names: readonly string[]): Promise<void> {
    await Promise.all(names.map(async (name) => {
      const uid = podOfListener(name);
      if (uid !== undefined && name === inboundListenerName(uid) && this.#isNarrower(uid)) await this.#options.onNarrowing?.(uid, 'accepted');
    }));
  }

  /** Before callers are led to the pods' new listeners. */
  async before(uids: Iterable<string>): Promise<void> {
    await Promise.all([...uids].map((uid) => this.#begin(uid)));
  }

  async #begin(uid: string): Promise<void> {
    if (!this.#isNarrower(uid)) return;
    const begun = this.#options.onNarrowing?.(uid, 'opened') ?? Promise.resolve();
    this.#narrowing.set(uid, { http: httpPorts(this.#judged.get(uid)!, this.#wanted.get(uid)!), begun });
    await begun;
  }

  #isNarrower(uid: string): boolean {
    const [before, now] = [this.#judged.get(uid), this.#wanted.get(uid)];
    return before !== undefined && now !== undefined && narrowsInbound(before, now);
  }

  async #finish(uid: string, narrowing: Narrowing, rollout: number): Promise<void> {
    await narrowing.begun;
    while (this.#options.ads.rolledOut < rollout) {
      this.#options.stopping.throwIfAborted();
      await this.#options.ads.changedWithin(LOOK_AGAIN_MS, this.#options.stopping);
    }
    if (this.#narrowing.get(uid) === narrowing) this.#narrowing.delete(uid);
    this.#options.onNarrowed?.(uid, narrowing.http);
  }
}

type Listeners = Pick<SidecarState, 'listeners'>;

/** By uid; pods of which nothing is known are left out. */
export function policiesOfPods(pods: readonly { uid: string; classKey: string }[], stateOf: (classKey: string) => Listeners | undefined): Map<string, InboundPolicy> {
  return new Map(pods.flatMap(({ uid, classKey }) => {
    const listener = stateOf(classKey)?.listeners.get('virtualInbound');
    return listener ? [[uid, inboundPolicies.of(listener)] as const] : [];
  }));
}

/** By class, as a former agent left it. */
export function savedPolicies(classes: readonly { key: string; state: Listeners }[]): ReadonlyMap<string, InboundPolicy> {
  return policiesOfPods(classes.map(({ key }) => ({ uid: key, classKey: key })), (key) => classes.find((item) => item.key === key)?.state);
}
