/**
 * Outlier detection in the kernel (bpf/http-outlier.h): who detects (a cluster as one config class has it) and who is watched (each
 * of its endpoints). What has been counted and ejected belongs to the cluster and the endpoint, not to a table's rows, so both
 * have places that outlive tables and agents: a row says whose it is.
 */
import { createHash } from 'node:crypto';
import { UnderpassError } from '../../common/errors.js';
import type { BpfMap, BpfObject } from '../../native/index.js';
import type { HttpCluster, OutlierDetection } from '../http/table.js';
import { StructCodec, u32 } from './kernel-codec.js';
import { SlotRanges } from './slot-ranges.js';

/** What no table has had for so long is forgotten; a table that is replaced, or of an agent that starts, is back sooner. */
const KEPT_MS = 60_000;
/** Exchanges that are under way are judged by their place. */
const GRACE_MS = 60_000;

export interface Ejected {
  address: string;
  port: number;
  /** Until it comes back, in milliseconds. */
  forMs: number;
  /** By which its ejection time has grown, as Envoy's has. */
  times: number;
}

/** Of one cluster as one config class has it. */
export interface OutlierStatus {
  class: string;
  cluster: string;
  ejected: Ejected[];
  /** Since the maps were made. */
  ejections: { consecutive5xx: number; consecutiveGatewayFailure: number };
  /** Ejections that would have been more than may be. */
  overflows: number;
}

/** An endpoint that is ejected, and from where. */
export interface Ejection extends Ejected {
  class: string;
  cluster: string;
}

export interface OutliersStatus {
  detectors: { used: number; size: number };
  endpoints: { used: number; size: number };
  clusters: OutlierStatus[];
}

interface Place<Of> {
  index: number;
  uses: number;
  /** Since nothing uses it. */
  idleMs: number;
  /** Undefined: a former agent's. */
  of?: Of;
}

/** Places of an array map that are their owner's as long as it is there, and for a while after; 0 is none. */
class Places<Of> {
  readonly byKey = new Map<bigint, Place<Of>>();
  readonly #slots: SlotRanges;
  #isStarted = false;

  constructor(readonly map: BpfMap, readonly codec: StructCodec, readonly now: () => number) {
    codec.check(map, 'value');
    this.#slots = new SlotRanges(map.maxEntries, GRACE_MS, now);
    this.#slots.claim(0, 1);
  }

