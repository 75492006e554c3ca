import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { formatError, loadFile, type LoadedObject } from '../../common/kube/yaml.js';
import { projectRoot } from '../../common/paths.js';
import { References } from './references.js';

const filesUnder = (folder: string): string[] => readdirSync(join(projectRoot, folder), { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile() && /\.ya?ml$/.test(entry.name)).map((entry) => join(entry.parentPath ?? entry.path, entry.name));

test('what was given to a recorded istiod is valid, every object of it', async () => {
  const files = filesUnder('test/fixtures/istiod').filter((file) => file.endsWith('.apply.yaml'));
  assert.ok(files.length > 10, `${files.length} files: are the recordings still there?`);
  for (const file of files) assert.deepEqual((await loadFile(file)).errors.filter(({ severity }) => severity === 'error').map(formatError), []);
});

test('the examples are valid, by themselves and together', async () => {
  const files = filesUnder('examples');
  assert.ok(files.length > 0);
  const objects = new Map<string, LoadedObject[]>();
  for (const file of files) {
    const { objects: loaded, errors } = await loadFile(file);
    assert.deepEqual(errors.filter(({ severity }) => severity === 'error').map(formatError), []);
    const folder = file.slice(0, file.lastIndexOf('/'));
    objects.set(folder, [...(objects.get(folder) ?? []), ...loaded]);
  }
  // Tasks are done to a sample that stands already.
  const samples = [...objects].flatMap(([folder, all]) => (folder.includes('/istio-tasks/samples') ? all : []));
  assert.ok(samples.length > 0);
  for (const [folder, all] of objects) {
    const references = new References(folder.includes('/istio-tasks/') ? [...samples, ...all] : all, 'cluster.local');
    assert.deepEqual(all.flatMap((loaded) => references.check(loaded)).filter(({ severity }) => severity === 'error').map(formatError), [], folder);
  }
});
