/** Listening sockets of our own, for servers that are handed their connections. */
import { lookup } from 'node:dns/promises';
import { once } from 'node:events';
import { createServer, type AddressInfo, type ListenOptions, type Server, type Socket } from 'node:net';
import { errorMessage } from '../../common/errors.js';

export interface Listening {
  servers: Server[];
  /** Undefined for a Unix socket. */
  port: number | undefined;
  /** Why some of several addresses are not listened on. */
  failures: string[];
}

/**
 * @param address `host:port` (port 0: any; brackets around an IPv6 address) or `unix:PATH`; a name stands for each of its addresses
 * @throws Error when none of them can be listened on
 */
export async function listenOn(address: string, accept: (socket: Socket) => void): Promise<Listening> {
  return listenOnAll(await placesOf(address), accept);
}

/** @param places if several, of one port. @throws Error when none of them can be listened on */
export async function listenOnAll(places: readonly ListenOptions[], accept: (socket: Socket) => void): Promise<Listening> {
  const listening: Listening = { servers: [], port: places[0]?.port, failures: [] };
  for (const place of places) {
    try {
      // The port that the first was given is that of all.
      const server = await open(place.path === undefined ? { ...place, port: listening.port } : place, accept);
      listening.servers.push(server);
      if (place.path === undefined) listening.port = (server.address() as AddressInfo).port;
    } catch (error) {
      listening.failures.push(errorMessage(error));
    }
  }
  if (listening.servers.length === 0) throw new Error(`No address added out of total ${places.length} resolved errors: [${listening.failures.join(',')}]`);
  return listening;
}

async function open(place: ListenOptions, accept: (socket: Socket) => void): Promise<Server> {
  const server = createServer(accept);
  server.listen(place);
  await once(server, 'listening');
  return server;
}

async function placesOf(address: string): Promise<ListenOptions[]> {
  if (address.startsWith('unix:')) return [{ path: address.slice('unix:'.length) }];
  const [, bracketed, plain, port] = /^(?:\[(.+)\]|([^:]+)):(\d+)$/.exec(address) ?? [];
  const host = bracketed ?? plain;
  if (host === undefined || Number(port) > 65_535) throw new Error('expected host:port, or unix:PATH');
  const found = await lookup(host, { all: true });
  return found.map((each) => ({ host: each.address, port: Number(port) }));
}
