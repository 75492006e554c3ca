/**
 * Bytes of which there are very many that are nearly the same, as a mesh's clusters: each is held as what it has of its own and where the
 * rest stands in a base that all share. The base is of the first that had nothing like them in it.
 */

const BASE_BYTES = 1 << 15;
/** One that is longer leaves no room for other kinds. */
const MOST_ADDED = BASE_BYTES >> 3;
/** Shorter parts are not worth a place in the base. */
const LEAST_COPIED = 6;
const TABLE_BITS = 13;
/** A call of the runtime's takes as long as so many bytes. */
const MOST_BY_HAND = 64;

let scratch = Buffer.allocUnsafeSlow(1 << 12);

export class AlikeBytes {
  #base = Buffer.alloc(0);
  #used = 0;
  /** By a hash of four bytes: the last place in the base where they stand, plus one. */
  readonly #places = new Int32Array(1 << TABLE_BITS);

  /** @returns what `restore` makes the bytes of again, until the next call; undefined where that is more than half of them */
  squeeze(bytes: Uint8Array): Buffer | undefined {
    let length = this.#write(bytes);
    if (length * 2 > bytes.length && this.#add(bytes)) length = this.#write(bytes);
    return length * 2 > bytes.length ? undefined : scratch.subarray(0, length);
  }

  /** @param length of the bytes that were squeezed */
  restore(squeezed: Uint8Array, length: number): Buffer {
    const bytes = Buffer.allocUnsafe(length);
    const base = this.#base;
    let to = 0;
    for (let at = 0; at < squeezed.length;) {
      let head = 0;
      for (let shift = 0, byte = 0x80; byte >= 0x80; shift += 7) {
        byte = squeezed[at++]!;
        head |= (byte & 0x7f) << shift;
      }
      const count = head >>> 1;
      if (head & 1) {
        let from = 0;
        for (let shift = 0, byte = 0x80; byte >= 0x80; shift += 7) {
          byte = squeezed[at++]!;
          from |= (byte & 0x7f) << shift;
        }
        if (count > MOST_BY_HAND) base.copy(bytes, to, from, from + count);
        else for (let index = 0; index < count; index++) bytes[to + index] = base[from + index]!;
      } else {
        for (let index = 0; index < count; index++) bytes[to + index] = squeezed[at + index]!;
        at += count;
      }
      to += count;
    }
    return bytes;
  }

  #add(bytes: Uint8Array): boolean {
    if (bytes.length > MOST_ADDED || this.#used + bytes.length > BASE_BYTES) return false;
    if (this.#base.length === 0) this.#base = Buffer.allocUnsafeSlow(BASE_BYTES);
    this.#base.set(bytes, this.#used);
    for (let at = this.#used; at + 4 <= this.#used + bytes.length; at++) this.#places[hashAt(this.#base, at)] = at + 1;
    this.#used += bytes.length;
    return true;
  }

  /** Into `scratch`. @returns how much of it */
  #write(bytes: Uint8Array): number {
    const { length } = bytes;
    if (scratch.length < length + 16) scratch = Buffer.allocUnsafeSlow(2 * length + 16);
    const [base, used, places] = [this.#base, this.#used, this.#places];
    let to = 0;
    let from = 0;
    for (let at = 0; at + LEAST_COPIED <= length;) {
      const place = places[hashAt(bytes, at)]! - 1;
      let count = 0;
      if (place >= 0) {
        const most = Math.min(length - at, used - place);
        while (count < most && bytes[at + count] === base[place + count]) count++;
      }
      if (count < LEAST_COPIED) {
        at++;
        continue;
      }
      if (at > from) to = literal(bytes, from, at, to);
      to = number(place, number((count << 1) | 1, to));
      at += count;
      from = at;
      // More than it was, with what is still to come: it will not do.
      if (to > length) return length;
    }
    return from < length ? literal(bytes, from, length, to) : to;
  }
}

/** Into `scratch`. @returns the place behind it */
function number(value: number, to: number): number {
  let [rest, next] = [value, to];
  for (; rest >= 0x80; rest >>>= 7) scratch[next++] = (rest & 0x7f) | 0x80;
  scratch[next++] = rest;
  return next;
}

function literal(bytes: Uint8Array, from: number, until: number, to: number): number {
  let next = number((until - from) << 1, to);
  for (let at = from; at < until; at++) scratch[next++] = bytes[at]!;
  return next;
}

function hashAt(bytes: Uint8Array, at: number): number {
  return Math.imul(bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24), 0x9e3779b1) >>> (32 - TABLE_BITS);
}
