/**
 * Maps that a thousand connections hold with equal content, kept once. Each holds a shared base and its own differences;
 * when these grow, the whole is looked up among the shared ones again.
 */

const EMPTY: ReadonlyMap<string, string> = new Map();
/** So many differences, and a share of the base, are cheaper to hold than to share. */
const MIN_DIFFERENCES = 64;
const SHARE_OF_BASE = 8;

/** FNV-1a over UTF-16 units. */
export function hashString(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/** Finds equal maps. Only weak references are held: a map lives as long as somebody uses it. */
export class MapStore {
  readonly #known = new Map<string, WeakRef<ReadonlyMap<string, string>>>();
  readonly #gone = new FinalizationRegistry<string>((key) => {
    if (!this.#known.get(key)?.deref()) this.#known.delete(key);
  });

  /** @returns an equal map that others have, or `map` itself, which must not be changed any more */
  intern(map: ReadonlyMap<string, string>): ReadonlyMap<string, string> {
    if (map.size === 0) return EMPTY;
    let [sum, mixed] = [0, 0];
    for (const [name, version] of map) {
      const hash = Math.imul(hashString(name), 31) + hashString(version);
      sum = (sum + hash) >>> 0;
      mixed = (mixed ^ Math.imul(hash, 0x9e3779b1)) >>> 0;
    }
    const key = `${map.size} ${sum} ${mixed}`;
    const known = this.#known.get(key)?.deref();
    if (known && isEqual(known, map)) return known;
    this.#known.set(key, new WeakRef(map));
    this.#gone.register(map, key);
    return map;
  }
}

function isEqual(a: ReadonlyMap<string, string>, b: ReadonlyMap<string, string>): boolean {
  if (a.size !== b.size) return false;
  for (const [name, version] of a) if (b.get(name) !== version) return false;
  return true;
}

/** A map from names to versions that shares what it has in common with others of its store. */
export class SharedMap {
  #base: ReadonlyMap<string, string> = EMPTY;
  /** Undefined: not there, though the base has it. */
  readonly #differences = new Map<string, string | undefined>();
  #size = 0;

  constructor(readonly store: MapStore) {}

  get size(): number {
    return this.#size;
  }

  get(name: string): string | undefined {
    const own = this.#differences.get(name);
    return own !== undefined || this.#differences.has(name) ? own : this.#base.get(name);
  }

  has(name: string): boolean {
    return this.get(name) !== undefined;
  }

  set(name: string, version: string): void {
    const old = this.get(name);
    if (old === version) return;
    if (old === undefined) this.#size++;
    if (this.#base.get(name) === version) this.#differences.delete(name);
    else this.#differences.set(name, version);
    this.#share();
  }

  delete(name: string): boolean {
    if (!this.has(name)) return false;
    this.#size--;
    if (this.#base.has(name)) this.#differences.set(name, undefined);
    else this.#differences.delete(name);
    this.#share();
    return true;
  }

  clear(): void {
    this.#base = EMPTY;
    this.#differences.clear();
    this.#size = 0;
  }

  *keys(): IterableIterator<string> {
    for (const [name, version] of this.#differences) if (version !== undefined) yield name;
    for (const name of this.#base.keys()) if (!this.#differences.has(name)) yield name;
  }

  [Symbol.iterator](): IterableIterator<string> {
    return this.keys();
  }

  /** Sets many at once. */
  setAll(entries: Iterable<readonly [string, string]>, count: number): void {
    if (count < MIN_DIFFERENCES) {
      for (const [name, version] of entries) this.set(name, version);
      return;
    }
    const merged = this.#merged();
    for (const [name, version] of entries) merged.set(name, version);
    this.#replace(merged);
  }

  #merged(): Map<string, string> {
    const merged = new Map(this.#base);
    for (const [name, version] of this.#differences) {
      if (version === undefined) merged.delete(name);
      else merged.set(name, version);
    }
    return merged;
  }

  #share(): void {
    if (this.#differences.size > MIN_DIFFERENCES + this.#base.size / SHARE_OF_BASE) this.#replace(this.#merged());
  }

  #replace(merged: Map<string, string>): void {
    this.#base = this.store.intern(merged);
    this.#differences.clear();
    this.#size = this.#base.size;
  }
}
