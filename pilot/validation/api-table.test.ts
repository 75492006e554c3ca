import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { kinds } from '../../common/kube/kinds.js';
import { object, ignored, list, refused, text } from '../../common/kube/schema.js';
import { projectRoot } from '../../common/paths.js';
import { API_TABLE_FILE, apiTable, fieldRows } from './api-table.js';

test('docs/istio-api.md is what the schemas say; `make docs` writes it', () => {
  assert.equal(readFileSync(join(projectRoot, API_TABLE_FILE), 'utf8'), apiTable());
});

test('fieldRows: every field has a row, shared ones are shown once, what is not acted on is not taken apart', () => {
  const shared = object({ a: text });
  const rows = fieldRows(object({ one: shared, many: list(shared), old: ignored(object({ b: text }), 'why'), never: refused() }));
  assert.deepEqual(
    rows.map(({ path, support, note }) => [path, support, note]),
    [['one', 'supported', ''], ['one.a', 'supported', ''], ['many', 'supported', 'fields as in `one`'], ['old', 'ignored', 'why'], ['never', 'refused', '']],
  );
});

test('the page has a section for every kind', () => {
  const page = apiTable();
  for (const { kind, group } of kinds) assert.ok(page.includes(`\n## ${kind} (${group})\n`), `${group}/${kind}`);
});
