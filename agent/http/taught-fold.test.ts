// What a fold makes for pods that the kernel learns from, and that it changes nothing for others.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Cluster, Cluster_LbPolicy } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { LeastRequest } from '../../proto/generated/envoy/extensions/load_balancing_policies/least_request/v3/least_request.js';
import { OverrideHost } from '../../proto/generated/envoy/extensions/load_balancing_policies/override_host/v3/override_host.js';
import { HttpProtocolOptions } from '../../proto/generated/envoy/extensions/upstreams/http/v3/http_protocol_options.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { pack, unpack } from '../../common/xds/any.js';
import { Folder, type FoldPod, type FoldResult } from '../proxy/fold.js';
import { CDS, EDS, LDS, RDS } from '../proxy/snapshot.js';
import { Recording } from '../testing/recording.js';
import { assignment, blackHoleCluster, edsCluster, httpListener, passthroughCluster, routes, sidecarState } from '../testing/resources.js';
import { stockExtensions } from '../testing/stock-envoy.js';
import type { SidecarState } from '../xds/sidecar-stream.js';
import { TAUGHT_MARK, type Teaching } from './names.js';
import { canBeTaught } from './taught-clusters.js';

const WEB = 'outbound|80||web.shop.svc.cluster.local';
const MARK = [1n, 36n, BigInt(TAUGHT_MARK)];
const teaching = (version: string): Teaching => ({ versionOf: () => version, headers: { weight: 'x-w', endpoint: 'x-e', other: 'x-o' }, of: () => (table, host, index) => (table === '80' && host === 'web:80' && index === 0 ? `00000001${version.padStart(8, '0')}` : undefined) });

function state(change: Readonly<Record<string, Any>> = {}): SidecarState {
  return sidecarState({ [`cds ${WEB}`]: edsCluster(WEB), 'cds PassthroughCluster': passthroughCluster(), 'cds BlackHoleCluster': blackHoleCluster(), [`eds ${WEB}`]: assignment(WEB, ['10.0.0.5:80', '10.0.0.6:80', '10.0.9.9:80']), 'lds 0.0.0.0_80': httpListener(80), 'rds 80': routes(80, { web: WEB, other: WEB }), ...change });
}

const plain: FoldPod = { uid: 'u1', netnsPath: '/netns/u1', ipv6: false, classKey: 'c1', addresses: ['10.0.0.5'] };
const taught: FoldPod = { ...plain, uid: 'u2', netnsPath: '/netns/u2', addresses: ['10.0.1.2'], taught: { netnsCookie: 7n } };
const eventDriven = new Set(['10.0.0.5:80', '10.0.9.9:80']);

function fold(folder: Folder, pods: readonly FoldPod[], how?: Teaching, of = STATE): FoldResult {
  return folder.fold([{ key: 'c1', state: of }], pods, eventDriven, new Map(), undefined, how);
}
const STATE = state();
const all = ({ snapshot }: FoldResult): Map<string, string> => new Map([CDS, EDS, LDS, RDS].flatMap((type) => [...snapshot.entries(type)].map(([name, { version }]) => [`${type} ${name}`, version] as const)));
const decode = <T>(codec: { decode(bytes: Uint8Array): T }, result: FoldResult, type: string, name: string): T => codec.decode(result.snapshot.get(type, name)?.any.value ?? assert.fail(name));

