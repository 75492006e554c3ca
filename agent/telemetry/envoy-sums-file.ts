/** Sums of Envoy's part of the request metrics, and what it had counted when it was last read, on disk: one JSON value a line. */
import { open, readFile, rename, rm } from 'node:fs/promises';
import { UnderpassError, errorCode } from '../../common/errors.js';
import type { HttpTotals } from '../dataplane/kernel-http-totals.js';
import type { Reporter } from './envoy-requests.js';
import type { FlowLabels } from './flow-labels.js';
import { HTTP_BOUNDS } from './http-bounds.js';

export interface SavedSums {
  envoy: string | undefined;
  lost: bigint;
  keys: { key: string; labels: readonly { reporter: Reporter; labels: FlowLabels }[] | undefined; last: HttpTotals }[];
  sums: { reporter: Reporter; labels: FlowLabels; totals: HttpTotals }[];
}

const VERSION = 1;
/** Written at a time. */
const LINES = 128;
const BUCKETS = HTTP_BOUNDS.length + 1;

interface KeyLine { key: string; labels?: SavedSums['keys'][number]['labels']; last: string[] }
interface SumLine { reporter: Reporter; labels: FlowLabels; totals: string[] }

export class RequestSumsFile {
  constructor(readonly path: string) {}

  /**
   * Undefined: there is none.
   * @throws UnderpassError `UNDERPASS_REQUEST_SUMS` with the line that can't be read
   */
  async load(): Promise<SavedSums | undefined> {
    let text: string;
    try {
      text = await readFile(this.path, 'utf8');
    } catch (error) {
      if (errorCode(error) === 'ENOENT') return undefined;
      throw error;
    }
    const saved: SavedSums = { envoy: undefined, lost: 0n, keys: [], sums: [] };
    let number = 0;
    try {
      for (const line of text.split('\n')) {
        number++;
        if (line === '') continue;
        const value = JSON.parse(line) as KeyLine | SumLine | { version: number; envoy?: string; lost: string };
        if ('version' in value) {
          if (value.version !== VERSION) throw new Error(`version ${value.version}`);
          [saved.envoy, saved.lost] = [value.envoy, BigInt(value.lost)];
        } else if ('key' in value) saved.keys.push({ key: value.key, labels: value.labels, last: unpacked(value.last) });
        else saved.sums.push({ reporter: value.reporter, labels: value.labels, totals: unpacked(value.totals) });
      }
    } catch (cause) {
      throw new UnderpassError('UNDERPASS_REQUEST_SUMS', `reading ${this.path}, line ${number}: ${String(cause)}`, { cause });
    }
    return saved;
  }

  /** In place of the one before, as a whole. */
  async save({ envoy, lost, keys, sums }: SavedSums): Promise<void> {
    const file = await open(`${this.path}.new`, 'w', 0o600);
    try {
      await file.write(`${JSON.stringify({ version: VERSION, envoy, lost: `${lost}` })}\n`);
      const lines = function* (): Generator<string> {
        for (const { key, labels, last } of keys) yield JSON.stringify({ key, labels, last: packed(last) });
        for (const { reporter, labels, totals } of sums) yield JSON.stringify({ reporter, labels, totals: packed(totals) });
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

function packed({ requests, requestBytes, answerBytes, durationUs, duration, request, answer }: HttpTotals): string[] {
  return [requests, requestBytes, answerBytes, durationUs, ...duration, ...request, ...answer].map(String);
}

function unpacked(values: readonly string[]): HttpTotals {
  if (values.length !== 4 + 3 * BUCKETS) throw new Error(`${values.length} numbers instead of ${4 + 3 * BUCKETS}`);
  const [requests = 0n, requestBytes = 0n, answerBytes = 0n, durationUs = 0n, ...buckets] = values.map(BigInt);
  return { requests, requestBytes, answerBytes, durationUs, duration: buckets.slice(0, BUCKETS), request: buckets.slice(BUCKETS, 2 * BUCKETS), answer: buckets.slice(2 * BUCKETS) };
}
