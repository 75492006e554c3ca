/** The raw shape of build/underpass.node, and the one place that loads it and turns its errors into ours. */
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { UnderpassError } from '../common/errors.js';
import { buildDir } from '../common/paths.js';

export interface SocketOptions {
  /** Path of the network namespace, e.g. /run/netns/x or /proc/PID/ns/net. */
  netns: string;
  family: 'ipv4' | 'ipv6';
  type: 'stream' | 'dgram';
  bind?: { address: string; port: number };
  /** Backlog; makes it a listener. */
  listen?: number;
  connect?: { address: string; port: number };
  /** For `connect`; default 5000. */
  timeoutMs?: number;
  /** IPV6_V6ONLY; default false, so that a `::` listener accepts IPv4 too. */
  ipv6Only?: boolean;
}

export interface TcpSocket {
  listening: boolean;
  /** 16 bytes, IPv4 in mapped form. */
  local: Buffer;
  remote: Buffer;
  localPort: number;
  remotePort: number;
  /** Where the socket was made; 0 where the kernel does not say. */
  cgroupId: bigint;
  /** Never given to another socket. */
  cookie: bigint;
  /** For destroyTcpSockets; of this very socket, whoever has its addresses later. */
  id: Buffer;
}

/** A connected socket by its addresses, 16 bytes each, IPv4 in mapped form. */
export interface TcpSocketName extends Pick<TcpSocket, 'local' | 'remote' | 'localPort' | 'remotePort'> {
  /** Absent: whichever has these addresses. */
  cookie?: bigint;
}

export interface StructLayout {
  sizeBytes: number;
  fields: Record<string, { offset: number; sizeBytes: number }>;
}

/** `position`: behind the last entry; absent: that was the end of the map. */
export interface RawBatch {
  keys: Buffer;
  values: Buffer;
  count: number;
  position?: Buffer;
}

export interface RawMap {
  readonly name: string;
  readonly type: number;
  readonly keySize: number;
  readonly valueSize: number;
  readonly maxEntries: number;
  readonly cpus: number;
  get(key: Buffer): Buffer | undefined;
  set(key: Buffer, value: Buffer, flags: number): void;
  setMany(keys: Buffer, values: Buffer): void;
  delete(key: Buffer): boolean;
  entries(): [Buffer, Buffer][];
  keys(): Buffer[];
  readBatch(position: Buffer | undefined, count: number): RawBatch | undefined;
  close(): void;
}

export interface RawLink {
  close(): void;
}

export interface RawObject {
  programs(): string[];
  isLoaded(program: string): boolean;
  programId(program: string): number;
  maps(): string[];
  map(name: string): RawMap;
  /** True when live maps of a former process were taken over, false when all were created. */
  readonly adopted: boolean;
  attachCgroup(program: string, cgroupPath: string, pinPath: string | null): RawLink;
  attachNetns(program: string, netnsPath: string, pinPath: string | null): RawLink;
  replaceLink(program: string, pinPath: string): RawLink | undefined;
  attachSockhash(program: string, map: string): void;
  pinProgram(program: string, pinPath: string): void;
  runIterator(program: string, map: string): void;
  ringBuffer(map: string, callback: (record: Buffer) => void): RawLink;
  layout(structName: string): StructLayout;
  mapLayouts(): Record<string, [key: Partial<StructLayout>, value: Partial<StructLayout>]>;
  enumValues(enumName: string): Record<string, number>;
  close(): void;
}

export interface RawObjectOptions {
  pinDir: string | null;
  rodata: Record<string, bigint>;
  maxEntries: Record<string, number>;
  programs?: string[];
  without?: string[];
}

export interface Addon {
  netnsCookie(path: string): Promise<bigint>;
  openSocket(options: SocketOptions): Promise<number>;
  createNetns(path: string): Promise<void>;
  tcpSockets(netns: string, listening: boolean): Promise<TcpSocket[]>;
  findTcpSocket(netns: string, id: Buffer): Promise<TcpSocket | undefined>;
  tcpSocketId(socket: TcpSocketName): Buffer;
  shutdownTcpSockets(netns: string, ids: readonly Buffer[], pid: number): Promise<number>;
  destroyTcpSockets(netns: string, ids: readonly Buffer[]): Promise<number>;
  netfilterMark(netnsPath: string): Promise<string>;
  bindMount(source: string, target: string): void;
  unmount(path: string): void;
  mountBpffs(path: string): void;
  tryLockFile(fd: number): boolean;
  trimMemory(): void;
  openObject(options: RawObjectOptions): RawObject;
  openObjectLater(options: RawObjectOptions): Promise<RawObject>;
  openPinnedMap(path: string): { map: RawMap; value?: StructLayout } | undefined;
  linkInfo(pinPath: string): { targetId: bigint; programId: number; attachType: number };
  attachedPrograms(path: string, attachTypes: readonly number[]): { id: number; name: string; attachType: number }[];
}

let loaded: Addon | undefined;

/** @throws UnderpassError `UNDERPASS_ADDON_MISSING` when build/underpass.node is not there or does not load. */
export function addon(): Addon {
  if (!loaded) {
    const path = join(buildDir, 'underpass.node');
    try {
      loaded = createRequire(import.meta.url)(path) as Addon;
    } catch (cause) {
      throw new UnderpassError('UNDERPASS_ADDON_MISSING', `loading ${path}: ${(cause as Error).message}`, {
        cause,
        hint: 'run `make native`; libbpf 1.x must be installed',
      });
    }
  }
  return loaded;
}

/** What the addon throws: `syscall` and `errnoName` are there when a system call failed. */
interface RawError extends Error {
  syscall?: string;
  errnoName?: string;
}

const HINTS: Record<string, string> = {
  EPERM: 'needs root, or CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN',
  EACCES: 'needs root, or CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN',
};

/**
 * An error of a kernel operation. `syscall` names the call that failed, `errnoName` its errno (`ENOENT`); the message
 * ends with the verifier's last lines where there are any.
 */
export class KernelError extends UnderpassError {
  readonly syscall: string | undefined;
  readonly errnoName: string | undefined;

  constructor(raw: RawError) {
    const hint = raw.errnoName ? HINTS[raw.errnoName] : undefined;
    super('UNDERPASS_KERNEL', raw.message, { cause: raw, ...(hint ? { hint } : {}) });
    this.name = 'KernelError';
    this.syscall = raw.syscall;
    this.errnoName = raw.errnoName;
  }
}

function translate(error: unknown): unknown {
  if (error instanceof TypeError || error instanceof UnderpassError || !(error instanceof Error)) return error;
  return new KernelError(error as RawError);
}

/** Runs one operation of the addon; its plain errors come out as KernelError, TypeErrors as they are. */
export function guarded<T>(operation: (addon: Addon) => T): T {
  const native = addon();
  try {
    const result = operation(native);
    return result instanceof Promise ? (result.catch((error: unknown) => { throw translate(error); }) as T) : result;
  } catch (error) {
    throw translate(error);
  }
}
