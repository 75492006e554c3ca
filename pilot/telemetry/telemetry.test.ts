import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../common/xds/any.js';
import type { AccessLog } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { OpenTelemetryConfig } from '../../proto/generated/envoy/config/trace/v3/opentelemetry.js';
import { ZipkinConfig } from '../../proto/generated/envoy/config/trace/v3/zipkin.js';
import { FileAccessLog } from '../../proto/generated/envoy/extensions/access_loggers/file/v3/file.js';
import { HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig } from '../../proto/generated/envoy/extensions/access_loggers/grpc/v3/als.js';
import { OpenTelemetryAccessLogConfig } from '../../proto/generated/envoy/extensions/access_loggers/open_telemetry/v3/logs_service.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { UuidRequestIdConfig } from '../../proto/generated/envoy/extensions/request_id/uuid/v3/uuid.js';
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
  const dryRuns = ['allow', 'deny'].flatMap((action) => ['name', 'result'].map((what) => `istio.authorization.dry_run.${action}_policy.${what}`));
  assert.deepEqual(tracing?.custom_tags.map(({ tag }) => tag), ['env', ...dryRuns, 'istio.canonical_revision', 'istio.canonical_service', 'istio.cluster_id', 'istio.mesh_id', 'istio.namespace', 'who']);
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

const typedOf = (mesh: TestMesh) => outbound(mesh).tracing?.provider?.config_type;
const zipkinOf = (mesh: TestMesh): ZipkinConfig | undefined => unpack(ZipkinConfig, typedOf(mesh)?.value);
const otelOf = (mesh: TestMesh): OpenTelemetryConfig | undefined => unpack(OpenTelemetryConfig, typedOf(mesh)?.value);
const COLLECTOR = { service: 'zipkin.istio-system.svc.cluster.local', port: 9411 };
const withProvider = (provider: object, spec = '{tracing: [{providers: [{name: P}]}]}', more: Partial<MeshConfig> = {}): TestMesh => testMesh(WORLD + telemetry('mesh', spec), { extensionProviders: [{ name: 'p', ...provider }], ...more });

test('providers: Zipkin with headers, a time-out and W3C\'s headers too; a name is found without regard to case', () => {
  process.env['UNDERPASS_TEST_TOKEN'] = 'secret';
  const zipkin = zipkinOf(withProvider({ zipkin: { ...COLLECTOR, path: '/spans', timeout: '3s', traceContextOption: 'USE_B3_WITH_W3C_PROPAGATION', headers: [{ name: 'a', value: 'b' }, { name: 'c', envName: 'UNDERPASS_TEST_TOKEN' }] } }));
  const service = zipkin?.collector_service;
  assert.deepEqual([zipkin?.trace_context_option, zipkin?.collector_cluster, service?.http_uri?.uri, service?.http_uri?.http_upstream_type?.value, service?.http_uri?.timeout?.seconds], [1, '', 'http://zipkin.istio-system.svc.cluster.local/spans', 'outbound|9411||zipkin.istio-system.svc.cluster.local', 3n]);
  assert.deepEqual(service?.request_headers_to_add.map(({ header }) => [header?.key, header?.value]), [['a', 'b'], ['c', 'secret']]);
});

test('providers: OpenTelemetry by HTTP and by gRPC, with what it asks to send along', () => {
  const http = otelOf(withProvider({ opentelemetry: { ...COLLECTOR, http: { path: '/v1/traces', timeout: '2s', headers: [{ name: 'a', value: 'b' }] }, resourceDetectors: { environment: {} } } }));
  assert.deepEqual([http?.http_service?.http_uri?.uri, http?.http_service?.http_uri?.timeout?.seconds, http?.grpc_service, http?.resource_detectors.map(({ name }) => name)], ['zipkin.istio-system.svc.cluster.local/v1/traces', 2n, undefined, ['envoy.tracers.opentelemetry.resource_detectors.environment']]);
  const grpc = otelOf(withProvider({ opentelemetry: { ...COLLECTOR, grpc: { timeout: '4s', initialMetadata: [{ name: 'a', value: 'b' }] } } }));
  assert.deepEqual([grpc?.grpc_service?.timeout?.seconds, grpc?.grpc_service?.initial_metadata.map(({ key, value }) => [key, value]), grpc?.http_service], [4n, [['a', 'b']], undefined]);
});

