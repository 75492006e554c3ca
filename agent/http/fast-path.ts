/**
 * The HTTP fast path while it runs: the heartbeat without which nothing is fast, its switch, and the order of a change. The way
 * of a pod's requests changes in the kernel first, to Envoy's for all of them; what is under way there ends; Envoy hears of
 * it; and when Envoy has acknowledged it the kernel repeats again. docs/http-fast-path.md, DESIGN section 6, rules 5 and 10.
 */
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { sleep } from '../../common/retry.js';
import type { KernelHttpControl, HttpPod } from '../dataplane/kernel-http-control.js';
import type { KernelPod } from '../dataplane/kernel.js';

/** What pods of one config class may repeat. */
export interface RepeatedClass<Table> {
  /** Another one with anything that the way of a request depends on. */
  version: string;
  uids: ReadonlySet<string>;
  table: Table;
  /** There is nothing in it that the kernel could do. */
  isEmpty?: boolean;
}

export type RepeatedClasses<Table> = ReadonlyMap<string, RepeatedClass<Table>>;

/** Writes tables into the kernel's maps. */
export interface TableWriter<Table> {
  /**
   * @returns the number by which pods are pointed at it
   * @throws when it does not fit
   */
  write(classKey: string, table: Table): number;
  /** Frees what none of these classes' tables has. */
  keep(classKeys: ReadonlySet<string>): void;
}

export interface FastPathOptions<Table> {
  kernel: Pick<KernelHttpControl, 'beat' | 'lostEnds' | 'pods' | 'setPod' | 'removePod' | 'activity' | 'forgetActivity'>;
  /** As the kernel's hooks have them. */
  pods(): readonly Pick<KernelPod, 'uid' | 'netnsCookie' | 'mode' | 'capture' | 'acceleration'>[];
  tables: TableWriter<Table>;
  /** Whether a pod's requests are to have an `x-request-id`, as Envoy gives them one. */
  requestIds?(uid: string): boolean;
  /** Why nothing may be fast at all, whatever the switch says. */
  problem(): string | undefined;
  /** The kernel could not tell of some ends. */
  onLost?(): void;
  on: boolean;
  logger: Logger;
  beatMs?: number;
  drainMs?: number;
  lostMs?: number;
}

export interface FastPathStatus {
  on: boolean;
  /** Why it is off. */
  reason?: string;
  pods: { live: number; suspended: number };
  classes: number;
  /** Changes that did not wait for all that was under way. */
  cutDrains: number;
  lostEnds: number;
  /** Tables that did not fit. */
  problems: { class: string; reason: string }[];
}

/** The kernel's limit is a second, HTTP_HEARTBEAT_NS in bpf/http-structs.h. */
const BEAT_MS = 200;
/** A change waits so long for exchanges that are under way; they go on after it, to the server that they are at. */
const DRAIN_MS = 1_000;
/** A program that found its pod live may count an exchange a moment later. */
const DRAIN_POLL_MS = 10;
const LOST_MS = 5_000;

export class FastPath<Table> implements Closable {
  readonly #options: FastPathOptions<Table>;
  readonly #rows: Map<bigint, HttpPod>;
  readonly #draining = new Set<bigint>();
  #wanted: RepeatedClasses<Table> = new Map();
  /** Classes whose routes Envoy has acknowledged, and whose tables are in the kernel. */
  readonly #repeated = new Map<string, { version: string; table: number }>();
  /** Pods whose class is repeated, and that Envoy has as pods of it. */
  readonly #confirmed = new Map<string, string>();
  readonly #problems = new Map<string, { version: string; reason: string }>();
  readonly #closed = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  #on: boolean;
  #isHeld = false;
  #knownLost: number;
  #lostUntil = 0;
  #cutDrains = 0;
  #beatProblem: string | undefined;

