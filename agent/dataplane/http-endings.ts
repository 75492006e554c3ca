/**
 * Ends connections for the HTTP fast path. Envoy does not see what the kernel moves past it: a server that goes away in the
 * middle of an answer leaves the client waiting, and a client that does leaves the server's connection with half an exchange
 * on it. The kernel's programs see both, and tell; bpf/http-structs.h, enum http_end.
 */
import { errorMessage } from '../../common/errors.js';
import { OUTBOUND_PORT } from '../../common/istio-iptables.js';
import type { Logger } from '../../common/log.js';
import { sleep } from '../../common/retry.js';
import { destroyTcpSockets, findTcpSocket, shutdownTcpSockets, tcpSocketId, type TcpSocket, type TcpSocketName } from '../../native/index.js';
import type { HttpEnd } from './kernel-http-control.js';

export interface HttpEndingsOptions {
  /** Of the pod with this namespace; undefined: it is gone, and all its connections. */
  netnsPathOf(netnsCookie: bigint): string | undefined;
  /** The shared Envoy's process. */
  proxyPid(): number | undefined;
  logger: Logger;
  now?: () => number;
}

export interface HttpEndings {
  /** Clients' connections that were ended as the server had ended its own, and those that were reset. */
  clientsEnded: number;
  clientsReset: number;
  serversReset: number;
  /** It had ended by itself. */
  gone: number;
  failed: number;
}

const SAME_PROBLEM_EVERY_MS = 60_000;
/** A reset is not repeated: the kernel drops one that comes while a program reads from a queue that is longer than its buffers, which moved bytes may make it. */
const DEAF_MS = 100;

export class HttpEndingQueue {
  readonly #options: HttpEndingsOptions;
  /** Of one namespace one after the other. */
  readonly #queues = new Map<bigint, Promise<void>>();
  readonly #lookingAgain = new Set<Promise<void>>();
  readonly #count: HttpEndings = { clientsEnded: 0, clientsReset: 0, serversReset: 0, gone: 0, failed: 0 };
  #failedBefore = 0;
  #warnedAt = -Infinity;

  constructor(options: HttpEndingsOptions) {
    this.#options = options;
  }

  get count(): Readonly<HttpEndings> {
    return this.#count;
  }

  readonly end = (what: HttpEnd): void => {
    const before = this.#queues.get(what.netnsCookie) ?? Promise.resolve();
    const now = before.then(() => this.#end(what)).catch((error: unknown) => this.#failed(what, error)).finally(() => {
      if (this.#queues.get(what.netnsCookie) === now) this.#queues.delete(what.netnsCookie);
    });
    this.#queues.set(what.netnsCookie, now);
  };

  /** Resolves when all that was told so far is done. */
  async idle(): Promise<void> {
    await Promise.all(this.#queues.values());
    await Promise.all(this.#lookingAgain);
  }

  async #end({ side, orderly, netnsCookie, socket }: HttpEnd): Promise<void> {
    const path = this.#options.netnsPathOf(netnsCookie);
    if (path === undefined) {
      this.#count.gone++;
      return;
    }
    const found = await findTcpSocket(path, tcpSocketId(socket));
    if (!found) {
      this.#count.gone++;
      return;
    }
    // What Envoy has is ended, where it is in this namespace: programs see their connection ended by the other end.
    const proxys = found.localPort === OUTBOUND_PORT ? found : await findTcpSocket(path, tcpSocketId(reversed(found)));
    if (side === 'client' && orderly && proxys && (await this.#shutDown(path, proxys))) {
      this.#count.clientsEnded++;
      return;
    }
    const target = proxys ?? found;
    const other = target === found ? await findTcpSocket(path, tcpSocketId(reversed(found))) : found;
    const ended = await destroyTcpSockets(path, [target.id]);
    if (ended > 0 && other) this.#lookAgain(path, other);
    if (ended === 0) this.#count.gone++;
    else if (side === 'client') this.#count.clientsReset++;
    else this.#count.serversReset++;
  }

  /** Whose other end was reset and who has not heard of it is ended as well. */
  #lookAgain(path: string, { id }: TcpSocket): void {
    const look = sleep(DEAF_MS).then(() => destroyTcpSockets(path, [id])).then(() => undefined, (error: unknown) => this.#warn(error, 'whether a program heard of the end of its connection is not known')).finally(() => this.#lookingAgain.delete(look));
    this.#lookingAgain.add(look);
  }

  /** As Envoy would end what it sends. */
  async #shutDown(path: string, { id }: TcpSocket): Promise<boolean> {
    const pid = this.#options.proxyPid();
    if (pid === undefined) return false;
    try {
      return (await shutdownTcpSockets(path, [id], pid)) === 1;
    } catch (error) {
      this.#warn(error, 'a connection could not be ended as its server did; it is reset instead');
      return false;
    }
  }

  #failed({ side, netnsCookie }: HttpEnd, error: unknown): void {
    this.#count.failed++;
    this.#warn(error, `a ${side}'s connection whose other half has ended could not be ended`, String(netnsCookie));
  }

  #warn(error: unknown, what: string, netnsCookie?: string): void {
    const now = (this.#options.now ?? (() => performance.now()))();
    if (now - this.#warnedAt < SAME_PROBLEM_EVERY_MS) return;
    this.#warnedAt = now;
    const failed = this.#count.failed - this.#failedBefore;
    this.#failedBefore = this.#count.failed;
    this.#options.logger.error({ reason: errorMessage(error), failed, ...(netnsCookie === undefined ? {} : { netnsCookie }) }, what);
  }
}

function reversed({ local, remote, localPort, remotePort }: TcpSocketName): TcpSocketName {
  return { local: remote, remote: local, localPort: remotePort, remotePort: localPort };
}