describe('Folder: pods that the kernel learns from', () => {
  it('is the same as ever without them, or without anything to teach; and beside them for other pods', () => {
    const before = all(fold(new Folder(stockExtensions()), [plain]));
    assert.deepEqual(all(fold(new Folder(stockExtensions()), [plain], teaching('1'))), before);
    assert.deepEqual(all(fold(new Folder(stockExtensions()), [plain, { ...taught, taught: undefined }], teaching('1'))), all(fold(new Folder(stockExtensions()), [plain, taught])));
    const beside = all(fold(new Folder(stockExtensions()), [plain, taught], teaching('1')));
    for (const [name, version] of all(fold(new Folder(stockExtensions()), [plain, { ...taught, taught: undefined }]))) if (!name.includes('u2')) assert.equal(beside.get(name), version, name);
    assert.deepEqual([...beside.keys()].filter((name) => /~(taught|drawn)/.test(name)).map((name) => name.replace(/^.*\.v3\./, '')).sort(), [...['~taught', '~drawn'].flatMap((suffix) => [`Cluster ${WEB}${suffix}`, `ClusterLoadAssignment ${WEB}${suffix}`]), 'Cluster inspect/c1~taught/http', 'Cluster inspect/c1~taught/unknown', 'Listener inspect/c1~taught/http', 'Listener inspect/c1~taught/unknown', 'RouteConfiguration 80~taught~c1'].sort());
  });

  it('gives a route its class and its taught cluster, and takes the headers from the others', () => {
    const result = fold(new Folder(stockExtensions()), [plain, taught], teaching('1'));
    const table = decode(RouteConfiguration, result, RDS, '80~taught~c1');
    assert.deepEqual(table.request_headers_to_remove, ['x-underpass-workload', 'x-underpass-lesson', 'x-underpass-class']);
    assert.deepEqual(table.virtual_hosts.map(({ name, routes: all }) => [name, ...all.map(({ action, metadata, match, request_headers_to_remove: removed }) => [action?.$case === 'route' && action.value.cluster_specifier?.value, match?.headers.map((header) => header.name), metadata?.filter_metadata['underpass'], removed])]), [
      ['web:80', [`${WEB}~taught`, ['x-e'], { class: '0000000100000001' }, []], [`${WEB}~drawn`, [], undefined, []]],
      ['other:80', [WEB, [], undefined, ['x-w', 'x-s', 'x-e', 'x-o']]],
    ]);
    const drawn = decode(Cluster, result, CDS, `${WEB}~drawn`);
    assert.deepEqual([drawn.alt_stat_name, drawn.connection_pool_per_downstream_connection, drawn.upstream_bind_config?.socket_options.map(({ value }) => value?.value)], [WEB, false, [1337n]], 'connections as ever');
    assert.deepEqual(result.snapshot.get(LDS, 'pod/u2/outbound')?.needs, ['80~taught~c1']);
    const cluster = decode(Cluster, result, CDS, `${WEB}~taught`);
    assert.deepEqual([cluster.alt_stat_name, cluster.connection_pool_per_downstream_connection, cluster.eds_cluster_config?.service_name], [WEB, true, `${WEB}~taught`]);
    assert.deepEqual(cluster.upstream_bind_config?.socket_options.map(({ level, name, value }) => [level, name, value?.value]), [MARK]);
    assert.deepEqual(decode(ClusterLoadAssignment, result, EDS, `${WEB}~taught`).endpoints[0]!.lb_endpoints.map(({ metadata }) => metadata?.filter_metadata['underpass']), [{ teach: 'direct' }, undefined, undefined], 'of this node, and event-driven');
  });

  it('where the kernel draws what is traced, a route is there for each outcome of the draw, and as it is for what comes without one', () => {
    const weighted = RouteConfiguration.fromJSON({ name: '80', virtual_hosts: [{ name: 'web:80', domains: ['web'], routes: [{ match: { prefix: '/', headers: [{ name: 'x-own', present_match: true }] }, route: { weighted_clusters: { clusters: [{ name: WEB, weight: 1 }] } }, tracing: { random_sampling: { numerator: 7 }, custom_tags: [{ tag: 'a', literal: { value: 'b' } }] } }] }] });
    const result = fold(new Folder(stockExtensions()), [plain, taught], { ...teaching('1'), isTraced: (key) => key === 'c1' }, state({ 'rds 80': pack(RouteConfiguration, weighted) }));
    const [web] = decode(RouteConfiguration, result, RDS, '80~taught~c1').virtual_hosts;
    const told = web!.routes.map(({ action, match, metadata, tracing }) => {
      const specifier = action?.$case === 'route' && action.value.cluster_specifier?.$case === 'weighted_clusters' ? action.value.cluster_specifier.value : undefined;
      return [specifier?.clusters[0]?.name.replace(WEB, ''), specifier?.random_value_specifier?.value, match?.headers.map(({ name }) => name).join(), tracing?.random_sampling?.numerator, tracing?.custom_tags.length, metadata?.filter_metadata['underpass'] !== undefined];
    });
    assert.deepEqual(told, [
      ['~taught', 'x-s', 'x-own,x-e,x-s', 100, 1, true],
      ['~taught', 'x-w', 'x-own,x-e', 0, 1, true],
      ['~drawn', 'x-s', 'x-own,x-o,x-s', 100, 1, false],
      ['~drawn', 'x-w', 'x-own,x-o', 0, 1, false],
      ['~drawn', 'x-w', 'x-own', 7, 1, false],
    ]);
  });

  it('changes the table alone when there are other classes, and nothing when there are not', () => {
    const folder = new Folder(stockExtensions());
    const first = fold(folder, [plain, taught], teaching('1'));
    assert.ok([CDS, EDS, LDS, RDS].every((type) => fold(folder, [plain, taught], teaching('1')).snapshot.entries(type) === first.snapshot.entries(type)), 'the same objects');
    const [before, after] = [all(first), all(fold(folder, [plain, taught], teaching('2')))];
    assert.deepEqual([...after].filter(([name, version]) => before.get(name) !== version).map(([name]) => name), [`${RDS} 80~taught~c1`]);
    assert.ok(![...all(fold(folder, [plain, { ...taught, taught: undefined }], teaching('2'))).keys()].some((name) => /~(taught|drawn)/.test(name)));
  });

  it('leaves routes untaught that copy requests, or whose cluster can\'t be copied', () => {
    const mirrored = unpack(RouteConfiguration, routes(80, { web: WEB }))!;
    const { action } = mirrored.virtual_hosts[0]!.routes[0]!;
    if (action?.$case === 'route') action.value.request_mirror_policies.push({ cluster: WEB } as never);
    const http2 = HttpProtocolOptions.fromPartial({ upstream_protocol_options: { $case: 'explicit_http_config', value: { protocol_config: { $case: 'http2_protocol_options', value: {} } } } });
    const changed: Record<string, Any>[] = [
      { 'rds 80': pack(RouteConfiguration, mirrored) },
      { [`cds ${WEB}`]: pack(Cluster, { ...Cluster.decode(edsCluster(WEB).value), typed_extension_protocol_options: { 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': pack(HttpProtocolOptions, http2) } }) },
    ];
    for (const change of changed) {
      const result = fold(new Folder(stockExtensions()), [plain, taught], teaching('1'), state(change));
      assert.equal(result.snapshot.get(CDS, `${WEB}~taught`), undefined);
      assert.deepEqual(decode(RouteConfiguration, result, RDS, '80~taught~c1').virtual_hosts[0]!.routes[0]!.request_headers_to_remove, ['x-w', 'x-s', 'x-e', 'x-o']);
    }
  });

  it('keeps how a cluster chooses where no endpoint is drawn', () => {
    const weighed = Cluster.fromPartial({ ...Cluster.decode(edsCluster(WEB).value), lb_policy: Cluster_LbPolicy.LEAST_REQUEST, lb_config: { $case: 'least_request_lb_config', value: { choice_count: 5 } }, common_lb_config: { healthy_panic_threshold: { value: 0 }, locality_config_specifier: { $case: 'locality_weighted_lb_config', value: {} } } } as never);
    const cluster = decode(Cluster, fold(new Folder(stockExtensions()), [plain, taught], teaching('1'), state({ [`cds ${WEB}`]: pack(Cluster, weighed) })), CDS, `${WEB}~taught`);
    const policy = unpack(OverrideHost, cluster.load_balancing_policy?.policies[0]?.typed_extension_config?.typed_config)!;
    assert.deepEqual(policy.override_host_sources.map(({ header }) => header), ['x-e']);
    const least = unpack(LeastRequest, policy.fallback_policy?.policies[0]?.typed_extension_config?.typed_config)!;
    assert.deepEqual([least.choice_count, least.locality_lb_config?.locality_config_specifier?.$case, cluster.common_lb_config?.healthy_panic_threshold?.value, cluster.common_lb_config?.locality_config_specifier], [5, 'locality_weighted_lb_config', 0, undefined]);
    const hashed = decode(Cluster, fold(new Folder(stockExtensions()), [plain, taught], teaching('1'), state({ [`cds ${WEB}`]: pack(Cluster, { ...weighed, lb_policy: Cluster_LbPolicy.RING_HASH, lb_config: undefined }) })), CDS, `${WEB}~taught`);
    assert.equal(hashed.load_balancing_policy, undefined);
    assert.equal(canBeTaught(weighed), false, 'what opens connections for no caller in particular is not for callers');
  });

  it('has a pod\'s own chains, as istiod makes them, lead taught requests apart, behind the same filters', () => {
    const recording = Recording.open('authz-sidecar')!;
    const server: FoldPod = { ...plain, uid: 's', addresses: ['10.0.0.5'] };
    const classesOf = [{ key: 'c1', state: recording.state(recording.sidecars[0]!, 1) }, { key: 'c2', state: STATE }];
    const client = { ...taught, classKey: 'c2' };
    const folded = (pods: readonly FoldPod[], reached = new Map<string, string>()): FoldResult => new Folder(stockExtensions()).fold(classesOf, pods, eventDriven, reached, undefined, teaching('1'));
    const before = folded([server, { ...client, taught: undefined }]).inbound.get('s')!;
    const name = folded([server, client]).inbound.get('s')!;
    assert.notEqual(before, name, 'another listener, so that connections pooled towards the former are not used');
    const result = folded([server, client], new Map([['s', name]]));
    const managers = (listener: string): HttpConnectionManager[] => decode(Listener, result, LDS, listener).filter_chains.flatMap(({ filters }) => filters.flatMap(({ config_type }) => (config_type?.$case === 'typed_config' && unpack(HttpConnectionManager, config_type.value)) || []));
    const tables = managers(name).map((manager) => [manager.http_filters.map((filter) => filter.name), manager.route_specifier?.$case === 'route_config' ? manager.route_specifier.value : assert.fail()] as const);
    const own = tables.find(([, { virtual_hosts: hosts }]) => hosts[0]!.name === 'inbound|http|80') ?? assert.fail();
    assert.ok(own[0].includes('envoy.filters.http.rbac'), own[0].join());
    assert.equal(own[0].at(-2), 'underpass.pool', own[0].join());
    for (const { common_http_protocol_options: options } of managers(name)) assert.equal(options?.idle_timeout?.seconds, 60n);
    assert.deepEqual(own[1].virtual_hosts[0]!.routes.map(({ match, action, request_headers_to_remove: removed }) => [action?.$case === 'route' && action.value.cluster_specifier?.value, match?.headers.map((header) => header.name), match?.filter_state.map(({ key }) => key), removed]), [
      ['pod/s/inbound|80||~taught', ['x-underpass-class'], ['underpass.client'], []],
      ['pod/s/inbound|80||', [], [], ['x-underpass-class']],
    ]);
    for (const [, table] of tables) assert.ok(table.request_headers_to_remove.includes('x-underpass-lesson'));
    for (const { route_specifier: specifier } of managers('pod/s/inbound')) assert.ok(specifier?.$case === 'route_config' && ['x-underpass-lesson', 'x-underpass-class'].every((header) => specifier.value.request_headers_to_remove.includes(header)));
    const cluster = decode(Cluster, result, CDS, 'pod/s/inbound|80||~taught');
    assert.deepEqual([cluster.connection_pool_per_downstream_connection, cluster.upstream_bind_config?.source_address?.network_namespace_filepath, cluster.upstream_bind_config?.socket_options.map(({ level, name: option, value }) => [level, option, value?.value])], [false, '/netns/u1', [MARK]]);
    assert.deepEqual(decode(ClusterLoadAssignment, result, EDS, `${WEB}~taught`).endpoints[0]!.lb_endpoints.map(({ metadata }) => metadata?.filter_metadata['underpass']), [{ teach: 'inbound' }, undefined, undefined]);
  });
});
