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
    let at = 0;
    let to = 0;
    const number = (): number => {
      let value = 0;
      for (let shift = 0; ; shift += 7) {
        const byte = squeezed[at++]!;
        value |= (byte & 0x7f) << shift;
        if (byte < 0x80) return value;
      }
    };
    while (at < squeezed.length) {
      const head = number();
      const count = head >>> 1;
      if (head & 1) {
        const from = number();
        this.#base.copy(bytes, to, from, from + count);
      } else {
        bytes.set(squeezed.subarray(at, at + count), to);
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
    let to = 0;
    const number = (value: number): void => {
      let rest = value;
      for (; rest >= 0x80; rest >>>= 7) scratch[to++] = (rest & 0x7f) | 0x80;
      scratch[to++] = rest;
    };
    let from = 0;
    const literal = (until: number): void => {
      if (until === from) return;
      number((until - from) << 1);
      scratch.set(bytes.subarray(from, until), to);
      to += until - from;
    };
    for (let at = 0; at + LEAST_COPIED <= length;) {
      const place = this.#places[hashAt(bytes, at)]! - 1;
      let count = 0;
      if (place >= 0) while (at + count < length && place + count < this.#used && bytes[at + count] === this.#base[place + count]) count++;
      if (count < LEAST_COPIED) {
        at++;
        continue;
      }
      literal(at);
      number((count << 1) | 1);
      number(place);
      at += count;
      from = at;
      // More than half of them, with what is still to come: it will not do.
      if (to > length) return length;
    }
    literal(length);
    return to;
  }
}

function hashAt(bytes: Uint8Array, at: number): number {
  return Math.imul(bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24), 0x9e3779b1) >>> (32 - TABLE_BITS);
}
