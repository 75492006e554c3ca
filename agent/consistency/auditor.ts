/**
 * Compares what is in force with what is wanted, round after round, at a bounded share of one CPU, and repairs what is safe. What drifts
 * again and again is repaired ever more seldom and reported as such: two who correct each other would be worse than either.
 */
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { sleep } from '../../common/retry.js';
import type { Check, Drift, DriftKind, DriftState } from './drift.js';

export interface AuditorOptions {
  checks: readonly Check[];
  /** The configuration objects that it comes from, as `Kind/name.namespace`. */
  objectsOf?: (drift: Drift) => readonly string[];
  logger: Logger;
  /** From the begin of one round to the next, in milliseconds; a round that takes longer is followed by the next at once. Default 5,000. */
  roundMs?: number;
  /** Of one CPU, that of whoever is asked too, between 0 and 1; more, up to 0.03, where that has a round done within eight seconds. Default 0.01. */
  share?: number;
  now?: () => number;
  /** CPU time so far, in milliseconds, of all whose share it is. Default: this process's. */
  cpuMs?: () => number;
}

/** Of this process. */
export function ownCpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1_000;
}

export interface DriftRecord {
  kind: DriftKind;
  state: DriftState;
  name: string;
  objects: readonly string[];
  detail?: string;
  /** When it was first seen, and how often since then it had drifted anew. */
  since: string;
  times: number;
  /** `repaired`: a round since then found it as it should be. `withheld`: it drifts again and again, and is tried again later. */
  repair: 'done' | 'repaired' | 'failed' | 'withheld' | 'unsafe';
  reason?: string;
}

export interface ConsistencyStatus {
  rounds: number;
  /** Of the last whole round: how long it took and how long the comparing itself, in milliseconds. */
  tookMs?: number;
  busyMs?: number;
  endedAt?: string;
  /** What is not as it should be. */
  drifting: DriftRecord[];
  /** Of others, beside what is wanted: told, and no drift. */
  foreign: DriftRecord[];
  /** What was, newest first. */
  recent: DriftRecord[];
  /** Checks that could not be made, and why. */
  problems: { check: string; reason: string }[];
  /** By kind and state. */
  drifts: Record<string, number>;
  /** By kind and what came of it. */
  repairs: Record<string, number>;
}

interface Known {
  record: DriftRecord;
  seenInRound: number;
  /** The last time that it was found as it should be, or was repaired. */
  lastMs: number;
  nextRepairMs: number;
}

const ROUND_MS = 5_000;
const SHARE = 0.01;
/** A small mesh is to be compared in time, on a busy machine too. */
const WITHIN_MS = 8_000;
const MOST_SHARE = 0.03;
/** What was never read is to be known soon: for 5,000 services, ten seconds. */
const URGENT_SHARE = 0.3;
/** What has been as it should be for so long starts anew. */
const CALM_MS = 300_000;
const FIRST_WAIT_MS = 10_000;
const LONGEST_PAUSE_MS = 600_000;
const MAX_RECENT = 50;
/** Of one check in one round: the rest is found in the next. */
const MAX_DRIFTS = 500;

export class Auditor implements Closable {
  readonly #options: AuditorOptions;
  readonly #abort = new AbortController();
  readonly #known = new Map<string, Known>();
  readonly #problems = new Map<string, string>();
  readonly #drifts: Record<string, number> = {};
  readonly #repairs: Record<string, number> = {};
  #recent: DriftRecord[] = [];
  #rounds = 0;
  #last: { tookMs: number; busyMs: number; endedAt: string } | undefined;
  #running: Promise<void> | undefined;

  constructor(options: AuditorOptions) {
    this.#options = options;
  }

  start(): void {
    this.#running ??= this.#run();
  }

  async close(): Promise<void> {
    this.#abort.abort();
    await this.#running;
  }

