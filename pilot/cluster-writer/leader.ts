/**
 * Of several pilots one writes: whoever holds the Lease. As in client-go's leader election, whoever waits trusts no other
 * machine's clock: a holder counts as gone when its Lease has not changed for the time that it says, seen from here.
 */
import { errorMessage } from '../../common/errors.js';
import { isRefusal, resourceOf, type KubeClient } from '../../common/kube/client.js';
import type { KubeObject } from '../../common/kube/types.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { sleep } from '../../common/retry.js';

const LEASE = resourceOf('coordination.k8s.io/v1', 'Lease');

export interface LeaseTimes {
  /** How long the others wait for a holder that says nothing. */
  leaseMs: number;
  /** After this long without a renewal the holder stops by itself; shorter than the lease. */
  renewMs: number;
  retryMs: number;
}

/** client-go's. */
export const DEFAULT_LEASE_TIMES: LeaseTimes = { leaseMs: 15_000, renewMs: 10_000, retryMs: 2_000 };

export interface LeaderOptions {
  client: KubeClient;
  namespace: string;
  name: string;
  /** Another for each process. */
  identity: string;
  logger: Logger;
  /** Called when a term begins; the signal aborts when it ends. */
  onTerm: (signal: AbortSignal) => void;
  times?: LeaseTimes;
}

interface Lease extends KubeObject {
  spec?: { holderIdentity?: string; leaseDurationSeconds?: number; acquireTime?: string; renewTime?: string; leaseTransitions?: number };
}

export class LeaderElection implements Closable {
  readonly #options: LeaderOptions;
  readonly #times: LeaseTimes;
  readonly #stop = new AbortController();
  #term: AbortController | undefined;
  /** The newest version that was seen, and when it was first seen. */
  #seen: { version: string; at: number } = { version: '', at: 0 };
  /** Ends the term that is not renewed in time, whatever a request to the API server waits for meanwhile. */
  #expiry: NodeJS.Timeout | undefined;
  #saidProblem = '';
  #running: Promise<void> | undefined;

  constructor(options: LeaderOptions) {
    this.#options = options;
    this.#times = options.times ?? DEFAULT_LEASE_TIMES;
  }

  get isLeader(): boolean {
    return this.#term !== undefined;
  }

  start(): void {
    this.#running = this.#run();
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        const at = performance.now();
        if (await this.#try()) {
          this.#begin(this.#times.renewMs - (performance.now() - at));
        } else {
          this.#end('another pilot holds the lease');
        }
        this.#saidProblem = '';
      } catch (error) {
        if (signal.aborted) return;
        this.#say(errorMessage(error));
      }
      await sleep(this.#times.retryMs, signal).catch(() => undefined);
    }
  }

  /** @returns whether the Lease is this one's now */
  async #try(): Promise<boolean> {
    const { client, namespace, name, identity } = this.#options;
    const place = { namespace, name };
    const signal = AbortSignal.any([this.#stop.signal, AbortSignal.timeout(this.#times.renewMs)]);
    const now = microTime();
    const held = { holderIdentity: identity, leaseDurationSeconds: Math.ceil(this.#times.leaseMs / 1_000), renewTime: now };
    try {
      const lease = await client.get<Lease>(LEASE, place, signal).catch((error: unknown) => {
        if (isRefusal(error, 404)) return undefined;
        throw error;
      });
      if (!lease) {
        await client.create<Lease>(LEASE, { apiVersion: LEASE.apiVersion, kind: LEASE.kind, metadata: place, spec: { ...held, acquireTime: now, leaseTransitions: 0 } }, signal);
        return true;
      }
      const { spec = {}, metadata } = lease;
      const version = metadata.resourceVersion ?? '';
      if (version !== this.#seen.version) this.#seen = { version, at: performance.now() };
      const isOwn = spec.holderIdentity === identity;
      const isFree = !spec.holderIdentity || performance.now() - this.#seen.at > (spec.leaseDurationSeconds ?? 0) * 1_000;
      if (!isOwn && !isFree) return false;
      const taken = isOwn ? {} : { acquireTime: now, leaseTransitions: (spec.leaseTransitions ?? 0) + 1 };
      await client.merge<Lease>(LEASE, place, { metadata: { resourceVersion: version }, spec: { ...held, ...taken } }, signal);
      return true;
    } catch (error) {
      // Somebody was faster.
      if (isRefusal(error, 409)) return false;
      throw error;
    }
  }

  /** Begins a term, or goes on with it. @param forMs from now on, unless it is renewed */
  #begin(forMs: number): void {
    clearTimeout(this.#expiry);
    this.#expiry = setTimeout(() => this.#end('the lease could not be renewed'), forMs);
    if (this.#term) return;
    this.#term = new AbortController();
    this.#options.logger.info({ lease: this.#options.name, identity: this.#options.identity }, 'this pilot writes to the cluster from now on');
    this.#options.onTerm(this.#term.signal);
  }

  #end(reason: string): void {
    clearTimeout(this.#expiry);
    if (!this.#term) return;
    this.#term.abort();
    this.#term = undefined;
    this.#options.logger.warn({ lease: this.#options.name, reason }, 'this pilot writes to the cluster no more');
  }

  #say(reason: string): void {
    if (reason === this.#saidProblem) return;
    this.#saidProblem = reason;
    this.#options.logger.warn({ lease: this.#options.name, reason }, 'the lease can not be had; nothing is written to the cluster without it');
  }

  /** Gives the Lease back, so that another need not wait for its end. */
  async close(): Promise<void> {
    this.#stop.abort();
    await this.#running;
    clearTimeout(this.#expiry);
    if (!this.#term) return;
    this.#term.abort();
    this.#term = undefined;
    const { client, namespace, name, identity } = this.#options;
    const signal = AbortSignal.timeout(this.#times.retryMs);
    try {
      const { spec, metadata } = await client.get<Lease>(LEASE, { namespace, name }, signal);
      if (spec?.holderIdentity !== identity) return;
      await client.merge(LEASE, { namespace, name }, { metadata: { resourceVersion: metadata.resourceVersion }, spec: { holderIdentity: '', leaseDurationSeconds: 1, renewTime: microTime() } }, signal);
    } catch (error) {
      this.#say(errorMessage(error));
    }
  }
}

/** Kubernetes' MicroTime. */
function microTime(): string {
  return new Date().toISOString().replace('Z', '000Z');
}
