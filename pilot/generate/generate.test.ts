import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack, messageTypeOf } from '../../common/xds/any.js';
import { Cluster, Cluster_DiscoveryType, Cluster_LbPolicy } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { HealthStatus } from '../../proto/generated/envoy/config/core/v3/health_check.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { RouteAction, VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { Address } from '../../proto/generated/istio/workload/workload.js';
import type { Proxy } from '../model/proxy.js';
import { nodeYaml, podYaml, serviceYaml, sliceYaml, type PodSpec } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';
import { TYPE } from './resource.js';
import { addressBytes } from './address-bytes.js';

const v1: PodSpec = { name: 'web-v1', ip: '10.0.0.1', labels: { app: 'web', version: 'v1' } };
const v2: PodSpec = { name: 'web-v2', ip: '10.0.0.2', labels: { app: 'web', version: 'v2', 'security.istio.io/tlsMode': 'istio' } };
const client = testProxy('10.0.0.9', 'client.shop', { app: 'client' });
const HOST = 'web.shop.svc.cluster.local';
const WEB = [nodeYaml, podYaml('shop', v1), podYaml('shop', v2), serviceYaml('shop', 'web', '10.96.0.1', [v1, v2])].join('\n');

const rule = (spec: string): string => `\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\nspec: ${spec}\n---`;
const routes = (spec: string, name = 'web', namespace = 'shop'): string => `\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: ${name}, namespace: ${namespace}}\nspec: ${spec}\n---`;
const SUBSETS = rule('{host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}], trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {connectTimeout: 250ms}}}}');

function all<T>(mesh: TestMesh, type: string, codec: { $type: string; decode(bytes: Uint8Array): T }, proxy: Proxy = client): Map<string, T> {
  return new Map(mesh.generators.get(type)!.all(proxy).map(({ name, body }) => [name, unpack(codec, body)!]));
}
const clusters = (mesh: TestMesh, proxy?: Proxy): Map<string, Cluster> => all(mesh, TYPE.cluster, Cluster, proxy);
const listeners = (mesh: TestMesh, proxy?: Proxy): Map<string, Listener> => all(mesh, TYPE.listener, Listener, proxy);
const endpoints = (mesh: TestMesh, name: string): ClusterLoadAssignment => unpack(ClusterLoadAssignment, mesh.generators.get(TYPE.endpoint)!.one(client, name)!.body)!;
const virtualHosts = (mesh: TestMesh, name: string, proxy: Proxy = client): VirtualHost[] => unpack(RouteConfiguration, mesh.generators.get(TYPE.route)!.one(proxy, name)!.body)!.virtual_hosts;
const actionOf = (host: VirtualHost, index: number): RouteAction => {
  const { action } = host.routes[index]!;
  assert.equal(action?.$case, 'route');
  return action!.value as RouteAction;
};

test('CDS: a cluster per port and subset, the subset policy over the rule policy', () => {
  const made = clusters(testMesh(WEB + SUBSETS));
  const policy = (subset: string): unknown => made.get(`outbound|80|${subset}|${HOST}`)?.lb_policy;
  assert.deepEqual([policy(''), policy('v1'), policy('v2')], [Cluster_LbPolicy.RANDOM, Cluster_LbPolicy.RANDOM, Cluster_LbPolicy.ROUND_ROBIN]);
  assert.equal(made.get(`outbound|80|v2|${HOST}`)!.connect_timeout!.nanos, 250_000_000);
  assert.equal(clusters(testMesh(WEB)).get(`outbound|80||${HOST}`)!.lb_policy, Cluster_LbPolicy.LEAST_REQUEST);
});

test('CDS: tls mode DISABLE takes the TLS socket away, ISTIO_MUTUAL takes the choice away', () => {
  const of = (mode: string): Cluster => clusters(testMesh(WEB + rule(`{host: web, trafficPolicy: {tls: {mode: ${mode}}}}`))).get(`outbound|80||${HOST}`)!;
  assert.deepEqual([of('DISABLE').transport_socket_matches.map(({ name }) => name), of('DISABLE').transport_socket], [['tlsMode-disabled'], undefined]);
  assert.deepEqual(of('ISTIO_MUTUAL').transport_socket_matches.map(({ name, match, transport_socket }) => [name, match, transport_socket!.name]), [['tlsMode-istio', undefined, 'envoy.transport_sockets.tls']]);
});

