import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import type { DestinationRule, VirtualService } from '../../common/kube/types.js';
import type { PodRecord } from '../../common/lab-api.js';
import { projectRoot } from '../../common/paths.js';
import { bounds, expectationsOf, readExpectations } from './routing.js';
import { findNamespaces } from './stage.js';

test('bounds: four standard deviations around the mean, exact at the ends', () => {
  assert.deepEqual(bounds(1000, 0.25), { low: 195, high: 305 });
  assert.deepEqual(bounds(1000, 1), { low: 1000, high: 1000 });
  assert.deepEqual(bounds(1000, 0), { low: 0, high: 0 });
});

test('readExpectations: what the example\'s own files ask for', async () => {
  assert.deepEqual(await readExpectations(join(projectRoot, 'examples', 'canary'), 'shop'), [
    { name: 'jesse', headers: { user: 'jesse' }, versions: { v2: 1 } },
    { name: 'canary', headers: {}, versions: { v1: 0.75, v2: 0.25 } },
  ]);
  await assert.rejects(readExpectations(join(projectRoot, 'examples', 'canary'), 'nowhere'), { code: 'UNDERPASS_DEMO_YAML' });
});

test('expectationsOf: follows a reader\'s changes, skips matches that a header alone does not meet', () => {
  const virtualService = {
    apiVersion: 'networking.istio.io/v1', kind: 'VirtualService', metadata: { name: 'x', namespace: 'n' },
    spec: {
      hosts: ['x'],
      http: [
        { match: [{ headers: { a: { exact: '1' } }, uri: { prefix: '/p' } }], route: [{ destination: { host: 'x', subset: 'new' } }] },
        { match: [{ headers: { a: { prefix: '1' } } }], route: [{ destination: { host: 'x', subset: 'new' } }] },
        { match: [{ headers: { b: { exact: '2' } } }], route: [{ destination: { host: 'x', subset: 'new' }, weight: 100 }] },
        { route: [{ destination: { host: 'x', subset: 'old' }, weight: 1 }, { destination: { host: 'x', subset: 'new' }, weight: 9 }] },
        { route: [{ destination: { host: 'x', subset: 'never' } }] },
      ],
    },
  } as unknown as VirtualService;
  const rule = { apiVersion: 'networking.istio.io/v1', kind: 'DestinationRule', metadata: { name: 'x', namespace: 'n' }, spec: { host: 'x', subsets: [{ name: 'old', labels: { version: 'v7' } }, { name: 'new', labels: { version: 'v8' } }] } } as unknown as DestinationRule;
  assert.deepEqual(expectationsOf(virtualService, [rule]).map(({ headers, versions }) => [headers, versions]), [
    [{ b: '2' }, { v8: 1 }],
    [{}, { v7: 0.1, v8: 0.9 }],
  ]);
});

test('findNamespaces: by labels, and says what is missing', () => {
  const pod = (namespace: string, mode?: string): PodRecord => ({ namespace, labels: { app: 'client' }, namespaceLabels: mode ? { 'underpass.io/mode': mode } : {}, hasSidecar: mode === 'sidecar' }) as unknown as PodRecord;
  assert.deepEqual(findNamespaces([pod('a', 'sidecar'), pod('b'), pod('c', 'node')]), { meshed: 'c', plain: 'b' });
  assert.throws(() => findNamespaces([pod('b')]), /no namespace labelled underpass\.io\/mode=node/);
  assert.throws(() => findNamespaces([pod('c', 'node')]), /no namespace without the label/);
});
