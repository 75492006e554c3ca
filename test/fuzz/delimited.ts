// Whether the kernel's readers of what Envoy writes (they take more than those of clients and servers) end each message where
// Envoy does. What they doubt they leave to Envoy, with all that comes behind it on the connection.
import type { Kind, Message } from './corpus.js';
import type { EnvoyRelay, Written } from './envoy-relay.js';
import { read, readBodies } from './parser.js';

export interface Misread extends Message {
  readonly ends: readonly number[];
  readonly read: readonly number[];
}

/** By what the hostile message was: connections on which Envoy wrote, messages that were ended as Envoy did, and doubts. */
export interface Delimited {
  readonly by: Record<Kind, { written: number; ended: number; doubted: number }>;
  readonly misread: Misread[];
}

export const nothingDelimited = (): Delimited => {
  const none = (): Delimited['by'][Kind] => ({ written: 0, ended: 0, doubted: 0 });
  return { by: { request: none(), answer: none(), 'answer-to-head': none() }, misread: [] };
};

/** Passes the messages on and compares. */
export async function passOn(messages: readonly Message[], relay: EnvoyRelay, tally: Delimited): Promise<void> {
  const written = [...await relay.passRequests(messages.filter(({ kind }) => kind === 'request')), ...await relay.passAnswers(messages.filter(({ kind }) => kind !== 'request'))].filter(({ text }) => text !== '');
  for (const [i, { ends: got, doubted }] of (await split(written)).entries()) {
    const { kind, text, ends } = written[i]!;
    const sum = tally.by[kind];
    sum.written++;
    sum.ended += got.length;
    if (doubted) sum.doubted++;
    // The last message may be one that Envoy broke off.
    const expected = got.every((end, at) => end === ends[at]);
    if (!expected) tally.misread.push({ kind, text, ends, read: got });
  }
}

/** Where the readers see ends: all requests, or the first final answer. */
async function split(streams: readonly Written[]): Promise<{ ends: number[]; doubted: boolean }[]> {
  const results = streams.map(() => ({ ends: [] as number[], doubted: false }));
  let open = streams.map((stream, index) => ({ stream, index, at: 0 }));
  while (open.length > 0) {
    const heads = await read(open.map(({ stream: { kind, text }, at }) => ({ kind: `envoys-${kind}` as const, head: text.slice(at) })), 'user space');
    const bodies = await readBodies(open.map(({ stream: { text }, at }, i) => {
      const { doubt, framing, length, end } = heads[i]!;
      return doubt === 'PLAIN' ? { framing, length, messages: pieces(text.slice(at + end), at + i) } : { framing: 'none', messages: [] };
    }));
    open = open.flatMap((item, i) => {
      const [{ doubt, framing, end, status }, body, result] = [heads[i]!, bodies[i]!, results[item.index]!];
      if (doubt !== 'PLAIN' || body.doubt !== '' || framing === 'until close') {
        result.doubted = true;
        return [];
      }
      const next = item.at + end + body.used.reduce((sum, used) => sum + used, 0);
      if (!body.done) return [];
      const isAnswer = item.stream.kind !== 'request';
      if (!isAnswer || status >= 200) result.ends.push(next);
      return (isAnswer && status >= 200) || next >= item.stream.text.length ? [] : [{ ...item, at: next }];
    });
  }
  return results;
}

/** As messages of different lengths. */
function pieces(text: string, seed: number): string[] {
  const parts: string[] = [];
  for (let at = 0, turn = seed; at < text.length; turn++) {
    const bytes = 1 + (turn * 7919) % 61;
    parts.push(text.slice(at, at + bytes));
    at += bytes;
  }
  return parts;
}
