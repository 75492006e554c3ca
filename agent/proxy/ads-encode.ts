/**
 * Responses to Envoy as bytes. What stands around the resources' bytes is encoded, and they are copied once: the generated code
 * copies a message for each level that it is in, and a mesh's tables of routes are large.
 */
import { DeltaDiscoveryResponse, Resource } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { encode } from '../../common/xds/any.js';
import { PartedAny } from './route-tables.js';

/** Field numbers with wire type 2: of DeltaDiscoveryResponse.resources, Resource.resource, Any.type_url and Any.value. */
const RESOURCES = 0x12;
const RESOURCE_BODY = 0x12;
const ANY_TYPE = 0x0a;
const ANY_VALUE = 0x12;

export function encodeResponse(response: DeltaDiscoveryResponse): Buffer {
  const pieces: Uint8Array[] = [encode(DeltaDiscoveryResponse, { ...response, resources: [] })];
  for (const item of response.resources) {
    const named = encode(Resource, { ...item, resource: undefined });
    const head: Uint8Array[] = [];
    if (item.resource) {
      const { type_url } = item.resource;
      const parts = item.resource instanceof PartedAny ? item.resource.parts : [item.resource.value];
      const size = parts.reduce((sum, part) => sum + part.length, 0);
      const type = Buffer.from(type_url);
      const before = Buffer.concat([Buffer.of(ANY_TYPE), varint(type.length), type, Buffer.of(ANY_VALUE), varint(size)]);
      head.push(Buffer.concat([Buffer.of(RESOURCE_BODY), varint(before.length + size), before]), ...parts);
    }
    const length = named.length + head.reduce((sum, { length: each }) => sum + each, 0);
    pieces.push(Buffer.concat([Buffer.of(RESOURCES), varint(length), named]), ...head);
  }
  return Buffer.concat(pieces);
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return Buffer.from([...bytes, rest]);
    bytes.push((rest % 128) | 128);
  }
}
