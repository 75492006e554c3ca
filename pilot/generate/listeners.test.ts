import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../common/xds/any.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import type { MeshPort, MeshService } from '../model/model.js';
import { serviceYaml } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';
import { matchKey } from './listener-chains.js';
import { OutboundListeners } from './listeners.js';
import { TYPE, type Resource } from './resource.js';

const client = testProxy('10.0.0.9', 'client.shop', { app: 'client' });
const vs = (spec: string, name = 'db'): string => `\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: ${name}, namespace: shop}\nspec: ${spec}\n---`;
const rule = (spec: string): string => `\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: db, namespace: shop}\nspec: ${spec}\n---`;
const DB = serviceYaml('shop', 'db', '10.96.0.1', [], 'name: tcp, port: 5432') + serviceYaml('shop', 'other', '10.96.0.2', [], 'name: tcp, port: 5432');
const TLS = serviceYaml('shop', 'tls', '10.96.0.3', [], 'name: tls, port: 443');

const decode = (resources: Resource[]): Map<string, Listener> => new Map(resources.map(({ name, body }) => [name, unpack(Listener, body)!]));
const listeners = (mesh: TestMesh, proxy = client): Map<string, Listener> => decode(mesh.generators.get(TYPE.listener)!.all(proxy));
const proxyOf = (chain: FilterChain | undefined): TcpProxy => {
  const config = chain?.filters.at(-1)?.config_type;
  return (config?.$case === 'typed_config' && unpack(TcpProxy, config.value)) || assert.fail('no tcp_proxy');
};
const cluster = (chain: FilterChain | undefined): unknown => {
  const { cluster_specifier: specifier } = proxyOf(chain);
  return specifier?.$case === 'weighted_clusters' ? specifier.value.clusters.map(({ name, weight }) => [name, weight]) : specifier?.value;
};
const db = (name: string): string => `outbound|5432||${name}.shop.svc.cluster.local`;
const inspectors = ({ listener_filters: filters }: Listener): string[] => filters.map(({ name }) => name.split('.').at(-1)!);

test('TCP routes: weights, sources and ports are decided for the client, the first that fits wins', () => {
  const spec = '{hosts: [db], tcp: [{match: [{port: 1}, {sourceLabels: {app: nobody}}, {sourceNamespace: elsewhere}, {gateways: [g]}], route: [{destination: {host: tls}}]}, {match: [{port: 5432, sourceLabels: {app: client}}], route: [{destination: {host: db}, weight: 9}, {destination: {host: other}, weight: 1}]}, {route: [{destination: {host: tls}}]}]}';
  const [chain, ...more] = listeners(testMesh(DB + TLS + vs(spec))).get('10.96.0.1_5432')!.filter_chains;
  assert.deepEqual([more.length, cluster(chain), proxyOf(chain).stat_prefix], [0, [[db('db'), 9], [db('other'), 1]], 'db.shop']);
  assert.deepEqual(chain!.metadata!.filter_metadata['istio'], { config: '/apis/networking.istio.io/v1/namespaces/shop/virtual-service/db' });
});

test('TCP routes: subnets are chains of their own, what none takes goes to the service', () => {
  const spec = '{hosts: [db], tcp: [{match: [{destinationSubnets: [10.96.0.0/16, 10.97.0.1]}], route: [{destination: {host: other}}]}]}';
  const { filter_chains: chains, default_filter_chain: rest } = listeners(testMesh(DB + vs(spec))).get('10.96.0.1_5432')!;
  assert.deepEqual(chains.map((chain) => [chain.filter_chain_match!.prefix_ranges.map(({ address_prefix, prefix_len }) => [address_prefix, prefix_len]), cluster(chain)]), [[[['10.96.0.0', 16], ['10.97.0.1', 32]], db('other')]]);
  assert.equal(cluster(rest), db('db'));
});

