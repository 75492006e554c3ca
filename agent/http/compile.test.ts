import assert from 'node:assert/strict';
import { describe, it, type TestContext } from 'node:test';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import '../../proto/generated/envoy/extensions/filters/http/fault/v3/fault.js';
import '../../proto/generated/envoy/extensions/filters/http/lua/v3/lua.js';
import '../../proto/generated/envoy/extensions/access_loggers/file/v3/file.js';
import '../../proto/generated/envoy/extensions/upstreams/http/v3/http_protocol_options.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { pack } from '../../common/xds/any.js';
import { httpListener, sniffedListener, tcpListener } from '../testing/resources.js';
import { Recording } from '../testing/recording.js';
import { compileTable, type CompileInput, type LocalPod } from './compile.js';
import { CALLER, compiled, found, HEADERS, names, OTEL, recorded, ZIPKIN } from './compile-testing.js';
import { classOfRequest, type HttpRequest } from './interpret.js';
import { HTTP_RULES_EACH } from './limits.js';
import { ENVOY, type HttpTable } from './table.js';

const CANARY = 'canary.canary.svc.cluster.local';
const AT_80 = { address: '10.96.62.1', port: 80 };

function get(host: string, target = '/', headers: HttpRequest['headers'] = [], method = 'GET'): HttpRequest {
  return { method, target, host, headers };
}

/** Clusters that a request may be drawn to, with their weights; `envoy`. */
function drawn(table: HttpTable, request: HttpRequest, at = AT_80): Record<string, number> | 'envoy' {
  const index = classOfRequest(table, at, request);
  if (index === ENVOY) return 'envoy';
  let before = 0;
  return Object.fromEntries(table.classes[index]!.splits.map(({ until, cluster }) => {
    const weight = until - before;
    before = until;
    return [table.clusters[cluster]!.name, weight];
  }));
}

