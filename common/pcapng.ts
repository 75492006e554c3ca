/**
 * Captures that no interface saw: TCP segments made of the payload of sockets, in the format that Wireshark reads.
 * https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-03.html
 */
import { isIPv6 } from 'node:net';
import { Transform } from 'node:stream';

export interface CapturedEnd {
  address: string;
  port: number;
}

const SECTION = 0x0a0d0d0a, INTERFACE = 1, ENHANCED_PACKET = 6;
const COMMENT = 1, HARDWARE = 2, OS = 3, APPLICATION = 4, NAME = 2, RESOLUTION = 9;
/** Packets begin with their IP header. */
const LINKTYPE_RAW = 101;
const NANOSECONDS = 9;
const TCP = 6, TCP_HEADER = 20;
const FIN = 1, SYN = 2, PSH = 8, ACK = 16;
/** So that a segment fits an IPv4 packet. */
const MAX_SEGMENT = 32_768;

const padded = (length: number): number => (length + 3) & ~3;

function option(code: number, value: Buffer): Buffer {
  const out = Buffer.alloc(4 + padded(value.length));
  out.writeUInt16LE(code, 0);
  out.writeUInt16LE(value.length, 2);
  value.copy(out, 4);
  return out;
}

function block(type: number, body: Buffer, options: readonly Buffer[]): Buffer {
  const all = options.length === 0 ? [body] : [body, ...options, Buffer.alloc(4)];
  const length = 12 + all.reduce((sum, { length: each }) => sum + each, 0);
  const head = Buffer.alloc(8), tail = Buffer.alloc(4);
  head.writeUInt32LE(type, 0);
  head.writeUInt32LE(length, 4);
  tail.writeUInt32LE(length, 0);
  return Buffer.concat([head, ...all, tail]);
}

/** Lets blocks through whole: what comes in pieces and ends anywhere stays a file that is read without complaint. */
export class WholeBlocks extends Transform {
  #rest = Buffer.alloc(0);

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    const all = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    let end = 0;
    while (all.length >= end + 8 && all.length >= end + all.readUInt32LE(end + 4) && all.readUInt32LE(end + 4) >= 12) end += all.readUInt32LE(end + 4);
    if (end > 0) this.push(all.subarray(0, end));
    this.#rest = Buffer.from(all.subarray(end));
    done();
  }
}

/** What a file begins with. */
export function pcapngHead(application: string, interfaceName: string): Buffer {
  const section = Buffer.alloc(16), described = Buffer.alloc(8);
  section.writeUInt32LE(0x1a2b3c4d, 0);
  section.writeUInt16LE(1, 4);
  section.writeBigInt64LE(-1n, 8);
  described.writeUInt16LE(LINKTYPE_RAW, 0);
  return Buffer.concat([
    block(SECTION, section, [option(HARDWARE, Buffer.from(process.arch)), option(OS, Buffer.from(process.platform)), option(APPLICATION, Buffer.from(application))]),
    block(INTERFACE, described, [option(NAME, Buffer.from(interfaceName)), option(RESOLUTION, Buffer.from([NANOSECONDS]))]),
  ]);
}

/** @param atNs since 1970 */
function packetBlock(packet: Buffer, atNs: bigint, comment: string | undefined): Buffer {
  const body = Buffer.alloc(20 + padded(packet.length));
  body.writeUInt32LE(Number(atNs >> 32n), 4);
  body.writeUInt32LE(Number(atNs & 0xffff_ffffn), 8);
  body.writeUInt32LE(packet.length, 12);
  body.writeUInt32LE(packet.length, 16);
  packet.copy(body, 20);
  return block(ENHANCED_PACKET, body, comment === undefined ? [] : [option(COMMENT, Buffer.from(comment))]);
}

function addressBytes(address: string): Buffer {
  if (!isIPv6(address)) return Buffer.from(address.split('.').map(Number));
  const [head = '', tail] = address.split('::');
  const groups = (text: string | undefined): string[] => (text ? text.split(':') : []);
  const left = groups(head), right = groups(tail), out = Buffer.alloc(16);
  [...left, ...Array<string>(Math.max(0, 8 - left.length - right.length)).fill('0'), ...right].forEach((group, index) => out.writeUInt16BE(parseInt(group, 16), index * 2));
  return out;
}

