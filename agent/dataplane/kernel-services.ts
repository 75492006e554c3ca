/**
 * The services that the connect hook decides: their entries, and the endpoints that it draws from (bpf/resolve.h). A change of
 * endpoints goes into free places first and becomes the service's by one word, so that no connection finds it half done.
 */
import { UnderpassError } from '../../common/errors.js';
import type { BpfMap, BpfObject } from '../../native/index.js';
import type { Drift } from '../consistency/drift.js';
import { aliasTable } from './alias-table.js';
import { decodeAddress, encodeAddress, StructCodec, u64 } from './kernel-codec.js';
import { SlotRanges } from './slot-ranges.js';

/** An address and port that programs connect to. */
export interface ServicePort {
  address: string;
  port: number;
}

export interface ServiceEndpoint extends ServicePort {
  /** Above 0; shares are proportional to it. */
  weight: number;
}

export interface ServiceEntry {
  /** `http`: only for pods whose label says that HTTP that asks for nothing needs no proxy. */
  kind: 'tcp' | 'http';
  /** A client keeps to one of the endpoints, whatever their weights. */
  affinity?: boolean;
  /** None: connections are refused. */
  endpoints: readonly ServiceEndpoint[];
}

export interface ServiceChange extends ServicePort {
  /** undefined: the proxy's way. */
  entry: ServiceEntry | undefined;
}

/** An entry as the kernel has it. */
export interface LiveService {
  kind: 'tcp' | 'http';
  /** A client keeps to one of the endpoints; shares are those of all clients together. */
  affinity: boolean;
  /** `leftOut`: it did not answer lately. `share` of connections, between 0 and 1, were none left out. */
  endpoints: (ServicePort & { share: number; leftOut: boolean })[];
}

export interface ServiceTableStatus {
  services: number;
  endpoints: number;
  maxServices: number;
  maxEndpoints: number;
  /** Services for which there was no room: they go the proxy's way. */
  refused: number;
}


/** A program that looks up an endpoint takes microseconds; it may be preempted. */
const GRACE_MS = 1_000;
const KINDS = { tcp: 'SERVICE_TCP', http: 'SERVICE_HTTP' } as const;
/** In the block's word. */
const COUNT_SHIFT = 32n;
const KIND_SHIFT = 56n;
const AFFINITY = 1n << 55n;
const COUNT_MASK = 0x7f_ffffn;

interface Known {
  key: Buffer;
  index: number;
  first: number;
  kind: ServiceEntry['kind'];
  affinity: boolean;
  /** The endpoints as they were encoded, and the entry that points to them. */
  rows: Buffer;
  value: Buffer;
}

/** Read and compared at a time: well below a millisecond. */
const AUDITED_ENTRIES = 512;
const AUDITED_ENDPOINTS = 2_048;
/** Places between two services' that are read along with them. */
const AUDITED_GAP = 64;

export class ServiceTable {
  readonly #maps: Record<'indexes' | 'services' | 'endpoints' | 'outliers' | 'foreign', BpfMap>;
  readonly #codecs: Record<'key' | 'service' | 'endpoint', StructCodec>;
  readonly #kinds: Record<string, number>;
  readonly #known = new Map<string, Known>();
  readonly #refused = new Map<string, ServiceChange>();
  readonly #indexes: SlotRanges;
  readonly #slots: SlotRanges;

