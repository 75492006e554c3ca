import assert from 'node:assert/strict';
import { afterEach, beforeEach, mock, test } from 'node:test';
import { Address, Service, Workload } from '../../proto/generated/istio/workload/workload.js';
import { logger } from '../../common/log.js';
import type { XdsResource } from '../xds/resource-type.js';
import type { KernelPod } from '../dataplane/kernel.js';
import type { ServiceChange, ServicePort } from '../dataplane/kernel-services.js';
import { ServiceResolver } from './service-resolver.js';

const judge = { judge: () => ({ kind: 'tcp' as const, assignments: [] }) };
const WDS = { shortName: 'WDS' };

let addresses: Map<string, XdsResource<Address>>;
/** Each call's changes, as `address:port endpoints`. */
let applied: string[][];
let left: ServicePort[];
let fail: boolean;
let foreign: ReadonlySet<bigint>;
let pods: KernelPod[];
let resolver: ServiceResolver;

/** The kernel's table, since a refusing kernel can't be had otherwise. */
const table = {
  apply: (changes: Iterable<ServiceChange>): number => {
    if (fail) throw new Error('no memory');
    const list = [...changes];
    if (list.length > 0) applied.push(list.map(({ address, port, entry }) => `${address}:${port} ${entry ? entry.endpoints.map((each) => each.address).join() : 'none'}`));
    return 0;
  },
  retryRefused: () => 0,
  ports: () => left,
  setForeign: (cookies: ReadonlySet<bigint>): void => {
    if (cookies.size + foreign.size > 0) applied.push([`foreign ${[...cookies].join()}`]);
    foreign = cookies;
  },
  isForeign: (cookie: bigint) => foreign.has(cookie),
  live: () => undefined,
  status: { services: 0, endpoints: 0, maxServices: 0, maxEndpoints: 0, refused: 0 },
};

/** What was there when the resolver was told last. */
const replaced = new Map<string, XdsResource<Address>>();

function note(name: string): void {
  const before = addresses.get(name);
  if (before && !replaced.has(name)) replaced.set(name, before);
}

function put(name: string, message: Address): void {
  note(name);
  addresses.set(name, { message } as XdsResource<Address>);
}

function service(index: number): string {
  const name = `ns/s${index}.example`;
  put(name, Address.fromPartial({ type: { $case: 'service', value: Service.fromPartial({ namespace: 'ns', hostname: `s${index}.example`, addresses: [{ address: Buffer.from([10, 96, 0, index]) }], ports: [{ service_port: 80, target_port: 8080 }] }) } }));
  return name;
}

function workload(uid: string, last: number, ...services: string[]): string {
  put(uid, Address.fromPartial({ type: { $case: 'workload', value: Workload.fromPartial({ uid, name: uid, node: 'here', addresses: [Buffer.from([10, 0, 0, last])], services: Object.fromEntries(services.map((each) => [each, { ports: [{ service_port: 80, target_port: 8080 }] }])) }) } }));
  return uid;
}

const pod = (last: number): KernelPod => ({ uid: `p${last}`, netnsCookie: BigInt(last), cgroupPath: '', addresses: [`10.0.0.${last}`], mode: 'node', capture: true, acceleration: 'l4' });
const changed = (updated: string[], removed: string[] = [], complete = true): void => {
  for (const name of removed) {
    note(name);
    addresses.delete(name);
  }
  resolver.workloadsChanged(addresses, { type: WDS, updated, removed, replaced }, complete);
  replaced.clear();
};

beforeEach(() => {
  replaced.clear();
  mock.timers.enable({ apis: ['setInterval'] });
  [addresses, applied, left, fail, foreign, pods] = [new Map(), [], [], false, new Set(), [pod(1), pod(2)]];
  resolver = new ServiceResolver({ nodeName: 'here', table, pods: () => pods, logger: logger('test') });
});
afterEach(() => {
  resolver.close();
  mock.timers.reset();
});

test('nothing is decided before workloads and ports are known in full; then what a former agent left and nobody asks for goes', () => {
  left = [{ address: '10.96.0.1', port: 80 }, { address: '10.96.0.99', port: 80 }];
  changed([service(1), workload('a', 1, 'ns/s1.example')], [], false);
  resolver.portsChanged(judge, new Set());
  assert.deepEqual(applied, []);
  changed([]);
  assert.deepEqual(applied, [['10.96.0.1:80 10.0.0.1'], ['10.96.0.99:80 none']]);
});

