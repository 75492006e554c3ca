import assert from 'node:assert/strict';
import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { envoyBinary } from '../../../common/paths.js';
import { run } from '../../../common/process.js';
import { unpack } from '../../../common/xds/any.js';
import { Bootstrap } from '../../../proto/generated/envoy/config/bootstrap/v3/bootstrap.js';
import { Cluster } from '../../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { Listener } from '../../../proto/generated/envoy/config/listener/v3/listener.js';
import { RBAC_Action } from '../../../proto/generated/envoy/config/rbac/v3/rbac.js';
import { RBAC as HttpRbac } from '../../../proto/generated/envoy/extensions/filters/http/rbac/v3/rbac.js';
import { JwtAuthentication } from '../../../proto/generated/envoy/extensions/filters/http/jwt_authn/v3/config.js';
import { HttpConnectionManager, HttpConnectionManager_PathWithEscapedSlashesAction } from '../../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { RBAC as NetworkRbac } from '../../../proto/generated/envoy/extensions/filters/network/rbac/v3/rbac.js';
import { usableJwks } from '../../model/jwks.js';
import type { MeshConfig } from '../../model/mesh.js';
import { effectiveMtls } from '../../model/peer-authentication.js';
import { podYaml, serviceYaml, type PodSpec } from '../../testing/mesh.js';
import { testMesh, testProxy } from '../../testing/model.js';
import { virtualInbound } from '../inbound.js';
import { TYPE } from '../resource.js';
import { policiesOfWorkload } from '../authorizations.js';
import { securityFilters, securityHttpFilters } from './filters.js';

