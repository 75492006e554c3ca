import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../../common/xds/any.js';
import { Cluster } from '../../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { parseProxy } from '../../model/proxy.js';
import { serviceYaml } from '../../testing/mesh.js';
import { testMesh } from '../../testing/model.js';
import { TYPE } from '../resource.js';

const proxy = parseProxy('router~10.0.0.8~east.shop~shop.svc.cluster.local', { LABELS: { istio: 'eastwestgateway' } });
const WORLD = `${serviceYaml('shop', 'a', '10.96.0.1', [])}
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: shop}
spec: {host: a, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: shop}
spec: {hosts: [outside.example], location: MESH_EXTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.1}]}
---
`;
const gateway = (mode: string): string => `apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: east, namespace: shop}\nspec: {selector: {istio: eastwestgateway}, servers: [{port: {number: 15443, name: tls, protocol: TLS}, hosts: ["*.local"], tls: {mode: ${mode}}}]}\n---\n`;

const bySni = (yaml: string): Cluster[] => testMesh(yaml).generators.get(TYPE.cluster)!.all(proxy).filter(({ name }) => name.startsWith('outbound_.')).map(({ body }) => unpack(Cluster, body)!);

test('an east-west gateway has clusters by SNI, of the mesh\'s own services and their subsets, with endpoints by the same name and no TLS', () => {
  const made = bySni(WORLD + gateway('AUTO_PASSTHROUGH'));
  assert.deepEqual(made.map(({ name, eds_cluster_config: eds }) => [name, eds?.service_name]), [
    ['outbound_.80_._.a.shop.svc.cluster.local', 'outbound_.80_._.a.shop.svc.cluster.local'],
    ['outbound_.80_.v1_.a.shop.svc.cluster.local', 'outbound_.80_.v1_.a.shop.svc.cluster.local'],
  ]);
  for (const { transport_socket: socket, transport_socket_matches: matches } of made) assert.deepEqual([socket, matches], [undefined, []]);
});

test('a gateway that only passes TLS through has none', () => assert.deepEqual(bySni(WORLD + gateway('PASSTHROUGH')), []));

test('endpoints by the name of an SNI are those of the cluster that it means, as far as they take the mesh\'s TLS', () => {
  const { generators } = testMesh(WORLD.replace('location: MESH_EXTERNAL', 'location: MESH_INTERNAL').replace('{address: 192.0.2.1}', '{address: 192.0.2.1, serviceAccount: server}, {address: 192.0.2.2}') + gateway('AUTO_PASSTHROUGH'));
  const endpoints = (name: string): unknown => unpack(ClusterLoadAssignment, generators.get(TYPE.endpoint)!.one(proxy, name)!.body)!.endpoints;
  const groups = (name: string): { lb_endpoints: unknown[] }[] => endpoints(name) as { lb_endpoints: unknown[] }[];
  assert.deepEqual(groups('outbound_.80_._.outside.example')[0]!.lb_endpoints, groups('outbound|80||outside.example')[0]!.lb_endpoints.slice(0, 1));
  assert.deepEqual(endpoints('outbound_.80_._.nowhere.example'), []);
});
