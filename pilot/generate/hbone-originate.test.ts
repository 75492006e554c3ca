// Endpoints that are reached by HBONE, as sidecars and gateways get them; shapes are compared with a recorded istiod's elsewhere.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../common/xds/any.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { InternalUpstreamTransport } from '../../proto/generated/envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.js';
import { podYaml, serviceYaml, type PodSpec } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';
import { TYPE } from './resource.js';

const WEB = 'outbound|80||web.shop.svc.cluster.local';
const pod = (name: string, ip: string, labels: Record<string, string>): PodSpec => ({ name, ip, labels: { app: 'web', ...labels } });
const plain = pod('plain', '10.0.0.1', {});
const tunnel = pod('tunnel', '10.0.0.2', { 'networking.istio.io/tunnel': 'http' });
const both = pod('both', '10.0.0.3', { 'networking.istio.io/tunnel': 'http', 'security.istio.io/tlsMode': 'istio' });
const world = (...pods: PodSpec[]): string => pods.map((one) => podYaml('shop', one)).join('') + serviceYaml('shop', 'web', '10.96.0.1', pods) + serviceYaml('shop', 'other', '10.96.0.2', []);
const client = testProxy('10.0.9.9', 'client.shop');
const gateway = { ...client, type: 'router' as const };

const matches = ({ generators }: TestMesh, name = WEB) => Cluster.decode(generators.get(TYPE.cluster)!.one(client, name)!.body.value).transport_socket_matches;
const originates = ({ generators }: TestMesh): boolean[] => [client, gateway].flatMap((proxy) => [TYPE.cluster, TYPE.listener].map((type) => generators.get(type)!.all(proxy).some(({ name }) => name === 'connect_originate')));
const endpoints = ({ generators }: TestMesh): unknown[] =>
  ClusterLoadAssignment.decode(generators.get(TYPE.endpoint)!.one(client, WEB)!.body.value).endpoints.flatMap(({ lb_endpoints }) => lb_endpoints).map(({ host_identifier }) => {
    const address = host_identifier?.$case === 'endpoint' ? host_identifier.value.address?.address : undefined;
    return address?.$case === 'envoy_internal_address' ? `by ${(address.value.address_name_specifier as { value: string }).value} to ${address.value.endpoint_id}` : address?.$case;
  });

test('clients learn to originate HBONE as long as something has to be reached by it, and only clusters with such endpoints tunnel', () => {
  const mesh = testMesh(world(plain));
  assert.deepEqual([originates(mesh), matches(mesh).map(({ name }) => name)], [[false, false, false, false], ['tlsMode-istio', 'tlsMode-disabled']]);
  const change = mesh.apply(world(plain, tunnel));
  assert.ok(change.identities.has('web.shop.svc.cluster.local'), 'clusters are made anew');
  assert.deepEqual(originates(mesh), [true, true, true, true]);
  assert.deepEqual(matches(mesh).map(({ name }) => name), ['hbone', 'tlsMode-istio', 'tlsMode-disabled']);
  assert.deepEqual(matches(mesh, 'outbound|80||other.shop.svc.cluster.local').map(({ name }) => name), ['tlsMode-istio', 'tlsMode-disabled']);
  assert.deepEqual(endpoints(mesh), ['socket_address', 'by connect_originate to 10.0.0.2:80']);
  assert.ok(mesh.apply(podYaml('shop', { ...tunnel, labels: { app: 'web' } })).identities.has('web.shop.svc.cluster.local'));
  assert.deepEqual([originates(mesh), matches(mesh).length, endpoints(mesh)], [[false, false, false, false], 2, ['socket_address', 'socket_address']]);
});

test('what takes mutual TLS as well is reached by that', () => {
  const mesh = testMesh(world(both));
  assert.deepEqual([originates(mesh), endpoints(mesh)], [[false, false, false, false], ['socket_address']]);
});

test('TLS that a DestinationRule originates goes through the tunnel, the mesh\'s own does not', () => {
  const inside = (mode: string): unknown => {
    const mesh = testMesh(`${world(tunnel)}\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\nspec: {host: web, trafficPolicy: {tls: {mode: ${mode}}}}\n`);
    const [{ transport_socket } = { transport_socket: undefined }] = matches(mesh);
    return transport_socket?.config_type && unpack(InternalUpstreamTransport, transport_socket.config_type.value as never)?.transport_socket?.name;
  };
  assert.deepEqual(['SIMPLE', 'ISTIO_MUTUAL', 'DISABLE'].map(inside), ['envoy.transport_sockets.tls', 'envoy.transport_sockets.raw_buffer', 'envoy.transport_sockets.raw_buffer']);
});
