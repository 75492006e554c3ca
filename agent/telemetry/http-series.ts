/**
 * Istio's HTTP series for requests that the kernel moved past Envoy. Both reporters say the same of them, since the same kernel
 * counts for both. As with connections (flow-series.ts) the kernel counts by pods and series are by workloads, and what pods that
 * are gone had added is kept for as long as another pod's entry has the same labels; with none left it is told for two minutes more.
 */
import type { HttpEnding, HttpRequests, HttpTotalEntry, HttpTotals } from '../dataplane/kernel-http-totals.js';
import { addTotals } from '../dataplane/kernel-http-totals.js';
import type { FlowDirectory, FlowLabels, FlowPod } from './flow-labels.js';
import { hashOf, TOLD_MS } from './flow-series.js';
import { KeptLabels } from './kept-labels.js';
import { atOnce } from './turns.js';

export interface HttpSeries {
  /** Of the labels. */
  hash: string;
  /** But for the reporter. */
  labels: FlowLabels;
  totals: HttpTotals;
}

export interface HttpReport {
  series: HttpSeries[];
  /** Hashes of the series to which an entry of the kernel's may still add. */
  live: ReadonlySet<string>;
  /** Entries that are not told yet: the control plane has not named the workload of one of their pods. */
  held: number;
  /** Entries whose pods are gone that there was no room to keep. */
  dropped: number;
}

export interface HttpSeriesOptions {
  requests: HttpRequests;
  /** The pods that the kernel knows. */
  pods: () => readonly FlowPod[];
  directory: FlowDirectory;
  /** Labels, by their hash, of series that Envoy's part keeps: what was retired of them stays. */
  others?: (hash: string) => FlowLabels | undefined;
  /** Milliseconds. */
  now?: () => number;
}

/** Envoy's, as Istio has them in `response_flags`. */
const FLAGS: Record<HttpEnding, string> = { answered: '-', 'client-ended': 'DC', 'server-ended': 'UC', 'reset-here': 'LR' };
/** How long an entry of a pod that is gone waits for exchanges that end with it. */
const LAST_ENDS_MS = 5_000;
/** How long a series of pods that are gone waits for somebody to read it. */
const UNREAD_MS = 300_000;
const ENTRIES_A_TURN = 256;

export class HttpSeriesSource {
  readonly #options: HttpSeriesOptions;
  readonly #now: () => number;
  /** By entry, as they were last known: a pod that is gone has none any more. */
  readonly #labels = new Map<string, FlowLabels>();
  readonly #goneSince = new Map<string, number>();
  /** By hash: what was retired here, and when. What an earlier agent retired has a hash only. */
  readonly #retired = new Map<string, { labels: FlowLabels; at: number }>();
  readonly #kept = new KeptLabels<FlowLabels>();
  #dropped = 0;
  /** Of the last report. */
  #told: { live: ReadonlySet<string>; held: number } = { live: new Set(), held: 0 };

