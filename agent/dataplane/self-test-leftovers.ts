/** A self-test whose process was killed in the middle leaves its namespace, its cgroup and a folder; the next agent removes them. */
import { existsSync, readdirSync, rmSync, statSync } from 'node:fs';
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
    if (pid !== undefined || suffix === undefined || running.has(suffix) || !existsSync(folder)) continue;
    if (Date.now() - statSync(folder).mtimeMs > FOLDER_ALONE_MS) removeFolder(folder);
  }
}

function removeFolder(folder: string): void {
  unmount(join(folder, 'netns'));
  rmSync(folder, { recursive: true, force: true });
}
