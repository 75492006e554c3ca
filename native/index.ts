/** The only face of the native addon. Every handle is closed by `close()`, and by the addon itself at exit of the thread. */
import { statfsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError } from '../common/errors.js';
import type { Closable } from '../common/lifecycle.js';
import { guarded, KernelError, type RawLink, type RawMap, type RawObject, type RawObjectOptions, type SocketOptions, type StructLayout, type TcpSocket, type TcpSocketName } from './addon.js';

export { cgroup2Root } from '../common/cgroup.js';
export { KernelError, type SocketOptions, type StructLayout, type TcpSocket, type TcpSocketName } from './addon.js';

// linux/magic.h
const CGROUP2_SUPER_MAGIC = 0x63677270n;
const BPF_FS_MAGIC = 0xcafe4a11n;

/** The 64-bit id of a network namespace (SO_NETNS_COOKIE), the pod's key in every map. */
export function netnsCookie(netnsPath: string): Promise<bigint> {
  return guarded((addon) => addon.netnsCookie(netnsPath));
}

/** Opens a non-blocking socket inside a network namespace; the caller owns the file descriptor. */
export function openSocket(options: SocketOptions): Promise<number> {
  return guarded((addon) => addon.openSocket(options));
}

/** The id of a cgroup v2 directory as bpf_get_current_cgroup_id() gives it. */
export function cgroupId(path: string): bigint {
  requireString('cgroupId', 'path', path);
  let magic: bigint;
  try {
    magic = statfsSync(path, { bigint: true }).type;
  } catch (cause) {
    throw new UnderpassError('UNDERPASS_CGROUP', `reading the id of cgroup ${path}: ${(cause as Error).message}`, { cause });
  }
  if (BigInt.asUintN(32, magic) !== CGROUP2_SUPER_MAGIC) {
    throw new UnderpassError('UNDERPASS_CGROUP', `reading the id of cgroup ${path}: not a directory of cgroup v2`);
  }
  return statSync(path, { bigint: true }).ino;
}

/** Makes a network namespace with its loopback up and keeps it by a bind mount on `path`, which must not exist. */
export function createNetns(path: string): Promise<void> {
  return guarded((addon) => addon.createNetns(path));
}

/** Listening and connected TCP sockets of a network namespace, IPv4 and IPv6; none that only wait for their time-out. */
export function tcpSockets(netnsPath: string): Promise<TcpSocket[]> {
  return guarded((addon) => addon.tcpSockets(netnsPath, false));
}

/** Those that listen alone: the kernel looks through its table of connections, which all namespaces share, for no others. */
export function listeningTcpSockets(netnsPath: string): Promise<TcpSocket[]> {
  return guarded((addon) => addon.tcpSockets(netnsPath, true));
}

/**
 * Ends connections as by a reset at both ends (SOCK_DESTROY).
 * @returns how many there still were
 * @throws KernelError EOPNOTSUPP on a kernel without CONFIG_INET_DIAG_DESTROY
 */
export function destroyTcpSockets(netnsPath: string, ids: readonly Buffer[]): Promise<number> {
  return guarded((addon) => addon.destroyTcpSockets(netnsPath, ids));
}

/** A socket of a network namespace that is not closed. */
export function findTcpSocket(netnsPath: string, id: Buffer): Promise<TcpSocket | undefined> {
  return guarded((addon) => addon.findTcpSocket(netnsPath, id));
}

/** What names a socket for the functions that take an id. */
export function tcpSocketId(socket: TcpSocketName): Buffer {
  return guarded((addon) => addon.tcpSocketId(socket));
}

/**
 * Ends what another process's sockets send, after what they have sent (SHUT_WR), as that process would.
 * @returns how many there still were, and are that process's
 * @throws KernelError, also where the kernel has no pidfd_getfd (before 5.6)
 */
export function shutdownTcpSockets(netnsPath: string, ids: readonly Buffer[], pid: number): Promise<number> {
  return guarded((addon) => addon.shutdownTcpSockets(netnsPath, ids, pid));
}

