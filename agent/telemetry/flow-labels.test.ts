import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Address, Service, Workload } from '../../proto/generated/istio/workload/workload.js';
import { encodeAddress } from '../dataplane/kernel-codec.js';
import { FlowDirectory, knownWorkloads } from './flow-labels.js';

const v4 = (text: string): Buffer => encodeAddress(text).subarray(12);
const workload = (name: string, ...addresses: Buffer[]): Address => Address.fromPartial({ type: { $case: 'workload', value: Workload.fromPartial({ name, workload_name: name, namespace: 'shop', addresses }) } });
const service = (hostname: string, address: Buffer): Address => Address.fromPartial({ type: { $case: 'service', value: Service.fromPartial({ hostname, addresses: [{ address }] }) } });

test('with an index by address only what is asked for is read, and found as by looking through all', () => {
  const all = new Map([['w1', workload('web', v4('10.0.0.1'), encodeAddress('fd00::1'))], ['w2', workload('db', encodeAddress('10.0.0.2'))], ['s', service('a.example', v4('10.96.0.1'))], ['w3', workload('other', v4('10.0.0.3'))]]);
  let read = 0;
  const addresses = new Map([...all].map(([name, message]) => [name, { get message() { read++; return message; } }]));
  const known = { addresses, synced: true, revision: 1 };
  const index: Record<string, string[]> = { '10.0.0.1': ['w1'], 'fd00::1': ['w1'], '10.0.0.2': ['w2', 'gone'], '10.96.0.1': ['s'] };
  const asked = ['10.0.0.1', 'fd00:0:0::1', '10.0.0.2', '10.96.0.1', '10.9.9.9'];
  const found = (directory: FlowDirectory): unknown => {
    directory.prepare(asked);
    return asked.map((address) => [directory.workload([address])?.name, directory.service(address)?.hostname]);
  };
  const expected = [['web', undefined], ['web', undefined], ['db', undefined], [undefined, 'a.example'], [undefined, undefined]];
  assert.deepEqual(found(new FlowDirectory(known)), expected);
  assert.equal(read, 4);
  read = 0;
  const directory = new FlowDirectory(knownWorkloads(known, { namesAt: (address) => index[address] ?? [] }));
  assert.deepEqual(found(directory), expected);
  assert.equal(read, 3);
  directory.prepare(asked, new Set(['other;shop;;latest;']));
  assert.equal(directory.named('other;shop;;;')?.name, 'other', 'who is asked for by name is looked for among all');
});