describe('tables of what istiod was recorded to send', () => {
  const needs = (context: TestContext, scenario: string): boolean => Recording.open(scenario) !== undefined || (context.skip(`no recording ${scenario}`), false);

  it('a service without rules: every name of it, with and without the port, and no other', () => {
    const table = compiled(recorded('canary', 0));
    const to = { [`outbound|80||${CANARY}`]: 1 };
    for (const host of [CANARY, `${CANARY}:80`, 'canary', 'Canary.canary:80', '10.96.62.1']) assert.deepEqual(drawn(table, get(host)), to, host);
    for (const host of ['elsewhere', `${CANARY}:81`, '*']) assert.equal(drawn(table, get(host)), 'envoy', host);
    assert.equal(classOfRequest(table, { address: '10.96.62.1', port: 81 }, get(CANARY)), ENVOY);
  });

  it('a header match and weights, in the order of the routes', () => {
    const matched = compiled(recorded('canary', 2));
    const plain = drawn(matched, get(CANARY));
    assert.notEqual(plain, 'envoy');
    assert.equal(matched.classes.length, 2);
    const [first] = matched.virtualHosts.flatMap(({ rules }) => rules.map(({ headers }) => headers)).filter(({ length }) => length > 0);
    const { name, value } = first![0]!;
    assert.notDeepEqual(drawn(matched, get(CANARY, '/', [[name, value]])), plain);
    assert.deepEqual(drawn(matched, get(CANARY, '/', [[name, `${value}x`]])), plain);
    assert.equal(drawn(matched, get(CANARY, '/', [[name, value], [name, value]])), 'envoy');

    const weighted = compiled(recorded('canary', 3));
    const shares = drawn(weighted, get(CANARY)) as Record<string, number>;
    assert.deepEqual(Object.values(shares), [75, 25]);
    const [{ splits }] = weighted.classes as [HttpTable['classes'][number]];
    assert.deepEqual(splits.map(({ text }) => text), [`${'x-up-w: 0'.padEnd(30)}\r\n`, `${'x-up-w: 75'.padEnd(30)}\r\n`]);
  });

  it('names each route as Envoy is to be taught it, and none that is Envoy\'s', () => {
    const table = compiled(recorded('canary', 2));
    assert.equal(table.classOf('80', `${CANARY}:80`, 0), '0000000000000001');
    assert.equal(table.classOf('80', `${CANARY}:80`, 1), '0000000100000002');
    assert.equal(table.classOf('80', 'allow_any', 0), undefined);
    assert.match(found(table, 'allow_any')[0]!.reason!, /not a list of addresses/);
  });

  it('endpoints: all that are healthy are drawn, those that can be taught of are marked, and without any of them it is Envoy\'s', () => {
    const state = recorded('canary', 0);
    const all = compiled(state).clusters[0]!.endpoints;
    assert.ok(all.length >= 2);
    const [one] = all as [(typeof all)[number]];
    const some = compiled(state, { local: new Map([[one.address, {}]]), teachable: new Set(all.map(({ address, port }) => `${address}:${port}`)) });
    assert.deepEqual(some.clusters[0]!.endpoints.map(({ teachable, policy }) => [teachable, policy]), all.map(({ address }) => (address === one.address ? [true, 'open'] : [false, 'envoy'])));
    const none = compiled(state, { local: new Map() });
    assert.deepEqual([none.classes, none.ports, none.clusters], [[], [], []]);
    assert.match(found(none, `${CANARY}:80 #0`)[0]!.reason!, /on this node/);
  });

  it('says of each setting why it is Envoy\'s', (context) => {
    if (!needs(context, 'timeout-retry-fault') || !needs(context, 'lb-policies')) return;
    const reasons = (scenario: string, step: number, part: string): (string | undefined)[] => found(compiled(recorded(scenario, step)), part).map(({ reason }) => reason);
    const ratings = 'ratings.canary';
    assert.deepEqual(reasons('timeout-retry-fault', 1, ratings), ['it has a timeout']);
    assert.deepEqual(reasons('timeout-retry-fault', 2, ratings), ['it has a timeout', undefined]);
    assert.deepEqual(reasons('timeout-retry-fault', 3, ratings), ["its retries are not Istio's default", 'the filter envoy.filters.http.fault has settings for it']);
    assert.deepEqual(reasons('lb-policies', 1, 'api.lbs'), ['its endpoint is chosen by a hash']);
    assert.match(reasons('lb-policies', 4, 'api.lbs')[0]!, /start slowly/);
    assert.deepEqual(reasons('lb-policies', 6, 'api.lbs'), [undefined]);
  });

  it('outlier detection with failover between regions: the kernel\'s, until one of the first priority is out', (context) => {
    if (!needs(context, 'lb-policies')) return;
    const cluster = compiled(recorded('lb-policies', 5)).clusters.find(({ name }) => name.includes('api.lbs'))!;
    const { consecutive5xx, intervalMs, baseEjectionMs, maxEjectionPercent, hosts, spare, panic } = cluster.outlierDetection!;
    assert.deepEqual([consecutive5xx, intervalMs, baseEjectionMs, maxEjectionPercent, hosts, spare, panic, cluster.endpoints.length], [3, 10_000, 30_000, 10, 3, 0, Infinity, 2]);
  });

  it('shares of localities are in the draw', (context) => {
    if (!needs(context, 'lb-policies')) return;
    const state = recorded('lb-policies', 6);
    const { endpoints } = compiled(state).clusters[0]!;
    const [assignment] = [...state.endpoints.values()].map(({ message }) => message).filter(({ cluster_name }) => cluster_name.includes('api.lbs'));
    const shares = assignment!.endpoints.filter(({ priority }) => priority === 0).map(({ load_balancing_weight: weight = 0, lb_endpoints }) => ({ weight, addresses: lb_endpoints.length }));
    const total = shares.reduce((sum, { weight }) => sum + weight, 0);
    const sum = endpoints.reduce((all, { weight }) => all + weight, 0);
    assert.ok(total > 0 && endpoints.length > 0);
    assert.deepEqual(endpoints.map(({ weight }) => (weight / sum).toFixed(6)), shares.flatMap(({ weight, addresses }) => Array.from({ length: addresses }, () => (weight / total / addresses).toFixed(6))));
  });
});

