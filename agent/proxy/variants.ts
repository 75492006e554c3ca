/**
 * Names in the shared Envoy: resources of one name that are equal in all classes are one resource; of unequal ones the
 * first class's keeps the plain name and the others carry the suffix of the first class that has that content.
 */
export interface Names {
  /** What class `key` calls `name` in the shared Envoy. */
  of(key: string, name: string): string;
  /** Whether any name of this class differs from the plain one. */
  renames(key: string): boolean;
  /** The names that exist only because classes differ. */
  readonly split: ReadonlySet<string>;
}

/** @param classes per class, in order of seniority: content hash by name */
export function assignNames(classes: readonly { key: string; hashes: ReadonlyMap<string, string> }[]): Names {
  const owners = new Map<string, Map<string, string>>();
  const renamed = new Map<string, Map<string, string>>();
  const split = new Set<string>();
  for (const { key, hashes } of classes) {
    for (const [name, hash] of hashes) {
      let contents = owners.get(name);
      if (!contents) owners.set(name, (contents = new Map()));
      let chosen = contents.get(hash);
      if (chosen === undefined) {
        chosen = contents.size === 0 ? name : `${name}~${key}`;
        if (chosen !== name) split.add(chosen);
        contents.set(hash, chosen);
      }
      if (chosen === name) continue;
      let own = renamed.get(key);
      if (!own) renamed.set(key, (own = new Map()));
      own.set(name, chosen);
    }
  }
  return {
    of: (key, name) => renamed.get(key)?.get(name) ?? name,
    renames: (key) => renamed.has(key),
    split,
  };
}
