/** The check of one object by itself, of whatever kind. */
import { coreSchemas, metadata } from './core-schemas.js';
import { findKind, GATEWAY_API, kinds, unknownKinds, type Kind } from './kinds.js';
import { isDnsLabel } from './istio/syntax.js';
import { anything, checkSchema, nearest, normalize, object, open, text, type Problem, type Schema } from './schema.js';
import { apiGroup, type KubeObject } from './types.js';

const envelopes = new Map<Kind, Schema>();

function envelope(kind: Kind): Schema {
  let schema = envelopes.get(kind);
  if (!schema) {
    schema = object({ apiVersion: text, kind: text, metadata, spec: kind.spec, status: anything }, kind.specOptional ? [] : ['spec']);
    envelopes.set(kind, schema);
  }
  return schema;
}

const bare = open({ metadata });

/**
 * Everything that is wrong with one object by itself; what depends on other objects is pilot's to check. The object is
 * first brought into its normal form, in place: other spellings of a field and keys with nothing after them go.
 */
export function checkObject(candidate: KubeObject): Problem[] {
  const problems: Problem[] = [];
  for (const field of ['apiVersion', 'kind'] as const) {
    if (typeof candidate[field] !== 'string' || (candidate[field] as string) === '') problems.push({ path: [field], message: 'found nothing, this field is required', severity: 'error' });
  }
  if (typeof candidate.metadata !== 'object' || candidate.metadata === null) problems.push({ path: ['metadata'], message: 'found nothing, this field is required', severity: 'error' });
  if (problems.length > 0) return problems;
  const group = apiGroup(candidate.apiVersion);
  const kind = findKind(group, candidate.kind);
  if (kind) return checkKind(kind, candidate);
  const schema = coreSchemas[`${group}/${candidate.kind}`] ?? bare;
  if (group.endsWith('istio.io') || group === GATEWAY_API) problems.push(unknownKind(group, candidate.kind));
  normalize(schema, candidate);
  return [...problems, ...checkSchema(schema, candidate)];
}

function checkKind(kind: Kind, candidate: KubeObject): Problem[] {
  const problems: Problem[] = [];
  const version = candidate.apiVersion.slice(kind.group.length + 1);
  if (!kind.versions.includes(version)) {
    const expected = kind.versions.map((known) => `${kind.group}/${known}`).join(', ');
    problems.push({ path: ['apiVersion'], message: `found "${candidate.apiVersion}", expected one of ${expected}`, severity: 'error' });
  }
  if (kind.unserved) problems.push({ path: ['kind'], message: `${kind.kind} is not acted on by this version`, severity: 'warning' });
  const schema = envelope(kind);
  normalize(schema, candidate);
  problems.push(...checkSchema(schema, candidate));
  const name = candidate.metadata.name;
  if (kind.labelName && typeof name === 'string' && name !== '' && !isDnsLabel(name)) problems.push({ path: ['metadata', 'name'], message: `found "${name}", expected at most 63 letters, digits and "-"`, severity: 'error' });
  problems.push(...checkExport(candidate));
  return problems;
}

/** An object's own namespace and `.` are the same: only one of them may stand in its exportTo. */
function checkExport({ metadata: { namespace }, ...rest }: KubeObject): Problem[] {
  const exportTo = (rest as { spec?: { exportTo?: unknown } }).spec?.exportTo;
  if (!Array.isArray(exportTo) || !namespace || !exportTo.includes('.') || !exportTo.includes(namespace)) return [];
  return [{ path: ['spec', 'exportTo', exportTo.indexOf(namespace)], message: `found "${namespace}", which "." is already, expected each namespace once`, severity: 'error' }];
}

function unknownKind(group: string, kind: string): Problem {
  if (unknownKinds.has(`${group}/${kind}`)) return { path: ['kind'], message: `${kind} is not acted on by this version`, severity: 'warning' };
  const known = [...kinds.map((one) => one.kind), ...[...unknownKinds].map((name) => name.split('/')[1]!)];
  const near = nearest(kind, known);
  return { path: ['kind'], message: `found "${kind}" in ${group}, ${near ? `did you mean ${near}?` : `expected one of ${known.join(', ')}`}`, severity: 'error' };
}