  constructor(object: BpfObject, now?: () => number) {
    this.#maps = { indexes: object.map('service_indexes'), services: object.map('services'), endpoints: object.map('endpoints'), outliers: object.map('outliers'), foreign: object.map('foreign_pods') };
    this.#codecs = {
      key: new StructCodec(object, 'service_key').check(this.#maps.indexes, 'key'),
      service: new StructCodec(object, 'service').check(this.#maps.services, 'value'),
      endpoint: new StructCodec(object, 'endpoint').check(this.#maps.endpoints, 'value'),
    };
    this.#kinds = object.enumValues('service_kind');
    this.#indexes = new SlotRanges(this.#maps.services.maxEntries, GRACE_MS, now);
    this.#slots = new SlotRanges(this.#maps.endpoints.maxEntries, GRACE_MS, now);
  }

  /** Takes over what a former agent left; what it can't make sense of is removed, which is the proxy's way. */
  adopt(): void {
    for (const [key, value] of this.#maps.indexes.entries()) {
      const index = value.readUInt32LE();
      const service = this.#maps.services.get(value);
      const { kind, affinity, first, count } = this.#block(service);
      const rows = kind && this.#rows(first, count);
      if (!rows || !this.#indexes.claim(index, 1)) {
        this.#maps.indexes.delete(key);
        continue;
      }
      if (count > 0 && !this.#slots.claim(first, count)) {
        this.#maps.indexes.delete(key);
        this.#indexes.give(index, 1);
        continue;
      }
      this.#known.set(key.toString('latin1'), { key, index, first, kind, affinity, rows, value: service! });
    }
  }

  /** Pods, by netns cookie, for which no service is decided. */
  setForeign(cookies: ReadonlySet<bigint>): void {
    for (const cookie of cookies) this.#maps.foreign.set(u64(cookie), Buffer.from([1]));
    for (const [key] of this.#maps.foreign.entries()) if (!cookies.has(key.readBigUInt64LE())) this.#maps.foreign.delete(key);
  }

  isForeign(cookie: bigint): boolean {
    return this.#maps.foreign.get(u64(cookie)) !== undefined;
  }

  /** All addresses and ports that have an entry. */
  ports(): ServicePort[] {
    return [...this.#known.values()].map(({ key }) => this.#decodeKey(key));
  }

  get status(): ServiceTableStatus {
    return { services: this.#known.size, endpoints: this.#slots.used, maxServices: this.#indexes.size, maxEndpoints: this.#slots.size, refused: this.#refused.size };
  }

  /**
   * Makes entries what `changes` say; one that is so already is left alone.
   * @returns how many found no room: they have no entry, so their connections are the proxy's
   * @throws KernelError; entries are then as they were, or gone
   */
  apply(changes: Iterable<ServiceChange>): number {
    const staged: { name: string; next: Known; before: Known | undefined }[] = [];
    let refused = 0;
    for (const change of changes) {
      const key = this.#encodeKey(change);
      const name = key.toString('latin1');
      const before = this.#known.get(name);
      this.#refused.delete(name);
      if (!change.entry) {
        if (before) this.#remove(name, before);
        continue;
      }
      const rows = this.#encodeRows(change.entry.endpoints);
      if (before && before.kind === change.entry.kind && before.affinity === (change.entry.affinity ?? false) && before.rows.equals(rows)) continue;
      const next = this.#place(key, change.entry, rows, before);
      if (next) {
        staged.push({ name, next, before });
        continue;
      }
      refused++;
      this.#refused.set(name, change);
      if (before) this.#remove(name, before);
    }
    if (staged.length > 0) this.#write(staged);
    return refused;
  }

  /** Tries those again for which there was no room. @returns how many there still are */
  retryRefused(): number {
    return this.#refused.size === 0 ? 0 : this.apply([...this.#refused.values()]);
  }

  /** What the kernel has for an address and port now. */
  live(port: ServicePort): LiveService | undefined {
    const index = this.#maps.indexes.get(this.#encodeKey(port));
    const { kind, affinity, first, count } = this.#block(index && this.#maps.services.get(index));
    const rows = kind && this.#rows(first, count);
    if (!kind || !rows) return undefined;
    const { endpoint, key } = this.#codecs;
    const now = process.hrtime.bigint();
    const shares = new Array<number>(count).fill(0);
    const row = (at: number): Buffer => rows.subarray(at * endpoint.sizeBytes, (at + 1) * endpoint.sizeBytes);
    for (let at = 0; at < count; at++) {
      const own = (endpoint.number(row(at), 'threshold') + 1) / 2 ** 32;
      shares[at]! += own / count;
      shares[endpoint.number(row(at), 'alias')]! += (1 - own) / count;
    }
    if (affinity) shares.fill(1 / count);
    const endpoints = shares.map((share, at) => {
      const [address, target] = [endpoint.bytes(row(at), 'address'), endpoint.number(row(at), 'port')];
      const until = this.#maps.outliers.get(key.encode({ address, port: target }))?.readBigUInt64LE();
      return { address: decodeAddress(address), port: target, share, leftOut: until !== undefined && now < until };
    });
    return { kind, affinity, endpoints };
  }

  /** Compares the maps with what they were given: parts as those of a Check. */
  *audit(): Generator<Drift[]> {
    const { indexes, services, endpoints } = this.#maps;
    const { endpoint: { sizeBytes: rowBytes } } = this.#codecs;
    const seen = new Set<string>();
    for (const { keys, values, count } of indexes.parts(AUDITED_ENTRIES)) {
      const text = keys.toString('latin1', 0, count * indexes.keySize);
      const names = Array.from({ length: count }, (_, at) => text.slice(at * indexes.keySize, (at + 1) * indexes.keySize));
      yield names.flatMap((name, at): Drift[] => {
        seen.add(name);
        const known = this.#known.get(name);
        if (known) return known.index === values.readUInt32LE(at * 4) ? [] : [this.#drift(name, 'wrong', 'it leads to the entry of another address')];
        return [this.#drift(name, 'orphaned')];
      });
    }
    yield [...this.#known].flatMap(([name, { key }]) => (seen.has(name) || indexes.get(key) ? [] : this.#drift(name, 'missing')));
    const isCurrent = ([name, known]: [string, Known]): boolean => this.#known.get(name) === known;
    for (const part of runs([...this.#known].sort(([, a], [, b]) => a.index - b.index), ([, { index }]) => ({ first: index, count: 1 }), AUDITED_ENTRIES)) {
      const found = services.range(part.first, part.count);
      yield part.items.filter(isCurrent).flatMap(([name, { index, value }]) => (isAt(found, (index - part.first) * services.valueSize, value) ? [] : this.#drift(name, 'wrong', 'other endpoints, or of another kind')));
    }
    const count = ([, { rows }]: [string, Known]): number => rows.length / rowBytes;
    for (const part of runs([...this.#known].filter(([, { rows }]) => rows.length > 0).sort(([, a], [, b]) => a.first - b.first), (item) => ({ first: item[1].first, count: count(item) }), AUDITED_ENDPOINTS)) {
      const found = endpoints.range(part.first, part.count);
      yield part.items.filter(isCurrent).flatMap(([name, { first, rows }]) => (isAt(found, (first - part.first) * rowBytes, rows) ? [] : this.#drift(name, 'wrong', 'other endpoints')));
    }
  }

  #drift(name: string, state: Drift['state'], detail?: string): Drift {
    const key = Buffer.from(name, 'latin1');
    const { address, port } = this.#decodeKey(key);
    const repair = (): void => {
      const known = this.#known.get(name);
      if (known) this.#write([{ name, next: known, before: undefined }]);
      else this.#maps.indexes.delete(key);
    };
    return { kind: 'service', state, name: address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`, repair, ...(detail === undefined ? {} : { detail }) };
  }

  #place(key: Buffer, entry: ServiceEntry, rows: Buffer, before: Known | undefined): Known | undefined {
    const { endpoints, kind, affinity = false } = entry;
    const first = endpoints.length > 0 ? this.#slots.take(endpoints.length) : 0;
    if (first === undefined) return undefined;
    const index = before?.index ?? this.#indexes.take(1);
    if (index !== undefined) return { key, index, first, kind, affinity, rows, value: this.#encodeService(key, entry, first) };
    if (endpoints.length > 0) this.#slots.give(first, endpoints.length);
    return undefined;
  }

  /** Endpoints, then what points to them. */
  #write(staged: { name: string; next: Known; before: Known | undefined }[]): void {
    const { endpoint } = this.#codecs;
    const all = staged.map(({ next }) => next);
    const filled = all.filter(({ rows }) => rows.length > 0);
    try {
      if (filled.length > 0) {
        this.#maps.endpoints.setMany(u32s(filled.flatMap(({ first, rows }) => Array.from({ length: rows.length / endpoint.sizeBytes }, (_, at) => first + at))), Buffer.concat(filled.map(({ rows }) => rows)));
      }
      this.#maps.services.setMany(u32s(all.map(({ index }) => index)), Buffer.concat(all.map(({ value }) => value)));
      const fresh = staged.filter(({ before }) => !before).map(({ next }) => next);
      if (fresh.length > 0) this.#maps.indexes.setMany(Buffer.concat(fresh.map(({ key }) => key)), u32s(fresh.map(({ index }) => index)));
    } catch (error) {
      for (const { name, next, before } of staged) {
        if (before) this.#rest(before);
        this.#remove(name, next);
      }
      throw error;
    }
    for (const { name, next, before } of staged) {
      if (before) this.#rest(before);
      this.#known.set(name, next);
    }
  }

  #remove(name: string, { key, index, first, rows }: Pick<Known, 'key' | 'index' | 'first' | 'rows'>): void {
    this.#maps.indexes.delete(key);
    this.#known.delete(name);
    this.#indexes.give(index, 1);
    this.#rest({ first, rows });
  }

  #rest({ first, rows }: Pick<Known, 'first' | 'rows'>): void {
    if (rows.length > 0) this.#slots.give(first, rows.length / this.#codecs.endpoint.sizeBytes);
  }

  #encodeKey({ address, port }: ServicePort): Buffer {
    return this.#codecs.key.encode({ address: encodeAddress(address), port });
  }

  #decodeKey(key: Buffer): ServicePort {
    return { address: decodeAddress(this.#codecs.key.bytes(key, 'address')), port: this.#codecs.key.number(key, 'port') };
  }

  #encodeService(key: Buffer, { kind, affinity, endpoints }: ServiceEntry, first: number): Buffer {
    return this.#codecs.service.encode({
      block: BigInt(first) | (BigInt(endpoints.length) << COUNT_SHIFT) | (affinity ? AFFINITY : 0n) | (BigInt(this.#kind(kind)) << KIND_SHIFT),
      address: this.#codecs.key.bytes(key, 'address'), port: this.#codecs.key.number(key, 'port'),
    });
  }

  #encodeRows(endpoints: readonly ServiceEndpoint[]): Buffer {
    const table = aliasTable(endpoints.map(({ weight }) => weight));
    return Buffer.concat(endpoints.map(({ address, port }, at) => this.#codecs.endpoint.encode({ address: encodeAddress(address), port, ...table[at]! })));
  }

  #kind(kind: ServiceEntry['kind']): number {
    const value = this.#kinds[KINDS[kind]];
    if (value === undefined) throw new UnderpassError('UNDERPASS_KERNEL_LAYOUT', `reading the BPF object's constants: no ${KINDS[kind]}`);
    return value;
  }

  #block(service: Buffer | undefined): { kind: ServiceEntry['kind'] | undefined; affinity: boolean; first: number; count: number } {
    const block = service ? this.#codecs.service.bigint(service, 'block') : 0n;
    const kind = (['tcp', 'http'] as const).find((each) => BigInt(this.#kind(each)) === block >> KIND_SHIFT);
    return { kind, affinity: (block & AFFINITY) !== 0n, first: Number(block & 0xffff_ffffn), count: Number((block >> COUNT_SHIFT) & COUNT_MASK) };
  }

  #rows(first: number, count: number): Buffer | undefined {
    const rows = Array.from({ length: count }, (_, at) => this.#maps.endpoints.get(u32s([first + at])));
    return rows.every((row) => row !== undefined) ? Buffer.concat(rows as Buffer[]) : undefined;
  }
}

function u32s(values: readonly number[]): Buffer {
  const out = Buffer.alloc(values.length * 4);
  values.forEach((value, at) => out.writeUInt32LE(value, at * 4));
  return out;
}

/** Whether `found` has these bytes there. */
function isAt(found: Buffer, at: number, wanted: Buffer): boolean {
  return found.compare(wanted, 0, wanted.length, at, at + wanted.length) === 0;
}

/** Ascending ranges of an array's places, taken together where little is between them. */
function* runs<T>(items: readonly T[], rangeOf: (item: T) => { first: number; count: number }, most: number): Generator<{ first: number; count: number; items: T[] }> {
  let run: { first: number; count: number; items: T[] } | undefined;
  for (const item of items) {
    const { first, count } = rangeOf(item);
    if (run && (first > run.first + run.count + AUDITED_GAP || first + count - run.first > most)) {
      yield run;
      run = undefined;
    }
    run ??= { first, count: 0, items: [] };
    run.count = first + count - run.first;
    run.items.push(item);
  }
  if (run) yield run;
}
