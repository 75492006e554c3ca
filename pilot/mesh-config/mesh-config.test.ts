import assert from 'node:assert/strict';
import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { pino } from 'pino';
import { waitFor } from '../../common/retry.js';
import { parseYaml } from '../../common/kube/yaml.js';
import { TYPE } from '../generate/resource.js';
import { Pilot } from '../index.js';
import { DEFAULT_MESH_CONFIG } from '../model/mesh.js';
import { TestClient } from '../testing/client.js';
import { podYaml, serviceYaml } from '../testing/mesh.js';
import type { ConfigMap } from '../../common/kube/types.js';
import { LiveMeshConfig } from './live.js';
import { discoverable, selectorMatches } from './discovery.js';
import { readMeshConfig } from './mesh-config.js';

const silent = pino({ level: 'silent' });

test('readMeshConfig: fields become settings, what is not written stays at the default', () => {
  const { settings, problems } = readMeshConfig(`
trustDomain: example.org
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
accessLogFile: /dev/stdout
defaultHttpRetryPolicy: {attempts: 0}
defaultConfig: {tracing: {sampling: 12.5, zipkin: {address: zipkin.istio-system:9411}}, holdApplicationUntilProxyStarts: true}
pathNormalization: {normalization: MERGE_SLASHES}
extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: opa.opa.svc.cluster.local, port: 9191}}]
`);
  assert.deepEqual(problems, []);
  assert.deepEqual(settings, {
    trustDomain: 'example.org', outboundTrafficPolicy: 'REGISTRY_ONLY', accessLogFile: '/dev/stdout', defaultHttpRetryPolicy: { attempts: 0 }, tracingSampling: 12.5,
    tracingZipkinAddress: 'zipkin.istio-system:9411', pathNormalization: 'MERGE_SLASHES', extensionProviders: [{ name: 'opa', envoyExtAuthzGrpc: { service: 'opa.opa.svc.cluster.local', port: 9191 } }],
  });
});

test('readMeshConfig: what is wrong is named with line, column and field, and nothing is taken', () => {
  const cases: [string, RegExp][] = [
    ['outboundTrafficPolicy:\n  mode: ALLOW_ALL\n', /^2:9: outboundTrafficPolicy\.mode: found .*ALLOW_ALL.*did you mean ALLOW_ANY/],
    ['trustDomian: x\n', /trustDomian: unknown field; did you mean "trustDomain"/],
    ['extensionProviders: [{name: a, zipkin: {service: z, port: 1}, envoyExtAuthzHttp: {service: z, port: 1}}]', /extensionProviders\[0\]: found zipkin and envoyExtAuthzHttp, expected exactly one/],
    ['a: [', /not YAML/],
  ];
  for (const [text, expected] of cases) {
    const { settings, problems } = readMeshConfig(text);
    assert.equal(settings, undefined, text);
    assert.match(problems[0]!.message, expected);
  }
  assert.deepEqual(readMeshConfig('proxyListenPort: 15001\n').problems.map(({ severity }) => severity), ['warning']);
});

test('discoverySelectors: objects of namespaces that none selects do not exist, the root namespace always does', () => {
  const yaml = ['one', 'two', 'istio-system'].map((name) => `apiVersion: v1\nkind: Namespace\nmetadata: {name: ${name}, labels: {mesh: "${name}"}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: ${name}}\nspec: {ports: [{port: 80}]}\n`).join('---\n');
  const objects = new Map(parseYaml(yaml, 'x').objects.map((loaded) => [loaded.key, loaded]));
  const kept = discoverable(objects, { ...DEFAULT_MESH_CONFIG, discoverySelectors: [{ matchExpressions: [{ key: 'mesh', operator: 'In', values: ['one', 'three'] }] }] });
  assert.deepEqual([...kept.keys()].filter((key) => key.includes('Service')).sort(), ['/Service/istio-system/web', '/Service/one/web']);
  assert.equal(discoverable(objects, DEFAULT_MESH_CONFIG), objects);
  assert.equal(selectorMatches({ matchExpressions: [{ key: 'a', operator: 'DoesNotExist' }, { key: 'b', operator: 'NotIn', values: ['x'] }, { key: 'c', operator: 'Exists' }] }, { c: '' }), true);
  assert.equal(selectorMatches({ matchLabels: { a: 'b' } }, { a: 'c' }), false);
});

async function follows(write: (folder: string, text: string) => void, fileName: string | undefined): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'up-mesh-config-'));
  const web = { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web' } };
  writeFileSync(join(folder, 'world.yaml'), podYaml('shop', web) + serviceYaml('shop', 'web', '10.96.0.1', [web]));
  write(folder, 'outboundTrafficPolicy: {mode: ALLOW_ANY}');
  const pilot = new Pilot({ sources: [folder], listen: ['127.0.0.1:0'], logger: silent, debounce: { quietMs: 20 }, ...(fileName ? { meshConfigFile: join(folder, fileName) } : {}) });
  await pilot.start();
  const client = new TestClient(pilot.addresses[0]!, 'sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local');
  try {
    client.subscribe(TYPE.route, ['80']);
    const names = (index: number) => client.nth(TYPE.route, index).then(({ resources }) => resources[0]!.resource!.value.includes('block_all'));
    assert.equal(await names(1), false);
    write(folder, 'outboundTrafficPolicy: {mode: REGISTRY_ONLY}');
    assert.equal(await names(2), true);
    write(folder, 'outboundTrafficPolicy: {mode: NONSENSE}');
    await waitFor('the problem', () => pilot.status().meshConfigProblems[0]?.includes('NONSENSE'), { everyMs: 10 });
    assert.equal(client.of(TYPE.route).length, 2, 'the last good settings stay');
  } finally {
    client.close();
    await pilot.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

test('a MeshConfig file is followed live, a broken one is said and changes nothing', async () => {
  await follows((folder, text) => {
    writeFileSync(join(folder, '.mesh.part'), text);
    renameSync(join(folder, '.mesh.part'), join(folder, 'mesh'));
  }, 'mesh');
});

test('the ConfigMap istio of the root namespace is followed live in the same way', async () => {
  await follows((folder, text) => writeFileSync(join(folder, 'mesh.yaml'), `apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    ${text}\n`), undefined);
});

test('a ConfigMap that names another root namespace stays the one that counts', () => {
  const live = new LiveMeshConfig({}, undefined, silent, () => undefined);
  const key = live.configMapKey;
  const configMap: ConfigMap = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'istio', namespace: 'istio-system' }, data: { mesh: 'rootNamespace: elsewhere' } };
  assert.equal(live.offer(configMap), true);
  assert.deepEqual([live.current.rootNamespace, live.configMapKey], ['elsewhere', key]);
});
