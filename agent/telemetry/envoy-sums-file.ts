/** Sums of Envoy's part of the metrics, and what it had counted when it was last read, on disk: one JSON value a line. */
import { open, readFile, rename, rm } from 'node:fs/promises';
import { UnderpassError, errorCode } from '../../common/errors.js';
import type { Counted, EnvoySum, Labelled } from './envoy-sums.js';

export interface SavedSums<T> {
  envoy: string | undefined;
  lost: bigint;
  keys: { key: string; labels: readonly Labelled[] | undefined; last: T }[];
  sums: Omit<EnvoySum<T>, 'hash'>[];
}

const VERSION = 1;
/** Written at a time. */
const LINES = 128;

interface KeyLine { key: string; labels?: readonly Labelled[]; last: string[] }
interface SumLine extends Labelled { totals: string[] }

export class EnvoySumsFile<T> {
  constructor(readonly path: string, readonly counted: Pick<Counted<T>, 'pack' | 'unpack'>) {}

  /**
   * Undefined: there is none.
   * @throws UnderpassError `UNDERPASS_REQUEST_SUMS` with the line that can't be read
   */
  async load(): Promise<SavedSums<T> | undefined> {
    let text: string;
    try {
      text = await readFile(this.path, 'utf8');
    } catch (error) {
      if (errorCode(error) === 'ENOENT') return undefined;
      throw error;
    }
    const saved: SavedSums<T> = { envoy: undefined, lost: 0n, keys: [], sums: [] };
    let number = 0;
    try {
      for (const line of text.split('\n')) {
        number++;
        if (line === '') continue;
        const value = JSON.parse(line) as KeyLine | SumLine | { version: number; envoy?: string; lost: string };
        if ('version' in value) {
          if (value.version !== VERSION) throw new Error(`version ${value.version}`);
          [saved.envoy, saved.lost] = [value.envoy, BigInt(value.lost)];
        } else if ('key' in value) saved.keys.push({ key: value.key, labels: value.labels, last: this.counted.unpack(value.last) });
        else saved.sums.push({ reporter: value.reporter, labels: value.labels, totals: this.counted.unpack(value.totals) });
      }
    } catch (cause) {
      throw new UnderpassError('UNDERPASS_REQUEST_SUMS', `reading ${this.path}, line ${number}: ${String(cause)}`, { cause });
    }
    return saved;
  }

  /** In place of the one before, as a whole. */
  async save({ envoy, lost, keys, sums }: SavedSums<T>): Promise<void> {
    const file = await open(`${this.path}.new`, 'w', 0o600);
    try {
      await file.write(`${JSON.stringify({ version: VERSION, envoy, lost: `${lost}` })}\n`);
      const { pack } = this.counted;
      const lines = function* (): Generator<string> {
        for (const { key, labels, last } of keys) yield JSON.stringify({ key, labels, last: pack(last) });
        for (const { reporter, labels, totals } of sums) yield JSON.stringify({ reporter, labels, totals: pack(totals) });
      };
      let some: string[] = [];
      for (const line of lines()) {
        if (some.push(line) < LINES) continue;
        await file.write(`${some.join('\n')}\n`);
        some = [];
      }
      if (some.length > 0) await file.write(`${some.join('\n')}\n`);
    } catch (error) {
      await rm(`${this.path}.new`, { force: true });
      throw error;
    } finally {
      await file.close();
    }
    await rename(`${this.path}.new`, this.path);
  }
}
