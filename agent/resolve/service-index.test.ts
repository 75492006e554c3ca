import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Address, LoadBalancing_HealthPolicy, LoadBalancing_Mode, LoadBalancing_Scope, NetworkMode, Service, Workload, WorkloadStatus } from '../../proto/generated/istio/workload/workload.js';
import { pack } from '../../common/xds/any.js';
import { encodeAddress } from '../dataplane/kernel-codec.js';
import type { PortVerdict } from '../proxy/plain-ports.js';
import { ServiceIndex, type NodeFacts } from './service-index.js';

const NAME = 'shop/db.shop.svc.cluster.local';
const VIP = '10.96.0.5';

type Message<T extends { fromPartial(object: never): unknown }> = Parameters<T['fromPartial']>[0];

const bytes = (text: string): Buffer => (text.includes(':') ? encodeAddress(text) : encodeAddress(text).subarray(12));
const vip = (text: string, network = '') => ({ network, address: bytes(text) });

let index: ServiceIndex;
let known: Map<string, Address>;
let verdict: PortVerdict;
let obstacles: Map<string, string>;
const facts: NodeFacts = { ports: { judge: () => verdict }, obstacle: (address) => obstacles.get(address) };

function service(more: Message<typeof Service> = {}, name = NAME) {
  const [namespace, hostname] = name.split('/') as [string, string];
  const value = Service.fromPartial({ name: 'db', namespace, hostname, addresses: [vip(VIP)], ports: [{ service_port: 5432, target_port: 7000 }], ...more });
  return update(name, Address.fromPartial({ type: { $case: 'service', value } }));
}

function workload(name: string, address: string | string[], more: Message<typeof Workload> = {}) {
  const value = Workload.fromPartial({ uid: name, name, namespace: 'shop', addresses: [address].flat().map(bytes), node: 'here', services: { [NAME]: { ports: [{ service_port: 5432, target_port: 7000 }] } }, ...more });
  return update(name, Address.fromPartial({ type: { $case: 'workload', value } }));
}

function update(name: string, address: Address | undefined) {
  const before = known.get(name);
  if (address) known.set(name, address);
  else known.delete(name);
  return index.update(name, before);
}

function assignment(value: Message<typeof ClusterLoadAssignment>) {
  const message = ClusterLoadAssignment.fromPartial(value);
  return { any: pack(ClusterLoadAssignment, message), message };
}

const decide = () => index.decide(NAME, facts);
const endpoints = () => decide()[0]?.entry?.endpoints.map(({ address, port, weight }) => `${address}:${port}*${weight}`);
const reason = () => decide()[0]?.reason;

beforeEach(() => {
  known = new Map();
  index = new ServiceIndex('here', (name) => known.get(name));
  verdict = { kind: 'tcp', assignments: [assignment({})] };
  obstacles = new Map();
});

test('a service of pods of this node is decided, with each pod\'s own target port and weight', () => {
  service();
  workload('a', '10.0.0.1', { capacity: 3 });
  workload('b', '10.0.0.2', { services: { [NAME]: { ports: [{ service_port: 5432, target_port: 7001 }] } } });
  workload('c', '10.0.0.3', { services: { [NAME]: { ports: [] } } });
  assert.deepEqual(endpoints(), ['10.0.0.1:7000*3', '10.0.0.2:7001*1', '10.0.0.3:7000*1']);
});

test('a named target port is each workload\'s own, and one that has none is no endpoint', () => {
  service({ ports: [{ service_port: 5432, target_port: 0 }] });
  workload('a', '10.0.0.1');
  workload('b', '10.0.0.2', { services: { [NAME]: { ports: [] } } });
  assert.deepEqual(endpoints(), ['10.0.0.1:7000*1']);
});

test('one endpoint that is not led to by the kernel leaves the whole port to the proxy', () => {
  service();
  workload('a', '10.0.0.1');
  workload('b', '10.0.1.1', { node: 'there' });
  obstacles.set('10.0.1.1', 'no enrolled pod of this node');
  assert.equal(endpoints(), undefined);
  assert.equal(reason(), 'endpoint 10.0.1.1 (shop/b): no enrolled pod of this node');
});

test('unhealthy workloads and those of no capacity are no endpoints; a service that publishes them has the unhealthy', () => {
  service();
  workload('a', '10.0.0.1', { status: WorkloadStatus.UNHEALTHY });
  workload('b', '10.0.0.2', { capacity: 0 });
  workload('c', '10.0.0.3');
  assert.deepEqual(endpoints(), ['10.0.0.3:7000*1']);
  service({ load_balancing: { health_policy: LoadBalancing_HealthPolicy.ALLOW_ALL } });
  assert.deepEqual(endpoints(), ['10.0.0.1:7000*1', '10.0.0.3:7000*1']);
});

