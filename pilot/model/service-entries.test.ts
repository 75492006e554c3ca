import assert from 'node:assert/strict';
import { test } from 'node:test';
import { podYaml } from '../testing/mesh.js';
import { testMesh, testProxy } from '../testing/model.js';
import { AddressAllocator } from './addresses.js';
import type { Model } from './model.js';

const entry = (name: string, spec: string, namespace = 'shop', created = '2026-01-01T00:00:00Z'): string =>
  `apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ${name}, namespace: ${namespace}, creationTimestamp: "${created}"}\nspec: ${spec}\n---\n`;
const workload = (name: string, spec: string): string => `apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: ${name}, namespace: shop}\nspec: ${spec}\n---\n`;
const addresses = (model: Model, host: string): string[] => model.endpoints(model.services.get(host)!).map(({ address, ports, weight }) => `${address}:${[...ports.values()].join('+')}*${weight}`);

test('ServiceEntry: inline endpoints with ports, weight and locality of their own', () => {
  const { model } = testMesh(
    entry('ext', `{hosts: [ext.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 443, name: tls, protocol: TLS}],
      endpoints: [{address: 10.1.0.1}, {address: 10.1.0.2, ports: {http: 8081}, weight: 3, locality: r/z/s, network: n}]}`),
  );
  assert.deepEqual(addresses(model, 'ext.example'), ['10.1.0.1:8080+443*1', '10.1.0.2:8081+443*3']);
  const [, second] = model.endpoints(model.services.get('ext.example')!);
  assert.deepEqual([second!.locality, second!.network], [{ region: 'r', zone: 'z', subzone: 's' }, 'n']);
});

test('ServiceEntry: a workloadSelector finds WorkloadEntries and ready pods; their changes touch endpoints alone', () => {
  const pod = { name: 'vm-pod', ip: '10.0.0.7', labels: { app: 'old' } };
  const mesh = testMesh(entry('old', '{hosts: [old.example], location: MESH_INTERNAL, resolution: STATIC, workloadSelector: {labels: {app: old}}, ports: [{number: 80, name: http, protocol: HTTP}]}') + podYaml('shop', pod));
  assert.deepEqual(addresses(mesh.model, 'old.example'), ['10.0.0.7:80*1']);
  const change = mesh.apply(workload('vm', '{address: 10.9.0.1, labels: {app: old}, weight: 2, ports: {http: 8088}}'));
  assert.deepEqual([[...change.endpoints], [...change.services], [...change.rules]], [['old.example'], [], []]);
  assert.deepEqual(addresses(mesh.model, 'old.example'), ['10.9.0.1:8088*2', '10.0.0.7:80*1']);
  assert.deepEqual([...mesh.apply(podYaml('shop', { ...pod, ready: false })).endpoints], ['old.example']);
  assert.deepEqual(addresses(mesh.model, 'old.example'), ['10.9.0.1:8088*2']);
  assert.deepEqual([...mesh.remove('networking.istio.io/WorkloadEntry/shop/vm').endpoints], ['old.example']);
  assert.deepEqual(addresses(mesh.model, 'old.example'), []);
});

test('ServiceEntry: other endpoints alone are no change of the service, other ports are', () => {
  const written = (port: number, address: string): string => entry('ext', `{hosts: [ext.example], resolution: STATIC, ports: [{number: ${port}, name: http, protocol: HTTP}], endpoints: [{address: ${address}}]}`);
  const mesh = testMesh(written(80, '10.1.0.1'));
  const endpoints = mesh.apply(written(80, '10.1.0.2'));
  assert.deepEqual([[...endpoints.endpoints], [...endpoints.services], [...endpoints.identities]], [['ext.example'], [], []]);
  assert.deepEqual([...mesh.apply(written(81, '10.1.0.2')).services], ['ext.example']);
});

test('ServiceEntry: where names are resolved, other endpoints are another cluster', () => {
  const written = (address: string): string => entry('ext', `{hosts: [ext.example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: ${address}}]}`);
  assert.deepEqual([...testMesh(written('a.example')).apply(written('b.example')).identities], ['ext.example']);
});

