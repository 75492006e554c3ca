/** The cluster's DNS on a node: names of services (and of a headless service's pods) under cluster.local, and those that pods are given by annotation. */
import { createSocket, type Socket as DatagramSocket } from 'node:dgram';
import { createServer, type Server } from 'node:net';
import packet from 'dns-packet';
import type { Closable } from '../common/lifecycle.js';
import { openSocket } from '../native/index.js';

export const CLUSTER_DOMAIN = 'cluster.local';
const TTL_SECONDS = 5;
const MAX_UDP_BYTES = 1232;

export type Zone = ReadonlyMap<string, ZoneEntry>;

export interface ZoneEntry {
  /** Addresses of both families. */
  ips: readonly string[];
  /** Of a service of type ExternalName. */
  alias?: string;
}

interface Answer {
  code: 'NOERROR' | 'NXDOMAIN' | 'NOTIMP';
  answers: packet.Answer[];
}

/** Names are case-insensitive; a name that exists has an empty answer for a type it has nothing of. */
export function resolve(zone: Zone, question: packet.Question): Answer {
  const name = question.name.toLowerCase().replace(/\.$/, '');
  const entry = zone.get(name) ?? zone.get(name.replace(/^[^.]+/, '*'));
  if (!entry) {
    // A name above one that exists exists itself (RFC 8020), e.g. svc.cluster.local.
    const inner = [...zone.keys()].some((key) => key.endsWith(`.${name}`));
    return { code: inner ? 'NOERROR' : 'NXDOMAIN', answers: [] };
  }
  if (entry.alias)
    return { code: 'NOERROR', answers: [{ type: 'CNAME', name: question.name, ttl: TTL_SECONDS, data: entry.alias }] };
  const wanted = question.type === 'A' ? '.' : question.type === 'AAAA' ? ':' : undefined;
  if (!wanted) return { code: 'NOERROR', answers: [] };
  const answers = entry.ips
    .filter((ip) => ip.includes(wanted))
    .map((ip): packet.Answer => ({ type: question.type as 'A' | 'AAAA', name: question.name, ttl: TTL_SECONDS, data: ip }));
  return { code: 'NOERROR', answers };
}

const RCODES = { NOERROR: 0, NXDOMAIN: 3, NOTIMP: 4 } as const;

function respond(zone: Zone, query: Buffer): Buffer | undefined {
  let decoded: packet.DecodedPacket;
  try {
    decoded = packet.decode(query);
  } catch {
    return undefined; // not DNS: no answer
  }
  const question = decoded.questions?.[0];
  if (decoded.type !== 'query' || !question) return undefined;
  const { code, answers } = decoded.questions?.length === 1 ? resolve(zone, question) : { code: 'NOTIMP' as const, answers: [] };
  const recursion = (decoded.flags ?? 0) & packet.RECURSION_DESIRED;
  return packet.encode({
    type: 'response',
    id: decoded.id ?? 0,
    flags: packet.AUTHORITATIVE_ANSWER | packet.RECURSION_AVAILABLE | recursion | RCODES[code],
    questions: decoded.questions ?? [],
    answers,
  });
}

export class DnsServer implements Closable {
  #zone: Zone = new Map();
  #closed = false;

  private constructor(
    readonly udp: readonly DatagramSocket[],
    readonly tcp: readonly Server[],
  ) {}

  /** Listens on port 53 of these addresses inside the namespace. */
  static async listen(netns: string, addresses: readonly string[]): Promise<DnsServer> {
    const udp: DatagramSocket[] = [];
    const tcp: Server[] = [];
    const server = new DnsServer(udp, tcp);
    try {
      for (const address of addresses) {
        const family = address.includes(':') ? 'ipv6' : 'ipv4';
        const bind = { address, port: 53 };
        const datagram = createSocket(family === 'ipv6' ? 'udp6' : 'udp4');
        datagram.on('message', (message, from) => server.#onDatagram(datagram, message, from));
        datagram.on('error', () => undefined);
        udp.push(datagram);
        const fd = await openSocket({ netns, family, type: 'dgram', bind });
        await new Promise<void>((done, fail) => {
          datagram.once('error', fail);
          datagram.bind({ fd }, () => done());
        });
        const listener = createServer((socket) => server.#onConnection(socket));
        tcp.push(listener);
        const listenFd = await openSocket({ netns, family, type: 'stream', bind, listen: 64 });
        await new Promise<void>((done, fail) => {
          listener.once('error', fail);
          listener.listen({ fd: listenFd }, done);
        });
      }
    } catch (error) {
      server.close();
      throw error;
    }
    return server;
  }

  setZone(zone: Zone): void {
    this.#zone = zone;
  }

  #onDatagram(socket: DatagramSocket, message: Buffer, from: { address: string; port: number }): void {
    let response = respond(this.#zone, message);
    if (!response) return;
    if (response.length > MAX_UDP_BYTES) {
      const query = packet.decode(message);
      response = packet.encode({
        type: 'response',
        id: query.id ?? 0,
        flags: packet.TRUNCATED_RESPONSE,
        questions: query.questions ?? [],
      });
    }
    if (!this.#closed) socket.send(response, from.port, from.address, () => undefined);
  }

  #onConnection(socket: import('node:net').Socket): void {
    let pending = Buffer.alloc(0);
    socket.setTimeout(10_000, () => socket.destroy());
    socket.on('error', () => socket.destroy());
    socket.on('data', (chunk) => {
      pending = Buffer.concat([pending, chunk]);
      while (pending.length >= 2 && pending.length >= 2 + pending.readUInt16BE(0)) {
        const length = pending.readUInt16BE(0);
        const response = respond(this.#zone, pending.subarray(2, 2 + length));
        pending = pending.subarray(2 + length);
        if (!response) return socket.destroy();
        const prefix = Buffer.alloc(2);
        prefix.writeUInt16BE(response.length);
        socket.write(Buffer.concat([prefix, response]));
      }
    });
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const socket of this.udp) {
      try {
        socket.close();
      } catch {
        // was never bound
      }
    }
    for (const server of this.tcp) server.close();
  }
}
