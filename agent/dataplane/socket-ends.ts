/** A process in a pod's namespace and cgroup that holds sockets by name and does with them what it is told: native/probe/socket-ends.c. */
import { spawn, type ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { UnderpassError } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import { buildDir } from '../../common/paths.js';

export interface EndsAnswer {
  /** What was received, a byte a character. */
  data?: string;
  /** The end of the stream was met. */
  end?: true;
  timeout?: true;
  /** What the socket said, as strerror() has it. */
  error?: string;
  /** Of a new socket: its own; of an accepted one: its peer's. */
  port?: number;
}

interface Waiting {
  command: string;
  resolve(answer: EndsAnswer): void;
  reject(error: Error): void;
}

export class SocketEnds implements Closable {
  readonly #child: ChildProcess;
  readonly #waiting: Waiting[] = [];
  readonly #ended: Promise<void>;
  #input: Buffer = Buffer.alloc(0);

  constructor({ netns, cgroup }: { netns: string; cgroup: string }) {
    this.#child = spawn(join(buildDir, 'underpass-exec'), ['--cgroup', cgroup, '--netns', netns, '--die-with-parent', '--', join(buildDir, 'socket-ends')], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#child.stdout!.on('data', (chunk: Buffer) => this.#take(chunk));
    // What it was told last is answered by its end.
    this.#child.stdin!.on('error', () => undefined);
    this.#ended = new Promise((resolve) => {
      this.#child.once('error', (error) => {
        this.#fail(error.message);
        resolve();
      });
      this.#child.once('close', (code, signal) => {
        this.#fail(`it ended with ${code ?? signal ?? ''}`);
        resolve();
      });
    });
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /**
   * @param args as socket-ends has them; undefined and null: a word that is left out; of `send`: the name, a text of bytes, and whether more is to come
   * @returns what the socket says, errors too
   * @throws UnderpassError `UNDERPASS_SOCKET_ENDS` when the command itself is wrong, or the process has ended
   */
  do(command: string, ...args: readonly unknown[]): Promise<EndsAnswer> {
    const data = command === 'send' ? Buffer.from(String(args[1]), 'latin1') : Buffer.alloc(0);
    const words = command === 'send' ? [args[0], args[2] ? 'more' : null, data.length] : args.flat();
    return new Promise((resolve, reject) => {
      this.#waiting.push({ command: `${command} ${words.join(' ')}`, resolve, reject });
      this.#child.stdin!.write(Buffer.concat([Buffer.from(`${[command, ...words.map((word) => word ?? '-')].join(' ')}\n`), data]));
      if (this.#child.exitCode !== null || this.#child.signalCode !== null) this.#fail('it has ended');
    });
  }

  async close(): Promise<void> {
    this.#child.stdin!.end();
    await this.#ended;
  }

  #take(chunk: Buffer): void {
    this.#input = this.#input.length === 0 ? chunk : Buffer.concat([this.#input, chunk]);
    for (let end = this.#input.indexOf('\n'); end >= 0; end = this.#input.indexOf('\n')) {
      const fields = Object.fromEntries(this.#input.toString('latin1', 0, end).split('\t').map((field) => [field.slice(0, field.indexOf('=')), field.slice(field.indexOf('=') + 1)])) as Partial<Record<'data' | 'end' | 'timeout' | 'error' | 'port' | 'failure', string>>;
      const rest = end + 1 + Number(fields.data ?? 0);
      if (this.#input.length < rest) return;
      const data = this.#input.toString('latin1', end + 1, rest);
      this.#input = this.#input.subarray(rest);
      const { command, resolve, reject } = this.#waiting.shift()!;
      if (fields.failure !== undefined) reject(failure(command, fields.failure));
      else resolve({ ...(fields.data === undefined ? {} : { data }), ...(fields.end ? { end: true } : {}), ...(fields.timeout ? { timeout: true } : {}), ...(fields.error === undefined ? {} : { error: fields.error }), ...(fields.port === undefined ? {} : { port: Number(fields.port) }) });
    }
  }

  #fail(reason: string): void {
    for (const { command, reject } of this.#waiting.splice(0)) reject(failure(command, reason));
  }
}

function failure(command: string, reason: string): UnderpassError {
  return new UnderpassError('UNDERPASS_SOCKET_ENDS', `telling socket-ends "${command}": ${reason}`);
}
