/**
 * What the client has to know of a resource type: how to decode it, what makes it invalid, when two versions are equal.
 * Resources keep their Any's bytes. The message is decoded to validate it, and of most types again when somebody reads it; what lies
 * in nested Anys only then.
 */
import { createHash } from 'node:crypto';
import type { BinaryWriter } from '@bufbuild/protobuf/wire';
import { encode } from '../../common/xds/any.js';
import { AlikeBytes } from '../../common/alike-bytes.js';
import { heldBytes } from '../../common/held-bytes.js';
import { Memo } from '../../common/memo.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { PackedResources } from './packed-resources.js';
import { recentMessages } from './recent.js';
import { SharedMaps } from './shared-maps.js';

export interface FieldError {
  /** Path of the field, e.g. `endpoints[0].lb_endpoints[2].endpoint.address`. */
  field: string;
  problem: string;
}

/** A resource that was rejected, with every field that is wrong. */
export class ResourceError extends Error {
  constructor(readonly resource: string, readonly type: string, readonly errors: readonly FieldError[]) {
    super(`${type} "${resource}": ${errors.map((error) => `${error.field || '(whole)'}: ${error.problem}`).join('; ')}`);
    this.name = 'ResourceError';
  }
}

export interface XdsResource<T> {
  readonly name: string;
  /** As the control plane gave it; empty for most of istiod's types. */
  readonly version: string;
  /** The same object for as long as the content is the same, but for types that are packed. */
  readonly any: Any;
  /** May be decoded anew each time: not to be kept, and no key of anything. */
  readonly message: T;
  /** Content hash: equal content gives the same one whatever order its maps were written in. */
  readonly hash: string;
}

type Report = (field: string, problem: string) => void;

export interface MessageCodec<T> {
  readonly $type: string;
  decode(input: Uint8Array): T;
  encode(message: T, writer?: BinaryWriter): BinaryWriter;
}

export abstract class XdsResourceType<T> {
  /** The field's short name: CDS, EDS … */
  abstract readonly shortName: string;
  /** Whether the stream subscribes to everything there is. */
  abstract readonly wildcard: boolean;
  protected abstract readonly codec: MessageCodec<T>;
  protected abstract validate(message: T, name: string, report: Report): void;
  /**
   * Streams that are sent equal bytes under one name get one object for them, for as long as anybody holds it: of a mesh's
   * resources most are the same for all kinds of pods, and whatever is computed from one is computed once.
   */
  protected readonly shared: boolean = false;
  /** Whether messages stay decoded: where they share parts with each other that are found by being the same object. */
  protected readonly staysDecoded: boolean = false;
  /** Whether there are so many that none has an object for good; `any` is another one each time, too. */
  protected readonly packed: boolean = false;
  /** Equal for equal content. */
  protected hashOf(message: T): string {
    return contentHash(this.codec, message);
  }

  readonly #reader: Reader<T> = { hash: (message) => this.hashOf(message), decode: (bytes) => this.codec.decode(bytes) };
  readonly #alike = new AlikeBytes();
  readonly #known = new Map<string, WeakRef<XdsResource<T>>[]>();
  readonly #gone = new FinalizationRegistry<string>((name) => this.#forget(name));

  /** Of the streams that have this type. */
  readonly maps = new SharedMaps<XdsResource<T>>();

  /** Where a stream holds its resources of the type. */
  hold(): Map<string, XdsResource<T>> {
    return this.packed ? new PackedResources(this.typeUrl, this.#reader) : new Map();
  }

  #typeUrl: string | undefined;

  /** One string for all resources. */
  get typeUrl(): string {
    return (this.#typeUrl ??= `type.googleapis.com/${this.codec.$type}`);
  }

  /** @throws ResourceError naming the resource and each wrong field */
  decode(name: string, version: string, any: Any | undefined): XdsResource<T> {
    const fail = (errors: FieldError[]): never => {
      throw new ResourceError(name, this.shortName, errors);
    };
    if (!any) return fail([{ field: 'resource', problem: 'is missing' }]);
    if (any.type_url !== this.typeUrl) return fail([{ field: 'resource.type_url', problem: `is ${any.type_url}, expected ${this.typeUrl}` }]);
    const known = this.#find(name, any.value);
    if (known) return known.version === version ? known : withVersion(known, version);
    // What is kept for long must not keep all of the response that it came in; of what is packed the bytes are copied there.
    const own = this.packed ? { type_url: this.typeUrl, value: any.value } : this.#hold(any.value);
    let message: T;
    try {
      message = this.codec.decode(this.staysDecoded ? own.value : any.value);
    } catch (error) {
      return fail([{ field: '', problem: `does not decode: ${(error as Error).message}` }]);
    }
    const errors: FieldError[] = [];
    this.validate(message, name, (field, problem) => errors.push({ field, problem }));
    if (errors.length > 0) return fail(errors);
    const resource = this.staysDecoded ? new Decoded(name, version, own, this.#reader, message) : new Encoded(name, version, own, this.#reader);
    if (this.shared) this.#remember(resource);
    return resource;
  }

  #hold(bytes: Buffer): Any {
    const squeezed = this.staysDecoded ? undefined : this.#alike.squeeze(bytes);
    return squeezed ? new AlikeAny(this.typeUrl, heldBytes(squeezed), bytes.length, this.#alike) : { type_url: this.typeUrl, value: heldBytes(bytes) };
  }

  #find(name: string, bytes: Uint8Array): XdsResource<T> | undefined {
    for (const ref of this.#known.get(name) ?? []) {
      const resource = ref.deref();
      if (resource && sizeOf(resource.any) === bytes.length && Buffer.compare(resource.any.value, bytes) === 0) return resource;
    }
    return undefined;
  }

  #remember(resource: XdsResource<T>): void {
    const refs = this.#known.get(resource.name);
    if (refs) refs.push(new WeakRef(resource));
    else this.#known.set(resource.name, [new WeakRef(resource)]);
    this.#gone.register(resource, resource.name);
  }

  #forget(name: string): void {
    const left = (this.#known.get(name) ?? []).filter((ref) => ref.deref() !== undefined);
    if (left.length > 0) this.#known.set(name, left);
    else this.#known.delete(name);
  }

  /** Equal content: equal bytes, or bytes that differ only in the order of maps. */
  equals(a: XdsResource<T>, b: XdsResource<T>): boolean {
    return Buffer.compare(a.any.value, b.any.value) === 0 || a.hash === b.hash;
  }
}

/** A mesh's clusters, endpoints and listeners are nearly the same: their bytes are put together when somebody reads them. */
class AlikeAny implements Any {
  readonly #squeezed: Buffer;
  readonly #alike: AlikeBytes;

