import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { serviceYaml } from '../testing/mesh.js';
import { testMesh, type TestMesh } from '../testing/model.js';

const API = 'apiVersion: gateway.networking.k8s.io/v1';
const gateway = (listeners: string, more = ''): string => `${API}\nkind: Gateway\nmetadata: {name: gw, namespace: a}\nspec: {gatewayClassName: istio, ${more}listeners: [${listeners}]}\n---\n`;
const { chainPem, privateKeyPem } = await (await CertificateAuthority.create()).issue({ namespace: 'a', serviceAccount: 'gw' });
const secret = (name: string, namespace = 'a'): string => `${JSON.stringify({ apiVersion: 'v1', kind: 'Secret', metadata: { name, namespace }, stringData: { 'tls.crt': chainPem, 'tls.key': privateKeyPem } })}\n---\n`;

/** Of each listener the conditions that are not as they should be. */
function amiss({ model }: TestMesh): Record<string, string[]> {
  const [one] = model.gatewayApi.status.gateways;
  return Object.fromEntries(one!.status.listeners!.map(({ name, conditions }) => [name, conditions.filter(({ type, status }) => (type === 'Conflicted') === (status === 'True')).map(({ type, reason }) => `${type}=${reason}`)]));
}
const served = ({ model }: TestMesh): string[] => model.gateways.map(({ object }) => object.spec.servers![0]!.port.name!);

test('listeners that can not be told apart: none of them is served, others are', () => {
  const tls = 'tls: {mode: Passthrough}';
  const mesh = testMesh(gateway(`{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: TLS, ${tls}}, {name: c, port: 443, protocol: TLS, hostname: x.example, ${tls}}, {name: d, port: 443, protocol: TLS, hostname: y.example, ${tls}}, {name: e, port: 443, protocol: HTTPS, hostname: y.example, tls: {options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}}}, {name: f, port: 5432, protocol: TCP}, {name: g, port: 5432, protocol: HTTP}`));
  const refused = (reason: string): string[] => [`Accepted=${reason}`, `Conflicted=${reason}`, 'Programmed=Invalid'];
  const [protocol, host] = [refused('ProtocolConflict'), refused('HostnameConflict')];
  assert.deepEqual(amiss(mesh), { a: protocol, b: protocol, c: [], d: host, e: host, f: protocol, g: protocol });
  assert.deepEqual(served(mesh), ['c']);
  const { conditions } = mesh.model.gatewayApi.status.gateways[0]!.status;
  assert.deepEqual([conditions![0]!.status, conditions![0]!.reason, conditions![0]!.message], ['True', 'ListenersNotValid', 'listeners that are not accepted: a, b, d, e, f, g']);
});

test('a waypoint is programmed by its HBONE listener alone, and has no servers', () => {
  const mesh = testMesh(gateway('{name: mesh, port: 15008, protocol: HBONE}, {name: http, port: 80, protocol: HTTP}').replace('gatewayClassName: istio,', 'gatewayClassName: istio-waypoint,'));
  assert.deepEqual([amiss(mesh), served(mesh)], [{ mesh: [], http: ['Accepted=UnsupportedProtocol', 'Programmed=Invalid'] }, []]);
  assert.deepEqual(mesh.model.gatewayApi.status.gateways[0]!.status.conditions!.map(({ type, status }) => [type, status]), [['Accepted', 'True'], ['Programmed', 'True']]);
  const alone = testMesh(gateway('{name: http, port: 80, protocol: HTTP}').replace('gatewayClassName: istio,', 'gatewayClassName: istio-waypoint,'));
  assert.deepEqual(alone.model.gatewayApi.status.gateways[0]!.status.conditions!.map(({ type, status }) => [type, status]), [['Accepted', 'False'], ['Programmed', 'False']]);
});

test('a listener is served once a certificate of its is there, and says what is missing until then', () => {
  const mesh = testMesh(gateway('{name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: one}, {name: two}]}}'));
  assert.deepEqual([amiss(mesh), served(mesh)], [{ https: ['ResolvedRefs=InvalidCertificateRef', 'Programmed=Invalid'] }, []]);
  const change = mesh.apply(secret('two'));
  assert.ok(change.touches('Gateway'), 'gateways are looked at again');
  assert.deepEqual([amiss(mesh), served(mesh)], [{ https: ['ResolvedRefs=InvalidCertificateRef'] }, ['https']]);
  assert.equal(mesh.model.gateways[0]!.object.spec.servers![0]!.tls!.credentialName, 'kubernetes-gateway://a/two');
  mesh.apply(secret('one'));
  assert.deepEqual([amiss(mesh), mesh.model.gateways[0]!.object.spec.servers![0]!.tls!.credentialNames], [{ https: [] }, ['kubernetes-gateway://a/one', 'kubernetes-gateway://a/two']]);
  assert.ok(!mesh.apply(secret('one')).touches('Gateway'), 'a renewed certificate is no other listener');
});

