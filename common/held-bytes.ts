/**
 * Bytes that are held for long. Buffer.from() puts small ones into slabs of memory that are shared with whatever else is made at that
 * time: a slab stays for as long as one of its bytes is held, and of a mesh's resources that are decoded and encoded most of a slab
 * would be of what has gone long since.
 */
const SLAB_BYTES = 8 << 10;
/** Larger ones have memory of their own. */
const MOST_SHARED_BYTES = SLAB_BYTES >> 2;

let slab = Buffer.alloc(0);
let used = 0;

/** A copy, in memory that has nothing else in it but such copies. */
export function heldBytes(bytes: Uint8Array): Buffer {
  const { length } = bytes;
  if (length > MOST_SHARED_BYTES) {
    const own = Buffer.allocUnsafeSlow(length);
    own.set(bytes);
    return own;
  }
  if (used + length > slab.length) {
    slab = Buffer.allocUnsafeSlow(SLAB_BYTES);
    used = 0;
  }
  const copy = slab.subarray(used, used + length);
  copy.set(bytes);
  used += length;
  return copy;
}
