// Whether Envoy reads what the parser took as the parser did: method, target, host, a header, and where it ends.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { buildDir } from '../../common/paths.js';
import type { Kind, Message } from './corpus.js';
import { EnvoyReader, PROBED } from './envoy-reader.js';
import { read, readBodies, type Reading } from './parser.js';

const BATCH = 256;

export interface Difference extends Message {
  readonly parser: object;
  readonly envoy: unknown;
}

export interface Tally {
  readonly compared: Record<Kind, number>;
  readonly differences: Difference[];
}

export const newTally = (): Tally => ({ compared: { request: 0, answer: 0, 'answer-to-head': 0 }, differences: [] });

/** Of messages that the parser takes, cut where it sees their end; the others are left out. */
export async function taken(messages: readonly Message[]): Promise<Message[]> {
  const readings = await read(messages.map(({ kind, text }) => ({ kind, head: text })), 'user space');
  const bodies = await readBodies(messages.map(({ text }, i) => ({ framing: readings[i]?.framing ?? 'none', length: readings[i]?.length ?? 0, messages: [text.slice(readings[i]?.end ?? 0)] })));
  return messages.flatMap(({ kind, text }, i) => {
    const body = bodies[i];
    if (readings[i]?.doubt !== 'PLAIN' || !body || body.doubt !== '' || !(body.done || readings[i]?.framing === 'until close')) return [];
    return [{ kind, text: text.slice(0, (readings[i]?.end ?? 0) + (body.used[0] ?? 0)) }];
  });
}

/** Whole messages that the parser takes. @param isAgain these are some to which Envoy gave no answer in time */
export async function compare(messages: readonly Message[], envoy: EnvoyReader, tally: Tally, isAgain = false): Promise<void> {
  const readings = await read(messages.map(({ kind, text }) => ({ kind, head: text, name: PROBED })), 'user space');
  const pairs = messages.map((message, i) => ({ message, reading: readings[i] as Reading }));
  const of = (request: boolean): typeof pairs => pairs.filter(({ message }) => (message.kind === 'request') === request);
  const silent: Message[] = [];
  const note = ({ message, reading }: (typeof pairs)[number], expected: object, got: unknown): void => {
    // On a machine that has no time for it Envoy is late: only what it does not answer twice counts.
    if (!isAgain && typeof got === 'string' && got.startsWith('no answer')) return void silent.push(message);
    tally.compared[message.kind]++;
    if (reading.doubt !== 'PLAIN' || JSON.stringify(expected) !== JSON.stringify(got)) tally.differences.push({ ...message, parser: { ...expected, doubt: reading.doubt }, envoy: got });
  };

  const requests = of(true);
  const seen = await envoy.readRequests(requests.map(({ message, reading }) => ({ text: message.text, close: reading.close })));
  requests.forEach((pair, i) => {
    const { message: { text }, reading } = pair;
    const got = seen[i];
    // Two of a header, or one far behind blanks, is not looked at by the kernel: only one that it found has to be the same.
    const looked = typeof got === 'object' && reading.found === 2 ? { found: got.found, value: got.value } : { found: reading.found, value: reading.value };
    const sent = /\r\nhost:[ \t]*([^\r]*?)[ \t]*\r\n/i.exec(text)?.[1] ?? '';
    note(pair, { method: reading.method, target: reading.target, host: sent.toLowerCase() === reading.host ? sent : reading.host, ...looked, body: bodyOf(pair.message, reading) }, got);
  });

  const answers = of(false);
  const passed = await envoy.readAnswers(answers.map(({ message, reading }) => ({
    text: message.text, toHead: message.kind === 'answer-to-head', ends: reading.close || reading.framing === 'until close', interim: reading.status < 200,
  })));
  answers.forEach((pair, i) => {
    const { message, reading } = pair;
    const interim = reading.status < 200;
    const expected = { status: interim ? 200 : reading.status, body: message.kind === 'answer-to-head' ? '' : interim ? 'final' : bodyOf(message, reading), reused: !(reading.close || reading.framing === 'until close') };
    note(pair, expected, passed[i]);
  });
  if (silent.length > 0) await compare(silent, envoy, tally, true);
}

/** The bytes that a reader of the whole message is given. */
function bodyOf({ text }: Message, { end, framing, length }: Reading): string {
  if (framing !== 'chunked') return framing === 'none' ? '' : text.slice(end, framing === 'length' ? end + length : undefined);
  const parts: string[] = [];
  for (let at = end; ;) {
    const line = text.indexOf('\r\n', at);
    const size = parseInt(text.slice(at, line), 16);
    if (!size) return parts.join('');
    parts.push(text.slice(line + 2, line + 2 + size));
    at = line + 2 + size + 2;
  }
}

/**
 * Runs build/http-fuzz with these arguments; what it writes goes to Envoy, at whose pace the fuzzer runs.
 * @param take is given a batch at a time @param options.hostile everything that has a head, not only what the parser takes
 */
export async function fuzz(args: readonly string[], folder: string, take: (batch: readonly Message[]) => Promise<void>, options: { profile?: string; hostile?: boolean } = {}): Promise<{ log: string; code: number | null }> {
  const env = { ...process.env, FUZZ_OUT: '3', LLVM_PROFILE_FILE: options.profile ?? join(folder, 'coverage.profraw'), ...(options.hostile ? { FUZZ_HOSTILE: '1' } : {}) };
  const child = spawn(join(buildDir, 'http-fuzz'), args, { stdio: ['ignore', 'ignore', 'pipe', 'pipe'], cwd: folder, env });
  const parts: Buffer[] = [];
  child.stderr?.on('data', (part: Buffer) => parts.push(part));
  const closed = once(child, 'close') as Promise<[number | null]>;
  let batch: Message[] = [];
  for await (const line of createInterface({ input: child.stdio[3] as Readable })) {
    const [kind, text = ''] = line.split(' ');
    batch.push({ kind: kind as Kind, text: Buffer.from(text, 'hex').toString('latin1') });
    if (batch.length < BATCH) continue;
    await take(batch);
    batch = [];
  }
  await take(batch);
  const [code] = await closed;
  return { log: Buffer.concat(parts).toString(), code };
}