/** Differs from what it was before when the nf_tables rules or the legacy nat tables of a network namespace have changed since; makes no table. */
export function netfilterMark(netnsPath: string): Promise<string> {
  return guarded((addon) => addon.netfilterMark(netnsPath));
}

/** Bind-mounts a file or folder; a missing target becomes an empty file. */
export function bindMount(source: string, target: string): void {
  guarded((addon) => addon.bindMount(source, target));
}

/** Detaches a mount; nothing happens when the path is none or does not exist. */
export function unmount(path: string): void {
  guarded((addon) => addon.unmount(path));
}

export function mountBpffs(path: string): void {
  guarded((addon) => addon.mountBpffs(path));
}

/** Locks an open file (flock) until the last copy of its descriptor is closed, at the latest when the process ends. @returns whether nobody else had it */
export function tryLockFile(fd: number): boolean {
  return guarded((addon) => addon.tryLockFile(fd));
}

/** Gives what malloc has free, in whole pages, back to the kernel, and pages of programs and libraries that are in the page cache. */
export function trimMemory(): void {
  guarded((addon) => addon.trimMemory());
}

export function isBpffs(path: string): boolean {
  requireString('isBpffs', 'path', path);
  try {
    return BigInt.asUintN(32, statfsSync(path, { bigint: true }).type) === BPF_FS_MAGIC;
  } catch {
    return false;
  }
}

export interface BpfObjectOptions {
  /** Folder on a bpffs for the maps' pins; pinned maps of a former process are taken over. null: nothing is pinned. */
  pinDir: string | null;
  /** Values for `const volatile` variables, by name. */
  rodata?: Record<string, number | bigint>;
  /** By map name. A map that is taken over keeps its size. */
  maxEntries?: Record<string, number>;
  /** Only these programs are loaded, to learn which of them a kernel refuses. Default: all. */
  programs?: string[];
  /** These are not. */
  without?: readonly string[];
}

function rawOptions({ pinDir, rodata = {}, maxEntries = {}, programs, without }: BpfObjectOptions): RawObjectOptions {
  return { pinDir, rodata: Object.fromEntries(Object.entries(rodata).map(([name, value]) => [name, BigInt(value)])), maxEntries, ...(programs ? { programs } : {}), ...(without ? { without: [...without] } : {}) };
}

/** The loaded BPF object: one per agent. */
export class BpfObject implements Closable {
  readonly #raw: RawObject;
  readonly #pinDir: string | null;

  private constructor(raw: RawObject, pinDir: string | null) {
    this.#raw = raw;
    this.#pinDir = pinDir;
  }

  /** @throws KernelError with the verifier's last lines when a program does not load */
  static open(options: BpfObjectOptions): BpfObject {
    return new BpfObject(guarded((addon) => addon.openObject(rawOptions(options))), options.pinDir);
  }

  /** The same with the verifier on a thread of the pool: seconds in which this one goes on. */
  static async openLater(options: BpfObjectOptions): Promise<BpfObject> {
    return new BpfObject(await guarded((addon) => addon.openObjectLater(rawOptions(options))), options.pinDir);
  }

