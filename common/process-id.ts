/** A process id alone may have been given to another program since; with the start time it names one process for good. */
import { readFileSync } from 'node:fs';

export interface ProcessId {
  pid: number;
  /** Clock ticks after boot: field 22 of /proc/PID/stat. */
  startTime: string;
}

/** The start time of a process, or undefined when there is none of this id. */
export function processStartTime(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The command's name, in parentheses, may hold spaces and parentheses itself: count from the last one.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' ? undefined : fields[19];
  } catch {
    return undefined;
  }
}

export function isRunning(id: ProcessId): boolean {
  return processStartTime(id.pid) === id.startTime;
}
