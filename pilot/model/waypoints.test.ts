/** Which waypoint WDS names for a service and for a workload: labels of the object and its namespace, what the waypoint is for, and what each change makes of it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TYPE } from '../generate/resource.js';
import { Address, type GatewayAddress } from '../../proto/generated/istio/workload/workload.js';
import { podYaml, serviceYaml, type PodSpec } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';

const web: PodSpec = { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web' } };
const wp: PodSpec = { name: 'wp-1', ip: '10.0.0.9', labels: { 'gateway.networking.k8s.io/gateway-name': 'wp' } };
const namespace = (name: string, labels: string): string => `apiVersion: v1\nkind: Namespace\nmetadata: {name: ${name}, labels: {${labels}}}\n`;
const gateway = (home: string, name: string, { labels = '', from = '', status = `status: {addresses: [{type: Hostname, value: ${name}.${home}.svc.cluster.local}]}`, className = 'istio-waypoint' } = {}): string =>
  `apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: ${name}, namespace: ${home}, labels: {${labels}}}\nspec: {gatewayClassName: ${className}, listeners: [{name: mesh, port: 15008, protocol: HBONE${from && `, allowedRoutes: {namespaces: ${from}}`}}]}\n${status}\n`;
const gatewayClass = (name: string, type: string): string => `apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: ${name}, labels: {istio.io/waypoint-for: ${type}}}\nspec: {controllerName: istio.io/mesh-controller}\n`;
const world = (...more: string[]): TestMesh => testMesh([namespace('shop', 'istio.io/use-waypoint: wp'), podYaml('shop', web), serviceYaml('shop', 'web', '10.96.0.1', [web]), ...more].join('\n---\n'));

const HOST = 'shop/web.shop.svc.cluster.local';
const POD = 'Kubernetes//Pod/shop/web-1';
function waypointOf({ generators }: TestMesh, name: string): string | undefined {
  const body = generators.get(TYPE.address)!.one(testProxy('10.0.0.7', 'z.istio-system'), name)!.body as { value: Uint8Array };
  const { type } = Address.decode(body.value);
  const waypoint: GatewayAddress | undefined = type?.value.waypoint;
  if (!waypoint) return undefined;
  assert.equal(waypoint.hbone_mtls_port, 15008);
  const to = waypoint.destination!;
  return to.$case === 'hostname' ? `${to.value.namespace}/${to.value.hostname}` : to.value.address.join('.');
}
const both = (mesh: TestMesh): (string | undefined)[] => [waypointOf(mesh, HOST), waypointOf(mesh, POD)];
const WP = 'shop/wp.shop.svc.cluster.local';

test('Waypoints: what one is for decides by its own label, then its class\'s, else it is for services', () => {
  for (const [labels, classType, expected] of [
    ['', undefined, [WP, undefined]],
    ['istio.io/waypoint-for: all', undefined, [WP, WP]],
    ['istio.io/waypoint-for: workload', undefined, [undefined, WP]],
    ['istio.io/waypoint-for: none', undefined, [undefined, undefined]],
    ['', 'workload', [undefined, WP]],
    ['istio.io/waypoint-for: service', 'workload', [WP, undefined]],
  ] as const) {
    const mesh = world(gateway('shop', 'wp', { labels }), ...(classType ? [gatewayClass('istio-waypoint', classType)] : []));
    assert.deepEqual(both(mesh), expected, `${labels} ${classType}`);
  }
});

test('Waypoints: an object\'s own label goes before its namespace\'s, and none before both; another namespace\'s has to be allowed', () => {
  const own = (labels: string): string => serviceYaml('shop', 'web', '10.96.0.1', [web]).replace(/metadata: \{name: web,/, `metadata: {labels: {${labels}}, name: web,`);
  const mesh = world(gateway('shop', 'wp'), gateway('infra', 'far'), gateway('infra', 'open', { from: '{from: All}' }), gateway('infra', 'chosen', { from: '{from: Selector, selector: {matchLabels: {team: a}}}' }));
  const labelled = (labels: string): string | undefined => {
    mesh.apply(own(labels));
    return waypointOf(mesh, HOST);
  };
  assert.equal(labelled('istio.io/use-waypoint: none'), undefined);
  assert.equal(labelled('istio.io/use-waypoint: not-there'), undefined);
  const far = (name: string): string | undefined => labelled(`istio.io/use-waypoint: ${name}, istio.io/use-waypoint-namespace: infra`);
  assert.deepEqual([far('far'), far('open'), far('chosen')], [undefined, 'infra/open.infra.svc.cluster.local', undefined]);
  const change = mesh.apply(namespace('shop', 'istio.io/use-waypoint: wp, team: a'));
  assert.ok(change.addresses.has(HOST));
  assert.equal(waypointOf(mesh, HOST), 'infra/chosen.infra.svc.cluster.local');
  assert.equal(labelled('app: web'), WP);
});

test('Waypoints: each change of a Gateway, its class, its Service or the namespace names what is to be told anew, and nothing else', () => {
  const other: PodSpec = { name: 'other-1', ip: '10.0.0.2', labels: { app: 'other' } };
  const mesh = world(podYaml('aside', other), serviceYaml('aside', 'other', '10.96.0.2', [other]));
  const told = (change: { addresses: ReadonlySet<string> }): string[] => [...change.addresses].filter((name) => !name.includes('/wp')).sort();
  assert.deepEqual(told(mesh.apply(gateway('shop', 'wp', { status: '' }))), [], 'one without an address and a Service is none yet');
  assert.deepEqual(both(mesh), [undefined, undefined]);
  assert.deepEqual(told(mesh.apply(serviceYaml('shop', 'wp', '10.96.0.9', [wp]))), [POD, HOST]);
  assert.deepEqual(both(mesh), [WP, undefined]);
  assert.deepEqual(told(mesh.apply(gateway('shop', 'wp', { status: 'status: {addresses: [{type: IPAddress, value: 10.96.0.9}]}', labels: 'istio.io/waypoint-for: all' }))), [POD, HOST]);
  assert.deepEqual(both(mesh), ['10.96.0.9', '10.96.0.9']);
  assert.deepEqual(told(mesh.apply(gatewayClass('istio-waypoint', 'workload'))), [], 'its own label stands');
  assert.deepEqual(told(mesh.apply(namespace('shop', ''))), [POD, HOST]);
  assert.deepEqual(both(mesh), [undefined, undefined]);
  mesh.apply(namespace('shop', 'istio.io/use-waypoint: wp'));
  assert.deepEqual(told(mesh.remove('gateway.networking.k8s.io/Gateway/shop/wp')), [POD, HOST]);
  assert.deepEqual(both(mesh), [undefined, undefined]);
});

test('Waypoints: neither a waypoint nor a gateway between networks is reached through one; a Gateway of another class needs an address to be one', () => {
  const managed = serviceYaml('shop', 'wp', '10.96.0.9', [wp]).replace('metadata: {name: wp,', 'metadata: {labels: {gateway.istio.io/managed: istio.io-mesh-controller}, name: wp,');
  const mesh = world(gateway('shop', 'wp', { labels: 'istio.io/waypoint-for: all' }), managed, podYaml('shop', wp));
  assert.deepEqual([waypointOf(mesh, WP), waypointOf(mesh, 'Kubernetes//Pod/shop/wp-1')], [undefined, undefined]);
  assert.deepEqual(both(mesh), [WP, WP]);
  mesh.apply(gateway('shop', 'wp', { className: 'theirs', status: '' }));
  assert.deepEqual(both(mesh), [undefined, undefined]);
  mesh.apply(gateway('shop', 'wp', { className: 'theirs' }));
  assert.deepEqual(both(mesh), [WP, undefined]);
});