  get status(): { used: number; size: number } {
    return { used: this.#slots.used, size: this.#slots.size };
  }

  at(index: number): Place<Of> | undefined {
    return [...this.byKey.values()].find((place) => place.index === index);
  }

  /**
   * @param row is written where there was none
   * @throws UnderpassError `UNDERPASS_HTTP_TABLES_FULL`
   */
  use(key: bigint, of: Of, row: Record<string, number | bigint>, onNew: (index: number) => void = () => undefined): number {
    this.#start();
    let place = this.byKey.get(key);
    if (!place) {
      const index = this.#slots.take(1);
      if (index === undefined) throw new UnderpassError('UNDERPASS_HTTP_TABLES_FULL', `writing a table of the HTTP fast path: no room in ${this.map.name}`);
      this.byKey.set(key, (place = { index, uses: 0, idleMs: 0 }));
      onNew(index);
      this.map.set(u32(index), this.codec.encode({ ...row, key }));
    }
    place.uses++;
    place.of = of;
    return place.index;
  }

  release(key: bigint): void {
    const place = this.byKey.get(key)!;
    place.uses--;
    place.idleMs = this.now();
  }

  forget(): void {
    for (const [key, { index, uses, idleMs }] of this.byKey) {
      if (uses > 0 || this.now() - idleMs < KEPT_MS) continue;
      this.byKey.delete(key);
      this.map.set(u32(index), this.codec.encode({}));
      this.#slots.give(index, 1);
    }
  }

  /** What a former agent left is its owner's still. */
  #start(): void {
    if (this.#isStarted) return;
    this.#isStarted = true;
    for (const [index, row] of this.map.entries()) {
      const key = this.codec.bigint(row, 'key');
      if (key === 0n || !this.#slots.claim(index.readUInt32LE(), 1)) continue;
      this.byKey.set(key, { index: index.readUInt32LE(), uses: 0, idleMs: this.now() });
    }
  }
}

/** What a table uses, to be given back with it. */
export interface WatchedBy {
  detectors: bigint[];
  monitors: bigint[];
}

export class HttpOutliers {
  readonly #detectors: Places<{ class: string; cluster: string }>;
  readonly #monitors: Places<{ detector: bigint; address: string; port: number }>;
  readonly #ejections: BpfMap;
  readonly #ejectionsCodec: StructCodec;

  constructor(object: BpfObject, now: () => number = () => performance.now()) {
    this.#detectors = new Places(object.map('http_detectors'), new StructCodec(object, 'http_detector'), now);
    this.#monitors = new Places(object.map('http_monitors'), new StructCodec(object, 'http_monitor'), now);
    this.#ejections = object.map('http_ejections');
    this.#ejectionsCodec = new StructCodec(object, 'http_ejections').check(this.#ejections, 'value');
  }

  /**
   * Places for a cluster and its endpoints, in their order. What was counted under the same settings goes on.
   * @param row the cluster's, in http_clusters
   * @throws UnderpassError `UNDERPASS_HTTP_TABLES_FULL`
   */
  watch(classKey: string, cluster: HttpCluster, detection: OutlierDetection, row: number, used: WatchedBy): { detector: number; monitors: number[] } {
    const { hosts, spare: _spare, panic: _panic, ...settings } = detection;
    const key = keyOf([classKey, cluster.name, settings]);
    const { codec, map } = this.#detectors;
    const values = {
      key, interval_ns: ns(settings.intervalMs), base_ns: ns(settings.baseEjectionMs), longest_ns: ns(settings.maxEjectionMs), consecutive_5xx: settings.consecutive5xx, consecutive_gateway: settings.consecutiveGatewayFailure,
      most_percent: settings.maxEjectionPercent, always_one: Number(settings.alwaysEjectOneHost), hosts, cluster: row,
    };
    const detector = this.#detectors.use(key, { class: classKey, cluster: cluster.name }, values, (index) => this.#ejections.set(u32(index), this.#ejectionsCodec.encode({})));
    used.detectors.push(key);
    map.set(u32(detector), codec.encode(values));
    const monitors = cluster.endpoints.map(({ address, port }) => {
      const own = keyOf([key.toString(), address, port]);
      const index = this.#monitors.use(own, { detector: key, address, port }, { detector });
      used.monitors.push(own);
      return index;
    });
    return { detector, monitors };
  }

  release({ detectors, monitors }: WatchedBy): void {
    for (const key of monitors) this.#monitors.release(key);
    for (const key of detectors) this.#detectors.release(key);
  }

  /** Gives away the places of what is gone. */
  forget(): void {
    this.#monitors.forget();
    this.#detectors.forget();
  }

  /** What is known of an endpoint by its place in `http_monitors`. */
  ejection(index: number): Ejection | undefined {
    const of = this.#monitors.at(index)?.of;
    const cluster = of && this.#detectors.byKey.get(of.detector)?.of;
    const ejected = of && this.#ejected(index, of);
    return cluster && ejected && { ...cluster, ...ejected };
  }

  get status(): OutliersStatus {
    const ejected = new Map<bigint, Ejected[]>();
    const clusters: OutlierStatus[] = [];
    for (const [key, { index, of }] of this.#detectors.byKey) {
      if (!of) continue;
      const [row, codec] = [this.#ejections.get(u32(index))!, this.#ejectionsCodec];
      const number = (field: string): number => Number(codec.bigint(row, field));
      const own: Ejected[] = [];
      if (codec.number(row, 'out') > 0) ejected.set(key, own);
      clusters.push({ ...of, ejected: own, ejections: { consecutive5xx: number('by_5xx'), consecutiveGatewayFailure: number('by_gateway') }, overflows: number('overflows') });
    }
    if (ejected.size > 0) {
      for (const { index, of } of this.#monitors.byKey.values()) {
        const own = of && ejected.get(of.detector);
        const found = own && this.#ejected(index, of);
        if (found) own.push(found);
      }
    }
    return { detectors: this.#detectors.status, endpoints: this.#monitors.status, clusters };
  }

  #ejected(index: number, { address, port }: { address: string; port: number }): Ejected | undefined {
    const { map, codec } = this.#monitors;
    const row = map.get(u32(index))!;
    // CLOCK_MONOTONIC, as bpf_ktime_get_ns() has it.
    const forMs = Number((codec.bigint(row, 'out_until_ns') - process.hrtime.bigint()) / 1_000_000n);
    return forMs > 0 ? { address, port, forMs, times: codec.number(row, 'times') } : undefined;
  }
}

function keyOf(parts: unknown): bigint {
  return createHash('sha256').update(JSON.stringify(parts)).digest().readBigUInt64LE() || 1n;
}

function ns(ms: number): bigint {
  return BigInt(Math.round(ms * 1_000_000));
}
