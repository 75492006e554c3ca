import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../common/xds/any.js';
import { NameTable } from '../../proto/generated/istio/networking/nds/nds.js';
import { podYaml, serviceYaml, sliceYaml } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';
import type { Proxy } from '../model/proxy.js';
import { TYPE } from './resource.js';

const entry = (name: string, spec: string): string => `\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ${name}, namespace: shop}\nspec: ${spec}\n---`;
const PORTS = 'ports: [{number: 80, name: http, protocol: HTTP}]';
const PODS = [{ name: 'db-0', ip: '10.0.1.1', labels: { app: 'db' } }, { name: 'db-1', ip: '10.0.1.2', labels: { app: 'db' } }, { name: 'db-2', ip: '10.0.1.3', labels: { app: 'db' }, ready: false }];
const WORLD =
  serviceYaml('shop', 'web', '10.96.0.1', []) +
  PODS.map((pod) => podYaml('shop', pod).replace('spec: {nodeName', `spec: {hostname: ${pod.name}, subdomain: db, nodeName`)).join('') +
  serviceYaml('shop', 'db', 'None', PODS, 'name: tcp, port: 5432, targetPort: 5432') +
  entry('given', `{hosts: [given.example], addresses: [10.1.0.1, 10.2.0.0/16], resolution: STATIC, ${PORTS}, endpoints: [{address: 192.0.2.1}]}`) +
  entry('drawn', `{hosts: [drawn.example, "*.drawn.example"], resolution: STATIC, ${PORTS}, endpoints: [{address: 192.0.2.1}]}`);

const client = testProxy('10.0.9.1', 'client.shop');
const captured = testProxy('10.0.9.2', 'client.shop', {}, { DNS_CAPTURE: 'true' });
function table({ generators }: TestMesh, proxy: Proxy = client): Record<string, unknown[]> {
  const [only, ...others] = generators.get(TYPE.nameTable)!.all(proxy);
  assert.deepEqual([only!.name, others], ['', []]);
  return Object.fromEntries(Object.entries(unpack(NameTable, only!.body)!.table).map(([host, { ips, registry, shortname, namespace }]) => [host, [ips.join(' '), registry, shortname, namespace].filter((part) => part !== '')]));
}

test('NameTable: Services by their address, headless ones by their ready pods, which have names too; ServiceEntries by what they were given', () => {
  assert.deepEqual(table(testMesh(WORLD)), {
    'db-0.db.shop.svc.cluster.local': ['10.0.1.1', 'Kubernetes', 'db-0.db', 'shop'],
    'db-1.db.shop.svc.cluster.local': ['10.0.1.2', 'Kubernetes', 'db-1.db', 'shop'],
    'db.shop.svc.cluster.local': ['10.0.1.1 10.0.1.2', 'Kubernetes', 'db', 'shop'],
    'given.example': ['10.1.0.1', 'External'],
    'web.shop.svc.cluster.local': ['10.96.0.1', 'Kubernetes', 'web', 'shop'],
  });
});

test('NameTable: of a client whose DNS is captured also the addresses that were drawn for it, and no name with a wildcard', () => {
  const mesh = testMesh(WORLD);
  const [[addresses]] = [table(mesh, captured)['drawn.example'] as [string]];
  assert.match(addresses, /^240\.240\.\d+\.\d+ 2001:2::[0-9a-f]+$/);
  assert.equal(table(mesh, captured)['*.drawn.example'], undefined);
});

test('NameTable: a Sidecar leaves only what it names; a change is pushed when it may alter names or addresses', () => {
  const mesh = testMesh(WORLD);
  const generator = mesh.generators.get(TYPE.nameTable)!;
  const isAffected = (yaml: string): boolean => generator.affected(client, mesh.apply(yaml), new Set()) === 'all';
  assert.ok(isAffected(serviceYaml('shop', 'new', '10.96.0.9', [])));
  assert.equal(table(mesh)['new.shop.svc.cluster.local']?.[0], '10.96.0.9');
  const ready = serviceYaml('shop', 'db', 'None', PODS.map((pod) => ({ ...pod, ready: true })), 'name: tcp, port: 5432, targetPort: 5432');
  assert.ok(isAffected(ready), 'endpoints of a headless service');
  assert.equal(table(mesh)['db.shop.svc.cluster.local']?.[0], '10.0.1.1 10.0.1.2 10.0.1.3');
  assert.ok(!isAffected('apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: shop}\nspec: {hosts: [web], http: [{directResponse: {status: 204}}]}\n'));
  mesh.apply(sliceYaml('shop', 'web', [PODS[0]!]));
  assert.ok(!isAffected(sliceYaml('shop', 'web', [PODS[1]!])), 'endpoints of a service that has an address');
  assert.ok(isAffected('apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: s, namespace: shop}\nspec: {egress: [{hosts: ["./web.shop.svc.cluster.local"]}]}\n'));
  assert.deepEqual(Object.keys(table(mesh)), ['web.shop.svc.cluster.local']);
});
