/** Locks of open files, which the kernel gives back when their holder ends, however that is. */
import { tryLockFile } from '../../native/index.js';

/** Takes the lock of an open file for as long as the descriptor is open. @returns whether it did; another has it otherwise */
export function lockFile(fd: number): boolean {
  return tryLockFile(fd);
}
