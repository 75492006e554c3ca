/** Reads Envoy's answer to `/stats?format=json`, of counters and gauges, piece by piece as it comes. */
import { UnderpassError } from '../../common/errors.js';

/** `{"name":"…","value":3}`; quotes within names are escaped. */
const RECORD = /\{"name":"(?:[^"\\]|\\.)*","value":\d+\}/gs;
const MAX_RECORD_CHARS = 65_536;
const END = ']}';

/** One answer. */
export class EnvoyCounterReader {
  readonly #onCounter: (name: string, value: bigint) => void;
  #text = '';
  #begun = false;

  constructor(onCounter: (name: string, value: bigint) => void) {
    this.#onCounter = onCounter;
  }

  /** @throws UnderpassError `UNDERPASS_ENVOY_STATS` where this is not such an answer */
  read(text: string): void {
    this.#text += text;
    let end = 0;
    for (const { 0: record, index } of this.#text.matchAll(RECORD)) {
      const { name, value } = JSON.parse(record) as { name: string; value: number };
      this.#onCounter(name, BigInt(value));
      end = index + record.length;
      this.#begun = true;
    }
    this.#text = this.#text.slice(end);
    if (this.#text.length > MAX_RECORD_CHARS) throw new UnderpassError('UNDERPASS_ENVOY_STATS', `reading Envoy's statistics: a counter of more than ${MAX_RECORD_CHARS} characters`);
  }

  /** @throws UnderpassError `UNDERPASS_ENVOY_STATS` when the answer broke off */
  end(): void {
    const rest = this.#text.trim();
    if (this.#begun ? rest !== END : rest !== '{"stats":[]}') throw new UnderpassError('UNDERPASS_ENVOY_STATS', "reading Envoy's statistics: the answer broke off");
  }
}
