import { pino, type Logger } from 'pino';

export type { Logger };

/** The process's one root logger: JSON lines to stdout, level from UNDERPASS_LOG (default `info`). */
export const rootLogger: Logger = pino({
  level: process.env['UNDERPASS_LOG'] ?? 'info',
  base: undefined,
  timestamp: pino.stdTimeFunctions.isoTime,
  formatters: { level: (label) => ({ level: label }) },
});

/** A child logger that names its component, e.g. `agent.xds`. */
export function logger(component: string): Logger {
  return rootLogger.child({ component });
}
