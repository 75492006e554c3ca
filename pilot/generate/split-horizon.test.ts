// WDS as clients of one network see another behind a gateway for HBONE.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Address, type GatewayAddress, type Service, type Workload } from '../../proto/generated/istio/workload/workload.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import type { ChangeSet } from '../model/changes.js';
import { parseProxy, type Proxy } from '../model/proxy.js';
import { podYaml, serviceYaml, sliceYaml, type PodSpec } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';
import { TYPE } from './resource.js';

const HOST = 'web.shop.svc.cluster.local';
const SERVICE = `shop/${HOST}`;
const SPLIT = `two/SplitHorizonWorkload/istio-system/eastwest/172.18.0.9/${SERVICE}`;
const GATEWAY = 'NetworkGateway/two/172.18.0.9/15008';
const in_ = (network: string, name: string, ip: string, more: Partial<PodSpec> = {}, tunnel = 'http'): PodSpec => ({ name, ip, labels: { app: 'web', 'topology.istio.io/network': network, 'networking.istio.io/tunnel': tunnel }, ...more });
const near = in_('one', 'near', '10.0.0.1');
const far = [in_('two', 'far-1', '10.0.0.2'), in_('two', 'far-2', '10.0.0.3')];
const global = (yaml: string): string => yaml.replace('namespace: shop}', 'namespace: shop, labels: {istio.io/global: "true"}}');
const gateway = (ports: string, labels = ''): string => `
apiVersion: v1
kind: Service
metadata: {name: eastwest, namespace: istio-system, labels: {topology.istio.io/network: two${labels}}}
spec: {clusterIP: 10.97.0.99, selector: {app: eastwest}, ports: [${ports}]}
status: {loadBalancer: {ingress: [{ip: 172.18.0.9}]}}
---`;
const HBONE = '{name: mesh, port: 15008}';
const eastwest: PodSpec = { name: 'eastwest-1', ip: '10.0.0.9', labels: { app: 'eastwest', 'topology.istio.io/network': 'two' } };
const pods = [near, ...far];
const WORLD = pods.map((pod) => podYaml('shop', pod).replace('spec: {', 'spec: {serviceAccountName: server, ')).join('') + global(serviceYaml('shop', 'web', '10.96.0.1', pods));
const PROXY = podYaml('istio-system', eastwest).replace('spec: {', 'spec: {serviceAccountName: eastwest, ') + sliceYaml('istio-system', 'eastwest', [eastwest], 'name: mesh, port: 15008');

const ztunnel = (network: string): Proxy => parseProxy('ztunnel~192.168.0.1~node-1.istio-system~istio-system.svc.cluster.local', network ? { NETWORK: network } : {});
const names = ({ generators }: TestMesh, network: string): string[] => generators.get(TYPE.address)!.all(ztunnel(network)).map(({ name }) => name).sort();
function address({ generators }: TestMesh, network: string, name: string): { workload?: Workload; service?: Service } {
  const made = generators.get(TYPE.address)!.one(ztunnel(network), name);
  const type = made && Address.decode(made.body.value).type;
  return type ? { [type.$case]: type.value } : {};
}
const entrance = (gateway: GatewayAddress | undefined): unknown => {
  const { destination, hbone_mtls_port } = gateway!;
  return [destination?.$case === 'address' ? `${destination.value.network}/${[...destination.value.address].join('.')}` : `${destination?.value.namespace}/${destination?.value.hostname}`, hbone_mtls_port];
};
function affected({ generators }: TestMesh, network: string, change: ChangeSet): 'all' | string[] {
  const found = generators.get(TYPE.address)!.affected(ztunnel(network), change, new Set());
  return found === 'all' ? 'all' : [...found];
}
const POD = (name: string): string => `Kubernetes//Pod/shop/${name}`;

test('the workloads of a network with a gateway are one for each global service, behind that gateway', () => {
  const mesh = testMesh(WORLD + gateway(HBONE) + PROXY);
  assert.deepEqual(names(mesh, 'one'), [POD('near'), GATEWAY, 'istio-system/eastwest.istio-system.svc.cluster.local', SERVICE, SPLIT].sort());
  const { uid, network, capacity, network_gateway, services, addresses, tunnel_protocol, trust_domain, cluster_id } = address(mesh, 'one', SPLIT).workload!;
  assert.deepEqual([uid, network, capacity, addresses, tunnel_protocol, trust_domain, cluster_id], [SPLIT, 'two', 2, [], 1, '', 'Kubernetes']);
  assert.deepEqual(entrance(network_gateway), ['two/172.18.0.9', 15_008]);
  assert.deepEqual(services[SERVICE]!.ports.map(({ service_port, target_port }) => [service_port, target_port]), [[80, 80]]);
  // The outer tunnel's end is known by the gateway's account, the inner one's by those of who stands behind.
  const proxy = address(mesh, 'one', GATEWAY).workload!;
  assert.deepEqual([proxy.namespace, proxy.service_account, proxy.network, [...proxy.addresses[0]!]], ['istio-system', 'eastwest', 'two', [172, 18, 0, 9]]);
  assert.deepEqual(address(mesh, 'one', SERVICE).service!.subject_alt_names, ['spiffe://cluster.local/ns/shop/sa/server']);
  assert.deepEqual(address(mesh, 'one', 'two/172.18.0.9').workload!.uid, GATEWAY);
});

