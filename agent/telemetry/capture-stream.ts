/**
 * `underpass capture`: what the short-circuited sockets of one pod send, as a file for Wireshark. Payload is anybody's secret: only
 * who may open the agent's socket gets it, one at a time, so much and so fast, and the log says who had whose.
 */
import { Readable } from 'node:stream';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { CapturedConnection, pcapngHead, type CapturedEnd } from '../../common/pcapng.js';
import { VERSION } from '../../common/version.js';
import type { KernelWatch, Watched, WatchedPayload, WatchEvent } from '../dataplane/kernel-watch.js';

export const DEFAULT_CAPTURE = { seconds: 60, bytes: 64 << 20, bytesPerSecond: 8 << 20 };
export const MAX_CAPTURE = { seconds: 3_600, bytes: 1 << 30, bytesPerSecond: 64 << 20 };
const REFILL_MS = 100;
const MAX_UNREAD_BYTES = 16 << 20;
/** With heads of packets alone, which are told on: who has taken nothing until then does not come back. */
const MOST_UNREAD_BYTES = 2 * MAX_UNREAD_BYTES;
const MAX_CONNECTIONS = 16_384;

export interface CapturedPod {
  name: string;
  namespace: string;
  netnsCookie: bigint;
  /** Stand for loopback, where a connection was led to the proxy. */
  addresses: readonly string[];
}

export interface CaptureRequest {
  pod: CapturedPod;
  seconds: number;
  /** Of payload, in all and in a second. */
  bytes: number;
  bytesPerSecond: number;
  /** Who asked, as it says. */
  by: string;
}

export interface CaptureStreamOptions {
  watch: Pick<KernelWatch, 'start' | 'stop'>;
  logger: Logger;
}

interface Side {
  connection: CapturedConnection;
  from: 'client' | 'server';
  way: string;
}

export interface CaptureCounts {
  captures: number;
  bytes: number;
  /** Of payload that was not told: over the rate, or nobody read. */
  bytesCut: number;
}

export class CaptureStream implements Closable {
  readonly #options: CaptureStreamOptions;
  readonly counts: CaptureCounts = { captures: 0, bytes: 0, bytesCut: 0 };
  #open: Readable | undefined;

  constructor(options: CaptureStreamOptions) {
    this.#options = options;
  }

