import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatError, parseYaml, type LoadedObject } from '../../common/kube/yaml.js';
import { rootLogger } from '../../common/log.js';
import { serviceYaml } from '../testing/mesh.js';
import { Admission } from './admission.js';
import { References } from './references.js';

const SERVICE = serviceYaml('shop', 'web', '10.96.0.1', []);
const RULE = '\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\nspec: {host: web, subsets: [{name: stable}, {name: canary}]}\n---';
const routes = (destination: string, name = 'web', host = 'web'): string =>
  `\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: ${name}, namespace: shop}\nspec:\n  hosts: [${host}]\n  http:\n    - route:\n        - destination: ${destination}\n---`;

const load = (yaml: string): LoadedObject[] => {
  const { objects, errors } = parseYaml(yaml.trimStart(), 'x.yaml');
  assert.deepEqual(errors, []);
  return objects;
};
const problems = (yaml: string): string[] => {
  const objects = load(yaml);
  const references = new References(objects, 'cluster.local');
  return objects.flatMap((loaded) => references.check(loaded)).map(formatError);
};

test('an unknown subset is named with its place and the nearest one', () => {
  assert.deepEqual(problems(SERVICE + RULE + routes('{host: web, subset: canari}')), [
    'x.yaml:25:44: VirtualService shop/web: spec.http[0].route[0].destination.subset: found "canari", expected a subset of web.shop.svc.cluster.local: stable, canary (did you mean canary?)',
  ]);
  assert.deepEqual(problems(SERVICE + RULE + routes('{host: web.shop.svc.cluster.local, subset: canary}')), []);
  assert.match(problems(SERVICE + routes('{host: web, subset: canary}'))[0]!, /no DestinationRule for web\.shop\.svc\.cluster\.local is known that would define it/);
});

test('an unknown host is a warning, a port that the service lacks an error', () => {
  assert.match(problems(SERVICE + routes('{host: wep}'))[0]!, /destination\.host: warning: found "wep", but no Service wep\.shop\.svc\.cluster\.local is known.*did you mean web\.shop/);
  assert.match(problems(SERVICE + routes('{host: web, port: {number: 81}}'))[0]!, /destination\.port\.number: found 81, expected a port of web\.shop\.svc\.cluster\.local: 80/);
});

test('a host that another VirtualService has already is a warning', () => {
  const found = problems(SERVICE + routes('{host: web}') + routes('{host: web}', 'second', 'web.shop.svc.cluster.local'));
  assert.equal(found.length, 1);
  assert.match(found[0]!, /VirtualService shop\/web: spec\.hosts\[0\]: warning: .*VirtualService shop\/second routes already/);
});

test('Admission: the last good version stays, and the new one counts as soon as what it names is there', () => {
  const admission = new Admission('cluster.local', rootLogger.child({}, { level: 'silent' }));
  const admit = (yaml: string): string[] => admission.admit(new Map(load(yaml).map((loaded) => [loaded.key, loaded]))).map(({ key, loaded }) => `${loaded ? '+' : '-'}${key.split('/')[1]}`);
  const good = routes('{host: web, subset: canary}');
  assert.deepEqual(admit(SERVICE + RULE + good), ['+Service', '+EndpointSlice', '+DestinationRule', '+VirtualService']);
  assert.deepEqual(admit(SERVICE + RULE + good), []);
  assert.deepEqual(admit(SERVICE + RULE + routes('{host: web, subset: next}')), []);
  assert.match(admission.errors()[0]!.message, /found "next"/);
  assert.deepEqual(admit(SERVICE + RULE.replace('name: stable', 'name: next') + routes('{host: web, subset: next}')), ['+DestinationRule', '+VirtualService']);
  assert.deepEqual(admission.errors(), []);
  assert.deepEqual(admit(SERVICE), ['-DestinationRule', '-VirtualService']);
});

test('the MeshConfig in the ConfigMap istio is read, other ConfigMaps are not', () => {
  const map = (name: string): string => `apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ${name}, namespace: istio-system}\ndata: {mesh: "outboundTrafficPolicy: {mode: ALLOW_ALL}"}\n`;
  assert.match(problems(map('istio')).join(), /ConfigMap istio-system\/istio: data\.mesh: 1:\d+: outboundTrafficPolicy\.mode: found string "ALLOW_ALL"/);
  assert.deepEqual(problems(map('other')), []);
});
