import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseYaml } from '../../common/kube/yaml.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { TYPE } from '../generate/resource.js';
import { podYaml, serviceYaml } from '../testing/mesh.js';
import { testMesh, testProxy } from '../testing/model.js';
import { References } from '../validation/references.js';
import type { Proxy } from '../model/proxy.js';
import { client, filter, filterNames, find, managers, server, WORLD } from './testing.js';

const LOCAL_RATE_LIMIT = `
- applyTo: HTTP_FILTER
  match:
    context: SIDECAR_INBOUND
    listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}
  patch:
    operation: INSERT_BEFORE
    value:
      name: envoy.filters.http.local_ratelimit
      typed_config:
        "@type": type.googleapis.com/udpa.type.v1.TypedStruct
        type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
        value: {stat_prefix: http_local_rate_limiter, token_bucket: {max_tokens: 4, tokens_per_fill: 4, fill_interval: 60s}}
`;

const ms = (duration: { seconds: bigint; nanos: number } | undefined): number => Number(duration!.seconds) * 1_000 + duration!.nanos / 1e6;

test('HTTP_FILTER INSERT_BEFORE: the filter comes first where no sub-filter is named, on the inbound side of the selected workload alone', () => {
  const mesh = testMesh(WORLD);
  const before = filterNames(mesh, server, 'virtualInbound', 8080);
  const change = mesh.apply(filter(LOCAL_RATE_LIMIT, 'workloadSelector: {labels: {app: web}}'));
  assert.deepEqual(filterNames(mesh, server, 'virtualInbound', 8080), before.map((names) => `envoy.filters.http.local_ratelimit ${names}`));
  assert.deepEqual(filterNames(mesh, client, 'virtualInbound'), before);
  assert.equal(filterNames(mesh, server, '0.0.0.0_80').join().includes('local_ratelimit'), false);
  assert.equal(mesh.generators.get(TYPE.listener)!.affected(server, change, new Set()), 'all');
  assert.deepEqual([...mesh.generators.get(TYPE.endpoint)!.affected(server, change, new Set(['outbound|80||web.shop.svc.cluster.local']))], []);
  mesh.remove('networking.istio.io/EnvoyFilter/shop/x');
  assert.deepEqual(filterNames(mesh, server, 'virtualInbound', 8080), before);
});

test('HTTP_FILTER: before, after, first, replaced, removed and merged by the name of a sub-filter; a port keeps it to that port', () => {
  const patch = (operation: string, value = '', port = ''): string => `
- applyTo: HTTP_FILTER
  match: {context: SIDECAR_OUTBOUND, listener: {${port}filterChain: {filter: {name: envoy.http_connection_manager, subFilter: {name: envoy.filters.http.fault}}}}}
  patch: {operation: ${operation}${value}}
`;
  const lua = ', value: {name: lua, typedConfig: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua, defaultSourceCode: {inlineString: "x"}}}';
  const base = 'envoy.filters.http.grpc_stats envoy.filters.http.fault envoy.filters.http.cors envoy.filters.http.router';
  const cases: [string, string][] = [
    [patch('INSERT_BEFORE', lua), base.replace('envoy.filters.http.fault', 'lua envoy.filters.http.fault')],
    [patch('INSERT_AFTER', lua), base.replace('envoy.filters.http.fault', 'envoy.filters.http.fault lua')],
    [patch('INSERT_FIRST', lua), `lua ${base}`],
    [patch('REPLACE', lua), base.replace('envoy.filters.http.fault', 'lua')],
    [patch('REMOVE'), base.replace('envoy.filters.http.fault ', '')],
    [patch('INSERT_FIRST', lua, 'portNumber: 81, '), base],
  ];
  for (const [patches, expected] of cases) {
    assert.deepEqual(filterNames(testMesh(WORLD + filter(patches)), client, '0.0.0.0_80'), [expected], patches);
  }
});

test('NETWORK_FILTER MERGE: the configuration inside of an Any is merged, durations as a whole', () => {
  const mesh = testMesh(WORLD + filter(`
- applyTo: NETWORK_FILTER
  match: {context: SIDECAR_OUTBOUND, listener: {portNumber: 80, filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}}
  patch:
    operation: MERGE
    value: {typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stream_idle_timeout: 0.5s, xff_num_trusted_hops: 2}}
`));
  const [manager] = managers(mesh, client, '0.0.0.0_80');
  assert.deepEqual([manager!.xff_num_trusted_hops, ms(manager!.stream_idle_timeout), manager!.http_filters.length, manager!.route_specifier?.$case], [2, 500, 4, 'rds']);
});