const web: PodSpec = { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web', 'security.istio.io/tlsMode': 'istio' } };
const world = podYaml('shop', web) + serviceYaml('shop', 'web', '10.96.0.1', [web]) + serviceYaml('auth', 'authz', '10.96.0.9', [], 'name: grpc, port: 9000');
const proxy = testProxy('10.0.0.1', 'web-1.shop', web.labels);

interface PolicyOptions {
  kind?: string;
  namespace?: string;
  annotations?: string;
}

const policy = (name: string, spec: string, { kind = 'AuthorizationPolicy', namespace = 'shop', annotations = '{}' }: PolicyOptions = {}): string =>
  `\n---\napiVersion: security.istio.io/v1\nkind: ${kind}\nmetadata: {name: ${name}, namespace: ${namespace}, annotations: ${annotations}}\nspec: ${spec}\n`;

const httpNames = (yaml: string, mesh: Partial<MeshConfig> = {}): string[] =>
  securityHttpFilters(testMesh(world + yaml, mesh).model, proxy).map((filter) => {
    const any = filter.config_type?.$case === 'typed_config' ? filter.config_type.value : undefined;
    const rbac = unpack(HttpRbac, any);
    if (!rbac) return filter.name.replace('envoy.filters.http.', '');
    const about = (rules: typeof rbac.rules, prefix: string): string => (rules ? `${prefix}${RBAC_Action[rules.action]}(${Object.keys(rules.policies).map((name) => /policy\[(.*?)\]/.exec(name)![1]! + (/-deny-due/.test(name) ? '!' : '')).join(' ')})` : '');
    return [about(rbac.rules, ''), about(rbac.shadow_rules, 'shadow-')].filter(Boolean).join('+');
  });

const grpcProvider: Partial<MeshConfig> = { extensionProviders: [{ name: 'opa', envoyExtAuthzGrpc: { service: 'authz.auth.svc.cluster.local', port: 9000 } }, { name: 'gone', envoyExtAuthzHttp: { service: 'gone.auth.svc.cluster.local', port: 80 } }] };

test('policies decide in the order CUSTOM, tokens, AUDIT, DENY, ALLOW, whatever the order of their writing', () => {
  const all =
    policy('allow', '{rules: [{}]}') + policy('deny', '{action: DENY, rules: [{}]}') + policy('ext', '{action: CUSTOM, provider: {name: opa}, rules: [{}]}') + policy('audit', '{action: AUDIT, rules: [{}]}') +
    policy('jwt', '{jwtRules: [{issuer: i, jwks: \'{"keys":[{"kty":"oct","k":"eA"}]}\'}]}', { kind: 'RequestAuthentication' });
  assert.deepEqual(httpNames(all, grpcProvider), ['shadow-DENY(ext)', 'ext_authz', 'jwt_authn', 'LOG(audit)', 'DENY(deny)', 'ALLOW(allow)']);
});

test('policies of the root and the own namespace apply, by selector; others and those with targetRefs do not', () => {
  assert.deepEqual(
    httpNames(
      policy('root', '{rules: [{}]}', { namespace: 'istio-system' }) + policy('own', '{rules: [{}]}') + policy('elsewhere', '{rules: [{}]}', { namespace: 'other' }) +
        policy('selected', '{selector: {matchLabels: {app: web}}, rules: [{}]}') + policy('unselected', '{selector: {matchLabels: {app: api}}, rules: [{}]}') + policy('gateway', '{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}], rules: [{}]}'),
    ),
    ['ALLOW(root own selected)'],
  );
});

test('targetRefs: the proxy of the Gateway that is named obeys, a class is named in the root namespace alone', () => {
  const gateway = testProxy('10.0.0.7', 'g-1.shop', { 'gateway.networking.k8s.io/gateway-name': 'g', 'gateway.networking.k8s.io/gateway-class-name': 'istio' });
  const { model } = testMesh(
    world + policy('mine', '{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}], rules: [{}]}') + policy('other', '{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: h}], rules: [{}]}') +
      policy('class', '{action: DENY, targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio}], rules: [{}]}', { namespace: 'istio-system' }),
  );
  const names = securityFilters(model, { ...gateway, type: 'router' }).authorization.flatMap((filter) => Object.keys(unpack(HttpRbac, filter.config_type!.value as never)!.rules!.policies));
  assert.deepEqual(names, ['ns[istio-system]-policy[class]-rule[0]', 'ns[shop]-policy[mine]-rule[0]']);
});

test('dry-run policies are shadow rules, with the statistics prefix of their action', () => {
  const dry = { annotations: '{istio.io/dry-run: "true"}' };
  assert.deepEqual(httpNames(policy('a', '{rules: [{}]}', dry) + policy('b', '{rules: [{}]}') + policy('d', '{action: DENY, rules: [{}]}', dry)), ['shadow-DENY(d)', 'ALLOW(b)+shadow-ALLOW(a)']);
  const { model } = testMesh(world + policy('d', '{action: DENY, rules: [{}]}', dry));
  assert.equal(unpack(NetworkRbac, securityFilters(model, proxy).network[0]!.config_type!.value as never)!.shadow_rules_stat_prefix, 'istio_dry_run_deny_');
});

test('CUSTOM: what policies match is refused while their provider is not there, or when a workload has several', () => {
  const custom = (name: string, provider: string): string => policy(name, `{action: CUSTOM, provider: {name: ${provider}}, rules: [{}]}`);
  assert.deepEqual(httpNames(custom('a', 'nobody'), grpcProvider), ['DENY(a!)']);
  assert.deepEqual(httpNames(custom('a', 'gone'), grpcProvider), ['DENY(a!)']);
  assert.deepEqual(httpNames(custom('a', 'opa') + custom('b', 'gone'), grpcProvider), ['DENY(b!)', 'DENY(a!)']);
});

test('several issuers: each token must be good, one that several could have issued must be good for one of them', () => {
  const { model } = testMesh(world + policy('two', '{jwtRules: [{issuer: b, jwksUri: "https://b.example/keys"}, {issuer: a, jwks: \'{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}\'}]}', { kind: 'RequestAuthentication' }));
  const [filter] = securityFilters(model, proxy).authentication;
  const { providers, rules } = unpack(JwtAuthentication, filter!.config_type!.value as never)!;
  assert.deepEqual(Object.entries(providers).map(([name, { issuer }]) => `${name} ${issuer}`), ['origins-0 a', 'origins-1 b']);
  // Keys that were not fetched, or that are none, are somebody's whom nobody is.
  for (const { jwks_source_specifier: source } of Object.values(providers)) assert.match(JSON.stringify(source), /nobody/);
  const requires = rules[0]!.requirement_type!.value as { requires_type: { $case: string; value: { requirements: { requires_type: { $case: string } }[] } } };
  assert.deepEqual(requires.requires_type.value.requirements.map(({ requires_type }) => requires_type.$case), ['provider_name', 'provider_name', 'requires_all']);
  const taken = model.setJwks('https://b.example/keys', '{"keys":[{"kty":"oct","k":"eA"}]}');
  assert.deepEqual([...taken.configs.get('RequestAuthentication')!], ['shop/two']);
  assert.match(JSON.stringify(unpack(JwtAuthentication, securityFilters(model, proxy).authentication[0]!.config_type!.value as never)!.providers['origins-1']), /eA/);
});

const peer = (name: string, spec: string, more: PolicyOptions = {}): string => policy(name, spec, { kind: 'PeerAuthentication', ...more });

test('effectiveMtls: the narrower scope counts, UNSET inherits, of several the oldest, a selector in the root namespace none', () => {
  const mode = (yaml: string, port = 80): string => effectiveMtls(testMesh(world + yaml).model, web.labels, 'shop', port);
  const mesh = peer('mesh', '{mtls: {mode: STRICT}}', { namespace: 'istio-system' });
  const own = peer('own', '{mtls: {mode: DISABLE}}');
  const workload = (spec: string): string => peer('workload', `{selector: {matchLabels: {app: web}}, ${spec}}`);
  assert.equal(mode(''), 'PERMISSIVE');
  assert.equal(mode(mesh), 'STRICT');
  assert.equal(mode(mesh + own), 'DISABLE');
  assert.equal(mode(mesh + peer('own', '{mtls: {mode: UNSET}}')), 'STRICT');
  assert.equal(mode(mesh + own + workload('mtls: {mode: PERMISSIVE}')), 'PERMISSIVE');
  assert.equal(mode(mesh + workload('portLevelMtls: {80: {mode: DISABLE}, 81: {mode: UNSET}}')), 'DISABLE');
  assert.equal(mode(mesh + workload('portLevelMtls: {80: {mode: DISABLE}, 81: {mode: UNSET}}'), 81), 'STRICT');
  assert.equal(mode(mesh + workload('portLevelMtls: {80: {mode: DISABLE}}'), 82), 'STRICT');
  assert.equal(mode(peer('selected', '{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}', { namespace: 'istio-system' })), 'PERMISSIVE');
  const aged = (name: string, age: string, value: string): string => peer(name, `{mtls: {mode: ${value}}}`).replace('metadata: {', `metadata: {creationTimestamp: "${age}", `);
  assert.equal(mode(aged('a', '2026-01-02T00:00:00Z', 'STRICT') + aged('b', '2026-01-01T00:00:00Z', 'DISABLE')), 'DISABLE');
});

test('a change of a policy names the proxies, workloads and hosts that it is about', () => {
  const mesh = testMesh(world + podYaml('other', { ...web, name: 'far', ip: '10.0.0.5' }));
  const change = mesh.apply(peer('p', '{mtls: {mode: DISABLE}}'));
  assert.deepEqual([...change.endpoints], ['web.shop.svc.cluster.local']);
  assert.deepEqual([...change.addresses], ['Kubernetes//Pod/shop/web-1']);
  const listeners = mesh.generators.get(TYPE.listener)!;
  assert.equal(listeners.affected(proxy, change, new Set()), 'all');
  assert.deepEqual([...listeners.affected(testProxy('10.0.0.5', 'far.other'), change, new Set())], []);
  assert.deepEqual([...mesh.apply(policy('a', '{rules: [{}]}')).addresses], []);
  assert.deepEqual([...mesh.apply(policy('b', '{selector: {matchLabels: {app: web}}, rules: [{}]}')).addresses], ['Kubernetes//Pod/shop/web-1']);
  assert.deepEqual(policiesOfWorkload(mesh.model, 'shop', web.labels), ['shop/b']);
  mesh.apply(`
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: shop, labels: {app: web}}
spec: {address: 10.9.9.9}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: shop}
spec: {hosts: [db.example], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 5432, name: tcp, protocol: TCP}], endpoints: [{address: 10.9.9.8, labels: {app: web}}]}
`);
  const addresses = [...mesh.apply(policy('b', '{selector: {matchLabels: {app: web}}, rules: []}')).addresses];
  assert.deepEqual(addresses.sort(), ['Kubernetes//Pod/shop/web-1', 'Kubernetes/networking.istio.io/ServiceEntry/shop/db/10.9.9.8', 'Kubernetes/networking.istio.io/WorkloadEntry/shop/vm']);
});

test('policiesOfWorkload: exceptions by port stand for the whole of a STRICT workload, whoever made it STRICT', () => {
  const strict = peer('ns', '{mtls: {mode: STRICT}}');
  const ports = (spec: string): string => peer('w', `{selector: {matchLabels: {app: web}}, ${spec}}`);
  const named = (yaml: string): string[] => policiesOfWorkload(testMesh(world + yaml).model, 'shop', web.labels);
  assert.deepEqual(named(strict), ['istio-system/istio_converted_static_strict']);
  assert.deepEqual(named(strict + ports('portLevelMtls: {80: {mode: DISABLE}}')), ['shop/converted_peer_authentication_w']);
  assert.deepEqual(named(strict + ports('portLevelMtls: {80: {mode: STRICT}}')), ['istio-system/istio_converted_static_strict']);
  assert.deepEqual(named(ports('portLevelMtls: {80: {mode: STRICT}}')), ['shop/converted_peer_authentication_w']);
  assert.deepEqual(named(ports('mtls: {mode: PERMISSIVE}, portLevelMtls: {80: {mode: DISABLE}}')), []);
});

const publicJwk = (key: KeyObject, more: object = {}): object => ({ ...key.export({ format: 'jwk' }), ...more });

/** Good ones of each kind among such as Envoy refuses a listener for. */
const MIXED_KEYS = JSON.stringify({
  keys: [
    publicJwk(generateKeyPairSync('rsa', { modulusLength: 2_048 }).publicKey, { alg: 'RS256', kid: 'r' }),
    publicJwk(generateKeyPairSync('ec', { namedCurve: 'P-384' }).publicKey, { alg: 'ES384' }),
    publicJwk(generateKeyPairSync('ed25519').publicKey),
    { kty: 'oct', k: 'c2VjcmV0', alg: 'HS256' },
    { kty: 'RSA', n: 'AQAB', e: 'AQAB' },
    { kty: 'RSA', n: 'not base64!' },
    publicJwk(generateKeyPairSync('rsa', { modulusLength: 512 }).publicKey),
    publicJwk(generateKeyPairSync('ec', { namedCurve: 'secp256k1' }).publicKey),
    publicJwk(generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey, { alg: 'RS256' }),
    publicJwk(generateKeyPairSync('ed25519').publicKey, { kid: 5 }),
    { kty: 'unheard-of' },
    {},
    null,
  ],
});

test('usableJwks: keys that Envoy can not read are left out, a good set stays as it is written', () => {
  assert.equal((JSON.parse(usableJwks(MIXED_KEYS)!) as { keys: unknown[] }).keys.length, 4);
  assert.equal(usableJwks(' {"keys": [{"kty": "oct", "k": "eA"}]}'), ' {"keys": [{"kty": "oct", "k": "eA"}]}');
  assert.equal(usableJwks('{"kty": "oct", "k": "eA"}'), '{"keys":[{"kty":"oct","k":"eA"}]}');
  for (const none of ['', '[]', '{}', 'null', '{"keys": []}', '{"keys": [{"kty": "RSA"}]}', '{"keys": {}}']) assert.equal(usableJwks(none), undefined, none);
});

test('trustDomainAliases: clients take servers, servers take clients, policies take callers of each of the mesh\'s trust domains', () => {
  const { model, generators } = testMesh(world + policy('who', '{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b]}}]}]}'), { trustDomain: 'new', trustDomainAliases: ['old'] });
  const texts = [virtualInbound(model, proxy), generators.get(TYPE.cluster)!.one(proxy, 'outbound|80||web.shop.svc.cluster.local')!].map(({ body }) => Buffer.from(body.value).toString('latin1'));
  for (const domain of ['new', 'old']) {
    assert.match(texts[0]!, new RegExp(`spiffe://${domain}/[^n]`), 'the server');
    assert.match(texts[0]!, new RegExp(`spiffe://${domain}/ns/a/sa/b`), 'the policy');
    assert.match(texts[1]!, new RegExp(`spiffe://${domain}/ns/shop/sa/default`), 'the client');
  }
  assert.doesNotMatch(texts.join(), /spiffe:\/\/cluster\.local/);
});

test('pathNormalization: policies and routes judge the path that goes on', () => {
  const manager = (mesh: Partial<MeshConfig>) => {
    const { filter_chains } = Listener.decode(virtualInbound(testMesh(world, mesh).model, proxy).body.value);
    const { normalize_path, merge_slashes, path_with_escaped_slashes_action } = filter_chains.flatMap(({ filters }) => filters).flatMap(({ config_type }) => unpack(HttpConnectionManager, config_type!.value as never) ?? [])[0]!;
    return [normalize_path, merge_slashes, HttpConnectionManager_PathWithEscapedSlashesAction[path_with_escaped_slashes_action]];
  };
  assert.deepEqual(manager({}), [true, false, 'KEEP_UNCHANGED']);
  assert.deepEqual(manager({ pathNormalization: 'NONE' }), [false, false, 'KEEP_UNCHANGED']);
  assert.deepEqual(manager({ pathNormalization: 'MERGE_SLASHES' }), [true, true, 'KEEP_UNCHANGED']);
  assert.deepEqual(manager({ pathNormalization: 'DECODE_AND_MERGE_SLASHES' }), [true, true, 'UNESCAPE_AND_FORWARD']);
});

test('replicas share their inbound listener; a policy, a port or a mode of its own parts them', () => {
  const twin: PodSpec = { ...web, name: 'web-2', ip: '10.0.0.2', labels: { ...web.labels, 'pod-template-hash': 'x' } };
  const mesh = testMesh(world + podYaml('shop', twin) + podYaml('other', { ...web, name: 'far', ip: '10.0.0.3' }));
  const of = (ip: string, name: string) => mesh.generators.get(TYPE.listener)!.all(testProxy(ip, name)).find((resource) => resource.name === 'virtualInbound')!;
  const same = (): boolean => of('10.0.0.1', 'web-1.shop') === of('10.0.0.2', 'web-2.shop');
  assert.equal(same(), true);
  assert.notEqual(of('10.0.0.1', 'web-1.shop').version, of('10.0.0.3', 'far.other').version, 'no service there');
  const before = of('10.0.0.1', 'web-1.shop').version;
  mesh.apply(policy('both', '{rules: [{}]}'));
  assert.equal(same(), true);
  assert.notEqual(of('10.0.0.1', 'web-1.shop').version, before);
  mesh.apply(policy('one', '{selector: {matchLabels: {pod-template-hash: x}}, rules: []}'));
  assert.equal(same(), false);
  mesh.remove('security.istio.io/AuthorizationPolicy/shop/one');
  assert.equal(same(), true);
  mesh.apply(peer('one', '{selector: {matchLabels: {pod-template-hash: x}}, mtls: {mode: STRICT}}'));
  assert.equal(same(), false);
});

const EVERYTHING = `{action: ACTION, rules: [{
  from: [{source: {principals: ["a/ns/b/sa/c", "*"], notPrincipals: ["*x"], requestPrincipals: ["i/s", "*"], notRequestPrincipals: ["no/*"], namespaces: [a, "b*"], notNamespaces: [c], trustDomains: [td, "x*"], notTrustDomains: [y], ipBlocks: [10.0.0.0/8], notIpBlocks: ["fd00::1"], remoteIpBlocks: [1.2.3.4], notRemoteIpBlocks: [1.2.3.5]}}, {source: {serviceAccounts: [x/y], notServiceAccounts: [z]}}],
  to: [{operation: {hosts: [a, "*.b"], notHosts: [c], ports: ["80"], notPorts: ["81"], methods: [GET, "*"], notMethods: [PUT], paths: ["/a", "/b/*", "*.c", "/d/{*}/{**}"], notPaths: ["/e/{*}"]}}],
  when: [{key: "request.headers[x]", values: [a, "*"]}, {key: "request.experimental.inline.headers[y]", values: [a]}, {key: source.ip, values: [1.1.1.1]}, {key: remote.ip, notValues: [1.1.1.1]}, {key: source.namespace, values: [a]}, {key: source.serviceAccount, values: [a]}, {key: source.principal, values: [a]}, {key: request.auth.principal, values: [a/b]}, {key: request.auth.audiences, values: [a, b]}, {key: request.auth.presenter, values: [a]}, {key: "request.auth.claims[a][b]", values: [a]}, {key: destination.ip, values: [1.1.1.1]}, {key: destination.port, values: ["80"]}, {key: connection.sni, values: [a]}, {key: "experimental.envoy.filters.http.x[y]", values: ["[a]", b]}]}]}`;

const CUSTOM = `{action: CUSTOM, provider: {name: opa}, rules: [{
  from: [{source: {ipBlocks: [10.0.0.0/8], notIpBlocks: ["fd00::1"], remoteIpBlocks: [1.2.3.4], notRemoteIpBlocks: [1.2.3.5]}}],
  to: [{operation: {hosts: [a], ports: ["80"], methods: [GET], paths: ["/a", "/d/{*}/{**}"]}}],
  when: [{key: "request.headers[x]", values: [a, "*"]}, {key: destination.port, values: ["80"]}]}]}`;

test('Envoy takes what every field of every policy becomes, in every mode of mutual TLS', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-security-'));
  try {
    const ports = 'name: http, port: 80, targetPort: 80}, {name: tcp-a, port: 90, targetPort: 90}, {name: unknown, port: 100, targetPort: 100';
    const pods = podYaml('shop', web) + serviceYaml('shop', 'web', '10.96.0.1', [web], ports) + serviceYaml('auth', 'authz', '10.96.0.9', [], 'name: grpc, port: 9000');
    const policies =
      ['ALLOW', 'DENY', 'AUDIT'].map((action) => policy(action.toLowerCase(), EVERYTHING.replace('ACTION', action))).join('') + policy('custom', CUSTOM) +
      policy('dry', '{rules: [{}]}', { annotations: '{istio.io/dry-run: "true"}' }) +
      policy('jwt', `{jwtRules: [{issuer: a, jwksUri: "http://a/", audiences: [b], fromHeaders: [{name: x, prefix: "y "}], fromParams: [p], fromCookies: [c], forwardOriginalToken: true, outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-sub, claim: sub}], spaceDelimitedClaims: [s]}, {issuer: b, jwksUri: "http://b/"}]}`, { kind: 'RequestAuthentication' });
    const providers: MeshConfig['extensionProviders'][] = [
      [{ name: 'opa', envoyExtAuthzGrpc: { service: 'auth/authz.auth.svc.cluster.local', port: 9000, timeout: '1s', failOpen: true, statusOnError: '503', includeRequestBodyInCheck: { maxRequestBytes: 1024, allowPartialMessage: true } } }],
      [{ name: 'opa', envoyExtAuthzHttp: { service: 'authz.auth.svc.cluster.local', port: 9000, pathPrefix: '/check', includeRequestHeadersInCheck: ['x-a', 'x-b*'], includeAdditionalHeadersInCheck: { 'x-c': 'd' }, headersToUpstreamOnAllow: ['x-e'], headersToDownstreamOnDeny: ['x-f'], headersToDownstreamOnAllow: ['x-g'] } }],
    ];
    for (const [index, mode] of ['STRICT', 'PERMISSIVE', 'DISABLE'].entries()) {
      const { model } = testMesh(pods + policies + peer('p', `{selector: {matchLabels: {app: web}}, mtls: {mode: ${mode}}, portLevelMtls: {90: {mode: STRICT}, 7000: {mode: DISABLE}, 7001: {mode: STRICT}}}`), { extensionProviders: providers[index % 2]!, trustDomainAliases: ['old'], meshMtlsMinProtocolVersion: 'TLSV1_3' });
      model.setJwks('http://b/', usableJwks(MIXED_KEYS));
      const file = join(folder, `${mode}.pb`);
      const sds = Cluster.fromPartial({ name: 'sds-grpc', connect_timeout: { seconds: 1n, nanos: 0 }, load_assignment: { cluster_name: 'sds-grpc', endpoints: [{ lb_endpoints: [{ host_identifier: { $case: 'endpoint', value: { address: { address: { $case: 'pipe', value: { path: join(folder, 'sds.sock') } } } } } }] }] } });
      const statics = ['BlackHoleCluster', 'InboundPassthroughCluster', 'inbound|80||', 'inbound|90||', 'inbound|100||', 'outbound|9000||authz.auth.svc.cluster.local'].map((name) => Cluster.fromPartial({ ...sds, name, load_assignment: { ...sds.load_assignment!, cluster_name: name } }));
      writeFileSync(file, Bootstrap.encode(Bootstrap.fromPartial({ node: { id: 'x', cluster: 'x' }, static_resources: { clusters: [sds, ...statics], listeners: [Listener.decode(virtualInbound(model, proxy).body.value)] } })).finish());
      await run(envoyBinary(), ['--mode', 'validate', '-c', file, '--log-level', 'error'], { timeoutMs: 60_000 });
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
