import assert from 'node:assert/strict';
import { test } from 'node:test';
import { serviceYaml } from '../testing/mesh.js';
import { testMesh, testProxy } from '../testing/model.js';
import { TYPE, type Resource } from './resource.js';
import { warm } from './warm.js';

test('warm: a generator that fails is told of and fails nobody but its clients', async () => {
  const { model, generators } = testMesh(serviceYaml('shop', 'web', '10.96.0.1', []));
  const clusters = generators.get(TYPE.cluster)!;
  clusters.prepare = () => {
    throw new Error('broken');
  };
  const errors: unknown[] = [];
  await warm(model, generators, { signal: new AbortController().signal, made: () => undefined, failed: (error) => errors.push(error) });
  assert.match(String(errors), /broken/);
});

test('warm: tells of the clusters and endpoint sets that it made, which clients are then given', async () => {
  const { model, generators } = testMesh(serviceYaml('shop', 'web', '10.96.0.1', []));
  const made: Resource[] = [];
  await warm(model, generators, { signal: new AbortController().signal, made: (resource) => made.push(resource), failed: () => assert.fail() });
  const name = 'outbound|80||web.shop.svc.cluster.local';
  const proxy = testProxy('10.0.0.9', 'client.shop');
  for (const type of [TYPE.cluster, TYPE.endpoint]) assert.ok(made.includes(generators.get(type)!.one(proxy, name)!), type);
});