test('CLUSTER: merged by service and port, removed, added; others stay the very same resources', () => {
  const mesh = testMesh(WORLD + serviceYaml('shop', 'other', '10.96.0.2', []));
  const other = find(mesh, TYPE.cluster, client, 'outbound|80||other.shop.svc.cluster.local');
  mesh.apply(filter(`
- applyTo: CLUSTER
  match: {context: SIDECAR_OUTBOUND, cluster: {service: web.shop.svc.cluster.local, portNumber: 80}}
  patch: {operation: MERGE, value: {connect_timeout: 1.5s, lb_policy: RING_HASH}}
- applyTo: CLUSTER
  match: {cluster: {name: PassthroughCluster}}
  patch: {operation: REMOVE}
- applyTo: CLUSTER
  patch: {operation: ADD, value: {name: rate_limit_cluster, type: STRICT_DNS, connect_timeout: 10s}}
`));
  const merged = Cluster.decode(find(mesh, TYPE.cluster, client, 'outbound|80||web.shop.svc.cluster.local').body.value);
  assert.deepEqual([ms(merged.connect_timeout), merged.lb_policy, merged.name], [1_500, 2, 'outbound|80||web.shop.svc.cluster.local']);
  assert.equal(find(mesh, TYPE.cluster, client, 'outbound|80||other.shop.svc.cluster.local'), other);
  const names = mesh.generators.get(TYPE.cluster)!.all(client).map(({ name }) => name);
  assert.deepEqual([names.includes('PassthroughCluster'), names.filter((name) => name === 'rate_limit_cluster').length], [false, 1]);
});

test('VIRTUAL_HOST and HTTP_ROUTE: by name, outbound in RDS and inbound in the listener', () => {
  const limits = 'rate_limits: [{actions: [{remote_address: {}}]}]';
  const mesh = testMesh(WORLD + filter(`
- applyTo: VIRTUAL_HOST
  match: {context: ANY, routeConfiguration: {vhost: {name: "inbound|http|8080", route: {action: ANY}}}}
  patch: {operation: MERGE, value: {${limits}}}
- applyTo: HTTP_ROUTE
  match: {context: SIDECAR_OUTBOUND, routeConfiguration: {name: "80", vhost: {name: "web.shop.svc.cluster.local:80", route: {name: default}}}}
  patch: {operation: MERGE, value: {route: {timeout: 3s}}}
- applyTo: HTTP_ROUTE
  match: {context: SIDECAR_OUTBOUND, routeConfiguration: {portNumber: 80, vhost: {domainName: web}}}
  patch: {operation: INSERT_FIRST, value: {name: hello, match: {path: /hello}, direct_response: {status: 200, body: {inline_string: hi}}}}
`));
  const [inbound] = managers(mesh, server, 'virtualInbound', 8080);
  assert.ok(inbound?.route_specifier?.$case === 'route_config');
  assert.equal(inbound.route_specifier.value.virtual_hosts[0]!.rate_limits.length, 1);
  const routes = RouteConfiguration.decode(find(mesh, TYPE.route, client, '80').body.value);
  const host = routes.virtual_hosts.find(({ name }) => name.startsWith('web.shop'))!;
  assert.deepEqual(host.routes.map(({ name }) => name), ['hello', 'default']);
  const action = host.routes[1]!.action;
  assert.ok(action?.$case === 'route');
  assert.deepEqual([ms(action.value.timeout), action.value.cluster_specifier?.$case], [3_000, 'cluster']);
});

test('proxyVersion and metadata keep a patch to some proxies, and a namespace to its own', () => {
  const add = (name: string, match = ''): string => `
- applyTo: HTTP_FILTER
  match: {context: SIDECAR_OUTBOUND, ${match} listener: {portNumber: 80, filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}}
  patch: {operation: INSERT_FIRST, value: {name: ${name}, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}}}
`;
  const mesh = testMesh(WORLD + filter(add('never', 'proxy: {proxyVersion: "^1\\\\.9.*"},') + add('neither', 'proxy: {metadata: {X: y}},') + add('here', 'proxy: {proxyVersion: "^1\\\\.27.*"},')) + filter(add('elsewhere'), '', 'other', 'e'));
  assert.match(filterNames(mesh, client, '0.0.0.0_80')[0]!, /^here envoy\.filters\.http\.grpc_stats/);
});