  get status(): ConsistencyStatus {
    const current = [...this.#known.values()].flatMap(({ record }) => (record.repair === 'repaired' ? [] : { ...record }));
    return {
      rounds: this.#rounds,
      ...this.#last,
      drifting: current.filter(({ state }) => state !== 'foreign'),
      foreign: current.filter(({ state }) => state === 'foreign'),
      recent: [...this.#recent],
      problems: [...this.#problems].map(([check, reason]) => ({ check, reason })),
      drifts: { ...this.#drifts },
      repairs: { ...this.#repairs },
    };
  }

  /** One round of all checks. @param isPaced with pauses, so that it takes no more than its share of a CPU */
  async round(isPaced = false): Promise<void> {
    const startedMs = performance.now();
    let busyMs = 0;
    const share = this.#share();
    const round = this.#rounds + 1;
    const failed = new Set<string>();
    let isWhole = true;
    const { cpuMs = ownCpuMs } = this.#options;
    for (const check of this.#options.checks) {
      const { name } = check;
      let left = MAX_DRIFTS;
      let iterator: ReturnType<typeof iterate> | undefined;
      try {
        iterator = iterate(check.parts());
        for (;;) {
          const [partMs, partCpuMs] = [performance.now(), cpuMs()];
          const { done, value } = await iterator.next();
          if (done || this.#abort.signal.aborted) break;
          for (const drift of value.slice(0, left)) await this.#found(drift, round);
          left -= value.length;
          // On a busy machine most of the time is others', and a round would take the longer the busier it is.
          const tookMs = Math.max(0, Math.min(performance.now() - partMs, cpuMs() - partCpuMs));
          busyMs += tookMs;
          if (isPaced) await sleep(Math.min(LONGEST_PAUSE_MS, tookMs / share), this.#abort.signal);
          if (left > 0) continue;
          // What comes behind it was not looked at, and may be as it was.
          isWhole = false;
          break;
        }
        this.#problems.delete(name);
      } catch (error) {
        if (this.#abort.signal.aborted) return;
        failed.add(name);
        const reason = errorMessage(error);
        if (this.#problems.get(name) !== reason) this.#options.logger.warn({ check: name, reason }, 'what is in force could not be compared with what is wanted');
        this.#problems.set(name, reason);
      } finally {
        await iterator?.return?.();
      }
    }
    if (this.#abort.signal.aborted) return;
    this.#rounds = round;
    if (failed.size === 0 && isWhole) this.#close(round);
    this.#last = { tookMs: Math.round(performance.now() - startedMs), busyMs: Math.round(busyMs * 10) / 10, endedAt: new Date().toISOString() };
  }

  #share(): number {
    const { share = SHARE, checks } = this.#options;
    if (checks.some((check) => check.isUrgent?.() === true)) return URGENT_SHARE;
    const needed = this.#last ? this.#last.busyMs / WITHIN_MS : MOST_SHARE;
    return needed <= MOST_SHARE ? Math.max(share, needed) : share;
  }

  async #run(): Promise<void> {
    const { signal } = this.#abort;
    while (!signal.aborted) {
      const startedMs = performance.now();
      try {
        await this.round(true);
        await sleep(Math.max(0, (this.#options.roundMs ?? ROUND_MS) - (performance.now() - startedMs)), signal);
      } catch (error) {
        if (!signal.aborted) this.#options.logger.error({ reason: errorMessage(error) }, 'comparing what is in force with what is wanted failed; it goes on with the next round');
      }
    }
  }

  async #found(drift: Drift, round: number): Promise<void> {
    const now = (this.#options.now ?? (() => performance.now()))();
    const key = `${drift.kind} ${drift.name}`;
    let known = this.#known.get(key);
    const isNew = !known;
    if (!known) {
      const record: DriftRecord = { kind: drift.kind, state: drift.state, name: drift.name, objects: this.#options.objectsOf?.(drift) ?? [], since: new Date().toISOString(), times: 0, repair: 'unsafe' };
      this.#known.set(key, (known = { record, seenInRound: 0, lastMs: now, nextRepairMs: -Infinity }));
    }
    const { record } = known;
    // Twice in one round: the second look came after the repair.
    const isAgain = isNew || known.record.repair === 'repaired' || known.record.repair === 'done';
    known.seenInRound = round;
    record.state = drift.state;
    if (drift.detail !== undefined) record.detail = drift.detail;
    if (isAgain) {
      record.times++;
      count(this.#drifts, `${drift.kind} ${drift.state}`);
    }
    const before = record.repair;
    delete record.reason;
    if (!drift.repair) {
      record.repair = 'unsafe';
      record.reason = drift.unsafe ?? 'it is not known how';
    } else if (now < known.nextRepairMs) {
      record.repair = 'withheld';
      record.reason = `it drifted ${record.times} times: it is repaired again in ${Math.ceil((known.nextRepairMs - now) / 1_000)} s`;
    } else {
      // The first return is repaired at once, later ones after ever longer pauses.
      if (record.times > 1) known.nextRepairMs = now + Math.min(CALM_MS, FIRST_WAIT_MS * 2 ** (record.times - 2));
      try {
        await drift.repair();
        record.repair = 'done';
      } catch (error) {
        record.repair = 'failed';
        record.reason = errorMessage(error);
      }
    }
    known.lastMs = now;
    if (isAgain || record.repair === 'done') count(this.#repairs, `${drift.kind} ${record.repair}`);
    if (isNew || (record.repair !== before && record.times > 1)) this.#log(record);
  }

  #log({ kind, state, name, objects, detail, times, repair, reason }: DriftRecord): void {
    const what = { kind, state, name, objects, ...(detail === undefined ? {} : { detail }), ...(times > 1 ? { times } : {}), repair, ...(reason === undefined ? {} : { reason }) };
    this.#options.logger.warn(what, state === 'foreign' ? 'something of others is beside what is wanted' : repair === 'done' ? 'what is in force was not what is wanted, and was repaired' : times > 2 ? 'what is in force drifts again and again from what is wanted' : 'what is in force is not what is wanted');
  }

  /** What this round did not find is as it should be. */
  #close(round: number): void {
    const now = (this.#options.now ?? (() => performance.now()))();
    for (const [key, known] of this.#known) {
      if (known.seenInRound === round) continue;
      if (known.record.state === 'foreign') this.#known.delete(key);
      else if (known.record.repair !== 'repaired') {
        known.record.repair = 'repaired';
        delete known.record.reason;
        known.lastMs = now;
        this.#recent = [{ ...known.record }, ...this.#recent.filter(({ kind, name }) => kind !== known.record.kind || name !== known.record.name)].slice(0, MAX_RECENT);
      } else if (now - known.lastMs > CALM_MS) this.#known.delete(key);
    }
  }
}

function count(counts: Record<string, number>, key: string): void {
  counts[key] = (counts[key] ?? 0) + 1;
}

function iterate(parts: Iterable<readonly Drift[]> | AsyncIterable<readonly Drift[]>): Pick<Iterator<readonly Drift[]>, 'next' | 'return'> | Pick<AsyncIterator<readonly Drift[]>, 'next' | 'return'> {
  return Symbol.asyncIterator in parts ? parts[Symbol.asyncIterator]() : parts[Symbol.iterator]();
}