  constructor(options: HttpSeriesOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** For a scrape: everything up to now. */
  report(): HttpReport {
    return atOnce(this.reporting());
  }

  /** As `report`; between its steps others may have their turn, but not another report or sweep. */
  *reporting(): Generator<void, HttpReport> {
    const { live, held } = yield* this.#collect();
    this.#told = { live: new Set(live.keys()), held };
    for (const [hash, totals] of this.#options.requests.retired()) {
      const labels = live.get(hash)?.labels ?? this.#retired.get(hash)?.labels ?? this.#options.others?.(hash);
      if (labels) add(live, hash, labels, totals);
    }
    return { series: [...live.values()], live: this.#told.live, held, dropped: this.#dropped };
  }

  /** After a report: what was told for the last time is forgotten. */
  forgetTold(): void {
    const { live, held } = this.#told;
    const now = this.#now();
    this.#dropRetired(held, (hash) => !live.has(hash) && now - (this.#retired.get(hash)?.at ?? -Infinity) > TOLD_MS);
  }

  /**
   * Now and then, so that pods that live shortly leave their labels and those that are gone their place.
   * @returns series to which an entry may still add, by hash
   */
  sweep(): ReadonlyMap<string, HttpSeries> {
    return atOnce(this.sweeping());
  }

  /** As `sweep`, in steps as `reporting`. */
  *sweeping(): Generator<void, ReadonlyMap<string, HttpSeries>> {
    const { live, held } = yield* this.#collect();
    const now = this.#now();
    this.#dropRetired(held, (hash) => !live.has(hash) && now - (this.#retired.get(hash)?.at ?? -Infinity) > UNREAD_MS);
    return live;
  }

  /** Without the whole picture nothing is dropped: what is held back may turn out to have the same labels. */
  #dropRetired(held: number, isOver: (hash: string) => boolean): void {
    const { requests, directory } = this.#options;
    if (held > 0 || !directory.synced) return;
    for (const hash of requests.retired().keys()) {
      if (!isOver(hash) || this.#options.others?.(hash)) continue;
      requests.dropRetired(hash);
      this.#retired.delete(hash);
    }
  }

  *#collect(): Generator<void, { live: Map<string, HttpSeries>; held: number }> {
    const { requests, directory } = this.#options;
    const live = new Map<string, HttpSeries>();
    const pods = new Map(this.#options.pods().map((pod) => [pod.netnsCookie, pod]));
    const entries = requests.entries();
    const synced = directory.synced;
    if (synced && entries.length > 0) directory.prepare([...pods.values()].flatMap(({ addresses }) => addresses));
    yield;
    this.#kept.begin(directory.revision, pods);
    let held = 0;
    let turn = 0;
    for (const entry of entries) {
      if (++turn % ENTRIES_A_TURN === 0) yield;
      const [client, server] = [pods.get(entry.client), pods.get(entry.server)];
      const current = synced && client && server ? this.#kept.of(entry.id, () => this.#labelsOf(entry, client, server)) : undefined;
      if (current) this.#labels.set(entry.id, current);
      const labels = this.#labels.get(entry.id);
      const isGone = !client || !server;
      if (isGone && this.#retire(entry, labels)) continue;
      if (labels) add(live, hashOf(labels), labels, entry.totals);
      else if (!isGone) held++;
    }
    const ids = new Set(entries.map(({ id }) => id));
    for (const map of [this.#labels, this.#goneSince, this.#kept.byId]) for (const id of map.keys()) if (!ids.has(id)) map.delete(id);
    return { live, held };
  }

  /** Undefined: a workload is not known yet. */
  #labelsOf({ service, status, ending }: HttpTotalEntry, client: FlowPod, server: FlowPod): FlowLabels | undefined {
    const { directory } = this.#options;
    const [source, destination] = [client, server].map(({ addresses }) => directory.workload(addresses));
    return source && destination && directory.requestLabels({ source, destination, service }, { status, flags: FLAGS[ending] });
  }

  /** False: it waits. */
  #retire({ id }: HttpTotalEntry, labels: FlowLabels | undefined): boolean {
    const { requests } = this.#options;
    const now = this.#now();
    const since = this.#goneSince.get(id) ?? now;
    this.#goneSince.set(id, since);
    if (now - since < LAST_ENDS_MS) return false;
    const last = requests.take(id);
    this.#labels.delete(id);
    this.#goneSince.delete(id);
    if (!last || !labels) return true;
    const hash = hashOf(labels);
    if (requests.retire(hash, last.totals)) this.#retired.set(hash, { labels, at: now });
    else this.#dropped++;
    return true;
  }
}

function add(to: Map<string, HttpSeries>, hash: string, labels: FlowLabels, totals: HttpTotals): void {
  const before = to.get(hash);
  to.set(hash, { hash, labels, totals: before ? addTotals(before.totals, totals) : totals });
}
