import assert from 'node:assert/strict';
import { test } from 'node:test';
import { nodeYaml, podYaml, serviceYaml, sliceYaml, type PodSpec } from '../testing/mesh.js';
import { testMesh, testProxy } from '../testing/model.js';
import { hostMatches, HostIndex, resolveHost } from './hosts.js';
import { selectProtocol } from './protocol.js';
import { parseProxy } from './proxy.js';

const web: PodSpec = { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web' } };
const other: PodSpec = { name: 'other-1', ip: '10.0.0.2', labels: { app: 'other' } };
const HOST = 'web.shop.svc.cluster.local';

test('selectProtocol: appProtocol, then the name up to the dash, then known ports, else sniffed', () => {
  const cases: [object, string][] = [
    [{ name: 'http' }, 'HTTP'],
    [{ name: 'http-web' }, 'HTTP'],
    [{ name: 'HTTP2-x' }, 'HTTP2'],
    [{ name: 'grpc-web-a' }, 'GRPC'],
    [{ name: 'https' }, 'TLS'],
    [{ name: 'tcp-a', appProtocol: 'http' }, 'HTTP'],
    [{ name: 'x', appProtocol: 'kubernetes.io/h2c' }, 'HTTP2'],
    [{ name: 'http', appProtocol: 'example.com/own' }, 'HTTP'],
    [{ name: 'httpfoo' }, 'auto'],
    [{}, 'auto'],
    [{ port: 3306 }, 'TCP'],
    [{ name: 'http', protocol: 'UDP' }, 'UDP'],
  ];
  for (const [port, expected] of cases) assert.equal(selectProtocol({ port: 80, ...port }), expected, JSON.stringify(port));
});

test('hosts: short names resolve in their namespace, wildcards cover what is below them', () => {
  assert.equal(resolveHost('web', 'shop', 'cluster.local'), HOST);
  assert.equal(resolveHost('web.shop', 'x', 'cluster.local'), 'web.shop');
  assert.equal(hostMatches('*.cluster.local', HOST), true);
  assert.equal(hostMatches('*.shop.svc.cluster.local', 'web.store.svc.cluster.local'), false);
  assert.equal(hostMatches('*.example.com', 'example.com'), false);
  const index = new HostIndex<string>();
  for (const pattern of ['*', '*.example.com', 'a.example.com', '*.com']) index.add(pattern, pattern);
  assert.deepEqual(index.matching('a.example.com').flat(), ['a.example.com', '*.example.com', '*.com', '*']);
});

test('parseProxy: node ids as Istio writes them, others are refused', () => {
  const proxy = parseProxy('sidecar~10.0.0.1~web-1.a.shop~shop.svc.cluster.local', { NAMESPACE: 'shop', INSTANCE_IPS: '10.0.0.1,fd00::1', LABELS: { app: 'web', n: 1 } });
  assert.deepEqual([proxy.type, proxy.name, proxy.namespace, proxy.ips, proxy.labels], ['sidecar', 'web-1.a', 'shop', ['10.0.0.1', 'fd00::1'], { app: 'web' }]);
  for (const id of ['', 'sidecar', 'sidecar~x~a.b~c', 'robot~10.0.0.1~a.b~c', 'sidecar~10.0.0.1~nodot~c', 'sidecar~10.0.0.1~a.b~c~d']) {
    assert.throws(() => parseProxy(id), { code: 'UNDERPASS_NODE_ID' }, id);
  }
});

test('Model.apply: an endpoint change names its host and nothing else', () => {
  const { apply } = testMesh([nodeYaml, podYaml('shop', web), podYaml('shop', other), serviceYaml('shop', 'web', '10.96.0.1', [web]), serviceYaml('shop', 'other', '10.96.0.2', [other])].join('\n'));
  const change = apply(sliceYaml('shop', 'web', []));
  assert.deepEqual([...change.endpoints], [HOST]);
  assert.deepEqual([change.services.size, change.routes.size, change.rules.size, change.pods.size], [0, 0, 0, 0]);
});

test("Model.apply: an endpoint that names no pod is its address's; the pod's changes, and its node's, reach the host", () => {
  const slice = 'apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.0.0.9]}, {addresses: [10.0.0.8], nodeName: node-8}]\n';
  const pod = (version: string): string => `apiVersion: v1\nkind: Pod\nmetadata: {name: by-hand, namespace: shop, labels: {version: ${version}}}\nspec: {nodeName: node-9, containers: [{name: app}]}\nstatus: {podIPs: [{ip: 10.0.0.9}]}\n`;
  const node = (name: string): string => `apiVersion: v1\nkind: Node\nmetadata: {name: ${name}, labels: {topology.kubernetes.io/zone: a}}\n`;
  const { apply } = testMesh([serviceYaml('shop', 'web', '10.96.0.1', [])].join('\n'));
  apply(slice);
  assert.deepEqual([...apply(pod('v1')).endpoints], [HOST]);
  assert.deepEqual([...apply(pod('v2')).endpoints], [HOST]);
  for (const name of ['node-8', 'node-9']) assert.deepEqual([...apply(node(name)).endpoints], [HOST], name);
  assert.deepEqual([...apply(node('node-7')).endpoints], []);
});

test('Model.apply: readiness of a pod reaches its services, not its clusters', () => {
  const { apply, model } = testMesh([podYaml('shop', web), serviceYaml('shop', 'web', '10.96.0.1', [web])].join('\n'));
  const change = apply([podYaml('shop', { ...web, ready: false }), sliceYaml('shop', 'web', [{ ...web, ready: false }])].join('\n'));
  assert.deepEqual([...change.endpoints], [HOST]);
  assert.deepEqual([...change.identities], []);
  assert.equal(model.endpoints(model.services.get(HOST)!)[0]!.ready, false);
});

test('Model.apply: a pod that gets a sidecar changes the clusters of its headless services', () => {
  const { apply } = testMesh([podYaml('shop', web), serviceYaml('shop', 'web', 'None', [web])].join('\n'));
  const change = apply(podYaml('shop', { ...web, labels: { app: 'web', 'security.istio.io/tlsMode': 'istio' } }));
  assert.deepEqual([...change.identities], [HOST]);
});

test('Model: a finished pod does not own its address any more', () => {
  const { apply, model } = testMesh(podYaml('shop', web));
  assert.equal(model.podByIp('10.0.0.1')?.metadata.name, 'web-1');
  apply(podYaml('shop', web).replace('phase: Running', 'phase: Succeeded'));
  assert.equal(model.podByIp('10.0.0.1'), undefined);
});

test('Model: terminating endpoints are dropped, a Service without an address is not headless', () => {
  const { model, apply } = testMesh(serviceYaml('shop', 'web', '', [web, other]).replace('clusterIP: "", clusterIPs: [""], ', ''));
  assert.equal(model.services.get(HOST)!.headless, false);
  assert.deepEqual(model.services.get(HOST)!.addresses, []);
  apply(sliceYaml('shop', 'web', [web, other]).replace('conditions: {ready: true}', 'conditions: {ready: false, terminating: true}'));
  assert.deepEqual(model.endpoints(model.services.get(HOST)!).map(({ address }) => address), ['10.0.0.2']);
});

test('Scope.rule: the client namespace, then the service namespace, never a third one', () => {
  const rule = (namespace: string): string => `apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: ${namespace}}\nspec: {host: ${HOST}}\n---\n`;
  const { model, apply, remove } = testMesh([serviceYaml('shop', 'web', '10.96.0.1', [web]), rule('shop'), rule('client'), rule('third')].join('\n'));
  const namespaceFor = (client: string): string | undefined => model.scopeOf(testProxy('10.0.0.9', `x.${client}`)).rule(HOST)?.object.metadata.namespace;
  assert.deepEqual([namespaceFor('client'), namespaceFor('x')], ['client', 'shop']);
  const change = remove('networking.istio.io/DestinationRule/shop/web');
  assert.deepEqual([...change.rules], [HOST]);
  assert.equal(namespaceFor('x'), undefined);
  apply(rule('istio-system'));
  assert.equal(namespaceFor('x'), 'istio-system');
});
