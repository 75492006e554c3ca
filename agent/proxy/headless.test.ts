/** withHeadless: which chains tunnel to the pod that was dialled. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Cluster, Cluster_DiscoveryType } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { unpack } from '../../common/xds/any.js';
import { narrowed } from './chain-match.js';
import { blackHole, tcpChain, type FoldedListeners } from './fold-listeners.js';
import { withHeadless } from './headless.js';

const ALICE = 'spiffe://cluster.local/ns/shop/sa/alice';
const clusters = new Map([
  Cluster.fromPartial({ name: 'outbound|9000||db', cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.ORIGINAL_DST } }),
  Cluster.fromPartial({ name: 'outbound|9001||db', cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.ORIGINAL_DST }, transport_socket: { name: 'tls' } }),
  Cluster.fromPartial({ name: 'outbound|9000||entry', cluster_discovery_type: { $case: 'type', value: Cluster_DiscoveryType.EDS } }),
].map((cluster) => [cluster.name, cluster]));
const chain = (cluster: string, port: number, ...addresses: string[]): FilterChain => tcpChain(`${cluster} ${addresses.join()}`, cluster, narrowed(undefined, port, addresses.map((each) => {
  const [address_prefix = '', length = each.includes(':') ? '128' : '32'] = each.split('/');
  return { address_prefix, prefix_len: Number(length) };
})));
/** Cluster, and authority if there is a tunnel, of each chain: the pods' listeners', then those of plain TCP that is handed on. */
function ways(chains: FilterChain[]): string[] {
  const [plain, ...own] = [chains.at(-1)!, ...chains.slice(0, -1)];
  const folded: FoldedListeners = { chains: own, defaultChain: blackHole('default', undefined), inspected: { http: [], unknown: [], plain: [plain] }, accessLog: [], handsOn: true, dispensable: new Set(), others: blackHole('others', undefined), errors: [] };
  const changed = withHeadless(folded, ['10.0.2.1', '10.0.2.2', 'fd00::2'], ALICE, (name) => clusters.get(name));
  return [...changed.chains, ...changed.inspected.plain].map(({ filters }) => {
    const config = filters[0]?.config_type;
    const proxy = config?.$case === 'typed_config' ? unpack(TcpProxy, config.value) : undefined;
    const to = proxy?.cluster_specifier?.$case === 'cluster' ? proxy.cluster_specifier.value : '';
    return proxy?.tunneling_config ? `${to} to ${proxy.tunneling_config.hostname}` : to;
  });
}
const TUNNEL = `hbone/${ALICE} to %DOWNSTREAM_LOCAL_ADDRESS%`;

test('a headless service\'s chains for pods that take HBONE tunnel there, in either family and wherever the chains are', () => {
  assert.deepEqual(ways([chain('outbound|9000||db', 9000, '10.0.2.1'), chain('outbound|9000||db', 9000, 'fd00::2'), chain('outbound|9000||db', 9000, '10.0.2.1', '10.0.2.2')]), [TUNNEL, TUNNEL, TUNNEL]);
});

test('all others stay as they are: of other pods, of more than such pods, of clusters that choose an endpoint or speak TLS, that refuse', () => {
  const kept = [
    chain('outbound|9000||db', 9000, '10.0.2.3'), chain('outbound|9000||db', 9000, '10.0.2.1', '10.0.2.3'), chain('outbound|9000||db', 9000, '10.0.2.1/24'), chain('outbound|9000||db', 9000),
    chain('outbound|9000||entry', 9000, '10.0.2.1'), chain('outbound|9001||db', 9001, '10.0.2.1'), chain('outbound|9002||unknown', 9002, '10.0.2.1'), chain('BlackHoleCluster', 9003, '10.0.2.1'),
  ];
  assert.deepEqual(ways(kept), kept.map(({ name }) => name.split(' ')[0]));
});

test('a caller without an identity has no tunnels', () => {
  const chains = [chain('outbound|9000||db', 9000, '10.0.2.1'), chain('outbound|9000||db', 9000, '10.0.2.2')];
  assert.deepEqual([withHeadless({ chains, defaultChain: chains[0]!, inspected: { http: [], unknown: [], plain: [] }, accessLog: [], handsOn: false, dispensable: new Set(), others: chains[0]!, errors: [] }, ['10.0.2.1', '10.0.2.2'], undefined, (name) => clusters.get(name)).chains], [chains]);
});
