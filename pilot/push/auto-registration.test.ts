/** Workloads that register themselves, with real gRPC clients on a Unix socket. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { unpack } from '../../common/xds/any.js';
import { rootLogger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { TYPE } from '../generate/resource.js';
import { Pilot } from '../index.js';
import { AutoRegistration } from '../model/auto-registration.js';
import type { ObjectChange } from '../model/model.js';
import { parseProxy } from '../model/proxy.js';
import { TestClient } from '../testing/client.js';
import { testMesh } from '../testing/model.js';

const GROUP = `apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vms, namespace: shop}
spec: {metadata: {labels: {app: old}}, template: {serviceAccount: vm, ports: {http: 8088}}}
`;
const ENTRY = `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: old, namespace: shop}
spec: {hosts: [old.example], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {app: old}}}
`;
const VM = 'sidecar~10.9.0.1~vm-1.shop~shop.svc.cluster.local';
let folder: string;
let pilot: Pilot;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-register-'));
  writeFileSync(join(folder, 'world.yaml'), `${GROUP}---\n${ENTRY}`);
  pilot = new Pilot({ sources: [folder], listen: [`unix:${join(folder, 'xds.sock')}`, '127.0.0.1:0'], logger: rootLogger.child({}, { level: 'silent' }), debounce: { quietMs: 10 } });
  await pilot.start();
});
after(async () => {
  await pilot.stop();
  rmSync(folder, { recursive: true, force: true });
});

test('a proxy that names its WorkloadGroup is an endpoint of what selects the group', async () => {
  const client = new TestClient(pilot.addresses[0]!, 'sidecar~10.0.0.9~client.shop~shop.svc.cluster.local');
  const stranger = new TestClient(pilot.addresses[1]!, VM.replace('10.9.0.1', '10.9.0.2'), { AUTO_REGISTER_GROUP: 'vms' });
  const vm = new TestClient(pilot.addresses[0]!, VM, { AUTO_REGISTER_GROUP: 'vms', LABELS: { version: 'v9' } });
  try {
    for (const one of [client, stranger]) one.subscribe(TYPE.endpoint, ['outbound|80||old.example']);
    await client.nth(TYPE.endpoint, 1);
    await stranger.nth(TYPE.endpoint, 1);
    vm.subscribe(TYPE.cluster);
    const found = await waitFor('the endpoint', () => client.of(TYPE.endpoint).flatMap(({ resources }) => resources.map(({ resource }) => unpack(ClusterLoadAssignment, resource)!)).find(({ endpoints }) => endpoints.length > 0), { everyMs: 5 });
    const [endpoint, ...more] = found.endpoints.flatMap(({ lb_endpoints }) => lb_endpoints);
    assert.equal(more.length, 0, 'who has not shown who it is does not become a server');
    assert.match(JSON.stringify(endpoint!.host_identifier), /10\.9\.0\.1.*8088/);
    const entry = pilot.object('networking.istio.io/WorkloadEntry/shop/vms-10.9.0.1') as unknown as { spec: { labels: object; serviceAccount: string } };
    assert.deepEqual([entry.spec.labels, entry.spec.serviceAccount], [{ app: 'old', version: 'v9' }, 'vm']);
  } finally {
    for (const one of [client, stranger, vm]) one.close();
  }
});

test('AutoRegistration: it goes when its last connection has been gone for a while, and stays when it comes back', async () => {
  const { model } = testMesh(GROUP);
  const changes: ObjectChange[] = [];
  const registration = new AutoRegistration(model, (more) => changes.push(...more), 20);
  const proxy = { ...parseProxy(VM, { AUTO_REGISTER_GROUP: 'vms' }), isTrusted: true };
  const [second, stranger] = [{ ...proxy }, { ...proxy, isTrusted: false }];
  for (const one of [proxy, second, stranger]) registration.connected(one);
  registration.gone(proxy);
  registration.gone(stranger);
  registration.gone(second);
  registration.connected(proxy);
  assert.deepEqual(changes.map(({ loaded }) => Boolean(loaded)), [true]);
  registration.gone(proxy);
  await waitFor('it to go', () => changes.length === 2, { everyMs: 5 });
  assert.deepEqual(changes[1], { key: 'networking.istio.io/WorkloadEntry/shop/vms-10.9.0.1' });
  registration.close();
});
