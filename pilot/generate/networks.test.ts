// Several clusters in the model and in what clients get: one service, its own addresses, other networks through their gateways.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { parseYaml } from '../../common/kube/yaml.js';
import { placedIn } from '../model/clusters.js';
import { readMeshConfig, readMeshNetworks } from '../mesh-config/mesh-config.js';
import type { MeshConfig } from '../model/mesh.js';
import type { Proxy } from '../model/proxy.js';
import { nodeYaml, podYaml, serviceYaml } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';
import { TYPE } from './resource.js';

const HOST = 'web.shop.svc.cluster.local';
const EDS = `outbound|80||${HOST}`;
const SNI = `outbound_.80_._.${HOST}`;
const sidecar = { app: 'web', 'security.istio.io/tlsMode': 'istio' };
const web = (ip: string, vip: string, labels: Record<string, string> = sidecar, ready = true): string => {
  const pods = [{ name: 'web', ip, labels, ready }];
  return nodeYaml + podYaml('shop', pods[0]!) + serviceYaml('shop', 'web', vip, pods);
};
const gateway = (network: string, ip: string): string => `
apiVersion: v1
kind: Service
metadata: {name: eastwest, namespace: istio-system, labels: {topology.istio.io/network: ${network}}}
spec: {clusterIP: 10.97.0.99, selector: {istio: eastwestgateway}, ports: [{name: tls, port: 15443}]}
status: {loadBalancer: {ingress: [{ip: ${ip}}]}}
`;

function clusters(mesh: Partial<MeshConfig>, yaml: Record<string, string>): TestMesh & { applyIn(cluster: string, yaml: string): ReturnType<TestMesh['apply']> } {
  const made = testMesh(yaml[''] ?? '', { clusters: { west: { network: '' } }, ...mesh });
  const applyIn = (cluster: string, text: string): ReturnType<TestMesh['apply']> => {
    const { objects } = parseYaml(text, `${cluster}.yaml`);
    const change = made.model.apply(objects.map((loaded) => placedIn(cluster, loaded)).map((loaded) => ({ key: loaded.key, loaded })));
    made.generators.invalidate(change);
    return change;
  };
  for (const [cluster, text] of Object.entries(yaml)) if (cluster !== '') applyIn(cluster, text);
  return { ...made, applyIn };
}
const client = (cluster: string, ip = '10.0.9.9'): Proxy => testProxy(ip, 'client.shop', {}, { CLUSTER_ID: cluster });

function endpoints({ generators }: TestMesh, proxy: Proxy, name = EDS): string[] {
  const { endpoints: groups } = ClusterLoadAssignment.decode(generators.get(TYPE.endpoint)!.one(proxy, name)!.body.value!);
  return groups.flatMap(({ lb_endpoints }) => lb_endpoints).map(({ host_identifier, load_balancing_weight, metadata }) => {
    const address = host_identifier?.$case === 'endpoint' ? host_identifier.value.address?.address : undefined;
    if (address?.$case !== 'socket_address') return 'none';
    const port = address.value.port_specifier?.$case === 'port_value' ? address.value.port_specifier.value : 0;
    const mutual = metadata?.filter_metadata['envoy.transport_socket_match'] !== undefined;
    return `${address.value.address}:${port} x${load_balancing_weight}${mutual ? ' mutual' : ''}`;
  });
}

test('a service in several clusters is one: its endpoints are united, each with its cluster; pods of one name are two', () => {
  const mesh = clusters({}, { '': web('10.0.0.1', '10.96.0.1'), west: web('10.0.1.1', '10.97.0.1') });
  assert.deepEqual(endpoints(mesh, client('Kubernetes')), ['10.0.0.1:80 x1 mutual', '10.0.1.1:80 x1 mutual']);
  const service = mesh.model.services.get(HOST)!;
  assert.deepEqual(mesh.model.endpoints(service).map(({ cluster, pod }) => [cluster, pod?.metadata.name]), [['Kubernetes', 'web'], ['west', 'web']]);
  assert.deepEqual(mesh.model.podByIp('10.0.1.1')?.metadata.clusterName, 'west');
});

test('clients have the addresses of their own cluster, those of a cluster without the service the config cluster\'s', () => {
  const mesh = clusters({ clusters: { west: { network: '' }, far: { network: '' } } }, { '': web('10.0.0.1', '10.96.0.1'), west: web('10.0.1.1', '10.97.0.1') });
  const addresses = (cluster: string): readonly string[] => mesh.model.scopeOf(client(cluster)).service(HOST)!.addresses;
  assert.deepEqual([addresses('Kubernetes'), addresses('west'), addresses('far')], [['10.96.0.1'], ['10.97.0.1'], ['10.96.0.1']]);
});

test('a cluster whose Service goes takes its endpoints along and leaves the others', () => {
  const mesh = clusters({}, { '': web('10.0.0.1', '10.96.0.1'), west: web('10.0.1.1', '10.97.0.1') });
  const change = mesh.remove('/Service/shop/web', 'discovery.k8s.io/EndpointSlice/shop/web-1');
  assert.ok(change.endpoints.has(HOST));
  assert.deepEqual(endpoints(mesh, client('Kubernetes')), ['10.0.1.1:80 x1 mutual']);
  mesh.remove('@west//Service/shop/web');
  assert.equal(mesh.model.services.get(HOST), undefined);
});

