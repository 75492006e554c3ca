import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { parseProxy } from '../model/proxy.js';
import { nodeYaml, podYaml, serviceYaml } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';
import { TYPE } from './resource.js';

const HOST = 'ext.example';
const ENDPOINTS = `[{address: 10.1.0.1, locality: r1/z1, labels: {tier: gold}}, {address: 10.1.0.2, locality: r1/z2}, {address: 10.1.0.3, locality: r2/z3, weight: 3}, {address: 10.1.0.4, locality: r3/z4}, {address: 10.1.0.5, locality: r1/z1/s1, labels: {tier: iron}}]`;
const WORLD = `apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ext, namespace: shop}\nspec: {hosts: [${HOST}], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: ${ENDPOINTS}}\n---\n`;
const rule = (policy: string): string => `apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: ext, namespace: shop}\nspec: {host: ${HOST}, trafficPolicy: ${policy}}\n---\n`;
const OUTLIERS = 'outlierDetection: {consecutive5xxErrors: 3}';

/** `zone weight@priority` of each locality. */
function groups({ generators }: TestMesh, locality: string, labels: Record<string, string> = {}): string[] {
  const proxy = testProxy('10.0.0.9', 'x.shop', { 'istio-locality': locality.replaceAll('/', '.'), ...labels });
  const assignment = ClusterLoadAssignment.decode(generators.get(TYPE.endpoint)!.one(proxy, `outbound|80||${HOST}`)!.body.value);
  return assignment.endpoints.map(({ locality: place, load_balancing_weight, priority }) => `${place!.zone}${place!.sub_zone} ${load_balancing_weight}@${priority}`);
}

test('localities have no priorities without outlier detection', () => {
  assert.deepEqual(groups(testMesh(WORLD), 'r1/z1'), ['z1 1@0', 'z1s1 1@0', 'z2 1@0', 'z3 3@0', 'z4 1@0']);
});

test('failover: the nearer the sooner, without gaps; a region goes to the one that is written first', () => {
  assert.deepEqual(groups(testMesh(WORLD + rule(`{${OUTLIERS}}`)), 'r1/z1'), ['z1 1@0', 'z1s1 1@1', 'z2 1@2', 'z3 3@3', 'z4 1@3']);
  const mesh = testMesh(WORLD + rule(`{${OUTLIERS}, loadBalancer: {localityLbSetting: {failover: [{from: r1, to: r3}]}}}`));
  assert.deepEqual(groups(mesh, 'r1/z2'), ['z1 1@1', 'z1s1 1@1', 'z2 1@0', 'z3 3@3', 'z4 1@2']);
  assert.deepEqual(groups(mesh, 'r9/z9'), ['z1 1@0', 'z1s1 1@0', 'z2 1@0', 'z3 3@0', 'z4 1@0']);
});

test('failover: switched off by the rule or by the mesh', () => {
  assert.deepEqual(groups(testMesh(WORLD + rule(`{${OUTLIERS}, loadBalancer: {localityLbSetting: {enabled: false}}}`)), 'r1/z1').filter((group) => !group.endsWith('@0')), []);
  assert.deepEqual(groups(testMesh(WORLD + rule(`{${OUTLIERS}}`), { localityLbSetting: { enabled: false } }), 'r1/z1').filter((group) => !group.endsWith('@0')), []);
});

test('failoverPriority: by the labels that client and endpoint share, in their order', () => {
  const mesh = testMesh(WORLD + rule(`{${OUTLIERS}, loadBalancer: {localityLbSetting: {failoverPriority: [topology.kubernetes.io/region, tier]}}}`));
  assert.deepEqual(groups(mesh, 'r1/z1', { tier: 'gold' }), ['z1 1@0', 'z1s1 1@1', 'z2 1@1', 'z3 3@2', 'z4 1@2']);
  assert.deepEqual(groups(mesh, 'r1/z1', { tier: 'iron' }), ['z1 1@1', 'z1s1 1@0', 'z2 1@1', 'z3 3@2', 'z4 1@2']);
  const fixed = testMesh(WORLD + rule(`{${OUTLIERS}, loadBalancer: {localityLbSetting: {failoverPriority: ["tier=gold"]}}}`));
  assert.deepEqual(groups(fixed, 'r9/z9'), ['z1 1@0', 'z1s1 1@1', 'z2 1@1', 'z3 3@1', 'z4 1@1']);
});

test('a client knows best where it is: its own word, then a label, then its node', () => {
  const mesh = testMesh(WORLD + rule(`{${OUTLIERS}}`));
  const proxy = parseProxy('sidecar~10.0.0.9~x.shop~shop.svc.cluster.local', { LABELS: { 'istio-locality': 'r2.z3' } }, { region: 'r3', zone: 'z4', sub_zone: '' });
  const assignment = ClusterLoadAssignment.decode(mesh.generators.get(TYPE.endpoint)!.one(proxy, `outbound|80||${HOST}`)!.body.value);
  assert.deepEqual(assignment.endpoints.filter(({ priority }) => priority === 0).map(({ locality }) => locality!.zone), ['z4']);
});

test('distribute: shares by locality, within one by its weight; what is not named gets nothing', () => {
  const mesh = testMesh(WORLD + rule('{loadBalancer: {localityLbSetting: {distribute: [{from: "r1/z1/*", to: {"r1/z2/*": 70, "r2/*": 20, "r1/z1/*": 10}}]}}}'));
  assert.deepEqual(groups(mesh, 'r1/z1/s9'), ['z1 5@0', 'z1s1 5@0', 'z2 70@0', 'z3 20@0']);
  assert.deepEqual(groups(mesh, 'r1/z2').length, 5);
});

test('clients of one place share an answer, and all do where the place does not matter', () => {
  const one = ({ generators }: TestMesh, name: string, locality: string): unknown => generators.get(TYPE.endpoint)!.one(testProxy('10.0.0.9', `${name}.shop`, { 'istio-locality': locality }), `outbound|80||${HOST}`);
  const plain = testMesh(WORLD);
  assert.equal(one(plain, 'a', 'r1.z1'), one(plain, 'b', 'r2.z3'));
  const nearest = testMesh(WORLD + rule(`{${OUTLIERS}}`));
  assert.equal(one(nearest, 'a', 'r1.z1'), one(nearest, 'b', 'r1.z1'));
  assert.notEqual(one(nearest, 'a', 'r1.z1'), one(nearest, 'b', 'r2.z3'));
});

test('an endpoint is where its pod\'s own label says, before its node; with another label it moves', () => {
  const labels = { app: 'web' };
  const pods = [{ name: 'placed', ip: '10.0.0.1', labels: { ...labels, 'istio-locality': 'r2.z.9' } }, { name: 'newer', ip: '10.0.0.2', labels: { ...labels, 'topology.istio.io/locality': 'r3.z3', 'istio-locality': 'r2.z2' } }, { name: 'plain', ip: '10.0.0.3', labels }];
  const mesh = testMesh(nodeYaml + pods.map((pod) => podYaml('shop', pod)).join('') + serviceYaml('shop', 'web', '10.96.0.1', pods));
  const host = 'web.shop.svc.cluster.local';
  const places = (): string[] => mesh.model.endpoints(mesh.model.services.get(host)!).map(({ locality: { region, zone, subzone } }) => `${region}/${zone}/${subzone}`);
  assert.deepEqual(places(), ['r2/z/9', 'r3/z3/', 'r1/z1/']);
  assert.ok(mesh.apply(podYaml('shop', { ...pods[0]!, labels: { ...labels, 'istio-locality': 'r4' } })).endpoints.has(host));
  assert.deepEqual(places()[0], 'r4//');
});
