import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DeltaDiscoveryResponse, Resource } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { encodeResponse } from './ads-encode.js';
import { PartedAny } from './route-tables.js';

test('encodeResponse writes what the generated code reads as the same response, of whatever size', () => {
  for (const sizes of [[], [0], [1, 127, 128], [16_383, 16_384, 70_000], [3 << 20]]) {
    const response = DeltaDiscoveryResponse.fromPartial({
      type_url: 't', nonce: '7', removed_resources: sizes.length > 1 ? ['gone', 'too'] : [], system_version_info: 'v',
      resources: sizes.map((size, index) => ({ name: `n${index}`, version: 'x'.repeat(index * 100), resource: { type_url: `type/${index}`, value: Buffer.alloc(size, index + 1) } })),
    });
    const decoded = DeltaDiscoveryResponse.decode(encodeResponse(response));
    assert.deepEqual({ ...decoded, resources: decoded.resources.map((item) => ({ ...item, resource: item.resource && { ...item.resource, value: Buffer.from(item.resource.value) } })) }, response);
  }
  const [part, more] = [Buffer.alloc(70_000, 1), Buffer.alloc(200, 2)];
  const [parted] = DeltaDiscoveryResponse.decode(encodeResponse({ ...DeltaDiscoveryResponse.fromPartial({}), resources: [{ ...Resource.fromPartial({ name: 'n' }), resource: new PartedAny('t', [part, more]) }] })).resources;
  assert.deepEqual([parted?.name, parted?.resource?.type_url, Buffer.from(parted!.resource!.value)], ['n', 't', Buffer.concat([part, more])]);
  const bare = DeltaDiscoveryResponse.fromPartial({ resources: [{ name: 'none' }] });
  assert.deepEqual(DeltaDiscoveryResponse.decode(encodeResponse(bare)), bare);
});
