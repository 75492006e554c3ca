/**
 * What the BPF programs report through the ring buffer: programs that they see for the first time, for somebody to look
 * at, and rare things as log lines, each kind and place once a minute.
 */
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import type { BpfObject } from '../../native/index.js';
import type { Clearance } from './kernel-clearance.js';
import { StructCodec } from './kernel-codec.js';
import type { Verdicts } from './kernel-verdicts.js';

const SAME_EVENT_EVERY_MS = 60_000;
const MAX_REMEMBERED = 4096;

export interface EventReceivers {
  verdicts: Verdicts;
  clearance: Pick<Clearance, 'ask'>;
  /** A pod has as many verdicts as one may have. */
  onQuota: (netnsCookie: bigint) => void;
}

export class KernelEvents implements Closable {
  readonly #ring: Closable;
  readonly #event: StructCodec;
  readonly #types: Record<string, number>;
  readonly #lastAt = new Map<string, number>();

  constructor(
    object: BpfObject, readonly logger: Logger, readonly counterNames: readonly string[], readonly to: EventReceivers,
    readonly now: () => number = () => performance.now(),
  ) {
    this.#event = new StructCodec(object, 'event');
    this.#types = object.enumValues('event_type');
    this.#ring = object.ringBuffer('events', (record) => this.#report(record));
  }

  close(): void {
    void this.#ring.close();
  }

  #report(record: Buffer): void {
    const type = this.#event.number(record, 'type');
    const cookie = this.#event.bigint(record, 'netns_cookie');
    const netnsCookie = String(cookie);
    if (type === this.#types['EVENT_NEW_CLIENT']) {
      this.to.clearance.ask({ kind: 'client', netnsCookie: cookie, key: this.#event.bytes(record, 'program'), pid: this.#event.number(record, 'pid') });
      return;
    }
    if (type === this.#types['EVENT_NEW_LISTENER']) {
      this.to.clearance.ask({ kind: 'listener', netnsCookie: cookie, key: this.#event.bytes(record, 'listener') });
      return;
    }
    if (type === this.#types['EVENT_VERDICT_QUOTA']) {
      this.logger.warn({ netnsCookie }, 'a pod has too many programs or listeners: new ones go by plain TCP until there is room');
      this.to.onQuota(cookie);
      return;
    }
    if (type === this.#types['EVENT_MAP_FULL']) {
      const counter = this.counterNames[this.#event.number(record, 'counter')] ?? 'unknown';
      if (this.#isNew(`full ${counter}`)) this.logger.warn({ counter }, 'a BPF map is full: what does not fit goes by plain TCP');
      return;
    }
    const zeroCopy = type === this.#types['EVENT_ZERO_COPY_CLIENT'] || type === this.#types['EVENT_ZERO_COPY_LISTENER'];
    const client = type === this.#types['EVENT_BLOCKING_CLIENT'] || type === this.#types['EVENT_ZERO_COPY_CLIENT'];
    const bytes = this.#event.bytes(record, client ? 'program' : 'listener');
    const key = client ? this.to.verdicts.programText(bytes) : this.to.verdicts.listenerText(bytes);
    const decided = { netnsCookie: cookie, key: bytes, decided: true };
    this.to.clearance.ask(client ? { ...decided, kind: 'client', pid: this.#event.number(record, 'pid') } : { ...decided, kind: 'listener' });
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
