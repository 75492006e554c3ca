import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { parseYaml } from '../../common/kube/yaml.js';
import { TokenIssuer } from '../../common/identity/service-account-token.js';
import { projectRoot } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { TYPE } from '../generate/resource.js';
import { client, filter, WORLD } from '../envoy-filter/testing.js';
import { testMesh } from '../testing/model.js';
import { redactedObject, redactedResource } from './redact.js';

const SECRET = 'do-not-show';
const TLS = `{name: envoy.transport_sockets.tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: shown, common_tls_context: {tls_certificates: [{certificate_chain: {inline_string: chain}, private_key: {inline_string: ${SECRET}}, password: {inline_bytes: ${Buffer.from(SECRET).toString('base64')}}}]}}}`;
const EXTRA = `- {applyTo: CLUSTER, patch: {operation: ADD, value: {name: extra, type: STATIC, connect_timeout: 1s, transport_socket: ${TLS}}}}`;
const isHidden = (value: unknown): void => {
  const text = JSON.stringify(value);
  assert.ok(!text.includes(SECRET) && !text.includes(Buffer.from(SECRET).toString('base64')), text);
};

test('redactedResource: inline keys are hidden wherever they are packed, all else is shown', () => {
  const mesh = testMesh(WORLD + filter(EXTRA));
  const { body } = mesh.generators.get(TYPE.cluster)!.all(client).find(({ name }) => name === 'extra')!;
  assert.ok(Buffer.from(body.value).toString('latin1').includes(SECRET), 'what this is about');
  const shown = redactedResource(body.type_url, body.value);
  isHidden(shown);
  assert.match(JSON.stringify(shown), /"inline_string":"chain".*"private_key":\{"inline_string":"\[redacted\]"\}.*"sni":"shown"/);
});

test('redactedResource: headers that carry credentials, TypedStruct, and what is of no known type', () => {
  const lua = `- {applyTo: HTTP_FILTER, match: {context: SIDECAR_OUTBOUND}, patch: {operation: INSERT_FIRST, value: {name: x, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: TYPE, value: VALUE}}}}`;
  const grpc = `{services: [], grpc_service: {google_grpc: {target_uri: t, stat_prefix: s, call_credentials: [{access_token: ${SECRET}}]}, initial_metadata: [{key: authorization, value: ${SECRET}}, {key: x, value: shown}]}}`;
  const authz = lua.replace('TYPE', 'type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz').replace('VALUE', grpc.replace('services: [], ', ''));
  const unknown = lua.replace('TYPE', 'type.googleapis.com/a.b').replace('VALUE', `{k: ${SECRET}}`);
  const mesh = testMesh(WORLD + filter(`${authz}\n${unknown}`));
  const { body } = mesh.generators.get(TYPE.listener)!.all(client).find(({ name }) => name === '0.0.0.0_80')!;
  const shown = redactedResource(body.type_url, body.value);
  isHidden(shown);
  assert.match(JSON.stringify(shown), /"value":"shown"/);
  assert.match(JSON.stringify(shown), /\[redacted\] type\.googleapis\.com\/udpa\.type\.v1\.TypedStruct/);
});

test('redactedObject: Secrets by name alone, EnvoyFilters as Envoy would hide them, environments and headers without values', () => {
  const objects = (text: string) => parseYaml(text, 'x').objects.map(({ object }) => redactedObject(object));
  const applied = `kubectl.kubernetes.io/last-applied-configuration: '{"x": "${SECRET}"}'`;
  const [secret, patches, pod, wasm, routes] = [
    ...objects(`apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: b, annotations: {${applied}}}\nstringData: {tls.key: ${SECRET}}\n`),
    ...objects(filter(EXTRA).replace('namespace: shop}', `namespace: shop, annotations: {${applied}}}`)),
    ...objects(`apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nspec: {containers: [{name: app, env: [{name: PASSWORD, value: ${SECRET}}]}]}\n`),
    ...objects(`apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: w, namespace: shop}\nspec: {url: "file:///x", pluginConfig: {list: [{apiKey: ${SECRET}, host: shown}]}, vmConfig: {env: [{name: T, value: ${SECRET}}]}}\n`),
    ...objects(`apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: shop}\nspec: {hosts: [web], http: [{headers: {request: {set: {authorization: ${SECRET}, x-shown: shown}}}, route: [{destination: {host: web}}]}]}\n`),
  ];
  for (const shown of [secret, patches, pod, wasm, routes]) isHidden(shown);
  assert.deepEqual(secret, { apiVersion: 'v1', kind: 'Secret', metadata: { name: 'a', namespace: 'b' } });
  assert.match(JSON.stringify(patches), /"sni":"shown"/);
  for (const shown of [wasm, routes]) assert.match(JSON.stringify(shown), /"shown"/);
});

