import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import '../../proto/generated/envoy/extensions/filters/http/lua/v3/lua.js';
import '../../proto/generated/envoy/extensions/filters/http/rbac/v3/rbac.js';
import '../../proto/generated/envoy/extensions/filters/http/router/v3/router.js';
import '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import '../../proto/generated/envoy/extensions/filters/network/rbac/v3/rbac.js';
import '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { foldInbound } from '../proxy/fold-inbound.js';
import { stockExtensions } from '../testing/stock-envoy.js';
import { policyOf, type Caller } from './compile-policy.js';
import { compiled, found, OTEL, recorded, ZIPKIN } from './compile-testing.js';
import { judge, type HttpRequest } from './interpret.js';
import { HTTP_RULES_EACH } from './limits.js';

const CALLER: Caller = { identity: 'spiffe://cluster.local/ns/default/sa/client', addresses: ['10.244.0.9'] };
const CALLED = { address: '10.244.0.5', port: 8080 };

function get(target: string, method = 'GET', headers: HttpRequest['headers'] = [], host = 'web'): HttpRequest {
  return { method, target, host, headers };
}

function judged(chains: readonly FilterChain[], request: HttpRequest, caller = CALLER, called = CALLED): string {
  const policy = policyOf(chains, caller, called);
  return typeof policy === 'string' ? policy : 'reason' in policy ? policy.reason : judge(policy, request, 'envoy');
}

