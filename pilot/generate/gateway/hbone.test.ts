// What an east-west gateway of class istio-east-west gets, and where else HBONE ends.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../../common/xds/any.js';
import { Listener } from '../../../proto/generated/envoy/config/listener/v3/listener.js';
import { ClusterLoadAssignment } from '../../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { RouteConfiguration } from '../../../proto/generated/envoy/config/route/v3/route.js';
import { HttpConnectionManager } from '../../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import type { Proxy } from '../../model/proxy.js';
import { podYaml, serviceYaml, type PodSpec } from '../../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../../testing/model.js';
import { TYPE } from '../resource.js';

const HOST = 'web.shop.svc.cluster.local';
const CLUSTER = `inbound-vip|80|tcp|${HOST}`;
const tunnel = { app: 'web', 'networking.istio.io/tunnel': 'http' };
const pods: PodSpec[] = [
  { name: 'one', ip: '10.0.0.1', labels: { ...tunnel, 'topology.istio.io/network': 'one' } },
  { name: 'two', ip: '10.0.0.2', labels: { ...tunnel, 'topology.istio.io/network': 'two' } },
  // Takes mutual TLS, and no HBONE.
  { name: 'mutual', ip: '10.0.0.3', labels: { app: 'web', 'security.istio.io/tlsMode': 'istio', 'topology.istio.io/network': 'one' } },
];
const global = (yaml: string): string => yaml.replace('namespace: shop}', 'namespace: shop, labels: {istio.io/global: "true"}}');
const listener = (spec: string, className = 'istio-east-west'): string => `\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: eastwest, namespace: istio-system}\nspec: {gatewayClassName: ${className}, listeners: [{name: mesh, ${spec}}]}\n---`;
const HBONE = 'port: 15008, protocol: HBONE, tls: {mode: Terminate, options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}}';
const WORLD = pods.map((pod) => podYaml('shop', pod)).join('') + global(serviceYaml('shop', 'web', '10.96.0.1', pods)) + serviceYaml('shop', 'hidden', '10.96.0.2', []);
const gateway = (network = 'one'): Proxy => ({ ...testProxy('10.0.0.9', 'eastwest.istio-system', { 'gateway.networking.k8s.io/gateway-name': 'eastwest' }, { NETWORK: network }), type: 'router' });

const manager = (mesh: TestMesh, proxy: Proxy, name: string): HttpConnectionManager => {
  const [filter] = Listener.decode(mesh.generators.get(TYPE.listener)!.one(proxy, name)!.body.value).filter_chains[0]!.filters;
  return unpack(HttpConnectionManager, filter!.config_type!.value as never)!;
};
const domains = ({ virtual_hosts }: RouteConfiguration): string[] => virtual_hosts.flatMap((host) => (host.routes.length > 0 ? host.domains : []));
function endpoints({ generators }: TestMesh, proxy: Proxy): unknown[] {
  return ClusterLoadAssignment.decode(generators.get(TYPE.endpoint)!.one(proxy, CLUSTER)!.body.value).endpoints.flatMap(({ lb_endpoints }) => lb_endpoints).map(({ host_identifier }) => {
    const address = host_identifier?.$case === 'endpoint' ? host_identifier.value.address?.address : undefined;
    return address?.$case === 'socket_address' ? [address.value.address, (address.value.port_specifier as { value: number }).value] : undefined;
  });
}

test('an east-west gateway has routes for the ports of global services alone, and for each a cluster', () => {
  const mesh = testMesh(WORLD + listener(HBONE));
  assert.equal((manager(mesh, gateway(), '0.0.0.0_15008').route_specifier as { value: { route_config_name: string } }).value.route_config_name, 'hbone.15008');
  const routes = (): string[] => domains(RouteConfiguration.decode(mesh.generators.get(TYPE.route)!.one(gateway(), 'hbone.15008')!.body.value));
  assert.deepEqual(routes(), [`${HOST}:80`]);
  const clusters = (): string[] => mesh.generators.get(TYPE.cluster)!.all(gateway()).map(({ name }) => name).filter((name) => name.startsWith('inbound-vip'));
  assert.deepEqual(clusters(), [CLUSTER]);
  mesh.apply(global(serviceYaml('shop', 'hidden', '10.96.0.2', [])));
  assert.deepEqual(clusters(), ['inbound-vip|80|tcp|hidden.shop.svc.cluster.local', CLUSTER]);
  assert.equal(routes().length, 2);
});

