import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../common/xds/any.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { Route, RouteAction, VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { CorsPolicy } from '../../proto/generated/envoy/extensions/filters/http/cors/v3/cors.js';
import { HTTPFault } from '../../proto/generated/envoy/extensions/filters/http/fault/v3/fault.js';
import type { MeshConfig } from '../model/mesh.js';
import type { Proxy } from '../model/proxy.js';
import { serviceYaml } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';
import { TYPE } from './resource.js';
import { routeMatch } from './route-match.js';

const client = testProxy('10.0.0.9', 'client.shop', { app: 'client' });
const HOST = 'web.shop.svc.cluster.local';
const WEB = serviceYaml('shop', 'web', '10.96.0.1', []) + serviceYaml('shop', 'alt', '10.96.0.2', []);
const object = (kind: string, spec: string, name: string, namespace: string, more: string): string => `\napiVersion: networking.istio.io/v1\nkind: ${kind}\nmetadata: {name: ${name}, namespace: ${namespace}${more}}\nspec: ${spec}\n---`;
const vs = (spec: string, name = 'web', namespace = 'shop', more = ''): string => object('VirtualService', spec, name, namespace, more);
const rule = (spec: string, name = 'web', namespace = 'shop'): string => object('DestinationRule', spec, name, namespace, '');

function hosts(mesh: TestMesh, name = '80', proxy: Proxy = client): Map<string, VirtualHost> {
  const { virtual_hosts } = unpack(RouteConfiguration, mesh.generators.get(TYPE.route)!.one(proxy, name)!.body)!;
  return new Map(virtual_hosts.map((host) => [host.name, host]));
}
const routesOf = (http: string, more = '', mesh: Partial<MeshConfig> = {}): Route[] => hosts(testMesh(WEB + vs(`{hosts: [web], http: [${http}]}`) + more, mesh)).get(`${HOST}:80`)!.routes;
const only = (http: string, more = '', mesh?: Partial<MeshConfig>): Route => routesOf(http, more, mesh)[0]!;
const actionOf = ({ action }: Route): RouteAction => (action?.$case === 'route' ? action.value : assert.fail('no route action'));
const TO_WEB = 'route: [{destination: {host: web}}]';
const names = (host: VirtualHost | undefined): string[] | undefined => host?.routes.map(({ name }) => name);

test('a prefix counts letter by letter; case may be ignored; `*` as a pattern and an empty match ask for presence', () => {
  const match = routeMatch({
    uri: { prefix: '/a' },
    ignoreUriCase: true,
    headers: { a: {}, b: { regex: '*' }, '@request.auth.claims.group': { exact: 'dev' } },
    withoutHeaders: { c: {}, d: { exact: 'x' } },
    queryParams: { q: {}, r: { prefix: 'p' } },
  });
  assert.deepEqual([match.path_specifier, match.case_sensitive], [{ $case: 'prefix', value: '/a' }, false]);
  assert.deepEqual(
    match.headers.map(({ name, header_match_specifier: spec, invert_match, treat_missing_header_as_empty }) => [name, spec?.$case, invert_match, treat_missing_header_as_empty]),
    [['a', 'present_match', false, false], ['b', 'present_match', false, false], ['c', 'present_match', true, false], ['d', 'string_match', true, true]],
  );
  assert.deepEqual(match.query_parameters.map(({ name, query_parameter_match_specifier: spec }) => [name, spec?.$case]), [['q', 'present_match'], ['r', 'string_match']]);
  assert.deepEqual(match.dynamic_metadata.map(({ filter, path }) => [filter, path.map(({ segment }) => segment?.value)]), [['envoy.filters.http.jwt_authn', ['payload', 'group']]]);
});

test('route names join the match\'s, statPrefix names statistics', () => {
  assert.deepEqual(routesOf(`{name: r, match: [{name: m, uri: {exact: /a}, statPrefix: s}, {uri: {exact: /b}}], ${TO_WEB}}`).map(({ name, stat_prefix }) => [name, stat_prefix]), [['r.m', 's'], ['r', '']]);
});

test('rewrite: path, pattern and authority, by the rewrite or by a header edit', () => {
  const simple = actionOf(only(`{match: [{uri: {prefix: /a}}], rewrite: {uri: /b, authority: other}, headers: {request: {set: {x-a: "1"}}}, ${TO_WEB}}`));
  assert.deepEqual([simple.prefix_rewrite, simple.host_rewrite_specifier], ['/b', { $case: 'host_rewrite_literal', value: 'other' }]);
  const pattern = actionOf(only(`{rewrite: {uriRegexRewrite: {match: "^/(.*)$", rewrite: "/x/\\\\1"}}, headers: {request: {set: {Host: third}}}, ${TO_WEB}}`));
  assert.deepEqual([pattern.regex_rewrite?.pattern?.regex, pattern.regex_rewrite?.substitution, pattern.host_rewrite_specifier?.value], ['^/(.*)$', '/x/\\1', 'third']);
});

test('header edits: set before add, by name; the destination\'s behind the route\'s', () => {
  const route = only('{headers: {request: {set: {b: "2", a: "1"}, add: {c: "3"}, remove: [d]}, response: {add: {e: "5"}}}, route: [{destination: {host: web}, headers: {request: {add: {f: "6"}}, response: {remove: [g]}}}]}');
  assert.deepEqual(route.request_headers_to_add.map(({ header, append_action }) => [header!.key, append_action]), [['a', 2], ['b', 2], ['c', 0], ['f', 0]]);
  assert.deepEqual([route.request_headers_to_remove, route.response_headers_to_add.map(({ header }) => header!.key), route.response_headers_to_remove], [['d'], ['e'], ['g']]);
});

test('weights: headers and authority by destination, those without a weight are left out', () => {
  const route = only('{route: [{destination: {host: web}, weight: 1, headers: {request: {set: {x: "1", host: h}}}}, {destination: {host: alt}, weight: 3}, {destination: {host: alt, subset: v}}]}');
  const specifier = actionOf(route).cluster_specifier;
  assert.ok(specifier?.$case === 'weighted_clusters');
  assert.deepEqual(specifier.value.clusters.map(({ name, weight, request_headers_to_add: added, host_rewrite_specifier: host }) => [name, weight, added.map(({ header }) => header!.key), host?.value]), [
    [`outbound|80||${HOST}`, 1, ['x'], 'h'],
    ['outbound|80||alt.shop.svc.cluster.local', 3, [], undefined],
  ]);
  assert.equal(route.decorator!.operation, 'web:80/*');
});

test('redirect: authority, path, scheme, codes; a port is left out where it is the scheme\'s own', () => {
  const redirect = (spec: string): unknown => {
    const { action } = only(`{redirect: {${spec}}}`);
    assert.ok(action?.$case === 'redirect');
    const { host_redirect, path_rewrite_specifier: path, scheme_rewrite_specifier: scheme, port_redirect, response_code } = action.value;
    return [host_redirect, path?.value, scheme?.value, port_redirect, response_code];
  };
  assert.deepEqual(redirect('authority: a.example, uri: /b, redirectCode: 308'), ['a.example', '/b', undefined, 0, 4]);
  assert.deepEqual(redirect('port: 8443, scheme: https'), ['', '', 'https', 8443, 0]);
  assert.deepEqual(redirect('port: 443, scheme: https'), ['', '', 'https', 0, 0]);
  assert.deepEqual(redirect('derivePort: FROM_REQUEST_PORT, scheme: https'), ['', '', 'https', 80, 0]);
});

test('directResponse: a text, or bytes as base64, or nothing', () => {
  const response = (body: string): unknown => {
    const { action } = only(`{directResponse: {status: 418${body}}}`);
    assert.ok(action?.$case === 'direct_response');
    return [action.value.status, action.value.body?.specifier?.value];
  };
  assert.deepEqual([response(', body: {string: hi}'), response(', body: {bytes: aGk=}'), response('')], [[418, 'hi'], [418, Buffer.from('hi')], [418, undefined]]);
});

test('mirrors: whole and fractional percent; none at zero; the host gains a suffix', () => {
  const policies = (spec: string): unknown => actionOf(only(`{${TO_WEB}, ${spec}}`)).request_mirror_policies.map(({ cluster, runtime_fraction: fraction, disable_shadow_host_suffix_append: plain }) => [cluster, fraction!.default_value!.numerator, plain]);
  const alt = 'outbound|80||alt.shop.svc.cluster.local';
  assert.deepEqual(policies('mirror: {host: alt}'), [[alt, 100, false]]);
  assert.deepEqual(policies('mirror: {host: alt}, mirrorPercent: 7'), [[alt, 7, false]]);
  assert.deepEqual(policies('mirror: {host: alt}, mirrorPercent: 7, mirrorPercentage: {value: 0.5}'), [[alt, 5_000, false]]);
  assert.deepEqual(policies('mirror: {host: alt}, mirrorPercentage: {value: 0}'), []);
  assert.deepEqual(policies('mirrors: [{destination: {host: alt}}, {destination: {host: web}, percentage: {value: 10}}]'), [[alt, 100, false], [`outbound|80||${HOST}`, 100_000, false]]);
});

test('retries: codes among the conditions, localities, previous hosts, backoff; the mesh\'s default; none without attempts', () => {
  const policy = (spec: string, mesh?: Partial<MeshConfig>) => actionOf(only(`{${spec}${TO_WEB}}`, '', mesh)).retry_policy;
  const full = policy('retries: {attempts: 5, retryOn: "gateway-error,429", retryRemoteLocalities: true, retryIgnorePreviousHosts: false, backoff: 50ms}, ')!;
  assert.deepEqual([full.num_retries, full.retry_on, full.retriable_status_codes, full.retry_priority?.name, full.retry_host_predicate.length, full.retry_back_off?.base_interval?.nanos], [5, 'gateway-error,retriable-status-codes', [429], 'envoy.retry_priorities.previous_priorities', 0, 50_000_000]);
  assert.equal(policy('retries: {attempts: 0}, '), undefined);
  assert.equal(policy('', { defaultHttpRetryPolicy: { attempts: 7 } })!.num_retries, 7);
  assert.equal(policy('retries: {attempts: 1}, ', { defaultHttpRetryPolicy: { attempts: 7 } })!.num_retries, 1);
  assert.equal(policy('', { defaultHttpRetryPolicy: { attempts: 0 } }), undefined);
});

test('fault: delay and abort, percentage over percent, HTTP and gRPC status', () => {
  const fault = (spec: string): HTTPFault => unpack(HTTPFault, only(`{fault: {${spec}}, ${TO_WEB}}`).typed_per_filter_config['envoy.filters.http.fault']!)!;
  const { delay, abort } = fault('delay: {fixedDelay: 1.5s, percent: 10, percentage: {value: 0.1}}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}');
  assert.ok(delay!.fault_delay_secifier?.$case === 'fixed_delay');
  const { seconds, nanos } = delay!.fault_delay_secifier.value;
  assert.deepEqual([seconds, nanos, delay!.percentage?.numerator], [1n, 500_000_000, 1_000]);
  assert.deepEqual([abort!.error_type, abort!.percentage?.numerator], [{ $case: 'grpc_status', value: 14 }, 1_000_000]);
  assert.deepEqual([fault('delay: {fixedDelay: 1s, percent: 10}').delay!.percentage, fault('abort: {httpStatus: 503}').abort!.percentage], [{ numerator: 10, denominator: 0 }, undefined].map((value) => value && { ...value, _unknownFields: {} }));
});

test('CORS: origins old and new, lists joined, preflights that match nothing are forwarded unless told not to', () => {
  const cors = (spec: string): CorsPolicy => unpack(CorsPolicy, only(`{corsPolicy: {${spec}}, ${TO_WEB}}`).typed_per_filter_config['envoy.filters.http.cors']!)!;
  const full = cors('allowOrigins: [{exact: "https://a"}, {regex: ".*b"}], allowMethods: [GET, PUT], allowHeaders: [x], exposeHeaders: [y, z], maxAge: 24h, allowCredentials: true');
  assert.deepEqual([full.allow_origin_string_match.length, full.allow_methods, full.allow_headers, full.expose_headers, full.max_age, full.allow_credentials, full.forward_not_matching_preflights], [2, 'GET,PUT', 'x', 'y,z', '86400', true, true]);
  assert.deepEqual([cors('allowOrigin: ["*"]').allow_origin_string_match[0]!.match_pattern?.value, cors('unmatchedPreflights: IGNORE').forward_not_matching_preflights], ['*', false]);
});

test('hashing: header, cookie, address, parameter; subset over host, port over subset; a hashed retry stays where it is', () => {
  const hash = (key: string): string => `loadBalancer: {consistentHash: {${key}}}`;
  const policies = (policy: string, destination = 'host: web', subsets = ''): unknown => {
    const action = actionOf(only(`{route: [{destination: {${destination}}}]}`, rule(`{host: web, trafficPolicy: {${policy}}${subsets}}`)));
    return [action.hash_policy.map(({ policy_specifier: specifier }) => specifier?.$case), action.retry_policy!.retry_host_predicate.length];
  };
  assert.deepEqual(policies(hash('httpHeaderName: x')), [['header'], 0]);
  assert.deepEqual(policies(hash('httpCookie: {name: c, ttl: 0s, path: /}')), [['cookie'], 0]);
  assert.deepEqual(policies(hash('useSourceIp: true')), [['connection_properties'], 0]);
  assert.deepEqual(policies(hash('httpQueryParameterName: q'), 'host: web, subset: v', `, subsets: [{name: v, trafficPolicy: {${hash('httpHeaderName: x')}}}]`), [['header'], 0]);
  assert.deepEqual(policies('loadBalancer: {simple: RANDOM}'), [[], 1]);
  const plain = hosts(testMesh(WEB + rule(`{host: web, trafficPolicy: {${hash('httpHeaderName: x')}}}`))).get(`${HOST}:80`)!;
  assert.deepEqual(actionOf(plain.routes[0]!).hash_policy.map(({ policy_specifier: specifier }) => specifier?.value), [{ header_name: 'x', regex_rewrite: undefined, _unknownFields: {} }]);
});

test('of VirtualServices for a host the one kept to the namespace counts, then one exported to it, then the oldest public', () => {
  const named = (name: string, more: string, namespace = 'shop'): string => vs(`{hosts: [${HOST}], ${more}http: [{name: ${name}, ${TO_WEB}}]}`, name, namespace);
  const all = [named('c', ''), named('b', 'exportTo: [shop], ', 'other'), named('a', 'exportTo: ["."], ')];
  const winner = (...list: string[]): unknown => names(hosts(testMesh(WEB + list.join(''))).get(`${HOST}:80`));
  assert.deepEqual([winner(...all), winner(all[0]!, all[1]!), winner(all[0]!)], [['a'], ['b'], ['c']]);
  // Nobody else sees what is kept to a namespace.
  assert.deepEqual(names(hosts(testMesh(WEB + all[2]!), '80', testProxy('10.0.0.7', 'x.elsewhere')).get(`${HOST}:80`)), ['default']);
});

test('a wildcard host is for all services that no nearer VirtualService has', () => {
  const mesh = testMesh(WEB + vs(`{hosts: ["*.shop.svc.cluster.local"], http: [{name: wild, ${TO_WEB}}]}`, 'a') + vs(`{hosts: [web], http: [{name: exact, ${TO_WEB}}]}`, 'b'));
  const made = hosts(mesh);
  assert.deepEqual([names(made.get(`${HOST}:80`)), names(made.get('alt.shop.svc.cluster.local:80')), made.has('*.shop.svc.cluster.local:80')], [['exact'], ['wild'], false]);
});

test('hosts that are no service are on port 80, or on the port of a service that they come with', () => {
  const yaml = WEB + serviceYaml('shop', 'admin', '10.96.0.3', [], 'name: http, port: 8080');
  const made = testMesh(yaml + vs('{hosts: [a.example, admin], http: [{route: [{destination: {host: admin}}]}]}', 'a') + vs(`{hosts: [b.example, web], http: [{${TO_WEB}}]}`, 'b') + vs(`{hosts: [c.example], http: [{${TO_WEB}}]}`, 'c'));
  const foreign = (port: string): string[] => [...hosts(made, port).keys()].filter((name) => name.includes('example'));
  assert.deepEqual([foreign('80'), foreign('8080')], [['a.example:80', 'b.example:80', 'c.example:80'], ['a.example:8080']]);
});

test('a domain is in a table once: the first has it, and a host itself before another\'s short form of it', () => {
  const double = testMesh(WEB + serviceYaml('shop', 'also', '10.96.0.1', []));
  assert.deepEqual([hosts(double).get('also.shop.svc.cluster.local:80')!.domains.includes('10.96.0.1'), hosts(double).get(`${HOST}:80`)!.domains.includes('10.96.0.1')], [true, false]);
  const named = testMesh(WEB + object('ServiceEntry', '{hosts: [web.shop], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}', 'web', 'shop', '') + vs(`{hosts: [WEB.shop.svc], http: [{name: foreign, ${TO_WEB}}]}`));
  const all = [...hosts(named).values()].flatMap((host) => host.domains.map((domain) => domain.toLowerCase()));
  assert.equal(new Set(all).size, all.length);
  assert.deepEqual([hosts(named).get('web.shop:80')!.domains[0], names(hosts(named).get('web.shop.svc:80'))], ['web.shop', ['foreign']]);
});

test('routes are kept while what they depend on stays, and for no other client', () => {
  const mesh = testMesh(WEB + vs(`{hosts: [web], http: [{name: mine, match: [{sourceLabels: {app: client}}], ${TO_WEB}}, {name: rest, route: [{destination: {host: alt}}]}]}`));
  const routesFor = (proxy: Proxy): Route[] => hosts(mesh, '80', proxy).get(`${HOST}:80`)!.routes;
  const other = testProxy('10.0.0.8', 'b.shop', { team: 'client' });
  assert.deepEqual([routesFor(client).map(({ name }) => name), routesFor(other).map(({ name }) => name)], [['mine'], ['rest']]);
  // Another label is asked for elsewhere: the same values are another client's now.
  mesh.apply(vs(`{hosts: [alt], http: [{name: alt, match: [{sourceLabels: {team: client}}], ${TO_WEB}}]}`, 'alt'));
  assert.deepEqual(routesFor(other).map(({ name }) => name), ['rest']);
  const lead = (): unknown => actionOf(routesFor(other)[0]!).cluster_specifier?.value;
  assert.equal(lead(), 'outbound|80||alt.shop.svc.cluster.local');
  mesh.apply(serviceYaml('shop', 'alt', '10.96.0.2', [], 'name: http, port: 8080'));
  assert.equal(lead(), 'outbound|8080||alt.shop.svc.cluster.local');
});

test('a sniffed port has a table of its own, and is in the table of its number as well', () => {
  const mesh = testMesh(WEB + serviceYaml('shop', 'mystery', '10.96.0.3', [], 'name: foo, port: 80') + vs('{hosts: [mystery], http: [{name: m, route: [{destination: {host: mystery}}]}]}'));
  const own = hosts(mesh, 'mystery.shop.svc.cluster.local:80').get('mystery.shop.svc.cluster.local:80')!;
  assert.deepEqual([own.domains, names(own)], [['*'], ['m']]);
  assert.deepEqual(hosts(mesh).get('mystery.shop.svc.cluster.local:80')!.domains[0], 'mystery.shop.svc.cluster.local');
});
