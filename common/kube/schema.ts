/**
 * A small schema language for the objects that people write: enough to name the field that is wrong, say what was found
 * there and what was expected. Not JSON Schema, since a field here also says whether this control plane acts on it.
 */
import { editDistance } from '../nearest.js';

export type Path = readonly (string | number)[];

/**
 * `missing`: what is referred to is not there; `no-workload`: a selector that nothing fits; `several`: of objects that are there only
 * one counts; `second`: the same, of those for all of a namespace; `routed-already`: so is the host; `not-taken`: none of the Gateway's
 * servers take the host.
 */
export type Concern = 'missing' | 'no-workload' | 'several' | 'second' | 'routed-already' | 'not-taken';

export interface Problem {
  path: Path;
  /** What is wrong, e.g. `unknown field "subste"; did you mean "subset"?` */
  message: string;
  severity: 'error' | 'warning';
  /** Of what kind it is, as far as others are concerned. */
  about?: Concern;
  /** The problem is with the key itself, not with its value. */
  atKey?: boolean;
}

export type Report = (message: string, path?: Path) => void;

/** Called only with a value that has the schema's types, however deep: hence `any`, the schema has established it. */
export type Check<T = any> = (value: T, report: Report, warn: Report) => void;

export interface SchemaBase {
  /** `ignored`: a valid field of the API that is not acted on (a warning). `refused`: valid there, an error here. */
  support?: 'ignored' | 'refused';
  /** Why, or what of it is acted on: for the reader of the table of fields. */
  note?: string;
  /** The field is another spelling of this one. */
  aliasOf?: string;
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
    | {
        type: 'object';
        fields: Record<string, Schema>;
        required?: readonly string[];
        /** Fields that are not named pass. */
        open?: boolean;
        /** Exactly one of these. */
        oneOf?: readonly string[];
        /** At most one of each of these. */
        atMostOne?: readonly (readonly string[])[];
      }
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
export const word: Schema = { type: 'string', nonEmpty: true };
export const choice = (...values: string[]): Schema => ({ type: 'string', values });
export const withCheck = <T>(schema: Schema, check: Check<T>): Schema => {
  const first = schema.check;
  return { ...schema, check: first ? (value, report, warn) => (first(value, report, warn), check(value as T, report, warn)) : check };
};
/** Passes with a warning: leaving it out only tunes. */
export const ignored = (schema: Schema = anything, note?: string): Schema => ({ ...schema, support: 'ignored', ...(note ? { note } : {}) });
/** An error: leaving it out would change what traffic does. */
export const refused = (schema: Schema = anything, note?: string): Schema => ({ ...schema, support: 'refused', ...(note ? { note } : {}) });
export const noted = (schema: Schema, note: string): Schema => ({ ...schema, note });

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

/** Everything that is wrong with `value`, in document order. */
export function checkSchema(schema: Schema, value: unknown, path: Path = []): Problem[] {
  const problems: Problem[] = [];
  visit(schema, value, path, problems);
  return problems;
}

/** @returns whether the value, with all that it holds, has the schema's types, so that checks can rely on them. */
function visit(schema: Schema, value: unknown, path: Path, problems: Problem[]): boolean {
  const wrong = (expected: string): void => {
    problems.push({ path, message: `found ${describe(value)}, expected ${expected}`, severity: 'error' });
  };
  if (schema.support === 'refused') {
    const why = schema.note ? ` (${schema.note})` : '';
    problems.push({ path, message: `this field is not supported by this version and would change what the traffic does; remove it${why}`, severity: 'error', atKey: true });
    return true;
  }
  if (schema.support === 'ignored') {
    const why = schema.note ? `: ${schema.note}` : '';
    problems.push({ path, message: `this field is not acted on by this version${why}`, severity: 'warning', atKey: true });
  }
  let typed = true;
  switch (schema.type) {
    case 'any':
      break;
    case 'string':
      if (typeof value !== 'string') {
        wrong(typeof value === 'number' || typeof value === 'boolean' ? 'a string (put it in quotes)' : 'a string');
        return false;
      }
      if (schema.nonEmpty && value === '') wrong('a string that is not empty');
      else if (schema.values && !schema.values.includes(value)) {
        const near = nearest(value, schema.values);
        wrong(`one of ${schema.values.join(', ')}${near ? ` (did you mean ${near}?)` : ''}`);
      } else break;
      // It is a string all the same: what looks at the whole may go on, what looks at this string has been said.
      return true;
    case 'boolean':
      if (typeof value !== 'boolean') {
        wrong('true or false');
        return false;
      }
      break;
    case 'number': {
      const { min = -Infinity, max = Infinity, integer: whole = false } = schema;
      const kind = whole ? 'a whole number' : 'a number';
      if (typeof value !== 'number' || (whole && !Number.isInteger(value))) {
        wrong(kind);
        return false;
      }
      if (value < min || value > max) {
        wrong(`${kind} ${max >= Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`}`);
        return true;
      }
      break;
    }
    case 'duration': {
      const ms = typeof value === 'string' ? parseDurationMs(value) : undefined;
      if (ms === undefined) {
        wrong('a duration such as 500ms, 10s or 1m30s');
        return false;
      }
      if (ms < (schema.minMs ?? 0)) {
        wrong(`a duration of at least ${schema.minMs} ms`);
        return true;
      }
      break;
    }
    case 'intOrString':
      if (typeof value !== 'string' && !(typeof value === 'number' && Number.isInteger(value))) {
        wrong('a whole number or a name');
        return false;
      }
      break;
    case 'array':
      if (!Array.isArray(value)) {
        wrong('a list');
        return false;
      }
      if (value.length < (schema.minItems ?? 0)) {
        wrong(`a list with at least ${schema.minItems} item${schema.minItems === 1 ? '' : 's'}`);
        return true;
      }
      value.forEach((item, index) => {
        if (!visit(schema.items, item, [...path, index], problems)) typed = false;
      });
      break;
    case 'map':
      if (typeof value !== 'object' || value === null || Array.isArray(value)) {
        wrong('a mapping');
        return false;
      }
      for (const [key, item] of Object.entries(value)) if (!visit(schema.values, item, [...path, key], problems)) typed = false;
      break;
    case 'object':
      if (typeof value !== 'object' || value === null || Array.isArray(value)) {
        wrong('a mapping');
        return false;
      }
      typed = visitFields(schema, value as Record<string, unknown>, path, problems);
      break;
  }
  if (typed && schema.check) {
    const at = (severity: Problem['severity']): Report => (message, below = []) => problems.push({ path: [...path, ...below], message, severity });
    schema.check(value, at('error'), at('warning'));
  }
  return typed;
}

function visitFields(schema: Extract<Schema, { type: 'object' }>, value: Record<string, unknown>, path: Path, problems: Problem[]): boolean {
  let typed = true;
  const isSet = (key: string): boolean => value[key] !== undefined && value[key] !== null;
  for (const [key, item] of Object.entries(value)) {
    const field = Object.hasOwn(schema.fields, key) ? schema.fields[key] : undefined;
    if (field) {
      if (item !== null && !visit(field, item, [...path, key], problems)) typed = false;
    } else if (!schema.open) {
      const near = nearest(key, Object.keys(schema.fields));
      const expected = near ? `did you mean "${near}"?` : `expected one of ${Object.keys(schema.fields).join(', ')}`;
      problems.push({ path: [...path, key], message: `unknown field; ${expected}`, severity: 'error', atKey: true });
    }
  }
  for (const key of schema.required ?? []) {
    if (isSet(key)) continue;
    problems.push({ path: [...path, key], message: 'found nothing, this field is required', severity: 'error' });
    typed = false;
  }
  if (schema.oneOf) {
    const set = schema.oneOf.filter(isSet);
    if (set.length !== 1) {
      const found = set.length === 0 ? 'none of them' : set.join(' and ');
      problems.push({ path, message: `found ${found}, expected exactly one of ${schema.oneOf.join(', ')}`, severity: 'error' });
    }
  }
  for (const group of schema.atMostOne ?? []) {
    const set = group.filter(isSet);
    if (set.length > 1) problems.push({ path, message: `found ${set.join(' and ')}, expected at most one of ${group.join(', ')}`, severity: 'error' });
  }
  return typed;
}

/**
 * Brings a value into its normal form, in place and before it is checked: fields in another spelling of the API get their
 * proper name, and a key with nothing after it, which means "not set", goes.
 */
export function normalize(schema: Schema, value: unknown): void {
  if (typeof value !== 'object' || value === null) return;
  if (schema.type === 'array' && Array.isArray(value)) for (const item of value) normalize(schema.items, item);
  else if (schema.type === 'map') for (const item of Object.values(value)) normalize(schema.values, item);
  else if (schema.type === 'object' && !Array.isArray(value)) {
    const record = value as Record<string, unknown>;
    for (const [key, item] of Object.entries(record)) {
      const field = Object.hasOwn(schema.fields, key) ? schema.fields[key]! : undefined;
      if (!field) continue;
      if (item === null || field.aliasOf) delete record[key];
      if (item !== null && field.aliasOf) record[field.aliasOf] ??= item;
      if (item !== null) normalize(field, item);
    }
  }
}