test('EXTENSION_CONFIG ADD is served by name to who discovers it', () => {
  const mesh = testMesh(WORLD + filter(`
- applyTo: EXTENSION_CONFIG
  patch: {operation: ADD, value: {name: my-lua, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua, inline_code: "x"}}}
`));
  const generator = mesh.generators.get(TYPE.extensionConfig)!;
  assert.equal(generator.one(client, 'my-lua')!.name, 'my-lua');
  assert.equal(generator.one(client, 'other'), undefined);
});

test('what Envoy has no field or type for is refused by place, and nothing of that object is in force', () => {
  const cases: [string, RegExp][] = [
    ['- {applyTo: CLUSTER, patch: {operation: MERGE, value: {conect_timeout: 1s}}}', /spec\.configPatches\[0\]\.patch\.value: not a envoy\.config\.cluster\.v3\.Cluster: .*"conect_timeout" is unknown/],
    ['- {applyTo: HTTP_FILTER, patch: {operation: INSERT_FIRST, value: {name: a, typed_config: {"@type": type.googleapis.com/a.b}}}}', /a\.b is not in the type registry/],
    ['- {applyTo: CLUSTER, patch: {operation: REPLACE, value: {}}}', /REPLACE, which is for NETWORK_FILTER, HTTP_FILTER, LISTENER_FILTER, VIRTUAL_HOST only/],
    ['- {applyTo: BOOTSTRAP, patch: {operation: MERGE, value: {}}}', /bootstrap is not this control plane's/],
    ['- {applyTo: LISTENER, patch: {operation: MERGE}}', /patch\.value: found nothing/],
    ['- {applyTo: HTTP_FILTER, patch: {operation: MERGE_AND_REPLACE_LIST, value: {}}}', /patch\.operation: found MERGE_AND_REPLACE_LIST, which filters can't do/],
  ];
  for (const [patches, expected] of cases) {
    const { objects, errors: atOnce } = parseYaml(filter(patches), 'x.yaml');
    const errors = [...atOnce, ...objects.flatMap((loaded) => new References(objects, 'cluster.local').check(loaded))].map(({ field, message }) => `${field}: ${message}`);
    assert.match(errors[0] ?? '', expected);
  }
});

test('an EnvoyFilter with targetRefs is for the proxies of that Gateway alone', () => {
  const mesh = testMesh(WORLD + filter('- {applyTo: CLUSTER, patch: {operation: ADD, value: {name: extra, type: STATIC, connect_timeout: 1s}}}', 'targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]'));
  const names = (proxy: Proxy): boolean => mesh.generators.get(TYPE.cluster)!.all(proxy).some(({ name }) => name === 'extra');
  assert.equal(names(client), false);
  assert.equal(names(testProxy('10.0.0.7', 'edge-1.shop', { 'gateway.networking.k8s.io/gateway-name': 'edge' }, {})), true);
});

test('EnvoyFilter: two proxies whose metadata differs in what a patch asks for do not share a result', () => {
  const mesh = testMesh(WORLD + filter("- applyTo: CLUSTER\n  match: {proxy: {metadata: {TIER: gold}}}\n  patch: {operation: MERGE, value: {connect_timeout: 77s}}"));
  const name = 'outbound|80||web.shop.svc.cluster.local';
  const timeout = (proxy: Proxy) => Cluster.decode(mesh.generators.get(TYPE.cluster)!.all(proxy).find((resource) => resource.name === name)!.body.value).connect_timeout?.seconds;
  const gold: Proxy = { ...client, metadata: { ...client.metadata, TIER: 'gold' } };
  assert.notEqual(Number(timeout(client)), 77);
  assert.equal(Number(timeout(gold)), 77);
  assert.notEqual(Number(timeout(client)), 77);
});

test('EnvoyFilter: a pod that gets or loses the labels that a filter selects is told', () => {
  const mesh = testMesh(WORLD + filter("- applyTo: CLUSTER\n  patch: {operation: MERGE, value: {connect_timeout: 77s}}", 'workloadSelector: {labels: {tier: gold}}'));
  const change = mesh.apply(podYaml('shop', { name: 'client', ip: '10.0.0.9', labels: { app: 'client', tier: 'gold' } }));
  const clusters = mesh.generators.get(TYPE.cluster)!;
  assert.equal(clusters.affected(client, change, new Set()), 'all');
  assert.notEqual(clusters.affected(server, change, new Set()), 'all');
  assert.deepEqual([...mesh.generators.get(TYPE.route)!.affected(client, change, new Set(['80']))], ['80']);
});
