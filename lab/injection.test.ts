import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bootstrap, metadataOf, nodeId, type BootstrapOptions, type ProxyPod } from './envoy-bootstrap.js';
import { admit, labInjection } from './injection.js';
import type { DesiredPod, PodSpec } from './kube.js';

function desired(spec: Partial<PodSpec>, change: Partial<DesiredPod> = {}): DesiredPod {
  return { namespace: 'shop', name: 'web-0', labels: { app: 'web' }, annotations: {}, ownerReferences: [], owner: 'StatefulSet shop/web', specHash: 'x', spec: { containers: [{ name: 'main', image: 'echo' }], ...spec }, ...change };
}
const config = labInjection('east');
const ENABLED = { 'istio-injection': 'enabled' };

test('admit: an injected pod has its proxy, what is captured, and none of the volumes of Istio\'s agent', () => {
  const { proxy, labels, spec } = admit(desired({ volumes: [{ name: 'mine', secret: { secretName: 's' } }] }), ENABLED, config);
  assert.equal(proxy?.role, 'sidecar');
  assert.deepEqual(proxy.capture?.excludeInboundPorts, [15090, 15021, 15020]);
  assert.equal(proxy.container.env?.find(({ name }) => name === 'ISTIO_META_CLUSTER_ID')?.value, 'east');
  assert.equal(labels['security.istio.io/tlsMode'], 'istio');
  assert.deepEqual(spec.volumes?.map(({ name }) => name), ['mine']);
  assert.deepEqual(proxy.container.volumeMounts, []);
});

test('admit: a native sidecar and interception NONE are understood too; a pod of mode node is as it was', () => {
  const native = admit(desired({}, { annotations: { 'sidecar.istio.io/nativeSidecar': 'true' } }), ENABLED, config);
  assert.equal(native.proxy?.role, 'sidecar');
  assert.deepEqual(native.spec.containers.map(({ name }) => name), ['main']);
  const uncaptured = admit(desired({}, { annotations: { 'sidecar.istio.io/interceptionMode': 'NONE' } }), ENABLED, config);
  assert.deepEqual([uncaptured.proxy?.role, uncaptured.proxy?.capture], ['sidecar', undefined]);
  const left = admit(desired({}), { ...ENABLED, 'underpass.io/mode': 'node' }, config);
  assert.deepEqual([left.proxy, left.labels, left.spec.containers.length], [undefined, { app: 'web' }, 1]);
});

test('admit: gateways by template and by arguments; a template that the injector did not follow is refused with its reason', () => {
  const gateway = { containers: [{ name: 'istio-proxy', image: 'auto' }] };
  const annotations = { 'inject.istio.io/templates': 'gateway' };
  const labels = { 'sidecar.istio.io/inject': 'true' };
  assert.deepEqual([admit(desired(gateway, { labels, annotations }), {}, config).proxy].map((proxy) => [proxy?.role, proxy?.capture]), [['router', undefined]]);
  assert.equal(admit(desired({ containers: [{ name: 'any', image: 'docker.io/istio/proxyv2:1', args: ['proxy', 'router'] }] }), {}, config).proxy?.role, 'router');
  assert.throws(() => admit(desired(gateway, { annotations }), {}, config), /pod shop\/web-0: it has the annotation inject\.istio\.io\/templates, but the injector left it alone: neither the pod nor its namespace/);
});

const pod: ProxyPod = { desired: { ...desired({}), spec: { serviceAccountName: 'robot', containers: [{ name: 'main' }, { name: 'istio-proxy' }] } }, labels: { app: 'web', 'topology.istio.io/network': 'n1' }, annotations: {}, ips: ['10.0.0.1', 'fd00::1'], nodeName: 'node-1', netns: '' };
const options = (env: Record<string, string> = {}): BootstrapOptions => ({ role: 'router', pod, clusterId: 'east', env, discoverySocket: '/d', sdsSocket: '/s', adminSocket: '/a' });

test('bootstrap: node id and metadata are what istiod reads; variables of the container go over them', () => {
  assert.equal(nodeId(options()), 'router~10.0.0.1~web-0.shop~shop.svc.cluster.local');
  const { node } = bootstrap(options({ ISTIO_META_CLUSTER_ID: 'west', ISTIO_META_ROUTER_MODE: 'sni-dnat' })) as { node: { cluster: string; metadata: Record<string, unknown> } };
  const { NETWORK, CLUSTER_ID, ROUTER_MODE, WORKLOAD_NAME, APP_CONTAINERS, SERVICE_ACCOUNT, INSTANCE_IPS } = node.metadata;
  assert.deepEqual([node.cluster, NETWORK, CLUSTER_ID, ROUTER_MODE, WORKLOAD_NAME, APP_CONTAINERS, SERVICE_ACCOUNT, INSTANCE_IPS], ['web.shop', 'n1', 'west', 'sni-dnat', 'web', 'main', 'robot', '10.0.0.1,fd00::1']);
});

test('metadataOf: strings, JSON objects with their fields, nonsense left out', () => {
  assert.deepEqual(metadataOf({ ISTIO_META_A: 'x', ISTIO_METAJSON_ALL: '{"B":{"c":1}}', ISTIO_METAJSON_BAD: '{', OTHER: 'y' }), { A: 'x', B: { c: 1 } });
});
