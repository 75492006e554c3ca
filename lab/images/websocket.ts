/** RFC 6455 as far as tests need it: handshake, frames up to 64 KiB, ping and close; both sides. */
import { createHash, randomBytes } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import { identity } from './http.js';

/** RFC 6455, 1.3. */
const ACCEPT_GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
export const OPCODE = { text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const;

export interface Frame {
  opcode: number;
  payload: Buffer;
}

export function acceptKey(key: string): string {
  return createHash('sha1').update(key + ACCEPT_GUID).digest('base64');
}

/** @param masked what a client sends has to be, what a server sends must not be (RFC 6455, 5.1) */
export function encodeFrame({ opcode, payload }: Frame, masked: boolean): Buffer {
  const short = payload.length < 126;
  const header = Buffer.alloc(short ? 2 : 4);
  header[0] = 0x80 | opcode;
  header[1] = (masked ? 0x80 : 0) | (short ? payload.length : 126);
  if (!short) header.writeUInt16BE(payload.length, 2);
  if (!masked) return Buffer.concat([header, payload]);
  const mask = randomBytes(4);
  return Buffer.concat([header, mask, payload.map((byte, index) => byte ^ (mask[index % 4] as number))]);
}

/** Splits what came into whole frames and the rest. */
export function decodeFrames(bytes: Buffer): { frames: Frame[]; rest: Buffer } {
  const frames: Frame[] = [];
  let rest = bytes;
  while (rest.length >= 2) {
    const masked = ((rest[1] as number) & 0x80) !== 0;
    let length = (rest[1] as number) & 0x7f;
    let offset = 2;
    if (length === 127) throw new Error('reading a WebSocket frame: longer than 64 KiB');
    if (length === 126) {
      if (rest.length < 4) break;
      length = rest.readUInt16BE(2);
      offset = 4;
    }
    const mask = masked ? rest.subarray(offset, offset + 4) : undefined;
    if (masked) offset += 4;
    if (rest.length < offset + length) break;
    const raw = rest.subarray(offset, offset + length);
    frames.push({ opcode: (rest[0] as number) & 0x0f, payload: mask ? raw.map((byte, index) => byte ^ (mask[index % 4] as number)) as Buffer : Buffer.from(raw) });
    rest = rest.subarray(offset + length);
  }
  return { frames, rest };
}

/** Calls back for each frame; a peer that does not keep to the protocol loses its connection. */
export function onFrames(socket: Duplex, head: Buffer, onFrame: (frame: Frame) => void): void {
  let pending = head;
  const take = (chunk: Buffer): void => {
    try {
      const { frames, rest } = decodeFrames(Buffer.concat([pending, chunk]));
      pending = rest;
      for (const frame of frames) onFrame(frame);
    } catch {
      socket.destroy();
    }
  };
  socket.on('data', take);
  socket.on('error', () => socket.destroy());
  take(Buffer.alloc(0));
}

/** A server's `upgrade` handler: each message comes back behind the pod's name. */
export function echoMessages(request: IncomingMessage, socket: Duplex, head: Buffer): void {
  const key = request.headers['sec-websocket-key'];
  if (request.headers.upgrade?.toLowerCase() !== 'websocket' || !key) {
    socket.end('HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n');
    return;
  }
  const answer = ['HTTP/1.1 101 Switching Protocols', 'upgrade: websocket', 'connection: upgrade', `sec-websocket-accept: ${acceptKey(key)}`, `x-pod: ${identity.pod}`];
  socket.write(answer.join('\r\n') + '\r\n\r\n');
  onFrames(socket, head, ({ opcode, payload }) => {
    if (opcode === OPCODE.text) socket.write(encodeFrame({ opcode, payload: Buffer.concat([Buffer.from(`${identity.pod}: `), payload]) }, false));
    else if (opcode === OPCODE.binary) socket.write(encodeFrame({ opcode, payload }, false));
    else if (opcode === OPCODE.ping) socket.write(encodeFrame({ opcode: OPCODE.pong, payload }, false));
    else if (opcode === OPCODE.close) socket.end(encodeFrame({ opcode, payload }, false));
  });
}
