/** Requests that are each like no other, and what their answers have to be; for the programs of programs.test.ts and of the soak. */
import { createHash } from 'node:crypto';

/** What a program is given, as a list in JSON in a file. */
export interface Planned {
  n: number;
  method: 'GET' | 'HEAD' | 'POST';
  /** With its query, which says what the answer is to be. */
  path: string;
  /** Bytes; see `bodyOf`. */
  body: number;
  /** The body comes in chunks. */
  chunked: boolean;
}

/** What a program says of each, a line of JSON: what it was answered, or what became of it instead. */
export type Reported = [n: number, status: number, number: string, path: string, method: string, body: string, via: string, bytes: number, hash: string] | [n: number, error: string];

/** What a server does, beside saying what it was asked. */
export type Kind = 'echo' | 'nginx';

const repeated = (unit: string, bytes: number): string => unit.repeat(Math.ceil(bytes / unit.length)).slice(0, bytes);
export const bodyOf = (n: number, bytes: number): string => repeated(`body ${n} `, bytes);
export const answerOf = (n: string, path: string, bytes: number): string => repeated(`${n} ${path} `, bytes);
/** What nginx has in the file that it sends; the first word is replaced by the request's number where it sends chunks. */
export const fileOf = (bytes: number): string => repeated('NUMBER is what comes first, and this is a file. ', bytes);
export const hashOf = (text: string | Uint8Array): string => createHash('sha256').update(text).digest('hex').slice(0, 16);

/** Most are small, as requests are. */
const BODIES = [0, 1, 300, 2_000, 300, 9_000, 40_000, 300, 100_000];
export const ANSWERS = [0, 1, 200, 1_400, 200, 5_000, 30_000, 200, 120_000, 1_400, 300_000, 200];

/** @param first number of the first; different from those of all other plans */
export function planOf(first: number, count: number): Planned[] {
  return Array.from({ length: count }, (_, i) => {
    const n = first + i;
    const method = i % 11 === 5 ? 'HEAD' : i % 3 === 1 ? 'POST' : 'GET';
    const status = i % 17 === 9 ? 204 : i % 19 === 12 && method === 'GET' ? 304 : 200;
    const path = `/r/${n}?size=${ANSWERS[i % ANSWERS.length]}&answer=${i % 5 === 2 ? 'chunked' : 'length'}&status=${status}`;
    return { n, method, path, body: method === 'POST' ? BODIES[(i / 3 | 0) % BODIES.length]! : 0, chunked: method === 'POST' && i % 10 === 7 };
  });
}

/** Undefined: as it has to be. */
export function wrongIn({ n, method, path, body }: Planned, kind: Kind, reported: Reported): string | undefined {
  if (reported.length === 2) return `request ${n}: ${reported[1]}`;
  const query = new URLSearchParams(path.split('?')[1]);
  const [bytes, status] = [Number(query.get('size')), Number(query.get('status'))];
  const text = method === 'HEAD' || status !== 200 ? ''
    : kind === 'echo' ? answerOf(String(n), path, bytes)
      : method === 'POST' ? `posted ${n} ${path}` : query.get('answer') === 'chunked' ? fileOf(bytes).replace(/^NUMBER/, String(n)) : fileOf(bytes);
  const asked = kind === 'echo' ? `${body} ${hashOf(bodyOf(n, body))}` : '';
  const expected = [n, status, String(n), path, method, asked, text.length, hashOf(text)];
  const got = [...reported.slice(0, 6), ...reported.slice(7)];
  return JSON.stringify(got) === JSON.stringify(expected) ? undefined : `request ${n}: ${JSON.stringify(got)}, not ${JSON.stringify(expected)}`;
}

/** Whether it came without Envoy, whose header its server did not see. */
export const wasFast = (reported: Reported): boolean => reported.length !== 2 && reported[6] === 'fast';

/** Whether the kernel may do it at all. */
export const mayBeFast = ({ chunked, body }: Planned): boolean => !chunked && body <= 65_536;