test('CDS: a headless service goes to the address that the client chose', () => {
  const mesh = testMesh(WEB.replaceAll('clusterIP: "10.96.0.1", clusterIPs: ["10.96.0.1"]', 'clusterIP: None, clusterIPs: [None]'));
  const cluster = clusters(mesh).get(`outbound|80||${HOST}`)!;
  assert.deepEqual(cluster.cluster_discovery_type, { $case: 'type', value: Cluster_DiscoveryType.ORIGINAL_DST });
  // One endpoint has a sidecar, one has not: such a cluster can't tell them apart, so plaintext.
  assert.equal(cluster.transport_socket, undefined);
  assert.ok(virtualHosts(mesh, '80')[0]!.domains.includes(`*.${HOST}`));
});

test('EDS: unready endpoints are unhealthy, sidecars are marked, localities grouped', () => {
  const mesh = testMesh(WEB);
  mesh.apply(sliceYaml('shop', 'web', [{ ...v1, ready: false }, v2]));
  const { endpoints: groups } = endpoints(mesh, `outbound|80||${HOST}`);
  assert.deepEqual(groups.map(({ locality }) => [locality!.region, locality!.zone]), [['r1', 'z1']]);
  const found = groups[0]!.lb_endpoints.map(({ health_status, metadata }) => [health_status, metadata!.filter_metadata['envoy.transport_socket_match']]);
  assert.deepEqual(found, [[HealthStatus.UNHEALTHY, undefined], [HealthStatus.HEALTHY, { tlsMode: 'istio' }]]);
});

test('EDS: subsets select by label; unknown clusters, services and ports are empty', () => {
  const mesh = testMesh(WEB + SUBSETS);
  const count = (name: string): number => endpoints(mesh, name).endpoints.reduce((sum, { lb_endpoints }) => sum + lb_endpoints.length, 0);
  assert.deepEqual([`outbound|80|v1|${HOST}`, `outbound|80||${HOST}`, `outbound|81||${HOST}`, 'outbound|80||nope.x.svc.cluster.local', 'nonsense'].map(count), [1, 2, 0, 0, 0]);
});

test('RDS: every name of a service, short forms as the client namespace resolves them', () => {
  const mesh = testMesh(WEB);
  assert.deepEqual(virtualHosts(mesh, '80')[0]!.domains, [HOST, `${HOST}.`, 'web', 'web.shop.svc', 'web.shop', '10.96.0.1']);
  assert.deepEqual(virtualHosts(mesh, '80', testProxy('10.0.1.1', 'a.elsewhere'))[0]!.domains, [HOST, `${HOST}.`, 'web.shop', 'web.shop.svc', '10.96.0.1']);
});

test('RDS: what is no service passes through, or not, by the mesh policy; unknown names are empty', () => {
  assert.deepEqual(virtualHosts(testMesh(WEB), '80').map(({ name }) => name), [`${HOST}:80`, 'allow_any']);
  const registryOnly = virtualHosts(testMesh(WEB, { outboundTrafficPolicy: 'REGISTRY_ONLY' }), '80')[1]!;
  const { action } = registryOnly.routes[0]!;
  assert.deepEqual([registryOnly.name, action?.$case === 'direct_response' && action.value.status], ['block_all', 502]);
  assert.deepEqual(virtualHosts(testMesh(WEB), 'nonsense'), []);
});

