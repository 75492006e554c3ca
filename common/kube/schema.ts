/**
 * A small schema language for the objects that people write: enough to name the field that is wrong, say what was found
 * there and what was expected. Not JSON Schema, since a field here also says whether this control plane acts on it.
 */

export type Path = readonly (string | number)[];

export interface Problem {
  path: Path;
  /** What is wrong, e.g. `unknown field "subste"; did you mean "subset"?` */
  message: string;
  severity: 'error' | 'warning';
  /** The problem is with the key itself, not with its value. */
  atKey?: boolean;
}

export type Check = (value: unknown, report: (message: string, path?: Path) => void) => void;

export interface SchemaBase {
  /** `ignored`: a valid field of the API that is not acted on (a warning). `refused`: valid there, an error here. */
  support?: 'ignored' | 'refused';
  check?: Check;
}

export type Schema = SchemaBase &
  (
    | { type: 'any' }
    | { type: 'string'; values?: readonly string[]; nonEmpty?: boolean }
    | { type: 'boolean' }
    | { type: 'number'; min?: number; max?: number; integer?: boolean }
    | { type: 'duration'; minMs?: number }
    | { type: 'intOrString' }
    | { type: 'array'; items: Schema; minItems?: number }
    | { type: 'map'; values: Schema }
    | { type: 'object'; fields: Record<string, Schema>; required?: readonly string[]; open?: boolean; oneOf?: readonly string[] }
  );

export const text: Schema = { type: 'string' };
export const bool: Schema = { type: 'boolean' };
export const anything: Schema = { type: 'any' };
export const stringMap: Schema = { type: 'map', values: text };
export const list = (items: Schema, minItems = 0): Schema => ({ type: 'array', items, minItems });
export const object = (fields: Record<string, Schema>, required: readonly string[] = []): Schema => ({ type: 'object', fields, required });
/** An object of which only these fields are looked at; others pass. */
export const open = (fields: Record<string, Schema>, required: readonly string[] = []): Schema => ({ type: 'object', fields, required, open: true });
export const integer = (min = 0, max = Number.MAX_SAFE_INTEGER): Schema => ({ type: 'number', integer: true, min, max });
export const port: Schema = integer(1, 65_535);
export const duration: Schema = { type: 'duration' };

const DURATION = /^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$/;
const UNIT_MS: Record<string, number> = { ns: 1e-6, us: 1e-3, µs: 1e-3, ms: 1, s: 1_000, m: 60_000, h: 3_600_000 };

/** Milliseconds of a Go-style duration (`1.5s`, `1m30s`), or undefined when it is none. */
export function parseDurationMs(value: string): number | undefined {
  if (value === '0') return 0;
  if (!DURATION.test(value)) return undefined;
  let total = 0;
  for (const [, amount, , unit] of value.matchAll(/([0-9]+(\.[0-9]+)?)(ns|us|µs|ms|s|m|h)/g)) total += Number(amount) * UNIT_MS[unit!]!;
  return total;
}

/** How a value reads in a message. */
export function describe(value: unknown): string {
  if (value === null || value === undefined) return 'nothing';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object') return 'a mapping';
  if (typeof value === 'string') return `string ${JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value)}`;
  return `${typeof value} ${String(value)}`;
}

/** `spec.http[0].route` */
export function formatPath(path: Path): string {
  let out = '';
  for (const part of path) {
    if (typeof part === 'number') out += `[${part}]`;
    else if (/^[A-Za-z_][\w-]*$/.test(part)) out += out === '' ? part : `.${part}`;
    else out += `[${JSON.stringify(part)}]`;
  }
  return out;
}

/** The nearest of `candidates` by edit distance, if near enough to be a slip of the pen. */
export function nearest(word: string, candidates: Iterable<string>): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(1, Math.floor(word.length / 3)) + 1;
  for (const candidate of candidates) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance];
  }
  return best;
}

/** Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours. */
function editDistance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      let cost = Math.min(rows[i - 1]![j]! + 1, row[j - 1]! + 1, rows[i - 1]![j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) cost = Math.min(cost, rows[i - 2]![j - 2]! + 1);
      row.push(cost);
    }
    rows.push(row);
  }
  return rows[a.length]![b.length]!;
}

/** Everything that is wrong with `value`, in document order. */
export function checkSchema(schema: Schema, value: unknown, path: Path = []): Problem[] {
  const problems: Problem[] = [];
  visit(schema, value, path, problems);
  return problems;
}

