/**
 * Responses of incremental xDS, of which each resource is decoded when its turn comes: a big mesh's first response has tens of thousands
 * of them, and nobody needs two at the same time.
 */
import { BinaryReader } from '@bufbuild/protobuf/wire';
import { DeltaDiscoveryResponse, Resource } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';

export interface DeltaResponse extends Omit<DeltaDiscoveryResponse, 'resources'> {
  /** Decoded anew each time one goes through them. */
  readonly resources: Iterable<Resource>;
}

/** Field number and wire type of DeltaDiscoveryResponse.resources. */
const RESOURCES = (2 << 3) | 2;

/** @throws when any part of it does not decode: streams end by that, and nothing of the response is taken up */
export function decodeDeltaResponse(bytes: Buffer): DeltaResponse {
  const rest: Uint8Array[] = [];
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const from = reader.pos;
    const tag = reader.uint32();
    if (tag === RESOURCES) {
      Resource.decode(reader.bytes());
      continue;
    }
    reader.skip(tag & 7, tag >>> 3);
    rest.push(bytes.subarray(from, reader.pos));
  }
  return { ...DeltaDiscoveryResponse.decode(Buffer.concat(rest)), resources: { [Symbol.iterator]: () => resourcesOf(bytes) } };
}

function* resourcesOf(bytes: Buffer): Generator<Resource, undefined> {
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const tag = reader.uint32();
    if (tag === RESOURCES) yield Resource.decode(reader.bytes());
    else reader.skip(tag & 7, tag >>> 3);
  }
}
