import { pino, type Logger } from 'pino';
import { LogTail } from './log-tail.js';

export type { Logger };

let tail: LogTail | undefined;

/** From now on the newest lines are kept. */
export function keepLogTail(maxBytes: number): LogTail {
  return (tail ??= new LogTail(maxBytes));
}

/** The process's one root logger: JSON lines to stdout, level from UNDERPASS_LOG (default `info`). */
export const rootLogger: Logger = pino({
  level: process.env['UNDERPASS_LOG'] ?? 'info',
  base: undefined,
  timestamp: pino.stdTimeFunctions.isoTime,
  formatters: { level: (label) => ({ level: label }) },
  hooks: {
    streamWrite: (line) => {
      tail?.add(line);
      return line;
    },
  },
});

/** A child logger that names its component, e.g. `agent.xds`. */
export function logger(component: string): Logger {
  return rootLogger.child({ component });
}
