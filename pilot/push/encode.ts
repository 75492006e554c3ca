/**
 * Responses as bytes. What stands around a resource's body in a response is encoded once, whoever it goes to, and the body
 * is not copied before the response is put together: protobuf allows it, since repeated fields are just written in a row.
 */
import { DeltaDiscoveryResponse, DiscoveryResponse, Resource as ResourceMessage } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import type { Resource } from '../generate/resource.js';

/** Field numbers with wire type 2: of `resources` in both responses, of Resource.resource, of Any.type_url and Any.value. */
const RESOURCES = 0x12;
const RESOURCE_BODY = 0x12;
const ANY_TYPE = 0x0a;
const ANY_VALUE = 0x12;

const deltaFrames = new WeakMap<Resource, Buffer>();
const sotwFrames = new WeakMap<Resource, Buffer>();
const control_plane = { identifier: 'underpass-pilot' };

export interface DeltaHead {
  type_url: string;
  system_version_info: string;
  nonce: string;
  removed_resources: string[];
}

export function encodeDelta(head: DeltaHead, resources: readonly Resource[]): Buffer {
  const parts: Uint8Array[] = [DeltaDiscoveryResponse.encode(DeltaDiscoveryResponse.fromPartial({ ...head, control_plane })).finish()];
  for (const resource of resources) addResource(parts, frameOf(deltaFrames, resource, deltaFrame), resource);
  return Buffer.concat(parts);
}

export function encodeSotw(head: { type_url: string; version_info: string; nonce: string }, resources: readonly Resource[]): Buffer {
  const parts: Uint8Array[] = [DiscoveryResponse.encode(DiscoveryResponse.fromPartial({ ...head, control_plane })).finish()];
  for (const resource of resources) addResource(parts, frameOf(sotwFrames, resource, sotwFrame), resource);
  return Buffer.concat(parts);
}

function addResource(parts: Uint8Array[], frame: Buffer, resource: Resource): void {
  parts.push(frame);
  if (resource.parts) for (const part of resource.parts) parts.push(part);
  else parts.push(resource.body.value);
}

function frameOf(frames: WeakMap<Resource, Buffer>, resource: Resource, make: (resource: Resource) => Buffer): Buffer {
  let frame = frames.get(resource);
  if (!frame) frames.set(resource, (frame = make(resource)));
  return frame;
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
