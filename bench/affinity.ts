/** Holds running processes, with all their threads, on one CPU, and lets them go again. */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { run } from '../common/process.js';

/** CPUs that this process may use, e.g. `0-1`, as taskset(1) reads it. */
export function allowedCpus(status = readFileSync('/proc/self/status', 'utf8')): string {
  return /^Cpus_allowed_list:\s*(\S+)$/m.exec(status)?.[1] ?? `0-${availableParallelism() - 1}`;
}

/** The last CPU of a list: the first one takes most of a machine's interrupts. */
export function lastCpu(list: string): number {
  return Number(list.split(/[,-]/).at(-1));
}

/** A process that ended meanwhile is no failure. */
export async function setAffinity(pids: readonly number[], cpus: string): Promise<void> {
  for (const pid of pids) await run('taskset', ['--all-tasks', '--cpu-list', '--pid', cpus, String(pid)], { okCodes: [0, 1], timeoutMs: 10_000 });
}
