/** Client of `underpass-launcher` (native/launcher/), which starts Envoy in a container of its own: one request a connection. */
import { connect } from 'node:net';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import type { ProcessId } from '../../common/process-id.js';

export interface LauncherStatus {
  /** `isCurrent`: executes the file that a new one would. */
  running: (ProcessId & { isCurrent: boolean })[];
  /** Lately; `how` is `exit 3` or `signal 9`. */
  ended: (ProcessId & { how: string })[];
}

/** This process may be at something else for many seconds, as loading programs into the kernel, and look at the time before it looks at the answer. */
const ANSWER_TIMEOUT_MS = 30_000;
const MAX_ANSWER_BYTES = 4_096;

/** @throws UnderpassError `UNDERPASS_ENVOY_LAUNCHER` when nobody answers, or not as expected */
export async function launcherStatus(socketPath: string, signal?: AbortSignal): Promise<LauncherStatus> {
  const lines = await ask(socketPath, ['status'], signal);
  const found: LauncherStatus = { running: [], ended: [] };
  for (const [kind, pid, startTime = '', ...rest] of lines.map((line) => line.split(' '))) {
    if (kind === 'running') found.running.push({ pid: Number(pid), startTime, isCurrent: rest[0] === 'current' });
    if (kind === 'ended') found.ended.push({ pid: Number(pid), startTime, how: rest.join(' ') });
  }
  return found;
}

/** Starts an Envoy with these arguments. @throws UnderpassError `UNDERPASS_ENVOY_LAUNCHER` naming what the launcher could not do */
export async function launch(socketPath: string, options: { cgroupPath?: string; adminSocketPath: string; args: readonly string[] }, signal?: AbortSignal): Promise<ProcessId> {
  const words = ['start', ...(options.cgroupPath === undefined ? [] : [`cgroup=${options.cgroupPath}`]), `admin=${options.adminSocketPath}`, '--', ...options.args];
  const [line = ''] = await ask(socketPath, words, signal);
  const match = /^started (\d+) (\d+)$/.exec(line);
  if (!match) throw new UnderpassError('UNDERPASS_ENVOY_LAUNCHER', `asking the launcher ${socketPath} for an Envoy: unexpected answer "${line}"`);
  return { pid: Number(match[1]), startTime: match[2] as string };
}

class Unanswered extends UnderpassError {}

/** Whether a launcher said nothing to a question, rather than no. */
export function isUnanswered(error: unknown): boolean {
  return error instanceof Unanswered;
}

function ask(socketPath: string, words: readonly string[], signal?: AbortSignal): Promise<string[]> {
  const failure = (what: string, cause?: unknown, Kind: typeof UnderpassError = Unanswered): UnderpassError =>
    new Kind('UNDERPASS_ENVOY_LAUNCHER', `asking the launcher ${socketPath} (${words[0]}): ${what}`, { ...(cause === undefined ? {} : { cause }), hint: 'underpass-launcher has to run, as root or as the agent\'s user' });
  return new Promise((resolve, reject) => {
    let answer = '';
    const socket = connect({ path: socketPath, ...(signal ? { signal } : {}) });
    socket.setTimeout(ANSWER_TIMEOUT_MS, () => socket.destroy(failure(`no answer within ${ANSWER_TIMEOUT_MS} ms`)));
    socket.setEncoding('utf8');
    socket.on('error', (error) => reject(error instanceof UnderpassError ? error : failure(errorMessage(error), error)));
    socket.on('data', (text: string) => {
      answer += text;
      if (answer.length > MAX_ANSWER_BYTES) socket.destroy(failure('its answer is too long'));
    });
    socket.on('close', () => {
      const lines = answer.split('\n').filter((line) => line !== '');
      if (lines.length === 0) reject(failure('it closed without an answer'));
      else if (lines[0]?.startsWith('error: ')) reject(failure(lines[0].slice('error: '.length), undefined, UnderpassError));
      else resolve(lines);
    });
    socket.end(words.map((word) => `${word}\0`).join(''));
  });
}
