import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatPath } from '../../common/kube/schema.js';
import type { KubeObject } from '../../common/kube/types.js';
import { parseYaml } from '../../common/kube/yaml.js';
import { rootLogger } from '../../common/log.js';
import { serviceYaml } from '../testing/mesh.js';
import { Admission } from './admission.js';
import { validateForAdmission } from './validate.js';

const routes = (destination: object, more: object = {}): KubeObject => ({ apiVersion: 'networking.istio.io/v1', kind: 'VirtualService', metadata: { name: 'web', namespace: 'shop' }, spec: { hosts: ['web'], http: [{ route: [{ destination }], ...more }] } }) as KubeObject;
const said = (object: KubeObject, admission?: Admission): string[] => validateForAdmission(object, admission).map(({ severity, path, message }) => `${severity} ${formatPath(path)}: ${message}`);

test('validateForAdmission: what is wrong with the object alone is an error, the object itself stays as it was', () => {
  const object = routes({ host: 'web', subset: null }, { timeout: 'soon' });
  const before = JSON.stringify(object);
  assert.deepEqual(said(object), ['error spec.http[0].timeout: found string "soon", expected a duration such as 500ms, 10s or 1m30s']);
  assert.equal(JSON.stringify(object), before);
  const filter = { apiVersion: 'networking.istio.io/v1alpha3', kind: 'EnvoyFilter', metadata: { name: 'a', namespace: 'shop' }, spec: { configPatches: [{ applyTo: 'CLUSTER', patch: { operation: 'MERGE', value: { conect_timeout: '1s' } } }] } } as KubeObject;
  assert.match(said(filter)[0]!, /^error spec\.configPatches\[0\]\.patch\.value: .*conect_timeout/);
});

test('validateForAdmission: what it refers to may come a moment later, so that is a warning, and leaves no trace', () => {
  const admission = new Admission('cluster.local', rootLogger.child({}, { level: 'silent' }));
  const { objects } = parseYaml(serviceYaml('shop', 'web', '10.96.0.1', []).trimStart(), 'x.yaml');
  admission.admit(new Map(objects.map((loaded) => [loaded.key, loaded])));
  for (let twice = 0; twice < 2; twice++) assert.match(said(routes({ host: 'web', subset: 'v2' }), admission).join('\n'), /^warning spec\.http\[0\]\.route\[0\]\.destination\.subset: found "v2"/);
  assert.deepEqual(said(routes({ host: 'web' }), admission), []);
  const again = { ...routes({ host: 'web' }), metadata: { name: 'zweit', namespace: 'shop' } };
  assert.deepEqual(said(again, admission), [], 'the first one was only looked at');
});

test('validateForAdmission: a broken envelope is named, never thrown', () => {
  for (const object of [{}, { apiVersion: 'v1' }, { apiVersion: 'networking.istio.io/v1', kind: 'Gateway', metadata: null }, { apiVersion: 'networking.istio.io/v1', kind: 'Gateway', metadata: { name: 5 }, spec: [] }, { apiVersion: 1, kind: {}, metadata: [] }]) {
    assert.ok(validateForAdmission(object as unknown as KubeObject).some(({ severity }) => severity === 'error'), JSON.stringify(object));
  }
});
