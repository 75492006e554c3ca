/**
 * What clients and servers of test/programs/ do with each other where they have no protocol of their own: the client sends
 * so many bytes and closes its half; the server answers with their SHA-256 in hex, a line feed and the bytes themselves.
 */
import { createHash } from 'node:crypto';

/** By the size that was sent: how many connections received what, by its SHA-256. */
export type Received = Record<string, Record<string, number>>;

export function sha256(data: string | Uint8Array): string {
  return createHash('sha256').update(data).digest('hex');
}

export function answerTo(payload: Uint8Array): Buffer {
  return Buffer.concat([Buffer.from(`${sha256(payload)}\n`), payload]);
}

export function expectedOf(payload: Buffer, sizes: readonly number[], count: number): Received {
  return Object.fromEntries(sizes.map((size) => [size, { [sha256(answerTo(payload.subarray(0, size)))]: count }]));
}
