/** WaypointIndex: which destinations have a waypoint and where it is, by what WDS says. */
import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { Address, LoadBalancing_Mode, LoadBalancing_Scope, Service, TunnelProtocol, Workload, WorkloadStatus } from '../../proto/generated/istio/workload/workload.js';
import { pack } from '../../common/xds/any.js';
import { AddressType } from '../xds/resource-types.js';
import type { XdsResource } from '../xds/resource-type.js';
import { WaypointIndex } from './waypoint-table.js';

type Message<T extends { fromPartial(object: never): unknown }> = Parameters<T['fromPartial']>[0];
const bytes = (ip: string): Buffer => Buffer.from(ip.split('.').map(Number));
const WP = 'shop/wp.shop.svc:15008';
const waypoint = { destination: { $case: 'hostname' as const, value: { namespace: 'shop', hostname: 'wp.shop.svc' } }, hbone_mtls_port: 15_008 };

let addresses: Map<string, XdsResource<Address>>;
let index: WaypointIndex;
beforeEach(() => {
  addresses = new Map();
  index = new WaypointIndex('node-1');
  pod('own', '10.0.0.1');
  pod('wp-a', '10.0.0.2', { service_account: 'wp', services: { 'shop/wp.shop.svc': { ports: [{ service_port: 15_008, target_port: 15_008 }] } } });
  service('wp', '10.96.0.1', { ports: [{ service_port: 15_008, target_port: 15_008 }] });
  service('web', '10.96.0.2', { ports: [{ service_port: 80, target_port: 8080 }], waypoint });
});

function put(name: string, type: Message<typeof Address>['type'] | undefined): void {
  if (type) addresses.set(name, new AddressType().decode(name, '1', pack(Address, Address.fromPartial({ type }))) as XdsResource<Address>);
  else addresses.delete(name);
  index.update(addresses, [name]);
}
function pod(name: string, ip: string, more: Message<typeof Workload> = {}): void {
  put(name, { $case: 'workload', value: Workload.fromPartial({ uid: name, name, namespace: 'shop', node: 'node-1', addresses: [bytes(ip)], status: WorkloadStatus.HEALTHY, ...more }) });
}
function service(name: string, vip: string, more: Message<typeof Service> = {}): void {
  put(`shop/${name}.shop.svc`, { $case: 'service', value: Service.fromPartial({ name, namespace: 'shop', hostname: `${name}.shop.svc`, addresses: [{ address: bytes(vip) }], ...more }) });
}
const endpoints = (): string[] => index.table.waypoints[WP]?.endpoints ?? [];
const problem = (): string | undefined => index.table.waypoints[WP]?.problem;
const serves = { 'shop/wp.shop.svc': { ports: [{ service_port: 15_008, target_port: 15_009 }] } };

test('a service\'s waypoint is the healthy workloads behind the Service that WDS names, each at its own port and under its own identity', () => {
  assert.deepEqual(index.table, {
    waypoints: { [WP]: { endpoints: ['10.0.0.2:15008'], peers: ['spiffe://cluster.local/ns/shop/sa/wp'] } },
    destinations: [{ addresses: ['10.96.0.2'], waypoint: WP, ports: [80], hostname: 'web.shop.svc' }],
  });
  pod('wp-b', '10.0.0.3', { service_account: 'other', trust_domain: 'td', services: serves });
  assert.deepEqual(index.table.waypoints[WP], { endpoints: ['10.0.0.2:15008', '10.0.0.3:15009'], peers: ['spiffe://cluster.local/ns/shop/sa/wp', 'spiffe://td/ns/shop/sa/other'] });
  pod('wp-b', '10.0.0.3', { services: serves, status: WorkloadStatus.UNHEALTHY });
  assert.deepEqual(endpoints(), ['10.0.0.2:15008']);
  put('wp-a', undefined);
  assert.deepEqual([endpoints(), problem()], [[], 'none of its workloads is healthy and has its HBONE port']);
  put('shop/wp.shop.svc', undefined);
  assert.deepEqual([endpoints(), problem(), index.table.destinations.length], [[], 'WDS knows no such service or workload', 1], 'what has it still has it');
});

