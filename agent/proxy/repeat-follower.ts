/**
 * The kernel's part in a snapshot, where pods have the HTTP fast path: what it repeats stops before Envoy hears of a change that
 * concerns it, and goes on when Envoy has acknowledged all of it. docs/http-fast-path.md, DESIGN section 6, rules 10 and 11.
 */
import type { RepeatedClass } from '../http/fast-path.js';
import type { HttpTable } from '../http/table.js';
import type { Teaching } from '../http/names.js';
import type { AdsServer } from './ads-server.js';
import type { FoldResult, RepeatedSources } from './fold.js';
import { CDS, LDS, RDS, type Snapshot } from './snapshot.js';

/** Whoever keeps the kernel's part. */
export interface Repeater {
  /** @returns what to wait for before Envoy hears of it; undefined: nothing */
  suspend(wanted: ReadonlyMap<string, RepeatedClass<HttpTable>>): Promise<void> | undefined;
  /** @param ready by class, the pods of which Envoy has all that they need */
  repeat(ready: ReadonlyMap<string, ReadonlySet<string>>): void;
}

/** Whoever makes the tables that are repeated. */
export interface TableKeeper extends Teaching {
  table(classKey: string): HttpTable | undefined;
  /** Its classes get other names when it is made again. */
  renew(classKey: string): void;
}

export interface RepeatFollowerOptions {
  ads: Pick<AdsServer, 'status' | 'rolledOut' | 'changedWithin'>;
  stopping: AbortSignal;
  repeater: Repeater;
  tables: TableKeeper;
}

const LOOK_AGAIN_MS = 250;

export class RepeatFollower {
  readonly #options: RepeatFollowerOptions;
  #following: AbortController | undefined;

  constructor(options: RepeatFollowerOptions) {
    this.#options = options;
  }

  get tables(): TableKeeper {
    return this.#options.tables;
  }

  /**
   * Envoy drains the connections of a listener or cluster that changes by its answers, and sees none of the fast ones: what was
   * learnt is not to count any more, even where no route has changed.
   * @returns whether to fold again
   */
  renews({ snapshot, repeated }: FoldResult, before: Snapshot | undefined): boolean {
    if (!before) return false;
    const changed = (type: string, name: string): boolean => {
      const [now, then] = [snapshot.get(type, name), before.get(type, name)];
      return now !== undefined && then !== undefined && now.version !== then.version;
    };
    const concerned = [...repeated].filter(([, { pods, listeners, clusters }]) => [...pods.values(), ...listeners].some((name) => changed(LDS, name)) || clusters.some((name) => changed(CDS, name)));
    for (const [key] of concerned) this.tables.renew(key);
    return concerned.length > 0;
  }

  /** @returns what to wait for before Envoy is given the snapshot */
  before({ repeated }: FoldResult): Promise<void> | undefined {
    this.#following?.abort();
    const { repeater, tables } = this.#options;
    return repeater.suspend(new Map([...repeated].flatMap(([key, { pods }]) => {
      const table = tables.table(key);
      return table ? [[key, { version: tables.versionOf(key), uids: new Set(pods.keys()), table, isEmpty: table.classes.length === 0 }] as const] : [];
    })));
  }

  /** @param rollout the number of the snapshot that Envoy was given */
  follow({ repeated }: FoldResult, rollout: number): void {
    this.#following = new AbortController();
    this.#follow(repeated, rollout, AbortSignal.any([this.#following.signal, this.#options.stopping])).catch(() => undefined);
  }

  async #follow(repeated: ReadonlyMap<string, RepeatedSources>, rollout: number, signal: AbortSignal): Promise<void> {
    const { ads, repeater } = this.#options;
    let told = -1;
    while (!signal.aborted) {
      if (ads.rolledOut >= rollout) {
        const ready = new Map([...repeated].map(([key, sources]) => [key, this.#ready(sources)] as const));
        const count = [...ready.values()].reduce((sum, { size }) => sum + size, 0);
        if (count !== told) repeater.repeat(new Map([...ready].filter(([, { size }]) => size > 0)));
        told = count;
        if ([...repeated].every(([key, { pods }]) => ready.get(key)!.size === pods.size)) return;
      }
      await ads.changedWithin(LOOK_AGAIN_MS, signal);
    }
  }

  /** Pods for which Envoy has the listeners and routes of this snapshot. */
  #ready({ pods, listeners, routes }: RepeatedSources): ReadonlySet<string> {
    const has = (type: string) => (name: string): boolean => this.#options.ads.status(type, name).acked;
    if (!listeners.every(has(LDS)) || !routes.every(has(RDS))) return new Set();
    return new Set([...pods].flatMap(([uid, listener]) => (has(LDS)(listener) ? uid : [])));
  }
}
