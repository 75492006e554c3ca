/** What the programs tell of single connections, messages and requests while somebody asks: bpf/watch.h. */
import { UnderpassError } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { BpfMap, BpfObject } from '../../native/index.js';
import { decodeAddress, encodeAddress, StructCodec, u32 } from './kernel-codec.js';

/** `requests`: of the HTTP fast path. */
export type Watcher = 'trace' | 'capture' | 'requests';

/** Connections that are established from now on, of which either end is this. */
export interface WatchFilter {
  /** Of a pod; default: any. */
  netnsCookie?: bigint;
  /** Default: any. What the client asked for counts, too. */
  address?: string;
  port?: number;
  /** Bytes of payload that may be told until it is set anew. */
  payloadBytes?: number;
}

export const WATCH_POINTS = ['connect', 'denied', 'opened', 'accepted', 'moved', 'by_tcp', 'fast', 'to_envoy', 'answered', 'closed', 'led', 'answer', 'cut'] as const;
export type WatchPoint = (typeof WATCH_POINTS)[number];

interface WatchEnd {
  address: string;
  port: number;
}

export interface WatchEvent {
  what: WatchPoint;
  /** A counter's name, what connect() leads to, or a status; undefined: none. */
  reason: string | undefined;
  /** CLOCK_MONOTONIC. */
  atNs: bigint;
  /** Of the socket, and of another one that it has to do with; 0: none. */
  cookie: bigint;
  peerCookie: bigint;
  netnsCookie: bigint;
  otherNetns: bigint;
  local: WatchEnd | undefined;
  remote: WatchEnd | undefined;
  asked: WatchEnd | undefined;
  flags: ReadonlySet<string>;
  pid: number;
  bytes: number;
  startedNs: bigint;
}

export interface WatchedRequest {
  what: 'request';
  atNs: bigint;
  cookie: bigint;
  netnsCookie: bigint;
  serverNetns: bigint;
  service: number;
  sizeBytes: number;
  /** As far as it is told. */
  head: string;
}

export interface WatchedPayload {
  what: 'payload';
  atNs: bigint;
  cookie: bigint;
  /** Where it begins in its message, and that one's size. */
  at: number;
  sizeBytes: number;
  data: Buffer;
}

export type Watched = WatchEvent | WatchedRequest | WatchedPayload;

const NO_ADDRESS = '::';

export class KernelWatch implements Closable {
  readonly #object: BpfObject;
  readonly #watches: BpfMap;
  readonly #codecs: Record<'watch' | 'event' | 'request' | 'payload' | 'asked', StructCodec>;
  readonly #places: Record<Watcher, number>;
  readonly #whats: ReadonlyMap<number, WatchPoint | 'request' | 'payload'>;
  readonly #led: ReadonlyMap<number, string>;
  readonly #flags: readonly (readonly [name: string, bit: number])[];
  readonly #listeners = new Map<Watcher, (event: Watched) => void>();
  #ring: Closable | undefined;

  constructor(object: BpfObject, readonly counterNames: readonly string[]) {
    this.#object = object;
    this.#watches = object.map('watches');
    const codec = (name: string): StructCodec => new StructCodec(object, name);
    this.#codecs = { watch: codec('watch').check(this.#watches, 'value'), event: codec('watch_event'), request: codec('watch_request'), payload: codec('watch_payload'), asked: codec('original_dst') };
    const places = object.enumValues('watcher');
    const place = (name: string): number => {
      const found = places[name];
      if (found === undefined) throw new UnderpassError('UNDERPASS_KERNEL_LAYOUT', `reading the BPF object's constants: no ${name}`);
      return found;
    };
    this.#places = { trace: place('WATCH_TRACE'), capture: place('WATCH_CAPTURE'), requests: place('WATCH_REQUESTS') };
    const whats = object.enumValues('watch_what');
    this.#whats = new Map([...WATCH_POINTS, 'request' as const, 'payload' as const].map((what) => [whats[`WATCH_${what.toUpperCase()}`] ?? -1, what]));
    this.#led = new Map(Object.entries(object.enumValues('capture')).map(([name, value]) => [value, name.slice('CAPTURE_'.length).toLowerCase()]));
    this.#flags = Object.entries(object.enumValues('socket_flag')).map(([name, bit]) => [name.slice('SOCKET_'.length).toLowerCase(), bit]);
  }

