import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DeltaDiscoveryResponse, DiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { makeResource, TYPE, type Resource } from '../generate/resource.js';
import { bytesOf } from '../testing/stream.js';
import { encodeDelta, encodeSotw } from './encode.js';

const resources: Resource[] = [0, 1, 130, 20_000, 3_000_000].map((size, index) => makeResource(`cluster-${index}`, Cluster, Cluster.fromPartial({ name: `cluster-${index}`, alt_stat_name: 'x'.repeat(size) })));

test('encodeDelta, encodeSotw: what is put together reads as what was meant, bodies of any length', () => {
  const delta = DeltaDiscoveryResponse.decode(bytesOf(encodeDelta({ type_url: TYPE.cluster, system_version_info: 'v', nonce: 'n', removed_resources: ['gone'] }, resources)));
  assert.deepEqual([delta.type_url, delta.system_version_info, delta.nonce, delta.removed_resources, delta.control_plane?.identifier], [TYPE.cluster, 'v', 'n', ['gone'], 'underpass-pilot']);
  assert.deepEqual(delta.resources.map(({ name, version, resource }) => [name, version, resource?.type_url, Buffer.from(resource!.value).equals(resources.find((made) => made.name === name)!.body.value)]), resources.map(({ name, version }) => [name, version, TYPE.cluster, true]));
  const sotw = DiscoveryResponse.decode(bytesOf(encodeSotw({ type_url: TYPE.cluster, version_info: 'v', nonce: 'n' }, resources)));
  assert.deepEqual(sotw.resources.map(({ type_url, value }) => [type_url, Cluster.decode(value).name]), resources.map(({ name }) => [TYPE.cluster, name]));
});
