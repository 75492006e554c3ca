import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pack } from '../../common/xds/any.js';
import { Address, Workload } from '../../proto/generated/istio/workload/workload.js';
import { PackedResources } from './packed-resources.js';
import { AddressType } from './resource-types.js';
import type { XdsResource } from './resource-type.js';

const type = new AddressType();
const table = (): PackedResources<Address> => type.hold() as PackedResources<Address>;
const resource = (uid: string, node = 'node-1', version = '1'): XdsResource<Address> =>
  type.decode(uid, version, pack(Address, Address.fromPartial({ type: { $case: 'workload', value: Workload.fromPartial({ uid, node }) } })));
const nodeOf = ({ message }: Pick<XdsResource<Address>, 'message'>): string => (message.type as { value: Workload }).value.node;

test('a table of bytes has each resource under its name, in the order of arrival, with its version and what it says', () => {
  const all = table();
  const [one, two] = [resource('a'), resource('b', 'node-2', '')];
  all.set('a', one).set('b', two);
  assert.deepEqual([...all.keys()], ['a', 'b']);
  assert.deepEqual([...all].map(([name, each]) => [name, each.name, each.version, nodeOf(each)]), [['a', 'a', '1', 'node-1'], ['b', 'b', '', 'node-2']]);
  assert.deepEqual([...all.values()].map(({ any }) => any), [one.any, two.any]);
  assert.equal(all.get('a')!.hash, one.hash);
  assert.ok(type.equals(all.get('b')!, two));
  assert.equal(all.get('c'), undefined);
  assert.equal(all.size, 2);
  assert.deepEqual([all.delete('a'), all.delete('a'), all.has('a'), all.size], [true, false, false, 1]);
});

test('who has a resource of the table keeps what it said, whatever becomes of it there', () => {
  const all = table();
  all.set('a', resource('a', 'before'));
  const before = all.get('a')!;
  all.set('a', resource('a', 'after', '2'));
  for (let index = 0; index < 5_000; index++) all.set(`x${index}`, resource(`x${index}`, 'n'.repeat(500)));
  for (let index = 0; index < 5_000; index++) all.delete(`x${index}`);
  assert.equal(nodeOf(before), 'before');
  assert.deepEqual([nodeOf(all.get('a')!), all.get('a')!.version], ['after', '2']);
});

test('a resource under a newer version is one of the table again', () => {
  const all = table();
  all.set('a', resource('a', 'here'));
  all.set('a', { ...all.get('a')!, version: '7' } as XdsResource<Address>);
  assert.deepEqual([all.get('a')!.version, nodeOf(all.get('a')!)], ['7', 'here']);
});

test('what was replaced or removed gives its memory back, and the rest stays readable', () => {
  const all = table();
  const nodes = new Map<string, string>();
  for (let round = 0; round < 20; round++) {
    for (let index = 0; index < 2_000; index++) {
      const [name, node] = [`w${index}`, `${'n'.repeat(400)}${round}`];
      if (index % 7 === round % 7) {
        all.delete(name);
        nodes.delete(name);
        continue;
      }
      all.set(name, resource(name, node));
      nodes.set(name, node);
    }
  }
  const bytes = [...all.values()].reduce((sum, { any }) => sum + any.value.length, 0);
  assert.ok(all.heldBytes < 2 * bytes + (2 << 20), `${all.heldBytes} bytes are held for ${bytes}`);
  assert.deepEqual(new Map([...all].map(([name, each]) => [name, nodeOf(each)])), nodes);
  for (const name of nodes.keys()) all.delete(name);
  assert.ok(all.heldBytes <= 2 << 20, `${all.heldBytes} bytes are held for nothing`);
});

test('one that is larger than a buffer has one of its own', () => {
  const all = table();
  const long = 'n'.repeat(1 << 19);
  all.set('a', resource('a')).set('long', resource('long', long)).set('b', resource('b'));
  assert.deepEqual([...all.values()].map(nodeOf), ['node-1', long, 'node-1']);
  const held = all.heldBytes;
  all.delete('long');
  assert.ok(held - all.heldBytes > 1 << 19);
});