test('a preferred scope takes the nearest, or with STRICT those within it alone', () => {
  const { NETWORK, REGION, ZONE, SUBZONE, NODE } = LoadBalancing_Scope;
  const nearest = [NETWORK, REGION, ZONE, SUBZONE, NODE];
  const locality = { region: 'r', zone: 'z', subzone: '' };
  workload('a', '10.0.0.1', { locality });
  workload('b', '10.0.1.1', { locality, node: 'there' });
  workload('c', '10.0.2.1', { locality: { ...locality, zone: 'other' }, node: 'far' });
  service({ load_balancing: { mode: LoadBalancing_Mode.FAILOVER, routing_preference: nearest } });
  assert.deepEqual(endpoints(), ['10.0.0.1:7000*1']);
  service({ load_balancing: { mode: LoadBalancing_Mode.FAILOVER, routing_preference: [NETWORK, REGION, ZONE] } });
  assert.deepEqual(endpoints(), ['10.0.0.1:7000*1', '10.0.1.1:7000*1']);
  service({ load_balancing: { mode: LoadBalancing_Mode.FAILOVER, routing_preference: nearest } });
  workload('a', '10.0.0.1', { locality, status: WorkloadStatus.UNHEALTHY });
  assert.deepEqual(endpoints(), ['10.0.1.1:7000*1']);
  service({ load_balancing: { mode: LoadBalancing_Mode.STRICT, routing_preference: nearest } });
  // The proxy's list agrees that there is nothing to be had.
  assert.deepEqual(endpoints(), []);
  service({ load_balancing: { mode: LoadBalancing_Mode.PASSTHROUGH } });
  assert.equal(reason(), 'connections go to the address that they ask for');
});

test('each address of a dual-stack service has the endpoints of its family', () => {
  service({ addresses: [vip(VIP), vip('fd00:96::5')] });
  workload('a', ['10.0.0.1', 'fd00::1']);
  workload('b', '10.0.0.2');
  assert.deepEqual(decide().map(({ address, entry }) => [address, entry?.endpoints.map((each) => each.address)]), [[VIP, ['10.0.0.1', '10.0.0.2']], ['fd00:96::5', ['fd00::1']]]);
});

test('a headless service, and an address of another network, have no entry', () => {
  service({ addresses: [] });
  workload('a', '10.0.0.1');
  assert.deepEqual(decide(), []);
  service({ addresses: [vip('10.97.0.9', 'net2')] });
  assert.deepEqual(decide(), []);
});

test('the network of most of the node\'s pods counts, whichever came first; for the others nothing is decided', () => {
  service({ addresses: [vip(VIP, 'net1'), vip('10.97.0.9', 'net2')] });
  workload('0', '10.0.0.2', { network: 'net2', services: {} });
  assert.deepEqual(decide().map(({ address }) => address), ['10.97.0.9']);
  assert.equal(workload('a', '10.0.0.1', { network: 'net1' }), 'all');
  workload('b', '10.0.0.3', { network: 'net1' });
  // Neither has a say: another node's, and those that are in no pod's network.
  for (const name of ['c', 'd', 'e']) workload(name, `10.0.1.${name.charCodeAt(0)}`, { network: 'net2', node: 'there', services: {} });
  for (const name of ['f', 'g', 'h']) workload(name, `192.0.2.${name.charCodeAt(0)}`, { network: 'net2', network_mode: NetworkMode.HOST_NETWORK, services: {} });
  assert.deepEqual(decide().map(({ address, entry }) => [address, entry?.endpoints.length]), [[VIP, 2]]);
  assert.deepEqual(['10.0.0.1', '10.0.0.2', '10.9.9.9'].map((address) => index.isForeign([address])), [false, true, true]);
  update('0', undefined);
  assert.deepEqual(['10.0.0.1', '10.9.9.9'].map((address) => index.isForeign([address])), [false, false]);
});

test('pods of the node in several localities: only a service that prefers some is not decided', () => {
  workload('a', '10.0.0.1', { locality: { region: 'r', zone: 'z1' } });
  workload('b', '10.0.0.2', { locality: { region: 'r', zone: 'z2' } });
  service();
  assert.deepEqual(endpoints(), ['10.0.0.1:7000*1', '10.0.0.2:7000*1']);
  service({ load_balancing: { mode: LoadBalancing_Mode.FAILOVER, routing_preference: [LoadBalancing_Scope.ZONE] } });
  assert.equal(reason(), 'the node\'s pods are of several localities: r/z1/, r/z2/');
});

