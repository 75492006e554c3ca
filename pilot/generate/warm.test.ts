import assert from 'node:assert/strict';
import { test } from 'node:test';
import { serviceYaml } from '../testing/mesh.js';
import { testMesh } from '../testing/model.js';
import { TYPE } from './resource.js';
import { warm } from './warm.js';

test('warm: a generator that fails is told of and fails nobody but its clients', async () => {
  const { model, generators } = testMesh(serviceYaml('shop', 'web', '10.96.0.1', []));
  const clusters = generators.get(TYPE.cluster)!;
  clusters.prepare = () => {
    throw new Error('broken');
  };
  const errors: unknown[] = [];
  await warm(model, generators, new AbortController().signal, (error) => errors.push(error));
  assert.match(String(errors), /broken/);
});
