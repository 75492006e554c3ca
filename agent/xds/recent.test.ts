import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pack } from '../../common/xds/any.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { Recent, recentMessages } from './recent.js';
import { ClusterType } from './resource-types.js';
import { Facts, withVersion } from './resource-type.js';

test('of what was made from bytes the newest is held up to its size, and what is larger than that for as long as nothing follows', () => {
  const recent = new Recent(100);
  const made: string[] = [];
  const keys = new Map<string, object>();
  const get = (name: string, bytes: number): string => {
    if (!keys.has(name)) keys.set(name, {});
    return recent.get(keys.get(name)!, bytes, () => (made.push(name), name));
  };
  for (const name of ['a', 'b', 'a']) assert.equal(get(name, 40), name);
  assert.deepEqual(made, ['a', 'b']);
  get('c', 40);
  assert.equal(recent.size, 2);
  get('a', 40);
  assert.deepEqual(made, ['a', 'b', 'c', 'a'], 'the oldest was made again');
  get('large', 1_000);
  get('large', 1_000);
  assert.equal(recent.size, 1);
  get('b', 40);
  assert.equal(recent.size, 1);
});

test('of ten thousand clusters few are held decoded, whoever reads them, and each says what it said', () => {
  const type = new ClusterType();
  const all = Array.from({ length: 10_000 }, (_, index) => type.decode(`c${index}`, '1', pack(Cluster, Cluster.fromPartial({ name: `c${index}`, alt_stat_name: 'x'.repeat(100) }))));
  for (let round = 0; round < 2; round++) for (const [index, { message }] of all.entries()) assert.equal(message.name, `c${index}`);
  assert.ok(recentMessages.size < 3_000, `${recentMessages.size} are held`);
});

test('what is read of a resource is read once, whatever version it has, and again when its content is another', () => {
  const type = new ClusterType();
  const cluster = (stat: string) => type.decode('c', '1', pack(Cluster, Cluster.fromPartial({ name: 'c', alt_stat_name: stat })));
  const read: string[] = [];
  const facts = new Facts(({ alt_stat_name }: Cluster) => {
    read.push(alt_stat_name);
    return alt_stat_name || undefined;
  });
  const [one, none] = [cluster('one'), cluster('')];
  assert.deepEqual([facts.of(one), facts.of(withVersion(one, '2')), facts.of(none), facts.of(none), facts.of(cluster('two'))], ['one', 'one', undefined, undefined, 'two']);
  assert.deepEqual(read, ['one', '', 'two']);
});
