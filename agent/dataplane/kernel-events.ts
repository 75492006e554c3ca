/** Rare things that the BPF programs report through the ring buffer, as log lines, each kind and place once a minute. */
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import type { BpfObject } from '../../native/index.js';
import { StructCodec } from './kernel-codec.js';
import { Verdicts } from './kernel-verdicts.js';

const SAME_EVENT_EVERY_MS = 60_000;
const MAX_REMEMBERED = 4096;

export class KernelEvents implements Closable {
  readonly #ring: Closable;
  readonly #event: StructCodec;
  readonly #verdicts: Verdicts;
  readonly #types: Record<string, number>;
  readonly #lastAt = new Map<string, number>();

  constructor(object: BpfObject, readonly logger: Logger, readonly counterNames: readonly string[], readonly now: () => number = () => performance.now()) {
    this.#event = new StructCodec(object, 'event');
    this.#verdicts = new Verdicts(object);
    this.#types = object.enumValues('event_type');
    this.#ring = object.ringBuffer('events', (record) => this.#report(record));
  }

  close(): void {
    void this.#ring.close();
  }

  #report(record: Buffer): void {
    const type = this.#event.number(record, 'type');
    const netnsCookie = String(this.#event.bigint(record, 'netns_cookie'));
    if (type === this.#types['EVENT_MAP_FULL']) {
      const counter = this.counterNames[this.#event.number(record, 'counter')] ?? 'unknown';
      if (this.#isNew(`full ${counter}`)) this.logger.warn({ counter }, 'a BPF map is full: what does not fit goes by plain TCP');
      return;
    }
    const zeroCopy = type === this.#types['EVENT_ZERO_COPY_CLIENT'] || type === this.#types['EVENT_ZERO_COPY_LISTENER'];
    const client = type === this.#types['EVENT_BLOCKING_CLIENT'] || type === this.#types['EVENT_ZERO_COPY_CLIENT'];
    const key = client
      ? this.#verdicts.programText(this.#event.bytes(record, 'program'))
      : this.#verdicts.listenerText(this.#event.bytes(record, 'listener'));
    const afterAcceleration = this.#event.number(record, 'after_acceleration') !== 0;
    if (!this.#isNew(key)) return;
    this.logger.info(
      { kind: client ? 'client' : 'listener', key, netnsCookie, afterAcceleration },
      `a program uses ${zeroCopy ? 'SO_ZEROCOPY' : 'blocking sockets'}: its connections stay plain TCP`,
    );
  }

  #isNew(what: string): boolean {
    const now = this.now();
    const last = this.#lastAt.get(what);
    if (last !== undefined && now - last < SAME_EVENT_EVERY_MS) return false;
    if (this.#lastAt.size >= MAX_REMEMBERED) this.#lastAt.clear();
    this.#lastAt.set(what, now);
    return true;
  }
}
