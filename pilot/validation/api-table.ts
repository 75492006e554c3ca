/**
 * docs/istio-api.md, made from the schemas that validation uses: every field of every kind, and whether it is acted on.
 * `make docs` runs this file; a test fails when the page differs from what is made here.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { kinds, unknownKinds, type Kind } from '../../common/kube/kinds.js';
import type { Schema } from '../../common/kube/schema.js';
import { projectRoot } from '../../common/paths.js';
import { meshConfigSchema } from '../mesh-config/schema.js';

export const API_TABLE_FILE = 'docs/istio-api.md';

type Support = 'supported' | 'ignored' | 'refused';

interface Row {
  path: string;
  value: string;
  support: Support;
  note: string;
}

const SAID: Record<Support, string> = { supported: 'supported', ignored: 'ignored with a warning', refused: 'refused' };

/** What may stand there, short. */
function valueOf(schema: Schema): string {
  switch (schema.type) {
    case 'string':
      return schema.values ? schema.values.map((value) => `\`${value}\``).join(' ') : 'text';
    case 'number': {
      const { min, max, integer } = schema;
      const least = min === undefined || min === Number.MIN_VALUE || Math.abs(min) >= 0x8000_0000 ? undefined : min;
      const most = max === undefined || max >= 0x7fff_ffff ? undefined : max;
      const kind = integer ? 'whole number' : 'number';
      return least !== undefined && most !== undefined ? `${kind}, ${least} to ${most}` : kind;
    }
    case 'intOrString':
      return 'whole number or name';
    case 'boolean':
      return 'true or false';
    case 'duration':
      return 'duration';
    case 'array':
      return schema.items.type === 'object' || schema.items.type === 'map' ? 'list' : `list: ${valueOf(schema.items)}`;
    case 'map':
      return schema.values.type === 'object' ? 'mapping' : `mapping to ${valueOf(schema.values)}`;
    case 'object':
      return schema.open && Object.keys(schema.fields).length === 0 ? 'anything' : 'mapping';
    case 'any':
      return 'anything';
  }
}

/** The fields within, and how the path goes on to them. */
function inner(schema: Schema): { fields: Record<string, Schema>; suffix: string } | undefined {
  if (schema.type === 'object') return { fields: schema.fields, suffix: '' };
  const below = schema.type === 'array' ? schema.items : schema.type === 'map' ? schema.values : undefined;
  const found = below && inner(below);
  return found && { fields: found.fields, suffix: `${schema.type === 'array' ? '[]' : '.*'}${found.suffix}` };
}

/** @param known where fields that several places share were shown first */
function addRows(fields: Record<string, Schema>, prefix: string, rows: Row[], known: Map<object, string>): void {
  for (const [name, schema] of Object.entries(fields)) {
    const path = prefix === '' ? name : `${prefix}.${name}`;
    const support = schema.support ?? 'supported';
    const notes = [schema.aliasOf ? `another spelling of \`${schema.aliasOf}\`` : '', schema.note ?? ''].filter((note) => note !== '');
    const row: Row = { path, value: valueOf(schema), support, note: notes.join('; ') };
    rows.push(row);
    const below = inner(schema);
    // What is not acted on is not taken apart.
    if (!below || support !== 'supported' || Object.keys(below.fields).length === 0) continue;
    const before = known.get(below.fields);
    if (before !== undefined) {
      row.note = [row.note, `fields as in \`${before}\``].filter((note) => note !== '').join('; ');
      continue;
    }
    known.set(below.fields, `${path}${below.suffix}`);
    addRows(below.fields, `${path}${below.suffix}`, rows, known);
  }
}

/** Every field of a schema, in the order in which the schema names them. */
export function fieldRows(schema: Schema): Row[] {
  const rows: Row[] = [];
  if (schema.type === 'object') addRows(schema.fields, '', rows, new Map());
  return rows;
}

const cell = (text: string): string => text.replaceAll('|', '\\|');

function table(rows: readonly Row[]): string[] {
  return ['| field | value | | note |', '|---|---|---|---|', ...rows.map(({ path, value, support, note }) => `| \`${path}\` | ${cell(value)} | ${SAID[support]} | ${cell(note)} |`)];
}

const count = (rows: readonly Row[], support: Support): number => rows.filter((row) => row.support === support).length;
const title = ({ kind, group }: Pick<Kind, 'kind' | 'group'>): string => `${kind} (${group})`;
const anchor = (text: string): string => text.toLowerCase().replace(/[^a-z0-9 -]/g, '').replaceAll(' ', '-');

/** The whole page. */
export function apiTable(): string {
  const pages = kinds.map((kind) => {
    const rows = fieldRows(kind.spec).map((row): Row => (kind.unserved ? { ...row, support: 'ignored' } : row));
    return { name: title(kind), versions: kind.versions.join(', '), rows, note: kind.unserved ? 'Nothing acts on this kind: an object passes with a warning.' : kind.note };
  });
  pages.push({ name: 'MeshConfig', versions: 'a file, or the ConfigMap `istio`', rows: fieldRows(meshConfigSchema), note: undefined });
  const lines = [
    "# Istio's API in this control plane",
    '',
    'Made from the schemas that validate objects (`common/kube/kinds.ts`, `pilot/mesh-config/schema.ts`) by `make docs`; a test compares. Paths are those within `spec`; `[]` stands for each item of a list, `.*` for each entry of a mapping.',
    '',
    '- **supported**: acted on as Istio documents it.',
    '- **ignored with a warning**: valid, and without effect; it tunes, or Istio does not act on it either.',
    '- **refused**: valid in Istio, an error here, since leaving it out would change what traffic does.',
    '',
    '| kind | versions | fields | supported | ignored | refused |',
    '|---|---|---|---|---|---|',
    ...pages.map(({ name, versions, rows }) => `| [${name}](#${anchor(name)}) | ${versions} | ${rows.length} | ${count(rows, 'supported')} | ${count(rows, 'ignored')} | ${count(rows, 'refused')} |`),
    '',
    `These kinds pass with a warning, their fields are not looked at: ${[...unknownKinds].map((name) => `\`${name}\``).join(', ')}.`,
  ];
  for (const { name, versions, rows, note } of pages) lines.push('', `## ${name}`, `Versions: ${versions}.${note ? ` ${note}` : ''}`, '', ...table(rows));
  return `${lines.join('\n')}\n`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) writeFileSync(join(projectRoot, API_TABLE_FILE), apiTable());
