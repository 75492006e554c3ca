/** Commands that go on printing lines of JSON until they are ended: `underpass flows -f`, `underpass trace`. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { CLI } from './agent-harness.js';

export interface Following<T> {
  lines: T[];
  child: ChildProcess;
  /** @returns its exit code; null: it was killed */
  end(signal: NodeJS.Signals): Promise<number | null>;
}

export function following<T>(...args: string[]): Following<T> {
  const child = spawn(process.execPath, [CLI, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  const lines: T[] = [];
  let rest = '';
  child.stdout.on('data', (chunk: Buffer) => {
    const pieces = (rest + chunk.toString()).split('\n');
    rest = pieces.pop() ?? '';
    lines.push(...pieces.map((line) => JSON.parse(line) as T));
  });
  const end = async (signal: NodeJS.Signals): Promise<number | null> => {
    child.kill(signal);
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    return child.exitCode;
  };
  return { lines, child, end };
}
