import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../common/xds/any.js';
import type { AccessLog } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { Config } from '../../proto/generated/envoy/extensions/access_loggers/stats/v3/stats.js';
import { HeaderMutation } from '../../proto/generated/envoy/extensions/filters/http/header_mutation/v3/header_mutation.js';
import { Config as HeaderToMetadata } from '../../proto/generated/envoy/extensions/filters/http/header_to_metadata/v3/header_to_metadata.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { TYPE, type Resource } from '../generate/resource.js';
import { parseProxy, type Proxy } from '../model/proxy.js';
import { podYaml, serviceYaml } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';

const web = { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web', version: 'v2' } };
const other = { name: 'other-1', ip: '10.0.0.2', labels: { app: 'other' } };
const WORLD = podYaml('shop', web) + podYaml('shop', other) + serviceYaml('shop', 'web', '10.96.0.1', [web]) + serviceYaml('shop', 'db', '10.96.0.2', [], 'name: tcp, port: 5432');
const counting = (ip: string, name: string, labels: Record<string, string>): Proxy => ({ ...testProxy(ip, name, labels), canCount: true, dropsBy: 'envoy.filters.http.header_mutation' });
const proxy = counting('10.0.0.1', 'web-1.shop', web.labels);

const one = (mesh: TestMesh, type: string, name: string, of = proxy): Resource => mesh.generators.get(type)!.one(of, name)!;
const listener = (mesh: TestMesh, name: string, of = proxy): Listener => Listener.decode(one(mesh, TYPE.listener, name, of).body.value);
const chainsOf = ({ filter_chains, default_filter_chain }: Listener) => [...filter_chains, ...(default_filter_chain ? [default_filter_chain] : [])];
const logsOf = (found: Listener): AccessLog[] => chainsOf(found).flatMap(({ filters }) => filters).flatMap(({ config_type }) => {
  if (config_type?.$case !== 'typed_config') return [];
  return (unpack(HttpConnectionManager, config_type.value) ?? unpack(TcpProxy, config_type.value))?.access_log ?? [];
});
const statsOf = (found: Listener): Config[] => logsOf(found).flatMap(({ config_type }) => (config_type?.$case === 'typed_config' ? (unpack(Config, config_type.value) ?? []) : []));
const namesOf = (configs: readonly Config[]): string[] => [...new Set(configs.flatMap(({ counters, histograms }) => [...counters, ...histograms].map(({ stat }) => stat!.name)))].sort();
const tagsOf = ({ counters, histograms }: Config): Record<string, string> => Object.fromEntries([...counters, ...histograms][0]!.stat!.tags.map(({ name, value_format }) => [name, value_format]));

const HTTP = ['istio_request_bytes', 'istio_request_duration_milliseconds', 'istio_request_messages_total', 'istio_requests_total', 'istio_response_bytes', 'istio_response_messages_total'];
const TCP = ['istio_tcp_connections_closed_total', 'istio_tcp_connections_opened_total', 'istio_tcp_received_bytes_total', 'istio_tcp_sent_bytes_total'];

test('requests and connections of both sides are counted by Istio\'s names and reporters', () => {
  const mesh = testMesh(WORLD);
  const [outbound, inbound] = [statsOf(listener(mesh, '0.0.0.0_80')), statsOf(listener(mesh, 'virtualInbound'))];
  assert.deepEqual(namesOf(outbound), [...HTTP, ...TCP]);
  assert.deepEqual(namesOf(inbound), [...HTTP, ...TCP]);
  assert.deepEqual(namesOf(statsOf(listener(mesh, '10.96.0.2_5432'))), TCP);
  assert.deepEqual([...new Set(outbound.map((config) => tagsOf(config)['reporter']))], ['source']);
  assert.deepEqual([...new Set(inbound.map((config) => tagsOf(config)['reporter']))], ['destination']);
  assert.deepEqual(new Set(inbound.map((config) => tagsOf(config)['connection_security_policy'])), new Set(['mutual_tls', 'none']));
  // Who has proven nothing can say of himself what he likes, and no connection says anything but in HTTP.
  for (const config of inbound) {
    const { source_workload, connection_security_policy, request_protocol } = tagsOf(config);
    assert.equal(source_workload === 'unknown', connection_security_policy === 'none' || request_protocol === 'tcp');
  }
});

test('workloads that shared a listener share it still', () => {
  const mesh = testMesh(WORLD);
  for (const name of ['0.0.0.0_80', '10.96.0.2_5432', 'virtualOutbound']) assert.equal(one(mesh, TYPE.listener, name), one(mesh, TYPE.listener, name, counting('10.0.0.2', 'other-1.shop', other.labels)));
});

test('clusters and endpoints say service and workload in parts, and only who counts gets them so', () => {
  const mesh = testMesh(WORLD);
  const name = 'outbound|80||web.shop.svc.cluster.local';
  const cluster = Cluster.decode(one(mesh, TYPE.cluster, name).body.value);
  assert.deepEqual(cluster.metadata?.filter_metadata['underpass.service'], { host: 'web.shop.svc.cluster.local', name: 'web', namespace: 'shop' });
  const [group] = ClusterLoadAssignment.decode(one(mesh, TYPE.endpoint, name).body.value).endpoints;
  assert.deepEqual(group!.lb_endpoints[0]!.metadata?.filter_metadata['underpass.workload'], { workload: 'web-1', namespace: 'shop', name: 'web', revision: 'v2', cluster: 'Kubernetes' });
  const plain = testProxy('10.0.0.1', 'web-1.shop', web.labels);
  for (const type of [TYPE.cluster, TYPE.endpoint]) assert.ok(!Buffer.from(one(mesh, type, name, plain).body.value).includes('underpass'));
  assert.deepEqual(statsOf(listener(mesh, '0.0.0.0_80', plain)), []);
});

test('a proxy whose Envoy can\'t count takes the header of clients\' proxies away all the same, both from what comes and from what its application sends', () => {
  const mesh = testMesh(WORLD);
  const extensions = (...names: string[]) => names.map((name) => ({ name, disabled: false }));
  for (const [names, filter] of [[['envoy.filters.http.header_mutation', 'envoy.filters.http.header_to_metadata'], HeaderMutation], [['envoy.filters.http.header_to_metadata'], HeaderToMetadata]] as const) {
    const old = parseProxy('sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local', { LABELS: web.labels }, undefined, extensions(...names));
    assert.equal(old.canCount, false);
    for (const name of ['0.0.0.0_80', 'virtualInbound']) {
      const managers = chainsOf(listener(mesh, name, old)).flatMap(({ filters }) => filters).flatMap(({ config_type }) => (config_type?.$case === 'typed_config' ? (unpack(HttpConnectionManager, config_type.value) ?? []) : []));
      assert.ok(managers.length > 0);
      for (const { http_filters: [first] } of managers) assert.ok(first?.config_type?.$case === 'typed_config' && JSON.stringify(unpack<unknown>(filter, first.config_type.value)).includes('x-underpass-workload'), name);
    }
  }
});

test('defaultProviders.metrics without prometheus: nothing is counted', () => {
  const mesh = testMesh(WORLD, { defaultMetricsProviders: [] });
  assert.deepEqual(statsOf(listener(mesh, '0.0.0.0_80')), []);
});

const telemetry = (name: string, namespace: string, spec: string): string => `\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: ${name}, namespace: ${namespace}}\nspec: ${spec}\n---`;
const tagged = (configs: readonly Config[], name: string): Record<string, string> | undefined => {
  const stat = configs.flatMap(({ counters, histograms }) => [...counters, ...histograms]).find((one) => one.stat!.name === name)?.stat;
  return stat && Object.fromEntries(stat.tags.map((tag) => [tag.name, tag.value_format]));
};

test('Telemetry: a metric off, a label more, another or none, by side; the more specific one counts', () => {
  const root = telemetry('mesh', 'istio-system', `{metrics: [{overrides: [
    {match: {metric: REQUEST_COUNT, mode: CLIENT}, tagOverrides: {host: {value: request.host}, tier: {value: "'none'"}, source_app: {operation: REMOVE}}},
    {match: {mode: SERVER}, disabled: true}]}]}`);
  const own = telemetry('own', 'shop', `{selector: {matchLabels: {app: web}}, metrics: [{providers: [{name: prometheus}], overrides: [
    {match: {metric: REQUEST_COUNT, mode: CLIENT}, tagOverrides: {tier: {value: "'50% ' + request.method"}, odd: {value: "has(request.host)"}}},
    {match: {metric: REQUEST_SIZE, mode: SERVER}, disabled: false}]}]}`);
  const mesh = testMesh(WORLD + root + own);
  const outbound = statsOf(listener(mesh, '0.0.0.0_80'));
  const requests = tagged(outbound, 'istio_requests_total')!;
  assert.equal(requests['tier'], '50%% %REQ(:METHOD)%');
  assert.ok(requests['host']!.includes(':AUTHORITY'));
  assert.deepEqual([requests['source_app'], requests['odd']], [undefined, undefined]);
  assert.equal(tagged(outbound, 'istio_request_bytes')!['tier'], undefined);
  assert.deepEqual(namesOf(statsOf(listener(mesh, 'virtualInbound'))), ['istio_request_bytes']);
  const others = counting('10.0.0.2', 'other-1.shop', other.labels);
  assert.equal(tagged(statsOf(listener(mesh, '0.0.0.0_80', others)), 'istio_requests_total')!['tier'], 'none');
  assert.deepEqual(statsOf(listener(mesh, 'virtualInbound', others)), []);
});

test('Telemetry: metrics for other providers than Prometheus are none', () => {
  const elsewhere = telemetry('ns', 'shop', '{metrics: [{providers: [{name: stackdriver}]}]}');
  assert.deepEqual(statsOf(listener(testMesh(WORLD + elsewhere), '0.0.0.0_80')), []);
  const named = testMesh(WORLD + elsewhere, { extensionProviders: [{ name: 'stackdriver', prometheus: {} }] });
  assert.deepEqual(namesOf(statsOf(listener(named, '0.0.0.0_80'))), [...HTTP, ...TCP]);
});

test('Telemetry: a node\'s agent is told what it can lay over its pods\' series, and nothing where there is nothing to tell', () => {
  const agent = testProxy('10.0.0.1', 'web-1.shop', web.labels);
  const note = (mesh: TestMesh, name: string): unknown => listener(mesh, name, agent).metadata?.filter_metadata['underpass.metrics'];
  assert.equal(note(testMesh(WORLD), 'virtualOutbound'), undefined);
  const mesh = testMesh(WORLD + telemetry('ns', 'shop', `{metrics: [{overrides: [{match: {metric: REQUEST_COUNT, mode: CLIENT}, tagOverrides: {host: {value: request.host}, tier: {value: "'a' + 'b'"}, code: {value: "'c' + string(response.code)"}, mixed: {value: "request.method + string(response.code)"}, source_app: {operation: REMOVE}}}, {match: {metric: RESPONSE_SIZE, mode: CLIENT}, disabled: true}]}]}`));
  assert.deepEqual(note(mesh, 'virtualOutbound'), { istio_requests_total: { tier: 'ab', code: ['c', { label: 'response_code' }], source_app: null }, istio_response_bytes: 'off' });
  assert.equal(note(mesh, 'virtualInbound'), undefined);
  assert.equal(Object.keys(note(testMesh(WORLD, { defaultMetricsProviders: [] }), 'virtualInbound') as object).length, 10);
});