test('TCP routes: a DestinationRule\'s hash, idle time and longest duration stand at the connection', () => {
  const policy = 'trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}, connectionPool: {tcp: {idleTimeout: 30s, maxConnectionDuration: 1h}}}';
  const of = (yaml: string): TcpProxy => proxyOf(listeners(testMesh(DB + yaml)).get('10.96.0.1_5432')!.filter_chains[0]);
  const plain = of(rule(`{host: db, ${policy}}`));
  assert.deepEqual([plain.hash_policy.map(({ policy_specifier: specifier }) => specifier?.$case), plain.idle_timeout?.seconds, plain.max_downstream_connection_duration?.seconds], [['source_ip'], 30n, 3600n]);
  const subset = of(rule(`{host: db, ${policy}, subsets: [{name: v1, trafficPolicy: {loadBalancer: {simple: RANDOM}}}]}`) + vs('{hosts: [db], tcp: [{route: [{destination: {host: db, subset: v1}}]}]}'));
  assert.equal(subset.hash_policy.length, 0);
});

test('TCP: a tunnel asks the destination, an HTTP proxy, for its target; a subset\'s before the host\'s', () => {
  const rules = rule('{host: db, trafficPolicy: {tunnel: {targetHost: a.example, targetPort: 443}}, subsets: [{name: v1, trafficPolicy: {tunnel: {protocol: POST, targetHost: "2001:db8::1", targetPort: 1}}}]}');
  const tunnel = (yaml: string): unknown => {
    const { hostname, use_post } = proxyOf(listeners(testMesh(DB + rules + yaml)).get('10.96.0.1_5432')!.filter_chains[0]).tunneling_config ?? {};
    return [hostname, use_post];
  };
  assert.deepEqual([tunnel(''), tunnel(vs('{hosts: [db], tcp: [{route: [{destination: {host: db, subset: v1}}]}]}'))], [['a.example:443', false], ['[2001:db8::1]:1', true]]);
});

test('TLS routes: by server name, equal conditions once, the rest passes through; without routes all of it is the service\'s', () => {
  const spec = '{hosts: [tls, a.example, b.example, never.example, "*.c.example"], tls: [{match: [{sniHosts: [b.example, a.example]}, {port: 1, sniHosts: [never.example]}], route: [{destination: {host: db}}]}, {match: [{sniHosts: [b.example, a.example]}], route: [{destination: {host: tls}}]}, {match: [{sniHosts: ["*.c.example"]}], route: [{destination: {host: tls, subset: v1}}]}]}';
  const routed = listeners(testMesh(DB + TLS + vs(spec))).get('10.96.0.3_443')!;
  assert.deepEqual(routed.filter_chains.map((chain) => [chain.filter_chain_match!.server_names, cluster(chain)]), [
    [['a.example', 'b.example'], db('db')],
    [['*.c.example'], 'outbound|443|v1|tls.shop.svc.cluster.local'],
  ]);
  assert.deepEqual([cluster(routed.default_filter_chain), routed.default_filter_chain?.name, inspectors(routed)], ['PassthroughCluster', 'PassthroughFilterChain', ['tls_inspector']]);
  const plain = listeners(testMesh(TLS)).get('10.96.0.3_443')!;
  assert.deepEqual([plain.filter_chains.map(cluster), plain.default_filter_chain, inspectors(plain)], [['outbound|443||tls.shop.svc.cluster.local'], undefined, []]);
});

const service = (host: string, protocol: MeshPort['protocol'], port: number, more: Partial<MeshService> = {}): MeshService => ({
  key: `shop/${host}`, host, name: host, namespace: 'shop', addresses: [], cidrs: [], autoAddresses: [], subjectAltNames: [], trafficDistribution: '', headless: false, resolution: 'DNS', external: true, udpPorts: [], selector: {}, exportTo: 'all', createdAt: '',
  ports: [{ name: 'p', port, targetPort: port, protocol }],
  object: { apiVersion: 'networking.istio.io/v1', kind: 'ServiceEntry', metadata: { name: host, namespace: 'shop' } },
  ...more,
});

