import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { rootLogger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { parseSource, planSources, Sources } from './sources.js';

test('parseSource: a directory, or the cluster and network that it is of before it', () => {
  assert.deepEqual(parseSource('/a:b'), { directory: '/a:b', cluster: '', network: '' });
  assert.deepEqual(parseSource('cluster=east,network=net-a:/dir'), { directory: '/dir', cluster: 'east', network: 'net-a' });
  for (const wrong of ['cluster=:/dir', 'cluster=a,zone=b:/dir', 'network=a/b:/dir']) assert.throws(() => parseSource(wrong), { code: 'UNDERPASS_SOURCE' });
});

test('planSources: the first source\'s cluster is the config cluster, sources without a cluster are of it; two networks of one cluster are refused', () => {
  const plan = planSources(['cluster=east,network=a:one', 'cluster=west:two', 'three', 'cluster=west,network=b:four']);
  assert.deepEqual([plan.configCluster, plan.configNetwork, plan.clusters], ['east', 'a', { west: { network: 'b' } }]);
  assert.deepEqual([...plan.directories], [['', ['one', 'three']], ['west', ['two', 'four']]]);
  assert.deepEqual(planSources(['one', 'cluster=west:two']).configCluster, undefined);
  assert.throws(() => planSources(['x', 'cluster=west,network=a:two', 'cluster=west,network=b:four']), { code: 'UNDERPASS_SOURCE' });
});

function folders(t: TestContext, ...names: string[]): string[] {
  const folder = mkdtempSync(join(tmpdir(), 'up-pilot-sources-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return names.map((name) => {
    mkdirSync(join(folder, name));
    return join(folder, name);
  });
}

test('Sources: other clusters\' workloads under names of their own, their configuration left out; what did not change is the same object', async (t) => {
  const [east, west] = folders(t, 'east', 'west') as [string, string];
  const pod = (version: string): string => `apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {v: ${version}}}\nspec: {containers: [{name: a, image: a}]}\n---\n`;
  const rule = 'apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\nspec: {host: web}\n---\n';
  writeFileSync(join(east, 'a.yaml'), pod('east') + rule);
  writeFileSync(join(west, 'a.yaml'), pod('west') + rule.replace('name: web', 'name: other'));
  const calls: ReadonlyMap<string, LoadedObject>[] = [];
  const sources = new Sources({ plan: planSources([`cluster=east:${east}`, `cluster=west:${west}`]), logger: rootLogger.child({}, { level: 'silent' }), onChange: (objects) => calls.push(objects) });
  t.after(() => sources.close());
  await sources.start();
  assert.equal(calls.length, 1, 'one state, when all were read');
  assert.deepEqual([...calls[0]!.keys()], ['/Pod/shop/web', 'networking.istio.io/DestinationRule/shop/web', '@west//Pod/shop/web']);
  assert.deepEqual(calls[0]!.get('@west//Pod/shop/web')?.object.metadata, { name: 'web', namespace: 'shop', labels: { v: 'west' }, clusterName: 'west' });
  writeFileSync(join(east, 'a.yaml'), pod('new') + rule);
  await waitFor('the change', () => calls.length > 1);
  assert.equal(calls[1]!.get('@west//Pod/shop/web'), calls[0]!.get('@west//Pod/shop/web'));
  assert.equal(calls[1]!.get('/Pod/shop/web')?.object.metadata.labels?.['v'], 'new');
});
