import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../../common/xds/any.js';
import { Listener } from '../../../proto/generated/envoy/config/listener/v3/listener.js';
import { HttpConnectionManager } from '../../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { DownstreamTlsContext } from '../../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import type { Any } from '../../../proto/generated/google/protobuf/any.js';
import { RouteConfiguration } from '../../../proto/generated/envoy/config/route/v3/route.js';
import { parseProxy } from '../../model/proxy.js';
import { serviceYaml } from '../../testing/mesh.js';
import { testMesh } from '../../testing/model.js';
import { TYPE } from '../resource.js';

const proxy = parseProxy('router~10.0.0.8~ingress.shop~shop.svc.cluster.local', { LABELS: { istio: 'ingressgateway' } });
const gateway = (name: string, day: number, server: string): string => `\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: ${name}, namespace: shop, creationTimestamp: "2026-01-0${day}T00:00:00Z"}\nspec: {selector: {istio: ingressgateway}, servers: [${server}]}\n---`;
const PLAIN = '{port: {number: 8443, name: http, protocol: HTTP}, hosts: ["*"]}';
const TLS = '{port: {number: 8443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: SIMPLE, credentialName: front}}';
const NAMED = '{port: {number: 8443, name: named, protocol: HTTPS}, hosts: [a.example], tls: {mode: SIMPLE, credentialName: front}}';

/** Of each listener the chains: their server names, and whether TLS ends there. */
function chains(yaml: string): unknown[] {
  const { generators } = testMesh(serviceYaml('shop', 'a', '10.96.0.1', []) + yaml);
  return generators.get(TYPE.listener)!.all(proxy).map(({ name, body }) => [name, unpack(Listener, body)!.filter_chains.map((chain) => [chain.filter_chain_match?.server_names ?? [], chain.transport_socket !== undefined])]);
}

test('a port is plaintext or TLS, by the oldest Gateway: no listener that Envoy refuses for two chains of one match', () => {
  assert.deepEqual(chains(gateway('new', 2, TLS) + gateway('old', 1, PLAIN)), [['0.0.0.0_8443', [[[], false]]]]);
  assert.deepEqual(chains(gateway('new', 2, PLAIN) + gateway('old', 1, TLS)), [['0.0.0.0_8443', [[[], true]]]]);
  assert.deepEqual(chains(gateway('new', 2, NAMED) + gateway('old', 1, TLS)), [['0.0.0.0_8443', [[[], true], [['a.example'], true]]]]);
});

test('servers on two addresses of one port: each has the routes of its own hosts alone; every address is one', () => {
  const bound = (name: string, day: number, address: string): string => gateway(name, day, `{port: {number: 8080, name: http, protocol: HTTP}, bind: ${address}, hosts: ["${name}.example"]}`);
  const route = (name: string): string => `\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: ${name}, namespace: shop}\nspec: {hosts: ["*"], gateways: [${name}], http: [{directResponse: {status: 204}}]}\n---`;
  const served = (first: string, second: string): Record<string, string[]> => {
    const { generators } = testMesh(serviceYaml('shop', 'a', '10.96.0.1', []) + bound('one', 1, first) + bound('two', 2, second) + route('one') + route('two'));
    const tables = generators.get(TYPE.listener)!.all(proxy).map(({ body }) => {
      const specifier = unpack(HttpConnectionManager, unpack(Listener, body)!.filter_chains[0]!.filters[0]!.config_type?.value as Any)!.route_specifier;
      return specifier?.$case === 'rds' ? specifier.value.route_config_name : '';
    });
    return Object.fromEntries(tables.map((name) => [name, unpack(RouteConfiguration, generators.get(TYPE.route)!.one(proxy, name)!.body)!.virtual_hosts.flatMap((host) => host.domains)]));
  };
  assert.deepEqual(served('10.0.0.8', '10.0.0.9'), { 'http.8080.10.0.0.8': ['one.example'], 'http.8080.10.0.0.9': ['two.example'] });
  assert.deepEqual(served('0.0.0.0', '""'), { 'http.8080': ['one.example', 'two.example'] });
});

test('AUTO_PASSTHROUGH: only the mesh\'s own TLS goes through, by what the client offers', () => {
  const { generators } = testMesh(serviceYaml('shop', 'a', '10.96.0.1', []) + gateway('east', 1, '{port: {number: 15443, name: tls, protocol: TLS}, hosts: ["*.local"], tls: {mode: AUTO_PASSTHROUGH}}'));
  const [listener] = generators.get(TYPE.listener)!.all(proxy);
  const made = unpack(Listener, listener!.body)!.filter_chains;
  assert.deepEqual(made.map((chain) => [chain.filter_chain_match?.server_names, chain.filter_chain_match?.application_protocols]), [[['*.local'], ['istio', 'istio-peer-exchange', 'istio-http/1.0', 'istio-http/1.1', 'istio-h2']]]);
  assert.deepEqual(made[0]!.filters.map(({ name }) => name), ['envoy.filters.network.rbac', 'envoy.filters.network.sni_cluster', 'envoy.filters.network.tcp_proxy'], 'the SNI is looked at before it chooses the cluster');
});

test('a TCP route of a gateway does not ask who the client is', () => {
  const route = '\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: tcp, namespace: shop}\nspec: {hosts: ["*"], gateways: [g], tcp: [{match: [{sourceLabels: {app: client}, sourceNamespace: other}], route: [{destination: {host: a, port: {number: 80}}}]}]}\n---';
  assert.deepEqual(chains(gateway('g', 1, '{port: {number: 5432, name: tcp, protocol: TCP}, hosts: ["*"]}') + route), [['0.0.0.0_5432', [[[], false]]]]);
});

