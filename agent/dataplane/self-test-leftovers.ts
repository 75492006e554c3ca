/** A self-test whose process was killed in the middle leaves its namespace, its cgroup and a folder; the next agent removes them. */
import { lstatSync, readdirSync, rmSync, type Stats } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cgroup2Root, removeCgroup } from '../../common/cgroup.js';
import { processStartTime } from '../../common/process-id.js';
import { unmount } from '../../native/index.js';

const NAME = /^underpass-self-test-(?:(\d+)-)?([A-Za-z0-9]{6})$/;
/** A running self-test has its cgroup well before. */
const FOLDER_ALONE_MS = 60_000;

/** Removes what self-tests of processes that are gone left behind; those that run are left alone. */
export async function removeSelfTestLeftovers(): Promise<void> {
  const root = cgroup2Root();
  const running = new Set<string>();
  for (const name of readdirSync(root)) {
    const [, pid, suffix] = NAME.exec(name) ?? [];
    if (pid === undefined || suffix === undefined) continue;
    if (processStartTime(Number(pid)) !== undefined) {
      running.add(suffix);
      continue;
    }
    await removeCgroup(join(root, name));
    removeFolder(join(tmpdir(), `underpass-self-test-${suffix}`));
  }
  for (const name of readdirSync(tmpdir())) {
    const [, pid, suffix] = NAME.exec(name) ?? [];
    const folder = join(tmpdir(), name);
    if (pid !== undefined || suffix === undefined || running.has(suffix)) continue;
    const ageMs = Date.now() - (ownFolder(folder)?.mtimeMs ?? Infinity);
    if (ageMs > FOLDER_ALONE_MS) removeFolder(folder);
  }
}

/** Anybody may make names below /tmp, and a link there could lead to a mount of somebody else. */
function ownFolder(folder: string): Stats | undefined {
  const stats = lstatSync(folder, { throwIfNoEntry: false });
  return stats?.isDirectory() && stats.uid === process.geteuid?.() ? stats : undefined;
}

function removeFolder(folder: string): void {
  if (!ownFolder(folder)) return;
  unmount(join(folder, 'netns'));
  rmSync(folder, { recursive: true, force: true });
}
