import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { HttpProtocolOptions } from '../../proto/generated/envoy/extensions/upstreams/http/v3/http_protocol_options.js';
import { pack, unpack } from '../../common/xds/any.js';
import { endingIdle, portsTo } from './shown-callers.js';

const KEY = 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions';
const optionsOf = (cluster: Cluster): HttpProtocolOptions => unpack(HttpProtocolOptions, cluster.typed_extension_protocol_options[KEY]) ?? assert.fail('no options');

test('an upstream connection that a caller has to itself ends when idle, with the protocol that the cluster has, unless it says when', () => {
  const plain = optionsOf(endingIdle(Cluster.fromPartial({ name: 'c' })));
  assert.deepEqual([plain.common_http_protocol_options?.idle_timeout?.seconds, plain.upstream_protocol_options?.$case], [60n, 'explicit_http_config']);
  const given = (idle?: bigint): Cluster => Cluster.fromPartial({ name: 'c', typed_extension_protocol_options: { [KEY]: pack(HttpProtocolOptions, HttpProtocolOptions.fromPartial({ upstream_protocol_options: { $case: 'use_downstream_protocol_config', value: {} }, common_http_protocol_options: { max_requests_per_connection: 5, ...(idle === undefined ? {} : { idle_timeout: { seconds: idle, nanos: 0 } }) } })) } });
  const kept = optionsOf(endingIdle(given()));
  assert.deepEqual([kept.common_http_protocol_options?.idle_timeout?.seconds, kept.upstream_protocol_options?.$case], [60n, 'use_downstream_protocol_config']);
  assert.equal(optionsOf(endingIdle(given(7n))).common_http_protocol_options?.idle_timeout?.seconds, 7n);
});

test('ports that lead to a cluster are found in both listeners\' chains', () => {
  const chain = (destination_port: number | undefined, cluster: string): FilterChain => FilterChain.fromPartial({ ...(destination_port === undefined ? {} : { filter_chain_match: { destination_port } }), filters: [{ name: 'tcp', config_type: { $case: 'typed_config', value: pack(TcpProxy, TcpProxy.fromPartial({ stat_prefix: 'x', cluster_specifier: { $case: 'cluster', value: cluster } })) } }] });
  const folded = { direct: [chain(9000, 'a'), chain(8080, 'b'), chain(undefined, 'a')], mesh: [chain(7000, 'a')] };
  assert.deepEqual(portsTo(new Set(['a']), folded), [7000, 9000]);
  assert.deepEqual(portsTo(new Set(), folded), []);
});
