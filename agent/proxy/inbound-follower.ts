/**
 * Follows Envoy's answers about the pods' inbound sides. Once it has a pod's listeners the pod's callers are sent there, those
 * on this node by its endpoints, and those over the network by whoever is told here to redirect them.
 */
import type { AdsServer } from './ads-server.js';
import { inboundListenerName } from './fold-inbound.js';
import type { FoldResult } from './fold.js';
import { podHboneName } from './pod-listener.js';
import { LDS, RDS } from './snapshot.js';

export interface InboundPods {
  /** Pods whose policy has a say in who calls them, and pods of which it is not known. */
  wanted: ReadonlySet<string>;
  /** Those of them that have an inbound listener; also where Envoy refuses it, since then nobody is let in. */
  ready: ReadonlySet<string>;
  /** Those of them with which mutual TLS can be had, since Envoy has their certificate; undefined without a CA. */
  certified: ReadonlySet<string> | undefined;
  /** Pods for which HBONE is to end at this Envoy, and pods of which it is not known. */
  tunnelled: ReadonlySet<string>;
  /** Those of them for which it does: Envoy has the listener and the certificate. */
  takingTunnels: ReadonlySet<string>;
}

export interface InboundFollowerOptions {
  ads: Pick<AdsServer, 'status' | 'changedWithin'>;
  stopping: AbortSignal;
  /** Pods that were not folded yet. */
  unknown(): readonly string[];
  /** Pods of which it is not known yet whether HBONE can end there. */
  untried(): readonly string[];
  /** Whether Envoy has the certificate of the pod's account; absent without a CA. */
  hasCertificate?: (uid: string) => boolean;
  /** Endpoints lead elsewhere from now on: once before that, with the pods concerned, and then. */
  beforeReached(uids: readonly string[]): Promise<void>;
  onReached(): void;
  onInbound(pods: InboundPods): void;
}

const LOOK_AGAIN_MS = 250;

export class InboundFollower {
  readonly #options: InboundFollowerOptions;
  #enforcing: ReadonlySet<string> = new Set();
  /** Pods with an inbound side, by the internal listeners that they are to be reached by, and by those that they are. */
  #inbound: ReadonlyMap<string, string> = new Map();
  #tunnelled: ReadonlySet<string> = new Set();
  #reached: ReadonlyMap<string, string> = new Map();
  #ready: ReadonlySet<string> = new Set();
  #reported = '';
  #wait: AbortController | undefined;

  constructor(options: InboundFollowerOptions) {
    this.#options = options;
  }

  /** The internal listeners that pods are reached by now. */
  get reached(): ReadonlyMap<string, string> {
    return this.#reached;
  }

  get settled(): boolean {
    return [...this.#inbound].every(([uid, name]) => this.#reached.get(uid) === name) && [...this.#tunnelled].every((uid) => this.#answered(podHboneName(uid)));
  }

  #answered(listener: string): boolean {
    const { acked, nack } = this.#options.ads.status(LDS, listener);
    return acked || nack !== undefined;
  }

  /** Whether Envoy can end them, or will not as long as nothing changes. */
  #isTunnelDecided(uid: string): boolean {
    return this.#takesTunnels(uid) || [LDS, RDS].some((type) => this.#options.ads.status(type, podHboneName(uid)).nack !== undefined);
  }

  #takesTunnels(uid: string): boolean {
    const { ads, hasCertificate } = this.#options;
    return ads.status(LDS, podHboneName(uid)).acked && ads.status(RDS, podHboneName(uid)).acked && hasCertificate?.(uid) === true;
  }

  /** @param reached what an adopted Envoy has */
  adopt(reached: ReadonlyMap<string, string>): void {
    this.#reached = reached;
  }

  /** What the newest snapshot has; see FoldResult. */
  follow({ enforcing, inbound, tunnelled }: Pick<FoldResult, 'enforcing' | 'inbound' | 'tunnelled'>): void {
    this.#enforcing = enforcing;
    this.#inbound = inbound;
    this.#tunnelled = tunnelled;
    this.#wait?.abort();
    this.#wait = new AbortController();
    this.#follow(AbortSignal.any([this.#wait.signal, this.#options.stopping])).catch(() => undefined);
  }

  async #follow(signal: AbortSignal): Promise<void> {
    const { hasCertificate, unknown, untried, beforeReached, onReached, ads } = this.#options;
    while (!signal.aborted) {
      const enforcing = [...this.#enforcing];
      const ready = new Set(enforcing.filter((uid) => this.#ready.has(uid) || this.#answered(inboundListenerName(uid))));
      const reached = new Map<string, string>();
      for (const [uid, name] of this.#inbound) {
        const now = this.#answered(name) ? name : this.#reached.get(uid);
        if (now !== undefined) reached.set(uid, now);
      }
      const changed = JSON.stringify([...reached]) !== JSON.stringify([...this.#reached]);
      if (changed) await beforeReached([...reached].flatMap(([uid, name]) => (this.#reached.get(uid) === name ? [] : uid)));
      if (signal.aborted) return;
      this.#reached = reached;
      this.#ready = ready;
      const certified = hasCertificate && new Set([...ready].filter(hasCertificate));
      const takingTunnels = new Set([...this.#tunnelled].filter((uid) => this.#takesTunnels(uid)));
      this.#report({ wanted: new Set([...enforcing, ...unknown()]), ready, certified, tunnelled: new Set([...this.#tunnelled, ...unknown(), ...untried()]), takingTunnels });
      if (changed) onReached();
      if (ready.size === enforcing.length && this.settled && (!certified || certified.size === ready.size) && [...this.#tunnelled].every((uid) => this.#isTunnelDecided(uid))) return;
      await ads.changedWithin(LOOK_AGAIN_MS, signal);
    }
  }

  #report(pods: InboundPods): void {
    const key = JSON.stringify([pods.wanted, pods.ready, pods.certified ?? [], pods.tunnelled, pods.takingTunnels].map((uids) => [...uids].sort()));
    if (key === this.#reported) return;
    this.#reported = key;
    this.#options.onInbound(pods);
  }
}
