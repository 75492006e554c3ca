/**
 * What one client may take of this control plane's streams, and for how long: so that a client that opens streams without end,
 * or opens one and says nothing, costs little; and so that who proved itself by something that expires proves itself again.
 */
import { status as GrpcStatus } from '@grpc/grpc-js';
import type { Counter } from 'prom-client';
import { systemClock, type Clock } from '../../common/clock.js';
import type { Logger } from '../../common/log.js';
import { subscriptionProblem } from '../../common/xds/subscription.js';
import type { PeerIdentity } from '../ca/peer-identity.js';

export interface StreamLimits {
  /** A stream whose first request has not come by then ends: DEADLINE_EXCEEDED. */
  firstRequestMs: number;
  /** Streams open at a time of one pod, or of one address and account where no pod is proven: RESOURCE_EXHAUSTED. */
  streamsPerPeer: number;
  /** Names of one type that a stream may subscribe to: RESOURCE_EXHAUSTED. */
  namesPerType: number;
  /** A stream over TCP ends by then, a tenth more or less, without an error: its client opens another. Infinity: it goes on while the credentials are valid. */
  streamAgeMs: number;
}

/** istiod's Helm chart lets a connection grow half an hour old. */
export const DEFAULT_LIMITS: StreamLimits = { firstRequestMs: 30_000, streamsPerPeer: 2_000, namesPerType: 100_000, streamAgeMs: 30 * 60_000 };
const JITTER = 0.1;

export type RefusalReason = 'no_request' | 'streams' | 'names';

/** Ends a stream with this status. */
export class StreamRefusal extends Error {
  constructor(readonly reason: RefusalReason, readonly code: GrpcStatus, message: string) {
    super(message);
  }
}

/** @throws StreamRefusal when a subscription is beyond bounds */
export function checkNames(names: readonly string[], total: number, max: number): void {
  const problem = subscriptionProblem(names, total, max);
  if (problem) throw new StreamRefusal('names', problem.code, problem.details);
}

/** What is known of a stream's other end before it says anything. */
export interface Caller {
  /** Proven by certificate or token; undefined on plaintext ports. */
  identity: PeerIdentity | undefined;
  /** By a Unix socket. */
  local: boolean;
}

/** A server's side of a stream, as far as it is needed here. */
export interface GuardedCall {
  readonly cancelled: boolean;
  getPeer(): string;
  end(): void;
  emit(event: 'error', error: object): boolean;
  on(event: string, listener: (argument: unknown) => void): unknown;
  off(event: string, listener: (argument: unknown) => void): unknown;
}

export interface StreamGuardOptions {
  limits: StreamLimits;
  logger: Logger;
  refused: Counter<'reason'>;
  clock?: Clock;
}

export class StreamGuard {
  readonly #options: Required<StreamGuardOptions>;
  readonly #open = new Map<string, number>();

  constructor(options: StreamGuardOptions) {
    this.#options = { clock: systemClock, ...options };
  }

  get limits(): StreamLimits {
    return this.#options.limits;
  }

  /** Watches over a stream from here to its end. @returns whether it may begin; when not, it has been ended */
  admit(call: GuardedCall, caller: Caller): boolean {
    // One that went while its caller was being recognized has told of its end already: it would be counted for ever.
    if (call.cancelled) return false;
    const { limits, clock } = this.#options;
    const peer = peerOf(call, caller);
    const count = this.#open.get(peer) ?? 0;
    if (!caller.local && count >= limits.streamsPerPeer) {
      this.refuse(call, new StreamRefusal('streams', GrpcStatus.RESOURCE_EXHAUSTED, `found ${count} streams of ${peer}, expected at most ${limits.streamsPerPeer}`));
      return false;
    }
    this.#open.set(peer, count + 1);
    const cancelFirst = this.#expectRequest(call);
    // A Unix socket's peer is as good as its first moment: nothing of it expires.
    const lifetimeMs = caller.local ? Infinity : this.#lifetimeMs(caller.identity);
    const cancelLast = lifetimeMs === Infinity ? undefined : clock.after(lifetimeMs, () => call.end());
    let isOver = false;
    const over = (): void => {
      if (isOver) return;
      isOver = true;
      cancelFirst();
      cancelLast?.();
      const left = this.#open.get(peer)! - 1;
      if (left > 0) this.#open.set(peer, left);
      else this.#open.delete(peer);
    };
    for (const event of ['end', 'cancelled', 'error', 'close', 'finish']) call.on(event, over);
    return true;
  }

  /** Ends a stream, counted and logged. */
  refuse(call: GuardedCall, { reason, code, message }: StreamRefusal): void {
    this.#options.refused.inc({ reason });
    this.#options.logger.warn({ peer: call.getPeer(), reason, details: message }, 'ended a stream that went beyond its limits');
    call.emit('error', { code, details: message });
  }

  /** From when somebody reads the stream: until then its client is kept waiting. @returns what calls the wait off */
  #expectRequest(call: GuardedCall): () => void {
    const { limits, clock } = this.#options;
    let cancel = (): void => undefined;
    const heard = (): void => {
      cancel();
      call.off('data', heard);
    };
    const isRead = (event: unknown): void => {
      if (event !== 'data') return;
      call.off('newListener', isRead);
      cancel = clock.after(limits.firstRequestMs, () => this.refuse(call, new StreamRefusal('no_request', GrpcStatus.DEADLINE_EXCEEDED, `no request came in ${limits.firstRequestMs} ms`)));
      call.on('data', heard);
    };
    call.on('newListener', isRead);
    return () => cancel();
  }

  #lifetimeMs(identity: PeerIdentity | undefined): number {
    const { limits, clock } = this.#options;
    const ageMs = limits.streamAgeMs * (1 + JITTER * (2 * Math.random() - 1));
    return Math.min(ageMs, identity?.expiresAt === undefined ? Infinity : Math.max(0, identity.expiresAt - clock.now()));
  }
}

/** A service account alone may be that of thousands of pods. */
export function peerOf(call: Pick<GuardedCall, 'getPeer'>, { identity, local }: Caller): string {
  if (local) return 'a Unix socket';
  if (identity?.pod !== undefined) return `${identity.namespace}/${identity.pod}`;
  const peer = call.getPeer();
  const address = peer.slice(0, peer.lastIndexOf(':'));
  return identity ? `${identity.namespace}/${identity.serviceAccount} at ${address}` : address;
}
