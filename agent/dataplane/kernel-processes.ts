/** What runs in a pod, as /proc has it: the executables behind a client program and behind a listening port. All reads are bounded. */
import { closeSync, openSync, read, readdirSync, statSync } from 'node:fs';
import { open, readdir, readlink, stat, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { cgroupProcesses } from '../../common/cgroup.js';
import type { Closable } from '../../common/lifecycle.js';
import { netnsCookie } from '../../native/index.js';

/** A pod with more processes, or one of them with more files, is not looked through: its programs stay plain TCP. */
const MAX_PROCESSES = 1024;
const MAX_FILES = 16_384;
const MAX_TCP_TABLE_BYTES = 256 << 10;
const OVERLAYFS_SUPER_MAGIC = 0x794c7630;
const TCP_LISTEN = '0A';

/** A process's executable, opened: the process may end, or run something else, meanwhile. */
export class Executable implements Closable {
  private constructor(readonly fd: number) {}

  /** undefined when the process has ended, or has none. At once, since many processes are short. */
  static of(pid: number): Executable | undefined {
    try {
      return new Executable(openSync(`/proc/${pid}/exe`, 'r'));
    } catch {
      return undefined;
    }
  }

  /** `overlay`: overlayfs answers stat() with another device, and maybe inode, than the kernel's own. */
  async identity(): Promise<{ path: string; device: number; inode: bigint; overlay: boolean }> {
    const self = `/proc/self/fd/${this.fd}`;
    const [{ dev, ino }, path, { type }] = await Promise.all([stat(self, { bigint: true }), readlink(self), statfs(self)]);
    return { path, device: kernelDevice(dev), inode: ino, overlay: type === OVERLAYFS_SUPER_MAGIC };
  }

  async read(position: number, length: number): Promise<Buffer> {
    const { buffer, bytesRead } = await readAt(this.fd, Buffer.alloc(length), 0, length, position);
    return buffer.subarray(0, bytesRead);
  }

  close(): void {
    closeSync(this.fd);
  }
}

const readAt = promisify(read);

/** The processes of a pod; undefined when they are too many. */
export async function podProcesses({ cgroupPath, netnsCookie, isRooted }: { cgroupPath: string; netnsCookie: bigint; isRooted: boolean }): Promise<number[] | undefined> {
  const pids = isRooted ? await namespaceProcesses(netnsCookie) : cgroupProcesses(cgroupPath);
  return pids.length > MAX_PROCESSES ? undefined : pids;
}

/** Namespaces' cookies by what /proc calls them, which may be another's after the end of one: the cookie that is looked for is read again. */
const lastKnown = new Map<string, bigint>();

/** All of the machine that are in the network namespace; those that end meanwhile are left out. */
async function namespaceProcesses(cookie: bigint): Promise<number[]> {
  const members = new Map<string, string[]>();
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const namespace = await readlink(`/proc/${name}/ns/net`).catch(() => undefined);
    if (namespace === undefined) continue;
    const others = members.get(namespace);
    if (others) others.push(name);
    else members.set(namespace, [name]);
  }
  for (const namespace of lastKnown.keys()) if (!members.has(namespace)) lastKnown.delete(namespace);
  const likely = [...members].sort(([a], [b]) => Number(lastKnown.get(b) === cookie) - Number(lastKnown.get(a) === cookie));
  for (const [namespace, [first, ...others]] of likely) {
    const found = await netnsCookie(`/proc/${first!}/ns/net`).catch(() => undefined);
    if (found !== undefined) lastKnown.set(namespace, found);
    if (found === cookie) return [first!, ...others].map(Number);
  }
  return [];
}

/** Ids of a cgroup and of all below it. */
export function cgroupIds(path: string): bigint[] {
  try {
    const below = readdirSync(path, { withFileTypes: true }).filter((entry) => entry.isDirectory());
    return [statSync(path, { bigint: true }).ino, ...below.flatMap(({ name }) => cgroupIds(join(path, name)))];
  } catch {
    return []; // went away meanwhile
  }
}

/** Which of these processes hold a socket that listens on this port, at any address. */
export async function listeningProcesses(pids: readonly number[], port: number): Promise<number[]> {
  const byNamespace = new Map<string, Set<string>>();
  const found: number[] = [];
  for (const pid of pids) {
    try {
      const namespace = await readlink(`/proc/${pid}/ns/net`);
      let sockets = byNamespace.get(namespace);
      if (!sockets) byNamespace.set(namespace, (sockets = await listeningSockets(pid, port)));
      if (sockets.size > 0 && (await holdsOneOf(pid, sockets))) found.push(pid);
    } catch {
      // ended meanwhile
    }
  }
  return found;
}

/** Links to look for below /proc/PID/fd. */
async function listeningSockets(pid: number, port: number): Promise<Set<string>> {
  const found = new Set<string>();
  const wanted = port.toString(16).toUpperCase().padStart(4, '0');
  for (const table of ['tcp', 'tcp6']) {
    // Those that listen come first: the rest may be any number.
    const text = await start(`/proc/${pid}/net/${table}`).catch(() => '');
    for (const line of text.split('\n').slice(1)) {
      const [, local = '', , state, , , , , , inode] = line.trim().split(/\s+/);
      if (state === TCP_LISTEN && local.endsWith(`:${wanted}`) && inode) found.add(`socket:[${inode}]`);
    }
  }
  return found;
}

async function start(path: string): Promise<string> {
  const file = await open(path, 'r');
  try {
    const buffer = Buffer.alloc(MAX_TCP_TABLE_BYTES);
    let length = 0;
    while (length < buffer.length) {
      const { bytesRead } = await file.read(buffer, length, buffer.length - length, null);
      const listening = !/ 0[1-9B-F] [0-9A-F]{8}:/.test(buffer.toString('latin1', length, length + bytesRead));
      length += bytesRead;
      if (bytesRead === 0 || !listening) break;
    }
    return buffer.toString('latin1', 0, length);
  } finally {
    await file.close();
  }
}

async function holdsOneOf(pid: number, links: ReadonlySet<string>): Promise<boolean> {
  const names = await readdir(`/proc/${pid}/fd`);
  if (names.length > MAX_FILES) return false;
  for (const name of names) {
    const link = await readlink(`/proc/${pid}/fd/${name}`).catch(() => '');
    if (links.has(link)) return true;
  }
  return false;
}

/** glibc's dev_t as the kernel keeps it: major << 20 | minor. */
export function kernelDevice(dev: bigint): number {
  const major = ((dev >> 32n) & 0xfffff000n) | ((dev >> 8n) & 0xfffn);
  const minor = ((dev >> 12n) & 0xffffff00n) | (dev & 0xffn);
  return Number((major << 20n) | minor);
}
