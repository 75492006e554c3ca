/** A line to an API server that can be cut. */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

export class Relay {
  readonly #sockets = new Set<Socket>();
  #server: Server | undefined;
  #isCut = false;

  async listen(port: number): Promise<number> {
    this.#server = createServer((inner) => {
      if (this.#isCut) return void inner.destroy();
      const outer = connect(port, '127.0.0.1');
      for (const [socket, other] of [[inner, outer], [outer, inner]] as const) {
        this.#sockets.add(socket);
        socket.on('error', () => undefined).on('close', () => (other.destroy(), this.#sockets.delete(socket)));
      }
      inner.pipe(outer).pipe(inner);
    }).listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    return (this.#server.address() as AddressInfo).port;
  }

  cut(isCut: boolean): void {
    this.#isCut = isCut;
    if (isCut) for (const socket of this.#sockets) socket.destroy();
  }

  close(): void {
    this.cut(true);
    this.#server?.close();
  }
}
