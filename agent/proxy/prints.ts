/** How Envoy printed what it has, by name and version; kept in a file across restarts of the agent while Envoy goes on. */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { VERSION } from '../../common/version.js';
import { hashBytes } from '../xds/resource-type.js';

interface Known {
  version: string;
  print: string;
  isSettled: boolean;
}

export class Prints {
  readonly #known = new Map<string, Known>();
  #former: ReadonlyMap<string, string> | undefined;
  #changes = 0;

  /** Counts up. */
  get changes(): number {
    return this.#changes;
  }

  /** @param settles what is seen once may be on its way yet: it counts when it was seen twice */
  isAsBefore(key: string, version: string, print: string, settles = false): boolean {
    const known = this.#of(key, version);
    if (known?.version === version && known.print === print) {
      if (!known.isSettled) this.#changes++;
      known.isSettled = true;
    } else if (known?.version === version && known.isSettled) return false;
    else this.#set(key, { version, print, isSettled: !settles });
    return true;
  }

  has(key: string, version: string): boolean {
    return this.#of(key, version)?.version === version;
  }

  printOf(key: string): string | undefined {
    return this.#known.get(key)?.print;
  }

  note(key: string, version: string, print: string): void {
    const known = this.#known.get(key);
    if (known?.version !== version || known.print !== print || !known.isSettled) this.#set(key, { version, print, isSettled: true });
  }

  forget(key: string): void {
    if (this.#known.delete(key)) this.#changes++;
  }

  keep(prefix: string, isWanted: (name: string) => boolean): void {
    for (const key of this.#known.keys()) if (key.startsWith(prefix) && !isWanted(key.slice(prefix.length))) this.forget(key);
  }

  /** What the agent before this one has seen counts until something else was, or `letGo`. */
  recall(former: ReadonlyMap<string, string>): void {
    this.#former = former;
  }

  letGo(): void {
    this.#former = undefined;
  }

  *settled(): Generator<[id: string, print: string]> {
    for (const [key, { version, print, isSettled }] of this.#known) if (isSettled) yield [idOf(key, version), print];
  }

  #set(key: string, known: Known): void {
    this.#known.set(key, known);
    this.#changes++;
  }

  #of(key: string, version: string): Known | undefined {
    const known = this.#known.get(key);
    if (known || !this.#former) return known;
    const print = this.#former.get(idOf(key, version));
    if (print === undefined) return undefined;
    const former = { version, print, isSettled: true };
    this.#set(key, former);
    return former;
  }
}

const idOf = (key: string, version: string): string => hashBytes(`${key} ${version}`).slice(0, 16);

/** A line for each, behind one that says whose they are. Another version of the agent may make other hashes. */
const headOf = (envoy: string): string => `${VERSION} ${envoy}`;

/** @param envoy the process that printed them */
export function writePrints(file: string, envoy: string, parts: Readonly<Record<string, Prints>>): void {
  const lines = [headOf(envoy)];
  for (const [name, prints] of Object.entries(parts)) for (const [id, print] of prints.settled()) lines.push(`${name} ${id} ${print}`);
  writeFileSync(`${file}.new`, lines.join('\n'), { mode: 0o600 });
  renameSync(`${file}.new`, file);
}

/** Gives them what was written of this Envoy; nothing where there is no such file. */
export function recallPrints(file: string, envoy: string, parts: Readonly<Record<string, Prints>>): void {
  let lines: string[];
  try {
    lines = readFileSync(file, 'utf8').split('\n');
  } catch {
    return;
  }
  if (lines[0] !== headOf(envoy)) return;
  const former = new Map(Object.keys(parts).map((name) => [name, new Map<string, string>()]));
  for (const line of lines.slice(1)) {
    const [name = '', id, print] = line.split(' ');
    if (id !== undefined && print !== undefined) former.get(name)?.set(id, print);
  }
  for (const [name, prints] of Object.entries(parts)) prints.recall(former.get(name)!);
}
