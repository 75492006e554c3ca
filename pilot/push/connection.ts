/** One ADS stream: who is there, what it watches, and how changes reach it. The two protocol variants derive from it. */
import type { ServerDuplexStream } from '@grpc/grpc-js';
import { status as GrpcStatus } from '@grpc/grpc-js';
import { errorMessage } from '../../common/errors.js';
import type { Logger } from '../../common/log.js';
import type { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import { nodeIdRefusal, type PeerIdentity } from '../ca/peer-identity.js';
import type { Generator, Generators } from '../generate/generator.js';
import type { ResourceList, Whole } from '../generate/resource-list.js';
import { PUSH_ORDER, TYPE, type Resource } from '../generate/resource.js';
import type { ChangeSet } from '../model/changes.js';
import { parseProxy, type Proxy } from '../model/proxy.js';
import type { Assembler } from './assembler.js';
import { BudgetShare, type SendBudget } from './budget.js';
import type { ConnectThrottle } from './connect-throttle.js';
import type { EncodedResponse } from './encode.js';
import { shortType, type PushMetrics } from './metrics.js';
import type { PushTarget } from './queue.js';
import type { MapStore } from './shared-map.js';
import { peerOf, StreamRefusal, type Caller } from './stream-guard.js';
import { Watch } from './watch.js';

/** A client that sends so many requests without waiting for answers is read no further until they are answered. */
const MAX_INBOX = 64;
/** A client that has not read so much yet is made no further responses. */
const MAX_UNSENT_BYTES = 1 << 20;

export interface ClientListener {
  connected(proxy: Proxy): void;
  gone(proxy: Proxy): void;
}

export interface ConnectionContext {
  generators: Generators;
  logger: Logger;
  metrics: PushMetrics;
  budget: SendBudget;
  throttle: ConnectThrottle;
  assembler: Assembler;
  maps: MapStore;
  /** Of one type, that a stream may subscribe to. */
  maxNames: number;
  /** Version of the state that generators read now. */
  version(): string;
  /** Told of clients that come and go, if somebody wants to know. */
  clients(): ClientListener | undefined;
  /** The connection may have become ready for its next push. */
  wake(connection: PushTarget): void;
}

export interface Delta {
  changed: readonly Resource[];
  removed: string[];
  /** Goes before `changed`. */
  shared?: ResourceList;
  /** What the client has once this was sent. */
  whole?: Whole;
}

/** Work on a request, that others may get a turn in between of. */
export type Steps = globalThis.Generator<void, void>;

export interface ConnectionStatus {
  id: string;
  variant: 'delta' | 'sotw';
  node: string;
  connectedAt: string;
  types: Record<string, { watched: number; wildcard: boolean; resources: number; nonce: string; ackedNonce: string; acked: boolean; isAnswered: boolean; nack?: { message: string; at: string } }>;
}

let connections = 0;
let nonces = 0;

export abstract class Connection<Request> implements PushTarget {
  abstract readonly variant: 'delta' | 'sotw';
  readonly connectedAt = new Date().toISOString();
  readonly id: string;
  readonly watches = new Map<string, Watch>();
  #proxy: Proxy | undefined;
  #ended = false;
  readonly #inbox: Request[] = [];
  /** What is left to do about the oldest request. */
  #steps: Iterator<void> | undefined;
  readonly #outbox: EncodedResponse[] = [];
  #isSending = false;
  /** When the oldest change was made that this client has not acknowledged yet. */
  #convergingSince: number | undefined;
  readonly #share: BudgetShare;

  constructor(readonly context: ConnectionContext, readonly call: ServerDuplexStream<Request, EncodedResponse>, readonly onEnd: () => void, readonly caller: Caller) {
    this.id = `${++connections}`;
    this.#share = new BudgetShare(context.budget);
    call.on('end', () => {
      call.end();
      this.#end('client ended the stream');
    });
    call.on('cancelled', () => this.#end('stream cancelled'));
    call.on('error', (error) => this.#end(errorMessage(error)));
    call.on('finish', () => this.#end('ended'));
    call.on('close', () => this.#end('closed'));
    context.throttle.enter(this.#read, peerOf(call, caller));
  }

  /** Lets requests in; called when the client's turn has come. */
  readonly #read = (): void => {
    const { budget, throttle } = this.context;
    this.call.on('data', (request: Request) => {
      throttle.heard(this.#read);
      this.#inbox.push(request);
      if (this.#inbox.length >= MAX_INBOX) this.call.pause();
      budget.whenFree(this.#next);
    });
  };

  /** Does one more step of what the oldest request asks for; called when there is room for a response. */
  readonly #next = (): void => {
    if (this.#ended || this.#isStuffed) return;
    const [request] = this.#inbox;
    if (request === undefined) return;
    const { budget, metrics, throttle } = this.context;
    try {
      this.#steps ??= this.#receive(request);
      if (!this.#steps.next().done) {
        budget.whenFree(this.#next);
        return;
      }
    } catch (error) {
      if (!(error instanceof StreamRefusal)) return this.fail(GrpcStatus.INTERNAL, `answering it: ${errorMessage(error)}`, error);
      metrics.refusedStreams.inc({ reason: error.reason });
      return this.fail(error.code, error.message);
    }
    this.#steps = undefined;
    this.#inbox.shift();
    throttle.leave(this.#read);
    this.context.wake(this);
    if (this.#inbox.length > 0) budget.whenFree(this.#next);
    else if (this.call.isPaused()) this.call.resume();
  };

  /** Makes the large ones of these resources, each in a turn of its own; they are kept and found there later. */
  protected *makeAhead(generator: Generator, proxy: Proxy, names: Iterable<string>): Steps {
    if (!generator.isLarge?.(proxy)) return;
    for (const name of names) {
      generator.one(proxy, name);
      yield;
    }
  }

  get #isStuffed(): boolean {
    return this.#share.unsentBytes > MAX_UNSENT_BYTES;
  }

  /** Who the client has proven to be. */
  get identity(): PeerIdentity | undefined {
    return this.caller.identity;
  }

  /** Who has proven an identity, or may open the Unix socket, is trusted with keys. */
  protected get isTrusted(): boolean {
    return this.caller.local || this.caller.identity !== undefined;
  }

  get proxy(): Proxy | undefined {
    return this.#proxy;
  }

  /** Every response of before is acknowledged and on its way: the client can take the next state. */
  get ready(): boolean {
    return !this.#steps && !this.#isStuffed && !this.#ended && this.#isAcknowledged;
  }

  get #isAcknowledged(): boolean {
    for (const { inFlight } of this.watches.values()) if (inFlight !== undefined) return false;
    return true;
  }

  /** When the oldest change was made that was sent and is not acknowledged; by performance.now(). */
  get convergingSince(): number | undefined {
    return this.#convergingSince;
  }

  status(): ConnectionStatus {
    const types: ConnectionStatus['types'] = {};
    for (const [typeUrl, watch] of this.watches) {
      types[typeUrl] = {
        watched: watch.names.size,
        wildcard: watch.wildcard,
        resources: watch.sent.size,
        nonce: watch.lastNonce,
        ackedNonce: watch.acked,
        isAnswered: watch.inFlight === undefined,
        acked: watch.inFlight === undefined && watch.acked === watch.lastNonce,
        ...(watch.nack ? { nack: { message: watch.nack.message, at: watch.nack.at } } : {}),
      };
    }
    return { id: this.id, variant: this.variant, node: this.#proxy?.id ?? '', connectedAt: this.connectedAt, types };
  }

  /** Sends what `change` alters of what this stream watches: clusters, endpoints, listeners, routes, in this order. */
  push(change: ChangeSet): void {
    const proxy = this.#proxy;
    if (!proxy || this.#ended) return;
    const { metrics } = this.context;
    /** Clusters sent anew: Envoy holds such a cluster back until it gets its endpoints once more, changed or not. */
    const rewarmed = new Set<string>();
    for (const typeUrl of PUSH_ORDER) {
      const watch = this.watches.get(typeUrl);
      const generator = this.context.generators.get(typeUrl);
      if (!watch || !generator) continue;
      if (typeUrl === TYPE.endpoint) for (const name of rewarmed) if (watch.names.has(name)) watch.sent.delete(name);
      const began = performance.now();
      const affected = generator.affected(proxy, change, watch.names);
      const again = typeUrl === TYPE.endpoint ? [...rewarmed].filter((name) => watch.names.has(name)) : [];
      const delta = affected === 'all' ? this.everything(watch, generator, proxy) : this.#some(watch, generator, proxy, [...affected, ...again]);
      if (delta.changed.length + delta.removed.length === 0) continue;
      if (typeUrl === TYPE.cluster) for (const { name } of delta.changed) rewarmed.add(name);
      this.respond(watch, generator, proxy, delta);
      metrics.pushTime.observe({ type: shortType(typeUrl) }, (performance.now() - began) / 1_000);
      this.#convergingSince ??= change.since;
    }
  }

  /** The difference between all that the watch covers and what was sent. */
  protected everything(watch: Watch, generator: Generator, proxy: Proxy): Delta {
    const whole = watch.wildcard && watch.names.size === 0 ? generator.whole?.(proxy, undefined) : undefined;
    const few = whole && watch.changesFrom(whole);
    if (few) return few;
    const current = new Map<string, Resource>();
    if (watch.wildcard) for (const resource of whole ? [...whole.shared.resources, ...whole.own] : generator.all(proxy)) current.set(resource.name, resource);
    for (const name of watch.names) {
      const resource = current.get(name) ?? generator.one(proxy, name);
      if (resource) current.set(resource.name, resource);
    }
    return { changed: [...current.values()].filter(watch.isUnsent), removed: [...watch.sent.keys()].filter((name) => !current.has(name)), ...(whole ? { whole } : {}) };
  }

  #some(watch: Watch, generator: Generator, proxy: Proxy, names: Iterable<string>): Delta {
    const changed = new Map<string, Resource>();
    const removed = new Set<string>();
    for (const name of names) {
      if (!watch.wildcard && !watch.names.has(name) && !watch.sent.has(name)) continue;
      const resource = generator.one(proxy, name);
      if (resource && watch.isUnsent(resource)) changed.set(resource.name, resource);
      else if (!resource && watch.sent.has(name)) removed.add(name);
    }
    return { changed: [...changed.values()], removed: [...removed] };
  }

  protected abstract handle(request: Request, proxy: Proxy): Steps;
  protected abstract nodeOf(request: Request): Node | undefined;
  protected abstract respond(watch: Watch, generator: Generator, proxy: Proxy, delta: Delta): void;

  /** Notes the answer to a response. @returns whether `nonce` is the newest response's. */
  protected acknowledge(watch: Watch, nonce: string, error: string | undefined): boolean {
    if (error !== undefined) {
      watch.nack = { nonce, message: error, at: new Date().toISOString() };
      this.context.metrics.rejects.inc({ type: shortType(watch.typeUrl) });
      this.context.logger.warn({ node: this.#proxy?.id, type: watch.typeUrl, nonce, error }, 'client refused resources; they are not sent again before they change');
    }
    if (nonce !== watch.lastNonce) {
      this.context.metrics.expiredNonces.inc({ type: shortType(watch.typeUrl) });
      return false;
    }
    watch.inFlight = undefined;
    watch.acked = nonce;
    if (error === undefined) watch.nack = undefined;
    if (this.#convergingSince !== undefined && this.#isAcknowledged) {
      this.context.metrics.convergence.observe((performance.now() - this.#convergingSince) / 1_000);
      this.#convergingSince = undefined;
    }
    return true;
  }

  protected nextNonce(watch: Watch): string {
    const nonce = `${this.context.version()}-${++nonces}`;
    watch.lastNonce = nonce;
    watch.inFlight = nonce;
    return nonce;
  }

  protected write(typeUrl: string, response: EncodedResponse): void {
    if (this.#ended) return;
    const { metrics } = this.context;
    const type = shortType(typeUrl);
    metrics.pushes.inc({ type });
    metrics.configSize.observe({ type }, response.byteLength);
    this.#share.take(response.byteLength);
    this.#outbox.push(response);
    this.#sendNext();
  }

  /** One at a time: what waits is not copied before its turn. */
  #sendNext(): void {
    const [response] = this.#outbox;
    if (this.#isSending || this.#ended || !response) return;
    this.#isSending = true;
    if (!response.hasManyPieces) this.#send(response);
    else this.context.assembler.add({ response, isWanted: () => !this.#ended, done: (assembled) => this.#send(assembled) });
  }

  #send(response: EncodedResponse): void {
    this.call.write(response, () => {
      // What was still under way when the stream ended was given back then.
      if (this.#ended) return;
      this.#isSending = false;
      this.#outbox.shift();
      const wasStuffed = this.#isStuffed;
      this.#share.give(response.byteLength);
      this.#sendNext();
      if (!wasStuffed || this.#isStuffed) return;
      this.context.wake(this);
      if (this.#inbox.length > 0) this.context.budget.whenFree(this.#next);
    });
  }

  fail(code: GrpcStatus, details: string, error?: unknown): void {
    if (code === GrpcStatus.INTERNAL) this.context.metrics.internalErrors.inc();
    this.context.logger.warn({ node: this.#proxy?.id, code, details, err: error }, 'ended a stream');
    this.call.emit('error', { code, details });
    this.#end(details);
  }

  *#receive(request: Request): Steps {
    if (!this.#proxy) {
      const node = this.nodeOf(request);
      try {
        const proxy = parseProxy(node?.id ?? '', node?.metadata ?? {}, node?.locality, node?.extensions);
        const { identity, isTrusted } = this;
        const refusal = identity && nodeIdRefusal(proxy, identity);
        if (refusal !== undefined) return this.fail(GrpcStatus.PERMISSION_DENIED, refusal);
        this.#proxy = { ...proxy, isTrusted, ...(node?.cluster ? { cluster: node.cluster } : {}), ...(identity ? { identity } : {}) };
      } catch (error) {
        this.fail(GrpcStatus.INVALID_ARGUMENT, errorMessage(error));
        return;
      }
      this.context.logger.info({ node: this.#proxy.id, connection: this.id, variant: this.variant, peer: this.call.getPeer() }, 'client connected');
      this.context.clients()?.connected(this.#proxy);
    }
    yield* this.handle(request, this.#proxy);
  }

  #end(reason: string): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#inbox.length = 0;
    this.#outbox.length = 0;
    this.context.budget.forget(this.#next);
    this.context.throttle.leave(this.#read);
    this.#share.release();
    this.onEnd();
    if (!this.#proxy) return;
    this.context.logger.info({ node: this.#proxy.id, connection: this.id, reason }, 'client gone');
    this.context.clients()?.gone(this.#proxy);
  }
}
