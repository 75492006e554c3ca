import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { encode } from '../../common/xds/any.js';
import { hashBytes } from '../xds/resource-type.js';
import { renameInChain, tcpChain } from './fold-listeners.js';
import { listenerEntry } from './listener-bytes.js';
import { PartedAny } from './route-tables.js';
import { LDS } from './snapshot.js';

const chains = Array.from({ length: 3 }, (_, index) => tcpChain(`chain ${index}`, `outbound|${index}||a`, undefined));

/** Every field that the agent's own listeners have, and some more. */
function listener(name: string, filter_chains: FilterChain[]): Listener {
  const made = Listener.fromPartial({
    name, stat_prefix: `of ${name}`, address: { address: { $case: 'socket_address', value: { address: '127.0.0.1', port_specifier: { $case: 'port_value', value: 15001 } } } },
    additional_addresses: [{ address: { address: { $case: 'socket_address', value: { address: '::1', port_specifier: { $case: 'port_value', value: 15001 } } } } }],
    traffic_direction: 2, listener_filters_timeout: { seconds: 1n, nanos: 0 }, continue_on_listener_filters_timeout: true, listener_filters: [{ name: 'filter' }], access_log: [{ name: 'log' }], per_connection_buffer_limit_bytes: 7,
  });
  return { ...made, filter_chains, default_filter_chain: tcpChain('default', 'BlackHoleCluster', undefined) };
}

test('a listener made of parts has the bytes, and the version, of its encoding', () => {
  for (const each of [listener('a', chains), listener('b', []), Listener.fromPartial({ name: 'c', listener_specifier: { $case: 'internal_listener', value: {} } })]) {
    const { name, any, version, needs } = listenerEntry(each, ['80']);
    const bytes = Buffer.from(encode(Listener, each));
    assert.deepEqual([name, any.type_url, any.value, version, needs], [each.name, LDS, bytes, hashBytes(bytes), ['80']]);
  }
});

test('listeners with the same chains have the same bytes of them', () => {
  const [a, b] = [listenerEntry(listener('a', chains), []), listenerEntry(listener('b', [...chains].reverse()), [])];
  const partsOf = ({ any }: typeof a): readonly Uint8Array[] => (any as PartedAny).parts;
  assert.equal(partsOf(a).length, 5);
  assert.deepEqual(partsOf(a).slice(1, 4).map((part) => partsOf(b).indexOf(part)), [3, 2, 1]);
});

test('a chain of which no name is another one here is itself, so that its bytes are found again', () => {
  const chain = chains[0]!;
  const same = (name: string): string => name;
  assert.equal(renameInChain(chain, same, same), chain);
  const renamed = renameInChain(chain, (name) => `${name}~other`, same);
  assert.notEqual(renamed, chain);
  assert.deepEqual(Buffer.from(encode(FilterChain, renameInChain(renamed, (name) => name.replace('~other', ''), same))), Buffer.from(encode(FilterChain, chain)));
});
