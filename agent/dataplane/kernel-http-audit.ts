/** Compares the tables of the HTTP fast path with what was written. The rows, for the most part empty, are kept deflated. */
import { deflateRawSync, inflateRawSync } from 'node:zlib';
import type { BpfMap } from '../../native/index.js';
import type { Drift } from '../consistency/drift.js';
import { u32 } from './kernel-codec.js';

/** Rows of an array in places one after the other, or entries of a hash. */
export type Written = { map: BpfMap; first: number; rows: readonly Buffer[] } | { map: BpfMap; keys: readonly Buffer[]; values: readonly Buffer[] };

interface Kept {
  map: BpfMap;
  /** Of an array; of a hash its keys. */
  first: number;
  keys: readonly Buffer[] | undefined;
  count: number;
  deflated: Buffer;
}

/** Read and compared at a time: a rule is several hundred bytes. */
const AUDITED_ROWS = 256;
const QUICKLY = { level: 1 };

export class WrittenTable {
  #written: readonly Written[];
  #kept: readonly Kept[] | undefined;

  constructor(written: readonly Written[]) {
    this.#written = written;
  }

  /**
   * @param mask makes the same of a row that was written and one that programs have written into since
   * @param isCurrent whether the table is still in use
   */
  *audit(name: string, mask: (map: BpfMap, row: Buffer) => void, isCurrent: () => boolean): Generator<Drift[]> {
    // Not when it is written: many wait for that.
    this.#kept ??= this.#written.map(keep);
    this.#written = [];
    for (const { map, first, keys, count, deflated } of this.#kept) {
      const wanted = inflateRawSync(deflated);
      for (let from = 0; from < count; from += AUDITED_ROWS) {
        if (!isCurrent()) return;
        const many = Math.min(AUDITED_ROWS, count - from);
        const found = keys ? undefined : map.range(first + from, many);
        yield Array.from({ length: many }, (_, at) => from + at).flatMap((at): Drift[] => {
          const [key, is] = [keys?.[at] ?? u32(first + at), Buffer.from(wanted.subarray(at * map.valueSize, (at + 1) * map.valueSize))];
          const was = found ? found.subarray((at - from) * map.valueSize, (at - from + 1) * map.valueSize) : map.get(key);
          const masked = was && Buffer.from(was);
          if (masked) mask(map, masked);
          if (masked?.equals(is)) return [];
          return [{ kind: 'http-table', state: was ? 'wrong' : 'missing', name: `${name} ${map.name} ${keys ? key.toString('hex') : first + at}`, detail: `of config class ${name}`, repair: () => map.set(key, is) }];
        });
      }
    }
  }

  /** Keys in a hash. */
  *keysOf(map: BpfMap): Generator<Buffer> {
    for (const part of [...this.#written, ...(this.#kept ?? [])]) if (part.map === map && 'keys' in part) yield* part.keys ?? [];
  }
}

function keep(part: Written): Kept {
  const [rows, keys] = 'rows' in part ? [part.rows, undefined] : [part.values, part.keys];
  return { map: part.map, first: 'first' in part ? part.first : 0, keys, count: rows.length, deflated: deflateRawSync(Buffer.concat(rows), QUICKLY) };
}

/** Entries of a hash that are in no table, where it has more than all tables together. */
export function* orphanedEntries(map: BpfMap, count: number, tables: () => Iterable<WrittenTable>): Generator<Drift[]> {
  const parts = [...map.parts(AUDITED_ROWS)];
  if (parts.reduce((sum, part) => sum + part.count, 0) <= count) return;
  const known = new Set([...tables()].flatMap((table) => [...table.keysOf(map)].map((key) => key.toString('latin1'))));
  yield parts.flatMap(({ keys, count: many }) => Array.from({ length: many }, (_, at) => Buffer.from(keys.subarray(at * map.keySize, (at + 1) * map.keySize))))
    .filter((key) => !known.has(key.toString('latin1')))
    .map((key): Drift => ({ kind: 'http-table', state: 'orphaned', name: `${map.name} ${key.toString('hex')}`, repair: () => void map.delete(key) }));
}

/** Rows by place, those that follow each other together. */
export function* runsOf(map: BpfMap, rows: ReadonlyMap<number, Buffer>): Generator<Written> {
  let run: { map: BpfMap; first: number; rows: Buffer[] } | undefined;
  for (const [place, row] of [...rows].sort(([a], [b]) => a - b)) {
    if (run && place !== run.first + run.rows.length) {
      yield run;
      run = undefined;
    }
    (run ??= { map, first: place, rows: [] }).rows.push(row);
  }
  if (run) yield run;
}
