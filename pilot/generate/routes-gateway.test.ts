import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VirtualHost_TlsRequirementType, type VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { parseProxy } from '../model/proxy.js';
import { serviceYaml } from '../testing/mesh.js';
import { testMesh } from '../testing/model.js';
import { ROUTE_SEMANTICS_ANNOTATION } from './routes-http.js';
import { commonHosts, gatewayVirtualHosts, serverHostsFor, type GatewayServer } from './routes-gateway.js';

const gateway = parseProxy('router~10.0.0.8~ingress.istio-system~istio-system.svc.cluster.local', {});
const routes = (name: string, spec: string, more = ''): string => `\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: ${name}, namespace: shop${more}}\nspec: ${spec}\n---`;
const server = (more: Partial<GatewayServer> = {}): GatewayServer => ({ gateway: 'shop/front', hosts: ['*'], port: 80, tls: false, httpsRedirect: false, ...more });
const SERVICES = serviceYaml('shop', 'a', '10.96.0.1', []) + serviceYaml('shop', 'b', '10.96.0.2', [], 'name: http, port: 8080');

function hosts(yaml: string, ...servers: GatewayServer[]): VirtualHost[] {
  const { model } = testMesh(SERVICES + yaml);
  return gatewayVirtualHosts(model.scopeOf(gateway), gateway, servers);
}
const names = ({ routes: list }: VirtualHost): string[] => list.map(({ name }) => name);

test('gatewayVirtualHosts: VirtualServices of a host are merged by age, what takes everything comes last', () => {
  const made = hosts(
    routes('young', '{hosts: [shop.example], gateways: [front], http: [{name: y, match: [{uri: {prefix: /y}}], route: [{destination: {host: a}}]}]}', ', creationTimestamp: "2026-01-02T00:00:00Z"') +
      routes('old', '{hosts: [shop.example], gateways: [shop/front], http: [{name: all, route: [{destination: {host: b}}]}]}', ', creationTimestamp: "2026-01-01T00:00:00Z"') +
      routes('mesh', '{hosts: [shop.example], http: [{name: mesh, route: [{destination: {host: b}}]}]}') +
      routes('other', '{hosts: [shop.example], gateways: [other], http: [{name: other, route: [{destination: {host: b}}]}]}'),
    server(),
  );
  assert.deepEqual(made.map((host) => [host.name, host.domains, names(host)]), [['shop.example:80', ['shop.example'], ['y', 'all']]]);
  const action = made[0]!.routes[1]!.action;
  // A destination without a port is the service's only one.
  assert.equal(action?.$case === 'route' && action.value.cluster_specifier?.value, 'outbound|8080||b.shop.svc.cluster.local');
});

test('gatewayVirtualHosts: a host is what server and VirtualService have in common; hosts with equal routes share one', () => {
  const yaml = routes('many', '{hosts: ["*.one.example", two.example, three.example], gateways: [front], http: [{route: [{destination: {host: a}}]}]}');
  const made = hosts(yaml, server({ hosts: ['shop/x.one.example', './two.example', 'elsewhere/three.example', '*/x.Three.example'] }));
  assert.deepEqual(made.map(({ name, domains }) => [name, domains]), [['x.one.example:80', ['x.one.example', 'two.example']]]);
});

test('gatewayVirtualHosts: httpsRedirect wants TLS of its hosts, routed or not; no host at all answers 404', () => {
  const yaml = routes('one', '{hosts: [a.example], gateways: [front], http: [{route: [{destination: {host: a}}]}]}');
  const made = hosts(yaml, server({ hosts: ['a.example', 'b.example'], httpsRedirect: true }));
  const { ALL } = VirtualHost_TlsRequirementType;
  assert.deepEqual(made.map(({ name, require_tls, routes: list }) => [name, require_tls, list.length]), [['a.example:80', ALL, 1], ['b.example:80', ALL, 0]]);
  assert.deepEqual(hosts('', server()).map(({ name, domains }) => [name, domains]), [['blackhole:80', ['*']]]);
});

