/** Reads what Envoy counts of connections by key (proxy/connection-log.ts) out of its answer to `/stats?format=json`. */
import { CONNECTION_QUANTITIES, CONNECTION_STATS, OPEN_QUANTITIES } from '../proxy/connection-log.js';
import { KEY_SEPARATOR } from '../proxy/request-log.js';
import { EnvoyCounterReader } from './envoy-counters.js';

export const CONNECTION_STATS_PATH = `/stats?format=json&filter=${encodeURIComponent(`^${CONNECTION_STATS}\\.`)}`;

export interface ConnectionTotals {
  opened: bigint;
  /** By the client, as at both sides: what the server received. */
  received: bigint;
  sent: bigint;
  /** Of those in `received` and `sent` none: what connections that are open have carried. */
  openReceived: bigint;
  openSent: bigint;
  /** By Envoy's response flags. */
  closed: ReadonlyMap<string, bigint>;
}

export const NO_CONNECTIONS: ConnectionTotals = { opened: 0n, received: 0n, sent: 0n, openReceived: 0n, openSent: 0n, closed: new Map() };

const NAME = new RegExp(`^${CONNECTION_STATS}\\.(?:(${CONNECTION_QUANTITIES.join('|')})\\.k\\.(.*)|(${OPEN_QUANTITIES.join('|')})\\.k\\.(.*)\\.id\\.[\\da-f-]+)$`, 's');
/**
 * One answer. What Envoy drops of a key, it drops by quantity; so each has a key of its own, with the quantity behind it, but
 * for the bytes, which are counted up together.
 */
export class ConnectionStatsReader {
  readonly #totals = new Map<string, ConnectionTotals>();
  readonly #reader = new EnvoyCounterReader((name, count) => this.#add(name, count));

  /** @throws UnderpassError as EnvoyCounterReader does */
  read(text: string): void {
    this.#reader.read(text);
  }

  /**
   * By key.
   * @throws UnderpassError as EnvoyCounterReader does
   */
  end(): ReadonlyMap<string, ConnectionTotals> {
    this.#reader.end();
    return this.#totals;
  }

  #add(name: string, count: bigint): void {
    const [, quantity, key = '', open, openKey = ''] = NAME.exec(name) ?? [];
    if (quantity === 'opened') this.#change([key, 'opened'], { opened: count });
    else if (quantity === 'closed' || quantity === 'failed') {
      const end = key.lastIndexOf(KEY_SEPARATOR);
      // Of what never was nobody else has said that it began.
      this.#change([key.slice(0, end), quantity, key.slice(end + 1)], { closed: new Map([[key.slice(end + 1), count]]), ...(quantity === 'failed' ? { opened: count } : {}) });
    } else if (quantity === 'received' || quantity === 'sent') this.#change([key, 'bytes'], { [quantity]: count });
    else if (open === 'received_open') this.#change([openKey, 'bytes'], { openReceived: count });
    else if (open === 'sent_open') this.#change([openKey, 'bytes'], { openSent: count });
  }

  #change(parts: readonly string[], more: Partial<ConnectionTotals>): void {
    const key = parts.join(KEY_SEPARATOR);
    const before = this.#totals.get(key) ?? NO_CONNECTIONS;
    const sum = (of: Exclude<keyof ConnectionTotals, 'closed'>): bigint => before[of] + (more[of] ?? 0n);
    this.#totals.set(key, { opened: sum('opened'), received: sum('received'), sent: sum('sent'), openReceived: sum('openReceived'), openSent: sum('openSent'), closed: more.closed ?? before.closed });
  }
}
