import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { TYPE } from '../generate/resource.js';
import { podYaml, serviceYaml } from '../testing/mesh.js';
import { testMesh, testProxy, type TestMesh } from '../testing/model.js';

const web = { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web' } };
const service = (namespace: string, name: string, vip: string, ports: string): string => `apiVersion: v1\nkind: Service\nmetadata: {name: ${name}, namespace: ${namespace}}\nspec: {clusterIP: ${vip}, selector: {app: ${name}}, ports: [${ports}]}\n---\n`;
const WORLD = [
  podYaml('shop', web),
  serviceYaml('shop', 'web', '10.96.0.1', [web]),
  service('shop', 'two', '10.96.0.2', '{name: http, port: 80}, {name: http-other, port: 81}'),
  service('other', 'db', '10.96.0.3', '{name: tcp, port: 5432}'),
  '',
].join('\n');
const sidecar = (spec: string): string => `apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: shop}\nspec: ${spec}\n---\n`;
const client = testProxy('10.0.0.1', 'web-1.shop', { app: 'web' });
const names = ({ generators }: TestMesh, type: string): string[] => generators.get(type)!.all(client).map(({ name }) => name).filter((name) => !/Cluster$|^virtual|^inbound/.test(name)).sort();
const hosts = ({ generators }: TestMesh, port: number): string[] => RouteConfiguration.decode(generators.get(TYPE.route)!.one(client, String(port))!.body.value).virtual_hosts.map(({ name }) => name);
const listener = ({ generators }: TestMesh, name: string): Listener => Listener.decode(generators.get(TYPE.listener)!.one(client, name)!.body.value);

test('Sidecar: a listener with a port has what it imports on that port alone; one without has the other ports', () => {
  const mesh = testMesh(WORLD + sidecar('{egress: [{port: {number: 80, protocol: HTTP, name: http}, hosts: [./two.shop.svc.cluster.local]}, {hosts: ["./*", "other/*"]}]}'));
  assert.deepEqual(hosts(mesh, 80), ['two.shop.svc.cluster.local:80', 'allow_any']);
  assert.deepEqual(hosts(mesh, 81), ['two.shop.svc.cluster.local:81', 'allow_any']);
  assert.deepEqual(names(mesh, TYPE.cluster), ['outbound|5432||db.other.svc.cluster.local', 'outbound|80||two.shop.svc.cluster.local', 'outbound|80||web.shop.svc.cluster.local', 'outbound|81||two.shop.svc.cluster.local']);
});

test('Sidecar: without a listener for the rest, other ports are no service; clusters are those of the named ports', () => {
  const mesh = testMesh(WORLD + sidecar('{egress: [{port: {number: 81, protocol: HTTP, name: http}, hosts: ["*/*"]}]}'));
  assert.deepEqual(names(mesh, TYPE.cluster), ['outbound|81||two.shop.svc.cluster.local']);
  assert.deepEqual(names(mesh, TYPE.listener), ['0.0.0.0_81']);
  assert.deepEqual(hosts(mesh, 80), ['allow_any']);
});

test('Sidecar: captureMode NONE is a socket of its own on the loopback, bind says where', () => {
  const mesh = testMesh(WORLD + sidecar('{egress: [{port: {number: 5432, protocol: TCP, name: db}, captureMode: NONE, hosts: ["other/*"]}, {port: {number: 81, protocol: HTTP, name: http}, bind: 127.1.2.3, captureMode: NONE, hosts: ["./*"]}]}'));
  assert.deepEqual(names(mesh, TYPE.listener), ['127.0.0.1_5432', '127.1.2.3_81']);
  assert.equal(listener(mesh, '127.0.0.1_5432').bind_to_port, undefined);
});

test('Sidecar: what is no service goes to the egress proxy, or nowhere', () => {
  const proxied = testMesh(WORLD + sidecar('{outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: db.other.svc.cluster.local, port: {number: 5432}}}}'));
  assert.equal(proxied.model.scopeOf(client).passthroughCluster, 'outbound|5432||db.other.svc.cluster.local');
  assert.ok(Buffer.from(Listener.encode(listener(proxied, 'virtualOutbound')).finish()).includes('outbound|5432||db.other.svc.cluster.local'));
  assert.deepEqual(hosts(testMesh(WORLD + sidecar('{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}')), 80).at(-1), 'block_all');
});

test('Sidecar: ingress listeners stand in the place of the ports of services, and deliver where they say', () => {
  const mesh = testMesh(WORLD + sidecar('{ingress: [{port: {number: 9080, protocol: HTTP, name: http}, defaultEndpoint: "127.0.0.1:8080"}, {port: {number: 9090, protocol: TCP, name: tcp}, defaultEndpoint: "unix:///run/app.sock"}], inboundConnectionPool: {http: {http1MaxPendingRequests: 7}}}'));
  const inbound = mesh.generators.get(TYPE.cluster)!.all(client).filter(({ name }) => name.startsWith('inbound|')).map(({ body }) => Cluster.decode(body.value));
  const where = inbound.map(({ name, load_assignment }) => [name, load_assignment?.endpoints[0]?.lb_endpoints[0]?.host_identifier]);
  assert.match(JSON.stringify(where), /inbound\|9080\|\|.*127\.0\.0\.1.*8080.*inbound\|9090\|\|.*\/run\/app\.sock/);
  assert.deepEqual(inbound.map(({ circuit_breakers }) => circuit_breakers!.thresholds[0]!.max_pending_requests), [7, 7]);
});

test('Sidecar: TLS of an ingress listener is terminated where the mesh TLS is switched off', () => {
  const ingress = sidecar('{ingress: [{port: {number: 9443, protocol: HTTPS, name: https}, defaultEndpoint: "127.0.0.1:8080", tls: {mode: SIMPLE, serverCertificate: /c.pem, privateKey: /k.pem}}]}');
  const off = 'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: off, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}, portLevelMtls: {9443: {mode: DISABLE}}}\n---\n';
  const bytes = (yaml: string): Buffer => Buffer.from(Listener.encode(listener(testMesh(yaml), 'virtualInbound')).finish());
  assert.ok(bytes(WORLD + ingress + off).includes('file-cert:/c.pem~/k.pem'));
  assert.ok(!bytes(WORLD + ingress).includes('file-cert:/c.pem~/k.pem'));
});

test('Sidecar: one that selects the workload before the namespace own, that before the root namespace', () => {
  const root = sidecar('{egress: [{hosts: ["~/*"]}]}').replace('namespace: shop', 'namespace: istio-system');
  const selecting = sidecar('{workloadSelector: {labels: {app: web}}, egress: [{hosts: ["./web.shop.svc.cluster.local"]}]}').replace('name: default', 'name: some');
  assert.deepEqual(names(testMesh(WORLD + root), TYPE.cluster), []);
  assert.equal(names(testMesh(WORLD + root + sidecar('{egress: [{hosts: ["./*"]}]}')), TYPE.cluster).length, 3);
  assert.deepEqual(names(testMesh(WORLD + root + sidecar('{egress: [{hosts: ["./*"]}]}') + selecting), TYPE.cluster), ['outbound|80||web.shop.svc.cluster.local']);
});
