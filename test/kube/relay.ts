/** A line to an API server that can be cut, or a Service: each connection goes to the first of several ports that takes it. */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

export class Relay {
  readonly #sockets = new Set<Socket>();
  #server: Server | undefined;
  #isCut = false;

  /** Where connections go from now on. */
  ports: readonly number[] = [];

  async listen(...ports: number[]): Promise<number> {
    this.ports = ports;
    this.#server = createServer((inner) => {
      if (this.#isCut) return void inner.destroy();
      inner.on('error', () => undefined);
      void connected(this.ports).then((outer) => {
        if (!outer) return inner.destroy();
        for (const [socket, other] of [[inner, outer], [outer, inner]] as const) {
          this.#sockets.add(socket);
          socket.on('error', () => undefined).on('close', () => (other.destroy(), this.#sockets.delete(socket)));
        }
        inner.pipe(outer).pipe(inner);
      });
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

async function connected([port, ...others]: readonly number[]): Promise<Socket | undefined> {
  if (port === undefined) return undefined;
  const socket = connect(port, '127.0.0.1');
  const isOpen = await new Promise<boolean>((resolve) => socket.once('connect', () => resolve(true)).once('error', () => resolve(false)));
  return isOpen ? socket : connected(others);
}