test('gatewayVirtualHosts: matches on gateways, ports and the redirect port are the server\'s', () => {
  const spec =
    '{hosts: [a.example], gateways: [front, mesh], http: [{name: mesh, match: [{gateways: [mesh]}], route: [{destination: {host: a}}]}, {name: port, match: [{port: 81}], route: [{destination: {host: a}}]}, {name: here, match: [{gateways: [front], sourceLabels: {no: one}, uri: {prefix: /}}], redirect: {derivePort: FROM_REQUEST_PORT}}]}';
  const [first] = hosts(routes('r', spec), server({ port: 8443, tls: true }));
  assert.deepEqual(names(first!), ['here']);
  const { action } = first!.routes[0]!;
  assert.equal(action?.$case === 'redirect' && action.value.port_redirect, 8443);
  const standard = hosts(routes('r', spec), server({ port: 443, tls: true }))[0]!.routes[0]!.action;
  assert.equal(standard?.$case === 'redirect' && standard.value.port_redirect, 0);
});

test('redirects: a usual port is written where the Host may have another; prefixes of the Gateway API go by whole segments', () => {
  const made = (spec: string, prefix: string, more: Partial<GatewayServer> = {}) => {
    const yaml = routes('r', `{hosts: [a.example], gateways: [front], http: [{match: [{uri: {prefix: ${prefix}}}], ${spec}}]}`, `, annotations: {${ROUTE_SEMANTICS_ANNOTATION}: gateway}`);
    return hosts(yaml, server(more))[0]!.routes[0]!.action!.value as { port_redirect: number; path_rewrite_specifier?: { value: unknown }; prefix_rewrite: string; regex_rewrite?: { pattern?: { regex: string }; substitution: string } };
  };
  const port = (spec: string, more: Partial<GatewayServer>): number => made(`redirect: {scheme: https, ${spec}}`, '/a', more).port_redirect;
  assert.deepEqual([port('derivePort: FROM_PROTOCOL_DEFAULT', { port: 80 }), port('derivePort: FROM_PROTOCOL_DEFAULT', { port: 8080 }), port('port: 443', { port: 8080 }), port('port: 443, authority: b.example', { port: 8080 })], [0, 443, 443, 0]);
  const redirected = (to: string): string | undefined => JSON.stringify(made(`redirect: {prefixRewrite: ${to}}`, '/a').path_rewrite_specifier?.value);
  assert.equal(redirected('/b'), '"/b"');
  assert.match(redirected('/')!, /"regex":"\^\/a\(\/\?\)\(\.\*\)".*"substitution":"\/\\\\2"/);
  const rewritten = (prefix: string, to: string): unknown[] => {
    const { prefix_rewrite, regex_rewrite } = made(`rewrite: {uri: ${to}}, route: [{destination: {host: a}}]`, prefix);
    return [prefix_rewrite, regex_rewrite?.pattern?.regex];
  };
  assert.deepEqual([rewritten('/a', '/b'), rewritten('/', '/b'), rewritten('/a', '/')], [['/b', undefined], ['/b/', undefined], ['', '^/a(/?)(.*)']]);
});

test('commonHosts and serverHostsFor: the narrower of two patterns, namespaces before the slash', () => {
  assert.deepEqual(commonHosts(['*.a.example', 'b.example'], ['x.a.example', '*.example']), ['x.a.example', '*.a.example', 'b.example']);
  assert.deepEqual(commonHosts(['a.example'], ['b.example']), []);
  assert.deepEqual(serverHostsFor({ gateway: 'shop/front', hosts: ['./a', '*/b', 'shop/c', 'other/d', 'e'] }, 'shop'), ['a', 'b', 'c', 'e']);
  assert.deepEqual(serverHostsFor({ gateway: 'shop/front', hosts: ['./a', '*/b', 'shop/c', 'other/d', 'e'] }, 'other'), ['b', 'd', 'e']);
});
