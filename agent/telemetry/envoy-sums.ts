/**
 * Envoy's part of Istio's series. Envoy counts by keys (proxy/request-log.ts, proxy/connection-log.ts) and begins at nothing when it is started
 * anew, or drops keys that were long not counted up; so what a key has grown by since it was last read is added to sums of the
 * agent's own, under the labels that the key stands for at that time, and sums never fall. They are on disk, with the last reading.
 */
import { errorMessage } from '../../common/errors.js';
import type { Logger } from '../../common/log.js';
import type { FlowSideName } from '../dataplane/kernel-flows.js';
import type { HttpService } from '../http/table.js';
import { KEY_SEPARATOR } from '../proxy/request-log.js';
import type { RequestView } from '../proxy/request-view.js';
import { Workload } from '../../proto/generated/istio/workload/workload.js';
import { EnvoySumsFile, type SavedSums } from './envoy-sums-file.js';
import { FlowDirectory, OVERFLOW, UNKNOWN, type FlowLabels, type KnownWorkloads } from './flow-labels.js';
import { hashOf, TOLD_MS } from './flow-series.js';

export interface EnvoySum<T> {
  reporter: FlowSideName;
  /** Of the labels, as in http-series.ts. */
  hash: string;
  labels: FlowLabels;
  totals: T;
}

export interface EnvoyReport<T> {
  sums: EnvoySum<T>[];
  /** Envoy answered when it was last asked. */
  isRead: boolean;
  /** Keys that Envoy counts by. */
  keys: number;
  /** Keys that are in no sum yet, since the control plane has not named a workload of theirs. */
  held: number;
  /** Requests or connections that are in no sum, since nobody knows any more whose they were. */
  lost: bigint;
  /** Series that found no room, and are told as one. */
  dropped: number;
}

/** What a key stands for. */
export interface KeyEnds {
  side: FlowSideName;
  source: Workload | undefined;
  destination: Workload | undefined;
  service: HttpService | undefined;
  /** Of the destination, where there is no service. */
  port?: number;
  /** Undefined: nobody can tell. */
  security: string | undefined;
  /** In place of other labels. */
  more: Record<string, string>;
}

/** What Envoy counts. */
export interface Counted<T> {
  /** Of which there are many. */
  what: string;
  /** Where Envoy tells it. */
  path: string;
  reader(): { read(text: string): void; end(): ReadonlyMap<string, T> };
  add(a: T, b: T): T;
  /**
   * @param before as it was last taken
   * @returns `base`: what of that still holds; `growth` on it, undefined: none; and `last`, to be taken
   */
  grown(now: T, before: T | undefined): { base: T | undefined; growth: T | undefined; last: T };
  count(totals: T): bigint;
  /** @param rest of the key's parts, behind those of both ends */
  labels(directory: FlowDirectory, ends: KeyEnds, rest: readonly string[]): FlowLabels;
  pack(totals: T): string[];
  /** @throws Error that says what is wrong with them */
  unpack(values: readonly string[]): T;
}

interface Known<T> {
  /** Undefined: not told yet. */
  labels: readonly Labelled[] | undefined;
  last: T;
}

interface SeenPod {
  netnsPath: string;
  /** Undefined: the control plane has not named it yet. */
  workload: Workload | undefined;
  at: number;
  isHere: boolean;
}

export interface Labelled {
  reporter: FlowSideName;
  labels: FlowLabels;
}

export interface EnvoySumsOptions {
  view: RequestView;
  workloads: KnownWorkloads;
  trustDomain?: string;
  /** Where the sums are kept. */
  path: string;
  logger: Logger;
  /** Milliseconds. */
  now?: () => number;
}

/** Series. */
const MAX_SUMS = 8_192;
const FULL_EVERY_MS = 60_000;
/** Of Envoy's answer: some kilobytes a key. */
const MAX_ANSWER_BYTES = 64 << 20;
const SAVE_EVERY_MS = 60_000;
/** How long a series of pods that are gone waits for somebody to read it. */
const UNREAD_MS = 300_000;
/** Envoy merges what its threads have counted every five seconds: to ask more often than this tells nothing new. */
const FRESH_MS = 500;
/** An answer that takes long is asked for less often: between two there are so many times what the last one took. */
const REST_FACTOR = 20;
/** Taken between two turns of everybody else. */
const KEYS_A_TURN = 32;
/** How long a pod that is gone is remembered, for what Envoy counts or merges last. */
const GONE_MS = 600_000;

