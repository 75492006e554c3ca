/** Where Istio's own code decides what its documentation leaves open: order of patches, matches that name nothing, matches of the inbound side. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseYaml } from '../../common/kube/yaml.js';
import { unpack } from '../../common/xds/any.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { UpstreamTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import { TYPE } from '../generate/resource.js';
import type { Proxy } from '../model/proxy.js';
import { parseProxy } from '../model/proxy.js';
import { podYaml, serviceYaml } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';
import { References } from '../validation/references.js';
import { client, filter, filterNames, find, server, web, WORLD } from './testing.js';

const MANAGER = 'envoy.filters.network.http_connection_manager';
const BASE = 'envoy.filters.http.grpc_stats envoy.filters.http.fault envoy.filters.http.cors envoy.filters.http.router';
const BEFORE_ROUTER = BASE.replace('envoy.filters.http.router', 'a envoy.filters.http.router');
const lua = (name: string): string => `{name: ${name}, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}}`;

const httpFilter = (operation: string, value = '', sub = '', more = ''): string => `
- applyTo: HTTP_FILTER
  match: {context: SIDECAR_OUTBOUND, listener: {portNumber: 80, filterChain: {filter: {name: ${MANAGER}${sub ? `, subFilter: {name: ${sub}}` : ''}}}}}
  patch: {operation: ${operation}${more}${value ? `, value: ${value}` : ''}}
`;
const outboundFilters = (...patches: string[]): string[] => filterNames(testMesh(WORLD + filter(patches.join(''))), client, '0.0.0.0_80');
const listenerOf = (mesh: TestMesh, proxy: Proxy, name: string): Listener => Listener.decode(find(mesh, TYPE.listener, proxy, name).body.value);
const clusterOf = (mesh: TestMesh, proxy: Proxy, name: string): Cluster => Cluster.decode(find(mesh, TYPE.cluster, proxy, name).body.value);
const seconds = (cluster: Cluster): number => Number(cluster.connect_timeout?.seconds);

const route = (operation: string, match: string, value = ''): string => `
- applyTo: HTTP_ROUTE
  match: {context: SIDECAR_OUTBOUND, routeConfiguration: {name: "80", vhost: {name: "web.shop.svc.cluster.local:80"${match}}}}
  patch: {operation: ${operation}${value ? `, value: ${value}` : ''}}
`;
const answer = (name: string): string => `{name: ${name}, match: {path: /${name}}, direct_response: {status: 200}}`;
function webRoutes(...patches: string[]): RouteConfiguration['virtual_hosts'][number]['routes'] {
  const configuration = RouteConfiguration.decode(find(testMesh(WORLD + filter(patches.join(''))), TYPE.route, client, '80').body.value);
  return configuration.virtual_hosts.find(({ name }) => name.startsWith('web.shop'))!.routes;
}

test('priority goes before the namespace, and of one priority the root namespace goes first', () => {
  const mesh = testMesh(
    WORLD + filter(httpFilter('INSERT_FIRST', lua('late')), 'priority: 10', 'shop', 'a') + filter(httpFilter('INSERT_FIRST', lua('early')), 'priority: -10', 'shop', 'b') +
      filter(httpFilter('INSERT_FIRST', lua('root')), '', 'istio-system', 'c') + filter(httpFilter('INSERT_FIRST', lua('own')), '', 'shop', 'd'),
  );
  assert.deepEqual(filterNames(mesh, client, '0.0.0.0_80'), [`late own root early ${BASE}`]);
});

test('a filter operation that names no filter: inserts go to the ends, REPLACE and REMOVE do nothing', () => {
  assert.deepEqual(outboundFilters(httpFilter('INSERT_BEFORE', lua('a'))), [`a ${BASE}`]);
  assert.deepEqual(outboundFilters(httpFilter('INSERT_AFTER', lua('a'))), [BEFORE_ROUTER]);
  assert.deepEqual(outboundFilters(httpFilter('REPLACE', lua('a'))), [BASE]);
  assert.deepEqual(outboundFilters(httpFilter('REMOVE')), [BASE]);
  const networkAndListener = `
- {applyTo: NETWORK_FILTER, match: {context: SIDECAR_OUTBOUND, listener: {name: 0.0.0.0_80}}, patch: {operation: REMOVE}}
- {applyTo: LISTENER_FILTER, match: {context: SIDECAR_OUTBOUND, listener: {name: 0.0.0.0_80}}, patch: {operation: REMOVE}}
- {applyTo: LISTENER_FILTER, match: {context: SIDECAR_OUTBOUND, listener: {name: 0.0.0.0_80}}, patch: {operation: MERGE, value: {name: renamed}}}
`;
  const before = listenerOf(testMesh(WORLD), client, '0.0.0.0_80');
  const after = listenerOf(testMesh(WORLD + filter(networkAndListener)), client, '0.0.0.0_80');
  assert.deepEqual(after, before);
});

test('a filter that is added comes before the one that ends the list: behind it Envoy would refuse it', () => {
  assert.deepEqual(outboundFilters(httpFilter('ADD', lua('a'))), [BEFORE_ROUTER]);
  assert.deepEqual(outboundFilters(httpFilter('REMOVE', '', 'envoy.filters.http.router'), httpFilter('ADD', lua('a'))), [BASE.replace('envoy.filters.http.router', 'a')]);
  const echo = '{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: x}}';
  const mesh = testMesh(WORLD + filter(`- {applyTo: NETWORK_FILTER, match: {context: SIDECAR_OUTBOUND, listener: {name: 0.0.0.0_80}}, patch: {operation: ADD, value: ${echo}}}`));
  const { filter_chains: chains, default_filter_chain: fallback } = listenerOf(mesh, client, '0.0.0.0_80');
  for (const { filters } of [...chains, fallback!]) assert.deepEqual(filters.map(({ name }) => name === 'rbac').slice(-2), [true, false]);
});

test('ADD under the name of what is there already changes nothing; once that is removed it takes its place', () => {
  const add = '- {applyTo: CLUSTER, patch: {operation: ADD, value: {name: PassthroughCluster, type: STATIC, connect_timeout: 77s}}}';
  const all = (patches: string): number[] => {
    const mesh = testMesh(WORLD + filter(patches));
    return mesh.generators.get(TYPE.cluster)!.all(client).flatMap(({ name, body }) => (name === 'PassthroughCluster' ? [seconds(Cluster.decode(body.value))] : []));
  };
  const [own] = all('- {applyTo: CLUSTER, match: {cluster: {name: none}}, patch: {operation: REMOVE}}');
  assert.notEqual(own, 77);
  assert.deepEqual(all(add), [own]);
  assert.deepEqual(all(`${add}\n- {applyTo: CLUSTER, match: {cluster: {name: PassthroughCluster}}, patch: {operation: REMOVE}}`), [77]);
});

test('a waypoint match goes with context WAYPOINT, whose patches work nowhere else', () => {
  const check = (match: string): string[] => {
    const { objects, errors } = parseYaml(filter(`- {applyTo: HTTP_FILTER, match: {${match}}, patch: {operation: ADD, value: ${lua('x')}}}`), 'x.yaml');
    return [...errors, ...objects.flatMap((loaded) => new References(objects, 'cluster.local').check(loaded))].map(({ message }) => message);
  };
  const waypoint = `waypoint: {portNumber: 80, filter: {name: ${MANAGER}}}`;
  assert.deepEqual(check(`context: WAYPOINT, ${waypoint}`), []);
  assert.match(check(waypoint).join(), /expected context WAYPOINT/);
  assert.deepEqual(outboundFilters(httpFilter('INSERT_FIRST', lua('a')).replace('SIDECAR_OUTBOUND', 'WAYPOINT')), [BASE]);
});

test('MERGE of filters comes after all other operations, and leaves filters of another type alone', () => {
  const merge = httpFilter('MERGE', '{typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua, stat_prefix: merged}}');
  assert.deepEqual(outboundFilters(merge, httpFilter('INSERT_FIRST', lua('a'))), [`a ${BASE}`]);
  const mesh = testMesh(WORLD + filter(merge + httpFilter('INSERT_FIRST', lua('a'))));
  const text = Buffer.from(find(mesh, TYPE.listener, client, '0.0.0.0_80').body.value).toString('latin1');
  assert.equal(text.match(/merged/g)?.length, text.match(/filters\.http\.lua\.v3\.Lua/g)?.length);
  assert.match(text, /filters\.http\.router\.v3\.Router/);
});

test('REMOVE then MERGE of a route: removed; a MERGE never meets an added route', () => {
  const named = ', route: {name: default}';
  assert.deepEqual(webRoutes(route('REMOVE', named), route('MERGE', named, '{route: {timeout: 3s}}')), []);
  const routes = webRoutes(route('ADD', '', answer('extra')), route('MERGE', '', '{response_headers_to_remove: [x]}'));
  assert.deepEqual(routes.map(({ name, response_headers_to_remove }) => [name, response_headers_to_remove]), [['default', ['x']], ['extra', []]]);
});

test('HTTP_ROUTE inserts: without a route named to the ends, INSERT_FIRST with one that is not there not at all', () => {
  const names = (...patches: string[]): string[] => webRoutes(...patches).map(({ name }) => name);
  assert.deepEqual(names(route('INSERT_BEFORE', '', answer('a')), route('INSERT_AFTER', '', answer('z'))), ['a', 'default', 'z']);
  assert.deepEqual(names(route('INSERT_FIRST', ', route: {name: none}', answer('a'))), ['default']);
  assert.deepEqual(names(route('INSERT_FIRST', ', route: {action: ROUTE}', answer('a')), route('INSERT_FIRST', ', route: {action: REDIRECT}', answer('b'))), ['a', 'default']);
});

test('VIRTUAL_HOST: REPLACE puts another in its place; one that was added is not patched', () => {
  const host = (operation: string, value: string, name = 'web.shop.svc.cluster.local:80'): string => `
- applyTo: VIRTUAL_HOST
  match: {context: SIDECAR_OUTBOUND, routeConfiguration: {name: "80"${name ? `, vhost: {name: "${name}"}` : ''}}}
  patch: {operation: ${operation}, value: ${value}}
`;
  const mesh = testMesh(WORLD + filter(host('REPLACE', '{name: other, domains: [web]}') + host('ADD', '{name: more, domains: [more.example]}', '') + host('MERGE', '{response_headers_to_remove: [x]}', '')));
  const hosts = RouteConfiguration.decode(find(mesh, TYPE.route, client, '80').body.value).virtual_hosts;
  assert.ok(!hosts.some(({ name }) => name.startsWith('web.shop')) && hosts.some(({ name }) => name === 'other'));
  assert.deepEqual(hosts.filter(({ response_headers_to_remove }) => response_headers_to_remove.length === 0).map(({ name }) => name), ['more']);
});

test('FILTER_CHAIN: REMOVE takes the default chain too; one that was added is not patched', () => {
  const before = listenerOf(testMesh(WORLD), client, '0.0.0.0_80');
  assert.ok(before.default_filter_chain, 'what this is about');
  const chain = (operation: string, value = '', more = ''): string => `
- applyTo: FILTER_CHAIN
  match: {context: SIDECAR_OUTBOUND, listener: {name: 0.0.0.0_80${more}}}
  patch: {operation: ${operation}${value ? `, value: ${value}` : ''}}
`;
  const removed = listenerOf(testMesh(WORLD + filter(chain('REMOVE', '', `, filterChain: {name: ${before.default_filter_chain.name}}`))), client, '0.0.0.0_80');
  assert.equal(removed.default_filter_chain, undefined);
  assert.equal(removed.filter_chains.length, before.filter_chains.length);
  const added = listenerOf(testMesh(WORLD + filter(chain('ADD', '{name: added}') + chain('MERGE', '{metadata: {filter_metadata: {x: {y: z}}}}'))), client, '0.0.0.0_80');
  assert.deepEqual(added.filter_chains.map(({ name, metadata }) => [name === 'added', metadata?.filter_metadata['x'] !== undefined]).at(-1), [true, false]);
  assert.ok(added.filter_chains.slice(0, -1).every(({ metadata }) => metadata?.filter_metadata['x'] !== undefined));
});

test('the inbound listener: a patch of itself goes by its own port, one of its chains by theirs', () => {
  const patch = (port: number): string => `- {applyTo: LISTENER, match: {context: SIDECAR_INBOUND, listener: {portNumber: ${port}}}, patch: {operation: MERGE, value: {stat_prefix: patched}}}`;
  const prefix = (port: number): string => listenerOf(testMesh(WORLD + filter(patch(port))), server, 'virtualInbound').stat_prefix;
  assert.deepEqual([prefix(8080), prefix(15006)], ['', 'patched']);
});

test('an inbound cluster is patched for a service of its own, and no longer once that does not select the workload', () => {
  const patch = (service: string, more = ''): string => `- {applyTo: CLUSTER, match: {context: SIDECAR_INBOUND, cluster: {service: ${service}${more}}}, patch: {operation: MERGE, value: {connect_timeout: 77s}}}`;
  const other = serviceYaml('shop', 'other', '10.96.0.2', [], 'name: http, port: 80, targetPort: 8080');
  const inbound = 'inbound|8080||';
  const timeout = (mesh: TestMesh): number => seconds(clusterOf(mesh, server, inbound));
  assert.equal(timeout(testMesh(WORLD + filter(patch('web.shop.svc.cluster.local')))), 77);
  assert.equal(timeout(testMesh(WORLD + filter(patch('web.shop.svc.cluster.local', ', portNumber: 80')))), timeout(testMesh(WORLD)), 'the port is the one that the workload listens on');
  const mesh = testMesh(WORLD + other + filter(patch('other.shop.svc.cluster.local')));
  assert.notEqual(timeout(mesh), 77, 'a service that is there, and is not this workload\'s');
  mesh.apply(other.replace('selector: {app: other}', 'selector: {app: web}'));
  assert.equal(timeout(mesh), 77, 'the second service of the port');
  mesh.apply(other);
  assert.notEqual(timeout(mesh), 77);
});

test('a transport socket is merged into the one of that name that the cluster chooses from', () => {
  const tls = '{name: envoy.transport_sockets.tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, max_session_keys: 7}}';
  const mesh = testMesh(WORLD + filter(`- {applyTo: CLUSTER, match: {cluster: {service: web.shop.svc.cluster.local}}, patch: {operation: MERGE, value: {connect_timeout: 77s, transport_socket: ${tls}}}}`));
  const cluster = clusterOf(mesh, client, 'outbound|80||web.shop.svc.cluster.local');
  assert.ok(cluster.transport_socket_matches.length > 0, 'what this is about');
  const sockets = cluster.transport_socket_matches.map(({ transport_socket }) => (transport_socket?.config_type?.$case === 'typed_config' ? unpack(UpstreamTlsContext, transport_socket.config_type.value) : undefined));
  assert.deepEqual(sockets.flatMap((context) => (context ? [[context.max_session_keys, context.sni !== '']] : [])), [[7, true]]);
  assert.equal(cluster.transport_socket, undefined);
  assert.equal(seconds(cluster), 77);
});

test('MERGE_AND_REPLACE_LIST: lists are replaced, all else is merged; filters have none', () => {
  const merge = (operation: string, names: string): string => `- {applyTo: VIRTUAL_HOST, match: {context: SIDECAR_OUTBOUND, routeConfiguration: {name: "80"}}, patch: {operation: ${operation}, value: {response_headers_to_remove: [${names}]}}}\n`;
  const headers = (...patches: string[]): string[] => RouteConfiguration.decode(find(testMesh(WORLD + filter(patches.join(''))), TYPE.route, client, '80').body.value).virtual_hosts[0]!.response_headers_to_remove;
  assert.deepEqual(headers(merge('MERGE', 'a'), merge('MERGE', 'b')), ['a', 'b']);
  assert.deepEqual(headers(merge('MERGE', 'a'), merge('MERGE_AND_REPLACE_LIST', 'b')), ['b']);
});

test('portNumber of a gateway\'s routes is the port of its server, wherever the Service leads', () => {
  const edge = { name: 'edge-1', ip: '10.0.0.7', labels: { app: 'edge' }, port: 8080 };
  const gateway = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {selector: {app: edge}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
---`;
  const patch = (port: number): string => filter(`- {applyTo: ROUTE_CONFIGURATION, match: {context: GATEWAY, routeConfiguration: {portNumber: ${port}}}, patch: {operation: MERGE, value: {response_headers_to_remove: [x]}}}`);
  const proxy = parseProxy('router~10.0.0.7~edge-1.shop~shop.svc.cluster.local', { LABELS: edge.labels });
  const removed = (port: number): number =>
    RouteConfiguration.decode(find(testMesh(WORLD + podYaml('shop', edge) + serviceYaml('shop', 'edge', '10.96.0.7', [edge], 'name: http, port: 80, targetPort: 8080') + gateway + patch(port)), TYPE.route, proxy, 'http.8080').body.value).response_headers_to_remove.length;
  assert.deepEqual([removed(80), removed(8080), removed(81)], [1, 0, 0]);
});

test('a gateway match says nothing of sidecars\' routes', () => {
  const mesh = testMesh(WORLD + filter('- {applyTo: ROUTE_CONFIGURATION, match: {routeConfiguration: {gateway: shop/edge}}, patch: {operation: MERGE, value: {response_headers_to_remove: [x]}}}'));
  assert.deepEqual(RouteConfiguration.decode(find(mesh, TYPE.route, client, '80').body.value).response_headers_to_remove, ['x']);
});

test('a proxy that says no version is none that a version pattern means', () => {
  const mesh = testMesh(WORLD + filter('- {applyTo: CLUSTER, match: {proxy: {proxyVersion: ".*"}}, patch: {operation: ADD, value: {name: extra, type: STATIC, connect_timeout: 1s}}}'));
  const has = (proxy: Proxy): boolean => mesh.generators.get(TYPE.cluster)!.all(proxy).some(({ name }) => name === 'extra');
  assert.deepEqual([has(client), has(testProxy('10.0.0.9', 'client.shop', { app: 'client' }))], [true, false]);
});

test('targetRefs reach the Gateway of their own namespace alone', () => {
  const labels = { 'gateway.networking.k8s.io/gateway-name': 'edge' };
  const targets = 'targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]';
  const add = '- {applyTo: CLUSTER, patch: {operation: ADD, value: {name: extra, type: STATIC, connect_timeout: 1s}}}';
  const has = (namespace: string): boolean => testMesh(WORLD + filter(add, targets, namespace)).generators.get(TYPE.cluster)!.all(testProxy('10.0.0.7', 'edge-1.shop', labels)).some(({ name }) => name === 'extra');
  assert.deepEqual([has('shop'), has('istio-system')], [true, false]);
});

test('INSERT_* where nothing has an order is ADD', () => {
  const mesh = testMesh(WORLD + filter('- {applyTo: CLUSTER, patch: {operation: INSERT_FIRST, value: {name: extra, type: STATIC, connect_timeout: 1s}}}'));
  assert.ok(mesh.generators.get(TYPE.cluster)!.all(client).some(({ name }) => name === 'extra'));
});

test('a set of filters is put together once for a proxy, until something that it depends on changes', () => {
  const mesh = testMesh(WORLD + filter('- {applyTo: CLUSTER, patch: {operation: ADD, value: {name: extra, type: STATIC, connect_timeout: 1s}}}'));
  let reads = 0;
  const inNamespace = mesh.model.configs.inNamespace.bind(mesh.model.configs);
  mesh.model.configs.inNamespace = (kind, namespace) => {
    if (kind === 'EnvoyFilter') reads++;
    return inNamespace(kind, namespace);
  };
  const clusters = mesh.generators.get(TYPE.cluster)!;
  clusters.all(client);
  const once = reads;
  for (const name of ['80', '81', '82']) mesh.generators.get(TYPE.route)!.one(client, name);
  clusters.all(client);
  assert.equal(reads, once);
  mesh.apply(filter('- {applyTo: CLUSTER, patch: {operation: ADD, value: {name: other, type: STATIC, connect_timeout: 1s}}}'));
  assert.ok(clusters.all(client).some(({ name }) => name === 'other'));
});

test('the inbound cluster of a workload without the service is not the one of a workload with it', () => {
  const twin = { ...web, name: 'twin-1', ip: '10.0.0.3', labels: { app: 'twin' } };
  const mesh = testMesh(
    WORLD + podYaml('shop', twin) + serviceYaml('shop', 'twin', '10.96.0.3', [twin], 'name: http, port: 80, targetPort: 8080') +
      filter('- {applyTo: CLUSTER, match: {context: SIDECAR_INBOUND, cluster: {service: web.shop.svc.cluster.local}}, patch: {operation: MERGE, value: {connect_timeout: 77s}}}'),
  );
  assert.equal(seconds(clusterOf(mesh, server, 'inbound|8080||')), 77);
  assert.notEqual(seconds(clusterOf(mesh, testProxy('10.0.0.3', 'twin-1.shop', twin.labels), 'inbound|8080||')), 77);
});