test('the nearest of a waypoint\'s workloads are preferred as its Service says; those of another network are no way', () => {
  pod('wp-b', '10.0.0.3', { node: 'node-2', services: serves });
  assert.deepEqual(endpoints(), ['10.0.0.2:15008', '10.0.0.3:15009']);
  service('wp', '10.96.0.1', { ports: [{ service_port: 15_008, target_port: 15_008 }], load_balancing: { mode: LoadBalancing_Mode.FAILOVER, routing_preference: [LoadBalancing_Scope.NODE] } });
  assert.deepEqual(endpoints(), ['10.0.0.2:15008']);
  put('wp-a', undefined);
  assert.deepEqual(endpoints(), ['10.0.0.3:15009']);
  pod('wp-b', '10.0.0.3', { node: 'node-2', network: 'far', services: serves });
  assert.deepEqual([endpoints(), problem()], [[], 'it is on another network']);
});

test('a waypoint is found by address, too, be it a service\'s or a workload\'s; a workload has its own on every port', () => {
  const at = (ip: string) => ({ destination: { $case: 'address' as const, value: { network: '', address: bytes(ip) } }, hbone_mtls_port: 15_008 });
  pod('own', '10.0.0.1', { waypoint: at('10.96.0.1') });
  assert.deepEqual(index.table.waypoints['10.96.0.1:15008']?.endpoints, ['10.0.0.2:15008']);
  assert.deepEqual(index.table.destinations.find(({ waypoint: name }) => name !== WP), { addresses: ['10.0.0.1'], waypoint: '10.96.0.1:15008' });
  pod('own', '10.0.0.1', { waypoint: at('10.0.0.2') });
  assert.deepEqual(index.table.waypoints['10.0.0.2:15008']?.endpoints, ['10.0.0.2:15008']);
});

test('what has to do with no waypoint changes nothing, and what says the same makes no other table', () => {
  const before = index.table;
  pod('another', '10.0.0.9');
  service('plain', '10.96.0.9');
  service('web', '10.96.0.2', { ports: [{ service_port: 80, target_port: 8081 }], waypoint });
  assert.equal(index.table, before);
  service('web', '10.96.0.2', { ports: [{ service_port: 80, target_port: 8080 }] });
  assert.deepEqual(index.table, { waypoints: {}, destinations: [] });
});

test('a headless service leads to those of its workloads that are of other nodes and take HBONE, whichever WDS tells first', () => {
  const of = (...names: string[]) => ({ node: 'node-2', tunnel_protocol: TunnelProtocol.HBONE, services: Object.fromEntries(names.map((name) => [`shop/${name}.shop.svc`, { ports: [] }])) });
  pod('db-a', '10.0.0.20', of('db'));
  pod('db-b', '10.0.0.21', { ...of('db'), tunnel_protocol: TunnelProtocol.NONE });
  pod('db-c', '10.0.0.22', { ...of('db'), node: 'node-1' });
  pod('web-a', '10.0.0.23', of('web'));
  assert.equal(index.table.headless, undefined);
  service('db', '', { addresses: [] });
  assert.deepEqual(index.table.headless, ['10.0.0.20']);
  pod('db-d', '10.0.0.19', of('web', 'db'));
  assert.deepEqual(index.table.headless, ['10.0.0.19', '10.0.0.20']);
  const before = index.table;
  pod('web-b', '10.0.0.24', of('web'));
  pod('db-a', '10.0.0.20', { ...of('db'), status: WorkloadStatus.UNHEALTHY });
  assert.equal(index.table, before);
  put('db-d', undefined);
  pod('db-b', '10.0.0.21', of('db'));
  assert.deepEqual(index.table.headless, ['10.0.0.20', '10.0.0.21']);
  service('db', '10.96.0.20');
  assert.equal(index.table.headless, undefined);
  assert.equal(index.table.destinations.length, 1, 'waypoints are as they were');
});