test('its own clients, and clients of no network, see each workload; so do others where no gateway takes HBONE', () => {
  const mesh = testMesh(WORLD + gateway(HBONE) + PROXY);
  for (const network of ['two', '']) {
    assert.deepEqual(names(mesh, network).filter((name) => name.includes('//Pod/shop')), [POD('far-1'), POD('far-2'), POD('near')]);
    assert.deepEqual(address(mesh, network, SPLIT), {});
    assert.deepEqual(address(mesh, network, SERVICE).service!.subject_alt_names, []);
  }
  mesh.apply(gateway('{name: tls, port: 15443}'));
  assert.deepEqual(names(mesh, 'one').filter((name) => name.includes('//Pod/shop')), [POD('far-1'), POD('far-2'), POD('near')]);
});

test('a service that is not global has nothing in another network, and neither has one whose workloads take no HBONE or are not ready', () => {
  const behind = (yaml: string): boolean => names(testMesh(yaml + gateway(HBONE)), 'one').includes(SPLIT);
  assert.ok(behind(WORLD));
  assert.ok(!behind(WORLD.replace('istio.io/global', 'x')));
  const without = (changed: PodSpec[]): string => [near, ...changed].map((pod) => podYaml('shop', pod)).join('') + global(serviceYaml('shop', 'web', '10.96.0.1', [near, ...changed]));
  assert.ok(!behind(without([in_('two', 'far-1', '10.0.0.2', {}, 'none')])));
  assert.ok(!behind(without([in_('two', 'far-1', '10.0.0.2', { ready: false })])));
});

test('what changes behind the gateway is told by name, a change of gateways by all', () => {
  const mesh = testMesh(WORLD + gateway(HBONE) + PROXY);
  const capacity = (): number | undefined => address(mesh, 'one', SPLIT).workload?.capacity;
  const scaled = mesh.apply(sliceYaml('shop', 'web', [near, far[0]!]));
  assert.ok(affected(mesh, 'one', scaled).includes(SPLIT) && affected(mesh, 'one', scaled).includes(SERVICE));
  assert.ok(!affected(mesh, 'two', scaled).includes(SPLIT));
  assert.equal(capacity(), 1);
  mesh.apply(sliceYaml('shop', 'web', [near]));
  assert.deepEqual([capacity(), address(mesh, 'one', SERVICE).service!.subject_alt_names], [undefined, []]);
  mesh.apply(sliceYaml('shop', 'web', pods));
  assert.equal(capacity(), 2);
  const gone = mesh.remove('/Service/shop/web');
  assert.ok(affected(mesh, 'one', gone).includes(SPLIT));
  assert.equal(capacity(), undefined);
  const closed = mesh.remove('/Service/istio-system/eastwest');
  assert.equal(affected(mesh, 'one', closed), 'all');
  assert.ok(names(mesh, 'one').includes(POD('far-1')));
});

test('a network is entered by a Gateway of class istio-remote at its addresses, names too, or by meshNetworks at port 15008', () => {
  const remote = (spec: string): string => `apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: away, namespace: istio-system, labels: {topology.istio.io/network: two}}\nspec: {gatewayClassName: istio-remote, addresses: [${spec}], listeners: [{name: mesh, port: 15009, protocol: HBONE, tls: {mode: Terminate, options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}}}]}\n---`;
  const split = (mesh: TestMesh): unknown => {
    const found = names(mesh, 'one').find((name) => name.includes('SplitHorizonWorkload'));
    return found && entrance(address(mesh, 'one', found).workload!.network_gateway);
  };
  const mesh = testMesh(WORLD);
  assert.equal(split(mesh), undefined);
  assert.equal(affected(mesh, 'one', mesh.apply(remote('{type: Hostname, value: east.example.com}'))), 'all');
  assert.deepEqual(split(mesh), ['istio-system/east.example.com', 15_009]);
  assert.equal(address(mesh, 'one', 'NetworkGateway/two/east.example.com/15009').workload!.service_account, 'away-istio-remote');
  mesh.apply(remote('{type: IPAddress, value: 1.1.1.1}'));
  assert.deepEqual(split(mesh), ['two/1.1.1.1', 15_009]);
  assert.deepEqual(split(testMesh(WORLD, { networks: { two: { gateways: [{ address: '2.2.2.2', port: 15_008 }] } } })), ['two/2.2.2.2', 15_008]);
});

test('sidecars, whose mutual TLS is told by its SNI, use only gateways that have a port for that', () => {
  const sidecar = testProxy('10.0.9.9', 'client.shop', {}, { NETWORK: 'one' });
  const addresses = (ports: string, labels = ''): string[] => {
    const { generators } = testMesh(WORLD.replaceAll('"networking.istio.io/tunnel":"http"', '"security.istio.io/tlsMode":"istio"') + gateway(ports, labels));
    return ClusterLoadAssignment.decode(generators.get(TYPE.endpoint)!.one(sidecar, `outbound|80||${HOST}`)!.body.value).endpoints.flatMap(({ lb_endpoints }) => lb_endpoints).map(({ host_identifier }) => {
      const place = host_identifier?.$case === 'endpoint' ? host_identifier.value.address?.address : undefined;
      return place?.$case === 'socket_address' ? `${place.value.address}:${(place.value.port_specifier as { value: number }).value}` : '';
    });
  };
  assert.deepEqual(addresses(HBONE), ['10.0.0.1:80', '10.0.0.2:80', '10.0.0.3:80']);
  assert.deepEqual(addresses(`${HBONE}, {name: tls, port: 15443}`), ['10.0.0.1:80', '172.18.0.9:15443']);
  assert.deepEqual(addresses('{name: tls, port: 443}', ', networking.istio.io/gatewayPort: "443"'), ['10.0.0.1:80', '172.18.0.9:443']);
});
