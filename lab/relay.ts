/** Hands connections at a Unix socket on to the control plane, which pods' namespaces can't reach and user 1337 may not. */
import { chmodSync, rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { UnderpassError } from '../common/errors.js';
import type { Closable } from '../common/lifecycle.js';

export type Target = { path: string } | { host: string; port: number };

/** `unix:/path`, `/path` or `host:port`. */
export function parseAddress(address: string): Target {
  if (address.startsWith('unix:')) return { path: address.slice('unix:'.length) };
  if (address.startsWith('/')) return { path: address };
  const match = /^\[?([^\]]+?)\]?:(\d+)$/.exec(address);
  const port = Number(match?.[2]);
  if (!match?.[1] || port < 1 || port > 65535) {
    throw new UnderpassError(
      'UNDERPASS_ADDRESS',
      `reading the address ${JSON.stringify(address)}: expected host:port or unix:PATH`,
    );
  }
  return { host: match[1], port };
}

export class Relay implements Closable {
  readonly #sockets = new Set<Socket>();

  private constructor(
    readonly server: Server,
    readonly path: string,
  ) {}

  static async listen(path: string, target: Target): Promise<Relay> {
    const server = createServer();
    const relay = new Relay(server, path);
    server.on('connection', (downstream) => relay.#join(downstream, connect(target)));
    rmSync(path, { force: true });
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(path, resolve);
    });
    chmodSync(path, 0o666);
    return relay;
  }

  #join(downstream: Socket, upstream: Socket): void {
    for (const [socket, other] of [
      [downstream, upstream],
      [upstream, downstream],
    ] as const) {
      this.#sockets.add(socket);
      socket.on('error', () => other.destroy());
      socket.on('close', () => {
        this.#sockets.delete(socket);
        other.destroy();
      });
      socket.pipe(other);
    }
  }

  close(): void {
    this.server.close();
    for (const socket of this.#sockets) socket.destroy();
    rmSync(this.path, { force: true });
  }
}
