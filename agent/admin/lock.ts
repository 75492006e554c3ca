/** One agent an instance: its lock file says who holds it, and outlives a crash without blocking the next start. */
import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError, errorCode } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import { isRunning, processStartTime, type ProcessId } from '../../common/process-id.js';

export interface InstanceHolder extends ProcessId {
  /** What holds it, e.g. `underpass node`. */
  purpose: string;
  since: string;
}

const LOCK_FILE = 'agent.lock';

/** Who holds the instance of this folder, if that process is alive. */
export function instanceHolder(folder: string): InstanceHolder | undefined {
  const holder = read(join(folder, LOCK_FILE));
  return holder && isRunning(holder) ? holder : undefined;
}

export class InstanceLock implements Closable {
  private constructor(readonly path: string, readonly holder: InstanceHolder) {}

  /** @throws UnderpassError `UNDERPASS_AGENT_HELD` naming the holder's pid and start */
  static acquire(folder: string, instance: string, purpose: string): InstanceLock {
    const startTime = processStartTime(process.pid);
    if (startTime === undefined) throw new Error(`reading the start time of process ${process.pid} from /proc`);
    const holder: InstanceHolder = { pid: process.pid, startTime, purpose, since: new Date().toISOString() };
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const path = join(folder, LOCK_FILE);
    const mine = `${path}.${process.pid}`;
    try {
      for (let attempt = 0; attempt < 5; attempt++) {
        writeFileSync(mine, JSON.stringify(holder), { mode: 0o600 });
        try {
          linkSync(mine, path); // fails when there is one, so that of two starts at once only one wins
          return new InstanceLock(path, holder);
        } catch (error) {
          if (errorCode(error) !== 'EEXIST') throw error;
        }
        const other = instanceHolder(folder);
        if (other) {
          throw new UnderpassError('UNDERPASS_AGENT_HELD', `starting the agent: instance ${instance} is held by process ${other.pid} (${other.purpose}) since ${other.since}`, {
            hint: `end process ${other.pid}, or take another --instance`,
          });
        }
        takeAwayStale(path, mine);
      }
    } finally {
      rmSync(mine, { force: true });
    }
    throw new UnderpassError('UNDERPASS_AGENT_HELD', `starting the agent: other processes take and leave instance ${instance} at the same time`);
  }

  close(): void {
    if (read(this.path)?.pid === process.pid) rmSync(this.path, { force: true });
  }
}

/** By renaming it, so that of two that saw the same stale file neither takes away the other's fresh one unseen. */
function takeAwayStale(path: string, mine: string): void {
  const aside = `${mine}.stale`;
  try {
    renameSync(path, aside);
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return;
    throw error;
  }
  const taken = read(aside);
  try {
    if (taken && isRunning(taken)) linkSync(aside, path);
  } catch (error) {
    if (errorCode(error) !== 'EEXIST') throw error;
  } finally {
    rmSync(aside, { force: true });
  }
}

function read(path: string): InstanceHolder | undefined {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as InstanceHolder;
  } catch (error) {
    if (errorCode(error) === 'ENOENT' || error instanceof SyntaxError) return undefined;
    throw error;
  }
}
