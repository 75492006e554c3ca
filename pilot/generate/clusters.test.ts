import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../common/xds/any.js';
import { Cluster, Cluster_DiscoveryType, Cluster_DnsLookupFamily, Cluster_LbPolicy } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { UpstreamTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import { HttpProtocolOptions } from '../../proto/generated/envoy/extensions/upstreams/http/v3/http_protocol_options.js';
import { ProxyProtocolUpstreamTransport } from '../../proto/generated/envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.js';
import type { MeshConfig } from '../model/mesh.js';
import { podYaml, serviceYaml } from '../testing/mesh.js';
import { testMesh, testProxy } from '../testing/model.js';
import { HTTP_PROTOCOL_OPTIONS } from './envoy.js';
import { TYPE } from './resource.js';

const web = { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web' } };
const SERVICE = [podYaml('shop', web), serviceYaml('shop', 'web', '10.96.0.1', [web]), ''].join('\n');
const HOST = 'web.shop.svc.cluster.local';
const entry = (spec: string): string => `apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ext, namespace: shop}\nspec: ${spec}\n---\n`;
const rule = (policy: string, host = 'web'): string => `apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: rule, namespace: shop}\nspec: {host: ${host}, trafficPolicy: ${policy}}\n---\n`;

function cluster(yaml: string, name = `outbound|80||${HOST}`, { mesh = {}, ip = '10.0.0.9' }: { mesh?: Partial<MeshConfig>; ip?: string } = {}): Cluster {
  const found = testMesh(yaml, mesh).generators.get(TYPE.cluster)!.all(testProxy(ip, 'client.shop')).find((resource) => resource.name === name);
  return Cluster.decode((found ?? assert.fail(`no cluster ${name}`)).body.value);
}
const http = ({ typed_extension_protocol_options: options }: Cluster): HttpProtocolOptions => unpack(HttpProtocolOptions, options[HTTP_PROTOCOL_OPTIONS])!;
const tls = ({ transport_socket_matches: [match] }: Cluster): UpstreamTlsContext => unpack(UpstreamTlsContext, match!.transport_socket!.config_type!.value)!;
const type = ({ cluster_discovery_type: discovery }: Cluster): Cluster_DiscoveryType => (discovery?.$case === 'type' ? discovery.value : assert.fail());

test('connectionPool: limits, keep-alive over the mesh default field by field, time-outs of HTTP before those of TCP', () => {
  const { circuit_breakers, connect_timeout, upstream_connection_options, ...rest } = cluster(
    SERVICE +
      rule(`{connectionPool: {tcp: {maxConnections: 3, connectTimeout: 250ms, idleTimeout: 90s, maxConnectionDuration: 1h, tcpKeepalive: {time: 30s}},
        http: {http1MaxPendingRequests: 4, http2MaxRequests: 5, maxRetries: 6, idleTimeout: 7s, maxRequestsPerConnection: 8, h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 9, http2KeepAlive: {interval: 20s, timeout: 2s}}}, retryBudget: {percent: 33}}`),
    undefined,
    { mesh: { tcpKeepalive: { probes: 2, time: '99s' } } },
  );
  const { max_connections, max_pending_requests, max_requests, max_retries, retry_budget } = circuit_breakers!.thresholds[0]!;
  assert.deepEqual([max_connections, max_pending_requests, max_requests, max_retries, retry_budget?.budget_percent?.value, retry_budget?.min_retry_concurrency], [3, 4, 5, 6, 33, 3]);
  assert.equal(connect_timeout!.nanos, 250_000_000);
  const { keepalive_probes, keepalive_time, keepalive_interval } = upstream_connection_options!.tcp_keepalive!;
  assert.deepEqual([keepalive_probes, keepalive_time, keepalive_interval], [2, 30, undefined]);
  const options = http({ circuit_breakers, connect_timeout, upstream_connection_options, ...rest });
  const { idle_timeout, max_connection_duration, max_requests_per_connection } = options.common_http_protocol_options!;
  assert.deepEqual([idle_timeout!.seconds, max_connection_duration!.seconds, max_requests_per_connection], [7n, 3_600n, 8]);
  assert.match(JSON.stringify(options.upstream_protocol_options, (_key, value: unknown) => (typeof value === 'bigint' ? String(value) : value)), /"http2_protocol_options".*"max_concurrent_streams":9.*"interval":\{"seconds":"20"/);
});

test('useClientProtocol: HTTP/2 only to clients that speak it; the mesh may upgrade HTTP ports, a rule may refuse', () => {
  const spoken = (yaml: string, mesh: Partial<MeshConfig> = {}): string => JSON.stringify(cluster(yaml, undefined, { mesh }).typed_extension_protocol_options[HTTP_PROTOCOL_OPTIONS] && http(cluster(yaml, undefined, { mesh })).upstream_protocol_options);
  assert.match(spoken(SERVICE + rule('{connectionPool: {http: {useClientProtocol: true}}}')), /use_downstream_protocol_config/);
  assert.match(spoken(SERVICE, { h2UpgradePolicy: 'UPGRADE' }), /explicit_http_config.*http2_protocol_options/);
  assert.equal(spoken(SERVICE + rule('{connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}}'), { h2UpgradePolicy: 'UPGRADE' }), undefined);
});

test('outlierDetection: nothing is enforced that is not asked for; the deprecated consecutiveErrors has no effect, as in istiod', () => {
  const found = cluster(SERVICE + rule('{outlierDetection: {consecutiveErrors: 7, consecutive5xxErrors: 0, consecutiveGatewayErrors: 2, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 3, minHealthPercent: 40}}'));
  const { consecutive_5xx, enforcing_consecutive_5xx, consecutive_gateway_failure, enforcing_consecutive_gateway_failure, enforcing_success_rate, consecutive_local_origin_failure, enforcing_consecutive_local_origin_failure, enforcing_local_origin_success_rate } = found.outlier_detection!;
  assert.deepEqual([consecutive_5xx, enforcing_consecutive_5xx, consecutive_gateway_failure, enforcing_consecutive_gateway_failure, enforcing_success_rate], [0, 0, 2, 100, 0]);
  assert.deepEqual([consecutive_local_origin_failure, enforcing_consecutive_local_origin_failure, enforcing_local_origin_success_rate], [3, 100, 0]);
  assert.equal(found.common_lb_config!.healthy_panic_threshold!.value, 40);
  assert.equal(cluster(SERVICE + rule('{outlierDetection: {consecutiveErrors: 7}}')).outlier_detection!.consecutive_5xx, undefined);
});

test('loadBalancer: PASSTHROUGH goes where the client meant', () => {
  const found = cluster(SERVICE + rule('{loadBalancer: {simple: PASSTHROUGH}}'));
  assert.deepEqual([type(found), found.lb_policy, found.eds_cluster_config], [Cluster_DiscoveryType.ORIGINAL_DST, Cluster_LbPolicy.CLUSTER_PROVIDED, undefined]);
});

test('tls SIMPLE: the server is checked against the given CA, or the system own, and its names against the request', () => {
  const given = cluster(SERVICE + rule('{tls: {mode: SIMPLE, caCertificates: /etc/ca.pem}}'));
  const validation = tls(given).common_tls_context!.validation_context_type!;
  assert.equal(validation.$case, 'combined_validation_context');
  assert.match(JSON.stringify(validation.value, (_key, value: unknown) => (typeof value === 'bigint' ? String(value) : value)), /file-root:\/etc\/ca\.pem/);
  const { auto_sni, auto_san_validation } = http(given).upstream_http_protocol_options!;
  assert.deepEqual([tls(given).sni, auto_sni, auto_san_validation], ['', true, true]);
  const named = cluster(SERVICE + rule('{tls: {mode: SIMPLE, sni: a.example, subjectAltNames: [b.example]}}'));
  assert.deepEqual([tls(named).sni, named.typed_extension_protocol_options[HTTP_PROTOCOL_OPTIONS]], ['a.example', undefined]);
  assert.match(JSON.stringify(tls(named), (_key, value: unknown) => (typeof value === 'bigint' ? String(value) : value)), /b\.example.*file-root:system/);
  const unchecked = tls(cluster(SERVICE + rule('{tls: {mode: SIMPLE, insecureSkipVerify: true}}'))).common_tls_context!.validation_context_type!;
  assert.equal(unchecked.$case, 'validation_context');
});

test('tls MUTUAL: certificates by path from the proxy own server, by credentialName from the control plane', () => {
  const secrets = (policy: string): string[] => tls(cluster(SERVICE + rule(`{tls: ${policy}}`))).common_tls_context!.tls_certificate_sds_secret_configs.map(({ name, sds_config }) => `${name} ${sds_config!.config_source_specifier!.$case}`);
  assert.deepEqual(secrets('{mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem}'), ['file-cert:/c.pem~/k.pem api_config_source']);
  assert.deepEqual(secrets('{mode: MUTUAL, credentialName: client}'), ['kubernetes://client ads']);
});

test('proxyProtocol wraps whatever the transport is', () => {
  const wrapped = cluster(SERVICE + rule('{proxyProtocol: {version: V2}}')).transport_socket_matches.map(({ transport_socket }) => unpack(ProxyProtocolUpstreamTransport, transport_socket!.config_type!.value)!);
  assert.deepEqual(wrapped.map(({ config, transport_socket }) => [config!.version, transport_socket!.name]), [[1, 'envoy.transport_sockets.tls'], [1, 'envoy.transport_sockets.raw_buffer']]);
});

test('ServiceEntry: resolution decides the type of the cluster; names are looked up for the families that the client has', () => {
  const of = (resolution: string, more = ''): string => entry(`{hosts: [ext.example], resolution: ${resolution}, ports: [{number: 80, name: http, protocol: HTTP}]${more}}`);
  const name = 'outbound|80||ext.example';
  assert.deepEqual(
    [cluster(of('DNS'), name), cluster(of('DNS_ROUND_ROBIN'), name), cluster(of('NONE'), name), cluster(of('STATIC', ', endpoints: [{address: 10.1.0.1}]'), name)].map(type),
    [Cluster_DiscoveryType.STRICT_DNS, Cluster_DiscoveryType.LOGICAL_DNS, Cluster_DiscoveryType.ORIGINAL_DST, Cluster_DiscoveryType.EDS],
  );
  assert.deepEqual([cluster(of('DNS'), name).dns_lookup_family, cluster(of('DNS'), name, { ip: 'fd00::9' }).dns_lookup_family], [Cluster_DnsLookupFamily.V4_ONLY, Cluster_DnsLookupFamily.V6_ONLY]);
  // Outside of the mesh: plaintext; inside: what each endpoint takes.
  const sockets = (location: string): string[] => cluster(of('DNS', `, location: ${location}`), name).transport_socket_matches.map((match) => match.name);
  assert.deepEqual([sockets('MESH_EXTERNAL'), sockets('MESH_INTERNAL')], [['tlsMode-disabled'], ['tlsMode-istio', 'tlsMode-disabled']]);
});

test('ServiceEntry: a cluster that has nothing to look up is left out, one that takes one name has one', () => {
  const of = (more: string, name = 'ext'): string => entry(`{hosts: [ext.example], resolution: DNS_ROUND_ROBIN, ports: [{number: 80, name: http, protocol: HTTP}]${more}}`).replace('name: ext,', `name: ${name},`);
  const names = (yaml: string): string[] => testMesh(yaml).generators.get(TYPE.cluster)!.all(testProxy('10.0.0.9', 'client.shop')).map(({ name }) => name).filter((name) => name.startsWith('outbound|'));
  assert.deepEqual(names(of(', workloadSelector: {labels: {app: none}}')), []);
  const both = cluster(of(', endpoints: [{address: a.example}]', 'a') + of(', endpoints: [{address: b.example}]', 'b'), 'outbound|80||ext.example');
  assert.deepEqual(both.load_assignment!.endpoints.map(({ lb_endpoints }) => lb_endpoints.length), [1]);
});

test('ServiceEntry: an endpoint by name has its port, weight and locality; the names of the certificate are those of the entry', () => {
  const socket = cluster(entry('{hosts: [ext.example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: b.example, locality: r1/z1, weight: 4, ports: {http: 8080}}], subjectAltNames: [san.example]}') + rule('{tls: {mode: SIMPLE}}', 'ext.example'), 'outbound|80||ext.example');
  const [group] = socket.load_assignment!.endpoints;
  assert.deepEqual([group!.locality!.zone, group!.load_balancing_weight, group!.lb_endpoints[0]!.load_balancing_weight], ['z1', 4, 4]);
  assert.match(JSON.stringify(tls(socket), (_key, value: unknown) => (typeof value === 'bigint' ? String(value) : value)), /san\.example/);
});