test('over the network debug pages are for proven callers of the root namespace; metrics and health are for everybody', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-pilot-remote-'));
  try {
    const issuer = await TokenIssuer.create();
    writeFileSync(join(folder, 'world.yaml'), WORLD);
    writeFileSync(join(folder, 'jwks.json'), JSON.stringify(issuer.jwks));
    const [operator, workload] = await Promise.all(['istio-system', 'shop'].map((namespace) => issuer.issue({ namespace, serviceAccount: 'x' })));
    const program = `
      import { Pilot } from ${JSON.stringify(pathToFileURL(join(projectRoot, 'dist/pilot/index.js')).href)};
      import { pino } from ${JSON.stringify(import.meta.resolve('pino'))};
      const pilot = new Pilot({ sources: [${JSON.stringify(join(folder, 'world.yaml'))}], listen: ['127.0.0.1:0'], monitoringListen: '0.0.0.0:0', security: { listen: ['127.0.0.1:0'], tokenJwks: ${JSON.stringify(join(folder, 'jwks.json'))} }, logger: pino({ level: 'silent' }) });
      await pilot.start();
      const port = pilot.monitoringAddress.split(':').at(-1);
      const status = async (host, path, token) => (await fetch('http://' + host + ':' + port + path, { headers: token ? { authorization: 'Bearer ' + token } : {} })).status;
      const found = {};
      for (const path of ['/ready', '/version', '/metrics', '/debug/configz', '/debug/syncz']) found[path] = [await status('127.0.0.1', path), await status('192.0.2.1', path), await status('192.0.2.1', path, 'x'), await status('192.0.2.1', path, '${workload}'), await status('192.0.2.1', path, '${operator}')];
      await pilot.stop();
      process.stdout.write(JSON.stringify(found));
    `;
    writeFileSync(join(folder, 'program.mjs'), program);
    const { stdout } = await run('unshare', ['--net', 'sh', '-ec', `ip link set lo up; ip address add 192.0.2.1/32 dev lo; exec ${process.execPath} ${join(folder, 'program.mjs')}`], { timeoutMs: 60_000 });
    const open = [200, 200, 200, 200, 200];
    const guarded = [200, 401, 401, 403, 200];
    assert.deepEqual(JSON.parse(stdout), { '/ready': open, '/version': open, '/metrics': open, '/debug/configz': guarded, '/debug/syncz': guarded });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test('redacted: headers that carry credentials in what requests are matched by, and in what the Gateway API sets', () => {
  const MATCHES = `apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: shop}\nspec: {hosts: [web.shop.svc.cluster.local], http: [{match: [{headers: {x-api-key: {exact: ${SECRET}}, x-shown: {exact: shown}}, withoutHeaders: {authorization: {prefix: ${SECRET}}}}], route: [{destination: {host: web.shop.svc.cluster.local}}]}]}\n---\n`;
  const POLICY = `apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {rules: [{when: [{key: "request.headers[x-api-key]", values: [${SECRET}]}, {key: "request.headers[x]", values: [shown]}]}]}\n---\n`;
  const ROUTE = `apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {rules: [{matches: [{headers: [{name: X-Api-Key, value: ${SECRET}}, {name: x, value: shown}]}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Authorization, value: ${SECRET}}]}}]}]}\n`;
  const { objects } = parseYaml(MATCHES + POLICY + ROUTE, 'x');
  assert.equal(objects.length, 3);
  for (const { object } of objects) {
    const shown = redactedObject(object);
    isHidden(shown);
    assert.match(JSON.stringify(shown), /"shown"/);
    assert.match(JSON.stringify(shown), /x-api-key/i);
  }
  const { body } = testMesh(MATCHES + WORLD).generators.get(TYPE.route)!.one(client, '80')!;
  assert.ok(Buffer.from(body.value).toString('latin1').includes(SECRET), 'what this is about');
  const shown = redactedResource(body.type_url, body.value);
  isHidden(shown);
  assert.match(JSON.stringify(shown), /"name":"x-api-key".*"exact":"\[redacted\]"/);
  assert.match(JSON.stringify(shown), /"exact":"shown"/);
});