/** The Internet's checksum, RFC 1071. */
function checksum(...parts: readonly Buffer[]): number {
  let sum = 0;
  for (const part of parts) {
    for (let at = 0; at + 1 < part.length; at += 2) sum += part.readUInt16BE(at);
    if (part.length % 2 === 1) sum += part[part.length - 1]! << 8;
  }
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 0x10000);
  return ~sum & 0xffff;
}

interface Segment {
  from: CapturedEnd;
  to: CapturedEnd;
  sequence: number;
  acknowledged: number;
  flags: number;
  data: Buffer;
}

function packetOf({ from, to, sequence, acknowledged, flags, data }: Segment): Buffer {
  const source = addressBytes(from.address), destination = addressBytes(to.address);
  const tcp = Buffer.alloc(TCP_HEADER);
  tcp.writeUInt16BE(from.port, 0);
  tcp.writeUInt16BE(to.port, 2);
  tcp.writeUInt32BE(sequence >>> 0, 4);
  tcp.writeUInt32BE(acknowledged >>> 0, 8);
  tcp[12] = (TCP_HEADER / 4) << 4;
  tcp[13] = flags;
  tcp.writeUInt16BE(0xffff, 14);
  const length = TCP_HEADER + data.length;
  const pseudo = Buffer.alloc(8);
  pseudo.writeUInt32BE(length, 0);
  pseudo.writeUInt32BE(TCP, 4);
  tcp.writeUInt16BE(checksum(source, destination, pseudo, tcp, data), 16);
  const isV6 = source.length === 16;
  const ip = Buffer.alloc(isV6 ? 40 : 20);
  if (isV6) {
    ip.writeUInt32BE(0x6000_0000, 0);
    ip.writeUInt16BE(length, 4);
    ip[6] = TCP;
    ip[7] = 64;
    source.copy(ip, 8);
    destination.copy(ip, 24);
  } else {
    ip[0] = 0x45;
    ip.writeUInt16BE(20 + length, 2);
    ip.writeUInt16BE(0x4000, 6);
    ip[8] = 64;
    ip[9] = TCP;
    source.copy(ip, 12);
    destination.copy(ip, 16);
    ip.writeUInt16BE(checksum(ip), 10);
  }
  return Buffer.concat([ip, tcp, data]);
}

/** One TCP connection, as an interface between its ends would have seen it; its numbers begin at 0. */
export class CapturedConnection {
  #next = { client: 1, server: 1 };
  readonly #isSame: boolean;

  /** Both ends have addresses of one family. */
  constructor(readonly client: CapturedEnd, readonly server: CapturedEnd, readonly write: (block: Buffer) => void) {
    this.#isSame = isIPv6(client.address) === isIPv6(server.address);
  }

  open(atNs: bigint, comment: string): void {
    this.#packet('client', 0, 0, SYN, Buffer.alloc(0), atNs, comment);
    this.#packet('server', 0, 1, SYN | ACK, Buffer.alloc(0), atNs);
    this.#packet('client', 1, 1, ACK, Buffer.alloc(0), atNs);
  }

  send(from: 'client' | 'server', data: Buffer, atNs: bigint, comment?: string): void {
    for (let at = 0; at < data.length; at += MAX_SEGMENT) {
      const part = data.subarray(at, at + MAX_SEGMENT);
      this.#packet(from, this.#next[from], this.#next[from === 'client' ? 'server' : 'client'], PSH | ACK, part, atNs, at === 0 ? comment : undefined);
      this.#next[from] = (this.#next[from] + part.length) >>> 0;
    }
  }

  /** Bytes that were sent and are not known. */
  skip(from: 'client' | 'server', bytes: number): void {
    this.#next[from] = (this.#next[from] + bytes) >>> 0;
  }

  end(from: 'client' | 'server', atNs: bigint, comment?: string): void {
    this.#packet(from, this.#next[from], this.#next[from === 'client' ? 'server' : 'client'], FIN | ACK, Buffer.alloc(0), atNs, comment);
    this.#next[from] = (this.#next[from] + 1) >>> 0;
  }

  #packet(side: 'client' | 'server', sequence: number, acknowledged: number, flags: number, data: Buffer, atNs: bigint, comment?: string): void {
    if (!this.#isSame) return;
    const [from, to] = side === 'client' ? [this.client, this.server] : [this.server, this.client];
    this.write(packetBlock(packetOf({ from, to, sequence, acknowledged, flags, data }), atNs, comment));
  }
}
