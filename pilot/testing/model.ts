/** A model out of YAML text, for tests. */
import assert from 'node:assert/strict';
import { formatError, parseYaml } from '../../common/kube/yaml.js';
import { Generators } from '../generate/generator.js';
import type { ChangeSet } from '../model/changes.js';
import type { MeshConfig } from '../model/mesh.js';
import { Model } from '../model/model.js';
import { parseProxy, type Proxy } from '../model/proxy.js';

export interface TestMesh {
  model: Model;
  generators: Generators;
  /** Adds or replaces objects; generators forget what that makes stale. */
  apply(yaml: string): ChangeSet;
  remove(...keys: string[]): ChangeSet;
}

export function testMesh(yaml: string, mesh: Partial<MeshConfig> = {}): TestMesh {
  const model = new Model(mesh);
  const generators = new Generators(model);
  const changed = (change: ChangeSet): ChangeSet => {
    generators.invalidate(change);
    return change;
  };
  const result: TestMesh = {
    model,
    generators,
    apply: (text) => {
      const { objects, errors } = parseYaml(text, 'test.yaml');
      assert.deepEqual(errors.filter(({ severity }) => severity === 'error').map(formatError), []);
      return changed(model.apply(objects.map((loaded) => ({ key: loaded.key, loaded }))));
    },
    remove: (...keys) => changed(model.apply(keys.map((key) => ({ key })))),
  };
  result.apply(yaml);
  return result;
}

export function testProxy(ip: string, name: string, labels: Record<string, string> = {}, more: Record<string, unknown> = {}): Proxy {
  const namespace = name.slice(name.lastIndexOf('.') + 1);
  return parseProxy(`sidecar~${ip}~${name}~${namespace}.svc.cluster.local`, { LABELS: labels, ...more });
}
