/** A line to an API server that can be cut, or that leads into another network namespace; or a Service: each connection goes to the first of several ports that takes it. */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

export class Relay {
  readonly #sockets = new Set<Socket>();
  #server: Server | undefined;
  #isCut = false;

  /** Where connections go from now on. */
  ports: readonly number[] = [];

  /** @param open rejects where nobody listens; default: on loopback */
  constructor(readonly open: (port: number) => Promise<Socket> = onLoopback) {}

  async listen(...ports: number[]): Promise<number> {
    this.ports = ports;
    this.#server = createServer((inner) => {
      if (this.#isCut) return void inner.destroy();
      inner.on('error', () => undefined);
      void this.#connected(this.ports).then((outer) => {
        if (!outer || this.#isCut || inner.destroyed) return void (inner.destroy(), outer?.destroy());
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

  async #connected([port, ...others]: readonly number[]): Promise<Socket | undefined> {
    if (port === undefined) return undefined;
    return this.open(port).catch(() => this.#connected(others));
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

async function onLoopback(port: number): Promise<Socket> {
  const socket = connect(port, '127.0.0.1');
  await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject));
  return socket;
}
