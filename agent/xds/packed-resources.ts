/**
 * Resources of which a mesh has tens of thousands, as bytes in few large buffers: no object each, and of each only what it has of its own,
 * since they are nearly the same. Whoever asks for one gets it made anew, and its message decoded anew; what it was given stays as it is
 * when the resource is replaced.
 */
import { AlikeBytes } from '../../common/alike-bytes.js';
import { NumberedNames } from '../../common/numbered-names.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import type { Reader, XdsResource } from './resource-type.js';

const PAGE_BYTES = 1 << 18;
/** So much may be of resources that are gone before the rest is moved together. */
const MOST_DEAD_BYTES = 1 << 20;

/** Where a resource lies: the page's number in the upper bits. */
const AT_BITS = 18;

/** Before each: the lengths of its parts. */
const HEAD_BYTES = 8;
const MOST_SHORT = 0xffff;

interface Page {
  bytes: Buffer;
  used: number;
  /** Of resources that are still there. */
  live: number;
}

export class PackedResources<T> implements Map<string, XdsResource<T>> {
  readonly [Symbol.toStringTag] = 'PackedResources';
  readonly #typeUrl: string;
  readonly #reader: Reader<T>;
  readonly #alike = new AlikeBytes();
  #names = new NumberedNames();
  /** By the name's number. */
  #places: Int32Array = new Int32Array(64);
  #pages: (Page | undefined)[] = [];
  #heldBytes = 0;
  #liveBytes = 0;

  constructor(typeUrl: string, reader: Reader<T>) {
    this.#typeUrl = typeUrl;
    this.#reader = reader;
  }

  get size(): number {
    return this.#names.size;
  }

  /** Of all buffers, whether or not anything in them is still there. */
  get heldBytes(): number {
    return this.#heldBytes;
  }

  has(name: string): boolean {
    return this.#names.find(name) !== undefined;
  }

  get(name: string): XdsResource<T> | undefined {
    const number = this.#names.find(name);
    return number === undefined ? undefined : this.#read(name, this.#places[number]!);
  }

  set(name: string, { version, any }: XdsResource<T>): this {
    const known = this.#names.find(name);
    const before = known === undefined ? undefined : this.#places[known];
    // First the new one, which may be made of the old one's bytes.
    const place = this.#put(version, any.value);
    const number = known ?? this.#names.add(name);
    if (number >= this.#places.length) this.#places = grown(this.#places);
    this.#places[number] = place;
    if (before !== undefined) this.#drop(before);
    return this;
  }

  delete(name: string): boolean {
    const number = this.#names.find(name);
    if (number === undefined) return false;
    const place = this.#places[number]!;
    this.#names.remove(number);
    this.#drop(place);
    return true;
  }

  clear(): void {
    this.#names = new NumberedNames();
    this.#pages = [];
    [this.#heldBytes, this.#liveBytes] = [0, 0];
  }

  *keys(): MapIterator<string> {
    for (const number of this.#names.numbers()) yield this.#names.text(number);
  }

  *values(): MapIterator<XdsResource<T>> {
    for (const [, resource] of this) yield resource;
  }

  *entries(): MapIterator<[string, XdsResource<T>]> {
    for (const number of this.#names.numbers()) {
      const name = this.#names.text(number);
      yield [name, this.#read(name, this.#places[number]!)];
    }
  }

  [Symbol.iterator](): MapIterator<[string, XdsResource<T>]> {
    return this.entries();
  }

  forEach(visit: (resource: XdsResource<T>, name: string, map: Map<string, XdsResource<T>>) => void): void {
    for (const [name, resource] of this) visit(resource, name, this);
  }

  #read(name: string, place: number): XdsResource<T> {
    const { version, value } = this.#record(place);
    return new PackedResource(name, version.toString(), { type_url: this.#typeUrl, value }, this.#reader);
  }

  #record(place: number): { version: Buffer; value: Buffer } {
    const { bytes, begin, middle, end, size } = this.#parts(place);
    const held = bytes.subarray(middle, end);
    return { version: bytes.subarray(begin, middle), value: size === 0 ? held : this.#alike.restore(held, size) };
  }

  /** u16 length of the version, u16 of the value where it is squeezed, else 0, u32 length of what is held of the value; then both. */
  #parts(place: number): { bytes: Buffer; begin: number; middle: number; end: number; size: number } {
    const { bytes } = this.#pages[place >>> AT_BITS]!;
    const at = place & (PAGE_BYTES - 1);
    const begin = at + HEAD_BYTES;
    const middle = begin + bytes.readUInt16LE(at);
    return { bytes, begin, middle, end: middle + bytes.readUInt32LE(at + 4), size: bytes.readUInt16LE(at + 2) };
  }

  #put(version: string | Uint8Array, value: Uint8Array): number {
    const own = typeof version === 'string' ? Buffer.from(version) : version;
    if (own.length > MOST_SHORT) throw new RangeError(`a version of ${own.length} bytes, expected at most ${MOST_SHORT}`);
    const squeezed = value.length <= MOST_SHORT ? this.#alike.squeeze(value) : undefined;
    const held = squeezed ?? value;
    const length = HEAD_BYTES + own.length + held.length;
    let page = this.#pages.at(-1);
    if (!page || page.used + length > page.bytes.length || page.used >= PAGE_BYTES) {
      // One that is larger than a page has a page of its own.
      page = { bytes: Buffer.allocUnsafeSlow(Math.max(PAGE_BYTES, length)), used: 0, live: 0 };
      this.#pages.push(page);
      this.#heldBytes += page.bytes.length;
    }
    const at = page.used;
    page.bytes.writeUInt16LE(own.length, at);
    page.bytes.writeUInt16LE(squeezed ? value.length : 0, at + 2);
    page.bytes.writeUInt32LE(held.length, at + 4);
    page.bytes.set(own, at + HEAD_BYTES);
    page.bytes.set(held, at + HEAD_BYTES + own.length);
    page.used += length;
    page.live += length;
    this.#liveBytes += length;
    return ((this.#pages.length - 1) << AT_BITS) | at;
  }

  #drop(place: number): void {
    const number = place >>> AT_BITS;
    const page = this.#pages[number]!;
    const length = this.#parts(place).end - (place & (PAGE_BYTES - 1));
    page.live -= length;
    this.#liveBytes -= length;
    if (page.live === 0 && number < this.#pages.length - 1) {
      this.#pages[number] = undefined;
      this.#heldBytes -= page.bytes.length;
    }
    const dead = this.#heldBytes - this.#liveBytes;
    if (dead > MOST_DEAD_BYTES && dead > this.#liveBytes) this.#compact();
  }

  #compact(): void {
    const before = [...this.#names.numbers()].map((number) => ({ number, ...this.#record(this.#places[number]!) }));
    this.#pages = [];
    [this.#heldBytes, this.#liveBytes] = [0, 0];
    for (const { number, version, value } of before) this.#places[number] = this.#put(version, value);
  }
}

function grown(places: Int32Array): Int32Array {
  const larger = new Int32Array(places.length * 2);
  larger.set(places);
  return larger;
}

class PackedResource<T> implements XdsResource<T> {
  constructor(readonly name: string, readonly version: string, readonly any: Any, readonly reader: Reader<T>) {}

  get message(): T {
    return this.reader.decode(this.any.value);
  }

  get hash(): string {
    return this.reader.hash(this.message);
  }
}