export class EnvoySums<T> {
  readonly #options: EnvoySumsOptions;
  readonly #counted: Counted<T>;
  readonly #directory: FlowDirectory;
  readonly #file: EnvoySumsFile<T>;
  readonly #now: () => number;
  readonly #stopping = new AbortController();
  /** Envoy's process that `#keys` are of. */
  #envoy: string | undefined;
  #keys = new Map<string, Known<T>>();
  readonly #sums = new Map<string, EnvoySum<T> & { idleSince: number }>();
  /** By uid, with those that are gone since shortly. */
  readonly #pods = new Map<string, SeenPod>();
  #reading: Promise<void> | undefined;
  #saving: Promise<void> = Promise.resolve();
  #readAt = -Infinity;
  #tookMs = 0;
  #savedAt: number;
  #isChanged = false;
  #isRead = false;
  #held = 0;
  #lost = 0n;
  #dropped = 0;
  #fullAt = -Infinity;
  #problem: string | undefined;

  constructor(options: EnvoySumsOptions, counted: Counted<T>) {
    this.#options = options;
    this.#counted = counted;
    this.#directory = new FlowDirectory(options.workloads, options.trustDomain);
    this.#now = options.now ?? (() => performance.now());
    this.#savedAt = this.#now();
    this.#file = new EnvoySumsFile(options.path, counted);
  }

  /** Goes on with what an agent before this one had. */
  async open(): Promise<void> {
    let saved: SavedSums<T> | undefined;
    try {
      saved = await this.#file.load();
    } catch (error) {
      this.#options.logger.warn({ reason: errorMessage(error) }, `Envoy's part of the ${this.#counted.what} metrics begins anew`);
    }
    if (!saved) return;
    this.#envoy = saved.envoy;
    this.#lost = saved.lost;
    for (const { key, labels, last } of saved.keys) this.#keys.set(key, { labels, last });
    for (const { reporter, labels, totals } of saved.sums) {
      const hash = hashOf(labels);
      this.#sums.set(`${reporter} ${hash}`, { reporter, hash, labels, totals, idleSince: this.#now() });
    }
  }

