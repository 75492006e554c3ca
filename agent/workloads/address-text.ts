import { decodeAddress } from '../dataplane/kernel-codec.js';

/** 4 or 16 bytes in network order. */
export function addressText(bytes: Buffer): string {
  return bytes.length === 4 ? bytes.join('.') : decodeAddress(bytes);
}
