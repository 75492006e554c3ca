import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

/**
 * Connections that have one request under way. Thousands of requests fit into one packet, and a server of Node's begins with all of
 * them at once; browsers, scrapers and Node's own clients send no second one before the answer to the first.
 */
export class OneAtATime {
  readonly #busy = new WeakSet<Socket>();

  /** @returns false, where the connection has one already: it is ended */
  admits({ socket }: IncomingMessage, response: ServerResponse): boolean {
    if (this.#busy.has(socket)) {
      socket.destroy();
      return false;
    }
    this.#busy.add(socket);
    response.once('close', () => this.#busy.delete(socket));
    return true;
  }
}
