import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Action, Authorization, Scope } from '../../proto/generated/istio/security/authorization.js';
import { Address } from '../../proto/generated/istio/workload/workload.js';
import { pack } from '../../common/xds/any.js';
import { AddressType, AuthorizationType } from '../xds/resource-types.js';
import { policiesNamed, policiesOf, type WorkloadView } from './workload-policies.js';

const workload = (name: string, namespace: string, ...authorization_policies: string[]) => {
  const uid = `Kubernetes//Pod/${namespace}/${name}`;
  return new AddressType().decode(uid, '', pack(Address, Address.fromPartial({ type: { $case: 'workload', value: { uid, name, namespace, authorization_policies } } })));
};
const policy = (full: string, scope: Scope) => {
  const [namespace = '', name = ''] = full.split('/');
  return new AuthorizationType().decode(full, '', pack(Authorization, Authorization.fromPartial({ name, namespace, scope, action: Action.DENY })));
};
const view = (workloads: ReturnType<typeof workload>[], policies: ReturnType<typeof policy>[], rejected: Record<string, string> = {}): WorkloadView => ({
  addresses: new Map(workloads.map((one) => [one.name, one])), authorizations: new Map(policies.map((one) => [one.name, one])), rejectedAuthorizations: new Map(Object.entries(rejected)), synced: true,
});
const of = (from: WorkloadView, name: string, namespace: string): [string[], readonly string[]] => {
  const { policies, problems } = policiesOf(from, `Kubernetes//Pod/${namespace}/${name}`, namespace);
  return [policies.map((one) => one.name), problems];
};

const WORKLOADS = [workload('web', 'shop', 'shop/own'), workload('db', 'shop'), workload('atm', 'bank')];
const POLICIES = [policy('shop/own', Scope.WORKLOAD_SELECTOR), policy('shop/all', Scope.NAMESPACE), policy('istio-system/mesh', Scope.GLOBAL)];

test('a pod has the policies that its workload names, those of its namespace and those of the mesh', () => {
  const all = view(WORKLOADS, POLICIES);
  assert.deepEqual(of(all, 'web', 'shop'), [['istio-system/mesh', 'shop/all', 'shop/own'], []]);
  assert.deepEqual(of(all, 'db', 'shop'), [['istio-system/mesh', 'shop/all'], []]);
  assert.deepEqual(of(all, 'atm', 'bank'), [['istio-system/mesh'], []]);
  assert.deepEqual(of(all, 'unheard', 'shop'), [['istio-system/mesh', 'shop/all'], []], 'of a pod that is not known yet, what holds without its workload');
});

test('a pod whose workload is taken away keeps the policies that it named', () => {
  const without = view([workload('db', 'shop')], POLICIES);
  const names = (lastNamed: string[]): string[] => policiesOf(without, 'Kubernetes//Pod/shop/web', 'shop', lastNamed).policies.map(({ name }) => name);
  assert.deepEqual(names(['shop/own']), ['istio-system/mesh', 'shop/all', 'shop/own']);
  assert.deepEqual(policiesOf(without, 'Kubernetes//Pod/shop/web', 'shop', ['shop/gone']).problems.length, 1, 'and lets nobody in by one that went with it');
  assert.deepEqual([policiesNamed(without, 'Kubernetes//Pod/shop/web'), policiesNamed(without, 'Kubernetes//Pod/shop/db')], [undefined, []]);
});

test('a policy that can not be read concerns those whom its last good version did', () => {
  const broken = (name: string): WorkloadView => view(WORKLOADS, POLICIES, { [name]: 'why' });
  const concerned = (name: string): string[] => WORKLOADS.map(({ message: { type } }) => type?.$case === 'workload' ? type.value : undefined).filter((one) => of(broken(name), one!.name, one!.namespace)[1].length > 0).map((one) => one!.name);
  assert.deepEqual(concerned('shop/own'), ['web']);
  assert.deepEqual(concerned('shop/all'), ['web', 'db']);
  assert.deepEqual(concerned('istio-system/mesh'), ['web', 'db', 'atm']);
  assert.deepEqual(of(broken('shop/all'), 'db', 'shop'), [['istio-system/mesh'], ['why']], 'the last good version is not what holds');
});

test('one that never could be read concerns whoever names it, else its namespace, else, in the root namespace, all', () => {
  const named = view([workload('web', 'shop', 'shop/new'), workload('db', 'shop')], [], { 'shop/new': 'why' });
  assert.deepEqual([of(named, 'web', 'shop')[1], of(named, 'db', 'shop')[1]], [['why'], []]);
  const unnamed = view(WORKLOADS, [], { 'bank/new': 'why' });
  assert.deepEqual([of(unnamed, 'atm', 'bank')[1], of(unnamed, 'db', 'shop')[1]], [['why'], []]);
  assert.deepEqual(of(view(WORKLOADS, [], { 'istio-system/new': 'why' }), 'db', 'shop')[1], ['why']);
});