test('endpoints of another network are reached through its gateway, as many times as there are; those without mutual TLS or not ready are not', () => {
  const two = web('10.0.1.1', '10.97.0.1') + podYaml('shop', { name: 'plain', ip: '10.0.1.2', labels: { app: 'web' } }) + podYaml('shop', { name: 'more', ip: '10.0.1.3', labels: sidecar }) + `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.0.1.2], targetRef: {kind: Pod, name: plain}}, {addresses: [10.0.1.3], nodeName: node-1, targetRef: {kind: Pod, name: more}}, {addresses: [10.0.1.4], conditions: {ready: false}}]
ports: [{name: http, port: 80}]
---`;
  const mesh = clusters({ network: 'one', clusters: { west: { network: 'two' } } }, { '': web('10.0.0.1', '10.96.0.1'), west: two });
  // With no gateway anywhere all are reached directly, as in Istio.
  assert.equal(endpoints(mesh, client('Kubernetes')).length, 5);
  const change = mesh.applyIn('west', gateway('two', '172.18.0.9'));
  assert.ok(change.endpoints.has(HOST));
  assert.deepEqual(endpoints(mesh, client('Kubernetes')), ['10.0.0.1:80 x1 mutual', '172.18.0.9:15443 x2 mutual']);
  assert.deepEqual(endpoints(mesh, client('west')).filter((one) => one.startsWith('10.0.1')).length, 4);
  mesh.apply('apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: all, namespace: shop}\nspec: {mtls: {mode: DISABLE}}\n');
  assert.deepEqual(endpoints(mesh, client('Kubernetes')), ['10.0.0.1:80 x1'], 'without mutual TLS there is no way to another network');
});

test('several gateways of a network share its weight in whole numbers, meshNetworks names networks and gateways', () => {
  const { settings } = readMeshNetworks('networks: {one: {endpoints: [{fromRegistry: Kubernetes}]}, two: {endpoints: [{fromRegistry: west}], gateways: [{address: 1.1.1.1, port: 15443}, {address: 2.2.2.2, port: 443}]}}');
  const mesh = clusters(settings!, { '': web('10.0.0.1', '10.96.0.1'), west: web('10.0.1.1', '10.97.0.1') });
  assert.deepEqual(endpoints(mesh, client('Kubernetes')), ['10.0.0.1:80 x2 mutual', '1.1.1.1:15443 x1 mutual', '2.2.2.2:443 x1 mutual']);
  assert.match(readMeshNetworks('networks: {two: {gateways: [{port: x}]}}').problems[0]!.message, /networks\.two\.gateways\[0\]\.port/);
});

test('the label of a cluster\'s root namespace names its network, a pod\'s own label goes before it', () => {
  const root = 'apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: NET}}\n---';
  const mesh = clusters({}, { '': root.replace('NET', 'one') + web('10.0.0.1', '10.96.0.1'), west: web('10.0.1.1', '10.97.0.1', { ...sidecar, 'topology.istio.io/network': 'three' }) + gateway('two', '172.18.0.9') });
  const networks = (): string[] => mesh.model.endpoints(mesh.model.services.get(HOST)!).map(({ network }) => network).sort();
  assert.deepEqual(networks(), ['one', 'three']);
  assert.equal(mesh.applyIn('west', root.replace('NET', 'two') + podYaml('shop', { name: 'web', ip: '10.0.1.1', labels: sidecar })).full, true);
  assert.deepEqual(networks(), ['one', 'two']);
  assert.deepEqual(endpoints(mesh, client('Kubernetes')), ['10.0.0.1:80 x1 mutual', '172.18.0.9:15443 x1 mutual']);
});

test('a gateway with an AUTO_PASSTHROUGH server has a cluster without TLS for each port by its SNI, with the endpoints of its own network', () => {
  const server = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: cross, namespace: istio-system}
spec: {selector: {istio: eastwestgateway}, servers: [{port: {number: 15443, name: tls, protocol: TLS}, tls: {mode: AUTO_PASSTHROUGH}, hosts: ["*.local"]}]}
`;
  const mesh = clusters({ network: 'one', clusters: { west: { network: 'two' } } }, { '': web('10.0.0.1', '10.96.0.1'), west: web('10.0.1.1', '10.97.0.1') + gateway('two', '172.18.0.9') });
  const router: Proxy = { ...testProxy('10.0.1.50', 'eastwest.istio-system', { istio: 'eastwestgateway' }, { CLUSTER_ID: 'west' }), type: 'router' };
  const names = (): string[] => mesh.generators.get(TYPE.cluster)!.all(router).map(({ name }) => name).filter((name) => name.startsWith('outbound_.'));
  assert.deepEqual(names(), []);
  mesh.apply(server);
  assert.deepEqual(names(), [`outbound_.15443_._.eastwest.istio-system.svc.cluster.local`, SNI]);
  const cluster = Cluster.decode(mesh.generators.get(TYPE.cluster)!.one(router, SNI)!.body.value!);
  assert.deepEqual([cluster.transport_socket, cluster.transport_socket_matches, cluster.eds_cluster_config?.service_name], [undefined, [], SNI]);
  assert.deepEqual(endpoints(mesh, router, SNI), ['10.0.1.1:80 x1 mutual']);
});

test('services that are kept to their cluster have its endpoints alone: Kubernetes\' own, and by serviceSettings', () => {
  const { settings } = readMeshConfig('serviceSettings: [{settings: {clusterLocal: true}, hosts: ["*.shop.svc.cluster.local"]}]');
  const mesh = clusters(settings!, { '': web('10.0.0.1', '10.96.0.1'), west: web('10.0.1.1', '10.97.0.1') });
  assert.deepEqual([endpoints(mesh, client('Kubernetes')), endpoints(mesh, client('west'))], [['10.0.0.1:80 x1 mutual'], ['10.0.1.1:80 x1 mutual']]);
  assert.ok(mesh.model.clusters.isLocal('kube-dns.kube-system.svc.cluster.local'));
});