test('serviceScopeConfigs choose global services by their own and their namespace\'s labels', () => {
  const scoped = (namespaces: Record<string, string>): number => {
    const mesh = testMesh(`${WORLD}\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a}}\n---${listener(HBONE)}`, { serviceScopes: [{ namespaceSelector: { matchLabels: namespaces }, scope: 'GLOBAL' }, { scope: 'LOCAL' }] });
    return domains(RouteConfiguration.decode(mesh.generators.get(TYPE.route)!.one(gateway(), 'hbone.15008')!.body.value)).length;
  };
  assert.deepEqual([scoped({ team: 'a' }), scoped({ team: 'b' })], [2, 0]);
});

test('endpoints are those of the gateway\'s own network that take HBONE, at their port 15008, with no gateway known to clients', () => {
  const mesh = testMesh(WORLD + listener(HBONE));
  assert.deepEqual(endpoints(mesh, gateway('one')), [['10.0.0.1', 15_008]]);
  assert.deepEqual(endpoints(mesh, gateway('two')), [['10.0.0.2', 15_008]]);
});

test('HBONE is for gateways of class istio-east-west, on port 15008, with TLS that ends there', () => {
  const problem = (text: string): unknown => testMesh(WORLD + text).model.gatewayApi.status.gateways[0]!.status.listeners![0]!.conditions.find(({ type }) => type === 'Accepted')!.reason;
  assert.deepEqual([listener(HBONE), listener('port: 6443, protocol: TLS, tls: {mode: Passthrough}')].map(problem), ['Accepted', 'Accepted']);
  for (const wrong of [listener(HBONE, 'istio'), listener(HBONE.replace('15008', '15009')), listener('port: 15008, protocol: HBONE'), listener('port: 80, protocol: HTTP'), listener('port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: x}]}')])
    assert.equal(problem(wrong), 'UnsupportedProtocol', wrong);
});

test('a sidecar ends tunnels if it says so, to its own addresses and services by their target ports', () => {
  const mesh = testMesh(WORLD + global(serviceYaml('shop', 'api', '10.96.0.3', [], 'name: http, port: 8000, targetPort: 80').replace('app: api', 'app: web')));
  const sidecar = (enabled: boolean): Proxy => testProxy('10.0.0.1', 'one.shop', tunnel, { INSTANCE_IPS: '10.0.0.1,fd00::1', ...(enabled ? { ENABLE_HBONE: 'true' } : {}) });
  const names = (proxy: Proxy): string[] => mesh.generators.get(TYPE.listener)!.all(proxy).map(({ name }) => name).filter((name) => ['connect_terminate', 'main_internal'].includes(name));
  assert.deepEqual([names(sidecar(false)), names(sidecar(true))], [[], ['connect_terminate', 'main_internal']]);
  const { route_specifier } = manager(mesh, sidecar(true), 'connect_terminate');
  const table = route_specifier?.$case === 'route_config' ? route_specifier.value : assert.fail();
  assert.deepEqual(domains(table), ['10.0.0.1:*', '[fd00::1]:*', 'api.shop.svc.cluster.local:8000', `${HOST}:80`]);
  assert.deepEqual(table.virtual_hosts.map(({ routes }) => routes[0]?.metadata?.filter_metadata['istio']).filter(Boolean), [{ hbone_destination: '10.0.0.1:80' }, { hbone_destination: '10.0.0.1:80' }]);
});