  constructor(readonly type_url: string, squeezed: Buffer, readonly size: number, alike: AlikeBytes) {
    this.#squeezed = squeezed;
    this.#alike = alike;
  }

  get value(): Buffer {
    return this.#alike.restore(this.#squeezed, this.size);
  }
}

/** Of its value, in bytes. */
export function sizeOf(any: Any): number {
  return any instanceof AlikeAny ? any.size : any.value.length;
}

/** What a resource's bytes say. */
export interface Reader<T> {
  hash(message: T): string;
  decode(bytes: Uint8Array): T;
}

/** A mesh has tens of thousands: what is computed when it is asked for is the class's, lest each carry functions of its own. */
class Encoded<T> implements XdsResource<T> {
  #hash: string | undefined;

  constructor(readonly name: string, readonly version: string, readonly any: Any, readonly reader: Reader<T>) {}

  get message(): T {
    return recentMessages.get(this.any, sizeOf(this.any), () => this.reader.decode(this.any.value));
  }

  get hash(): string {
    return (this.#hash ??= this.reader.hash(this.message));
  }
}

class Decoded<T> extends Encoded<T> {
  readonly #message: T;

  constructor(name: string, version: string, any: Any, reader: Reader<T>, message: T) {
    super(name, version, any, reader);
    this.#message = message;
  }

  override get message(): T {
    return this.#message;
  }
}

class Again<T> implements XdsResource<T> {
  readonly name: string;
  readonly any: Any;

  constructor(readonly original: XdsResource<T>, readonly version: string) {
    ({ name: this.name, any: this.any } = original);
  }

  get message(): T {
    return this.original.message;
  }

  get hash(): string {
    return this.original.hash;
  }
}

/** Something that is read of resources' messages, once for as long as anybody holds the content. */
export class Facts<T, V> {
  readonly #memo = new Memo<Any, V | typeof NOTHING>();

  constructor(readonly read: (message: T) => V) {}

  of(resource: Pick<XdsResource<T>, 'any' | 'message'>): V {
    const found = this.#memo.once(resource.any, () => this.read(resource.message) ?? NOTHING);
    return found === NOTHING ? (undefined as V) : (found as V);
  }
}

const NOTHING = Symbol('nothing');

/** The same content under another version: its objects, and with them whatever was computed from them, stay. */
export function withVersion<T>(resource: XdsResource<T>, version: string): XdsResource<T> {
  return new Again(resource instanceof Again ? (resource as Again<T>).original : resource, version);
}

/** SHA-256 (hex, 32 digits) of a message in canonical form. */
export function contentHash<T>(codec: Parameters<typeof encode<T>>[0], message: T): string {
  return hashBytes(encode(codec, canonical(message) as T));
}

export function hashBytes(...parts: (Uint8Array | string)[]): string {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest('hex').slice(0, 32);
}

/**
 * Go writes maps in random order. Generated messages encode their fields by number whatever the order of the object's
 * keys, so sorting the keys of every plain object orders the maps and changes nothing else.
 */
export function canonical(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(canonical);
  if (value === null || typeof value !== 'object' || value instanceof Uint8Array || value instanceof Date) return value;
  const sorted: Record<string, unknown> = {};
  for (const key of Object.keys(value).sort()) sorted[key] = canonical((value as Record<string, unknown>)[key]);
  return sorted;
}

/** A type whose messages the holder does not look into; `any`, since T stands in both directions. */
export type AnyResourceType = XdsResourceType<any>;