test('ServiceEntry: several of one host in a namespace add up; of several namespaces each sees its own', () => {
  const { model } = testMesh(
    entry('a', '{hosts: [ext.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 10.1.0.1}]}') +
      entry('b', '{hosts: [ext.example], resolution: STATIC, ports: [{number: 81, name: other, protocol: TCP}], endpoints: [{address: 10.1.0.2}]}', 'shop', '2026-02-01T00:00:00Z') +
      entry('c', '{hosts: [ext.example], resolution: STATIC, ports: [{number: 90, name: http, protocol: HTTP}], endpoints: [{address: 10.2.0.1}]}', 'other', '2026-03-01T00:00:00Z'),
  );
  const seen = (client: string): [number[], string[]] => {
    const service = model.scopeOf(testProxy('10.0.0.9', `x.${client}`)).service('ext.example')!;
    return [service.ports.map(({ port }) => port), model.endpoints(service).map(({ address }) => address)];
  };
  assert.deepEqual(seen('shop'), [[80, 81], ['10.1.0.1', '10.1.0.2']]);
  assert.deepEqual(seen('other'), [[90], ['10.2.0.1']]);
  assert.deepEqual(seen('third'), seen('shop'));
});

test('a Service takes WorkloadEntries that its selector fits among its endpoints', () => {
  const { model } = testMesh(
    `apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\n` + workload('vm', '{address: 10.9.0.1, labels: {app: web}}') + workload('no', '{address: 10.9.0.2, labels: {app: no}}'),
  );
  assert.deepEqual(addresses(model, 'web.shop.svc.cluster.local'), ['10.9.0.1:8080*1']);
});

test('a ServiceEntry with the host of a Service in its namespace adds endpoints to it', () => {
  const host = 'web.shop.svc.cluster.local';
  const mesh = testMesh(`apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\n`);
  const more = entry('more', `{hosts: [${host}], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8081}], endpoints: [{address: 10.1.0.1}]}`);
  assert.deepEqual(addresses(mesh.model, host), []);
  assert.ok(mesh.apply(more).endpoints.has(host));
  assert.deepEqual(addresses(mesh.model, host), ['10.1.0.1:8081*1']);
  mesh.remove('networking.istio.io/ServiceEntry/shop/more');
  assert.deepEqual(addresses(mesh.model, host), []);
});

test('clients whose DNS is captured find a ServiceEntry without addresses at the one that was made up for it', () => {
  const { model } = testMesh(
    entry('ext', '{hosts: [ext.example], resolution: DNS, ports: [{number: 5432, name: db, protocol: TCP}]}') +
      entry('wild', '{hosts: ["*.wild.example"], resolution: NONE, ports: [{number: 443, name: tls, protocol: TLS}]}') +
      entry('own', '{hosts: [own.example], addresses: [10.5.0.1, 10.6.0.0/16], resolution: STATIC, ports: [{number: 80, name: db, protocol: TCP}], endpoints: [{address: 10.5.0.2}]}'),
  );
  const at = (host: string, metadata: Record<string, unknown>): readonly string[] => model.scopeOf(testProxy('10.0.0.9', 'x.shop', {}, metadata)).service(host)!.addresses;
  assert.deepEqual(at('ext.example', {}), []);
  assert.match(at('ext.example', { DNS_CAPTURE: 'true' }).join(' '), /^240\.240\.\d+\.\d+ 2001:2::[0-9a-f]+$/);
  assert.deepEqual([at('*.wild.example', { DNS_CAPTURE: 'true' }), at('own.example', { DNS_CAPTURE: 'true' })], [[], ['10.5.0.1']]);
});

test('AddressAllocator: the same for the same host, no two hosts alike', () => {
  const [first, second] = [new AddressAllocator(), new AddressAllocator()];
  const keys = Array.from({ length: 5_000 }, (_, index) => `ns/host-${index}.example`);
  const given = keys.map((key) => first.allocate(key)[0]);
  assert.equal(new Set(given).size, keys.length);
  assert.deepEqual(keys.map((key) => second.allocate(key)[0]), given);
  assert.deepEqual(keys.map((key) => first.allocate(key)[0]), given);
});