  /** @returns undefined while another one is captured */
  open({ pod, seconds, bytes, bytesPerSecond, by }: CaptureRequest): Readable | undefined {
    if (this.#open) return undefined;
    const { watch, logger } = this.#options;
    const whose = `${pod.namespace}/${pod.name}`;
    const began = performance.now();
    const counts = { bytes: 0, bytesCut: 0, connections: 0 };
    this.counts.captures++;
    logger.warn({ pod: whose, by, seconds, bytes, bytesPerSecond }, 'capture of a pod\'s payload begins');
    let hasRoom = true;
    const stream: Readable = new Readable({
      highWaterMark: MAX_UNREAD_BYTES,
      read: () => (hasRoom = true),
      destroy: (error, done) => {
        finish();
        done(error);
      },
    });
    const finish = (): void => {
      if (this.#open !== stream) return;
      this.#open = undefined;
      watch.stop('capture');
      clearInterval(refill);
      clearTimeout(end);
      this.counts.bytes += counts.bytes;
      this.counts.bytesCut += counts.bytesCut;
      logger.warn({ pod: whose, by, ...counts, tookSeconds: Math.round((performance.now() - began) / 100) / 10 }, 'capture of a pod\'s payload has ended');
    };
    const over = (): void => {
      finish();
      stream.push(null);
    };
    const write = (block: Buffer): void => {
      if (this.#open === stream) hasRoom = stream.push(block);
    };
    const assembler = new Assembler(pod, write, counts);
    const onEvent = (event: Watched): void => {
      assembler.take(event, hasRoom);
      if (counts.bytes >= bytes || stream.readableLength > MOST_UNREAD_BYTES) over();
    };
    const budget = Math.ceil((bytesPerSecond * REFILL_MS) / 1_000);
    const start = (): void => watch.start('capture', { netnsCookie: pod.netnsCookie, payloadBytes: budget }, onEvent);
    const refill = setInterval(start, REFILL_MS);
    const end = setTimeout(over, seconds * 1_000);
    this.#open = stream;
    stream.push(pcapngHead(`underpass ${VERSION}`, `sockets of ${whose}`));
    start();
    return stream;
  }

  close(): void {
    this.#open?.destroy();
  }
}

/** Makes connections of what the sockets tell. */
class Assembler {
  readonly #sides = new Map<bigint, Side>();
  /** Messages that were told last, by the socket that sent them: they may have gone elsewhere than to its peer. */
  readonly #last = new Map<bigint, Message>();
  readonly #sinceEpochNs = BigInt(Date.now()) * 1_000_000n - process.hrtime.bigint();

  constructor(readonly pod: CapturedPod, readonly write: (block: Buffer) => void, readonly counts: { bytes: number; bytesCut: number; connections: number }) {}

  /** @param hasRoom false: nobody reads fast enough */
  take(event: Watched, hasRoom: boolean): void {
    if (event.what === 'payload') return this.#payload(event, hasRoom);
    if (event.what === 'request') return;
    const side = this.#sides.get(event.cookie);
    if (event.what === 'opened') this.#opened(event);
    else if (event.what === 'accepted') this.#accepted(event);
    else if (event.what === 'led') this.#led(event, hasRoom);
    else if (event.what === 'cut' && side) this.#cut(side, event.bytes);
    else if (event.what === 'closed' && side) {
      this.#endMessage(side, event.cookie);
      side.connection.end(side.from, this.#at(event.atNs));
      this.#sides.delete(event.cookie);
      this.#last.delete(event.cookie);
    }
  }

  #cut({ connection, from }: Side, bytes: number): void {
    this.counts.bytesCut += bytes;
    connection.skip(from, bytes);
  }

  /** Of a long message the kernel tells the beginning, and what found no room in its buffer is lost. */
  #endMessage(side: Side, cookie: bigint): void {
    const last = this.#last.get(cookie);
    if (last && last.at < last.sizeBytes) this.#cut(side, last.sizeBytes - last.at);
  }

  #at(monotonicNs: bigint): bigint {
    return monotonicNs + this.#sinceEpochNs;
  }

  #opened(event: WatchEvent): void {
    const { local, remote, asked, cookie, reason, flags, netnsCookie } = event;
    if (!local || !remote || this.#sides.size >= MAX_CONNECTIONS) return;
    const isCaptured = flags.has('captured');
    const way = reason === undefined ? 'short-circuited' : `plain TCP (${reason}): its payload is not seen here`;
    const who = flags.has('proxy') ? 'Envoy for the pod' : isCaptured ? 'led to Envoy' : flags.has('resolved') ? 'led to an endpoint' : 'straight';
    const server: CapturedEnd = isCaptured && asked ? asked : remote;
    const connection = new CapturedConnection(netnsCookie === this.pod.netnsCookie ? this.#shown(local, server) : local, server, this.write);
    this.counts.connections++;
    connection.open(this.#at(event.atNs), `${who}, ${way}`);
    this.#sides.set(cookie, { connection, from: 'client', way: who });
  }

  #accepted({ cookie, peerCookie, local, remote, atNs }: WatchEvent): void {
    const opener = this.#sides.get(peerCookie);
    if (opener) return void this.#sides.set(cookie, { ...opener, from: 'server' });
    if (!local || !remote || this.#sides.size >= MAX_CONNECTIONS) return;
    const connection = new CapturedConnection(remote, local, this.write);
    this.counts.connections++;
    connection.open(this.#at(atNs), 'accepted');
    this.#sides.set(cookie, { connection, from: 'server', way: 'accepted' });
  }

  /** A client that was led to the proxy has a loopback address. */
  #shown(end: CapturedEnd, other: CapturedEnd): CapturedEnd {
    const isLoopback = end.address.startsWith('127.') || end.address === '::1';
    const own = this.pod.addresses.find((address) => address.includes(':') === other.address.includes(':'));
    return isLoopback && own !== undefined ? { address: own, port: end.port } : end;
  }

  #payload({ cookie, data, at, sizeBytes, atNs }: WatchedPayload, hasRoom: boolean): void {
    const side = this.#sides.get(cookie);
    // Of a pod that was captured before.
    if (!side) return;
    if (at === 0) {
      this.#endMessage(side, cookie);
      this.#last.set(cookie, { data: [], bytes: 0, at: 0, sizeBytes });
    }
    const last = this.#last.get(cookie);
    if (!last) return;
    if (at > last.at) this.#cut(side, at - last.at);
    last.at = at + data.length;
    if (!hasRoom) return this.#cut(side, data.length);
    this.counts.bytes += data.length;
    side.connection.send(side.from, data, this.#at(atNs), at === 0 ? `${side.way}, a message of ${sizeBytes} B` : undefined);
    last.data.push(data);
    last.bytes += data.length;
  }

  /** By the HTTP fast path: into another socket than the peer's. */
  #led({ cookie, peerCookie, atNs }: WatchEvent, hasRoom: boolean): void {
    const to = this.#sides.get(peerCookie), last = this.#last.get(cookie);
    if (!to || !last) return;
    const from = to.from === 'client' ? 'server' : 'client';
    const isWhole = hasRoom && last.bytes === last.at;
    if (isWhole) to.connection.send(from, Buffer.concat(last.data), this.#at(atNs), 'by the HTTP fast path');
    to.connection.skip(from, last.sizeBytes - (isWhole ? last.bytes : 0));
  }
}

/** As far as it was told. */
interface Message {
  data: Buffer[];
  /** Of `data`. */
  bytes: number;
  /** Where what comes next begins. */
  at: number;
  sizeBytes: number;
}
