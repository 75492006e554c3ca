import assert from 'node:assert/strict';
import { test } from 'node:test';
import { serviceYaml } from '../testing/mesh.js';
import { testMesh, testProxy } from '../testing/model.js';
import type { AppliedRule } from './rules.js';
import { portPolicy } from './traffic-policy.js';

const HOST = 'web.shop.svc.cluster.local';
const SERVICE = serviceYaml('shop', 'web', '10.96.0.1', []);
const rule = (namespace: string, name: string, spec: string, created = '2026-01-01T00:00:00Z'): string =>
  `apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: ${name}, namespace: ${namespace}, creationTimestamp: "${created}"}\nspec: ${spec}\n---\n`;
const found = (yaml: string, client: string, labels: Record<string, string> = {}): AppliedRule | undefined => testMesh(SERVICE + '\n' + yaml).model.scopeOf(testProxy('10.0.0.9', `x.${client}`, labels)).rule(HOST);

test('DestinationRules of one host in a namespace merge: subsets of all, the policy of the oldest that has one', () => {
  const merged = found(
    rule('shop', 'b', `{host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1, labels: {version: other}}, {name: v2}]}`, '2026-02-01T00:00:00Z') +
      rule('shop', 'a', `{host: ${HOST}, subsets: [{name: v1, labels: {version: v1}}]}`) +
      rule('shop', 'c', '{host: web, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}', '2026-03-01T00:00:00Z'),
    'client',
  )!.object;
  assert.deepEqual(merged.spec.subsets, [{ name: 'v1', labels: { version: 'v1' } }, { name: 'v2' }]);
  assert.equal(merged.spec.trafficPolicy?.loadBalancer?.simple, 'RANDOM');
  assert.equal(merged.metadata.name, 'a');
});

test('DestinationRules that are exported elsewhere, or select other workloads, do not merge', () => {
  const yaml = rule('shop', 'a', '{host: web, exportTo: [.], subsets: [{name: v1}]}') + rule('shop', 'b', '{host: web, subsets: [{name: v2}]}', '2026-02-01T00:00:00Z');
  const names = (client: string): string[] => (found(yaml, client)?.object.spec.subsets ?? []).map(({ name }) => name);
  assert.deepEqual([names('shop'), names('client')], [['v1'], ['v2']]);
});

test('workloadSelector: for clients with those labels in the rule namespace, before the rule without one', () => {
  const yaml = rule('shop', 'all', '{host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}}') + rule('shop', 'some', '{host: web, workloadSelector: {matchLabels: {app: front}}, trafficPolicy: {tls: {mode: DISABLE}}}');
  const name = (client: string, labels: Record<string, string>): string | undefined => found(yaml, client, labels)?.object.metadata.name;
  assert.deepEqual([name('shop', { app: 'front' }), name('shop', { app: 'other' }), name('client', { app: 'front' })], ['some', 'all', 'all']);
});

test('a more specific host of the same namespace counts, a nearer namespace before that', () => {
  const yaml = rule('shop', 'wide', '{host: "*.shop.svc.cluster.local"}') + rule('shop', 'exact', '{host: web}') + rule('client', 'mine', '{host: "*.cluster.local"}') + rule('istio-system', 'root', '{host: "*.local"}');
  const name = (client: string): string | undefined => found(yaml, client)?.object.metadata.name;
  assert.deepEqual([name('client'), name('other'), name('istio-system')], ['mine', 'exact', 'exact']);
  assert.equal(found(rule('istio-system', 'root', '{host: "*.local"}'), 'other')?.object.metadata.name, 'root');
});

test('portPolicy: a subset overrides field by field, a port level stands for itself', () => {
  const { object } = found(
    rule(
      'shop',
      'web',
      `{host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 5}}, portLevelSettings: [{port: {number: 81}, connectionPool: {tcp: {maxConnections: 9}}}]},
       subsets: [{name: v1, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}, portLevelSettings: [{port: {number: 82}, loadBalancer: {simple: ROUND_ROBIN}}]}}]}`,
    ),
    'client',
  )!;
  assert.deepEqual(portPolicy(object, '', 80), { loadBalancer: { simple: 'RANDOM' }, connectionPool: { tcp: { maxConnections: 5 } } });
  assert.deepEqual(portPolicy(object, '', 81), { connectionPool: { tcp: { maxConnections: 9 } } });
  assert.deepEqual(portPolicy(object, 'v1', 80), { loadBalancer: { simple: 'RANDOM' }, connectionPool: { tcp: { maxConnections: 1 } } });
  assert.deepEqual(portPolicy(object, 'v1', 81), { connectionPool: { tcp: { maxConnections: 1 } } });
  assert.deepEqual(portPolicy(object, 'v1', 82), { loadBalancer: { simple: 'ROUND_ROBIN' } });
});

test('views: namespaces share one as long as their clients obey the same rules for all services', () => {
  const services = ['shop', 'bank', 'zoo'].map((namespace) => serviceYaml(namespace, 'web', '10.96.0.1', [])).join('\n');
  const hosts = ['shop', 'bank', 'zoo'].map((namespace) => `web.${namespace}.svc.cluster.local`);
  const clients = ['shop', 'bank', 'zoo', 'plain', 'empty', 'istio-system'];
  /** Namespaces that have a view of their own; all that share one are looked at rule by rule. */
  const apart = (yaml: string): string[] => {
    const { model } = testMesh(`${services}\n${yaml}`);
    const scope = (client: string) => model.scopeOf(testProxy('10.0.0.9', `x.${client}`, { app: 'front' }));
    const plain = scope('plain');
    const own = clients.filter((client) => scope(client).view !== plain.view);
    for (const client of clients) if (!own.includes(client)) assert.deepEqual(hosts.map((host) => scope(client).rule(host)?.key), hosts.map((host) => plain.rule(host)?.key), client);
    return own;
  };
  const everywhere = rule('shop', 'own', '{host: web}') + rule('bank', 'own', '{host: web, subsets: [{name: v1}]}') + rule('istio-system', 'root', '{host: "*.local"}');
  assert.deepEqual(apart(everywhere), [], 'rules about services of their own, and of the whole mesh');
  assert.deepEqual(apart(everywhere + rule('zoo', 'foreign', `{host: ${hosts[0]}}`)), ['zoo']);
  assert.deepEqual(apart(everywhere + rule('empty', 'wide', '{host: "*.local"}')), ['empty']);
  assert.deepEqual(apart(everywhere + rule('shop', 'private', '{host: web, exportTo: [.]}')), ['shop']);
  assert.deepEqual(apart(everywhere + rule('shop', 'lent', '{host: web, exportTo: [bank]}')), ['shop', 'bank']);
  assert.deepEqual(apart(everywhere + rule('bank', 'some', '{host: web, workloadSelector: {matchLabels: {app: front}}}')), ['bank']);
  assert.deepEqual(apart(everywhere + rule('istio-system', 'root-only', `{host: ${hosts[2]}, exportTo: [.]}`)), ['istio-system']);
});
