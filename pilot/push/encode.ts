/**
 * Responses as bytes. What stands around a resource's body in a response is encoded once, whoever it goes to, and the body
 * is not copied before the response is put together: protobuf allows it, since repeated fields are just written in a row.
 */
import { DeltaDiscoveryResponse, DiscoveryResponse, Resource as ResourceMessage } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { Memo } from '../../common/memo.js';
import { encode } from '../../common/xds/any.js';
import type { ResourceList } from '../generate/resource-list.js';
import type { Resource } from '../generate/resource.js';

/** Field numbers with wire type 2: of `resources` in both responses, of Resource.resource, of Any.type_url and Any.value. */
const RESOURCES = 0x12;
const RESOURCE_BODY = 0x12;
const ANY_TYPE = 0x0a;
const ANY_VALUE = 0x12;

const deltaFrames = new Memo<Resource, Buffer>();
const sotwFrames = new Memo<Resource, Buffer>();
const control_plane = { identifier: 'underpass-pilot' };

export interface DeltaHead {
  type_url: string;
  system_version_info: string;
  nonce: string;
  removed_resources: string[];
}

/** Beyond so many, copying them takes noticeably long. */
const MANY_PIECES = 2_000;

/** Pieces of a response, each of which others may have as well. */
class Parts {
  pieces: Uint8Array[] = [];
  byteLength = 0;

  add(piece: Uint8Array): void {
    this.pieces.push(piece);
    this.byteLength += piece.length;
  }
}

/** So many bytes of lists that are sent again and again are held a second time, in one piece each. */
const MAX_JOINED_BYTES = 64 << 20;
let joinedBytes = 0;
const forgotten = new FinalizationRegistry<number>((bytes) => (joinedBytes -= bytes));

/** Of a list that many clients get. */
class SharedParts extends Parts {
  /** One piece instead of many. @param bytes all of it, in memory that is used otherwise later */
  join(bytes: Uint8Array): void {
    if (this.pieces.length <= MANY_PIECES || joinedBytes + bytes.length > MAX_JOINED_BYTES) return;
    this.pieces = [Buffer.from(bytes)];
    joinedBytes += bytes.length;
    forgotten.register(this, bytes.length);
  }
}

/**
 * A response in parts. Has what grpc-js wants of a message when it puts it into a frame, and so is copied only then: not
 * before its turn comes on the stream, and not twice.
 */
export class EncodedResponse {
  readonly byteLength: number;

  constructor(readonly parts: readonly Parts[]) {
    this.byteLength = parts.reduce((sum, part) => sum + part.byteLength, 0);
  }

  static of(bytes: Buffer): EncodedResponse {
    const parts = new Parts();
    parts.add(bytes);
    return new EncodedResponse([parts]);
  }

  get hasManyPieces(): boolean {
    return this.parts.reduce((sum, { pieces }) => sum + pieces.length, 0) > MANY_PIECES;
  }

  *pieces(): Generator<Uint8Array, undefined> {
    for (const { pieces } of this.parts) yield* pieces;
  }

  /** Told of all its bytes in a row, so that what others get as well need not be put together for them. */
  assembled(bytes: Uint8Array): void {
    let at = 0;
    for (const part of this.parts) {
      if (part instanceof SharedParts) part.join(bytes.subarray(at, at + part.byteLength));
      at += part.byteLength;
    }
  }

  /** As Buffer.copy: writes all of it into `target`, from its byte `start` on. */
  copy(target: Uint8Array, start = 0): number {
    let at = start;
    for (const { pieces } of this.parts) {
      for (const piece of pieces) {
        target.set(piece, at);
        at += piece.length;
      }
    }
    return at - start;
  }
}

const deltaLists = new Memo<ResourceList, SharedParts>();

/** @param shared goes before `resources` */
export function encodeDelta(head: DeltaHead, resources: readonly Resource[], shared?: ResourceList): EncodedResponse {
  const first = new Parts();
  first.add(encode(DeltaDiscoveryResponse, DeltaDiscoveryResponse.fromPartial({ ...head, control_plane })));
  return new EncodedResponse([first, ...(shared ? [deltaLists.once(shared, () => deltaParts(shared.resources, new SharedParts()))] : []), deltaParts(resources, new Parts())]);
}

export function encodeSotw(head: { type_url: string; version_info: string; nonce: string }, resources: readonly Resource[]): EncodedResponse {
  const parts = new Parts();
  parts.add(encode(DiscoveryResponse, DiscoveryResponse.fromPartial({ ...head, control_plane })));
  for (const resource of resources) addResource(parts, sotwFrames.once(resource, () => sotwFrame(resource)), resource);
  return new EncodedResponse([parts]);
}

function deltaParts<P extends Parts>(resources: readonly Resource[], parts: P): P {
  for (const resource of resources) addResource(parts, encodeAhead(resource), resource);
  return parts;
}

/** What stands around the resource in incremental xDS: before the first client asks, it can be made in slices. */
export function encodeAhead(resource: Resource): Buffer {
  return deltaFrames.once(resource, () => deltaFrame(resource));
}

function addResource(parts: Parts, frame: Buffer, resource: Resource): void {
  parts.add(frame);
  if (resource.parts) for (const part of resource.parts) parts.add(part);
  else parts.add(resource.body.value);
}

/** All of a Resource up to the bytes of its body, which come last. */
function deltaFrame(resource: Resource): Buffer {
  const { name, version } = resource;
  const named = encode(ResourceMessage, ResourceMessage.fromPartial({ name, version }));
  const { any, length } = anyFrame(resource);
  const bodyHead = [RESOURCE_BODY, ...varint(any.length + length)];
  return Buffer.from([RESOURCES, ...varint(named.length + bodyHead.length + any.length + length), ...named, ...bodyHead, ...any]);
}

function sotwFrame(resource: Resource): Buffer {
  const { any, length } = anyFrame(resource);
  return Buffer.from([RESOURCES, ...varint(any.length + length), ...any]);
}

/** All of an Any up to the bytes of its value, and their number; a body in parts is not put together for that. */
function anyFrame(resource: Resource): { any: number[]; length: number } {
  const length = resource.parts ? resource.parts.reduce((sum, part) => sum + part.length, 0) : resource.body.value.length;
  const type = Buffer.from(resource.typeUrl ?? resource.body.type_url);
  return { any: [ANY_TYPE, ...varint(type.length), ...type, ANY_VALUE, ...varint(length)], length };
}

export function varint(value: number): number[] {
  const bytes: number[] = [];
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return [...bytes, rest];
    bytes.push((rest % 128) | 128);
  }
}
