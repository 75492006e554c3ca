import { mkdirSync, readdirSync, rmSync, statfsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { bindMount, destroyTcpSockets, listeningTcpSockets, netfilterMark, netnsCookie, tcpSockets, unmount, type TcpSocket } from '../../native/index.js';
import { UnderpassError, errorCode } from '../../common/errors.js';
import { buildDir } from '../../common/paths.js';
import { run } from '../../common/process.js';
import type { CapturedSockets, Namespaces, WantedPort } from './collaborators.js';
import { INBOUND_PORT, IptablesCapture, OUTBOUND_PORT } from './iptables.js';

/** linux/magic.h: the file system that namespaces are files of. */
const NSFS_MAGIC = 0x6e736673;

/** Pins below `<run>/<instance>/netns/<uid>`: the paths that Envoy's listeners name. */
export class PinnedNamespaces implements Namespaces {
  readonly execPath = join(buildDir, 'underpass-exec');

  /** @param options.hostMatch pinned BPF program that knows what the node itself opens */
  constructor(readonly folder: string, readonly options: { hostMatch?: string } = {}) {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
  }

  path(uid: string): string {
    return join(this.folder, uid);
  }

  pin(uid: string, netns: string): string {
    const target = this.path(uid);
    const wanted = inode(netns);
    // The pin that there is may be all that keeps the pod's listener: it stays.
    if (wanted === undefined) throw new UnderpassError('UNDERPASS_NETNS_ENTER', `pinning the network namespace ${netns}: it is gone`);
    if (inode(target) === wanted) return target;
    unmount(target);
    bindMount(netns, target);
    return target;
  }

  unpin(uid: string): void {
    const target = this.path(uid);
    unmount(target);
    rmSync(target, { force: true });
  }

  /**
   * A mount does not outlive its boot, but the file that it was bound to may: Envoy would refuse a listener there.
   * @returns how many there were
   */
  removeStale(): number {
    const stale = this.pinned().filter((uid) => statfsSync(this.path(uid)).type !== NSFS_MAGIC);
    for (const uid of stale) rmSync(this.path(uid), { force: true });
    return stale.length;
  }

  pinned(): string[] {
    return readdirSync(this.folder);
  }

  cookie(netnsPath: string): Promise<bigint> {
    return netnsCookie(netnsPath);
  }

  rules(netnsPath: string): IptablesCapture {
    return new IptablesCapture(netnsPath, { execPath: this.execPath });
  }

  inboundRules(netnsPath: string): IptablesCapture {
    return new IptablesCapture(netnsPath, { execPath: this.execPath, direction: 'inbound', ...this.options });
  }

  rulesMark(netnsPath: string): Promise<string> {
    return netfilterMark(netnsPath);
  }

  async capturedSockets(netnsPath: string): Promise<CapturedSockets> {
    const sockets = await orNone(tcpSockets(netnsPath));
    const count = sockets ? (port: number) => countOf(sockets, port) : await this.#textCounter(netnsPath);
    const outbound = count(OUTBOUND_PORT);
    return { ...outbound, total: outbound.total + count(INBOUND_PORT).total };
  }

  async takenPorts(netnsPath: string, ports: readonly WantedPort[]): Promise<ReadonlySet<number>> {
    const sockets = await orNone(listeningTcpSockets(netnsPath));
    const text = sockets ? '' : await this.#sockets(netnsPath);
    const isTaken = ({ port, where }: WantedPort): boolean => (sockets ? isListening(sockets, port, where) : hasListener(text, port, where));
    return new Set(ports.filter(isTaken).map(({ port }) => port));
  }

  async #textCounter(netnsPath: string): Promise<(port: number) => CapturedSockets> {
    const text = await this.#sockets(netnsPath);
    return (port) => countCaptured(text, port);
  }

  async closeConnections(netnsPath: string): Promise<number> {
    const connections = (await tcpSockets(netnsPath)).filter(({ listening }) => !listening);
    return destroyTcpSockets(netnsPath, connections.map(({ id }) => id));
  }

  async #sockets(netnsPath: string): Promise<string> {
    const files = ['/proc/self/net/tcp', '/proc/self/net/tcp6'];
    // A kernel without IPv6 has no tcp6: cat then exits 1 after printing the other.
    return (await run(this.execPath, ['--netns', netnsPath, '--', 'cat', ...files], { okCodes: [0, 1], timeoutMs: 10_000 })).stdout;
  }
}

// include/net/tcp_states.h; these hold no connection that anybody could still use.
const LISTEN = '0A';
const DEAD_STATES = new Set(['06' /* TIME_WAIT */, '07' /* CLOSE */, LISTEN]);

/** Counts in the text of /proc/net/tcp and tcp6, where addresses are 32-bit words in the machine's byte order. */
export function countCaptured(text: string, port: number): CapturedSockets {
  const local = localPort(port);
  const found: CapturedSockets = { total: 0, redirected: 0 };
  for (const line of text.split('\n')) {
    const fields = line.trim().split(/\s+/);
    const [, here, there, state] = fields;
    if (!here?.endsWith(local) || there === undefined || state === undefined || DEAD_STATES.has(state)) continue;
    found.total++;
    if (!isLoopback(there.slice(0, there.indexOf(':')))) found.redirected++;
  }
  return found;
}

export function hasListener(text: string, port: number, where?: 'loopback'): boolean {
  return text.split('\n').some((line) => {
    const [, here, , state] = line.trim().split(/\s+/);
    if (here?.endsWith(localPort(port)) !== true || state !== LISTEN) return false;
    const address = here.slice(0, here.indexOf(':'));
    return where === undefined || /^0+$/.test(address) || isLoopback(address);
  });
}

function isListening(sockets: readonly TcpSocket[], port: number, where?: 'loopback'): boolean {
  return sockets.some(({ localPort: own, local }) => own === port && (where === undefined || isAny(local) || isLoopbackAddress(local)));
}

/** undefined: the kernel has no inet_diag. Without it each look takes a process, and a hundred pods that change at once wait for those. */
function orNone(sockets: Promise<TcpSocket[]>): Promise<TcpSocket[] | undefined> {
  return sockets.catch(() => undefined);
}

function countOf(sockets: readonly TcpSocket[], port: number): CapturedSockets {
  const found = sockets.filter(({ listening, localPort: own }) => !listening && own === port);
  return { total: found.length, redirected: found.filter(({ remote }) => !isLoopbackAddress(remote)).length };
}

const MAPPED = '00000000000000000000ffff';

function hexOf(address: Buffer): string {
  const hex = address.toString('hex');
  return hex.startsWith(MAPPED) ? hex.slice(MAPPED.length) : hex;
}

/** @param address 16 bytes, IPv4 in mapped form */
function isAny(address: Buffer): boolean {
  return /^0+$/.test(hexOf(address));
}

function isLoopbackAddress(address: Buffer): boolean {
  const hex = hexOf(address);
  return hex.length === 8 ? hex.startsWith('7f') : /^0{31}1$/.test(hex);
}

const localPort = (port: number): string => `:${port.toString(16).toUpperCase().padStart(4, '0')}`;

function isLoopback(hex: string): boolean {
  // 127.0.0.0/8 alone or mapped, and ::1, little-endian: every platform that Envoy is released for.
  if (hex.length === 8) return hex.endsWith('7F');
  return hex === '00000000000000000000000001000000' || (hex.startsWith('0000000000000000FFFF0000') && hex.endsWith('7F'));
}

function inode(path: string): string | undefined {
  try {
    const { dev, ino } = statSync(path);
    return `${dev}:${ino}`;
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}
