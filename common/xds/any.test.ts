import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { encode } from './any.js';

test('encode: what was written of a message that can not be encoded is in no later one, and bytes given out stay', () => {
  const first = encode(Cluster, Cluster.fromPartial({ name: 'first' }));
  const broken = Cluster.fromPartial({ name: 'broken', per_connection_buffer_limit_bytes: -1 });
  assert.throws(() => encode(Cluster, broken), /invalid uint32/);
  const second = encode(Cluster, Cluster.fromPartial({ name: 'second' }));
  assert.deepEqual([Cluster.decode(first).name, Cluster.decode(second).name], ['first', 'second']);
  assert.deepEqual(second, Cluster.encode(Cluster.fromPartial({ name: 'second' })).finish());
});
