/**
 * Maps of resources that streams of several classes hold: a big mesh's have thousands of entries each, and most classes are sent the
 * same. Whoever has one that is equal to another's takes that one, and changes a copy.
 */

/** Of those that differ, as classes' with a Sidecar of their own, so many are compared with. */
const MOST_KNOWN = 8;

export class SharedMaps<V extends object> {
  /** The newest first; they live as long as somebody holds them. */
  #known: WeakRef<ReadonlyMap<string, V>>[] = [];

  /** @returns one with the same entries that others have, or `map`, which must not be changed any more */
  like(map: ReadonlyMap<string, V>): ReadonlyMap<string, V> {
    for (const ref of this.#known) {
      const other = ref.deref();
      if (other && sameEntries(other, map)) return other;
    }
    const others = this.#known.filter((ref) => ref.deref() !== undefined).slice(0, MOST_KNOWN - 1);
    this.#known = [new WeakRef(map), ...others];
    return map;
  }
}

/** Whether both have the same objects under the same names. @param of the part of an entry that counts, all of it by itself */
export function sameEntries<V extends object>(some: ReadonlyMap<string, V>, others: ReadonlyMap<string, V>, of: (entry: V) => unknown = (entry) => entry): boolean {
  if (some === others) return true;
  if (some.size !== others.size) return false;
  for (const [name, each] of some) {
    const other = others.get(name);
    if (!other || of(other) !== of(each)) return false;
  }
  return true;
}
