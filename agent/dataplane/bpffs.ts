/** The file system that keeps BPF maps and links alive while no agent runs. */
import { existsSync, mkdirSync, readdirSync, rmdirSync, rmSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { UnderpassError } from '../../common/errors.js';
import { sleep } from '../../common/retry.js';
import { isBpffs, mountBpffs, unmount } from '../../native/index.js';

const USUAL_MOUNT = '/sys/fs/bpf';
/** An empty folder that says the mount is ours to take away. */
const MOUNTED_BY_US = 'mounted_by_underpass';

/** Makes `dir` a folder on a bpffs; mounts one, at the usual place if `dir` is below it, when there is none. */
export function ensureBpffsDir(dir: string): void {
  let existing = dir;
  while (!existsSync(existing)) existing = dirname(existing);
  if (!isBpffs(existing)) {
    const mountPoint = dir === USUAL_MOUNT || dir.startsWith(`${USUAL_MOUNT}/`) ? USUAL_MOUNT : dir;
    if (mountPoint === dir) makeFolders(existing, dir);
    mountBpffs(mountPoint);
    mkdirSync(join(mountPoint, MOUNTED_BY_US));
  }
  makeFolders(existing, dir);
}

/** Not mkdir's `recursive`, which never ends below /proc on Node 20. */
function makeFolders(existing: string, dir: string): void {
  const parts = relative(existing, dir).split('/').filter(Boolean);
  for (let count = 1; count <= parts.length; count++) {
    const path = join(existing, ...parts.slice(0, count));
    if (!existsSync(path)) mkdirSync(path, { mode: 0o700 });
  }
}

/** Removes one instance's pins, then what is empty above them, and the mount when it was ours and nothing else is in it. */
export function removePins(dir: string, instance: string): void {
  if (!isBpffs(dir)) return;
  rmSync(join(dir, instance), { recursive: true, force: true });
  const mountPoint = mountPointOf(dir);
  const isOurs = existsSync(join(mountPoint, MOUNTED_BY_US));
  if (dir !== mountPoint && readdirSync(dir).length === 0) rmdirSync(dir);
  // Names with dots are the kernel's own (maps.debug, progs.debug).
  if (isOurs && readdirSync(mountPoint).every((name) => name === MOUNTED_BY_US || name.includes('.'))) unmount(mountPoint);
}

/** Connections that were being opened when capture ended have asked for their original destination by then. */
const ESTABLISHING_MS = 500;

/**
 * Detaches what agents of this instance attached to cgroups, for one that can't open the kernel side itself: first the
 * rewriting of new connections, then, when those under way are through, the rest. Maps stay: sockets that are paired in
 * them may hold payload, and go on until they are closed.
 * @returns the number of pods and proxies that were attached
 */
export async function removeLinks(dir: string, instance: string): Promise<number> {
  const links = join(dir, pinName(instance), 'links');
  if (!isBpffs(dir) || !existsSync(links)) return 0;
  const folders = [join(links, 'proxy'), ...names(join(links, 'pods')).map((name) => join(links, 'pods', name))];
  const attached = folders.filter((folder) => names(folder).length > 0);
  for (const folder of attached) for (const name of names(folder)) if (name.startsWith('connect')) rmSync(join(folder, name));
  if (attached.length > 0) await sleep(ESTABLISHING_MS);
  rmSync(links, { recursive: true, force: true });
  return attached.length;
}

function names(folder: string): string[] {
  return existsSync(folder) ? readdirSync(folder) : [];
}

function mountPointOf(dir: string): string {
  let top = dir;
  while (isBpffs(dirname(top))) top = dirname(top);
  return top;
}

/** bpffs allows no dots in names. */
export function pinName(uid: string): string {
  if (!/^[A-Za-z0-9._-]{1,63}$/.test(uid)) {
    throw new UnderpassError('UNDERPASS_BAD_POD', `naming pins after ${JSON.stringify(uid)}: expected 1 to 63 letters, digits, dots, dashes`);
  }
  return uid.replaceAll('.', '_');
}
