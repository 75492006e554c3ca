/** The agent's delta ADS server for the one Envoy, on a Unix socket in a folder that only root may enter. */
import { chmodSync, rmSync } from 'node:fs';
import { Server, ServerCredentials } from '@grpc/grpc-js';
import { AggregatedDiscoveryServiceService } from '../../proto/generated/envoy/service/discovery/v3/ads.js';
import type { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { sleep } from '../../common/retry.js';
import { encodeResponse } from './ads-encode.js';
import { AdsSession, excerpt, type AdsCall, type Nack } from './ads-session.js';
import { objectsOfEntry } from './envoy-audit.js';
import { release } from './made-any.js';
import { LDS, Snapshot, SHORT_NAMES, type Entries, type Entry } from './snapshot.js';

export interface ResourceStatus {
  /** Acknowledged by the Envoy that is connected. */
  acked: boolean;
  /** Why Envoy refuses what it should have now. */
  nack: string | undefined;
}

export interface AdsServerOptions {
  socketPath: string;
  logger: Logger;
  /** Whether this is the Envoy that is to be served; another one, which is being replaced, keeps what it has. */
  accepts?: (node: Node) => boolean;
  /** An Envoy connected and said who it is; called before anything is sent to it. */
  onNode?: (node: Node) => void;
  /** Before Envoy is sent listeners that changed. */
  beforeListeners?: (names: readonly string[]) => Promise<void>;
  /** All that Envoy says of a listener that it refused last. */
  refusalOf?: (listener: string) => Promise<string | undefined>;
  /** Other services for Envoy on the same socket. */
  register?: (server: Server) => void;
}

/** Of gRPC. */
const UNAVAILABLE = 14;
const NO_ENTRIES: Entries = new Map();

export class AdsServer implements Closable {
  readonly #options: AdsServerOptions;
  readonly #server = new Server({ 'grpc.max_receive_message_length': -1, 'grpc.max_send_message_length': -1 });
  #session: AdsSession | undefined;
  #snapshot: Snapshot | undefined;
  /** Snapshots have numbers; what is made of one where Envoy refused a part of it has the same. */
  #number = 0;
  readonly #numbers = new WeakMap<Snapshot, number>();
  #rolledOut = 0;
  #refusals = 0;
  /** By type and name the newest version that an Envoy accepted, for an Envoy that starts anew while the wanted one is refused. */
  readonly #good = new Map<string, Map<string, Entry>>();
  readonly #nacks = new Map<string, Nack>();
  /** Milliseconds since 1970, of what nobody has looked at since. */
  readonly #ackedAt = new Map<string, number>();
  readonly #waiters = new Set<() => void>();
  /** By the time that they last at most. */
  readonly #soon = new Map<number, Promise<void>>();

  constructor(options: AdsServerOptions) {
    this.#options = options;
  }

  async start(): Promise<void> {
    const { socketPath } = this.#options;
    rmSync(socketPath, { force: true });
    this.#server.addService({ ...AggregatedDiscoveryServiceService, deltaAggregatedResources: { ...AggregatedDiscoveryServiceService.deltaAggregatedResources, responseSerialize: encodeResponse } }, {
      deltaAggregatedResources: (call: AdsCall) => this.#accept(call),
      streamAggregatedResources: (call: { emit(event: 'error', error: Error): void }) =>
        call.emit('error', Object.assign(new Error('only delta ADS is served here'), { code: 12 })),
    });
    this.#options.register?.(this.#server);
    try {
      await new Promise<void>((resolve, reject) => {
        this.#server.bindAsync(`unix:${socketPath}`, ServerCredentials.createInsecure(), (error) => (error ? reject(error) : resolve()));
      });
      chmodSync(socketPath, 0o600);
    } catch (cause) {
      throw new UnderpassError('UNDERPASS_ADS_LISTEN', `listening for Envoy on ${socketPath}: ${errorMessage(cause)}`, { cause });
    }
  }

  get connected(): boolean {
    return this.#session !== undefined;
  }

  get nacks(): readonly (Nack & { objects: readonly string[] })[] {
    return [...this.#nacks.values()].map((nack) => ({ ...nack, type: SHORT_NAMES[nack.type] ?? nack.type, objects: objectsOfEntry(nack.name, this.entries(nack.type).get(nack.name)) }));
  }

  get pushes(): { snapshots: number; refusals: number } {
    return { snapshots: this.#number, refusals: this.#refusals };
  }

  /** What is wanted. */
  entries(type: string): Entries {
    return this.#snapshot?.entries(type) ?? NO_ENTRIES;
  }

  /** Sends what Envoy was found not to have as it acknowledged it once more, and takes away what is not wanted. */
  resend(type: string, names: readonly string[]): void {
    this.#session?.resend(type, names);
  }

  /** When Envoy answered for it last, once: it is forgotten then. Milliseconds since 1970; undefined of what it had when the agent started. */
  takeAckedAt(type: string, name: string): number | undefined {
    const key = `${type} ${name}`;
    const at = this.#ackedAt.get(key);
    this.#ackedAt.delete(key);
    return at;
  }

  /** Of the newest snapshot that Envoy was sent, and has answered, in full. */
  get rolledOut(): number {
    return this.#rolledOut;
  }

  /** Until the first call nothing at all is sent, so that an Envoy that runs keeps what it has. @returns the snapshot's number */
  setSnapshot(snapshot: Snapshot): number {
    const before = this.#snapshot;
    this.#snapshot = snapshot;
    this.#numbers.set(snapshot, ++this.#number);
    for (const [key, nack] of this.#nacks) if (snapshot.get(nack.type, nack.name)?.version !== nack.version) this.#nacks.delete(key);
    for (const [type, good] of this.#good) {
      const entries = snapshot.entries(type);
      if (entries !== before?.entries(type)) for (const name of good.keys()) if (!entries.has(name)) good.delete(name);
    }
    this.#session?.push();
    return this.#number;
  }

  status(type: string, name: string): ResourceStatus {
    const wanted = this.#snapshot?.get(type, name);
    const acked = wanted !== undefined && this.#session?.ackedVersion(type, name) === wanted.version;
    return { acked, nack: this.#nacks.get(`${type} ${name}`)?.message };
  }

  /** Whether the connected Envoy was sent this name and has not confirmed its removal; true when no Envoy is connected. */
  mayHold(type: string, name: string): boolean {
    const session = this.#session;
    if (!session) return true;
    return session.holds(type, name) || session.ackedVersion(type, name) !== undefined;
  }

  /** Resolves at the next change of anybody's status. */
  changed(signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const waiter = (): void => {
        signal?.removeEventListener('abort', aborted);
        resolve();
      };
      const aborted = (): void => {
        this.#waiters.delete(waiter);
        reject(signal?.reason as Error);
      };
      if (signal?.aborted) return aborted();
      signal?.addEventListener('abort', aborted, { once: true });
      this.#waiters.add(waiter);
    });
  }

  /** Waits for a change of anybody's status, or `ms` (milliseconds), or until `signal` aborts. */
  async changedWithin(ms: number, signal: AbortSignal): Promise<void> {
    const over = new AbortController();
    const either = AbortSignal.any([over.signal, signal]);
    await Promise.race([this.changed(either), sleep(ms, either)]).catch(() => undefined);
    over.abort();
  }

  /** Resolves at the next change of anybody's status, or when `ms` have passed since the first who waits that long began to: one timer for a hundred pods. */
  changedSoon(ms: number): Promise<void> {
    const known = this.#soon.get(ms);
    if (known) return known;
    const soon = new Promise<void>((resolve) => {
      const over = (): void => {
        clearTimeout(timer);
        this.#waiters.delete(over);
        this.#soon.delete(ms);
        resolve();
      };
      const timer = setTimeout(over, ms);
      this.#waiters.add(over);
    });
    this.#soon.set(ms, soon);
    return soon;
  }

  /** All that should be sent was sent and answered. */
  get idle(): boolean {
    return this.#session?.idle ?? false;
  }

  close(): void {
    this.#session?.close();
    this.#server.forceShutdown();
    rmSync(this.#options.socketPath, { force: true });
  }

  #accept(call: AdsCall): void {
    let isFirst = true;
    const session = new AdsSession(call, {
      target: () => this.#target(),
      ...(this.#options.beforeListeners ? { beforeListeners: this.#options.beforeListeners } : {}),
      rolledOut: (target) => {
        this.#rolledOut = this.#numbers.get(target) ?? this.#rolledOut;
        this.#notify();
      },
      acked: (type, name, version, isAnswer) => {
        if (isAnswer) this.#ackedAt.set(`${type} ${name}`, Date.now());
        this.#acked(type, name, version);
      },
      nacked: (nack) => this.#nacked(nack),
      logger: this.#options.logger,
    });
    const ended = (): void => {
      session.close();
      if (this.#session !== session) return;
      this.#session = undefined;
      this.#notify();
    };
    call.on('data', (request) => {
      if (isFirst) {
        if (request.node && this.#options.accepts?.(request.node) === false) return call.emit('error', Object.assign(new Error('another Envoy is served now'), { code: UNAVAILABLE }));
        // One Envoy: a newer stream takes the place of one whose end was not noticed yet.
        this.#session?.close();
        this.#session = session;
        isFirst = false;
        if (request.node) this.#options.onNode?.(request.node);
      }
      if (this.#session === session) session.receive(request);
    });
    call.on('error', ended);
    call.on('cancelled', ended);
    call.on('end', () => {
      call.end();
      ended();
    });
  }

  /** The wanted snapshot, where an Envoy refused the wanted version with the last one that one accepted. */
  #target(): Snapshot | undefined {
    const wanted = this.#snapshot;
    if (!wanted || this.#nacks.size === 0) return wanted;
    const types = new Map(Object.keys(SHORT_NAMES).map((type) => [type, new Map(wanted.entries(type))] as const));
    for (const nack of this.#nacks.values()) {
      const entries = types.get(nack.type);
      const good = this.#good.get(nack.type)?.get(nack.name);
      if (good) entries?.set(nack.name, good);
    }
    const target = new Snapshot(types, wanted.keeps);
    this.#numbers.set(target, this.#number);
    return target;
  }

  #acked(type: string, name: string, version: string | undefined): void {
    const wanted = this.#snapshot?.get(type, name);
    if (version === undefined) this.#ackedAt.delete(`${type} ${name}`);
    if (wanted && wanted.version === version) {
      const good = this.#good.get(type) ?? new Map<string, Entry>();
      this.#good.set(type, good.set(name, wanted));
      release(wanted);
      this.#nacks.delete(`${type} ${name}`);
    }
    this.#notify();
  }

  #nacked(nack: Nack): Promise<void> | void {
    this.#refusals++;
    this.#nacks.set(`${nack.type} ${nack.name}`, nack);
    this.#options.logger.error({ type: SHORT_NAMES[nack.type], resource: nack.name, reason: nack.message }, 'Envoy refused a resource; the last good one stays');
    this.#notify();
    if (nack.isCut && nack.type === LDS) return this.#reason(nack);
  }

  async #reason(nack: Nack): Promise<void> {
    const key = `${nack.type} ${nack.name}`;
    const all = await this.#options.refusalOf?.(nack.name).catch(() => undefined);
    if (all === undefined || this.#nacks.get(key) !== nack) return;
    const message = `${nack.name}: ${excerpt(all, nack.name)}`;
    this.#nacks.set(key, { ...nack, message, isCut: false });
    this.#options.logger.error({ type: SHORT_NAMES[nack.type], resource: nack.name, reason: message }, 'why Envoy refused a resource');
    this.#notify();
  }

  #notify(): void {
    const waiters = [...this.#waiters];
    this.#waiters.clear();
    for (const waiter of waiters) waiter();
  }
}
