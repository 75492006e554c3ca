// bpf/http-parse.h as its driver reads it, in user space or in the kernel.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { buildDir } from '../../common/paths.js';
import type { Kind } from './corpus.js';

export type Where = 'user space' | 'kernel';
export const framings = ['none', 'length', 'chunked', 'until close'] as const;
/** enum http_trace. */
export const TRACE = { b3: 1, w3c: 2, b3Asked: 4, w3cAsked: 8, asked: 16, id: 32 } as const;
export const methods = ['', 'GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS'] as const;

export interface Question {
  /** `envoys-…`: as what Envoy wrote. */
  readonly kind: Kind | `envoys-${Kind}`;
  /** As latin1: one character a byte. */
  readonly head: string;
  /** A header to find. */
  readonly name?: string;
  /** To compare the target's beginning with, up to 64 bytes. */
  readonly prefix?: string;
}

export interface Reading {
  /** PLAIN, or the name of enum http_doubt without HTTP_; then nothing else is there. */
  readonly doubt: string;
  readonly end: number;
  readonly method: string;
  readonly framing: (typeof framings)[number];
  readonly close: boolean;
  /** Bits of TRACE. */
  readonly trace: number;
  readonly length: number;
  readonly status: number;
  readonly target: string;
  readonly path: string;
  readonly host: string;
  readonly same: boolean;
  readonly found: number;
  readonly value: string;
}

export const hex = (text: string): string => (text === '' ? '-' : Buffer.from(text, 'latin1').toString('hex'));
const text = (value: string | undefined): string => Buffer.from(value ?? '', 'hex').toString('latin1');

/** One line of key=value for each line of input. */
export async function ask(lines: readonly string[], where: Where): Promise<Map<string, string>[]> {
  const child = spawn(join(buildDir, 'http-parse'), where === 'kernel' ? ['--kernel'] : [], { stdio: ['pipe', 'pipe', 'inherit'] });
  const parts: Buffer[] = [];
  child.stdout.on('data', (part: Buffer) => parts.push(part));
  child.stdin.end(lines.map((line) => line + '\n').join(''));
  const [code] = (await once(child, 'close')) as [number | null];
  const answers = Buffer.concat(parts).toString().split('\n').slice(0, -1);
  if (code !== 0 || answers.length !== lines.length) throw new Error(`http-parse ended with ${code} after ${answers.length} of ${lines.length} answers`);
  return answers.map((line) => new Map(line.split(' ').map((part) => part.split('=', 2) as [string, string])));
}

export async function read(questions: readonly Question[], where: Where): Promise<Reading[]> {
  const answers = await ask(questions.map(({ kind, head, name, prefix }) => `${kind} ${hex(head)} ${hex(name ?? '')} ${hex(prefix ?? '')}`), where);
  return answers.map((got) => {
    const number = (key: string): number => Number(got.get(key) ?? 0);
    return {
      doubt: got.get('doubt') ?? '', end: number('end'), method: methods[number('method')] ?? '', framing: framings[number('framing')] ?? 'none',
      close: number('close') === 1, trace: number('trace'), length: number('length'), status: number('status'), target: text(got.get('target')), path: text(got.get('path')),
      host: text(got.get('host')).replace(/\0+$/, ''), same: number('same') === 1, found: number('found'), value: text(got.get('value')),
    };
  });
}

/** Bytes used of each message, and how it ended. */
export async function readBodies(bodies: readonly { framing: (typeof framings)[number]; length?: number; messages: readonly string[] }[]): Promise<{ used: number[]; doubt: string; done: boolean }[]> {
  const answers = await ask(bodies.map(({ framing, length, messages }) => `body ${framings.indexOf(framing)} ${length ?? 0} ${messages.map(hex).join(' ')}`), 'user space');
  return answers.map((got) => ({ used: (got.get('used') ?? '').split(',').filter(Boolean).map(Number), doubt: got.get('doubt') ?? '', done: got.get('done') === '1' }));
}