test('pods on another network than most: nothing is decided for them before an address of theirs could be taken for another, and why is said', () => {
  pods = [pod(1), pod(2), pod(3)];
  const on = (uid: string, last: number, network: string): string => {
    put(uid, Address.fromPartial({ type: { $case: 'workload', value: Workload.fromPartial({ uid, name: uid, node: 'here', network, addresses: [Buffer.from([10, 0, 0, last])], services: {} }) } }));
    return uid;
  };
  put('ns/s1.example', Address.fromPartial({ type: { $case: 'service', value: Service.fromPartial({ namespace: 'ns', hostname: 's1.example', addresses: [{ network: 'a', address: Buffer.from([10, 96, 0, 1]) }, { network: 'b', address: Buffer.from([10, 96, 0, 2]) }], ports: [{ service_port: 80, target_port: 8080 }] }) } }));
  changed(['ns/s1.example', on('0', 1, 'b'), on('1', 2, 'a'), on('2', 3, 'a')]);
  resolver.portsChanged(judge, new Set());
  assert.deepEqual(applied, [['foreign 1'], ['10.96.0.1:80 ']]);
  assert.equal(resolver.whyForeign(pod(1)), 'the pod is on the network "b"; services are decided at connect() for those on "a", as most of this node\'s pods are');
  assert.equal(resolver.whyForeign(pod(2)), undefined);
  applied.length = 0;
  changed([on('2', 3, 'b')]);
  assert.deepEqual(applied, [['foreign 1,2'], ['10.96.0.1:80 none', '10.96.0.2:80 '], ['foreign 2']]);
  applied.length = 0;
  changed([on('1', 2, 'b')]);
  assert.deepEqual(applied, [['10.96.0.2:80 '], ['foreign ']]);
});

test('a change of one endpoint writes its service alone', () => {
  changed([service(1), service(2), workload('a', 1, 'ns/s1.example'), workload('b', 2, 'ns/s2.example')]);
  resolver.portsChanged(judge, new Set());
  applied.length = 0;
  changed([workload('b', 2, 'ns/s1.example', 'ns/s2.example')]);
  assert.deepEqual(applied, [['10.96.0.2:80 10.0.0.2', '10.96.0.1:80 10.0.0.1,10.0.0.2']]);
  applied.length = 0;
  changed([], ['b']);
  assert.deepEqual(applied.flat().sort(), ['10.96.0.1:80 10.0.0.1', '10.96.0.2:80 ']);
});

test('pods that come, go, or get a say in who calls them concern their services alone', () => {
  changed([service(1), service(2), workload('a', 1, 'ns/s1.example'), workload('b', 2, 'ns/s2.example')]);
  resolver.portsChanged(judge, new Set());
  applied.length = 0;
  pods = [pod(1)];
  resolver.podsChanged();
  assert.deepEqual(applied, [['10.96.0.2:80 none']]);
  applied.length = 0;
  resolver.podsChanged();
  assert.deepEqual(applied, []);
  resolver.portsChanged(judge, new Set(['p1']));
  assert.deepEqual(applied, [['10.96.0.1:80 none']]);
});

test('what the proxies would do with some services concerns these alone, by host name or address', () => {
  changed([service(1), service(2), service(3), workload('a', 1, 'ns/s1.example', 'ns/s2.example', 'ns/s3.example')]);
  resolver.portsChanged(judge, new Set());
  applied.length = 0;
  const proxys = (...names: string[]) => ({ judge: () => ({ reason: 'it has routes' }), changedSince: (before: unknown) => (before === undefined ? undefined : new Set(names)) });
  resolver.portsChanged(proxys('s2.example', '10.96.0.3', 'unknown.example'), new Set());
  assert.deepEqual(applied, [['10.96.0.2:80 none', '10.96.0.3:80 none']]);
  applied.length = 0;
  resolver.portsChanged({ ...proxys(), changedSince: () => undefined }, new Set());
  assert.deepEqual(applied, [['10.96.0.1:80 none']], 'where it can not be told all are asked about');
});

test('a service that goes, or whose address goes to another one, leaves no entry behind', () => {
  changed([service(1), workload('a', 1, 'ns/s1.example')]);
  resolver.portsChanged(judge, new Set());
  applied.length = 0;
  changed([], ['ns/s1.example']);
  assert.deepEqual(applied, [['10.96.0.1:80 none']]);
});

test('what the kernel does not take is tried again', () => {
  changed([service(1), workload('a', 1, 'ns/s1.example')]);
  fail = true;
  resolver.portsChanged(judge, new Set());
  assert.equal(resolver.status.firstSyncMs, undefined);
  fail = false;
  mock.timers.tick(60_000);
  assert.deepEqual(applied, [['10.96.0.1:80 10.0.0.1']]);
  assert.notEqual(resolver.status.firstSyncMs, undefined);
});

test('policies that come on the same stream are no services that go', () => {
  changed([service(1), workload('a', 1, 'ns/s1.example')]);
  resolver.portsChanged(judge, new Set());
  applied.length = 0;
  resolver.workloadsChanged(addresses, { type: { shortName: 'AUTHZ' }, updated: ['ns/s1.example'], removed: ['a'], replaced: new Map() }, true);
  assert.deepEqual(applied, []);
  assert.deepEqual(resolver.status.known, { services: 1, workloads: 1 });
});