function collected(...services: MeshService[]): Map<string, Listener> {
  const { model } = testMesh('');
  const made = new OutboundListeners(model.scopeOf(client), client);
  for (const one of services) made.addService(one, one.ports[0]!);
  return decode(made.build());
}
const shape = (listener: Listener | undefined): unknown =>
  listener && [listener.filter_chains.map(({ filter_chain_match: match }) => [...(match?.server_names ?? []), ...(match?.application_protocols ?? []), ...(match?.prefix_ranges ?? []).map(({ address_prefix }) => address_prefix)].join()), listener.default_filter_chain?.filters.at(-1)?.name.split('.').at(-1), inspectors(listener)];

test('a port that HTTP and TCP services share is sniffed, whichever came first', () => {
  const expected = [['http/1.1,h2c'], 'tcp_proxy', ['http_inspector']];
  const [http, tcp] = [service('h.example', 'HTTP', 80), service('t.example', 'TCP', 80)];
  for (const order of [[http, tcp], [tcp, http]]) {
    const listener = collected(...order).get('0.0.0.0_80');
    assert.deepEqual(shape(listener), expected);
    assert.equal(cluster(listener!.default_filter_chain), 'outbound|80||t.example');
  }
  // Of two that would take everything the first stays.
  assert.equal(cluster(collected(tcp, service('u.example', 'TCP', 80)).get('0.0.0.0_80')!.filter_chains[0]), 'outbound|80||t.example');
});

test('services without an address are told apart by their names where clients speak TLS', () => {
  const listener = collected(service('a.example', 'TLS', 443), service('*.b.example', 'TLS', 443), service('h.example', 'HTTP', 443)).get('0.0.0.0_443');
  assert.deepEqual(shape(listener), [['a.example', '*.b.example', 'http/1.1,h2c'], 'tcp_proxy', ['tls_inspector', 'http_inspector']]);
  assert.equal(cluster(listener!.default_filter_chain), 'PassthroughCluster');
});

test('a ServiceEntry\'s addresses are listeners of their own, its networks are chains', () => {
  const made = collected(service('a.example', 'TCP', 99, { addresses: ['192.0.2.1', '192.0.2.2/32', '198.51.100.7/24', '2001:db8::1'] }), service('b.example', 'TCP', 99, { addresses: ['198.51.100.0/24', '203.0.113.0/24'] }));
  assert.deepEqual([...made.keys()], ['192.0.2.1_99', '192.0.2.2_99', '0.0.0.0_99']);
  // The same network again can't be told apart: the first service has it.
  assert.deepEqual(made.get('0.0.0.0_99')!.filter_chains.map((chain) => [chain.filter_chain_match!.prefix_ranges[0]!.address_prefix, cluster(chain)]), [
    ['198.51.100.7', 'outbound|99||a.example'],
    ['203.0.113.0', 'outbound|99||b.example'],
  ]);
});

test('locked listeners take nothing in; a bound HTTP listener is not sniffed', () => {
  const { model } = testMesh('');
  const made = new OutboundListeners(model.scopeOf(client), client);
  const one = service('a.example', 'HTTP', 9090);
  made.add(one, one.ports[0]!, { addresses: ['127.0.0.1'], bindToPort: true });
  made.lock();
  made.add(service('b.example', 'TCP', 9090), service('b.example', 'TCP', 9090).ports[0]!, { addresses: ['127.0.0.1'] });
  const [listener] = [...decode(made.build()).values()];
  assert.deepEqual([listener!.bind_to_port, listener!.filter_chains.length, listener!.default_filter_chain, inspectors(listener!)], [undefined, 1, undefined, []]);
});

test('matchKey: order of names, host bits of networks and `*` make no difference', () => {
  const key = (sni: string[], cidrs: string[]): string => matchKey({ sni, cidrs, filters: [] });
  assert.equal(key(['b', 'a'], ['10.1.2.3/8']), key(['a', 'b'], ['10.9.9.9/8']));
  assert.equal(key(['*'], ['0.0.0.0/0']), key([], []));
  assert.notEqual(key([], ['10.0.0.0/8']), key([], ['10.0.0.0/9']));
});