test('tracing: of several entries each field is the last one\'s that is meant for the side; tags and lengths of defaultConfig where no Telemetry has any', () => {
  const of = (spec: string, more: Partial<MeshConfig> = {}) => outbound(withProvider({ zipkin: COLLECTOR }, spec, more));
  const several = of('{tracing: [{providers: [{name: p}], randomSamplingPercentage: 5}, {match: {mode: SERVER}, randomSamplingPercentage: 50}, {match: {mode: CLIENT}, randomSamplingPercentage: 20, useRequestIdForTraceSampling: false, disableContextPropagation: true}]}');
  assert.deepEqual([several.tracing?.random_sampling?.value, several.tracing?.no_context_propagation, unpack(UuidRequestIdConfig, several.request_id_extension?.typed_config)?.use_request_id_for_trace_sampling], [20, true, false]);
  const formatted = of('{tracing: [{providers: [{name: p}], customTags: {code: {formatter: {value: "%RESPONSE_CODE%"}}}}]}', { tracingCustomTags: { other: { literal: { value: 'x' } } }, tracingMaxPathTagLength: 99 }).tracing;
  assert.deepEqual([formatted?.custom_tags.find(({ tag }) => tag === 'code')?.type, formatted?.custom_tags.some(({ tag }) => tag === 'other'), formatted?.max_path_tag_length], [{ $case: 'value', value: '%RESPONSE_CODE%' }, false, 99]);
  const legacy = of('{}', { enableTracing: true, tracingZipkinAddress: 'zipkin.istio-system.svc.cluster.local:9411', tracingCustomTags: { other: { literal: { value: 'x' } } }, tracingIstioTags: false }).tracing;
  assert.deepEqual(legacy?.custom_tags.map(({ tag }) => tag), ['other']);
});

test('tracing needs a service that is there, and ends with disableSpanReporting', () => {
  const traced = (spec: string, settings: Partial<MeshConfig> = PROVIDERS): boolean => outbound(testMesh(WORLD + telemetry('mesh', spec), settings)).tracing !== undefined;
  assert.equal(traced('{tracing: [{providers: [{name: nobody}]}]}'), false);
  assert.equal(traced('{tracing: [{providers: [{name: zipkin}], disableSpanReporting: true}]}'), false);
  // As in Istio: who speaks of tracing names a provider, or the mesh has one by default.
  assert.equal(traced('{tracing: [{randomSamplingPercentage: 5}]}', { ...PROVIDERS, enableTracing: true, tracingZipkinAddress: 'zipkin.istio-system.svc.cluster.local:9411' }), false);
  assert.equal(traced('{}', { ...PROVIDERS, defaultTracingProviders: ['zipkin'] }), true);
  assert.equal(traced('{tracing: [{randomSamplingPercentage: 5}]}', { ...PROVIDERS, defaultTracingProviders: ['zipkin'] }), true);
  assert.equal(traced('{}', { ...PROVIDERS, enableTracing: true, tracingZipkinAddress: 'zipkin.istio-system.svc.cluster.local:9411' }), true);
  assert.equal(traced('{}', { ...PROVIDERS, enableTracing: true, tracingZipkinAddress: 'elsewhere:9411' }), false);
});

test('access logs: providers by default, by level and by side, each with its own filter, in the order of their names', () => {
  const providers = { extensionProviders: [...PROVIDERS.extensionProviders!, { name: 'other', envoyFileAccessLog: { path: '/tmp/other' } }], accessLogFile: '/dev/stdout' };
  const paths = (spec: string | undefined, more: Partial<MeshConfig> = {}): unknown => outbound(testMesh(WORLD + (spec === undefined ? '' : telemetry('mesh', spec)), { ...providers, ...more })).access_log.map((log) => file(log)?.path);
  assert.deepEqual(paths(undefined), ['/dev/stdout']);
  assert.deepEqual(paths(undefined, { defaultAccessLogProviders: ['other', 'file'] }), ['/tmp/log', '/tmp/other']);
  assert.deepEqual(paths('{accessLogging: [{disabled: true}]}', { defaultAccessLogProviders: ['file'] }), []);
  assert.deepEqual(paths('{accessLogging: [{providers: [{name: file}]}, {providers: [{name: other}], disabled: true}]}'), ['/tmp/log']);
  assert.deepEqual(paths('{accessLogging: [{providers: [{name: other}], match: {mode: SERVER}}, {providers: [{name: File}], match: {mode: CLIENT}}]}'), ['/tmp/log']);
  assert.deepEqual(paths('{accessLogging: [{providers: [{name: envoy}]}]}'), ['/dev/stdout']);
  const each = outbound(testMesh(WORLD + telemetry('mesh', '{accessLogging: [{providers: [{name: file}], filter: {expression: "true"}}, {providers: [{name: other}]}]}'), providers)).access_log;
  assert.deepEqual(each.map(({ filter }) => filter !== undefined), [true, false]);
});

