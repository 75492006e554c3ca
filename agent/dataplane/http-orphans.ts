/**
 * Upstream connections of the HTTP fast path whose client is gone. Each is one client connection's own, and Envoy keeps it for
 * ever: it must not end it for being idle, since it does not see what the kernel moves over it. DESIGN section 6, rule 12.
 */
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { destroyTcpSockets, shutdownTcpSockets, tcpSocketId, tcpSockets, type TcpSocket } from '../../native/index.js';
import { encodeAddress } from './kernel-codec.js';
import type { KernelPod } from './kernel.js';

export interface HttpOrphansOptions {
  /** Cookies of servers' sockets that were learnt for a client that is gone. */
  orphans(): bigint[];
  pods(): readonly Pick<KernelPod, 'uid' | 'addresses'>[];
  netnsPath(uid: string): string;
  proxyPid(): number | undefined;
  logger: Logger;
  everyMs?: number;
}

/** What a client has left behind stays so long at most twice. */
const EVERY_MS = 2_000;
/** Not ended by Envoy's shutting down after so many rounds: reset. */
const PATIENCE = 3;

export class HttpOrphans implements Closable {
  readonly #options: HttpOrphansOptions;
  readonly #timer: NodeJS.Timeout;
  /** Rounds in which they were found, by cookie. */
  #known = new Map<bigint, number>();
  #sweeping: Promise<void> | undefined;
  #problem: string | undefined;
  #ended = 0;

  constructor(options: HttpOrphansOptions) {
    this.#options = options;
    this.#timer = setInterval(() => this.#start(), options.everyMs ?? EVERY_MS);
  }

  get ended(): number {
    return this.#ended;
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#sweeping;
  }

  #start(): void {
    this.#sweeping ??= this.#sweep().then(() => (this.#problem = undefined), (error: unknown) => {
      const problem = errorMessage(error);
      if (problem !== this.#problem) this.#options.logger.warn({ reason: problem }, 'upstream connections of clients that are gone could not be ended: they stay');
      this.#problem = problem;
    }).finally(() => (this.#sweeping = undefined));
  }

  async #sweep(): Promise<void> {
    const { orphans, pods, netnsPath } = this.#options;
    const known = new Map(orphans().map((cookie) => [cookie, (this.#known.get(cookie) ?? 0) + 1]));
    this.#known = known;
    // A client that was just accepted may be learnt for before it is listed.
    if (![...known.values()].some((rounds) => rounds > 1)) return;
    const owners = new Map(pods().flatMap(({ uid, addresses }) => addresses.map((address) => [encodeAddress(address).toString('hex'), uid] as const)));
    for (const { uid } of pods()) {
      const own = (await tcpSockets(netnsPath(uid))).filter(({ cookie, listening }) => !listening && (known.get(cookie) ?? 0) > 1);
      if (own.length > 0) await this.#end(netnsPath(uid), own, owners);
    }
  }

  /** Envoy's ends are in the client's namespace, or in this one where the pod's inbound chain was passed. */
  async #end(path: string, servers: readonly TcpSocket[], owners: ReadonlyMap<string, string>): Promise<void> {
    const { netnsPath, proxyPid } = this.#options;
    const late = servers.filter(({ cookie }) => this.#known.get(cookie)! > PATIENCE);
    if (late.length > 0) this.#ended += await destroyTcpSockets(path, late.map(({ id }) => id));
    const pid = proxyPid();
    if (pid === undefined) return;
    const byPath = new Map<string, Buffer[]>([[path, []]]);
    for (const { local, remote, localPort, remotePort } of servers) {
      const id = tcpSocketId({ local: remote, remote: local, localPort: remotePort, remotePort: localPort });
      const owner = owners.get(remote.toString('hex'));
      for (const each of new Set([path, ...(owner === undefined ? [] : [netnsPath(owner)])])) byPath.set(each, [...(byPath.get(each) ?? []), id]);
    }
    for (const [each, ids] of byPath) if (ids.length > 0) this.#ended += await shutdownTcpSockets(each, ids, pid);
  }
}
