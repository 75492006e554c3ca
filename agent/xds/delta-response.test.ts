import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DeltaDiscoveryResponse, Resource } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { decodeDeltaResponse } from './delta-response.js';

const named = (name: string): Resource => Resource.fromPartial({ name, version: 'v1', aliases: ['other'], resource: { type_url: 'type', value: Buffer.from(`value of ${name}`) } });

test('a response decodes as by the generated code, its resources as often as one goes through them', () => {
  const message = DeltaDiscoveryResponse.fromPartial({ system_version_info: '7', resources: [named('a'), named('b')], type_url: 'type', removed_resources: ['c', 'd'], nonce: '12', control_plane: { identifier: 'pilot' } });
  // Fields of a message may come in any order, and more than once.
  const bytes = Buffer.concat([Buffer.from(DeltaDiscoveryResponse.encode(DeltaDiscoveryResponse.fromPartial({ resources: [named('first')] })).finish()), Buffer.from(DeltaDiscoveryResponse.encode(message).finish())]);
  const { resources, ...rest } = decodeDeltaResponse(bytes);
  const { resources: expected, ...others } = DeltaDiscoveryResponse.decode(bytes);
  assert.deepEqual(rest, others);
  assert.deepEqual([...resources], expected);
  assert.deepEqual([...resources].map(({ name }) => name), ['first', 'a', 'b']);
});

test('a response of which any part does not decode is refused as a whole', () => {
  const whole = Buffer.from(DeltaDiscoveryResponse.encode(DeltaDiscoveryResponse.fromPartial({ resources: [named('a')], nonce: '1' })).finish());
  assert.throws(() => decodeDeltaResponse(whole.subarray(0, -1)), RangeError);
  // A second resource, whose name is longer than the resource.
  assert.throws(() => decodeDeltaResponse(Buffer.concat([whole, Buffer.from([0x12, 0x02, 0x1a, 0x7f])])), RangeError);
});