test('RDS: matches in order, none behind one that takes everything', () => {
  const mesh = testMesh(
    WEB +
      SUBSETS +
      routes('{hosts: [web], http: [{match: [{uri: {exact: /a}}, {uri: {prefix: /b}, method: {exact: PUT}, headers: {x-b: {}, x-a: {regex: "a.*"}}}], route: [{destination: {host: web, subset: v2}}]}, {route: [{destination: {host: web, subset: v1}, weight: 3}, {destination: {host: web, subset: v2}, weight: 0}, {destination: {host: web}, weight: 1}]}, {match: [{uri: {prefix: /never}}], route: [{destination: {host: web}}]}]}'),
  );
  const [host] = virtualHosts(mesh, '80');
  assert.deepEqual(host!.routes.map(({ match }) => match!.path_specifier), [
    { $case: 'path', value: '/a' },
    { $case: 'prefix', value: '/b' },
    { $case: 'prefix', value: '/' },
  ]);
  assert.deepEqual(host!.routes[1]!.match!.headers.map(({ name, header_match_specifier: spec }) => [name, spec?.$case]), [['x-a', 'string_match'], ['x-b', 'present_match'], [':method', 'string_match']]);
  const weighted = actionOf(host!, 2).cluster_specifier;
  assert.equal(weighted?.$case, 'weighted_clusters');
  assert.deepEqual(weighted!.$case === 'weighted_clusters' && weighted!.value.clusters.map(({ name, weight }) => [name, weight]), [[`outbound|80|v1|${HOST}`, 3], [`outbound|80||${HOST}`, 1]]);
});

test('RDS: timeouts and retries, with the defaults of Istio', () => {
  const [host] = virtualHosts(
    testMesh(WEB + routes('{hosts: [web], http: [{match: [{uri: {prefix: /a}}], timeout: 1.5s, retries: {attempts: 3, perTryTimeout: 2s, retryOn: "5xx,503"}, route: [{destination: {host: web}}]}, {match: [{uri: {prefix: /b}}], retries: {attempts: 0}, route: [{destination: {host: web}}]}, {route: [{destination: {host: web}}]}]}')),
    '80',
  );
  const [first, second, third] = [0, 1, 2].map((index) => actionOf(host!, index));
  const ms = (duration: { seconds: bigint; nanos: number } | undefined): number => Number(duration!.seconds) * 1_000 + duration!.nanos / 1e6;
  assert.deepEqual([ms(first!.timeout), first!.retry_policy!.num_retries, ms(first!.retry_policy!.per_try_timeout)], [1_500, 3, 2_000]);
  assert.deepEqual([first!.retry_policy!.retry_on, first!.retry_policy!.retriable_status_codes], ['5xx,retriable-status-codes', [503]]);
  assert.equal(second!.retry_policy, undefined);
  assert.deepEqual([ms(third!.timeout), third!.retry_policy!.num_retries], [0, 2]);
});

test('RDS: source labels, source namespace and port are decided for the client', () => {
  const mesh = testMesh(
    WEB +
      routes('{hosts: [web], http: [{match: [{sourceLabels: {app: client}}], name: mine, route: [{destination: {host: web}}]}, {match: [{sourceNamespace: elsewhere}], name: theirs, route: [{destination: {host: web}}]}, {match: [{port: 81}], name: port, route: [{destination: {host: web}}]}, {match: [{gateways: [some/gateway]}], name: gateway, route: [{destination: {host: web}}]}]}'),
  );
  const names = (proxy: Proxy): string[] => virtualHosts(mesh, '80', proxy)[0]!.routes.map(({ name }) => name);
  // For a client that none of its routes is for the VirtualService is not there at all.
  assert.deepEqual([names(client), names(testProxy('10.0.0.8', 'b.shop')), names(testProxy('10.0.0.7', 'c.elsewhere', { app: 'client' }))], [['mine'], ['default'], ['mine']]);
  assert.deepEqual(names(testProxy('10.0.0.6', 'd.elsewhere')), ['theirs']);
});

test('RDS: of two VirtualServices for a host the oldest counts, one for gateways never does', () => {
  const both = ['b', 'a'].map((name) => routes(`{hosts: [web], http: [{name: ${name}, route: [{destination: {host: web}}]}]}`, name)).join('');
  assert.deepEqual(virtualHosts(testMesh(WEB + both), '80')[0]!.routes.map(({ name }) => name), ['a']);
  assert.deepEqual(virtualHosts(testMesh(WEB + routes('{hosts: [web], gateways: [g], http: [{name: g, route: [{destination: {host: web}}]}]}')), '80')[0]!.routes.map(({ name }) => name), ['default']);
});

