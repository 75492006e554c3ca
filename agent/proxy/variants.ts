/**
 * Names in the shared Envoy: resources of one name that are equal in all classes are one resource; of unequal ones the
 * first class's keeps the plain name and the others carry the suffix of the first class that has that content. What bears a
 * service account's identity, or leads to such, has that account in its name: while Envoy changes over from one snapshot to
 * the next, what an older listener or route still refers to must never be another account's.
 */
import { hashBytes } from '../xds/resource-type.js';

export interface Names {
  /** What class `key` calls `name` in the shared Envoy. */
  of(key: string, name: string): string;
  /** Whether any name of this class differs from the plain one. */
  renames(key: string): boolean;
  /** The same for as long as the class's names are. */
  signature(key: string): string;
  /** The names that exist only because the control plane says different things to classes. */
  readonly split: ReadonlySet<string>;
}

export interface Content {
  hash: string;
  /** `namespace/service-account`, of what is that account's alone. */
  account?: string;
}

/** @param classes per class, in order of seniority: its contents by name */
export function assignNames(classes: readonly { key: string; contents: ReadonlyMap<string, Content> | undefined }[]): Names {
  const owners = new Map<string, Map<string, string>>();
  const renamed = new Map<string, Map<string, string>>();
  const split = new Set<string>();
  for (const { key, contents: own } of classes) {
    for (const [name, { hash, account }] of own ?? []) {
      const plain = account === undefined ? name : `${name}~${account}`;
      let contents = owners.get(plain);
      if (!contents) owners.set(plain, (contents = new Map()));
      let chosen = contents.get(hash);
      if (chosen === undefined) {
        chosen = contents.size === 0 ? plain : `${plain}~${key}`;
        if (chosen !== plain) split.add(chosen);
        contents.set(hash, chosen);
      }
      if (chosen === name) continue;
      let names = renamed.get(key);
      if (!names) renamed.set(key, (names = new Map()));
      names.set(name, chosen);
    }
  }
  const signatures = new Map<string, string>();
  return {
    of: (key, name) => renamed.get(key)?.get(name) ?? name,
    renames: (key) => renamed.has(key),
    signature: (key) => {
      let found = signatures.get(key);
      if (found === undefined) signatures.set(key, (found = hashBytes(JSON.stringify([...(renamed.get(key) ?? [])]))));
      return found;
    },
    split,
  };
}

/** Keeps what was made of an object under the names of one time. */
export class Renamed<K extends object, V> {
  readonly #known = new WeakMap<K, { signature: string; value: V }>();

  get(source: K, signature: string, make: () => V): V {
    let found = this.#known.get(source);
    if (found?.signature !== signature) this.#known.set(source, (found = { signature, value: make() }));
    return found.value;
  }
}