test('a Secret of another namespace: without a grant nothing is said about it but that', () => {
  const mesh = testMesh(gateway('{name: there, port: 443, protocol: HTTPS, hostname: a.example, tls: {certificateRefs: [{name: one, namespace: b}]}}, {name: not, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: gone, namespace: b}]}}') + secret('one', 'b'));
  assert.deepEqual(amiss(mesh), { there: ['ResolvedRefs=RefNotPermitted', 'Programmed=Invalid'], not: ['ResolvedRefs=RefNotPermitted', 'Programmed=Invalid'] });
  mesh.apply('apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: b}\nspec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: a}], to: [{group: "", kind: Secret}]}\n');
  assert.deepEqual(amiss(mesh), { there: [], not: ['ResolvedRefs=InvalidCertificateRef', 'Programmed=Invalid'] });
});

test('allowedRoutes: a kind that the listener can not take is said, what it can is taken', () => {
  const kinds = (list: string): string => `allowedRoutes: {kinds: [${list}]}`;
  const mesh = testMesh(gateway(`{name: some, port: 80, protocol: HTTP, ${kinds('{kind: HTTPRoute}, {kind: TCPRoute}')}}, {name: foreign, port: 81, protocol: HTTP, ${kinds('{kind: HTTPRoute, group: example.com}')}}, {name: fine, port: 82, protocol: HTTP, ${kinds('{kind: GRPCRoute}')}}`));
  assert.deepEqual(amiss(mesh), { some: ['ResolvedRefs=InvalidRouteKinds'], foreign: ['ResolvedRefs=InvalidRouteKinds'], fine: [] });
  assert.deepEqual(mesh.model.gatewayApi.status.gateways[0]!.status.listeners!.map(({ supportedKinds }) => supportedKinds!.map(({ kind }) => kind)), [['HTTPRoute'], [], ['GRPCRoute']]);
});

test('client certificates by Istio\'s option: asked for, or asked for and not needed', () => {
  const modes = (option: string): unknown => testMesh(gateway(`{name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: one}], options: {gateway.istio.io/tls-terminate-mode: ${option}}}}`) + secret('one')).model.gateways[0]!.object.spec.servers![0]!.tls!.mode;
  assert.deepEqual(['MUTUAL', 'OPTIONAL_MUTUAL', 'SIMPLE'].map(modes), ['MUTUAL', 'OPTIONAL_MUTUAL', 'SIMPLE']);
});

test('TLS that passes through by SNI of the mesh\'s own clusters: by Istio\'s option, or on the port of a Gateway of a network', () => {
  const modes = (labels: string): unknown[] => {
    const passing = (name: string, port: number, options = ''): string => `{name: ${name}, port: ${port}, protocol: TLS, tls: {mode: Passthrough${options}}}`;
    const yaml = gateway([passing('usual', 15443), passing('other', 16443), passing('asked', 17443, ', options: {gateway.istio.io/listener-protocol: auto-passthrough}')].join(', '));
    return testMesh(yaml.replace('namespace: a}', `namespace: a, labels: {${labels}}}`)).model.gateways.map(({ object }) => object.spec.servers![0]).filter((server) => server!.tls!.mode === 'AUTO_PASSTHROUGH').map((server) => server!.port.number).sort();
  };
  assert.deepEqual(modes(''), [17443]);
  assert.deepEqual(modes('topology.istio.io/network: one'), [15443, 17443]);
  assert.deepEqual(modes('topology.istio.io/network: one, networking.istio.io/gatewayPort: "16443"'), [16443, 17443]);
});

test('a host goes to the nearest listener of the port alone', () => {
  const route = (name: string, more: string): string => `${API}\nkind: HTTPRoute\nmetadata: {name: ${name}, namespace: a}\nspec: {${more}, rules: [{backendRefs: [{name: web, port: 80}]}]}\n---\n`;
  const listeners = '{name: all, port: 80, protocol: HTTP}, {name: wild, port: 80, protocol: HTTP, hostname: "*.example"}, {name: own, port: 80, protocol: HTTP, hostname: a.example}, {name: other, port: 81, protocol: HTTP}';
  const { model } = testMesh(gateway(listeners) + route('whole', 'parentRefs: [{name: gw}], hostnames: [a.example, b.example, c.test]') + route('part', 'parentRefs: [{name: gw, sectionName: all}], hostnames: [a.example]') + serviceYaml('a', 'web', '10.96.0.1', []));
  const hosts = model.virtualServices.map(({ object: { spec } }) => `${spec.gateways![0]!.split('-').at(-1)} ${spec.hosts![0]}`).sort();
  assert.deepEqual(hosts, ['all c.test', 'other a.example', 'other b.example', 'other c.test', 'own a.example', 'wild b.example']);
  const { listeners: counted } = model.gatewayApi.status.gateways[0]!.status;
  assert.deepEqual(counted!.map(({ name, attachedRoutes }) => [name, attachedRoutes]), [['all', 2], ['wild', 1], ['own', 1], ['other', 1]]);
});

test('a Gateway on a Service\'s proxies is for those of that namespace', () => {
  const { model } = testMesh(gateway('{name: http, port: 80, protocol: HTTP}', 'addresses: [{type: Hostname, value: web.b.svc.cluster.local}], ') + serviceYaml('b', 'web', '10.96.0.1', []));
  const [{ object }] = model.gateways as [(typeof model.gateways)[number]];
  assert.deepEqual([object.spec.selector, Object.values(object.metadata.annotations!)], [{ app: 'web' }, ['b']]);
});
