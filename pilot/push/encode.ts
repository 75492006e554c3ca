/**
 * Responses as bytes. What stands around a resource's body in a response is encoded once, whoever it goes to, and the body
 * is not copied before the response is put together: protobuf allows it, since repeated fields are just written in a row.
 */
import { DeltaDiscoveryResponse, DiscoveryResponse, Resource as ResourceMessage } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { Memo } from '../../common/memo.js';
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

/**
 * A response in parts that others have as well. Has what grpc-js wants of a message when it puts it into a frame, and so is
 * copied only then: not before its turn comes on the stream, and not twice.
 */
export class EncodedResponse {
  readonly #parts: Uint8Array[];
  #length = 0;

  constructor(head: Uint8Array) {
    this.#parts = [head];
    this.#length = head.length;
  }

  get byteLength(): number {
    return this.#length;
  }

  add(part: Uint8Array): void {
    this.#parts.push(part);
    this.#length += part.length;
  }

  /** As Buffer.copy: writes all of it into `target`, from its byte `start` on. */
  copy(target: Uint8Array, start = 0): number {
    let at = start;
    for (const part of this.#parts) {
      target.set(part, at);
      at += part.length;
    }
    return at - start;
  }
}

export function encodeDelta(head: DeltaHead, resources: readonly Resource[]): EncodedResponse {
  const response = new EncodedResponse(DeltaDiscoveryResponse.encode(DeltaDiscoveryResponse.fromPartial({ ...head, control_plane })).finish());
  for (const resource of resources) addResource(response, deltaFrames.once(resource, () => deltaFrame(resource)), resource);
  return response;
}

export function encodeSotw(head: { type_url: string; version_info: string; nonce: string }, resources: readonly Resource[]): EncodedResponse {
  const response = new EncodedResponse(DiscoveryResponse.encode(DiscoveryResponse.fromPartial({ ...head, control_plane })).finish());
  for (const resource of resources) addResource(response, sotwFrames.once(resource, () => sotwFrame(resource)), resource);
  return response;
}

function addResource(response: EncodedResponse, frame: Buffer, resource: Resource): void {
  response.add(frame);
  if (resource.parts) for (const part of resource.parts) response.add(part);
  else response.add(resource.body.value);
}

/** All of a Resource up to the bytes of its body, which come last. */
function deltaFrame({ name, version, body }: Resource): Buffer {
  const named = ResourceMessage.encode(ResourceMessage.fromPartial({ name, version })).finish();
  const { length } = body.value;
  const any = anyFrame(body.type_url, length);
  const bodyHead = [RESOURCE_BODY, ...varint(any.length + length)];
  return Buffer.from([RESOURCES, ...varint(named.length + bodyHead.length + any.length + length), ...named, ...bodyHead, ...any]);
}

function sotwFrame({ body }: Resource): Buffer {
  const { length } = body.value;
  const any = anyFrame(body.type_url, length);
  return Buffer.from([RESOURCES, ...varint(any.length + length), ...any]);
}

function anyFrame(typeUrl: string, length: number): number[] {
  const type = Buffer.from(typeUrl);
  return [ANY_TYPE, ...varint(type.length), ...type, ANY_VALUE, ...varint(length)];
}

export function varint(value: number): number[] {
  const bytes: number[] = [];
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return [...bytes, rest];
    bytes.push((rest % 128) | 128);
  }
}
