/**
 * Istio's TCP series for connections that no proxy sees. The kernel counts by pods, series are by workloads: what pods that
 * are gone had added is kept, in a kernel map as well, for as long as another pod's entry has the same labels, since a series
 * that falls looks to Prometheus like one that began anew. With none left it is told for two minutes more, and dropped.
 */
import { createHash } from 'node:crypto';
import type { FlowEntry, FlowKey, Flows, FlowSide, FlowSideName } from '../dataplane/kernel-flows.js';
import { addSides, openOf } from '../dataplane/kernel-flows.js';
import { FlowDirectory, OVERFLOW, type FlowLabels, type FlowPod, type KnownWorkloads } from './flow-labels.js';
import { KeptLabels } from './kept-labels.js';
import { atOnce } from './turns.js';

export interface FlowSeries {
  labels: FlowLabels;
  totals: FlowSide;
}

export interface FlowSeriesOptions {
  flows: Flows;
  /** The pods that the kernel knows. */
  pods: () => readonly FlowPod[];
  workloads: KnownWorkloads;
  trustDomain?: string;
  /** Labels of series that somebody else has a part of as well, by hash: what was retired stays with them. */
  others?: (hash: string) => FlowLabels | undefined;
  /** Milliseconds. */
  now?: () => number;
}

export interface FlowReport {
  series: FlowSeries[];
  /** Entries that are not told yet: the control plane has not named the workload of one of their pods. */
  held: number;
  /** Sides of entries whose pods are gone that there was no room to keep. */
  dropped: number;
  rttBoundsUs: readonly number[];
}

const SIDES: readonly FlowSideName[] = ['source', 'destination'];
const ENTRIES_A_TURN = 256;
/** How long an entry of a pod that is gone waits for the other end's connections to be closed. */
const LAST_CLOSES_MS = 30_000;
/** How long an entry of a client from elsewhere stays without a connection: their addresses change hands. */
const IDLE_MS = 300_000;
/** How long a series of pods that are gone waits for somebody to read it. */
const UNREAD_MS = 300_000;
/** How long it is told: the reader that had it may be one of several Prometheus, or `underpass top`. */
export const TOLD_MS = 120_000;

export class FlowSeriesSource {
  readonly #options: FlowSeriesOptions;
  readonly #directory: FlowDirectory;
  readonly #now: () => number;
  /** Labels of both sides by entry, as they were last known: a pod that is gone has none any more. */
  readonly #labels = new Map<string, Record<FlowSideName, FlowLabels>>();
  readonly #goneSince = new Map<string, number>();
  /** Of entries of clients from elsewhere: how many connections there had been, and since when that is so. */
  readonly #lastOpened = new Map<string, { opened: bigint; at: number }>();
  /** By hash: what was retired here, and when. What an earlier agent retired has a hash only. */
  readonly #retired = new Map<string, { labels: FlowLabels; at: number }>();
  /** Of the entries there are. */
  #hashes: ReadonlySet<string> = new Set();
  readonly #kept = new KeptLabels<Record<FlowSideName, FlowLabels>>();
  #dropped = 0;
  /** At the last report. */
  #held = 0;

  constructor(options: FlowSeriesOptions) {
    this.#options = options;
    this.#directory = new FlowDirectory(options.workloads, options.trustDomain);
    this.#now = options.now ?? (() => performance.now());
  }

  get directory(): FlowDirectory {
    return this.#directory;
  }

  /** For a scrape: everything up to now. */
  report(): FlowReport {
    return atOnce(this.reporting());
  }