  /** Begins, or changes what is told; `onEvent` stays. */
  start(watcher: Watcher, { netnsCookie = 0n, address, port = 0, payloadBytes = 0 }: WatchFilter, onEvent: (event: Watched) => void): void {
    this.#listeners.set(watcher, onEvent);
    this.#ring ??= this.#object.ringBuffer('watch_events', (record) => this.#receive(record));
    this.#watches.set(u32(this.#places[watcher]), this.#codecs.watch.encode({
      netns_cookie: netnsCookie, on: 1, port, left: BigInt(payloadBytes), ...(address === undefined ? {} : { address: encodeAddress(address) }),
    }));
  }

  stop(watcher: Watcher): void {
    this.#watches.set(u32(this.#places[watcher]), Buffer.alloc(this.#codecs.watch.sizeBytes));
    this.#listeners.delete(watcher);
  }

  /** What an agent before this one left on. */
  stopAll(): void {
    for (const watcher of ['trace', 'capture', 'requests'] as const) this.stop(watcher);
  }

  close(): void {
    void this.#ring?.close();
  }

  #receive(record: Buffer): void {
    const what = this.#whats.get(record.readUInt32LE());
    if (what === undefined) return;
    if (what === 'request') return this.#tell(this.#request(record), 'requests');
    if (what === 'payload') return this.#tell(this.#payload(record), 'capture');
    const event = this.#event(record, what);
    if (what === 'answer') return this.#tell(event, 'requests');
    if (what === 'led' || what === 'cut') return this.#tell(event, 'capture');
    this.#tell(event, 'trace');
    if (what === 'opened' || what === 'accepted' || what === 'closed') this.#tell(event, 'capture');
  }

  #tell(event: Watched, to: Watcher): void {
    this.#listeners.get(to)?.(event);
  }

  #event(record: Buffer, what: WatchPoint): WatchEvent {
    const { event: codec, asked } = this.#codecs;
    const end = (bytes: Buffer, port: number): WatchEnd | undefined => {
      const address = decodeAddress(bytes);
      return address === NO_ADDRESS && port === 0 ? undefined : { address, port };
    };
    const reason = codec.number(record, 'reason'), flags = codec.number(record, 'flags'), wanted = codec.bytes(record, 'asked');
    const askedPort = asked.bytes(wanted, 'port').readUInt16BE();
    const isStatus = what === 'answered' || what === 'answer';
    return {
      what, reason: isStatus ? String(reason) : what === 'connect' ? this.#led.get(reason) : this.counterNames[reason],
      atNs: codec.bigint(record, 'at_ns'), cookie: codec.bigint(record, 'cookie'), peerCookie: codec.bigint(record, 'peer_cookie'),
      netnsCookie: codec.bigint(record, 'netns_cookie'), otherNetns: codec.bigint(record, 'other_netns'),
      local: end(codec.bytes(record, 'local'), codec.number(record, 'local_port')), remote: end(codec.bytes(record, 'remote'), codec.number(record, 'remote_port')),
      asked: end(asked.bytes(wanted, 'address'), askedPort), flags: new Set(this.#flags.flatMap(([name, bit]) => ((flags & bit) === 0 ? [] : [name]))),
      pid: codec.number(record, 'pid'), bytes: Number(codec.bigint(record, 'bytes')), startedNs: codec.bigint(record, 'started_ns'),
    };
  }

  #request(record: Buffer): WatchedRequest {
    const { request: codec } = this.#codecs;
    return {
      what: 'request', atNs: codec.bigint(record, 'at_ns'), cookie: codec.bigint(record, 'cookie'), netnsCookie: codec.bigint(record, 'netns_cookie'), serverNetns: codec.bigint(record, 'server_netns'),
      service: codec.number(record, 'service'), sizeBytes: codec.number(record, 'size'), head: codec.bytes(record, 'head').subarray(0, codec.number(record, 'length')).toString('latin1'),
    };
  }

  #payload(record: Buffer): WatchedPayload {
    const { payload: codec } = this.#codecs;
    return {
      what: 'payload', atNs: codec.bigint(record, 'at_ns'), cookie: codec.bigint(record, 'cookie'), at: codec.number(record, 'at'), sizeBytes: codec.number(record, 'size'),
      data: Buffer.from(codec.bytes(record, 'data').subarray(0, codec.number(record, 'length'))),
    };
  }
}
