/**
 * One Envoy's delta ADS stream. A snapshot is rolled out make-before-break: new clusters and their endpoints, then
 * listeners, then routes, each acknowledged before what refers to it goes out; clusters are taken away last, and those that a table
 * of routes leads to that only draining connections go by, when Envoy drops the table.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { ServerDuplexStream } from '@grpc/grpc-js';
import { DeltaDiscoveryResponse, Resource, type DeltaDiscoveryRequest } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { Logger } from '../../common/log.js';
import { unpack } from '../../common/xds/any.js';
import { visitRouteClusters } from '../xds/references.js';
import { listenerParts } from './listener-parts.js';
import { podOfListener } from './pod-listener.js';
import { CDS, EDS, LDS, RDS, SDS, SHORT_NAMES, type Entries, type Entry, type Snapshot } from './snapshot.js';

export type AdsCall = ServerDuplexStream<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;

export interface Nack {
  type: string;
  name: string;
  version: string;
  message: string;
  /** Envoy cut its answer off, as a rule before the reason, which comes behind the whole message in text form. */
  isCut: boolean;
}

/** What the session needs of its server. */
export interface SessionHost {
  /** What to roll out now, bad versions already replaced by good ones; undefined: be silent. */
  target(): Snapshot | undefined;
  /** Before listeners that changed are sent. */
  beforeListeners?(names: readonly string[]): Promise<void>;
  /** All of the newest target was sent, and answered or waited for in vain. */
  rolledOut?(target: Snapshot): void;
  /** @param isAnswer to what this session sent; else it is what Envoy had when the stream began */
  acked(type: string, name: string, version: string | undefined, isAnswer: boolean): void;
  /** @returns when the reason is known, if Envoy has to be asked for it */
  nacked(nack: Nack): Promise<void> | void;
  logger: Logger;
}

interface TypeSubscription {
  wildcard: boolean;
  names: Set<string>;
  /** Versions that Envoy holds or was sent. */
  sent: Map<string, string>;
  /** Versions that Envoy acknowledged, now or on an earlier stream. */
  acked: Map<string, string>;
  /** Names that Envoy was told do not exist. */
  absent: Set<string>;
  /** Whether anything was answered: a wildcard subscription waits for a first answer, be it empty. */
  answered: boolean;
  /** All of these were sent, and what is not among them was taken away, as far as Envoy asked for them; undefined after a question of Envoy's. */
  sentAll: Entries | undefined;
  removedAll: { entries: Entries; keeps: Snapshot['keeps'] } | undefined;
}

interface Pending {
  type: string;
  entries: readonly Entry[];
  removed: readonly string[];
  done: () => void;
}

const PARTS_UNDER_WAY = 2;

/** A phase that Envoy does not acknowledge in time holds up the later ones no longer. */
const PHASE_TIMEOUT_MS = 5_000;

export class AdsSession {
  readonly #call: AdsCall;
  readonly #host: SessionHost;
  readonly #types = new Map<string, TypeSubscription>();
  readonly #pending = new Map<string, Pending>();
  readonly #waiters = new Set<() => void>();
  #nonce = 0;
  #running = false;
  #dirty = false;
  #closed = false;
  /** The snapshot under way; names that it lacks are answered from the one before, until the removals. */
  #current: Snapshot | undefined;
  #previous: Snapshot | undefined;
  /** Tables of routes that the target lacks, but Envoy still asks for: connections that drain go by them. */
  readonly #draining = new Map<string, Entry>();

  constructor(call: AdsCall, host: SessionHost) {
    this.#call = call;
    this.#host = host;
  }

  get closed(): boolean {
    return this.#closed;
  }

