/**
 * Reads Kubernetes and Istio YAML and keeps where each field was written, so that whatever is wrong with an object, now
 * or later in its life, can be said as `file:line:column`.
 */
import { readFile, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { LineCounter, isAlias, isMap, isScalar, isSeq, parseAllDocuments, type Document, type Node as YamlNode } from 'yaml';
import { errorCode, errorMessage } from '../errors.js';
import { formatPath, type Concern, type Path, type Problem } from './schema.js';
import { checkObject } from './schemas.js';
import { isNamespaced, objectKey, type KubeObject } from './types.js';

export interface Position {
  /** Both count from 1. */
  line: number;
  column: number;
}

/** Where the fields of one object stand in its file. */
export interface Positions {
  /** Of the value at `path`, or of its key; the nearest enclosing field's where that one is not written. */
  at(path: Path, what?: 'key' | 'value'): Position;
}

export interface LoadedObject<T extends KubeObject = KubeObject> {
  object: T;
  /** `group/Kind/namespace/name` */
  key: string;
  file: string;
  positions: Positions;
}

export interface ValidationError {
  severity: 'error' | 'warning';
  file: string;
  line: number;
  column: number;
  kind?: string;
  namespace?: string;
  name?: string;
  /** `spec.http[0].route[1].destination.subset`; empty when the file is not YAML. */
  field: string;
  message: string;
  about?: Concern;
}

export interface LoadResult {
  /** Only objects without errors; with warnings they are here. */
  objects: LoadedObject[];
  errors: ValidationError[];
  /** Keys of objects that were refused: whoever has an earlier version of one should keep it. */
  refused: string[];
  /** Files (or the text) with a part that could not be read at all, so that objects may be missing from it. */
  unreadable: string[];
}

/** `file:line:column: Kind ns/name: field.path: message` */
export function formatError(error: ValidationError): string {
  const parts = [`${error.file}:${error.line}:${error.column}`];
  if (error.kind) parts.push(`${error.kind} ${error.namespace ? `${error.namespace}/` : ''}${error.name ?? '(no name)'}`);
  if (error.field) parts.push(error.field);
  if (error.severity === 'warning') parts.push('warning');
  return `${parts.join(': ')}: ${error.message}`;
}

/** What `problem` of `loaded` reads like with its place in the file. */
export function errorAt(loaded: LoadedObject, problem: Problem): ValidationError {
  const { object } = loaded;
  const error: ValidationError = {
    severity: problem.severity,
    file: loaded.file,
    ...loaded.positions.at(problem.path, problem.atKey ? 'key' : 'value'),
    kind: object.kind,
    name: object.metadata?.name,
    field: formatPath(problem.path),
    message: problem.message,
  };
  if (problem.about) error.about = problem.about;
  if (object.metadata?.namespace) error.namespace = object.metadata.namespace;
  return error;
}

/** Files that a directory source reads: not hidden, not what an editor or an atomic replacement leaves for a moment. */
export function isObjectFile(name: string): boolean {
  return /\.(ya?ml|json)$/.test(name) && !name.startsWith('.');
}

/**
 * Every `.yaml`, `.yml` and `.json` file of a directory in the order of their names, its sub-directories left alone, as
 * `kubectl apply -f DIR` has it. A file gives what it holds.
 */
export async function loadDirectory(path: string): Promise<LoadResult> {
  if ((await stat(path)).isFile()) return loadFile(path);
  const names = (await readdir(path)).filter(isObjectFile).sort();
  return mergeResults(await Promise.all(names.map((name) => loadFile(join(path, name)))));
}

export async function loadFile(path: string): Promise<LoadResult> {
  let content: string;
  try {
    content = await readFile(path, 'utf8');
  } catch (error) {
    if (errorCode(error) === 'EISDIR') return emptyResult();
    const unread = { severity: 'error' as const, file: path, line: 1, column: 1, field: '', message: `reading it: ${errorMessage(error)}` };
    return { objects: [], errors: [unread], refused: [], unreadable: [path] };
  }
  return parseYaml(content, path);
}

export function emptyResult(): LoadResult {
  return { objects: [], errors: [], refused: [], unreadable: [] };
}

export function mergeResults(results: readonly LoadResult[]): LoadResult {
  return {
    objects: results.flatMap((result) => result.objects),
    errors: results.flatMap((result) => result.errors),
    refused: results.flatMap((result) => result.refused),
    unreadable: results.flatMap((result) => result.unreadable),
  };
}

/** Parses and checks a multi-document text; never throws for what the text holds. */
export function parseYaml(content: string, fileName: string): LoadResult {
  const result = emptyResult();
  const { documents, lines } = parsedText(content);
  for (const [index, document] of documents.entries()) {
    for (const warning of document.errors) {
      const { line, col } = lines.linePos(warning.pos[0]);
      result.errors.push({ severity: 'error', file: fileName, line, column: col, field: '', message: `not YAML: ${warning.message}` });
    }
    if (document.errors.length > 0) {
      if (!result.unreadable.includes(fileName)) result.unreadable.push(fileName);
      continue;
    }
    let value: unknown;
    try {
      value = document.toJS({ maxAliasCount: 100 });
    } catch (error) {
      result.errors.push({ severity: 'error', file: fileName, line: 1, column: 1, field: '', message: `not YAML: ${errorMessage(error)}` });
      result.unreadable.push(fileName);
      continue;
    }
    if (value === null || value === undefined) continue;
    addValue(value, new DocumentPositions(content, index, []), fileName, result);
  }
  return result;
}

/** Checks one object that was not read from a text; its place is all that can be said of it. */
export function loadValue(value: unknown, place: string): LoadResult {
  const result = emptyResult();
  addValue(value, NOWHERE, place, result);
  return result;
}

const NOWHERE: ListPositions = { at: () => ({ line: 1, column: 1 }), below: () => NOWHERE };

interface ListPositions extends Positions {
  /** Of an item of a list. */
  below(path: Path): ListPositions;
}

function addValue(value: unknown, positions: ListPositions, file: string, result: LoadResult): void {
  if (isRecord(value) && typeof value['kind'] === 'string' && value['kind'].endsWith('List') && Array.isArray(value['items'])) {
    value['items'].forEach((item, index) => addValue(item, positions.below(['items', index]), file, result));
    return;
  }
  if (!isRecord(value)) {
    result.errors.push({ severity: 'error', file, ...positions.at([]), field: '', message: 'found no mapping, expected an object with apiVersion, kind and metadata' });
    return;
  }
  const candidate = value as unknown as KubeObject;
  if (typeof candidate.kind === 'string' && isRecord(candidate.metadata) && isNamespaced(candidate.kind)) candidate.metadata.namespace ??= 'default';
  const loaded: LoadedObject = { object: candidate, key: '', file, positions };
  const problems = checkObject(candidate);
  if (typeof candidate.apiVersion === 'string' && typeof candidate.kind === 'string' && typeof candidate.metadata?.name === 'string') loaded.key = objectKey(candidate);
  for (const problem of problems) result.errors.push(errorAt(loaded, problem));
  if (!problems.some((problem) => problem.severity === 'error')) result.objects.push(loaded);
  else if (loaded.key) result.refused.push(loaded.key);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

interface ParsedText {
  documents: readonly Document.Parsed[];
  lines: LineCounter;
}

/** The newest text that was parsed: its objects' positions are asked for while it is read, and hardly ever later. */
let newest: { content: string; parsed: WeakRef<ParsedText> } | undefined;

function parsedText(content: string): ParsedText {
  const known = newest?.content === content ? newest.parsed.deref() : undefined;
  if (known) return known;
  const lines = new LineCounter();
  const documents = parseAllDocuments(content, { lineCounter: lines, prettyErrors: false, merge: true, version: '1.2' });
  const parsed: ParsedText = { documents: Array.isArray(documents) ? (documents as Document.Parsed[]) : [], lines };
  newest = { content, parsed: new WeakRef(parsed) };
  return parsed;
}

/** Where things stand is worked out from the text when it is asked for: a large mesh's syntax trees take many times its objects' memory. */
class DocumentPositions implements Positions {
  /** @param index of the document in the text */
  constructor(readonly content: string, readonly index: number, readonly prefix: Path) {}

  below(path: Path): DocumentPositions {
    return new DocumentPositions(this.content, this.index, [...this.prefix, ...path]);
  }

  at(path: Path, what: 'key' | 'value' = 'value'): Position {
    const { documents, lines } = parsedText(this.content);
    const document = documents[this.index]!;
    let node: YamlNode | null | undefined = document.contents;
    let offset = node?.range?.[0] ?? 0;
    const full = [...this.prefix, ...path];
    for (const [index, part] of full.entries()) {
      if (isAlias(node)) node = node.resolve(document);
      let next: YamlNode | null | undefined;
      if (isMap(node)) {
        const pair = node.items.find(({ key }) => isScalar(key) && String(key.value) === String(part));
        if (!pair) break;
        offset = (pair.key as YamlNode).range?.[0] ?? offset;
        next = pair.value as YamlNode | null;
        if (what === 'key' && index === full.length - 1) break;
      } else if (isSeq(node)) {
        next = node.items[part as number] as YamlNode | undefined;
      }
      if (!next) break;
      node = next;
      // A nested mapping begins where its first key stands; a scalar value where it stands itself.
      if (next.range) offset = next.range[0];
    }
    const { line, col } = lines.linePos(offset);
    return { line, column: col };
  }
}