/** A world of one service, `web` at 10.96.0.1:80. */
interface World {
  host: Record<string, unknown>;
  route: Record<string, unknown>;
  action: Record<string, unknown>;
  table: Record<string, unknown>;
  cluster: Record<string, unknown>;
  endpoints: unknown[];
  listeners: Listener[];
  input: Partial<CompileInput>;
}

const endpoint = (address: string, more: object = {}): unknown => ({ endpoint: { address: { socket_address: { address, port_value: 8080 } } }, ...more });

function worldTable(change: (world: World) => void = () => {}): HttpTable {
  const world: World = {
    host: {}, route: { match: { prefix: '/' } }, action: { cluster: 'web', timeout: {} }, table: {}, cluster: {}, endpoints: [{ lb_endpoints: [endpoint('10.244.0.5'), endpoint('10.244.0.6')] }],
    listeners: [Listener.decode(httpListener(80).value)], input: {},
  };
  change(world);
  const routes = RouteConfiguration.fromJSON({ name: '80', virtual_hosts: [{ name: 'web:80', domains: ['web', 'web:80'], routes: [{ ...world.route, route: world.route['route'] === null ? undefined : world.action }], ...world.host }], ...world.table });
  const cluster = Cluster.fromJSON({ name: 'web', type: 'EDS', lb_policy: 'LEAST_REQUEST', ...world.cluster });
  const assignment = ClusterLoadAssignment.fromJSON({ cluster_name: 'web', endpoints: world.endpoints });
  const local = new Map(['10.244.0.5', '10.244.0.6'].map((address): [string, LocalPod] => [address, {}]));
  return compileTable({
    listeners: world.listeners.map((message) => ({ any: pack(Listener, message), message })), routes: new Map([['80', routes]]), clusters: new Map([['web', { cluster, assignment }]]), caller: CALLER, headers: HEADERS, takeName: names(), local,
    teachable: new Set(['10.244.0.5:8080', '10.244.0.6:8080']), ...world.input,
  });
}

const fault = { '@type': 'type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault', delay: { fixed_delay: { seconds: '1' }, percentage: { numerator: 100 } } };
const http2 = { '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions', explicit_http_config: { http2_protocol_options: {} } };
const someRequests = { '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions', common_http_protocol_options: { max_requests_per_connection: 5 } };
const header = { header: { key: 'x-a', value: 'b' } };

