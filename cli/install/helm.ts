/** Templates as a Helm chart's text: markers become Go's template actions, values JSON, which YAML takes wherever it takes a value. */
import { Commented, Json, Merged, Spread, Text, Value, When, isList, type Condition, type Template } from './template.js';

const WIDTH = 118;

/** One file of a chart's `templates/`. @param objects each a document of its own */
export function helmText(objects: readonly Template[]): string {
  return objects.map((object) => document(object)).join('');
}

function document(template: Template): string {
  if (template instanceof When) return `{{- if ${condition(template.condition)} }}\n${document(template.node)}${template.otherwise === undefined ? '' : `{{- else }}\n${document(template.otherwise)}`}{{- end }}\n`;
  if (template instanceof Commented) return document(template.node).replace('---\n', `---\n${commentLines(template.comment, '')}`);
  return `---\n${fields(template as { [key: string]: Template }, '')}`;
}

function condition(of: Condition): string {
  if (of instanceof Value) return reference(of.path);
  if ('all' in of) return `and ${of.all.map((part) => `(${condition(part)})`).join(' ')}`;
  return `eq ${reference(of.path)} ${JSON.stringify(of.is)}`;
}

const reference = (path: string): string => `.Values.${path}`;

function fields(mapping: { readonly [key: string]: Template }, indent: string): string {
  return Object.entries(mapping).map(([key, node]) => field(key, node, indent)).join('');
}

function field(key: string, node: Template, indent: string): string {
  if (node instanceof When) return branches(node, (chosen) => field(key, chosen, indent));
  if (node instanceof Commented) return commentLines(node.comment, indent) + field(key, node.node, indent);
  const name = `${indent}${/^[A-Za-z0-9][\w./-]*$/.test(key) ? key : JSON.stringify(key)}:`;
  const flat = scalar(node);
  if (flat !== undefined) return `${name} ${flat}\n`;
  if (isList(node)) return `${name}\n${items(node, `${indent}  `)}`;
  return `${name}\n${fields(node as { [key: string]: Template }, `${indent}  `)}`;
}

function items(list: readonly Template[], indent: string): string {
  return list.map((node) => item(node, indent)).join('');
}

function item(node: Template, indent: string): string {
  if (node instanceof When) return branches(node, (chosen) => item(chosen, indent));
  if (node instanceof Commented) return commentLines(node.comment, indent) + item(node.node, indent);
  if (node instanceof Spread) return `{{- range ${reference(node.path)} }}\n${indent}- {{ toJson . }}\n{{- end }}\n`;
  const flat = scalar(node);
  if (flat !== undefined) return `${indent}- ${flat}\n`;
  if (isList(node)) throw new Error('a list among a list\'s items has no text yet');
  const inner = fields(node as { [key: string]: Template }, `${indent}  `);
  // The first key stands behind the dash, unless a condition or a comment is before it.
  return inner.startsWith(`${indent}  `) && !inner.startsWith(`${indent}  #`) ? `${indent}- ${inner.slice(indent.length + 2)}` : `${indent}-\n${inner}`;
}

function branches(node: When, write: (chosen: Template) => string): string {
  return `{{- if ${condition(node.condition)} }}\n${write(node.node)}${node.otherwise === undefined ? '' : `{{- else }}\n${write(node.otherwise)}`}{{- end }}\n`;
}

/** @returns undefined when it needs lines of its own */
function scalar(node: Template): string | undefined {
  if (node instanceof Value) return `{{ toJson ${reference(node.path)} }}`;
  if (node instanceof Json) return `{{ toJson ${reference(node.path)} | toJson }}`;
  if (node instanceof Merged) return `{{ merge (dict) ${reference(node.path)} (dict ${Object.entries(node.texts).map(([key, words]) => `${JSON.stringify(key)} ${typeof words === 'string' ? JSON.stringify(words) : `(${joined(words)})`}`).join(' ')}) | toJson }}`;
  if (node instanceof Text) return `{{ ${joined(node)} | toJson }}`;
  if (typeof node === 'string') return plain(node);
  if (typeof node !== 'object' || node === null) return JSON.stringify(node);
  if (isList(node)) {
    if (node.length === 0) return '[]';
    const texts = node.map((part) => (typeof part === 'string' || typeof part === 'number' ? scalar(part) : undefined));
    const line = `[${texts.join(', ')}]`;
    return texts.every((part) => part !== undefined && !part.includes('{{')) && line.length < WIDTH ? line : undefined;
  }
  return Object.getPrototypeOf(node) === Object.prototype && Object.keys(node).length === 0 ? '{}' : undefined;
}

const joined = ({ parts }: Text): string => `list ${parts.map((part) => (part instanceof Value ? reference(part.path) : JSON.stringify(part))).join(' ')} | join ""`;

/** Without quotes where YAML reads the same text back. */
function plain(words: string): string {
  if (/^[A-Za-z/][\w./-]*(?::[\w./-]+)*$/.test(words) && !/^(true|false|yes|no|on|off|null|y|n)$/i.test(words)) return words;
  // Braces of Grafana's and Prometheus' own templates are none of Go's here.
  return JSON.stringify(words).replaceAll('{{', '{{ "{{" }}');
}

function commentLines(words: string, indent: string): string {
  const lines: string[] = [];
  for (const word of words.split(' ')) {
    const last = lines.at(-1);
    if (last !== undefined && indent.length + 2 + last.length + 1 + word.length <= WIDTH) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines.map((line) => `${indent}# ${line}\n`).join('');
}
