/**
 * Names in the shared Envoy: resources of one name that are equal in all classes are one resource; of unequal ones the
 * first class's keeps the plain name and the others carry the suffix of the first class that has that content. What bears a
 * service account's identity, or leads to such, has that account in its name: while Envoy changes over from one snapshot to
 * the next, what an older listener or route still refers to must never be another account's.
 *
 * A name stays as it was given when the class that it came from leaves: another one would drain listeners and close pools of
 * pods that nothing happened to. It becomes the plain one again when the contents are equal again.
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

/** By class, then by the control plane's name: what was given instead of which plain name. A class with nothing of the kind is in it all the same. */
export type GivenNames = Record<string, Record<string, readonly [plain: string, given: string]>>;

type NamedClass = { key: string; contents: ReadonlyMap<string, Content> | undefined };

/** Of one plain name. */
interface Variants {
  /** What has the plain name. */
  plain: string | undefined;
  /** Content by each other name that was given, and the first name that each content was given. */
  byName: Map<string, string> | undefined;
  byHash: Map<string, string> | undefined;
}

export class NameBook {
  #given: GivenNames;

  /** @param given by a former agent, whose Envoy has these names */
  constructor(given: GivenNames = {}) {
    this.#given = given;
  }

  /** To be kept for the next agent. */
  get given(): GivenNames {
    return this.#given;
  }

  /** @param classes per class, in order of seniority: its contents by name */
  assign(classes: readonly NamedClass[]): Names {
    const before = this.#given;
    const variants = new Map<string, Variants>();
    const renamed = new Map<string, Map<string, string>>();
    const split = new Set<string>();
    const given: GivenNames = Object.fromEntries(classes.map(({ key }) => [key, {}]));
    const of = (plain: string): Variants => {
      let found = variants.get(plain);
      if (!found) variants.set(plain, (found = { plain: undefined, byName: undefined, byHash: undefined }));
      return found;
    };
    const give = (key: string, name: string, plain: string, hash: string, chosen: string): void => {
      const known = of(plain);
      if (chosen === plain) known.plain = hash;
      else {
        split.add(chosen);
        (known.byName ??= new Map()).set(chosen, hash);
        if (!known.byHash?.has(hash)) (known.byHash ??= new Map()).set(hash, chosen);
        given[key]![name] = [plain, chosen];
      }
      if (chosen === name) return;
      let names = renamed.get(key);
      if (!names) renamed.set(key, (names = new Map()));
      names.set(name, chosen);
    };
    const left: { key: string; name: string; plain: string; hash: string }[] = [];
    const kept: (typeof left[number] & { chosen: string })[] = [];
    const plainOnes = new Set<ReadonlyMap<string, Content>>();
    const newOnes = new Map<ReadonlyMap<string, Content>, string>();
    const twins: { key: string; first: string }[] = [];
    // First who has the plain name, then who has another one, then who has none yet.
    for (const isKnown of [true, false]) {
      for (const { key, contents } of classes) {
        const own = before[key];
        if ((own !== undefined) !== isKnown) continue;
        // Whose contents are another class's, and have the plain names there, has them too.
        if (contents && plainOnes.has(contents) && Object.keys(own ?? {}).length === 0) continue;
        const first = contents && !isKnown ? newOnes.get(contents) : undefined;
        if (first !== undefined) {
          twins.push({ key, first });
          continue;
        }
        if (contents && !isKnown) newOnes.set(contents, key);
        const undecided = left.length + kept.length;
        for (const [name, { hash, account }] of contents ?? []) {
          const plain = account === undefined ? name : `${name}~${account}`;
          if (!isKnown) {
            left.push({ key, name, plain, hash });
            continue;
          }
          const [from, chosen] = own![name] ?? [];
          if (from === plain && chosen !== undefined) {
            kept.push({ key, name, plain, hash, chosen });
            continue;
          }
          const known = of(plain);
          if (known.plain === undefined || known.plain === hash) give(key, name, plain, hash, plain);
          else left.push({ key, name, plain, hash });
        }
        if (isKnown && contents && left.length + kept.length === undecided && !renamed.has(key)) plainOnes.add(contents);
      }
      if (!isKnown) continue;
      const others = left.splice(0);
      for (const item of kept) {
        const { key, name, plain, hash, chosen } = item;
        const known = of(plain);
        if (known.plain === hash) give(key, name, plain, hash, plain);
        else if ((known.byName?.get(chosen) ?? hash) === hash) give(key, name, plain, hash, chosen);
        else left.push(item);
      }
      left.unshift(...others);
    }
    for (const { key, name, plain, hash } of left) {
      const known = of(plain);
      let chosen = known.plain === hash || known.plain === undefined && !known.byHash?.has(hash) ? plain : known.byHash?.get(hash);
      // The class's own suffix may be another's by now: it was there before, and left.
      for (let turn = 1; chosen === undefined; turn++) {
        const candidate: string = turn === 1 ? `${plain}~${key}` : `${plain}~${key}~${turn}`;
        if (!known.byName?.has(candidate)) chosen = candidate;
      }
      give(key, name, plain, hash, chosen);
    }
    for (const { key, first } of twins) {
      given[key] = { ...given[first] };
      const names = renamed.get(first);
      if (names) renamed.set(key, names);
    }
    this.#given = given;
    return namesOf(renamed, split);
  }
}

function namesOf(renamed: ReadonlyMap<string, ReadonlyMap<string, string>>, split: ReadonlySet<string>): Names {
  const signatures = new Map<string, string>();
  return {
    of: (key, name) => renamed.get(key)?.get(name) ?? name,
    renames: (key) => renamed.has(key),
    signature: (key) => {
      let found = signatures.get(key);
      if (found === undefined) signatures.set(key, (found = hashBytes(JSON.stringify([...(renamed.get(key) ?? [])].sort(([a], [b]) => (a < b ? -1 : 1))))));
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
