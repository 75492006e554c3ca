/**
 * Classes that say the same share one name of Envoy's. Who had a name and says what was said under it stays; where nobody does, it is
 * changed in place for those who agree. Whoever comes to differ gets another name, and nobody's changes because others come or leave.
 */
export interface Groups {
  /** By class. */
  readonly groups: ReadonlyMap<string, string>;
  /** By group: its content. */
  readonly hashes: ReadonlyMap<string, string>;
}

export const NO_GROUPS: Groups = { groups: new Map(), hashes: new Map() };

export interface GroupOptions {
  /** What Envoy was given. */
  given: Groups;
  /** A class's group by an agent before this one, as long as it was not seen by this one. */
  formerOf(key: string): string | undefined;
  /** Such a class has the name, or what drains does, for something else. */
  isTaken(group: string, hash: string): boolean;
  /** Names that a class may found a group by, the first one with turn 1. */
  nameOf(key: string, turn: number): string;
  /** Whether a name may come to stand for what these classes say now, where none of them says what was said under it; default: yes. */
  mayChange?(group: string, own: readonly { key: string; hash: string }[]): boolean;
}

/** @param classes in order of seniority */
export function groupsOf(classes: readonly { key: string; hash: string }[], { given, formerOf, isTaken, nameOf, mayChange = () => true }: GroupOptions): Groups {
  const members = new Map<string, { key: string; hash: string }[]>();
  for (const each of classes) {
    const group = given.groups.get(each.key) ?? formerOf(each.key);
    if (group !== undefined) members.set(group, [...(members.get(group) ?? []), each]);
  }
  const groups = new Map<string, string>();
  const hashes = new Map<string, string>();
  for (const [group, own] of members) {
    const before = given.hashes.get(group);
    const isKept = own.some((each) => each.hash === before);
    if (!isKept && !mayChange(group, own)) continue;
    const hash = isKept ? before! : mostCommon(own.map((each) => each.hash));
    hashes.set(group, hash);
    for (const each of own) if (each.hash === hash) groups.set(each.key, group);
  }
  for (const { key, hash } of classes) {
    if (groups.has(key)) continue;
    // That of classes that have just left, too.
    let group = [...hashes, ...given.hashes].find(([name, content]) => content === hash && (hashes.get(name) ?? hash) === hash)?.[0];
    for (let turn = 1; group === undefined; turn++) {
      const candidate = nameOf(key, turn);
      if (!hashes.has(candidate) && !given.hashes.has(candidate) && !members.has(candidate) && !isTaken(candidate, hash)) group = candidate;
    }
    hashes.set(group, hash);
    groups.set(key, group);
  }
  return { groups, hashes };
}

function mostCommon(hashes: readonly string[]): string {
  const counts = new Map<string, number>();
  for (const hash of hashes) counts.set(hash, (counts.get(hash) ?? 0) + 1);
  return [...counts].reduce((best, each) => (each[1] > best[1] ? each : best))[0];
}