test('a service without endpoints is refused only when the proxies know of none either', () => {
  service();
  assert.deepEqual(endpoints(), []);
  verdict = { kind: 'tcp', assignments: [undefined] };
  assert.match(reason() ?? '', /not been heard of/);
  verdict = { kind: 'tcp', assignments: [assignment({ endpoints: [{ lb_endpoints: [{ host_identifier: { $case: 'endpoint', value: { address: { address: { $case: 'socket_address', value: { address: '10.0.0.9', port_specifier: { $case: 'port_value', value: 7000 } } } } } } }] }] })] };
  assert.match(reason() ?? '', /a proxy knows endpoints/);
  workload('a', '10.0.0.1');
  assert.match(reason() ?? '', /a proxy knows endpoints/);
  workload('b', '10.0.0.9');
  assert.deepEqual(endpoints(), ['10.0.0.1:7000*1', '10.0.0.9:7000*1']);
});

test('what the proxies do more than pass bytes on is named', () => {
  service();
  workload('a', '10.0.0.1');
  verdict = { reason: '/apis/x has settings for it' };
  assert.equal(reason(), '/apis/x has settings for it');
  const waypoint = { destination: { $case: 'hostname' as const, value: { namespace: 'shop', hostname: 'wp.shop.svc' } }, hbone_mtls_port: 15008 };
  service({ waypoint });
  assert.equal(reason(), 'it has a waypoint, shop/wp.shop.svc:15008');
  service();
  verdict = { kind: 'tcp', assignments: [assignment({})] };
  // A workload's waypoint is for those that dial the workload.
  workload('a', '10.0.0.1', { waypoint });
  assert.equal(reason(), undefined);
});

test('two workloads with one address leave their services to the proxy until one is gone', () => {
  service();
  workload('a', '10.0.0.1');
  const affected = update('twin', Address.fromPartial({ type: { $case: 'workload', value: Workload.fromPartial({ uid: 'twin', name: 'twin', addresses: [bytes('10.0.0.1')] }) } }));
  assert.deepEqual(affected, new Set([NAME]));
  assert.match(reason() ?? '', /two workloads have this address/);
  assert.deepEqual(update('twin', undefined), new Set([NAME]));
  assert.deepEqual(endpoints(), ['10.0.0.1:7000*1']);
});

test('two services with one address and port leave it to the proxy until one is gone', () => {
  service();
  workload('a', '10.0.0.1');
  const other = 'shop/other.example';
  assert.deepEqual(service({}, other), new Set([NAME, other]));
  assert.equal(reason(), `${other} has the same address and port`);
  assert.deepEqual(update(other, undefined), new Set([NAME, other]));
  assert.deepEqual(endpoints(), ['10.0.0.1:7000*1']);
});

test('a change concerns the services that a workload was and is an endpoint of', () => {
  service();
  workload('a', '10.0.0.1');
  const moved = workload('a', '10.0.0.1', { services: { 'shop/new.host': { ports: [] } } });
  assert.deepEqual(moved, new Set([NAME, 'shop/new.host']));
  assert.deepEqual(endpoints(), []);
  // The node's last workload, which said where the node is: that concerns all.
  assert.equal(update('a', undefined), 'all');
});

test('find: by address, by host name in full, and shortened as a program of a namespace may write it', () => {
  service();
  service({ addresses: [vip('10.96.0.6')] }, 'prod/db.prod.svc.cluster.local');
  const found = (host: string, namespace = 'shop') => index.find(host, namespace).map((each) => each.hostname);
  for (const host of [VIP, 'db', 'db.shop', 'db.shop.svc', 'db.shop.svc.cluster.local', 'db.shop.svc.cluster.local.', 'DB', 'Db.Shop.svc.Cluster.Local']) assert.deepEqual(found(host), ['db.shop.svc.cluster.local'], host);
  assert.deepEqual(found('db', 'prod'), ['db.prod.svc.cluster.local']);
  assert.deepEqual(found('nobody'), []);
});

test('who has an address is told of workloads and services, also where several have it, until they are gone', () => {
  service();
  workload('a', ['10.0.0.1', 'fd00::1']);
  workload('b', '10.0.0.1');
  assert.deepEqual([index.namesAt('10.0.0.1').sort(), index.namesAt('fd00::1'), index.namesAt(VIP), index.namesAt('10.9.9.9')], [['a', 'b'], ['a'], [NAME], []]);
  assert.equal(index.workloadOf('10.0.0.1'), undefined, 'two have it');
  update('a', undefined);
  assert.deepEqual([index.namesAt('10.0.0.1'), index.namesAt('fd00::1'), index.workloadOf('10.0.0.1')?.name], [['b'], [], 'b']);
  update('b', undefined);
  update(NAME, undefined);
  assert.deepEqual([index.namesAt('10.0.0.1'), index.namesAt(VIP), index.size], [[], [], { services: 0, workloads: 0 }]);
});
