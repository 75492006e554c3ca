// Istio's objects, as pilot makes Envoy's configuration of them, in the tables of the HTTP fast path.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compileTable, type LocalPod } from '../agent/http/compile.js';
import { CALLER, HEADERS, clusterViews, inputOf, names } from '../agent/http/compile-testing.js';
import { classOfRequest, judge, type HttpRequest } from '../agent/http/interpret.js';
import { ENVOY, type HttpTable } from '../agent/http/table.js';
import { foldInbound } from '../agent/proxy/fold-inbound.js';
import { stockExtensions } from '../agent/testing/stock-envoy.js';
import { sidecarTypes, type SidecarState } from '../agent/xds/sidecar-stream.js';
import { edsServiceName, routeNames } from '../agent/xds/resource-types.js';
import type { AnyResourceType } from '../agent/xds/resource-type.js';
import type { Proxy } from '../pilot/model/proxy.js';
import { nodeYaml, podYaml, serviceYaml, type PodSpec } from '../pilot/testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../pilot/testing/model.js';

const v1: PodSpec = { name: 'web-v1', ip: '10.0.0.1', labels: { app: 'web', version: 'v1' } };
const v2: PodSpec = { name: 'web-v2', ip: '10.0.0.2', labels: { app: 'web', version: 'v2' } };
const client = testProxy('10.0.0.9', 'client.shop', { app: 'client' });
const server = testProxy('10.0.0.1', 'web-v1.shop', v1.labels);
const WEB = [nodeYaml, podYaml('shop', v1), podYaml('shop', v2), serviceYaml('shop', 'web', '10.96.0.1', [v1, v2])].join('\n');
const HOST = 'web.shop.svc.cluster.local';

const object = (kind: string, group: string, spec: string): string => `\napiVersion: ${group}.istio.io/v1\nkind: ${kind}\nmetadata: {name: web, namespace: shop}\nspec: ${spec}\n---`;
const routes = (spec: string): string => object('VirtualService', 'networking', `{hosts: [web], http: ${spec}}`);
const rule = (spec: string): string => object('DestinationRule', 'networking', `{host: web, ${spec}}`);
const SUBSETS = rule('subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]');

/** What a proxy of `proxy` would hold. */
function stateOf(mesh: TestMesh, proxy: Proxy): SidecarState {
  const state = { clusters: new Map(), endpoints: new Map(), listeners: new Map(), routes: new Map() };
  for (const kind of ['clusters', 'listeners'] as const) {
    const type: AnyResourceType = sidecarTypes[kind];
    for (const { name, body } of mesh.generators.get(type.typeUrl)!.all(proxy)) state[kind].set(name, type.decode(name, '1', body));
  }
  for (const listener of state.listeners.values()) {
    for (const name of routeNames.of(listener)) state.routes.set(name, sidecarTypes.routes.decode(name, '1', mesh.generators.get(sidecarTypes.routes.typeUrl)!.one(proxy, name)!.body));
  }
  for (const { message } of state.clusters.values()) {
    const service = edsServiceName(message);
    const found = service === undefined ? undefined : mesh.generators.get(sidecarTypes.endpoints.typeUrl)!.one(proxy, service);
    if (found) state.endpoints.set(service, sidecarTypes.endpoints.decode(found.name, '1', found.body));
  }
  return state;
}

function tableOf(yaml: string, changes: { local?: Map<string, LocalPod> } = {}): HttpTable {
  const state = stateOf(testMesh(WEB + yaml), client);
  return compileTable({ ...inputOf(state, { clusters: clusterViews(state) }), caller: CALLER, headers: HEADERS, takeName: names(), ...changes });
}

function drawn(table: HttpTable, target: string, headers: HttpRequest['headers'] = []): Record<string, number> | string {
  const index = classOfRequest(table, { address: '10.96.0.1', port: 80 }, { method: 'GET', target, host: 'web', headers });
  if (index === ENVOY) return 'envoy';
  let before = 0;
  return Object.fromEntries(table.classes[index]!.splits.map(({ until, cluster }) => {
    const weight = until - before;
    before = until;
    return [table.clusters[cluster]!.name.split('|')[2]!, weight];
  }));
}

test('a service without rules', () => {
  const table = tableOf('');
  assert.deepEqual(drawn(table, '/'), { '': 1 });
  assert.deepEqual(table.clusters.map(({ balance, endpoints }) => [balance, endpoints.map(({ address, weight }) => [address, weight])]), [['least-request', [['10.0.0.1', 1], ['10.0.0.2', 1]]]]);
});

test('VirtualService: matches in order, and weights', () => {
  const table = tableOf(SUBSETS + routes(`[
    {match: [{uri: {prefix: /v2/}, headers: {user: {exact: a}}}, {uri: {exact: /new}}], route: [{destination: {host: web, subset: v2}}]},
    {match: [{withoutHeaders: {user: {exact: b}}, uri: {prefix: /not-b}}], route: [{destination: {host: web, subset: v2}}]},
    {route: [{destination: {host: web, subset: v1}, weight: 75}, {destination: {host: web, subset: v2}, weight: 25}]}]`));
  const [to2, both] = [{ v2: 1 }, { v1: 75, v2: 25 }];
  assert.deepEqual([drawn(table, '/v2/a', [['user', 'a']]), drawn(table, '/new?x'), drawn(table, '/not-b')], [to2, to2, to2]);
  assert.deepEqual([drawn(table, '/v2/a'), drawn(table, '/new/'), drawn(table, '/not-b', [['user', 'b']])], [both, both, both]);
  assert.deepEqual(table.findings.filter(({ name, reason }) => reason && name.includes('web')), []);
});

