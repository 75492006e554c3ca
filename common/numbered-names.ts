/**
 * Texts with numbers, as bytes in few large buffers: of a mesh's tens of thousands of names a Map of strings takes three times as much,
 * in the heap that the collector goes through.
 */

const PAGE_BITS = 16;
const PAGE_BYTES = 1 << PAGE_BITS;
const LENGTH_BYTES = 2;
/** Longer ones can't be. */
export const MAX_NAME_BYTES = PAGE_BYTES - LENGTH_BYTES;
/** In a table of slots; a number is one more there. */
const EMPTY = 0;
const FIRST_SLOTS = 64;
/** What is gone before the rest is moved together. */
const MOST_DEAD_BYTES = PAGE_BYTES;

interface Page {
  bytes: Buffer;
  used: number;
}

let scratch = Buffer.allocUnsafeSlow(1 << 10);
/** Of what was hashed last. */
let hash = 0;

/** @returns how many bytes of `scratch` it takes */
function write(text: string): number {
  const most = text.length * 3;
  if (most > scratch.length) scratch = Buffer.allocUnsafeSlow(most);
  return hashed(scratch.write(text));
}

export class NumberedNames {
  #pages: Page[] = [];
  /** By number: where the text is, page and place in it, plus one; 0 for a number that is free. */
  #places: Uint32Array = new Uint32Array(FIRST_SLOTS);
  #next = 0;
  readonly #free: number[] = [];
  #slots = new Uint32Array(FIRST_SLOTS);
  #size = 0;
  #deadBytes = 0;

  get size(): number {
    return this.#size;
  }

  /** One above the largest number. */
  get end(): number {
    return this.#next;
  }

  find(text: string): number | undefined {
    const length = write(text);
    const found = this.#slots[this.#slotOf(length)]!;
    return found === EMPTY ? undefined : found - 1;
  }

  /** @returns its number: the same for as long as it is there @throws RangeError when it is longer than MAX_NAME_BYTES */
  add(text: string): number {
    const length = write(text);
    if (length > MAX_NAME_BYTES) throw new RangeError(`a name of ${length} bytes, expected at most ${MAX_NAME_BYTES}`);
    const slot = this.#slotOf(length);
    const found = this.#slots[slot]!;
    if (found !== EMPTY) return found - 1;
    const number = this.#free.pop() ?? this.#next++;
    if (number >= this.#places.length) this.#places = grown(this.#places);
    this.#places[number] = this.#put(scratch, 0, length) + 1;
    this.#slots[slot] = number + 1;
    this.#size++;
    if (this.#size * 3 > this.#slots.length * 2) this.#rehash();
    return number;
  }

  /** @throws RangeError when there is none of that number */
  text(number: number): string {
    const { bytes, at, length } = this.#bytesOf(number);
    return bytes.toString('utf8', at, at + length);
  }

  has(number: number): boolean {
    return number < this.#next && this.#places[number] !== 0;
  }

  /** The number may be another text's from then on. */
  remove(number: number): void {
    const { bytes, at, length } = this.#bytesOf(number);
    bytes.copy(scratchOf(length), 0, at, at + length);
    this.#vacate(this.#slotOf(hashed(length)));
    this.#places[number] = 0;
    this.#free.push(number);
    this.#size--;
    this.#deadBytes += LENGTH_BYTES + length;
    const heldBytes = this.#pages.length * PAGE_BYTES;
    if (this.#deadBytes > MOST_DEAD_BYTES && this.#deadBytes * 2 > heldBytes) this.#compact();
  }

  *numbers(): Generator<number> {
    for (let number = 0; number < this.#next; number++) if (this.#places[number] !== 0) yield number;
  }

  #bytesOf(number: number): { bytes: Buffer; at: number; length: number } {
    const place = number < this.#next ? this.#places[number]! : 0;
    if (place === 0) throw new RangeError(`no name has the number ${number}`);
    const { bytes } = this.#pages[(place - 1) >>> PAGE_BITS]!;
    const at = (place - 1) & (PAGE_BYTES - 1);
    return { bytes, at: at + LENGTH_BYTES, length: bytes.readUInt16LE(at) };
  }

  /** The slot of what is in `scratch`, or the empty one where it would be. */
  #slotOf(length: number): number {
    const mask = this.#slots.length - 1;
    for (let slot = hash & mask; ; slot = (slot + 1) & mask) {
      const found = this.#slots[slot]!;
      if (found === EMPTY) return slot;
      const { bytes, at, length: own } = this.#bytesOf(found - 1);
      if (own === length && bytes.compare(scratch, 0, length, at, at + length) === 0) return slot;
    }
  }

  /** Those behind it that would be found no more move up. */
  #vacate(slot: number): void {
    const mask = this.#slots.length - 1;
    let hole = slot;
    for (let next = (hole + 1) & mask; this.#slots[next] !== EMPTY; next = (next + 1) & mask) {
      const home = this.#homeOf(this.#slots[next]! - 1) & mask;
      // Whether its home lies behind the hole, up to where it is.
      if (((next - home) & mask) < ((next - hole) & mask)) continue;
      this.#slots[hole] = this.#slots[next]!;
      hole = next;
    }
    this.#slots[hole] = EMPTY;
  }

  #homeOf(number: number): number {
    const { bytes, at, length } = this.#bytesOf(number);
    bytes.copy(scratchOf(length), 0, at, at + length);
    hashed(length);
    return hash;
  }

  #rehash(): void {
    this.#slots = new Uint32Array(this.#slots.length * 2);
    const mask = this.#slots.length - 1;
    for (const number of this.numbers()) {
      let slot = this.#homeOf(number) & mask;
      while (this.#slots[slot] !== EMPTY) slot = (slot + 1) & mask;
      this.#slots[slot] = number + 1;
    }
  }

  #put(from: Buffer, at: number, length: number): number {
    let page = this.#pages.at(-1);
    if (!page || page.used + LENGTH_BYTES + length > PAGE_BYTES) {
      page = { bytes: Buffer.allocUnsafeSlow(PAGE_BYTES), used: 0 };
      this.#pages.push(page);
    }
    const place = page.used;
    page.bytes.writeUInt16LE(length, place);
    from.copy(page.bytes, place + LENGTH_BYTES, at, at + length);
    page.used += LENGTH_BYTES + length;
    return ((this.#pages.length - 1) << PAGE_BITS) + place;
  }

  #compact(): void {
    const before = this.#pages;
    this.#pages = [];
    this.#deadBytes = 0;
    for (const number of this.numbers()) {
      const place = this.#places[number]! - 1;
      const { bytes } = before[place >>> PAGE_BITS]!;
      const at = place & (PAGE_BYTES - 1);
      this.#places[number] = this.#put(bytes, at + LENGTH_BYTES, bytes.readUInt16LE(at)) + 1;
    }
  }
}

function grown(array: Uint32Array): Uint32Array {
  const larger = new Uint32Array(array.length * 2);
  larger.set(array);
  return larger;
}

function scratchOf(length: number): Buffer {
  if (length > scratch.length) scratch = Buffer.allocUnsafeSlow(length);
  return scratch;
}

/** @param length of what is in `scratch`; it is returned */
function hashed(length: number): number {
  hash = 0x811c9dc5;
  for (let at = 0; at < length; at++) hash = Math.imul(hash ^ scratch[at]!, 0x01000193);
  hash = (hash ^ (hash >>> 15)) >>> 0;
  return length;
}
