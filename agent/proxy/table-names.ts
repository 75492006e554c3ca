/**
 * Names of tables of routes in the shared Envoy. Classes with equal tables share one, whatever their accounts are: in a big mesh Envoy
 * takes some 30 MiB for one, and a class's requests bear who sends them with them, not with the route. A table that leads to what is one
 * account's alone has the account in its name. A class that comes to differ gets a table of another name, which drains its HTTP connections
 * once; those that are equal again stay apart, and what has been an account's stays so, since they would drain again.
 *
 * Connections that drain go on by the table of before. So a name never comes to stand for something else while a class that has left it
 * says otherwise, or its own classes do not agree: they get other names then, and Envoy keeps what was under it for what drains.
 */
import { groupsOf, NO_GROUPS, type Groups } from './shared-groups.js';
import { namesOf, type Content, type GivenNames, type Names } from './variants.js';

/** By class, then by the control plane's name. */
export type GivenTables = Readonly<Record<string, Readonly<Record<string, string>>>>;

/** The newest: what drains has ended long before as many tables have come and gone. */
const MOST_RETIRED = 1_024;

export class TableNames {
  /** Of an agent before this one, as long as the class was not seen; `accounts` of one that had a table for each account. */
  readonly #former = new Map<string, { tables: Readonly<Record<string, string>>; areAccounts: boolean }>();
  /** By plain name. What Envoy was given. */
  #given: ReadonlyMap<string, Groups> = new Map();
  #next: ReadonlyMap<string, Groups> = this.#given;
  /** By name: classes that had it and have another one now. */
  readonly #left = new Map<string, Set<string>>();
  /** Names that nobody has any more, and what was under them. */
  readonly #retired = new Map<string, string>();
  #tables: GivenTables = {};
  #nextTables: GivenTables = {};

  /** @param accounts what was `given` before classes of several accounts shared tables */
  constructor(former: GivenTables = {}, accounts: GivenNames = {}) {
    for (const [key, tables] of Object.entries(accounts)) this.#former.set(key, { tables: Object.fromEntries(Object.entries(tables).map(([name, [, chosen]]) => [name, chosen])), areAccounts: true });
    for (const [key, tables] of Object.entries(former)) this.#former.set(key, { tables, areAccounts: false });
  }

  /** To be kept for the next agent. */
  get given(): GivenTables {
    return this.#tables;
  }

  /** What was last assigned is what Envoy is given. */
  commit(): void {
    for (const [plain, { groups }] of this.#given) {
      for (const [key, name] of groups) {
        if (this.#next.get(plain)?.groups.get(key) === name) this.#left.get(name)?.delete(key);
        else this.#left.set(name, (this.#left.get(name) ?? new Set()).add(key));
      }
    }
    const names = new Set([...this.#next.values()].flatMap(({ hashes }) => [...hashes.keys()]));
    for (const name of names) this.#retired.delete(name);
    for (const { hashes } of this.#given.values()) for (const [name, hash] of hashes) if (!names.has(name)) this.#retired.set(name, hash);
    for (const name of this.#retired.keys()) if (this.#retired.size > MOST_RETIRED) this.#retired.delete(name);
    for (const name of this.#left.keys()) if (!names.has(name)) this.#left.delete(name);
    this.#given = this.#next;
    this.#tables = this.#nextTables;
    for (const key of Object.keys(this.#tables)) this.#former.delete(key);
  }

  /** Whether the class has the table as its account's. */
  isAccounts(key: string, name: string, account: string): boolean {
    const own = plainName(name, account);
    if (this.#given.get(own)?.groups.has(key)) return true;
    const former = this.#former.get(key);
    const chosen = former?.tables[name];
    return chosen === undefined ? former?.areAccounts === true : isOf(own, chosen);
  }

  /** @param classes in order of seniority, with their tables by the control plane's names */
  assign(classes: readonly { key: string; contents: ReadonlyMap<string, Content> | undefined }[]): Names {
    const members = new Map<string, { name: string; classes: { key: string; hash: string }[] }>();
    for (const { key, contents = new Map<string, Content>() } of classes) {
      for (const [name, { hash, account }] of contents) {
        const plain = plainName(name, account);
        const found = members.get(plain) ?? { name, classes: [] };
        members.set(plain, found);
        found.classes.push({ key, hash });
      }
    }
    const present = new Set(classes.map(({ key }) => key));
    const next = new Map<string, Groups>();
    const tables: Record<string, Record<string, string>> = Object.fromEntries(classes.map(({ key }) => [key, {}]));
    const renamed = new Map<string, Map<string, string>>();
    const split = new Set<string>();
    for (const [plain, { name, classes: own }] of members) {
      const formerOf = (key: string): string | undefined => {
        const former = this.#former.get(key);
        const chosen = former && (former.tables[name] ?? (former.areAccounts ? plain : undefined));
        return chosen !== undefined && isOf(plain, chosen) ? chosen : undefined;
      };
      const formers = new Set([...this.#former.values()].map(({ tables: of }) => of[name]));
      const hashOf = new Map(own.map(({ key, hash }) => [key, hash]));
      const mayChange = (group: string, [first, ...others]: readonly { hash: string }[]): boolean =>
        others.every(({ hash }) => hash === first!.hash) && [...(this.#left.get(group) ?? [])].every((key) => !present.has(key) || hashOf.get(key) === first!.hash);
      const groups = groupsOf(own, {
        given: this.#given.get(plain) ?? NO_GROUPS, mayChange, formerOf,
        isTaken: (group, hash) => formers.has(group) || (this.#retired.get(group) ?? hash) !== hash,
        nameOf: (key, turn) => [plain, ...(turn > 1 ? [key] : []), ...(turn > 2 ? [String(turn - 1)] : [])].join('~'),
      });
      next.set(plain, groups);
      for (const [key, chosen] of groups.groups) {
        tables[key]![name] = chosen;
        if (chosen !== plain) split.add(chosen);
        if (chosen !== name) renamed.set(key, (renamed.get(key) ?? new Map<string, string>()).set(name, chosen));
      }
    }
    this.#next = next;
    this.#nextTables = tables;
    return namesOf(renamed, split);
  }
}

function plainName(name: string, account: string | undefined): string {
  return account === undefined ? name : `${name}~${account}`;
}

/** Whether a name was made from this plain one. */
function isOf(plain: string, chosen: string): boolean {
  return chosen === plain || chosen.startsWith(`${plain}~`);
}