  /** As `report`; between its steps others may have their turn, but not another report or sweep. */
  *reporting(): Generator<void, FlowReport> {
    const { flows } = this.#options;
    flows.settle();
    const { live, held } = yield* this.#collect();
    const retired = flows.retired();
    for (const [hash, totals] of retired) {
      const labels = live.get(hash)?.labels ?? this.#retired.get(hash)?.labels ?? this.#options.others?.(hash);
      if (labels) add(live, hash, labels, totals);
    }
    this.#held = held;
    return { series: [...live.values()], held, dropped: this.#dropped, rttBoundsUs: flows.rttBoundsUs };
  }

  /** After a report: what was told for the last time is forgotten. */
  forgetTold(): void {
    const now = this.#now();
    this.#dropRetired(this.#held, (hash) => !this.isLive(hash) && now - (this.#retired.get(hash)?.at ?? -Infinity) > TOLD_MS);
  }

  /** Now and then, so that pods that live shortly leave their labels and those that are gone their place. */
  sweep(): true {
    return atOnce(this.sweeping());
  }

  /** As `sweep`, in steps as `reporting`. */
  *sweeping(): Generator<void, true> {
    const { held } = yield* this.#collect();
    const now = this.#now();
    this.#dropRetired(held, (hash) => !this.isLive(hash) && now - (this.#retired.get(hash)?.at ?? -Infinity) > UNREAD_MS);
    return true;
  }

  /** Whether an entry may still add to it. */
  isLive(hash: string): boolean {
    return this.#hashes.has(hash);
  }

  /** Without the whole picture nothing is dropped: what is held back may turn out to have the same labels. */
  #dropRetired(held: number, isOver: (hash: string) => boolean): void {
    if (held > 0 || !this.#directory.synced) return;
    for (const hash of this.#options.flows.retired().keys()) {
      if (!isOver(hash) || this.#options.others?.(hash)) continue;
      this.#options.flows.dropRetired(hash);
      this.#retired.delete(hash);
    }
  }

  *#collect(): Generator<void, { live: Map<string, FlowSeries>; held: number }> {
    const live = new Map<string, FlowSeries>();
    const { flows } = this.#options;
    const pods = new Map(this.#options.pods().map((pod) => [pod.netnsCookie, pod]));
    const entries = flows.entries();
    const synced = this.#directory.synced;
    if (synced) this.#directory.prepare([...[...pods.values()].flatMap(({ addresses }) => addresses), ...entries.flatMap(({ key }) => [key.service?.address ?? [], key.peer ?? []].flat())]);
    yield;
    this.#kept.begin(this.#options.workloads.revision, pods);
    let held = 0;
    let turn = 0;
    for (const entry of entries) {
      if (++turn % ENTRIES_A_TURN === 0) yield;
      const isGone = [entry.key.client, entry.key.server].some((cookie) => cookie !== 0n && !pods.has(cookie));
      const last = this.#labels.get(entry.id);
      const current = synced && !isGone ? this.#kept.of(entry.id, () => this.#labelsOf(entry, pods)) : undefined;
      if (this.#isOver(entry, last, current)) {
        this.#keep(entry, last);
        continue;
      }
      // An address that changed hands is still who it was for as long as a connection of that time is open.
      if (current && !(last && entry.key.peer)) this.#labels.set(entry.id, current);
      const labels = this.#labels.get(entry.id);
      if (isGone && this.#retire(entry, labels)) continue;
      if (!labels) {
        if (!isGone) held++;
        continue;
      }
      for (const side of SIDES) if (entry[side].opened > 0n) add(live, hashOf(labels[side]), labels[side], entry[side]);
    }
    const ids = new Set(entries.map(({ id }) => id));
    for (const map of [this.#labels, this.#goneSince, this.#lastOpened, this.#kept.byId]) for (const id of map.keys()) if (!ids.has(id)) map.delete(id);
    this.#hashes = new Set(live.keys());
    return { live, held };
  }

  /** Undefined: a workload is not known yet. */
  #labelsOf({ key }: FlowEntry, pods: ReadonlyMap<bigint, FlowPod>): Record<FlowSideName, FlowLabels> | undefined {
    if (isEverybodys(key)) return { source: { reporter: 'source', ...OVERFLOW }, destination: { reporter: 'destination', ...OVERFLOW } };
    const workload = (cookie: bigint) => this.#directory.workload(pods.get(cookie)?.addresses ?? []);
    const source = key.peer ? this.#directory.workload([key.peer]) : workload(key.client);
    const destination = workload(key.server);
    if ((!source && key.client !== 0n) || (!destination && key.server !== 0n)) return undefined;
    const ends = { source, destination, service: key.service && this.#directory.service(key.service.address) };
    return { source: this.#directory.labels('source', ends, key), destination: this.#directory.labels('destination', ends, key) };
  }

  /** Whether an entry of a client from elsewhere has had no connection for long, or has none and its address is another's now. */
  #isOver({ id, key, destination }: FlowEntry, last: Record<FlowSideName, FlowLabels> | undefined, current: Record<FlowSideName, FlowLabels> | undefined): boolean {
    if (!key.peer) return false;
    const now = this.#now();
    if (this.#lastOpened.get(id)?.opened !== destination.opened) this.#lastOpened.set(id, { opened: destination.opened, at: now });
    if (openOf(destination) !== 0n || !last) return false;
    return now - this.#lastOpened.get(id)!.at > IDLE_MS || (current !== undefined && hashOf(current.destination) !== hashOf(last.destination));
  }

  /** False: the connections of the end that is left are not closed yet. */
  #retire(entry: FlowEntry, labels: Record<FlowSideName, FlowLabels> | undefined): boolean {
    const { flows } = this.#options;
    const now = this.#now();
    const since = this.#goneSince.get(entry.id) ?? now;
    this.#goneSince.set(entry.id, since);
    const isOpen = SIDES.some((side) => openOf(entry[side]) !== 0n);
    if (isOpen && now - since < LAST_CLOSES_MS) return false;
    this.#keep(entry, labels);
    return true;
  }

  /** Moves an entry to what is retired. */
  #keep({ id }: FlowEntry, labels: Record<FlowSideName, FlowLabels> | undefined): void {
    const { flows } = this.#options;
    const last = flows.take(id);
    for (const map of [this.#labels, this.#goneSince, this.#lastOpened]) map.delete(id);
    for (const side of SIDES) {
      if (!last || !labels || last[side].opened === 0n) continue;
      const hash = hashOf(labels[side]);
      if (!flows.retire(hash, last[side])) {
        this.#dropped++;
        continue;
      }
      this.#retired.set(hash, { labels: labels[side], at: this.#now() });
    }
  }
}

/** The kernel's one entry for all connections for which there was no room, neither of their own nor of their pods. */
function isEverybodys({ client, server, peer, service, endpointPort }: FlowKey): boolean {
  return client === 0n && server === 0n && peer === undefined && service === undefined && endpointPort === 0;
}

function add(to: Map<string, FlowSeries>, hash: string, labels: FlowLabels, totals: FlowSide): void {
  const before = to.get(hash);
  to.set(hash, { labels, totals: before ? addSides(before.totals, totals) : totals });
}

/** Of labels that stay. */
const hashes = new WeakMap<FlowLabels, string>();

/** 16 bytes in hex, equal in every agent. */
export function hashOf(labels: FlowLabels): string {
  const known = hashes.get(labels);
  if (known !== undefined) return known;
  const hash = made(labels);
  hashes.set(labels, hash);
  return hash;
}

function made(labels: FlowLabels): string {
  return createHash('sha256').update(JSON.stringify(Object.entries(labels).sort(([x], [y]) => (x < y ? -1 : 1)))).digest('hex').slice(0, 32);
}
