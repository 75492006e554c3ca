/** The cgroup v2 tree: where it is, and how to end and remove what one made in it. No controller is needed for any of it. */
import { existsSync, readFileSync, readdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError, errorCode } from './errors.js';
import { sleep } from './retry.js';

/** The mount point of the cgroup v2 hierarchy: /sys/fs/cgroup, or …/unified on a hybrid host. */
export function cgroup2Root(mounts = readFileSync('/proc/self/mounts', 'utf8')): string {
  for (const line of mounts.split('\n')) {
    const [, target, type] = line.split(' ');
    if (type === 'cgroup2' && target) return target.replace(/\\040/g, ' ');
  }
  throw new UnderpassError('UNDERPASS_NO_CGROUP2', 'looking for the cgroup v2 hierarchy: nothing of type cgroup2 is mounted', {
    hint: 'mount -t cgroup2 none /sys/fs/cgroup/unified',
  });
}

/** The mount points of cgroup v1's hierarchies; none on a host that has v2 alone. */
export function cgroup1Roots(mounts = readFileSync('/proc/self/mounts', 'utf8')): string[] {
  return mounts.split('\n').flatMap((line) => {
    const [, target, type] = line.split(' ');
    return type === 'cgroup' && target ? [target.replace(/\\040/g, ' ')] : [];
  });
}

/** All processes in this cgroup and below it. */
export function cgroupProcesses(path: string): number[] {
  return subtree(path).flatMap((directory) => {
    try {
      return readFileSync(join(directory, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number);
    } catch {
      return []; // went away meanwhile
    }
  });
}

/** CPU time that the cgroup's processes, also those that ended, have used. */
export function cgroupCpuUsec(path: string): number {
  const match = /^usage_usec (\d+)$/m.exec(readFileSync(join(path, 'cpu.stat'), 'utf8'));
  return Number(match?.[1] ?? 0);
}

/**
 * Kills what runs in the cgroup and removes it with everything below. Fine when it does not exist.
 * @throws UnderpassError `UNDERPASS_CGROUP_BUSY` when processes survive for `timeoutMs` (in uninterruptible sleep).
 */
export async function removeCgroup(path: string, timeoutMs = 5_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (existsSync(path)) {
    killAll(path);
    let busy = false;
    for (const directory of subtree(path).reverse()) {
      try {
        rmdirSync(directory);
      } catch (error) {
        if (errorCode(error) !== 'ENOENT') busy = true;
      }
    }
    if (!busy) return;
    if (performance.now() > deadline) {
      const pids = cgroupProcesses(path).join(', ');
      throw new UnderpassError(
        'UNDERPASS_CGROUP_BUSY',
        `removing cgroup ${path}: still in use after ${timeoutMs} ms${pids && ` by process ${pids}`}`,
      );
    }
    await sleep(10);
  }
}

/** The directory and all below it, parents first. */
function subtree(path: string): string[] {
  if (!existsSync(path)) return [];
  const found = [path];
  for (let index = 0; index < found.length; index++) {
    const directory = found[index] as string;
    try {
      for (const entry of readdirSync(directory, { withFileTypes: true }))
        if (entry.isDirectory()) found.push(join(directory, entry.name));
    } catch {
      // went away meanwhile
    }
  }
  return found;
}

function killAll(path: string): void {
  try {
    writeFileSync(join(path, 'cgroup.kill'), '1'); // 5.14 and newer; takes the whole subtree at once
    return;
  } catch {
    // older kernel, or gone
  }
  for (const pid of cgroupProcesses(path)) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // ended by itself
    }
  }
}