  /** Whether the maps are those of a former process. */
  get adopted(): boolean {
    return guarded(() => this.#raw.adopted);
  }

  programs(): string[] {
    return guarded(() => this.#raw.programs());
  }

  /** False of a program that was left out, or that a kernel has no place for: one that refuses tracing has none for iterators. */
  isLoaded(program: string): boolean {
    return guarded(() => this.#raw.isLoaded(program));
  }

  /** The kernel's number of it, as links tell it. */
  programId(program: string): number {
    return guarded(() => this.#raw.programId(program));
  }

  maps(): string[] {
    return guarded(() => this.#raw.maps());
  }

  map(name: string): BpfMap {
    return new BpfMap(guarded(() => this.#raw.map(name)));
  }

  /**
   * Attaches a program to a cgroup by a BPF link. With `pinName` (may hold one folder: `pod/connect4`) the link is
   * pinned below the object's folder, and a link already pinned there for the same cgroup gets this program in place
   * of its old one, with no moment without.
   */
  attachCgroup(program: string, cgroupPath: string, pinName: string | null): BpfLink {
    const pin = this.#pin('attachCgroup', pinName);
    return new BpfLink(guarded(() => this.#raw.attachCgroup(program, cgroupPath, pin)));
  }

  /** The same for a network namespace, by its path. Such a link ends with its namespace. */
  attachNetns(program: string, netnsPath: string, pinName: string | null): BpfLink {
    const pin = this.#pin('attachNetns', pinName);
    return new BpfLink(guarded(() => this.#raw.attachNetns(program, netnsPath, pin)));
  }

  #pin(action: string, name: string | null): string | null {
    if (name !== null && this.#pinDir === null) throw new TypeError(`${action}: pinName ${name} given, but the object has no pinDir`);
    return name === null ? null : join(this.#pinDir as string, name);
  }

  /**
   * Gives a link pinned by a former process this object's program, with no moment without one.
   * @returns undefined when there is no such link any more, or its cgroup is gone
   */
  replaceLink(program: string, pinName: string): BpfLink | undefined {
    if (this.#pinDir === null) throw new TypeError('replaceLink: the object has no pinDir');
    const pin = join(this.#pinDir, pinName);
    const raw = guarded(() => this.#raw.replaceLink(program, pin));
    return raw ? new BpfLink(raw) : undefined;
  }

  /**
   * Pins a program below the object's folder, in the place of one that is pinned there.
   * @returns the whole path
   */
  pinProgram(program: string, pinName: string): string {
    if (this.#pinDir === null) throw new TypeError('pinProgram: the object has no pinDir');
    const pin = join(this.#pinDir, pinName);
    guarded(() => this.#raw.pinProgram(program, pin));
    return pin;
  }

  /** Makes `program` the verdict of all sockets that enter the map from now on. */
  attachSockhash(program: string, map: string): void {
    guarded(() => this.#raw.attachSockhash(program, map));
  }

  /** Runs an iterator program once over all elements of a map, and returns when it has seen them. */
  runIterator(program: string, map: string): void {
    guarded(() => this.#raw.runIterator(program, map));
  }

  /** Calls back with a copy of each record; does not keep the process alive. */
  ringBuffer(map: string, callback: (record: Buffer) => void): Closable {
    const raw = guarded(() => this.#raw.ringBuffer(map, callback));
    return { close: () => raw.close() };
  }

  /** Offsets of a struct's fields as the BPF programs were compiled. */
  layout(structName: string): StructLayout {
    return guarded(() => this.#raw.layout(structName));
  }

  /** Text that differs when what is kept in pinned maps does, in size or in order. */
  mapsFingerprint(): string {
    return JSON.stringify(guarded(() => this.#raw.mapLayouts()));
  }

  enumValues(enumName: string): Record<string, number> {
    return guarded(() => this.#raw.enumValues(enumName));
  }

  /** Lets go of programs and maps; pins stay. */
  close(): void {
    this.#raw.close();
  }
}

export class BpfLink implements Closable {
  readonly #raw: RawLink;
  constructor(raw: RawLink) {
    this.#raw = raw;
  }
  /** Detaches, unless the link is pinned. */
  close(): void {
    this.#raw.close();
  }
}

export class BpfMap implements Closable {
  readonly #raw: RawMap;
  constructor(raw: RawMap) {
    this.#raw = raw;
  }
  get name(): string { return this.#raw.name; }
  get keySize(): number { return this.#raw.keySize; }
  /** Of one value; a per-CPU map's values hold `cpus` of them, each padded to 8 bytes. */
  get valueSize(): number { return this.#raw.valueSize; }
  get maxEntries(): number { return this.#raw.maxEntries; }
  get cpus(): number { return this.#raw.cpus; }

  get(key: Buffer): Buffer | undefined {
    return guarded(() => this.#raw.get(key));
  }

  /** `flags`: BPF_ANY 0, BPF_NOEXIST 1, BPF_EXIST 2. */
  set(key: Buffer, value: Buffer, flags = 0): void {
    guarded(() => this.#raw.set(key, value, flags));
  }

  /** As `set`, of a hash. False: it is full. */
  setIfRoom(key: Buffer, value: Buffer): boolean {
    try {
      this.set(key, value);
      return true;
    } catch (error) {
      if (error instanceof KernelError && error.errnoName === 'E2BIG') return false;
      throw error;
    }
  }

  /**
   * Writes many entries, their keys and values one after the other in the two buffers, by batches where the kernel has them.
   * @throws KernelError when one fails; those before it are written
   */
  setMany(keys: Buffer, values: Buffer): void {
    guarded(() => this.#raw.setMany(keys, values));
  }

  /** False when there was no such key. */
  delete(key: Buffer): boolean {
    return guarded(() => this.#raw.delete(key));
  }

  /** All entries, by batches where the kernel has them; what changes meanwhile may be missed. */
  entries(): [Buffer, Buffer][] {
    return guarded(() => this.#raw.entries());
  }

  /** All keys, one by one; what changes meanwhile may be missed. Where values are large this is less to read than `entries`. */
  keys(): Buffer[] {
    return guarded(() => this.#raw.keys());
  }

  /**
   * All entries in parts of at most `count`, each read when it is asked for; what changes meanwhile may be missed. Keys and values
   * stand one after the other. Where the kernel has no batches for this type of map, all in one part.
   */
  *parts(count: number): Generator<{ keys: Buffer; values: Buffer; count: number }> {
    for (let position: Buffer | undefined, isFirst = true; isFirst || position; isFirst = false) {
      const part = guarded(() => this.#raw.readBatch(position, Math.min(count, this.maxEntries)));
      if (part) yield part;
      else if (isFirst) {
        const all = this.entries();
        yield { keys: Buffer.concat(all.map(([key]) => key)), values: Buffer.concat(all.map(([, value]) => value)), count: all.length };
      }
      position = part?.position;
    }
  }

  /** Values of so many places of an array, one after the other, from `first` on. */
  range(first: number, count: number): Buffer {
    const before = Buffer.alloc(4);
    before.writeUInt32LE(Math.max(0, first - 1));
    const part = guarded(() => this.#raw.readBatch(first === 0 ? undefined : before, count));
    if (part?.count === count) return part.values;
    const key = Buffer.alloc(4);
    return Buffer.concat(Array.from({ length: count }, (_, at) => {
      key.writeUInt32LE(first + at);
      return this.get(key) ?? Buffer.alloc(this.valueSize);
    }));
  }

  close(): void {
    this.#raw.close();
  }
}

/**
 * A pinned map that may be another version's; undefined: there is none.
 * @returns `value`: the layout of its values as its own BTF has it; absent where they are no structs
 */
export function openPinnedMap(path: string): { map: BpfMap; value: StructLayout | undefined } | undefined {
  requireString('openPinnedMap', 'path', path);
  const found = guarded((addon) => addon.openPinnedMap(path));
  return found && { map: new BpfMap(found.map), value: found.value };
}

/** What a pinned link points to. `targetId`: the cgroup's id or the network namespace's inode; 0 when it is detached. */
export function linkInfo(pinPath: string): { targetId: bigint; programId: number; attachType: number } {
  return guarded((addon) => addon.linkInfo(pinPath));
}

/**
 * Programs, anybody's, that are attached to a cgroup directory itself, or to a network namespace.
 * @param attachTypes enum bpf_attach_type of linux/bpf.h, as `linkInfo` has it; those that the kernel does not know have none
 */
export function attachedPrograms(path: string, attachTypes: readonly number[]): { id: number; name: string; attachType: number }[] {
  return guarded((addon) => addon.attachedPrograms(path, attachTypes));
}

function requireString(action: string, name: string, value: unknown): void {
  if (typeof value !== 'string' || value === '') throw new TypeError(`${action}: ${name} must be a non-empty string`);
}