/** By what is added: part of the reason. */
const ENVOYS: Record<string, [change: (world: World) => void, reason: RegExp]> = {
  'a mirror': [({ action }) => (action['request_mirror_policies'] = [{ cluster: 'web' }]), /mirrored/],
  'a mirror of a host': [({ host }) => (host['request_mirror_policies'] = [{ cluster: 'web' }]), /mirrored/],
  'a mirror of the table': [({ table }) => (table['request_mirror_policies'] = [{ cluster: 'web' }]), /mirrored/],
  'a fault': [({ route }) => (route['typed_per_filter_config'] = { 'envoy.filters.http.fault': fault }), /fault/],
  'a fault of a host': [({ host }) => (host['typed_per_filter_config'] = { 'envoy.filters.http.fault': fault }), /fault/],
  'a fault of the table': [({ table }) => (table['typed_per_filter_config'] = { 'envoy.filters.http.fault': fault }), /fault/],
  'a rewrite of the path': [({ action }) => (action['prefix_rewrite'] = '/b'), /rewrites/],
  'a rewrite of the host': [({ action }) => (action['host_rewrite_literal'] = 'b'), /rewrites/],
  'a redirect': [({ route }) => Object.assign(route, { route: null, redirect: { path_redirect: '/' } }), /redirects/],
  'a direct response': [({ route }) => Object.assign(route, { route: null, direct_response: { status: 200 } }), /answers by itself/],
  'a header added': [({ route }) => (route['request_headers_to_add'] = [header]), /headers of requests/],
  'a header removed by the host': [({ host }) => (host['request_headers_to_remove'] = ['x-a']), /headers of requests/],
  "an answer's header removed by the table": [({ table }) => (table['response_headers_to_remove'] = ['x-a']), /headers of answers/],
  'a header added by a destination': [({ action }) => Object.assign(action, { cluster: undefined, weighted_clusters: { clusters: [{ name: 'web', weight: 1, response_headers_to_add: [header] }] } }), /headers of answers/],
  'a timeout': [({ action }) => (action['timeout'] = { seconds: '3' }), /timeout/],
  "Envoy's own timeout": [({ action }) => delete action['timeout'], /timeout/],
  'retries by a header': [({ action }) => (action['retry_policy'] = { retry_on: '5xx' }), /retries/],
  'a hash policy': [({ action }) => (action['hash_policy'] = [{ connection_properties: { source_ip: true } }]), /hash/],
  'a rate limit': [({ action }) => (action['rate_limits'] = [{ actions: [{ remote_address: {} }] }]), /rate/],
  'CORS': [({ host }) => (host['cors'] = { allow_methods: 'GET' }), /CORS/],
  'a subset': [({ action }) => (action['metadata_match'] = { filter_metadata: { 'envoy.lb': { version: 'v1' } } }), /subset/],
  'a cluster by header': [({ action }) => Object.assign(action, { cluster: undefined, cluster_header: 'x-to' }), /header names its cluster/],
  'nine destinations': [({ action }) => Object.assign(action, { cluster: undefined, weighted_clusters: { clusters: Array.from({ length: 9 }, () => ({ name: 'web', weight: 1 })) } }), /more than 8 destinations/],
  'no such cluster': [({ action }) => (action['cluster'] = 'gone'), /no such cluster/],
  'TLS required': [({ host }) => (host['require_tls'] = 'ALL'), /TLS/],
  'limits': [({ cluster }) => (cluster['circuit_breakers'] = { thresholds: [{ max_requests: 3 }] }), /limited/],
  'outlier detection by the rate of success': [({ cluster }) => (cluster['outlier_detection'] = { consecutive_5xx: 3 }), /ejected/],
  'health checks': [({ cluster }) => (cluster['health_checks'] = [{ timeout: { seconds: '1' }, interval: { seconds: '1' }, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {} }]), /checked/],
  'consistent hashing': [({ cluster }) => (cluster['lb_policy'] = 'MAGLEV'), /more than load and chance/],
  'a slow start': [({ cluster }) => (cluster['least_request_lb_config'] = { slow_start_config: { slow_start_window: { seconds: '10' } } }), /start slowly/],
  'TLS originated': [({ cluster }) => (cluster['transport_socket'] = { name: 'envoy.transport_sockets.tls' }), /TLS/],
  'HTTP/2': [({ cluster }) => (cluster['typed_extension_protocol_options'] = { 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': http2 }), /HTTP\/2/],
  'connections that end': [({ cluster }) => (cluster['typed_extension_protocol_options'] = { 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': someRequests }), /end after some requests/],
  'endpoints by DNS': [({ cluster }) => (cluster['type'] = 'STRICT_DNS'), /not a list of addresses/],
  'subsets in Envoy': [({ cluster }) => (cluster['lb_subset_config'] = { subset_selectors: [{ keys: ['v'] }] }), /subsets/],
  'endpoints that stand in for others': [({ endpoints }) => endpoints.splice(0, 1, { lb_endpoints: [endpoint('10.244.0.5'), endpoint('10.244.0.6', { health_status: 'UNHEALTHY' })] }, { priority: 1, lb_endpoints: [endpoint('10.244.0.7')] }), /stand in/],
  'panic': [({ endpoints }) => endpoints.splice(0, 1, { lb_endpoints: [endpoint('10.244.0.5'), endpoint('10.244.0.6', { health_status: 'UNHEALTHY' }), endpoint('10.244.0.7', { health_status: 'DRAINING' })] }), /all are used/],
  'dropped requests': [({ input }) => (input.clusters = new Map([['web', { cluster: Cluster.fromJSON({ name: 'web', type: 'EDS', lb_policy: 'RANDOM' }), assignment: ClusterLoadAssignment.fromJSON({ cluster_name: 'web', endpoints: [{ lb_endpoints: [endpoint('10.244.0.5')] }], policy: { drop_overloads: [{ category: 'a', drop_percentage: { numerator: 1 } }] } }) }]])), /dropped/],
  'a reason given': [({ input }) => (input.clusters = new Map([['web', { cluster: Cluster.fromJSON({ name: 'web', type: 'EDS' }), assignment: undefined, reason: 'it has a waypoint' }]])), /waypoint/],
  'no room for classes': [({ input }) => (input.takeName = names(0)), /no room/],
};

describe('what is Envoy\'s', () => {
  it('the world that the cases change is the kernel\'s', () => {
    const table = worldTable();
    assert.deepEqual(drawn(table, get('web')), { web: 1 });
    assert.deepEqual(table.findings, [{ kind: 'route', name: '80 web:80 #0', class: '0000000000000001' }]);
  });

  for (const [what, [change, reason]] of Object.entries(ENVOYS)) {
    it(`${what}, with a reason`, () => {
      const table = worldTable(change);
      assert.equal(drawn(table, get('web')), 'envoy');
      assert.deepEqual([table.classes, table.ports, table.clusters], [[], [], []]);
      assert.match(table.findings.map(({ reason: each }) => each).join(), reason);
    });
  }

  const listenerCases: Record<string, [listener: () => Listener, reason: RegExp]> = {
    'access logging': [() => withManager({ access_log: [{ name: 'file', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog', path: '/dev/stdout' } }] }), /logged/],
    'tracing': [() => withManager({ tracing: { provider: { name: 'zipkin' } } }), /traced/],
    'a filter of one\'s own': [() => withManager({ httpFilters: [{ name: 'lua', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua' } }] }), /filter lua/],
    'a port that is stripped of hosts': [() => withManager({ strip_any_host_port: true }), /settings/],
    'a protocol that is not declared': [() => Listener.decode(sniffedListener('0.0.0.0', 80, 'web').value), /not declared/],
  };
  for (const [what, [listener, reason]] of Object.entries(listenerCases)) {
    it(`${what}: the whole port`, () => {
      const table = worldTable(({ listeners }) => listeners.splice(0, 1, listener()));
      assert.equal(drawn(table, get('web')), 'envoy');
      assert.match(found(table, '*:80')[0]!.reason!, reason);
    });
  }
});

function withManager(change: object, port = 80): Listener {
  const listener = Listener.decode(httpListener(port).value);
  const [filter] = listener.filter_chains[0]!.filters;
  const { value } = filter!.config_type as { value: Any };
  const manager = HttpConnectionManager.toJSON(HttpConnectionManager.decode(value.value)) as object;
  filter!.config_type = { $case: 'typed_config', value: pack(HttpConnectionManager, HttpConnectionManager.fromJSON({ ...manager, ...change })) };
  return listener;
}

describe('tracing', () => {
  const traced = (value: number, provider: object = ZIPKIN, port = 80): Listener => withManager({ tracing: { provider, random_sampling: { value } } }, port);
  const tableOf = (listeners: Listener[], change: (world: World) => void = () => {}): HttpTable => worldTable((world) => {
    world.listeners = listeners;
    change(world);
  });

  it('a share of a class\'s requests is Envoy\'s to trace, which explain says; a route of its own may say another', () => {
    const table = tableOf([traced(1)]);
    assert.deepEqual([table.isTraced, table.classes.map(({ trace }) => trace), table.findings], [true, [{ kind: 'b3', sampled: 0.01 }], [{ kind: 'route', name: '80 web:80 #0', class: '0000000000000001', sampled: 0.01 }]]);
    assert.deepEqual(tableOf([traced(1, OTEL)], ({ route }) => (route['tracing'] = { random_sampling: { numerator: 20 } })).classes.map(({ trace }) => trace), [{ kind: 'w3c', sampled: 0.2 }]);
  });

  it('without a provider there is no trace, whatever a route says', () => {
    const table = worldTable(({ route }) => (route['tracing'] = { random_sampling: { numerator: 20 } }));
    assert.deepEqual([table.isTraced, table.classes.map(({ trace }) => trace)], [undefined, [undefined]]);
  });

  it('a route all of whose requests are traced is Envoy\'s', () => {
    const table = tableOf([traced(100)]);
    assert.equal(drawn(table, get('web')), 'envoy');
    assert.match(found(table, '80 web:80')[0]!.reason!, /all of its requests are traced/);
  });

  it('a port that is traced in another way than the first is Envoy\'s', () => {
    for (const other of [traced(2, ZIPKIN, 81), traced(1, OTEL, 81), Listener.decode(httpListener(81).value)]) {
      const table = tableOf([traced(1), other]);
      assert.deepEqual(drawn(table, get('web')), { web: 1 });
      assert.match(found(table, '*:81')[0]!.reason!, /traced in another way/);
    }
  });

  it('an endpoint whose inbound side is traced, and the client\'s is not, is Envoy\'s', () => {
    const inbound = [FilterChain.fromPartial({ filters: traced(1).filter_chains[0]!.filters })];
    const local = new Map(['10.244.0.5', '10.244.0.6'].map((address): [string, LocalPod] => [address, { inbound, listener: 'in' }]));
    assert.match(worldTable(({ input }) => (input.local = local)).findings.map(({ reason }) => reason).join(), /requests are traced, and here not/);
  });
});

describe('addresses and hosts', () => {
  it('a listener of one address keeps that address from the port\'s routes', () => {
    const table = worldTable(({ listeners }) => listeners.push(Listener.decode(tcpListener('10.96.0.7', 80, 'tcp').value)));
    assert.deepEqual(drawn(table, get('web'), { address: '10.96.0.1', port: 80 }), { web: 1 });
    assert.equal(drawn(table, get('web'), { address: '10.96.0.7', port: 80 }), 'envoy');
  });

  it('no route applies to what is opened to a pod behind its inbound listener', () => {
    const table = worldTable(({ input }) => (input.local = new Map([['10.244.0.5', { listener: 'pod/a/inbound-mesh/1' }], ['10.244.0.6', {}]])));
    assert.equal(drawn(table, get('web'), { address: '10.244.0.5', port: 80 }), 'envoy');
    assert.deepEqual(drawn(table, get('web'), { address: '10.244.0.6', port: 80 }), { web: 1 });
    assert.deepEqual(table.clusters[0]!.endpoints.map(({ text }) => text.trim()), ['x-up-e: envoy_internal://pod/a/inbound-mesh/1/10.244.0.5:8080', 'x-up-e: 10.244.0.6:8080']);
  });

  const hosts = (domains: string[][], more: object = {}) => (world: World): void => {
    world.table = { virtual_hosts: domains.map((each, at) => ({ name: `${at}`, domains: each, routes: [{ match: { prefix: '/' }, route: { cluster: 'web', timeout: {} } }] })), ...more };
  };

  it('`*` is any other host, unless names are matched by a part or without their port', () => {
    const plain = worldTable(hosts([['web'], ['*']]));
    assert.deepEqual([drawn(plain, get('web')), drawn(plain, get('other'))], [{ web: 1 }, { web: 1 }]);
    assert.notEqual(classOfRequest(plain, AT_80, get('web')), classOfRequest(plain, AT_80, get('other')));
    for (const table of [worldTable(hosts([['web'], ['*.web'], ['*']])), worldTable(hosts([['web'], ['*']], { ignore_port_in_host_matching: true }))]) {
      assert.deepEqual([drawn(table, get('web')), drawn(table, get('other')), drawn(table, get('a.web')), drawn(table, get('web:81'))], [{ web: 1 }, 'envoy', 'envoy', 'envoy']);
    }
  });

  it('a host that is Envoy\'s is not taken for any other', () => {
    const table = worldTable((world) => {
      hosts([['web'], ['*']])(world);
      (world.table['virtual_hosts'] as { cors?: object }[])[0]!.cors = { allow_methods: 'GET' };
    });
    assert.deepEqual([drawn(table, get('web')), drawn(table, get('other'))], ['envoy', { web: 1 }]);
  });

  it('capital letters of domains count as small ones, and domains of more than 64 bytes are Envoy\'s', () => {
    const long = `${'a'.repeat(60)}.long`;
    const table = worldTable(hosts([['WEB', long]]));
    assert.deepEqual([drawn(table, get('web')), drawn(table, get(long))], [{ web: 1 }, 'envoy']);
    assert.match(found(table, long)[0]!.reason!, /64 bytes/);
  });
});

describe('routes', () => {
  const routed = (matches: object[], more: object = {}): HttpTable => worldTable(({ host }) => {
    host['routes'] = [...matches.map((match) => ({ match, route: { cluster: 'web', timeout: {} } })), { match: { prefix: '/' }, route: { cluster: 'web', timeout: {} } }];
    Object.assign(host, more);
  });
  /** Which of the routes has the request: by index, -1: Envoy. */
  const at = (table: HttpTable, request: HttpRequest): number => classOfRequest(table, AT_80, request);

  const exact: Record<string, [match: object, yes: HttpRequest[], no: HttpRequest[]]> = {
    'a path': [{ path: '/a' }, [get('web', '/a'), get('web', '/a?b')], [get('web', '/a/'), get('web', '/'), get('web', '/A')]],
    'a prefix': [{ prefix: '/a' }, [get('web', '/a'), get('web', '/ab?c')], [get('web', '/b'), get('web', '/?/a')]],
    'a prefix of whole segments': [{ path_separated_prefix: '/a' }, [get('web', '/a'), get('web', '/a/b'), get('web', '/a?b')], [get('web', '/ab'), get('web', '/')]],
    'a method': [{ prefix: '/', headers: [{ name: ':method', string_match: { exact: 'PUT' } }] }, [get('web', '/', [], 'PUT')], [get('web'), get('web', '/', [], 'PATCH')]],
    'any method but one': [{ prefix: '/', headers: [{ name: ':method', string_match: { exact: 'PUT' }, invert_match: true }] }, [get('web')], [get('web', '/', [], 'PUT')]],
    'a header': [{ prefix: '/', headers: [{ name: 'X-A', string_match: { exact: 'b' } }] }, [get('web', '/', [['x-a', 'b']])], [get('web'), get('web', '/', [['x-a', 'bc']]), get('web', '/', [['x-ab', 'b']])]],
    "a header's beginning": [{ prefix: '/', headers: [{ name: 'x-a', string_match: { prefix: 'b' } }] }, [get('web', '/', [['x-a', 'bc']])], [get('web'), get('web', '/', [['x-a', 'cb']])]],
    "a header's presence": [{ prefix: '/', headers: [{ name: 'x-a', present_match: true }] }, [get('web', '/', [['x-a', '']])], [get('web')]],
    "a header's absence": [{ prefix: '/', headers: [{ name: 'x-a', present_match: true, invert_match: true }] }, [get('web')], [get('web', '/', [['x-a', 'b']])]],
    'another value, present': [{ prefix: '/', headers: [{ name: 'x-a', string_match: { exact: 'b' }, invert_match: true }] }, [get('web', '/', [['x-a', 'c']])], [get('web'), get('web', '/', [['x-a', 'b']])]],
    'another value, or absent': [{ prefix: '/', headers: [{ name: 'x-a', string_match: { exact: 'b' }, invert_match: true, treat_missing_header_as_empty: true }] }, [get('web'), get('web', '/', [['x-a', 'c']])], [get('web', '/', [['x-a', 'b']])]],
  };
  for (const [what, [match, yes, no]] of Object.entries(exact)) {
    it(`${what}: the kernel tells`, () => {
      const table = routed([match]);
      assert.equal(table.classes.length, 2);
      assert.deepEqual(yes.map((request) => at(table, request)), yes.map(() => 0));
      assert.deepEqual(no.map((request) => at(table, request)), no.map(() => 1));
    });
  }

  const inexact: Record<string, [match: object, reason: RegExp]> = {
    'a regular expression': [{ safe_regex: { regex: '/a.*' } }, /regular expression/],
    'a path whatever its letters': [{ path: '/a', case_sensitive: false }, /capital letters/],
    'query parameters': [{ prefix: '/a', query_parameters: [{ name: 'q', present_match: true }] }, /query/],
    'gRPC': [{ prefix: '/a', grpc: {} }, /gRPC/],
    'a part of the requests': [{ prefix: '/a', runtime_fraction: { default_value: { numerator: 1 } } }, /part of the requests/],
    "the client's certificate": [{ prefix: '/a', tls_context: { presented: true } }, /certificate/],
    'metadata': [{ prefix: '/a', dynamic_metadata: [{ filter: 'a', path: [{ key: 'b' }], value: { present_match: true } }] }, /metadata/],
    "the host's letters": [{ prefix: '/a', headers: [{ name: ':authority', string_match: { exact: 'web' } }] }, /capital letters of the host/],
    'a long path': [{ path: `/${'a'.repeat(64)}` }, /more than 64 bytes/],
    'a long value': [{ prefix: '/a', headers: [{ name: 'x-a', string_match: { exact: 'b'.repeat(41) } }] }, /more than 40 bytes/],
    "a header of Envoy's": [{ prefix: '/a', headers: [{ name: 'x-forwarded-proto', string_match: { exact: 'https' } }] }, /Envoy's own/],
    'an empty value': [{ prefix: '/a', headers: [{ name: 'x-a', string_match: { exact: '' } }] }, /empty/],
    'a suffix': [{ prefix: '/a', headers: [{ name: 'x-a', string_match: { suffix: 'b' } }] }, /suffix/],
    'four headers': [{ prefix: '/a', headers: ['a', 'b', 'c', 'd'].map((name) => ({ name, present_match: true })) }, /more than 3 headers/],
  };
  for (const [what, [match, reason]] of Object.entries(inexact)) {
    it(`${what}: Envoy's, with all that might be meant`, () => {
      const table = routed([match]);
      assert.equal(at(table, get('web', '/a', ['a', 'b', 'c', 'd', 'x-a'].map((name) => [name, 'b'] as const))), ENVOY);
      assert.match(found(table, 'web:80 #0')[0]!.reason!, reason);
      assert.equal(table.classOf('80', 'web:80', 0), undefined);
    });
  }

  it('what an inexact route can\'t be meant for goes on to the next', () => {
    const table = routed([{ prefix: '/a', grpc: {} }, { path: '/a' }]);
    assert.equal(at(table, get('web', '/a')), ENVOY);
    assert.deepEqual(drawn(table, get('web', '/b')), { web: 1 });
  });

  it('beyond 64 rules it is Envoy\'s', () => {
    const table = routed(Array.from({ length: 70 }, (_, n) => ({ path: `/${n}` })));
    assert.ok(table.virtualHosts[0]!.rules.length <= HTTP_RULES_EACH);
    assert.notEqual(at(table, get('web', '/10')), ENVOY);
    for (const path of ['/69', '/other']) assert.equal(at(table, get('web', path)), ENVOY);
    assert.match(found(table, '#69')[0]!.reason!, /more than 64 rules/);
  });
});

it('the line of a draw has another name where nothing is to be learnt', () => {
  const lines = (headers: typeof HEADERS & { other?: string }): string[] => worldTable((world) => Object.assign(world.input, { headers, teachable: new Set(['10.244.0.5:8080']) })).clusters[0]!.endpoints.map(({ text }) => text.replace(/\s+/g, ' ').trim());
  assert.deepEqual(lines({ ...HEADERS, other: 'x-up-o' }), ['x-up-e: 10.244.0.5:8080', 'x-up-o: 10.244.0.6:8080']);
  assert.deepEqual(lines(HEADERS), ['x-up-e: 10.244.0.5:8080', 'x-up-e: 10.244.0.6:8080']);
});
