/** A port in front of a server, which can go away and come back. */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

export class Relay {
  readonly #sockets = new Set<Socket>();
  #server: Server | undefined;
  #port = 0;
  #target = 0;

  async open(target = this.#target): Promise<string> {
    this.#target = target;
    if (!this.#server) {
      this.#server = createServer((socket) => {
        const to = connect(this.#target, '127.0.0.1');
        for (const end of [socket, to]) {
          this.#sockets.add(end);
          end.on('error', () => undefined).on('close', () => this.#sockets.delete(end));
        }
        socket.pipe(to).pipe(socket);
      }).listen(this.#port, '127.0.0.1');
      await once(this.#server, 'listening');
      this.#port = (this.#server.address() as AddressInfo).port;
    }
    return `localhost:${this.#port}`;
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    const server = this.#server;
    this.#server = undefined;
    if (server) await new Promise((done) => server.close(done));
  }

  get isOpen(): boolean {
    return this.#server !== undefined;
  }

  get address(): string {
    return `localhost:${this.#port}`;
  }
}