test('RDS: a host that is no service is served on port 80, and a domain is never there twice', () => {
  const mesh = testMesh(WEB + routes('{hosts: [api.example.com, WEB.shop.svc.cluster.local], http: [{route: [{destination: {host: web}}]}]}') + routes('{hosts: ["*.example.com"], http: [{route: [{destination: {host: web}}]}]}', 'wild'));
  const domains = virtualHosts(mesh, '80').flatMap((host) => host.domains.map((domain) => domain.toLowerCase()));
  assert.ok(domains.includes('api.example.com') && domains.includes('*.example.com'));
  assert.equal(new Set(domains).size, domains.length);
});

test('LDS: TCP by address, sniffed by address with its own routes, HTTP by port', () => {
  const mesh = testMesh(
    WEB +
      serviceYaml('shop', 'db', '10.96.0.2', [], 'name: tcp, port: 5432') +
      serviceYaml('shop', 'mystery', '10.96.0.3', [], 'name: foo, port: 7000') +
      routes('{hosts: [db], tcp: [{match: [{port: 5432}], route: [{destination: {host: db}, weight: 9}, {destination: {host: web, port: {number: 80}}, weight: 1}]}]}', 'db'),
  );
  const made = listeners(mesh);
  assert.deepEqual([...made.keys()], ['10.96.0.2_5432', '10.96.0.3_7000', '0.0.0.0_80', 'virtualOutbound', 'virtualInbound']);
  const config = made.get('10.96.0.2_5432')!.filter_chains[0]!.filters[0]!.config_type;
  const proxy = config?.$case === 'typed_config' ? unpack(TcpProxy, config.value) : undefined;
  assert.deepEqual(proxy?.cluster_specifier?.$case === 'weighted_clusters' && proxy.cluster_specifier.value.clusters.map(({ name, weight }) => [name, weight]), [
    ['outbound|5432||db.shop.svc.cluster.local', 9],
    [`outbound|80||${HOST}`, 1],
  ]);
  assert.deepEqual(virtualHosts(mesh, 'mystery.shop.svc.cluster.local:7000')[0]!.domains, ['*']);
});

test('LDS: a dual-stack proxy listens on both, an IPv6 one on its own', () => {
  const addresses = (proxy: Proxy, name: string): unknown[] => {
    const listener = listeners(testMesh(WEB), proxy).get(name)!;
    return [listener.address, ...listener.additional_addresses.map(({ address }) => address)].map((address) => address?.address?.$case === 'socket_address' && address.address.value.address);
  };
  assert.deepEqual(addresses(testProxy('10.0.0.9', 'client.shop', {}, { INSTANCE_IPS: '10.0.0.9,fd00::9' }), 'virtualOutbound'), ['0.0.0.0', '::']);
  assert.deepEqual(addresses(testProxy('fd00::9', 'client.shop'), '::_80'), ['::']);
});

test('LDS: inbound chains for each target port, five where the protocol is sniffed', () => {
  const ports = 'ports: [{name: http, port: 80, targetPort: http}, {name: raw, port: 9000}, {name: tcp, port: 9001}]';
  const mesh = testMesh(podYaml('shop', { ...v1, port: 8080 }) + serviceYaml('shop', 'web', '10.96.0.1', [v1]).replace(/ports: \[\{name: http, port: 80, targetPort: 80\}\]/, ports));
  const inbound = listeners(mesh, testProxy('10.0.0.1', 'web-v1.shop')).get('virtualInbound')!;
  const counts = new Map<number, number>();
  for (const { filter_chain_match: match } of inbound.filter_chains) counts.set(match?.destination_port ?? 0, (counts.get(match?.destination_port ?? 0) ?? 0) + 1);
  assert.deepEqual([...counts], [[15_006, 1], [0, 5], [8080, 2], [9000, 5], [9001, 3]]);
  assert.deepEqual([...clusters(mesh, testProxy('10.0.0.1', 'web-v1.shop')).keys()].filter((name) => name.startsWith('inbound')), ['inbound|8080||', 'inbound|9000||', 'inbound|9001||']);
});

test('LDS and CDS: nothing that stock Envoy does not have', () => {
  const mesh = testMesh(WEB + SUBSETS);
  const text = JSON.stringify([...listeners(mesh).values(), ...clusters(mesh).values()], (_key, value: unknown) => {
    const any = value as { type_url?: unknown; value?: unknown } | null;
    if (typeof any?.type_url === 'string' && Buffer.isBuffer(any.value)) return [any.type_url, messageTypeOf(any as never)?.decode(any.value)];
    return typeof value === 'bigint' ? String(value) : value;
  });
  assert.ok(text.includes('HttpConnectionManager'));
  assert.doesNotMatch(text, /istio\.(stats|alpn|metadata_exchange)|TypedStruct|stats\.PluginConfig/);
});

