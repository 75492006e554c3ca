/** One process holds a lab. Its state file says who, and names all that was made outside of the lab's folder and cgroup. */
import { appendFileSync, existsSync, linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError, errorCode } from '../common/errors.js';
import { isRunning, processStartTime, type ProcessId } from '../common/process-id.js';
import type { LabNames } from './names.js';

export interface LabHolder extends ProcessId {
  name: string;
  /** What holds it, e.g. `lab up` or `demo`. */
  purpose: string;
  startedAt: string;
}

export const HOLDER_FILE = 'holder.json';
const holderFile = (dir: string): string => join(dir, HOLDER_FILE);
const journalFile = (dir: string): string => join(dir, 'netns.journal');

/** Who holds the lab of this folder, whether alive or not. */
export function readHolder(dir: string): LabHolder | undefined {
  try {
    return JSON.parse(readFileSync(holderFile(dir), 'utf8')) as LabHolder;
  } catch (error) {
    if (errorCode(error) === 'ENOENT' || error instanceof SyntaxError) return undefined;
    throw error;
  }
}

export function liveHolder(dir: string): LabHolder | undefined {
  const holder = readHolder(dir);
  return holder && isRunning(holder) ? holder : undefined;
}

/** The namespaces that the lab of this folder made, as far as it got. */
export function readJournal(dir: string): string[] {
  try {
    return readFileSync(journalFile(dir), 'utf8').split('\n').filter(Boolean);
  } catch {
    return [];
  }
}

export function heldMessage(holder: LabHolder): string {
  return `lab ${holder.name} is held by process ${holder.pid} (underpass ${holder.purpose}) since ${holder.startedAt}`;
}

export class LabLock {
  private constructor(
    readonly names: LabNames,
    readonly holder: LabHolder,
  ) {}

  /**
   * @param onLeftovers called, with the lab already held, when one that is gone left something behind
   * @throws UnderpassError `UNDERPASS_LAB_HELD` naming the holder
   */
  static async acquire(names: LabNames, purpose: string, onLeftovers: () => Promise<void>): Promise<LabLock> {
    const startTime = processStartTime(process.pid);
    if (!startTime) throw new Error(`reading this process's start time from /proc/${process.pid}/stat`);
    const holder: LabHolder = { name: names.lab, pid: process.pid, startTime, purpose, startedAt: new Date().toISOString() };
    for (let attempt = 0; attempt < 3; attempt++) {
      mkdirSync(names.dir, { recursive: true, mode: 0o755 });
      const mine = join(names.dir, `.holder.${process.pid}`);
      writeFileSync(mine, JSON.stringify(holder));
      try {
        linkSync(mine, holderFile(names.dir)); // fails when there is one: two starts at once can't both win
        if (existsSync(journalFile(names.dir)) || existsSync(names.cgroup)) await onLeftovers();
        return new LabLock(names, holder);
      } catch (error) {
        if (errorCode(error) !== 'EEXIST') throw error;
      } finally {
        rmSync(mine, { force: true });
      }
      const other = liveHolder(names.dir);
      if (other) {
        throw new UnderpassError('UNDERPASS_LAB_HELD', `starting lab ${names.lab}: ${heldMessage(other)}`, {
          hint: `end it with \`underpass lab down --name ${names.lab}\`, or take another --name`,
        });
      }
      rmSync(holderFile(names.dir), { force: true }); // left by a crash
    }
    throw new UnderpassError(
      'UNDERPASS_LAB_HELD',
      `starting lab ${names.lab}: other processes start and end it at the same time`,
    );
  }

  recordNetns(name: string): void {
    appendFileSync(journalFile(this.names.dir), name + '\n');
  }

  release(): void {
    rmSync(this.names.log, { force: true });
    rmSync(this.names.dir, { recursive: true, force: true });
  }
}
