/** What the exit code of every command means; docs/reference/exit-codes.md has the same, which a test compares. */
import { UnderpassError } from '../common/errors.js';

export const EXIT = {
  ok: 0,
  failed: 1,
  usage: 2,
  unreachable: 3,
  forbidden: 4,
  notFound: 5,
  timedOut: 6,
  interrupted: 130,
} as const;

/** For people, in the order of the codes. */
export const EXIT_MEANINGS: Readonly<Record<keyof typeof EXIT, string>> = {
  ok: 'it did what was asked; also when the reader of its output went away early, as `head` does',
  failed: 'it failed, or found what it was asked to look for: errors of `validate` and `analyze`, a namespace that is held',
  usage: 'an unknown command, option or argument; nothing was done',
  unreachable: 'nobody answers: no agent runs, none in the cluster, or the API server is away',
  forbidden: 'not permitted: the socket is root\'s, or the API server refused (401, 403)',
  notFound: 'what was named is not there, or the name fits several',
  timedOut: '--timeout passed before it was so',
  interrupted: 'ended by SIGINT; what had been begun was undone. A command that only reads ends by the signal itself, which a shell shows as 130 too',
};

const BY_CODE: Readonly<Record<string, number>> = {
  UNDERPASS_AGENT_NOT_RUNNING: EXIT.unreachable,
  UNDERPASS_NO_AGENTS: EXIT.unreachable,
  UNDERPASS_API_SERVER_UNREACHABLE: EXIT.unreachable,
  UNDERPASS_NO_PERMISSION: EXIT.forbidden,
  UNDERPASS_UNKNOWN_POD: EXIT.notFound,
  UNDERPASS_AMBIGUOUS_POD: EXIT.notFound,
  UNDERPASS_UNKNOWN_SERVICE: EXIT.notFound,
  UNDERPASS_AMBIGUOUS_SERVICE: EXIT.notFound,
  UNDERPASS_NO_PROXY_CONFIG: EXIT.notFound,
  UNDERPASS_UNKNOWN_HOST: EXIT.notFound,
  UNDERPASS_UNKNOWN_OBJECT: EXIT.notFound,
  UNDERPASS_NO_ADDON: EXIT.notFound,
  UNDERPASS_TIMED_OUT: EXIT.timedOut,
};

/** @returns the exit code for an error that reached the top of the CLI */
export function exitCodeOf(error: unknown): number {
  const status = (error as { status?: unknown } | null)?.status;
  if (error instanceof UnderpassError && (status === 401 || status === 403)) return EXIT.forbidden;
  return error instanceof UnderpassError ? (BY_CODE[error.code] ?? EXIT.failed) : EXIT.failed;
}
