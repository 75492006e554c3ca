/** The one place that starts other programs: never through a shell, output bounded, failures named by their command. */
import { spawn, type SpawnOptions } from 'node:child_process';
import { UnderpassError } from './errors.js';

export interface RunOptions {
  input?: string | Uint8Array;
  env?: NodeJS.ProcessEnv;
  cwd?: string;
  timeoutMs?: number;
  signal?: AbortSignal;
  /** Called once, when the program has written something; the program's input ends when this has. A failure of it ends the program, and is thrown. */
  onOutput?: () => Promise<void>;
  /** Exit codes that are not failures; default [0]. */
  okCodes?: readonly number[];
  maxOutputBytes?: number;
}

export interface RunResult {
  code: number;
  stdout: string;
  stderr: string;
}

/**
 * Runs a program to its end.
 * @throws UnderpassError `UNDERPASS_COMMAND_FAILED` with the command, its exit code and the last lines of its stderr.
 */
export async function run(command: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const spawnOptions: SpawnOptions = { stdio: ['pipe', 'pipe', 'pipe'] };
  if (options.env) spawnOptions.env = options.env;
  if (options.cwd) spawnOptions.cwd = options.cwd;
  if (options.timeoutMs) spawnOptions.timeout = options.timeoutMs;
  if (options.signal) spawnOptions.signal = options.signal;
  const child = spawn(command, args, spawnOptions);
  const limit = options.maxOutputBytes ?? 64 << 20;
  const collect = (stream: NodeJS.ReadableStream | null): { text: () => string } => {
    const chunks: Buffer[] = [];
    let size = 0;
    stream?.on('data', (chunk: Buffer) => {
      if (size < limit) chunks.push(chunk);
      size += chunk.length;
    });
    return { text: () => Buffer.concat(chunks).toString('utf8') };
  };
  const out = collect(child.stdout);
  const err = collect(child.stderr);
  child.stdin?.on('error', () => undefined); // a program that exits without reading its input is not our failure
  let failure: unknown;
  const { onOutput } = options;
  if (onOutput && child.stdout) {
    child.stdin?.write(options.input ?? '');
    child.stdout.once('data', () => {
      onOutput().then(
        () => child.stdin?.end(),
        (error: unknown) => {
          failure = error;
          child.kill('SIGKILL');
        },
      );
    });
  } else child.stdin?.end(options.input ?? '');
  const code = await new Promise<number>((resolve, reject) => {
    child.once('error', (cause) =>
      reject(new UnderpassError('UNDERPASS_COMMAND_FAILED', `running ${command}: ${cause.message}`, { cause })),
    );
    child.once('close', (exit, killedBy) => resolve(exit ?? (killedBy ? 128 : 1)));
  });
  if (failure !== undefined) throw failure;
  const result = { code, stdout: out.text(), stderr: err.text() };
  if (!(options.okCodes ?? [0]).includes(code)) {
    const tail = result.stderr.trim().split('\n').slice(-5).join('\n');
    throw new UnderpassError('UNDERPASS_COMMAND_FAILED', `${[command, ...args].join(' ')}: exit ${code}: ${tail}`);
  }
  return result;
}