  /** Pods that a former agent left live are suspended: what their tables say was of its Envoy's routes. */
  constructor(options: FastPathOptions<Table>) {
    this.#options = options;
    this.#on = options.on;
    this.#knownLost = options.kernel.lostEnds();
    this.#rows = options.kernel.pods();
    for (const [cookie, row] of this.#rows) if (row.state === 'live') this.#suspend(cookie, row);
    this.#beat();
    this.#timer = setInterval(() => this.#beat(), options.beatMs ?? BEAT_MS);
  }

  /** For all pods; by itself it is as it was given. */
  setOn(on: boolean): void {
    if (on !== this.#on) this.#options.logger.info({ on }, `the HTTP fast path is switched ${on ? 'on' : 'off'}`);
    this.#on = on;
    this.#beat();
  }

  /**
   * What is to be repeated from now on, the whole set. Pods whose way changes go through Envoy at once.
   * @returns what to wait for before Envoy hears of the change; undefined where nothing was fast that is not to go on so
   */
  suspend(wanted: RepeatedClasses<Table>): Promise<void> | undefined {
    this.#wanted = wanted;
    for (const [key, { version }] of this.#repeated) if (wanted.get(key)?.version !== version) this.#repeated.delete(key);
    for (const [key, { version }] of this.#problems) if (wanted.get(key)?.version !== version) this.#problems.delete(key);
    for (const [uid, key] of this.#confirmed) if (!this.#repeated.has(key) || !wanted.get(key)?.uids.has(uid)) this.#confirmed.delete(uid);
    this.#apply();
    return this.#draining.size === 0 ? undefined : this.#drain(new Set(this.#draining));
  }

  /** Envoy has acknowledged all that these pods need, by class. */
  repeat(ready: ReadonlyMap<string, ReadonlySet<string>>): void {
    const { tables, logger } = this.#options;
    for (const [key, uids] of ready) {
      const wanted = this.#wanted.get(key);
      if (!wanted || wanted.isEmpty || this.#problems.has(key)) continue;
      try {
        if (!this.#repeated.has(key)) this.#repeated.set(key, { version: wanted.version, table: tables.write(key, wanted.table) });
        for (const uid of uids) if (wanted.uids.has(uid)) this.#confirmed.set(uid, key);
      } catch (error) {
        const reason = errorMessage(error);
        this.#problems.set(key, { version: wanted.version, reason });
        logger.warn({ class: key, reason }, "what may be repeated does not fit the kernel's tables: all of it goes through Envoy");
      }
    }
    tables.keep(new Set(this.#repeated.keys()));
    this.#apply();
  }

  /** Pods came, went, or have another acceleration. */
  podsChanged(): void {
    this.#apply();
  }

  /** What of a pod's is repeated now; the reason why nothing is. */
  stateOf(uid: string): { classKey?: string; reason?: string } {
    const classKey = [...this.#wanted].find(([, { uids }]) => uids.has(uid))?.[0];
    const pod = this.#options.pods().find((each) => each.uid === uid);
    if (!pod || pod.acceleration !== 'l7') return { reason: 'the label underpass.io/acceleration of the pod, or of its namespace, is not l7' };
    if (classKey === undefined) return { reason: 'Envoy can not teach, or the control plane has not said what its routes are' };
    if (this.#wanted.get(classKey)!.isEmpty) return { classKey, reason: "all of its routes are Envoy's" };
    const row = this.#rows.get(pod.netnsCookie);
    const reason = this.#reason() ?? this.#problems.get(classKey)?.reason ?? (row?.state === 'live' ? undefined : 'Envoy has not acknowledged its newest routes yet');
    return { classKey, ...(reason === undefined ? {} : { reason }) };
  }

  get status(): FastPathStatus {
    const states = [...this.#rows.values()].map(({ state }) => state);
    const of = (wanted: HttpPod['state']): number => states.filter((state) => state === wanted).length;
    const reason = this.#reason();
    return {
      on: reason === undefined,
      ...(reason === undefined ? {} : { reason }),
      pods: { live: of('live'), suspended: of('suspended') },
      classes: this.#repeated.size,
      cutDrains: this.#cutDrains,
      lostEnds: this.#knownLost,
      problems: [...this.#problems].map(([key, problem]) => ({ class: key, reason: problem.reason })),
    };
  }

  /** Switches it off and waits for what is under way, as long as a change does: before Envoy ends. */
  async drain(): Promise<void> {
    this.#on = false;
    this.#beat();
    if (this.#rows.size > 0) await this.#drain(new Set(this.#rows.keys()));
  }

  /** As `drain`, until `unhold`: while an Envoy drains the connections that it has. */
  async hold(): Promise<void> {
    this.#isHeld = true;
    this.#beat();
    if (this.#rows.size > 0) await this.#drain(new Set(this.#rows.keys()));
  }

  unhold(): void {
    this.#isHeld = false;
    this.#beat();
  }

  /** Nothing new is fast from now on. */
  close(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#closed.abort();
    this.#on = false;
    this.#beat();
  }

  #reason(): string | undefined {
    if (!this.#on) return 'it is switched off';
    if (this.#isHeld) return 'an Envoy takes over from another';
    if (performance.now() < this.#lostUntil) return 'ends of connections were lost';
    return this.#options.problem();
  }

  #beat(): void {
    const { kernel, logger } = this.#options;
    try {
      const lost = kernel.lostEnds();
      const now = performance.now();
      if (lost !== this.#knownLost) {
        logger.error({ lost: lost - this.#knownLost, offMs: this.#options.lostMs ?? LOST_MS }, 'ends of connections were lost: clients that wait for answers that do not come are looked for, and nothing new is fast for a while');
        this.#lostUntil = now + (this.#options.lostMs ?? LOST_MS);
        this.#knownLost = lost;
        this.#options.onLost?.();
      }
      kernel.beat(this.#reason() === undefined, this.#knownLost);
      this.#beatProblem = undefined;
    } catch (error) {
      const problem = errorMessage(error);
      if (problem !== this.#beatProblem) logger.error({ reason: problem }, "the HTTP fast path's heartbeat can't be written: it goes off");
      this.#beatProblem = problem;
    }
  }

  /** Rows of all pods as they should be now. */
  #apply(): void {
    const { kernel } = this.#options;
    const present = new Set<bigint>();
    for (const { uid, netnsCookie, mode, capture, acceleration } of this.#options.pods()) {
      present.add(netnsCookie);
      const key = this.#confirmed.get(uid);
      const repeated = key !== undefined && mode === 'node' && capture && acceleration === 'l7' ? this.#repeated.get(key) : undefined;
      const row = this.#rows.get(netnsCookie);
      if (!repeated) {
        if (row?.state === 'live') this.#suspend(netnsCookie, row);
        continue;
      }
      const requestIds = this.#options.requestIds?.(uid) ?? false;
      if (row?.state === 'live' && row.table === repeated.table && (row.requestIds ?? false) === requestIds) continue;
      this.#write(netnsCookie, { table: repeated.table, state: 'live', ...(requestIds ? { requestIds } : {}) });
      this.#draining.delete(netnsCookie);
    }
    for (const cookie of this.#rows.keys()) {
      if (present.has(cookie)) continue;
      kernel.removePod(cookie);
      kernel.forgetActivity(cookie);
      this.#rows.delete(cookie);
      this.#draining.delete(cookie);
    }
  }

  #suspend(netnsCookie: bigint, { table }: HttpPod): void {
    this.#write(netnsCookie, { table, state: 'suspended' });
    this.#draining.add(netnsCookie);
  }

  #write(netnsCookie: bigint, row: HttpPod): void {
    this.#options.kernel.setPod(netnsCookie, row);
    this.#rows.set(netnsCookie, row);
  }

  async #drain(cookies: ReadonlySet<bigint>): Promise<void> {
    const { kernel, logger, drainMs = DRAIN_MS } = this.#options;
    const deadline = performance.now() + drainMs;
    let left = [...cookies];
    while (!this.#closed.signal.aborted) {
      await sleep(DRAIN_POLL_MS);
      left = left.filter((cookie) => this.#rows.has(cookie) && kernel.activity(cookie).underWay > 0n);
      if (left.length === 0) break;
      if (performance.now() < deadline) continue;
      this.#cutDrains++;
      logger.debug({ pods: left.length, drainMs }, 'exchanges that the kernel has under way are not waited for any longer');
      break;
    }
    for (const cookie of cookies) this.#draining.delete(cookie);
  }
}
