/**
 * A gRPC server whose clients are not pinged all at once. grpc-js has one keepalive time for all sessions of a Server, and no
 * jitter: clients that connected together, as after a restart of the control plane, are pinged together for ever, each ping a
 * write of its own, with the event loop held up meanwhile. So several Servers, each with a keepalive time of its own, share the
 * listening sockets: the clients of one Server are few, and the Servers drift apart.
 */
import type { Server as Listener, Socket } from 'node:net';
import { Server, type ChannelOptions, type ServerCredentials } from '@grpc/grpc-js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { listenOn } from './listener.js';

/** Each costs 7 KiB, and 40 KiB and 1 ms with TLS. */
const SERVERS = 32;

/** The shortest keepalive time is this share of the longest. */
const SHORTEST = 2 / 3;

/** Where services are added. */
export type ServiceRegistry = Pick<Server, 'addService'>;

export interface ServerGroupOptions {
  logger: Logger;
  /** A client is pinged when this long, or up to a third less, has passed since it answered the last ping. */
  keepaliveTimeMs: number;
  /** How long streams may go on after close(). */
  stopGraceMs: number;
  /** For all Servers alike. */
  channel?: ChannelOptions;
}

export class ServerGroup implements ServiceRegistry, Closable {
  readonly #servers: readonly Server[];
  /** Connections of each Server. */
  readonly #counts: number[];
  readonly #listeners: Listener[] = [];
  readonly #sockets = new Set<Socket>();

  constructor(readonly options: ServerGroupOptions) {
    const { keepaliveTimeMs, channel } = options;
    // Ratios of one root of SHORTEST are irrational: no two Servers meet again and again.
    const times = Array.from({ length: SERVERS }, (_, index) => Math.round(keepaliveTimeMs * SHORTEST ** (index / SERVERS)));
    // Channelz keeps books of each stream and message, which nobody asks for here.
    this.#servers = times.map((time) => new Server({ ...channel, 'grpc.keepalive_time_ms': time, 'grpc.enable_channelz': 0 }));
    this.#counts = times.map(() => 0);
  }

  /** How many are open, those in a TLS handshake among them. */
  get connections(): number {
    return this.#sockets.size;
  }

  /** Before the first listen(). */
  addService(...service: Parameters<Server['addService']>): void {
    for (const server of this.#servers) server.addService(...service);
  }

  /**
   * @param address `host:port` (port 0: any) or `unix:PATH`
   * @returns the port; undefined for a Unix socket
   * @throws Error when it can't be listened on
   */
  async listen(address: string, credentials: ServerCredentials): Promise<number | undefined> {
    const injectors = this.#servers.map((server) => server.createConnectionInjector(credentials));
    const accept = (socket: Socket): void => injectors[this.#assign(socket)]!.injectConnection(socket);
    try {
      const { servers, port, failures } = await listenOn(address, accept);
      if (failures.length > 0) this.options.logger.warn({ address, failures }, 'listening on some of the addresses of a name only');
      this.#listeners.push(...servers);
      return port;
    } catch (error) {
      for (const injector of injectors) injector.destroy();
      throw error;
    }
  }

  /** @returns the index of the Server that gets it: one with the fewest connections */
  #assign(socket: Socket): number {
    const index = this.#counts.indexOf(Math.min(...this.#counts));
    this.#counts[index]! += 1;
    this.#sockets.add(socket);
    socket.once('close', () => {
      this.#counts[index]! -= 1;
      this.#sockets.delete(socket);
    });
    return index;
  }

  /** Takes no connections and no streams from now on, lets those that are there end, then cuts off what is left. @param moreMs for their end, beyond the grace */
  async close(moreMs = 0): Promise<void> {
    const closed = this.#listeners.map((listener) => new Promise<void>((resolve) => void listener.close(() => resolve())));
    const shutDown = this.#servers.map((server) => new Promise<void>((resolve) => void server.tryShutdown(() => resolve())));
    const force = setTimeout(() => {
      // Not forceShutdown(): without channelz, grpc-js 1.14.7 does not know its sessions, and leaves them open. Nor does it see TLS handshakes.
      for (const socket of this.#sockets) socket.destroy();
    }, this.options.stopGraceMs + moreMs);
    await Promise.all([...closed, ...shutDown]);
    clearTimeout(force);
  }
}
