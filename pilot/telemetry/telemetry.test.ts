import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../common/xds/any.js';
import type { AccessLog } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { OpenTelemetryConfig } from '../../proto/generated/envoy/config/trace/v3/opentelemetry.js';
import { ZipkinConfig } from '../../proto/generated/envoy/config/trace/v3/zipkin.js';
import { FileAccessLog } from '../../proto/generated/envoy/extensions/access_loggers/file/v3/file.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { TYPE } from '../generate/resource.js';
import type { MeshConfig } from '../model/mesh.js';
import { podYaml, serviceYaml } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';

const web = { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web', version: 'v2' } };
const WORLD =
  podYaml('shop', web) + serviceYaml('shop', 'web', '10.96.0.1', [web]) + serviceYaml('shop', 'db', '10.96.0.2', [], 'name: tcp, port: 5432') +
  serviceYaml('istio-system', 'zipkin', '10.96.0.9', [], 'name: http, port: 9411');
const proxy = testProxy('10.0.0.1', 'web-1.shop', web.labels);
const PROVIDERS: Partial<MeshConfig> = {
  extensionProviders: [
    { name: 'zipkin', zipkin: { service: 'zipkin.istio-system.svc.cluster.local', port: 9411 } },
    { name: 'otel', opentelemetry: { service: 'istio-system/zipkin.istio-system.svc.cluster.local', port: 9411 } },
    { name: 'file', envoyFileAccessLog: { path: '/tmp/log', logFormat: { labels: { status: '%RESPONSE_CODE%' } } } },
  ],
};
const telemetry = (name: string, spec: string, namespace = 'istio-system'): string => `\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: ${name}, namespace: ${namespace}}\nspec: ${spec}\n---`;

const listener = (mesh: TestMesh, name: string): Listener => Listener.decode(mesh.generators.get(TYPE.listener)!.one(proxy, name)!.body.value);
const filtersOf = (one: Listener) => [...one.filter_chains, ...(one.default_filter_chain ? [one.default_filter_chain] : [])].flatMap(({ filters }) => filters);
const managers = (one: Listener): HttpConnectionManager[] => filtersOf(one).flatMap(({ config_type }) => (config_type?.$case === 'typed_config' ? (unpack(HttpConnectionManager, config_type.value) ?? []) : []));
const tcpProxies = (one: Listener): TcpProxy[] => filtersOf(one).flatMap(({ config_type }) => (config_type?.$case === 'typed_config' ? (unpack(TcpProxy, config_type.value) ?? []) : []));
const file = (log: AccessLog | undefined): FileAccessLog | undefined => (log?.config_type?.$case === 'typed_config' ? unpack(FileAccessLog, log.config_type.value) : undefined);
const outbound = (mesh: TestMesh): HttpConnectionManager => managers(listener(mesh, '0.0.0.0_80'))[0]!;
const inbound = (mesh: TestMesh): HttpConnectionManager => managers(listener(mesh, 'virtualInbound')).find(({ stat_prefix }) => stat_prefix.includes('80'))!;

test('with the mesh\'s defaults listeners have no access log and no tracing, and are what the inner generator made', () => {
  const mesh = testMesh(WORLD);
  assert.deepEqual([outbound(mesh).access_log, outbound(mesh).tracing, listener(mesh, 'virtualOutbound').access_log], [[], undefined, []]);
  const generator = mesh.generators.get(TYPE.listener)!;
  assert.equal(generator.one(proxy, '0.0.0.0_80'), generator.one(proxy, '0.0.0.0_80'));
});

test('accessLogFile: HTTP, TCP and connections that no chain took are logged, in the format of the mesh', () => {
  const mesh = testMesh(WORLD, { accessLogFile: '/dev/stdout', accessLogFormat: '%RESPONSE_CODE%' });
  for (const log of [outbound(mesh).access_log[0], inbound(mesh).access_log[0], tcpProxies(listener(mesh, '10.96.0.2_5432'))[0]!.access_log[0]]) {
    assert.equal(file(log)?.path, '/dev/stdout');
    assert.ok(JSON.stringify(file(log)).includes('%RESPONSE_CODE%\\n'));
    assert.equal(log!.filter, undefined);
  }
  const [rest] = listener(mesh, 'virtualOutbound').access_log;
  assert.deepEqual(rest?.filter?.filter_specifier?.$case === 'response_flag_filter' && rest.filter.filter_specifier.value.flags, ['NR']);
  assert.ok(JSON.stringify(file(outbound(testMesh(WORLD, { accessLogFile: '/dev/stdout', accessLogEncoding: 'JSON' })).access_log[0])).includes('"response_code":"%RESPONSE_CODE%"'));
});

test('where tunnels end what is inside is logged, on the server\'s side', () => {
  const mesh = testMesh(`${WORLD}${telemetry('mesh', '{accessLogging: [{match: {mode: SERVER}, providers: [{name: file}]}]}')}`, PROVIDERS);
  const tunnelled = testProxy('10.0.0.1', 'web-1.shop', web.labels, { ENABLE_HBONE: 'true' });
  const logs = (name: string): number => managers(Listener.decode(mesh.generators.get(TYPE.listener)!.one(tunnelled, name)!.body.value)).reduce((sum, { access_log }) => sum + access_log.length, 0);
  assert.deepEqual([logs('main_internal'), logs('connect_terminate'), logs('0.0.0.0_80')], [2, 0, 0]);
});

test('Telemetry: a workload\'s settings win over its namespace\'s, those over the mesh\'s; a side can be chosen', () => {
  const settings = { accessLogFile: '/dev/stdout', ...PROVIDERS };
  const off = telemetry('mesh', '{accessLogging: [{disabled: true}]}');
  assert.equal(outbound(testMesh(WORLD + off, settings)).access_log.length, 0);
  const on = telemetry('ns', '{accessLogging: [{disabled: false, match: {mode: SERVER}, providers: [{name: file}], filter: {expression: "response.code >= 400"}}]}', 'shop');
  const mesh = testMesh(WORLD + off + on, settings);
  assert.equal(outbound(mesh).access_log.length, 0);
  assert.equal(file(inbound(mesh).access_log[0])?.path, '/tmp/log');
  const filter = inbound(mesh).access_log[0]!.filter?.filter_specifier;
  assert.equal(filter?.$case === 'extension_filter' && filter.value.name, 'envoy.access_loggers.extension_filters.cel');
  const own = telemetry('own', '{selector: {matchLabels: {app: web}}, accessLogging: [{disabled: true}]}', 'shop');
  assert.equal(inbound(testMesh(WORLD + off + on + own, settings)).access_log.length, 0);
  assert.equal(inbound(testMesh(WORLD + off + on + own.replace('app: web', 'app: other'), settings)).access_log.length, 1);
});

test('Telemetry: tracing by provider, with sampling, Istio\'s tags and own ones', () => {
  const spec = '{tracing: [{providers: [{name: zipkin}], randomSamplingPercentage: 12.5, customTags: {env: {literal: {value: dev}}, who: {header: {name: user, defaultValue: none}}}}]}';
  const { tracing } = outbound(testMesh(WORLD + telemetry('mesh', spec), PROVIDERS));
  assert.deepEqual([tracing?.client_sampling?.value, tracing?.random_sampling?.value, tracing?.overall_sampling?.value], [100, 12.5, 100]);
  assert.deepEqual(tracing?.custom_tags.map(({ tag }) => tag), ['env', 'istio.canonical_revision', 'istio.canonical_service', 'istio.cluster_id', 'istio.mesh_id', 'istio.namespace', 'who']);
  const typed = tracing?.provider?.config_type;
  const zipkin = typed?.$case === 'typed_config' ? unpack(ZipkinConfig, typed.value) : undefined;
  assert.deepEqual([zipkin?.collector_cluster, zipkin?.collector_endpoint, zipkin?.trace_id_128bit, zipkin?.shared_span_context], ['outbound|9411||zipkin.istio-system.svc.cluster.local', '/api/v2/spans', true, false]);
  const bare = outbound(testMesh(WORLD + telemetry('mesh', spec.replace('{providers', '{enableIstioTags: false, providers')), PROVIDERS)).tracing;
  assert.deepEqual(bare?.custom_tags.map(({ tag }) => tag), ['env', 'who']);
  const otel = outbound(testMesh(WORLD + telemetry('mesh', '{tracing: [{providers: [{name: otel}]}]}'), { ...PROVIDERS, tracingSampling: 50 })).tracing;
  const config = otel?.provider?.config_type;
  assert.equal(otel?.random_sampling?.value, 50);
  assert.equal(config?.$case === 'typed_config' && unpack(OpenTelemetryConfig, config.value)?.service_name, 'web.shop');
});

test('tracing needs a service that is there, and ends with disableSpanReporting', () => {
  const traced = (spec: string, settings: Partial<MeshConfig> = PROVIDERS): boolean => outbound(testMesh(WORLD + telemetry('mesh', spec), settings)).tracing !== undefined;
  assert.equal(traced('{tracing: [{providers: [{name: nobody}]}]}'), false);
  assert.equal(traced('{tracing: [{providers: [{name: zipkin}], disableSpanReporting: true}]}'), false);
  assert.equal(traced('{tracing: [{randomSamplingPercentage: 5}]}', { ...PROVIDERS, defaultTracingProviders: ['zipkin'] }), true);
  assert.equal(traced('{}', { ...PROVIDERS, enableTracing: true, tracingZipkinAddress: 'zipkin.istio-system.svc.cluster.local:9411' }), true);
  assert.equal(traced('{}', { ...PROVIDERS, enableTracing: true, tracingZipkinAddress: 'elsewhere:9411' }), false);
});

test('pathNormalization of the mesh', () => {
  const of = (pathNormalization: MeshConfig['pathNormalization']): unknown[] => {
    const { normalize_path, merge_slashes, path_with_escaped_slashes_action } = inbound(testMesh(WORLD, { pathNormalization }));
    return [normalize_path, merge_slashes, path_with_escaped_slashes_action];
  };
  assert.deepEqual(of('BASE'), [true, false, 1]);
  assert.deepEqual(of('NONE'), [false, false, 1]);
  assert.deepEqual(of('MERGE_SLASHES'), [true, true, 1]);
  assert.deepEqual(of('DECODE_AND_MERGE_SLASHES'), [true, true, 4]);
});

test('a changed Telemetry concerns the proxies of its namespace, one of the root namespace all', () => {
  const mesh = testMesh(WORLD, PROVIDERS);
  const generator = mesh.generators.get(TYPE.listener)!;
  const names = new Set<string>();
  assert.equal(generator.affected(proxy, mesh.apply(telemetry('a', '{}', 'shop')), names), 'all');
  assert.equal(generator.affected(proxy, mesh.apply(telemetry('a', '{}')), names), 'all');
  assert.deepEqual([...generator.affected(proxy, mesh.apply(telemetry('a', '{}', 'other')), names)], []);
});