test('equal content has an equal version, other content another', () => {
  const version = (yaml: string): string => testMesh(yaml).generators.get(TYPE.endpoint)!.one(client, `outbound|80||${HOST}`)!.version;
  assert.equal(version(WEB), version(WEB));
  assert.notEqual(version(WEB), version(WEB.replaceAll('10.0.0.1', '10.0.0.3')));
});

test('a change regenerates what it touches and keeps the rest', () => {
  const mesh = testMesh(WEB + serviceYaml('shop', 'other', '10.96.0.2', [v1]));
  const eds = mesh.generators.get(TYPE.endpoint)!;
  const [webName, otherName] = [`outbound|80||${HOST}`, 'outbound|80||other.shop.svc.cluster.local'];
  const [webBefore, otherBefore] = [eds.one(client, webName), eds.one(client, otherName)];
  const change = mesh.apply(sliceYaml('shop', 'web', [v2]));
  assert.deepEqual([...eds.affected(client, change, new Set([webName, otherName]))], [webName]);
  assert.notEqual(eds.one(client, webName), webBefore);
  assert.equal(eds.one(client, otherName), otherBefore);
  for (const type of [TYPE.cluster, TYPE.listener, TYPE.route]) assert.deepEqual([...mesh.generators.get(type)!.affected(client, change, new Set(['80']))], [], type);
});

test('a pod that changes reaches its own inbound side and nobody else\'s', () => {
  const mesh = testMesh(WEB);
  const change = mesh.apply(podYaml('shop', { ...v1, labels: { ...v1.labels, 'security.istio.io/tlsMode': 'istio' } }));
  assert.equal(mesh.generators.get(TYPE.listener)!.affected(testProxy('10.0.0.1', 'web-v1.shop'), change, new Set()), 'all');
  const own = mesh.apply(podYaml('shop', { ...v2, ready: false }));
  assert.deepEqual([...mesh.generators.get(TYPE.listener)!.affected(client, own, new Set())], []);
});

test('WDS: workloads and services, HBONE for redirected pods, addresses by name and by address', () => {
  const mesh = testMesh(WEB);
  mesh.apply(podYaml('shop', v1).replace('labels:', 'annotations: {ambient.istio.io/redirection: enabled}, labels:'));
  const generator = mesh.generators.get(TYPE.address)!;
  const address = (name: string): Address | undefined => {
    const made = generator.one(client, name);
    return made && unpack(Address, made.body);
  };
  assert.deepEqual(generator.all(client).map(({ name }) => name), ['Kubernetes//Pod/shop/web-v1', 'Kubernetes//Pod/shop/web-v2', `shop/${HOST}`]);
  const workload = address('Kubernetes//Pod/shop/web-v1')!.type!;
  assert.ok(workload.$case === 'workload');
  assert.deepEqual([workload.value.tunnel_protocol, [...workload.value.addresses[0]!], workload.value.services[`shop/${HOST}`]!.ports.map(({ service_port, target_port }) => [service_port, target_port])], [1, [10, 0, 0, 1], [[80, 80]]]);
  assert.deepEqual([address('/10.0.0.2')?.type?.$case, address('/10.96.0.1')?.type?.$case, address('/10.9.9.9'), address('nonsense')], ['workload', 'service', undefined, undefined]);
  assert.deepEqual(mesh.generators.get(TYPE.authorization)!.all(client), []);
});

test('addressBytes: both families, mapped and shortened', () => {
  assert.deepEqual([...addressBytes('10.0.0.1')], [10, 0, 0, 1]);
  assert.equal(addressBytes('fd00::1:2').toString('hex'), 'fd000000000000000000000000010002');
  assert.equal(addressBytes('::').toString('hex'), '0'.repeat(32));
  assert.equal(addressBytes('::ffff:10.0.0.1').toString('hex'), '00000000000000000000ffff0a000001');
});
