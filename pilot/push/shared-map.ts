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

/** Names with their versions, however they are held. */
export interface VersionList<T> {
  items: readonly T[];
  nameOf(item: T): string;
  versionOf(item: T): string;
  /** Of name and version together; by default worked out anew. */
  hashOf?(item: T): number;
}

const entryHash = (name: string, version: string): number => (Math.imul(hashString(name), 31) + hashString(version)) >>> 0;
export { entryHash };

/** Finds equal maps. Only weak references are held: a map lives as long as somebody uses it. */
export class MapStore {
  readonly #known = new Map<string, WeakRef<ReadonlyMap<string, string>>>();
  readonly #gone = new FinalizationRegistry<string>((key) => {
    if (!this.#known.get(key)?.deref()) this.#known.delete(key);
  });

  /** @returns an equal map that others have, or `map` itself, which must not be changed any more */
  intern(map: ReadonlyMap<string, string>): ReadonlyMap<string, string> {
    if (map.size === 0) return EMPTY;
    const entries: VersionList<readonly [string, string]> = { items: [...map], nameOf: ([name]) => name, versionOf: ([, version]) => version };
    return this.#find(entries, map.size) ?? this.#add(map, keyOf(entries));
  }

  /** The same for a list without repeated names; a map is only made when there is none yet. */
  internList<T>(list: VersionList<T>): ReadonlyMap<string, string> {
    if (list.items.length === 0) return EMPTY;
    const found = this.#find(list, list.items.length);
    if (found) return found;
    const map = new Map(list.items.map((item) => [list.nameOf(item), list.versionOf(item)]));
    return map.size === list.items.length ? this.#add(map, keyOf(list)) : this.intern(map);
  }

  #find<T>(list: VersionList<T>, size: number): ReadonlyMap<string, string> | undefined {
    const known = this.#known.get(keyOf(list))?.deref();
    if (!known || known.size !== size) return undefined;
    for (const item of list.items) if (known.get(list.nameOf(item)) !== list.versionOf(item)) return undefined;
    return known;
  }

  #add(map: ReadonlyMap<string, string>, key: string): ReadonlyMap<string, string> {
    this.#known.set(key, new WeakRef(map));
    this.#gone.register(map, key);
    return map;
  }
}

/** Independent of the order. */
function keyOf<T>({ items, nameOf, versionOf, hashOf }: VersionList<T>): string {
  let [sum, mixed] = [0, 0];
  for (const item of items) {
    const hash = hashOf ? hashOf(item) : entryHash(nameOf(item), versionOf(item));
    sum = (sum + hash) >>> 0;
    mixed = (mixed ^ Math.imul(hash, 0x9e3779b1)) >>> 0;
  }
  return `${items.length} ${sum} ${mixed}`;
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

  /** Instead of all that it had it has what is in `map`, which others share and nobody changes. */
  begin(map: ReadonlyMap<string, string>): void {
    this.#take(map);
  }

  /** The map that equal ones of this store share, if this one has no differences of its own. */
  get shared(): ReadonlyMap<string, string> | undefined {
    return this.#differences.size === 0 ? this.#base : undefined;
  }

  /** What it has otherwise than `base` (undefined: not there), if it is `base` that it shares; undefined: it is not. */
  differencesFrom(base: ReadonlyMap<string, string>): ReadonlyMap<string, string | undefined> | undefined {
    return this.#base === base ? this.#differences : undefined;
  }

  /** Sets many at once. */
  setAll<T>(list: VersionList<T>): void {
    const { items, nameOf, versionOf } = list;
    if (items.length < MIN_DIFFERENCES) {
      for (const item of items) this.set(nameOf(item), versionOf(item));
      return;
    }
    if (this.#size === 0) {
      this.#take(this.store.internList(list));
      return;
    }
    const merged = this.#merged();
    for (const item of items) merged.set(nameOf(item), versionOf(item));
    this.#take(this.store.intern(merged));
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
    if (this.#differences.size > MIN_DIFFERENCES + this.#base.size / SHARE_OF_BASE) this.#take(this.store.intern(this.#merged()));
  }

  #take(base: ReadonlyMap<string, string>): void {
    this.#base = base;
    this.#differences.clear();
    this.#size = this.#base.size;
  }
}