test('TLSRoute on a listener that ends TLS: chains by name, with the listener\'s certificate; a TCPRoute takes the rest', () => {
  const API = 'apiVersion: gateway.networking.k8s.io/v1alpha2';
  const route = (kind: string, more: string): string => `\n${API}\nkind: ${kind}\nmetadata: {name: r, namespace: shop}\nspec: {parentRefs: [{name: g}], ${more}rules: [{backendRefs: [{name: a, port: 80}]}]}\n---`;
  const listener = '{name: tls, port: 443, protocol: TLS, tls: {options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}}}';
  const own = parseProxy('router~10.0.0.8~g.shop~shop.svc.cluster.local', { LABELS: { 'gateway.networking.k8s.io/gateway-name': 'g' } });
  const { generators } = testMesh(`${serviceYaml('shop', 'a', '10.96.0.1', [])}\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: shop}\nspec: {gatewayClassName: istio, listeners: [${listener}]}\n---${route('TLSRoute', 'hostnames: [a.example, b.example], ')}${route('TCPRoute', '')}`);
  const [made] = generators.get(TYPE.listener)!.all(own);
  assert.deepEqual(unpack(Listener, made!.body)!.filter_chains.map((chain) => [chain.filter_chain_match?.server_names ?? [], chain.transport_socket !== undefined]), [[['a.example', 'b.example'], true], [[], true]]);
});

test('httpsRedirect beside a mode that means nothing for plaintext is plaintext still', () => {
  assert.deepEqual(chains(gateway('g', 1, '{port: {number: 8080, name: http, protocol: HTTP}, hosts: ["*"], tls: {mode: PASSTHROUGH, httpsRedirect: true}}')), [['0.0.0.0_8080', [[[], false]]]]);
});

/** Of the only listener's first chain. */
function tlsOf(tls: string): DownstreamTlsContext {
  const { generators } = testMesh(serviceYaml('shop', 'a', '10.96.0.1', []) + gateway('g', 1, `{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: ${tls}}`));
  return unpack(DownstreamTlsContext, unpack(Listener, generators.get(TYPE.listener)!.all(proxy)[0]!.body)!.filter_chains[0]!.transport_socket?.config_type?.value)!;
}

test('TLS of a server: suites that Envoy does not know are left out, it would refuse the listener for them', () => {
  assert.deepEqual(tlsOf('{mode: SIMPLE, credentialName: c, cipherSuites: [NO-SUCH-SUITE, ECDHE-RSA-AES128-GCM-SHA256, ECDHE-RSA-AES128-GCM-SHA256]}').common_tls_context?.tls_params?.cipher_suites, ['ECDHE-RSA-AES128-GCM-SHA256']);
  assert.equal(tlsOf('{mode: SIMPLE, credentialName: c, cipherSuites: [NO-SUCH-SUITE]}').common_tls_context?.tls_params, undefined);
});

test('TLS of a server: whose certificates clients show, and whether they are checked', () => {
  const checked = (tls: string): unknown[] => {
    const validation = tlsOf(tls).common_tls_context?.validation_context_type;
    const context = validation?.$case === 'combined_validation_context' ? validation.value.default_validation_context : undefined;
    return [context?.match_subject_alt_names.map(({ match_pattern: match }) => `${match?.$case} ${String(match?.value)}`), context?.trust_chain_verification];
  };
  assert.deepEqual(checked('{mode: ISTIO_MUTUAL}'), [['prefix spiffe://cluster.local/'], 0]);
  assert.deepEqual(checked('{mode: ISTIO_MUTUAL, subjectAltNames: [spiffe://cluster.local/ns/a/sa/b]}'), [['exact spiffe://cluster.local/ns/a/sa/b'], 0]);
  assert.deepEqual(checked('{mode: MUTUAL, credentialName: c, subjectAltNames: [a.example]}'), [['exact a.example'], 0]);
  assert.deepEqual(checked('{mode: MUTUAL, credentialName: c, insecureSkipVerify: true}'), [[], 1]);
});

test('gatewayTopology: proxies before the gateway are believed as far as its ProxyConfig says', () => {
  const world = serviceYaml('shop', 'a', '10.96.0.1', []) + gateway('g', 1, PLAIN);
  const made = (topology: object): unknown[] => {
    const behind = parseProxy('router~10.0.0.8~ingress.shop~shop.svc.cluster.local', { LABELS: { istio: 'ingressgateway' }, PROXY_CONFIG: { gatewayTopology: topology } });
    const listener = unpack(Listener, testMesh(world).generators.get(TYPE.listener)!.all(behind)[0]!.body)!;
    const manager = unpack(HttpConnectionManager, listener.filter_chains[0]!.filters[0]!.config_type?.value as Any)!;
    return [listener.listener_filters.map(({ name }) => name), manager.xff_num_trusted_hops, manager.forward_client_cert_details, manager.set_current_client_cert_details !== undefined];
  };
  assert.deepEqual(made({}), [[], 0, 3, true]);
  assert.deepEqual(made({ numTrustedProxies: 2, forwardClientCertDetails: 'FORWARD_ONLY', proxyProtocol: {} }), [['envoy.filters.listener.proxy_protocol'], 2, 1, false]);
});