test('VirtualService: what the kernel does not do, beside what it does', () => {
  const cases: Record<string, RegExp> = {
    'timeout: 3s': /timeout/, 'retries: {attempts: 2, retryOn: 5xx}': /retries/, 'mirror: {host: web}': /mirrored/, 'rewrite: {uri: /b}': /rewrites/, 'headers: {request: {set: {x-a: b}}}': /headers of requests/,
    'fault: {delay: {fixedDelay: 1s, percentage: {value: 1}}}': /fault/, 'corsPolicy: {allowMethods: [GET]}': /cors/i,
  };
  for (const [setting, reason] of Object.entries(cases)) {
    const table = tableOf(routes(`[{match: [{uri: {prefix: /odd}}], route: [{destination: {host: web}}], ${setting}}, {route: [{destination: {host: web}}]}]`));
    assert.deepEqual([drawn(table, '/odd'), drawn(table, '/')], ['envoy', { '': 1 }], setting);
    assert.match(table.findings.map((found) => found.reason).join(), reason, setting);
  }
});

test('DestinationRule: settings that count are Envoy\'s', () => {
  const cases: [string, RegExp | undefined][] = [
    ['trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}', undefined], ['trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}', /hash|chance/], ['trafficPolicy: {outlierDetection: {splitExternalLocalOriginErrors: true}}', /ejected/],
    ['trafficPolicy: {connectionPool: {http: {http2MaxRequests: 5}}}', /limited/], ['trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 5}}}', /end after some|settings/], ['trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}', /HTTP\/2/],
    ['trafficPolicy: {tls: {mode: SIMPLE}}', /TLS/],
  ];
  for (const [spec, reason] of cases) {
    const table = tableOf(rule(spec));
    assert.deepEqual(drawn(table, '/'), reason ? 'envoy' : { '': 1 }, spec);
    if (reason) assert.match(table.findings.map((found) => found.reason).join(), reason, spec);
    else assert.equal(table.clusters[0]!.balance, 'random');
  }
});

test('DestinationRule: outlier detection is the kernel\'s, as Istio\'s defaults complete it', () => {
  const detection = (spec: string): unknown => tableOf(rule(`trafficPolicy: {outlierDetection: ${spec}}`)).clusters[0]!.outlierDetection;
  const usual = { consecutive5xx: 5, consecutiveGatewayFailure: 0, intervalMs: 10_000, baseEjectionMs: 30_000, maxEjectionMs: 300_000, maxEjectionPercent: 10, alwaysEjectOneHost: false, hosts: 2, spare: 1, panic: Infinity };
  assert.deepEqual(detection('{interval: 10s}'), usual);
  assert.deepEqual(detection('{consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 3m, maxEjectionPercent: 100, minHealthPercent: 60}'), { ...usual, consecutive5xx: 3, intervalMs: 1_000, baseEjectionMs: 180_000, maxEjectionPercent: 100, spare: 0, panic: 1 });
  assert.deepEqual(detection('{consecutive5xxErrors: 0, consecutiveGatewayErrors: 4}'), { ...usual, consecutive5xx: 0, consecutiveGatewayFailure: 4 });
  assert.equal(detection('{consecutive5xxErrors: 0}'), undefined);
});

test('AuthorizationPolicy: of the destination, for this client', () => {
  const policy = (spec: string): HttpTable => {
    const mesh = testMesh(WEB + object('AuthorizationPolicy', 'security', `{selector: {matchLabels: {app: web}}, ${spec}}`));
    const inbound = foldInbound(stateOf(mesh, server).listeners.get('virtualInbound')!.message, stockExtensions()).mesh;
    return tableOf('', { local: new Map([[v1.ip, { inbound, listener: 'pod/1/inbound-mesh/1' }]]) });
  };
  const verdict = (table: HttpTable, method: string, target: string, headers: HttpRequest['headers'] = []): string => {
    const endpoint = table.clusters[0]?.endpoints.find(({ address }) => address === v1.ip);
    return typeof endpoint?.policy === 'number' ? judge(table.policies[endpoint.policy]!, { method, target, host: 'web', headers }, 'envoy') : (endpoint?.policy ?? 'envoy');
  };
  const allow = policy(`action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}], to: [{operation: {methods: [GET], paths: [/a*], notPaths: [/b]}}], when: [{key: 'request.headers[x-team]', values: [red]}]}]`);
  assert.equal(verdict(allow, 'GET', '/a/b', [['x-team', 'red']]), 'allowed');
  for (const [method, target, team] of [['POST', '/a', 'red'], ['GET', '/b', 'red'], ['GET', '/a', 'blue']] as const) assert.equal(verdict(allow, method, target, [['x-team', team]]), 'envoy');
  const deny = policy('action: DENY, rules: [{to: [{operation: {paths: [/admin*]}}]}]');
  assert.deepEqual([verdict(deny, 'GET', '/'), verdict(deny, 'GET', '/admin/x')], ['allowed', 'envoy']);
  assert.equal(verdict(policy('action: DENY, rules: [{from: [{source: {namespaces: [other]}}]}]'), 'GET', '/'), 'open');
  assert.equal(verdict(policy('action: ALLOW, rules: [{from: [{source: {namespaces: [other]}}]}]'), 'GET', '/'), 'envoy');
  assert.equal(verdict(policy('action: ALLOW, rules: [{when: [{key: "request.auth.claims[iss]", values: [x]}]}]'), 'GET', '/'), 'envoy');
});
