// Imports point one way: cli → {agent, pilot, lab, bench} → common. A folder that reaches up or sideways fails here.
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { test } from 'node:test';
import { projectRoot } from '../common/paths.js';

const allowed: Record<string, readonly string[]> = {
  common: ['common', 'proto'],
  native: ['native', 'common'],
  agent: ['agent', 'common', 'proto', 'native'],
  pilot: ['pilot', 'common', 'proto'],
  lab: ['lab', 'common', 'proto', 'native'],
  bench: ['bench', 'common'],
  image: ['image', 'common'],
  dashboard: ['dashboard', 'common'],
  cli: ['cli', 'agent', 'pilot', 'lab', 'bench', 'common', 'proto', 'native'],
};

/** Within these folders only the named subfolders may load the addon. */
const nativeUsers: Record<string, RegExp> = { agent: /^agent\/dataplane\//, lab: /^lab\//, cli: /^$/ };

function imports(folder: string): { file: string; target: string }[] {
  const found: { file: string; target: string }[] = [];
  for (const name of readdirSync(join(projectRoot, folder), { recursive: true }).map(String)) {
    if (!name.endsWith('.ts') || name.endsWith('.d.ts')) continue;
    const file = join(folder, name);
    const text = readFileSync(join(projectRoot, file), 'utf8');
    for (const match of text.matchAll(/(?:from\s+|import\s*\(\s*|import\s+)['"](\.[^'"]+)['"]/g)) {
      found.push({ file, target: relative(projectRoot, join(projectRoot, dirname(file), match[1] ?? '')) });
    }
  }
  return found;
}

for (const [folder, targets] of Object.entries(allowed)) {
  test(`layering: ${folder} imports only from ${targets.join(', ')}`, () => {
    const all = imports(folder);
    assert.ok(all.length > 0, `${folder} has no relative import at all: is the pattern still right?`);
    const wrong = all.filter(({ target }) => !targets.includes(target.split('/')[0] ?? ''));
    assert.deepEqual(wrong, []);
    const users = nativeUsers[folder];
    if (users) {
      const loads = all.filter(({ file, target }) => target.startsWith('native/') && !users.test(file) && !file.endsWith('.test.ts'));
      assert.deepEqual(loads, [], 'only these may load the addon: ' + users.source);
    }
  });
}
