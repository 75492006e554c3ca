/**
 * One agent an instance. Who holds its lock file is the kernel's affair (flock), so that a crash frees it; what is written in it
 * says who that is, also to those who do not want it. Others may wait for it: a new version beside the one that it follows.
 */
import { closeSync, constants, fstatSync, ftruncateSync, mkdirSync, openSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { isRunning, processStartTime, type ProcessId } from '../../common/process-id.js';
import { sleep } from '../../common/retry.js';
import { lockFile } from '../dataplane/file-lock.js';

export interface InstanceHolder extends ProcessId {
  /** What holds it, e.g. `underpass node`. */
  purpose: string;
  since: string;
}

const LOCK_FILE = 'agent.lock';
/** Before the process id of one that waits. */
const WAITING_PREFIX = `${LOCK_FILE}.waiting.`;
const WAIT_POLL_MS = 100;
const SAY_AGAIN_MS = 60_000;

/** Who holds the instance of this folder, if that process is alive. */
export function instanceHolder(folder: string): InstanceHolder | undefined {
  const holder = read(join(folder, LOCK_FILE));
  return holder && isRunning(holder) ? holder : undefined;
}

/** Agents that wait for the instance of this folder. */
export function instanceWaiters(folder: string): InstanceHolder[] {
  let names: string[];
  try {
    names = readdirSync(folder);
  } catch {
    return [];
  }
  return names.filter((name) => name.startsWith(WAITING_PREFIX)).flatMap((name) => {
    const waiter = read(join(folder, name));
    return waiter && isRunning(waiter) ? [waiter] : [];
  });
}

export class InstanceLock implements Closable {
  readonly #fd: number;

  private constructor(readonly path: string, readonly holder: InstanceHolder, fd: number) {
    this.#fd = fd;
  }

  /** @throws UnderpassError `UNDERPASS_AGENT_HELD` naming the holder's pid and start */
  static acquire(folder: string, instance: string, purpose: string): InstanceLock {
    const lock = InstanceLock.#try(folder, purpose);
    if (lock) return lock;
    const other = instanceHolder(folder);
    throw new UnderpassError('UNDERPASS_AGENT_HELD', `starting the agent: instance ${instance} is held by ${other ? `process ${other.pid} (${other.purpose}) since ${other.since}` : 'another process'}`, {
      hint: other ? `end process ${other.pid}, or take another --instance` : 'take another --instance',
    });
  }

  /** Waits until nobody else has it, and says so. @throws AbortError when `signal` aborts */
  static async wait(folder: string, instance: string, purpose: string, { signal, logger }: { signal: AbortSignal; logger: Logger }): Promise<InstanceLock> {
    const mine = join(folder, `${WAITING_PREFIX}${process.pid}`);
    const began = performance.now();
    let said = -Infinity;
    try {
      for (;;) {
        signal.throwIfAborted();
        const lock = InstanceLock.#try(folder, purpose);
        if (lock) {
          if (said > 0) logger.info({ instance, waitedMs: Math.round(performance.now() - began) }, 'the instance is free: this agent takes over');
          return lock;
        }
        if (performance.now() - said > SAY_AGAIN_MS) {
          if (said < 0) writeFileSync(mine, JSON.stringify(self(purpose)), { mode: 0o600 });
          said = performance.now();
          const { pid, purpose: what, since } = instanceHolder(folder) ?? {};
          logger.warn({ instance, holder: pid, purpose: what, since }, 'another agent has this instance: this one waits until it has ended; nothing changes meanwhile');
        }
        await sleep(WAIT_POLL_MS, signal);
      }
    } finally {
      rmSync(mine, { force: true });
    }
  }

  static #try(folder: string, purpose: string): InstanceLock | undefined {
    const holder = self(purpose);
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const path = join(folder, LOCK_FILE);
    const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    try {
      // Whoever held it may have taken the file away; and agents before this version only wrote into it.
      const other = lockFile(fd) && fstatSync(fd).ino === statSync(path, { throwIfNoEntry: false })?.ino ? read(path) : 'held';
      if (other === undefined || (other !== 'held' && !isRunning(other))) {
        ftruncateSync(fd);
        writeSync(fd, JSON.stringify(holder), 0);
        return new InstanceLock(path, holder, fd);
      }
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    closeSync(fd);
    return undefined;
  }

  close(): void {
    rmSync(this.path, { force: true });
    closeSync(this.#fd);
  }
}

function self(purpose: string): InstanceHolder {
  const startTime = processStartTime(process.pid);
  if (startTime === undefined) throw new Error(`reading the start time of process ${process.pid} from /proc`);
  return { pid: process.pid, startTime, purpose, since: new Date().toISOString() };
}

function read(path: string): InstanceHolder | undefined {
  try {
    const found = JSON.parse(readFileSync(path, 'utf8')) as InstanceHolder;
    return typeof found.pid === 'number' ? found : undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' || error instanceof SyntaxError) return undefined;
    throw error;
  }
}