  /** Reads Envoy's counts; one reading serves all who ask meanwhile. Never rejects: what is known stays as it was. */
  async refresh(): Promise<void> {
    if (!this.#reading && this.#now() - this.#readAt < FRESH_MS) return;
    const start = this.#now();
    this.#reading ??= this.#read().then((isRead) => this.#note(isRead), (error: unknown) => this.#note(false, errorMessage(error))).finally(() => {
      this.#reading = undefined;
      this.#tookMs = this.#now() - start;
    });
    return this.#reading;
  }

  /** The series of these labels, whoever reports it. */
  labelsOf(hash: string): FlowLabels | undefined {
    return (this.#sums.get(`source ${hash}`) ?? this.#sums.get(`destination ${hash}`))?.labels;
  }

  /**
   * For a scrape. @param isKernels whether the kernel has a part of the series of this hash, so that it stays
   * @param isPeek it is for no scrape, and drops nothing
   */
  report(isKernels: (hash: string) => boolean, isPeek = false): EnvoyReport<T> {
    const sums = [...this.#sums.values()].map(({ reporter, hash, labels, totals }) => ({ reporter, hash, labels, totals }));
    if (!isPeek) this.#drop(isKernels, TOLD_MS);
    return { sums, isRead: this.#isRead, keys: this.#keys.size, held: this.#held, lost: this.#lost, dropped: this.#dropped };
  }

  /** Now and then. */
  async sweep(isKernels: (hash: string) => boolean): Promise<void> {
    this.#see();
    if (this.#now() - this.#readAt < this.#tookMs * REST_FACTOR) return;
    await this.refresh();
    this.#drop(isKernels, UNREAD_MS);
    if (this.#isChanged && this.#now() - this.#savedAt >= SAVE_EVERY_MS) await this.#saveWhole();
  }

  async close(): Promise<void> {
    await this.refresh();
    this.#stopping.abort(new Error('telemetry was closed'));
    await this.#saveWhole();
  }

  /** Not amid a reading, of which the keys' part is told with the last of it. */
  async #saveWhole(): Promise<void> {
    while (this.#reading) await this.#reading;
    await this.#save();
  }

  #note(isRead: boolean, problem?: string): void {
    this.#isRead = isRead;
    this.#readAt = this.#now();
    if (problem !== undefined && problem !== this.#problem) this.#options.logger.warn({ reason: problem }, `Envoy's part of the ${this.#counted.what} metrics could not be read`);
    this.#problem = problem;
  }

  async #read(): Promise<boolean> {
    const { view } = this.#options;
    const { envoy } = view;
    if (envoy === undefined || !this.#directory.synced) return false;
    const reader = this.#counted.reader();
    await view.read(this.#counted.path, (text) => reader.read(text), { maxBytes: MAX_ANSWER_BYTES, signal: this.#stopping.signal });
    const totals = reader.end();
    // Else it may be the one after it that answered.
    if (view.envoy !== envoy) return false;
    const isNew = envoy !== this.#envoy;
    await this.#take(totals, isNew);
    this.#envoy = envoy;
    if (isNew) await this.#save();
    return true;
  }

  async #take(all: ReadonlyMap<string, T>, isNew: boolean): Promise<void> {
    this.#see(all.keys());
    const makes = new KeyLabels(this.#options.view, this.#directory, this.#pods, this.#counted);
    const next = new Map<string, Known<T>>();
    let held = 0;
    let turn = 0;
    for (const [key, totals] of all) {
      if (++turn % KEYS_A_TURN === 0) await new Promise(setImmediate);
      const before = this.#keys.get(key);
      const { base, growth, last } = this.#counted.grown(totals, isNew ? undefined : before?.last);
      if (growth === undefined) {
        next.set(key, { labels: before?.labels, last });
        continue;
      }
      const labels = makes.of(key, before?.labels);
      const labelled = typeof labels === 'string' ? undefined : labels;
      if (labelled) for (const each of labelled) this.#add(each, growth, before?.labels === undefined);
      else if (labels === 'gone') this.#lost += this.#counted.count(growth);
      else {
        held++;
        if (base !== undefined) next.set(key, { labels: before?.labels, last: base });
        continue;
      }
      next.set(key, { labels: labelled, last });
      this.#isChanged = true;
    }
    this.#keys = next;
    this.#held = held;
  }

  /** @param isNew whether nothing was added under these labels for the same key before */
  #add({ reporter, labels: wanted }: Labelled, totals: T, isNew: boolean): void {
    const hasRoom = this.#sums.size < MAX_SUMS || this.#sums.has(`${reporter} ${hashOf(wanted)}`);
    if (!hasRoom && isNew) this.#noteFull(wanted);
    const labels = hasRoom ? wanted : { reporter, ...OVERFLOW };
    const hash = hashOf(labels);
    const before = this.#sums.get(`${reporter} ${hash}`);
    this.#sums.set(`${reporter} ${hash}`, { reporter, hash, labels, totals: before ? this.#counted.add(before.totals, totals) : totals, idleSince: this.#now() });
  }

  #noteFull(labels: FlowLabels): void {
    this.#dropped++;
    if (this.#now() - this.#fullAt < FULL_EVERY_MS) return;
    this.#fullAt = this.#now();
    this.#options.logger.warn({ series: MAX_SUMS, dropped: this.#dropped, source: labels['source_workload'], destination: labels['destination_workload'] }, `there is no room for more series of ${this.#counted.what}s: others are added up in the one with otel_metric_overflow="true"`);
  }

  /** What pods stand for, while that can be told. @param keys whose endpoints are to be known as well */
  #see(keys: Iterable<string> = []): void {
    const { view } = this.#options;
    if (view.envoy === undefined || !this.#directory.synced) return;
    const pods = view.pods();
    this.#directory.prepare(pods.flatMap(({ addresses }) => addresses), endpointsOf(keys));
    const now = this.#now();
    for (const { uid, netnsPath, addresses } of pods) this.#pods.set(uid, { netnsPath, workload: this.#directory.workload(addresses) ?? this.#pods.get(uid)?.workload, at: now, isHere: true });
    const here = new Set(pods.map(({ uid }) => uid));
    for (const [uid, pod] of this.#pods) {
      pod.isHere = here.has(uid);
      if (now - pod.at > GONE_MS) this.#pods.delete(uid);
    }
  }

  /** Series of whose workload there is no pod here any more; with less than the whole picture none. */
  #drop(isKernels: (hash: string) => boolean, idleMs: number): void {
    const { view } = this.#options;
    if (view.envoy === undefined || !this.#directory.synced || this.#held > 0 || this.#sums.size === 0) return;
    this.#see();
    const workloads = view.pods().map(({ uid }) => this.#pods.get(uid)?.workload);
    if (workloads.includes(undefined)) return;
    const here = new Set(workloads.map((workload) => `${workload!.namespace}/${workload!.workload_name}`));
    // Of both reporters or of none: the kernel's part, which is of both, goes with them.
    const stays = new Set<string>();
    for (const { reporter, hash, labels, idleSince } of this.#sums.values()) {
      const isHere = here.has(`${labels[`${reporter}_workload_namespace`]}/${labels[`${reporter}_workload`]}`);
      if (labels['otel_metric_overflow'] !== undefined || isHere || isKernels(hash) || this.#now() - idleSince < idleMs) stays.add(hash);
    }
    for (const [name, { hash }] of this.#sums) {
      if (stays.has(hash)) continue;
      this.#sums.delete(name);
      this.#isChanged = true;
    }
  }

  #save(): Promise<void> {
    this.#savedAt = this.#now();
    this.#isChanged = false;
    const saved = { envoy: this.#envoy, lost: this.#lost, keys: [...this.#keys].map(([key, { labels, last }]) => ({ key, labels, last })), sums: [...this.#sums.values()] };
    this.#saving = this.#saving.then(() => this.#file.save(saved)).catch((error: unknown) => {
      this.#isChanged = true;
      this.#options.logger.warn({ reason: errorMessage(error) }, `Envoy's part of the ${this.#counted.what} metrics could not be saved`);
    });
    return this.#saving;
  }
}

/** What keys stand for, at one time. */
class KeyLabels<T> {
  readonly #counted: Counted<T>;
  readonly #view: RequestView;
  readonly #directory: FlowDirectory;
  readonly #byUid: ReadonlyMap<string, SeenPod>;
  readonly #byPath: ReadonlyMap<string, SeenPod>;

  constructor(view: RequestView, directory: FlowDirectory, pods: ReadonlyMap<string, SeenPod>, counted: Counted<T>) {
    this.#counted = counted;
    this.#view = view;
    this.#directory = directory;
    this.#byUid = pods;
    this.#byPath = new Map([...pods.values()].map((pod) => [pod.netnsPath, pod]));
  }

  /**
   * `gone`: nobody knows one of its pods any more; `unnamed`: the control plane has not named its workload yet.
   * @param before as they last were, which counts where a pod has gone
   */
  of(key: string, before: readonly Labelled[] | undefined): readonly Labelled[] | 'gone' | 'unnamed' {
    const [side, path = '', cluster = '', third = '', fourth = '', ...rest] = key.split(KEY_SEPARATOR);
    const own = side === 's' ? this.#byPath.get(path) : this.#byUid.get(third);
    const caller = side === 's' || path === '' ? undefined : this.#byPath.get(path);
    const isGone = !own?.isHere || (side !== 's' && path !== '' && !caller?.isHere);
    if (isGone && before) return before;
    if (!own || (side !== 's' && path !== '' && !caller)) return 'gone';
    const { workload } = own;
    if (!workload) return 'unnamed';
    const labelled = (reporter: FlowSideName, ends: Omit<KeyEnds, 'side'>): Labelled => ({ reporter, labels: this.#counted.labels(this.#directory, { side: reporter, ...ends }, rest) });
    if (side === 's') {
      const known = this.#directory.named(third);
      const more: Record<string, string> = known || third === '' ? {} : { destination_principal: UNKNOWN };
      const ends = { source: workload, destination: known ?? asNamed(third), service: this.#view.serviceOf(cluster), security: undefined, more };
      return (fourth === 'node' ? ['source', 'destination'] as const : ['source'] as const).map((reporter) => labelled(reporter, ends));
    }
    const source = caller?.workload;
    if (caller && !source) return 'unnamed';
    // Of a tunnel it is the port that was asked for.
    const asked = side === 't' ? { service: undefined, ...(cluster === '' ? {} : { port: Number(cluster) }) } : { service: this.#view.serviceOf(cluster, third) };
    // Within the node nothing is encrypted, and so nobody is told that it is.
    const security = caller ? undefined : fourth === '' ? 'none' : 'mutual_tls';
    return [labelled('destination', { source, destination: workload, ...asked, security, more: caller || fourth === '' ? {} : { source_principal: fourth } })];
  }
}

/** A workload that the control plane names at endpoints alone. */
function asNamed(name: string): Workload | undefined {
  const [workload_name = '', namespace = '', canonical_name = '', canonical_revision = '', cluster_id = ''] = name.split(';');
  return name === '' ? undefined : Workload.fromPartial({ workload_name, namespace, canonical_name, canonical_revision: canonical_revision || 'latest', cluster_id });
}

function endpointsOf(keys: Iterable<string>): Set<string> {
  const names = new Set<string>();
  for (const key of keys) {
    const [side, , , name = ''] = key.split(KEY_SEPARATOR);
    if (side === 's' && name !== '') names.add(name);
  }
  return names;
}
