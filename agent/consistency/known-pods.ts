/** Names of this node's pods, kept across restarts: what is left of a pod that ended while no agent ran has a name. */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import type { PodRecord } from '../../common/lab-api.js';

/** uid, `name.namespace`, and the cookie of its network namespace, where that is known. */
type Line = [uid: string, name: string, netnsCookie: string];

export class KnownPods {
  readonly #file: string;
  readonly #former: readonly Line[];
  #current: readonly Line[] = [];
  #written = '';

  constructor(file: string) {
    this.#file = file;
    this.#former = read(file);
  }

  /** Writes them where they are others than before. */
  remember(records: readonly Pick<PodRecord, 'uid' | 'name' | 'namespace'>[], kernel: readonly { uid: string; netnsCookie: bigint }[]): void {
    const cookies = new Map(kernel.map(({ uid, netnsCookie }) => [uid, netnsCookie.toString()]));
    this.#current = records.map(({ uid, name, namespace }): Line => [uid, `${name}.${namespace}`, cookies.get(uid) ?? '']);
    const text = JSON.stringify(this.#current);
    if (records.length === 0 || text === this.#written) return;
    writeFileSync(`${this.#file}.new`, text, { mode: 0o600 });
    renameSync(`${this.#file}.new`, this.#file);
    this.#written = text;
  }

  /** @returns `name.namespace`, by either */
  nameOf({ pod, netnsCookie }: { pod?: string; netnsCookie?: bigint }): string | undefined {
    const cookie = netnsCookie?.toString();
    return [...this.#current, ...this.#former].find(([uid, , of]) => (pod !== undefined && uid === pod) || (cookie !== undefined && of === cookie))?.[1];
  }
}

function read(file: string): Line[] {
  try {
    const lines: unknown = JSON.parse(readFileSync(file, 'utf8'));
    return Array.isArray(lines) ? lines.filter((line): line is Line => Array.isArray(line) && line.length === 3 && line.every((part) => typeof part === 'string')) : [];
  } catch {
    // There was no agent, or another version's: nothing has a name.
    return [];
  }
}
