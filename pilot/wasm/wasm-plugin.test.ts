import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseYaml } from '../../common/kube/yaml.js';
import { unpack } from '../../common/xds/any.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { Wasm } from '../../proto/generated/envoy/extensions/filters/http/wasm/v3/wasm.js';
import { TYPE } from '../generate/resource.js';
import { podYaml, serviceYaml } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';
import { References } from '../validation/references.js';
import type { Proxy } from '../model/proxy.js';

const web = { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web' }, port: 8080 };
const WORLD =
  podYaml('shop', web) + serviceYaml('shop', 'web', '10.96.0.1', [web], 'name: http, port: 80, targetPort: 8080') + serviceYaml('tools', 'modules', '10.96.0.5', [], 'name: http, port: 80');
const server = testProxy('10.0.0.1', 'web-1.shop', { app: 'web' });
const SHA = 'a'.repeat(64);

const plugin = (name: string, spec: string, namespace = 'shop'): string => `
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: ${name}, namespace: ${namespace}}
spec: {${spec}}
---`;

function managers(mesh: TestMesh, proxy: Proxy, listener: string, port?: number): HttpConnectionManager[] {
  const resource = mesh.generators.get(TYPE.listener)!.all(proxy).find(({ name }) => name === listener)!;
  const chains = Listener.decode(resource.body.value).filter_chains.filter((chain) => port === undefined || chain.filter_chain_match?.destination_port === port);
  return chains.flatMap(({ filters }) => filters).flatMap((item) => (item.config_type?.$case === 'typed_config' ? (unpack(HttpConnectionManager, item.config_type.value) ?? []) : []));
}
const names = (mesh: TestMesh, listener: string, port?: number): string[] => managers(mesh, server, listener, port)[0]!.http_filters.map(({ name }) => name.replace('envoy.filters.http.', ''));

test('WasmPlugin: phases in order around policy, the higher priority first within one', () => {
  const policy = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: some, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}
---`;
  const url = 'url: "file:///plugin.wasm"';
  const mesh = testMesh(
    WORLD + policy + plugin('last', url) + plugin('stats', `${url}, phase: STATS`) + plugin('authz', `${url}, phase: AUTHZ, priority: 1`) + plugin('authz-first', `${url}, phase: AUTHZ, priority: 10`) +
      plugin('authn', `${url}, phase: AUTHN`) + plugin('everywhere', `${url}, phase: AUTHN, priority: -1`, 'istio-system') + plugin('else', url, 'other') + plugin('unselected', `${url}, selector: {matchLabels: {app: other}}`),
  );
  const found = names(mesh, 'virtualInbound', 8080);
  const mine = found.filter((name) => name.includes('.') || name === 'rbac' || name === 'router');
  assert.deepEqual(mine, ['shop.authn', 'istio-system.everywhere', 'shop.authz-first', 'shop.authz', 'rbac', 'shop.stats', 'shop.last', 'router']);
  assert.equal(found.at(-2), 'shop.last');
});

test('WasmPlugin: phases stand between external authorization, tokens and policies', () => {
  const security = (kind: string, spec: string): string => `\napiVersion: security.istio.io/v1\nkind: ${kind}\nmetadata: {name: ${kind.toLowerCase()}${spec.length}, namespace: shop}\nspec: ${spec}\n---`;
  const url = 'url: "file:///plugin.wasm"';
  const mesh = testMesh(
    WORLD + security('AuthorizationPolicy', '{rules: [{}]}') + security('AuthorizationPolicy', '{action: CUSTOM, provider: {name: ext}, rules: [{}]}') + security('RequestAuthentication', `{jwtRules: [{issuer: i, jwks: '{"keys":[{"kty":"oct","k":"eA"}]}'}]}`) +
      plugin('authn', `${url}, phase: AUTHN`) + plugin('authz', `${url}, phase: AUTHZ`) + plugin('stats', `${url}, phase: STATS`),
    { extensionProviders: [{ name: 'ext', envoyExtAuthzHttp: { service: 'modules.tools.svc.cluster.local', port: 80 } }] },
  );
  assert.deepEqual(names(mesh, 'virtualInbound', 8080).slice(0, 7), ['rbac', 'ext_authz', 'shop.authn', 'jwt_authn', 'shop.authz', 'rbac', 'shop.stats']);
});

test('WasmPlugin: match keeps it to a side and to ports', () => {
  const mesh = testMesh(WORLD + plugin('server', 'url: "file:///p", match: [{mode: SERVER, ports: [{number: 8080}]}]') + plugin('client', 'url: "file:///p", match: [{mode: CLIENT}]') + plugin('elsewhere', 'url: "file:///p", match: [{ports: [{number: 81}]}]'));
  assert.deepEqual(names(mesh, 'virtualInbound', 8080).filter((name) => name.startsWith('shop.')), ['shop.server']);
  assert.deepEqual(names(mesh, '0.0.0.0_80').filter((name) => name.startsWith('shop.')), ['shop.client']);
});

test('WasmPlugin: a module over HTTP comes by checksum from a cluster; configuration and environment are handed over', () => {
  const mesh = testMesh(
    WORLD + plugin('a', `url: "http://modules.tools.svc.cluster.local/p.wasm", sha256: ${SHA}, pluginName: root, failStrategy: FAIL_OPEN, pluginConfig: {header: x, n: [1]}, vmConfig: {env: [{name: A, value: b}, {name: HOSTNAME, valueFrom: HOST}]}`) +
      plugin('b', `url: "https://example.com:8443/p.wasm", sha256: ${SHA}`),
  );
  const configs = managers(mesh, server, 'virtualInbound', 8080)[0]!.http_filters.flatMap(({ config_type }) => (config_type?.$case === 'typed_config' ? (unpack(Wasm, config_type.value) ?? []) : []));
  const code = configs.map(({ config }) => (config?.vm?.$case === 'vm_config' ? config.vm.value.code?.specifier : undefined));
  assert.deepEqual(code.map((specifier) => (specifier?.$case === 'remote' ? [specifier.value.sha256, specifier.value.http_uri?.http_upstream_type?.value] : undefined)), [[SHA, 'outbound|80||modules.tools.svc.cluster.local'], [SHA, 'wasm|https|example.com|8443']]);
  const first = configs[0]!.config!;
  assert.equal(first.root_id, 'root');
  assert.match(Buffer.from(first.configuration!.value).toString(), /\{"header":"x","n":\[1\]\}/);
  assert.ok(first.vm?.$case === 'vm_config');
  assert.deepEqual([first.vm.value.environment_variables?.host_env_keys, first.vm.value.environment_variables?.key_values], [['HOSTNAME'], { A: 'b' }]);
  const cluster = mesh.generators.get(TYPE.cluster)!.all(server).find(({ name }) => name === 'wasm|https|example.com|8443')!;
  assert.equal(Cluster.decode(cluster.body.value).transport_socket?.name, 'envoy.transport_sockets.tls');
});

test('WasmPlugin: a module comes by the cluster of its service while the workload sees one, and its proxies are told when that changes', () => {
  const mesh = testMesh(WORLD + plugin('a', `url: "http://modules.tools.svc.cluster.local/p.wasm", sha256: ${SHA}`) + plugin('b', `url: "http://other.tools.svc.cluster.local/p.wasm", sha256: ${SHA}`));
  const sources = (): string[] =>
    managers(mesh, server, 'virtualInbound', 8080)[0]!.http_filters.flatMap(({ config_type }) => (config_type?.$case === 'typed_config' ? (unpack(Wasm, config_type.value) ?? []) : [])).flatMap(({ config }) => {
      const specifier = config?.vm?.$case === 'vm_config' ? config.vm.value.code?.specifier : undefined;
      return specifier?.$case === 'remote' ? [specifier.value.http_uri!.http_upstream_type!.value] : [];
    });
  const clusters = (): string[] => mesh.generators.get(TYPE.cluster)!.all(server).flatMap(({ name }) => (name.includes('.tools.') ? [name] : []));
  const [service, own, other] = ['outbound|80||modules.tools.svc.cluster.local', 'wasm|http|modules.tools.svc.cluster.local|80', 'wasm|http|other.tools.svc.cluster.local|80'];
  assert.deepEqual([sources(), clusters().sort()], [[service, other], [service, other]]);
  const gone = mesh.remove('/Service/tools/modules');
  assert.equal(mesh.generators.get(TYPE.listener)!.affected(server, gone, new Set()), 'all');
  assert.deepEqual([sources(), clusters().sort()], [[own, other], [own, other]]);
  mesh.apply(serviceYaml('tools', 'modules', '10.96.0.5', [], 'name: http, port: 80'));
  assert.deepEqual(sources(), [service, other]);
  const sidecar = mesh.apply('apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: s, namespace: shop}\nspec: {egress: [{hosts: ["./*"]}]}\n');
  assert.equal(mesh.generators.get(TYPE.listener)!.affected(server, sidecar, new Set()), 'all');
  assert.deepEqual([sources(), clusters().sort()], [[own, other], [own, other]], 'a service that the workload does not see');
});

test('WasmPlugin: what stock Envoy can not run is refused by name', () => {
  const cases: [string, RegExp][] = [
    ['url: "oci://registry/x"', /spec\.url: .*stock Envoy does not pull images/],
    ['url: registry/x', /stock Envoy does not pull images/],
    ['url: "http://x/y.wasm"', /spec\.sha256: found nothing, a module that is fetched needs its checksum/],
    ['url: "file:///x", type: NETWORK', /spec\.type: found NETWORK/],
  ];
  for (const [spec, expected] of cases) {
    const { objects } = parseYaml(plugin('x', spec), 'x.yaml');
    const errors = objects.length > 0 ? new References(objects, 'cluster.local').check(objects[0]!).map(({ field, message }) => `${field}: ${message}`) : parseYaml(plugin('x', spec), 'x.yaml').errors.map(({ field, message }) => `${field}: ${message}`);
    assert.match(errors.join('\n'), expected);
  }
});