test('access logs: labels, what is empty left out, and paths without their query', () => {
  const of = (envoyFileAccessLog: object): FileAccessLog => file(outbound(testMesh(WORLD + telemetry('mesh', '{accessLogging: [{providers: [{name: p}]}]}'), { extensionProviders: [{ name: 'p', envoyFileAccessLog }] })).access_log[0])!;
  const formatOf = (log: FileAccessLog) => (log.access_log_format?.$case === 'log_format' ? log.access_log_format.value : undefined);
  assert.deepEqual([of({}).path, formatOf(of({}))?.format?.$case], ['/dev/stdout', 'text_format_source']);
  assert.ok(JSON.stringify(of({})).includes('%UPSTREAM_CLUSTER_RAW%'));
  const json = formatOf(of({ logFormat: { labels: {} }, omitEmptyValues: true }));
  assert.deepEqual([json?.omit_empty_values, json?.format?.$case === 'json_format' && Object.keys(json.format.value as object).length], [true, 24]);
  assert.deepEqual(formatOf(of({ logFormat: { text: '%REQ_WITHOUT_QUERY(:PATH)%' } }))?.formatters.map(({ name }) => name), ['envoy.formatter.req_without_query']);
});

test('access logs: to services, by OpenTelemetry and by Envoy\'s own protocol; to one that is not there nothing is sent', () => {
  const log = (provider: object): AccessLog | undefined => outbound(testMesh(WORLD + telemetry('mesh', '{accessLogging: [{providers: [{name: p}]}]}'), { extensionProviders: [{ name: 'p', ...provider }] })).access_log[0];
  const typed = <T>(type: Parameters<typeof unpack<T>>[0], one: AccessLog | undefined): T | undefined => (one?.config_type?.$case === 'typed_config' ? unpack(type, one.config_type.value) : undefined);
  const otel = typed(OpenTelemetryAccessLogConfig, log({ envoyOtelAls: { ...COLLECTOR, logFormat: { text: '%RESPONSE_CODE%', labels: { b: '%PROTOCOL%', a: 'x' } } } }));
  const target = otel?.common_config?.grpc_service?.target_specifier;
  assert.deepEqual([otel?.common_config?.log_name, target?.$case === 'envoy_grpc' && target.value.cluster_name, otel?.body?.value?.value, otel?.attributes?.values.map(({ key, value }) => [key, value?.value?.value]), otel?.disable_builtin_labels], ['otel_envoy_accesslog', 'outbound|9411||zipkin.istio-system.svc.cluster.local', '%RESPONSE_CODE%', [['a', 'x'], ['b', '%PROTOCOL%']], true]);
  const http = typed(HttpGrpcAccessLogConfig, log({ envoyHttpAls: { ...COLLECTOR, logName: 'mine', additionalRequestHeadersToLog: ['x-a'] } }));
  assert.deepEqual([http?.common_config?.log_name, http?.additional_request_headers_to_log, http?.common_config?.filter_state_objects_to_log], ['mine', ['x-a'], ['upstream_peer', 'downstream_peer']]);
  assert.equal(typed(TcpGrpcAccessLogConfig, log({ envoyTcpAls: { ...COLLECTOR } }))?.common_config?.log_name, 'tcp_envoy_accesslog');
  assert.equal(log({ envoyOtelAls: { service: 'nobody.default.svc.cluster.local', port: 1 } }), undefined);
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
