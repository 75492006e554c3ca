/**
 * Names in the shared Envoy: resources of one name that are equal in all classes are one resource; of unequal ones the
 * first class's keeps the plain name and the others carry the suffix of the first class that has that content.
 */
export interface Names {
  /** What class `key` calls `name` in the shared Envoy. */
  of(key: string, name: string): string;
  /** Whether any name of this class differs from the plain one. */
  renames(key: string): boolean;
  /** The names that exist only because the control plane says different things to classes. */
  readonly split: ReadonlySet<string>;
}

export interface Content {
  hash: string;
  /** The same where contents differ only in whose identity they bear, which is no difference to be waited for. */
  neutral: string;
}

/** @param classes per class, in order of seniority: its contents by name */
export function assignNames(classes: readonly { key: string; contents: ReadonlyMap<string, Content> | undefined }[]): Names {
  const owners = new Map<string, Map<string, string>>();
  const renamed = new Map<string, Map<string, string>>();
  const split = new Set<string>();
  const neutrals = new Set<string>();
  for (const { key, contents: own } of classes) {
    for (const [name, { hash, neutral }] of own ?? []) {
      let contents = owners.get(name);
      if (!contents) owners.set(name, (contents = new Map()));
      let chosen = contents.get(hash);
      if (chosen === undefined) {
        chosen = contents.size === 0 ? name : `${name}~${key}`;
        if (chosen !== name && !neutrals.has(`${name} ${neutral}`)) split.add(chosen);
        neutrals.add(`${name} ${neutral}`);
        contents.set(hash, chosen);
      }
      if (chosen === name) continue;
      let names = renamed.get(key);
      if (!names) renamed.set(key, (names = new Map()));
      names.set(name, chosen);
    }
  }
  return {
    of: (key, name) => renamed.get(key)?.get(name) ?? name,
    renames: (key) => renamed.has(key),
    split,
  };
}
