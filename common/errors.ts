/**
 * Errors that reach a user carry a stable code (`UNDERPASS_…`), say which action failed and, where known, why that is
 * likely. The CLI prints them without a stack trace.
 */
export class UnderpassError extends Error {
  readonly code: string;
  /** What the user can do, one line; printed below the message. */
  readonly hint: string | undefined;

  constructor(code: `UNDERPASS_${string}`, message: string, options: { cause?: unknown; hint?: string } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'UnderpassError';
    this.code = code;
    this.hint = options.hint;
  }
}

/** The message of anything that was thrown. */
export function errorMessage(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The errno name (`ENOENT`, …) or other `code` of anything that was thrown, if it has one. */
export function errorCode(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' ? code : undefined;
}
