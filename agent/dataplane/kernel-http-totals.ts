/**
 * What the kernel's part of the requests came to, as the programs keep it (struct http_total_key and http_total of
 * bpf/http-structs.h): by client's and server's pod, service and status. It outlives the agent, and so do the names of services.
 */
import type { BpfMap, BpfObject } from '../../native/index.js';
import type { HttpService } from '../http/table.js';
import { StructCodec, u32 } from './kernel-codec.js';

/** Buckets are not cumulative; HTTP_BOUNDS of telemetry/http-bounds.ts has where they end. */
export interface HttpTotals {
  requests: bigint;
  requestBytes: bigint;
  answerBytes: bigint;
  durationUs: bigint;
  duration: bigint[];
  request: bigint[];
  answer: bigint[];
}

/** The first: it had its answer. */
export type HttpEnding = 'answered' | 'client-ended' | 'server-ended' | 'reset-here';

export interface HttpTotalEntry {
  /** For `take`. */
  id: string;
  /** Pods by netns cookies. */
  client: bigint;
  server: bigint;
  /** Undefined: none that has a name, or whose name found no room. */
  service: HttpService | undefined;
  /** 0: no answer had begun. */
  status: number;
  ending: HttpEnding;
  totals: HttpTotals;
}

/** What telemetry needs of the kernel. */
export interface HttpRequests {
  /** What a class calls by this number. */
  serviceOf?(key: number): HttpService | undefined;
  entries(): HttpTotalEntry[];
  /** Ends an entry, and returns what it held last. */
  take(id: string): HttpTotalEntry | undefined;
  /** Totals whose entries are gone, by a hash of 16 bytes in hex. */
  retired(): Map<string, HttpTotals>;
  /** Adds to one of these. False: there is no room. */
  retire(hash: string, totals: HttpTotals): boolean;
  dropRetired(hash: string): void;
}

const ENDINGS: Record<string, HttpEnding> = { HTTP_WHOLE: 'answered', HTTP_DOWNSTREAM_ENDED: 'client-ended', HTTP_UPSTREAM_ENDED: 'server-ended', HTTP_RESET_HERE: 'reset-here' };

export class KernelHttpTotals implements HttpRequests {
  readonly #totals: BpfMap;
  readonly #retired: BpfMap;
  readonly #services: HttpServices;
  readonly #key: StructCodec;
  readonly #value: StructCodec;
  readonly #endings: Map<number, HttpEnding>;

  constructor(object: BpfObject, services: HttpServices) {
    this.#totals = object.map('http_totals');
    this.#retired = object.map('http_retired');
    this.#services = services;
    this.#key = new StructCodec(object, 'http_total_key').check(this.#totals, 'key');
    this.#value = new StructCodec(object, 'http_total').check(this.#totals, 'value').check(this.#retired, 'value');
    const endings = object.enumValues('http_ending');
    this.#endings = new Map(Object.entries(ENDINGS).map(([name, ending]) => [endings[name] ?? -1, ending]));
  }

  serviceOf(key: number): HttpService | undefined {
    return this.#services.of(key);
  }

  entries(): HttpTotalEntry[] {
    return this.#totals.entries().map(([key, value]) => this.#entry(key, value));
  }

  take(id: string): HttpTotalEntry | undefined {
    const key = Buffer.from(id, 'hex');
    const value = this.#totals.get(key);
    if (!value) return undefined;
    // What a program adds between these two lines is lost: one of such an entry's ends is gone.
    this.#totals.delete(key);
    return this.#entry(key, value);
  }

  retired(): Map<string, HttpTotals> {
    return new Map(this.#retired.entries().map(([key, value]) => [key.toString('hex'), this.#decode(value)]));
  }

  retire(hash: string, totals: HttpTotals): boolean {
    const key = Buffer.from(hash, 'hex');
    const before = this.#retired.get(key);
    const { requests, requestBytes, answerBytes, durationUs, duration, request, answer } = before ? addTotals(this.#decode(before), totals) : totals;
    return this.#retired.setIfRoom(key, this.#value.encode({ requests, request_bytes: requestBytes, answer_bytes: answerBytes, duration_us: durationUs, duration: packed(duration), request: packed(request), answer: packed(answer) }));
  }

  dropRetired(hash: string): void {
    this.#retired.delete(Buffer.from(hash, 'hex'));
  }

  #entry(key: Buffer, value: Buffer): HttpTotalEntry {
    return {
      id: key.toString('hex'), client: this.#key.bigint(key, 'client'), server: this.#key.bigint(key, 'server'), service: this.#services.of(this.#key.number(key, 'service')),
      status: this.#key.number(key, 'status'), ending: this.#endings.get(this.#key.number(key, 'ending')) ?? 'reset-here', totals: this.#decode(value),
    };
  }

  #decode(value: Buffer): HttpTotals {
    const number = (name: string): bigint => this.#value.bigint(value, name);
    const buckets = (name: string): bigint[] => {
      const bytes = this.#value.bytes(value, name);
      return Array.from({ length: bytes.length / 8 }, (_, index) => bytes.readBigUInt64LE(index * 8));
    };
    return { requests: number('requests'), requestBytes: number('request_bytes'), answerBytes: number('answer_bytes'), durationUs: number('duration_us'), duration: buckets('duration'), request: buckets('request'), answer: buckets('answer') };
  }
}