function visit(schema: Schema, value: unknown, path: Path, problems: Problem[]): void {
  const wrong = (expected: string): void => {
    problems.push({ path, message: `found ${describe(value)}, expected ${expected}`, severity: 'error' });
  };
  if (schema.support === 'refused') {
    problems.push({ path, message: 'this field is not supported by this version and would change what the traffic does; remove it', severity: 'error', atKey: true });
    return;
  }
  if (schema.support === 'ignored') problems.push({ path, message: 'this field is not acted on by this version', severity: 'warning', atKey: true });
  switch (schema.type) {
    case 'any':
      break;
    case 'string':
      if (typeof value !== 'string') return wrong(typeof value === 'number' || typeof value === 'boolean' ? 'a string (put it in quotes)' : 'a string');
      if (schema.nonEmpty && value === '') return wrong('a string that is not empty');
      if (schema.values && !schema.values.includes(value)) {
        const near = nearest(value, schema.values);
        return wrong(`one of ${schema.values.join(', ')}${near ? ` (did you mean ${near}?)` : ''}`);
      }
      break;
    case 'boolean':
      if (typeof value !== 'boolean') return wrong('true or false');
      break;
    case 'number': {
      const { min = -Infinity, max = Infinity, integer: whole = false } = schema;
      const kind = whole ? 'a whole number' : 'a number';
      if (typeof value !== 'number' || (whole && !Number.isInteger(value))) return wrong(kind);
      if (value < min || value > max) return wrong(`${kind} ${max >= Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`}`);
      break;
    }
    case 'duration': {
      const ms = typeof value === 'string' ? parseDurationMs(value) : undefined;
      if (ms === undefined) return wrong('a duration such as 500ms, 10s or 1m30s');
      if (ms < (schema.minMs ?? 0)) return wrong(`a duration of at least ${schema.minMs} ms`);
      break;
    }
    case 'intOrString':
      if (typeof value !== 'string' && !(typeof value === 'number' && Number.isInteger(value))) return wrong('a whole number or a name');
      break;
    case 'array':
      if (!Array.isArray(value)) return wrong('a list');
      if (value.length < (schema.minItems ?? 0)) return wrong(`a list with at least ${schema.minItems} item${schema.minItems === 1 ? '' : 's'}`);
      value.forEach((item, index) => visit(schema.items, item, [...path, index], problems));
      break;
    case 'map':
      if (typeof value !== 'object' || value === null || Array.isArray(value)) return wrong('a mapping');
      for (const [key, item] of Object.entries(value)) visit(schema.values, item, [...path, key], problems);
      break;
    case 'object':
      if (typeof value !== 'object' || value === null || Array.isArray(value)) return wrong('a mapping');
      visitFields(schema, value as Record<string, unknown>, path, problems);
      break;
  }
  schema.check?.(value, (message, below = []) => problems.push({ path: [...path, ...below], message, severity: 'error' }));
}

function visitFields(schema: Extract<Schema, { type: 'object' }>, value: Record<string, unknown>, path: Path, problems: Problem[]): void {
  for (const [key, item] of Object.entries(value)) {
    const field = Object.hasOwn(schema.fields, key) ? schema.fields[key] : undefined;
    if (field) {
      // A key with nothing after it means "not set" in Kubernetes' APIs.
      if (item !== null) visit(field, item, [...path, key], problems);
    } else if (!schema.open) {
      const near = nearest(key, Object.keys(schema.fields));
      const expected = near ? `did you mean "${near}"?` : `expected one of ${Object.keys(schema.fields).join(', ')}`;
      problems.push({ path: [...path, key], message: `unknown field; ${expected}`, severity: 'error', atKey: true });
    }
  }
  for (const key of schema.required ?? []) {
    if (value[key] === undefined || value[key] === null) problems.push({ path: [...path, key], message: 'found nothing, this field is required', severity: 'error' });
  }
  if (schema.oneOf) {
    const set = schema.oneOf.filter((key) => value[key] !== undefined && value[key] !== null);
    if (set.length !== 1) {
      const found = set.length === 0 ? 'none of them' : set.join(' and ');
      problems.push({ path, message: `found ${found}, expected exactly one of ${schema.oneOf.join(', ')}`, severity: 'error' });
    }
  }
}
