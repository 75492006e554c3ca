/**
 * Responses as bytes. A resource's part of a response is encoded once, whoever it goes to: a response is its head and the
 * parts put together, as protobuf's repeated fields allow.
 */
import { DeltaDiscoveryResponse, DiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import type { Resource } from '../generate/resource.js';

const deltaParts = new WeakMap<Resource, Buffer>();
const sotwParts = new WeakMap<Resource, Buffer>();
const control_plane = { identifier: 'underpass-pilot' };

export interface DeltaHead {
  type_url: string;
  system_version_info: string;
  nonce: string;
  removed_resources: string[];
}

export function encodeDelta(head: DeltaHead, resources: readonly Resource[]): Buffer {
  const parts: Uint8Array[] = [DeltaDiscoveryResponse.encode(DeltaDiscoveryResponse.fromPartial({ ...head, control_plane })).finish()];
  for (const resource of resources) {
    let part = deltaParts.get(resource);
    if (!part) {
      const { name, version, body } = resource;
      deltaParts.set(resource, (part = Buffer.from(DeltaDiscoveryResponse.encode(DeltaDiscoveryResponse.fromPartial({ resources: [{ name, version, resource: body }] })).finish())));
    }
    parts.push(part);
  }
  return Buffer.concat(parts);
}

export function encodeSotw(head: { type_url: string; version_info: string; nonce: string }, resources: readonly Resource[]): Buffer {
  const parts: Uint8Array[] = [DiscoveryResponse.encode(DiscoveryResponse.fromPartial({ ...head, control_plane })).finish()];
  for (const resource of resources) {
    let part = sotwParts.get(resource);
    if (!part) sotwParts.set(resource, (part = Buffer.from(DiscoveryResponse.encode(DiscoveryResponse.fromPartial({ resources: [resource.body] })).finish())));
    parts.push(part);
  }
  return Buffer.concat(parts);
}