  close(): void {
    this.#closed = true;
    for (const pending of this.#pending.values()) pending.done();
    this.#pending.clear();
    this.#wake();
  }

  /** The version that Envoy acknowledged. */
  ackedVersion(type: string, name: string): string | undefined {
    return this.#types.get(type)?.acked.get(name);
  }

  holds(type: string, name: string): boolean {
    const subscription = this.#types.get(type);
    return subscription ? subscription.sent.has(name) : true;
  }

  /** All of the target was sent and answered. */
  get idle(): boolean {
    return !this.#running && !this.#dirty && this.#pending.size === 0;
  }

  receive(request: DeltaDiscoveryRequest): void {
    if (request.response_nonce) this.#answered(request);
    let subscription = this.#types.get(request.type_url);
    const isFirst = subscription === undefined;
    if (!subscription) {
      const isWildcard = request.type_url === CDS || request.type_url === LDS;
      const known = Object.entries(request.initial_resource_versions);
      subscription = { wildcard: isWildcard, names: new Set(), sent: new Map(known), acked: new Map(known), absent: new Set(), answered: known.length > 0, sentAll: undefined, removedAll: undefined };
      this.#types.set(request.type_url, subscription);
      for (const [name, version] of known) this.#host.acked(request.type_url, name, version, false);
    }
    const fresh: string[] = [];
    for (const name of request.resource_names_subscribe) {
      if (name === '*') continue;
      subscription.names.add(name);
      fresh.push(name);
    }
    for (const name of request.resource_names_unsubscribe) {
      subscription.names.delete(name);
      subscription.absent.delete(name);
      subscription.sent.delete(name);
      subscription.acked.delete(name);
      // What it led to may go.
      if (request.type_url === RDS && this.#draining.delete(name)) this.#dirty = true;
    }
    if (fresh.length + request.resource_names_unsubscribe.length > 0) [subscription.sentAll, subscription.removedAll] = [undefined, undefined];
    if (!subscription.wildcard && fresh.length > 0) this.#answerNames(request.type_url, subscription, fresh, isFirst);
    this.#wake();
    if (isFirst || this.#dirty) this.push();
  }

  /** Sends these once more as soon as what is under way is done; what the target lacks is taken away. */
  resend(type: string, names: readonly string[]): void {
    const subscription = this.#types.get(type);
    const target = this.#host.target();
    if (!subscription || !target) return;
    for (const name of names) {
      if (target.get(type, name)) subscription.sent.delete(name);
      else subscription.sent.set(name, '');
      subscription.acked.delete(name);
    }
    [subscription.sentAll, subscription.removedAll] = [undefined, undefined];
    this.push();
  }

  /** Rolls the host's target out; calls while that is under way are taken together. */
  push(): void {
    this.#dirty = true;
    // What a phase under way may be waiting for: a cluster without its certificate warms up for ever.
    const target = this.#host.target();
    if (target) this.#upsert(SDS, target);
    if (this.#running || this.#closed) return;
    this.#running = true;
    void this.#run().finally(() => {
      this.#running = false;
      this.#wake();
    });
  }

  async #run(): Promise<void> {
    while (this.#dirty && !this.#closed) {
      this.#dirty = false;
      const target = this.#host.target();
      if (!target) return;
      if (target !== this.#current) this.#previous = this.#current;
      this.#current = target;
      await this.#rollOut(target);
      if (!this.#closed && this.#types.has(LDS)) this.#host.rolledOut?.(target);
    }
  }

  async #rollOut(target: Snapshot): Promise<void> {
    for (const name of this.#types.get(RDS)?.names ?? []) {
      const [is, was] = [target.get(RDS, name), this.#previous?.get(RDS, name)];
      if (is) this.#draining.delete(name);
      else if (was) this.#draining.set(name, was);
    }
    const warm = target.entries(CDS) === this.#types.get(CDS)?.sentAll ? new Set<string>() : new Set(this.#types.get(EDS)?.sent.keys());
    const { sent: clusters, done } = this.#upsert(CDS, target);
    // A changed cluster is warmed up again: it waits for its endpoints even when they are as before, and Envoy does not
    // acknowledge CDS while a cluster warms up.
    await this.#upsert(EDS, target, new Set(clusters.flatMap((entry) => entry.needs).filter((name) => warm.has(name)))).done;
    await done;
    await this.#settled(EDS, clusters, target);
    // Nothing refers to a listener of a pod, and its address may have gone to another one.
    await this.#remove(LDS, target, (name) => podOfListener(name) !== undefined);
    if (this.#host.beforeListeners) await this.#bounded(this.#host.beforeListeners(this.#changedListeners(target)), 'its connections to be listed');
    const { sent: listeners, done: listening } = this.#upsert(LDS, target);
    await listening;
    await this.#upsert(RDS, target).done;
    await this.#settled(RDS, listeners, target);
    // Those that waited for what they lead to now.
    await this.#upsert(CDS, target).done;
    await this.#remove(LDS, target);
    for (const type of this.#types.keys()) if (![CDS, EDS, LDS, RDS].includes(type)) await this.#upsert(type, target).done;
    // A subscription that has not come yet (right after a reconnect) may still refer to what would be removed.
    if (!this.#types.has(LDS)) return;
    await this.#remove(CDS, target);
    this.#previous = undefined;
  }

  /** Sends what changed, or is in `force`; `done` when Envoy answered. */
  #upsert(type: string, target: Snapshot, force: ReadonlySet<string> = new Set()): { sent: readonly Entry[]; done: Promise<void> } {
    const nothing = { sent: [], done: Promise.resolve() };
    const subscription = this.#types.get(type);
    if (!subscription || this.#closed) return nothing;
    const entries = target.entries(type);
    if (subscription.sentAll === entries && force.size === 0) return nothing;
    const wanted = subscription.wildcard
      ? [...target.entries(type).values()]
      : [...subscription.names].map((name) => target.get(type, name)).filter((entry) => entry !== undefined);
    const differing = wanted.filter((entry) => force.has(entry.name) || subscription.sent.get(entry.name) !== entry.version);
    const changed = differing.filter((entry) => !this.#leadsNowhere(entry, subscription));
    const missing = [...subscription.names].filter((name) => !target.get(type, name) && !subscription.sent.has(name) && !subscription.absent.has(name));
    if ((subscription.answered || !subscription.wildcard || changed.length > 0) && changed.length === differing.length) subscription.sentAll = entries;
    if (changed.length + missing.length === 0 && (subscription.answered || !subscription.wildcard)) return nothing;
    const sending = type === LDS ? this.#sendListeners(changed) : this.#answer(type, this.#sendInParts(type, changed, missing));
    return { sent: changed, done: sending };
  }

  /** It is in use, and would be led to a listener that Envoy lacks. */
  #leadsNowhere({ name, leadsTo }: Entry, { sent }: TypeSubscription): boolean {
    return leadsTo !== undefined && sent.has(name) && this.#types.get(LDS)?.acked.has(leadsTo) !== true;
  }

  #changedListeners(target: Snapshot): string[] {
    const sent = this.#types.get(LDS)?.sent;
    return sent ? [...target.entries(LDS).values()].flatMap(({ name, version }) => (sent.get(name) === version ? [] : name)) : [];
  }

  /** Of a wildcard type; endpoints and routes go when Envoy unsubscribes, with the cluster or listener that needed them. */
  async #remove(type: string, target: Snapshot, isTurn?: (name: string) => boolean): Promise<void> {
    const subscription = this.#types.get(type);
    if (!subscription || this.#closed) return;
    const [entries, { keeps }] = [target.entries(type), target];
    if (subscription.removedAll?.entries === entries && subscription.removedAll.keeps === keeps) return;
    if (!isTurn) subscription.removedAll = { entries, keeps };
    const gone = [...subscription.sent.keys()].filter((name) => !entries.has(name) && !keeps(type, name) && isTurn?.(name) !== false);
    const used = type === CDS && gone.length > 0 ? this.#drainingClusters() : new Set<string>();
    const names = gone.filter((name) => !used.has(name));
    // Again when Envoy needs them no more.
    if (names.length < gone.length) subscription.removedAll = undefined;
    if (names.length > 0) await this.#bounded(this.#send(type, [], names), `${SHORT_NAMES[type] ?? type} removals to be acknowledged`);
  }

  #drainingClusters(): ReadonlySet<string> {
    const names = new Set<string>();
    for (const { any } of this.#draining.values()) visitRouteClusters(unpack(RouteConfiguration, any)?.virtual_hosts ?? [], (name) => names.add(name));
    return names;
  }

  /** Waits until what `owners` need was asked for and acknowledged. */
  async #settled(type: string, owners: readonly Entry[], target: Snapshot): Promise<void> {
    const ready = (): boolean =>
      owners.every((owner) => owner.needs.every((name) => !target.get(type, name) || this.#types.get(type)?.acked.get(name) !== undefined || !this.#accepted(owner)));
    const deadline = performance.now() + PHASE_TIMEOUT_MS;
    while (!this.#closed && !ready() && performance.now() < deadline) await this.#woken(deadline - performance.now());
  }

  #accepted(owner: Entry): boolean {
    for (const type of [CDS, LDS]) if (this.#types.get(type)?.acked.get(owner.name) === owner.version) return true;
    return false;
  }

  #answerNames(type: string, subscription: TypeSubscription, names: readonly string[], isFirst: boolean): void {
    // Secrets wait for no phase.
    const target = type === SDS ? this.#host.target() : this.#current;
    // Before the first roll-out nothing is answered: the loop does it once there is a snapshot.
    if (!target || (isFirst && subscription.sent.size > 0)) return;
    const found = names.map((name) => target.get(type, name) ?? this.#previous?.get(type, name)).filter((entry) => entry !== undefined);
    const missing = names.filter((name) => !found.some((entry) => entry.name === name));
    if (found.length + missing.length > 0) void this.#send(type, found, missing);
  }

  /**
   * Tables of routes of a large mesh go one by one, as they are built in Envoy one by one: what the first leads to need not wait
   * for the others, and the rest of the process has its turns in between.
   */
  async #sendInParts(type: string, entries: readonly Entry[], removed: readonly string[]): Promise<void> {
    if (type !== RDS || entries.length < 2) return this.#send(type, entries, removed);
    const sent = removed.length > 0 ? [this.#send(type, [], removed)] : [];
    for (const entry of entries) {
      sent.push(this.#send(type, [entry], []));
      await nextTurn();
    }
    await Promise.all(sent);
  }

  /**
   * Envoy makes listeners one by one, and answers for a response as a whole: pods whose listeners are new have them in small parts,
   * so that the first go on while it makes others'. All else is one response, since what was there changes at one moment.
   */
  async #sendListeners(entries: readonly Entry[]): Promise<void> {
    const parts = listenerParts(entries, (name) => this.#types.get(LDS)?.sent.has(name) === true);
    const answers: Promise<void>[] = [];
    for (const part of parts) {
      // One more than Envoy is at, so that it need not wait for the next.
      await answers.at(-PARTS_UNDER_WAY);
      // Of a pod that has gone meanwhile, whoever waits for the end of its listener was told that there is none.
      const target = this.#host.target();
      answers.push(this.#answer(LDS, this.#send(LDS, part.filter(({ name }) => target?.get(LDS, name)), [])));
    }
    await Promise.all(answers);
  }

  #answer(type: string, answered: Promise<void>): Promise<void> {
    return this.#bounded(answered, `${SHORT_NAMES[type] ?? type} to be acknowledged`);
  }

  #send(type: string, entries: readonly Entry[], removed: readonly string[]): Promise<void> {
    const subscription = this.#types.get(type);
    if (!subscription || this.#closed) return Promise.resolve();
    subscription.answered = true;
    for (const entry of entries) {
      subscription.sent.set(entry.name, entry.version);
      subscription.absent.delete(entry.name);
    }
    for (const name of removed) {
      subscription.sent.delete(name);
      if (subscription.names.has(name)) subscription.absent.add(name);
    }
    const nonce = `${++this.#nonce}`;
    return new Promise((done) => {
      this.#pending.set(nonce, { type, entries, removed, done });
      this.#call.write(
        {
          ...DeltaDiscoveryResponse.fromPartial({ type_url: type, nonce, removed_resources: [...removed] }),
          // As they are: their bytes are large.
          resources: entries.map(({ name, version, any: resource }) => ({ ...Resource.fromPartial({ name, version }), resource })),
        },
      );
    });
  }

  #answered(request: DeltaDiscoveryRequest): void {
    const pending = this.#pending.get(request.response_nonce);
    if (!pending) return; // stale: of an earlier stream
    const acked = this.#types.get(pending.type)?.acked;
    const message = request.error_detail?.message;
    const end = (): void => {
      this.#pending.delete(request.response_nonce);
      pending.done();
      this.#wake();
    };
    if (message === undefined) {
      for (const entry of pending.entries) {
        acked?.set(entry.name, entry.version);
        this.#host.acked(pending.type, entry.name, entry.version, true);
      }
      for (const name of pending.removed) {
        acked?.delete(name);
        this.#host.acked(pending.type, name, undefined, true);
      }
    } else {
      const asked = this.#rejected(pending, message);
      if (asked) return void asked.finally(end);
    }
    end();
  }

  /**
   * Envoy names the listeners and clusters that it refuses and takes the others; of other types it refuses the whole response.
   * @returns what has to come first, if anything has
   */
  #rejected(pending: Pending, message: string): Promise<void> | undefined {
    const { type, entries, removed } = pending;
    const blamedNames = namesIn(message, entries.map((entry) => entry.name));
    const named = entries.filter((entry) => blamedNames.has(entry.name));
    const isPartial = type === CDS || type === LDS;
    const blamed = named.length > 0 ? named : entries.length === 1 ? entries : [];
    for (const name of removed) this.#host.acked(type, name, undefined, true);
    if (blamed.length === 0 || (!isPartial && entries.length > 1)) {
      // Nobody to blame: one by one, so that each gets its own answer.
      for (const entry of entries) void this.#send(type, [entry], []);
      return undefined;
    }
    const others = entries.filter((entry) => !blamed.includes(entry));
    // Whoever else is refused stood in the part that Envoy cut off: they are asked for again, and those of them that are in force are in force.
    const isCut = message.endsWith(CUT);
    const reasons: (Promise<void> | void)[] = [];
    const acked = this.#types.get(type)?.acked;
    for (const entry of entries) {
      if (blamed.includes(entry)) {
        reasons.push(this.#host.nacked({ type, name: entry.name, version: entry.version, message: excerpt(message, entry.name), isCut }));
      } else if (!isCut) {
        acked?.set(entry.name, entry.version);
        this.#host.acked(type, entry.name, entry.version, true);
      }
    }
    if (!isCut || others.length === 0) return undefined;
    // By the next response Envoy forgets why it refused this one.
    return Promise.all(reasons).then(() => {
      if (!this.#closed) void this.#send(type, others, []);
    });
  }

  async #bounded(work: Promise<void>, what: string): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<'late'>((resolve) => {
      timer = setTimeout(() => resolve('late'), PHASE_TIMEOUT_MS);
    });
    if ((await Promise.race([work, late])) === 'late') this.#host.logger.warn(`Envoy: waiting for ${what}: not so after ${PHASE_TIMEOUT_MS} ms, going on`);
    clearTimeout(timer);
  }

  #woken(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, Math.max(0, timeoutMs));
      this.#waiters.add(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  #wake(): void {
    const waiters = [...this.#waiters];
    this.#waiters.clear();
    for (const waiter of waiters) waiter();
  }
}

/** Which of `names` a refusal speaks of. Names may begin or end with each other, so a match stands alone and is used up. */
export function namesIn(message: string, names: readonly string[]): Set<string> {
  const found = new Set<string>();
  let left = message;
  for (const name of [...names].sort((a, b) => b.length - a.length)) {
    if (name === '') continue;
    const alone = new RegExp(`(?<![\\w|~/-]|\\w[.:])${name.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&')}(?![\\w|~/-]|\\.\\w|:\\d)`, 'g');
    const rest = left.replace(alone, ' ');
    if (rest !== left) found.add(name);
    left = rest;
  }
  return found;
}

const MAX_REASON = 1_000;
/** Ends what Envoy says, where that is longer than 4,096 characters. */
const CUT = '...(truncated)';

/**
 * The part of a refusal that speaks of one resource: its line, or, where Envoy prints the whole message in text form
 * before the reason, what follows that.
 */
export function excerpt(message: string, name: string): string {
  const part = message.slice(Math.max(0, message.indexOf(name)));
  const afterDump = /\n: ([^\n]+)/.exec(part)?.[1];
  return (afterDump ?? part.split('\n', 1)[0] ?? part).slice(0, MAX_REASON);
}