describe('policies that istiod was recorded to send', () => {
  const inbound = (step: number): FilterChain[] => foldInbound(recorded('authz-sidecar', step).listeners.get('virtualInbound')!.message, stockExtensions()).mesh;
  const toolbox = { ...CALLER, identity: 'spiffe://cluster.local/ns/secured/sa/toolbox' };
  const to80 = { ...CALLED, port: 80 };

  it('ALLOW by account, method and path: of that account what is allowed, of others nothing', () => {
    const chains = inbound(2);
    for (const request of [get('/headers'), get('/status/200?a')]) assert.equal(judged(chains, request, toolbox, to80), 'allowed');
    for (const request of [get('/headers/'), get('/other'), get('/headers', 'POST')]) assert.equal(judged(chains, request, toolbox, to80), 'envoy');
    assert.match(judged(chains, get('/headers'), CALLER, to80), /allows no request of this client/);
    assert.match(judged(chains, get('/headers'), { ...CALLER, identity: undefined }, to80), /Envoy's to judge/);
  });

  it('DENY by a header comes first', () => {
    const chains = inbound(3);
    assert.equal(judged(chains, get('/headers'), toolbox, to80), 'allowed');
    assert.equal(judged(chains, get('/headers', 'GET', [['x-block', '0']]), toolbox, to80), 'allowed');
    assert.equal(judged(chains, get('/headers', 'GET', [['x-block', '1']]), toolbox, to80), 'envoy');
  });

  it('without policy it is open, and what JWT filters say is Envoy\'s', () => {
    assert.equal(judged(inbound(0), get('/'), CALLER, to80), 'open');
    const jwt = foldInbound(recorded('jwt', 1).listeners.get('virtualInbound')!.message, stockExtensions()).mesh;
    assert.match(judged(jwt, get('/'), CALLER, to80), /jwt_authn/);
  });

  it('an endpoint of a table has its pod\'s policy, in the class\'s own eyes', () => {
    const table = (identity: string) => {
      const input = { caller: { ...CALLER, identity } };
      const state = recorded('canary', 0);
      const [first] = compiled(state).clusters[0]!.endpoints;
      return { first: first!, table: compiled(state, { ...input, local: new Map([[first!.address, { inbound: inbound(2), listener: 'pod/a/inbound-mesh/0' }]]) }) };
    };
    const open = table(toolbox.identity);
    const endpoint = open.table.clusters[0]!.endpoints.find(({ address }) => address === open.first.address)!;
    assert.deepEqual([endpoint.policy, endpoint.teachable], [0, true]);
    assert.equal(judge(open.table.policies[0]!, get('/headers'), 'envoy'), 'allowed');
    const closed = table(CALLER.identity!);
    assert.deepEqual([closed.table.classes, closed.table.policies], [[], []]);
    assert.match(found(closed.table, `${closed.first.address}:`)[0]!.reason!, /allows no request/);
  });
});

interface Rbac {
  action?: 'ALLOW' | 'DENY' | 'LOG';
  permissions?: object[];
  principals?: object[];
}

const rules = ({ action = 'ALLOW', permissions = [{ any: true }], principals = [{ any: true }] }: Rbac): object => ({ action, policies: { a: { permissions, principals } } });
const http = (rbac: Rbac, more: object = {}): object => ({ name: 'rbac', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC', rules: rules(rbac), ...more } });
const network = (rbac: Rbac): object => ({ name: 'rbac', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC', rules: rules(rbac), stat_prefix: 'a' } });
const router = { name: 'router', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.router.v3.Router' } };

function chain(filters: object[], before: object[] = [], manager: object = {}, match: object = {}): FilterChain {
  const routes = { virtual_hosts: [{ name: 'a', domains: ['*'], routes: [{ match: { prefix: '/' }, route: { cluster: 'inbound|8080||', timeout: {} } }] }] };
  return FilterChain.fromJSON({
    filter_chain_match: match,
    filters: [...before, { name: 'hcm', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager', stat_prefix: 'a', http_filters: [...filters, router], route_config: routes, ...manager } }],
  });
}

const path = (matcher: object): object => ({ url_path: { path: matcher } });
const method = (name: string): object => ({ header: { name: ':method', string_match: { exact: name } } });
const host = (string_match: object): object => ({ header: { name: ':authority', string_match } });
const account = (matcher: object): object => ({ filter_state: { key: 'io.istio.peer_principal', string_match: matcher } });

describe('policy of a destination', () => {
  it('is open without any', () => {
    assert.equal(judged([chain([])], get('/')), 'open');
    assert.equal(judged([chain([http({})])], get('/')), 'open');
  });

  it('any of several permissions', () => {
    const chains = [chain([http({ permissions: [path({ exact: '/a' }), { and_rules: { rules: [path({ prefix: '/b/' }), { or_rules: { rules: [method('GET'), method('HEAD')] } }] } }] })])];
    for (const request of [get('/a', 'POST'), get('/b/c'), get('/b/c', 'HEAD')]) assert.equal(judged(chains, request), 'allowed');
    for (const request of [get('/b/c', 'POST'), get('/c')]) assert.equal(judged(chains, request), 'envoy');
  });

  it('what is not to be', () => {
    const chains = [chain([http({ permissions: [{ and_rules: { rules: [{ not_rule: path({ prefix: '/admin' }) }, { not_rule: method('DELETE') }] } }] })])];
    assert.equal(judged(chains, get('/')), 'allowed');
    assert.equal(judged(chains, get('/admin/a')), 'envoy');
    assert.equal(judged(chains, get('/', 'DELETE')), 'envoy');
  });

  it('DENY and ALLOW, of the network and of HTTP, have to agree', () => {
    const chains = [chain([http({ action: 'DENY', permissions: [path({ prefix: '/x' })] }), http({ permissions: [method('GET')] })], [network({ principals: [account({ prefix: 'spiffe://cluster.local/ns/default/' })] })])];
    assert.equal(judged(chains, get('/')), 'allowed');
    assert.equal(judged(chains, get('/x')), 'envoy');
    assert.equal(judged(chains, get('/', 'POST')), 'envoy');
    assert.match(judged(chains, get('/'), { ...CALLER, identity: 'spiffe://cluster.local/ns/other/sa/client' }), /allows no request/);
  });

  it('a connection has no path and no headers', () => {
    for (const permission of [method('GET'), path({ prefix: '/' }), { not_rule: method('PUT') }]) {
      assert.match(judged([chain([], [network({ permissions: [permission] })])], get('/')), /asks a connection/);
      assert.match(judged([chain([], [network({ action: 'DENY', permissions: [permission] })])], get('/')), /asks a connection/);
    }
  });

  it('two ALLOW policies that both look at requests', () => {
    const chains = [chain([http({ permissions: [method('GET'), method('PUT')] }), http({ permissions: [path({ prefix: '/a' }), path({ prefix: '/b' })] })])];
    assert.equal(judged(chains, get('/a', 'PUT')), 'allowed');
    for (const request of [get('/c'), get('/a', 'POST')]) assert.equal(judged(chains, request), 'envoy');
  });

  it('knows the client beforehand', () => {
    const cases: [object, boolean][] = [
      [account({ exact: CALLER.identity }), true], [account({ exact: 'spiffe://cluster.local/ns/default/sa/other' }), false], [account({ safe_regex: { regex: '.*/ns/default/.*' } }), true], [account({ safe_regex: { regex: '.*/ns/def/.*' } }), false],
      [{ authenticated: { principal_name: { suffix: '/sa/client' } } }, true], [{ authenticated: {} }, true], [{ not_id: account({ prefix: 'spiffe://cluster.local/' }) }, false],
      [{ direct_remote_ip: { address_prefix: '10.244.0.0', prefix_len: 24 } }, true], [{ source_ip: { address_prefix: '10.245.0.0', prefix_len: 16 } }, false],
    ];
    for (const [principal, isAllowed] of cases) assert.equal(judged([chain([http({ principals: [principal] })])], get('/')) === 'open', isAllowed, JSON.stringify(principal));
    assert.match(judged([chain([http({ principals: [{ direct_remote_ip: { address_prefix: '10.244.0.0', prefix_len: 28 } }] })])], get('/'), { ...CALLER, addresses: ['10.244.0.9', '10.244.0.99'] }), /client's address/);
  });

  it('knows the port beforehand', () => {
    const chains = [chain([http({ permissions: [{ destination_port: 8080 }, { and_rules: { rules: [{ destination_port: 9090 }, method('GET')] } }] })])];
    assert.equal(judged(chains, get('/', 'POST')), 'open');
    assert.equal(judged(chains, get('/', 'POST'), CALLER, { ...CALLED, port: 9090 }), 'envoy');
    assert.equal(judged(chains, get('/'), CALLER, { ...CALLED, port: 9090 }), 'allowed');
  });

  it('hosts by their small letters, where letters do not count', () => {
    const chains = (ignore_case: boolean): FilterChain[] => [chain([http({ permissions: [host({ exact: 'Web', ignore_case })] })])];
    assert.equal(judged(chains(true), get('/', 'GET', [], 'WEB')), 'allowed');
    assert.match(judged(chains(false), get('/')), /capital letters/);
    // Too many that are denied are Envoy's to let in.
    const denied = [chain([http({ action: 'DENY', permissions: [host({ exact: 'Web' })] })])];
    assert.equal(judged(denied, get('/')), 'envoy');
    assert.equal(judged(denied, get('/', 'GET', [], 'other')), 'allowed');
  });

  it('of a DENY that can\'t be told all that it might mean is Envoy\'s, of an ALLOW none of it is allowed', () => {
    const odd = { and_rules: { rules: [path({ prefix: '/a' }), { metadata: { filter: 'jwt', path: [{ key: 'a' }], value: { present_match: true } } }] } };
    const denied = [chain([http({ action: 'DENY', permissions: [odd] })])];
    assert.equal(judged(denied, get('/a/b')), 'envoy');
    assert.equal(judged(denied, get('/b')), 'allowed');
    const allowed = [chain([http({ permissions: [odd, path({ prefix: '/b' })] })])];
    assert.equal(judged(allowed, get('/a/b')), 'envoy');
    assert.equal(judged(allowed, get('/b')), 'allowed');
    for (const matcher of [{ safe_regex: { regex: '/a.*' } }, { suffix: '/a' }, { contains: 'a' }]) assert.match(judged([chain([http({ permissions: [path(matcher)] })])], get('/a')), /its path is matched by/);
  });

  it('more than 64 rules are Envoy\'s', () => {
    const many = Array.from({ length: HTTP_RULES_EACH + 1 }, (_, n) => path({ exact: `/${n}` }));
    assert.match(judged([chain([http({ permissions: many })])], get('/1')), /more than 64 rules/);
    assert.equal(judged([chain([http({ permissions: many.slice(1) })])], get('/1')), 'allowed');
  });

  it('anything else on the way is Envoy\'s', () => {
    const lua = { name: 'lua', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua' } };
    const cases: [FilterChain, RegExp][] = [
      [chain([lua]), /filter lua/],
      [chain([http({}, { shadow_rules: rules({}) })]), /dry run/],
      [chain([http({ action: 'LOG' })]), /logged/],
      [chain([http({}, { matcher: {} })]), /tree of matchers/],
      [chain([], [], { route_config: { virtual_hosts: [{ name: 'a', domains: ['*'], routes: [{ match: { prefix: '/' }, redirect: {} }] }] } }), /routes with settings/],
      [chain([], [], { early_header_mutation_extensions: [{ name: 'a' }] }), /settings of their own/],
      [chain([], [], { http_filters: [{ ...router, typed_config: { ...router.typed_config, suppress_envoy_headers: true } }] }), /filters have settings/],
      [chain([], [], { tracing: { provider: { name: 'zipkin' } } }), /traced/],
    ];
    for (const [each, reason] of cases) assert.match(judged([each], get('/')), reason);
  });

  it('where requests are traced, the client\'s side has to tell what it drew by the same headers', () => {
    const traced = (provider: object): FilterChain[] => [chain([], [], { tracing: { provider, random_sampling: { value: 50 } } })];
    assert.equal(policyOf(traced(ZIPKIN), CALLER, CALLED, 'b3'), 'open');
    assert.equal(policyOf(traced(OTEL), CALLER, CALLED, 'w3c'), 'open');
    assert.equal(policyOf([chain([])], CALLER, CALLED, 'b3'), 'open');
    for (const kind of ['w3c', undefined] as const) assert.match((policyOf(traced(ZIPKIN), CALLER, CALLED, kind) as { reason: string }).reason, /where it is called requests are traced, and here not/);
  });

  it('the port\'s own chains count, and those for plaintext', () => {
    const strict = chain([http({ action: 'DENY' })]);
    const own = chain([], [], {}, { destination_port: 8080, transport_protocol: 'raw_buffer' });
    const tls = chain([http({ action: 'DENY' })], [], {}, { destination_port: 8080, transport_protocol: 'tls' });
    assert.equal(judged([strict, tls, own], get('/')), 'open');
    assert.match(judged([strict, tls, own], get('/'), CALLER, { ...CALLED, port: 1 }), /denies all requests/);
    assert.match(judged([own], get('/'), CALLER, { ...CALLED, port: 1 }), /nothing for this port/);
    assert.match(judged([own, chain([http({ permissions: [method('GET')] })], [], {}, { destination_port: 8080 })], get('/')), /several chains/);
  });
});
