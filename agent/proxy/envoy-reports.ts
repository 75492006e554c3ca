/** What the shared Envoy says of how its reports fare: spans on their way to a collector, lines of access logs. */
import type { EnvoyAdmin } from './envoy-admin.js';
import { TRACING_STATS } from './fold-tracing.js';

/** Since Envoy began. */
export interface ReportCounts {
  /** By tracer: `zipkin` or `opentelemetry`. */
  spans: ReadonlyMap<string, number>;
  /** Those that found no room before they were sent, by tracer. */
  spansDropped: ReadonlyMap<string, number>;
  /** Batches of spans: `taken` by the collector; `failed`: refused, or no answer; `no_room`: too many were on their way. */
  batches: Readonly<Record<'taken' | 'failed' | 'no_room', number>>;
  /** Of access logs: over the bound, and those that found no room on their way to a service. */
  linesDropped: Readonly<Record<'over_rate' | 'no_room', number>>;
}

/** Envoy looks through all its statistics for each question, and merges what its threads have counted every five seconds. */
const FRESH_MS = 5_000;
const FILTER = `^(tracing\\.(zipkin|opentelemetry)\\.spans_|cluster\\.${TRACING_STATS}\\.upstream_rq_([2345]xx|pending_overflow|active_overflow)$|access_log\\.process_ratelimit\\.denied$|access_logs\\..*logs_dropped$)`;

export class EnvoyReports {
  readonly #admin: () => EnvoyAdmin;
  #read: { counts: ReportCounts; at: number } | undefined;
  #asking: Promise<void> | undefined;

  constructor(admin: () => EnvoyAdmin) {
    this.#admin = admin;
  }

  /** As it was last read; undefined: Envoy never said. */
  get counts(): ReportCounts | undefined {
    return this.#read?.counts;
  }

  /** Reads anew what is older than Envoy's own numbers are. */
  async refresh(): Promise<void> {
    if (this.#read && performance.now() - this.#read.at < FRESH_MS) return;
    await (this.#asking ??= this.#ask().finally(() => (this.#asking = undefined)));
  }

  async #ask(): Promise<void> {
    try {
      this.#read = { counts: countsOf(await this.#admin().stats(FILTER)), at: performance.now() };
    } catch {
      // There is no Envoy now, or it has no time: what it said before stands.
    }
  }
}

export function countsOf(stats: ReadonlyMap<string, number>): ReportCounts {
  const of = (name: string): number => stats.get(name) ?? 0;
  const [spans, spansDropped] = [new Map<string, number>(), new Map<string, number>()];
  let dropped = 0;
  for (const [name, value] of stats) {
    const [, tracer, what] = /^tracing\.(\w+)\.spans_(sent|dropped)$/.exec(name) ?? [];
    if (tracer !== undefined) (what === 'sent' ? spans : spansDropped).set(tracer, value);
    if (/^access_logs\..*logs_dropped$/.test(name)) dropped += value;
  }
  const cluster = (name: string): number => of(`cluster.${TRACING_STATS}.upstream_rq_${name}`);
  // Of HTTP/1.1 those that wait for a connection, of HTTP/2 those that have one.
  const noRoom = cluster('pending_overflow') + cluster('active_overflow');
  return {
    spans, spansDropped, linesDropped: { over_rate: of('access_log.process_ratelimit.denied'), no_room: dropped },
    // To Envoy what found no room is an answer of 503, too.
    batches: { taken: cluster('2xx'), failed: Math.max(0, cluster('3xx') + cluster('4xx') + cluster('5xx') - noRoom), no_room: noRoom },
  };
}
