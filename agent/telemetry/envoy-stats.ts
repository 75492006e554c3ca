/** Reads what Envoy counts by key (proxy/request-log.ts) out of its answer to `/stats?format=json&histogram_buckets=detailed`, piece by piece as it comes. */
import { UnderpassError } from '../../common/errors.js';
import type { HttpTotals } from '../dataplane/kernel-http-totals.js';
import { REQUEST_QUANTITIES, type RequestQuantity } from '../../common/telemetry/stats-logger.js';
import { REQUEST_STATS } from '../proxy/request-log.js';
import { HTTP_BOUNDS } from './http-bounds.js';

/** All histograms that are asked for, each with the values that it has seen, in bins. */
export const REQUEST_STATS_PATH = `/stats?format=json&type=Histograms&histogram_buckets=detailed&filter=${encodeURIComponent(`^${REQUEST_STATS}\\.`)}`;

interface Bin {
  lower_bound: number;
  width: number;
  count: number;
}

const START = '{"name":"';
const REST = ',"intervals":';
const END = ']}}]}';
const NAME = new RegExp(`^${REQUEST_STATS}\\.(${REQUEST_QUANTITIES.join('|')})\\.k\\.(.*)$`, 's');
/** Of one histogram: a name, some hundred bins. */
const MAX_RECORD_CHARS = 65_536;

/** One answer. Quotes within names are escaped, so what begins or ends a histogram stands nowhere else. */
export class RequestStatsReader {
  readonly #totals = new Map<string, HttpTotals>();
  #text = '';
  #begun = false;

  /** @throws UnderpassError `UNDERPASS_ENVOY_STATS` where this is not such an answer */
  read(text: string): void {
    this.#text += text;
    if (!this.#begun) {
      const start = this.#text.indexOf(START);
      if (start < 0) return;
      this.#text = this.#text.slice(start);
      this.#begun = true;
    }
    let from = 0;
    for (;;) {
      const next = this.#text.indexOf(START, from + START.length);
      if (next < 0) break;
      this.#histogram(this.#text.slice(from, next));
      from = next;
    }
    this.#text = this.#text.slice(from);
    if (this.#text.length > MAX_RECORD_CHARS) throw new UnderpassError('UNDERPASS_ENVOY_STATS', `reading Envoy's statistics: a histogram of more than ${MAX_RECORD_CHARS} characters`);
  }

  /**
   * By key.
   * @throws UnderpassError `UNDERPASS_ENVOY_STATS` when the answer broke off
   */
  end(): ReadonlyMap<string, HttpTotals> {
    if (!(this.#begun ? this.#text.trimEnd().endsWith(END) : isWhole(this.#text))) throw new UnderpassError('UNDERPASS_ENVOY_STATS', "reading Envoy's statistics: the answer broke off");
    if (this.#begun) this.#histogram(this.#text);
    return this.#totals;
  }

  #histogram(text: string): void {
    const end = text.indexOf(REST);
    let parsed: { name: string; totals: Bin[] };
    try {
      parsed = JSON.parse(`${text.slice(0, end)}}`) as typeof parsed;
    } catch (cause) {
      throw new UnderpassError('UNDERPASS_ENVOY_STATS', `reading Envoy's statistics: ${text.slice(0, 200)}`, { cause });
    }
    const [, quantity, key] = NAME.exec(parsed.name) ?? [];
    if (quantity === undefined || key === undefined) return;
    let totals = this.#totals.get(key);
    if (!totals) this.#totals.set(key, (totals = noRequests()));
    count(totals, quantity as RequestQuantity, parsed.totals);
  }
}

/** An answer without any histogram. */
function isWhole(text: string): boolean {
  try {
    return Array.isArray((JSON.parse(text) as { stats?: unknown }).stats);
  } catch {
    return false;
  }
}

export function noRequests(): HttpTotals {
  const buckets = (): bigint[] => Array.from({ length: HTTP_BOUNDS.length + 1 }, () => 0n);
  return { requests: 0n, requestBytes: 0n, answerBytes: 0n, durationUs: 0n, duration: buckets(), request: buckets(), answer: buckets() };
}

/** Values are whole numbers: a bin of one unit or less has one value, of wider ones the middle is told. */
function count(totals: HttpTotals, quantity: RequestQuantity, bins: readonly Bin[]): void {
  let sum = 0;
  let all = 0n;
  for (const { lower_bound: lower, width, count: some } of bins) {
    const value = width <= 1 ? Math.round(lower) : lower + (width - 1) / 2;
    sum += value * some;
    all += BigInt(some);
    const index = HTTP_BOUNDS.findIndex((bound) => value <= bound);
    totals[quantity][index < 0 ? HTTP_BOUNDS.length : index]! += BigInt(some);
  }
  if (quantity === 'duration') [totals.requests, totals.durationUs] = [all, BigInt(Math.round(sum * 1_000))];
  else totals[quantity === 'request' ? 'requestBytes' : 'answerBytes'] = BigInt(Math.round(sum));
}