/** The keys by which classes name services, and the names that stand for them in a map of their own. */
export class HttpServices {
  readonly #services: BpfMap;
  readonly #totals: BpfMap;
  readonly #key: StructCodec;
  readonly #codec: StructCodec;
  #keys: Map<string, number> | undefined;
  readonly #names = new Map<number, HttpService>();
  #next = 1;

  constructor(object: BpfObject) {
    this.#services = object.map('http_services');
    this.#totals = object.map('http_totals');
    this.#key = new StructCodec(object, 'http_total_key');
    this.#codec = new StructCodec(object, 'http_service').check(this.#services, 'value');
  }

  /**
   * @param inUse keys that classes have: with no room left all others go that count nothing
   * @returns its key; 0: it has no name, or there is no room for it
   */
  keyOf(service: HttpService | undefined, inUse: () => Iterable<number>): number {
    if (!service) return 0;
    const text = `${service.namespace}/${service.name}/${service.hostname}`;
    if (Buffer.byteLength(text) > this.#codec.sizeBytes) return 0;
    const keys = this.#start();
    const known = keys.get(text);
    if (known !== undefined) return known;
    if (keys.size >= this.#services.maxEntries) this.#forget(new Set(inUse()));
    if (keys.size >= this.#services.maxEntries) return 0;
    const key = this.#next++;
    this.#services.set(u32(key), this.#codec.encode({ text: Buffer.from(text) }));
    keys.set(text, key);
    return key;
  }

  of(key: number): HttpService | undefined {
    const known = this.#names.get(key);
    if (known) return known;
    const value = key === 0 ? undefined : this.#services.get(u32(key));
    if (!value) return undefined;
    const service = decoded(this.#text(value));
    this.#names.set(key, service);
    return service;
  }

  /** What a former agent named keeps its key; of keys that are not there any more none is given again while something counts there. */
  #start(): Map<string, number> {
    if (this.#keys) return this.#keys;
    this.#keys = new Map(this.#services.entries().map(([key, value]) => [this.#text(value), key.readUInt32LE()]));
    this.#next = Math.max(0, ...this.#keys.values(), ...this.#counted()) + 1;
    return this.#keys;
  }

  #forget(inUse: Set<number>): void {
    const counted = this.#counted();
    for (const [text, key] of this.#keys!) {
      if (inUse.has(key) || counted.has(key)) continue;
      this.#services.delete(u32(key));
      this.#keys!.delete(text);
      this.#names.delete(key);
    }
  }

  #counted(): Set<number> {
    return new Set(this.#totals.entries().map(([key]) => this.#key.number(key, 'service')));
  }

  #text(value: Buffer): string {
    const end = value.indexOf(0);
    return value.subarray(0, end < 0 ? value.length : end).toString();
  }
}

function decoded(text: string): HttpService {
  const [namespace = '', name = '', hostname = ''] = text.split('/');
  return { namespace, name, hostname };
}

function packed(counts: readonly bigint[]): Buffer {
  const out = Buffer.alloc(counts.length * 8);
  counts.forEach((count, index) => out.writeBigUInt64LE(count, index * 8));
  return out;
}

export function addTotals(a: HttpTotals, b: HttpTotals): HttpTotals {
  const sums = (of: 'duration' | 'request' | 'answer'): bigint[] => a[of].map((count, index) => count + (b[of][index] ?? 0n));
  return {
    requests: a.requests + b.requests, requestBytes: a.requestBytes + b.requestBytes, answerBytes: a.answerBytes + b.answerBytes, durationUs: a.durationUs + b.durationUs,
    duration: sums('duration'), request: sums('request'), answer: sums('answer'),
  };
}
