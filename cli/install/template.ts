/**
 * Kubernetes objects with places for values: what `underpass install` applies and what the Helm chart has are both made of
 * them. Plain data, in which a marker stands for what a value decides; `evaluate` gives data, helm.ts a chart's text.
 */
import type { SettingPath, Values } from './settings.js';

/** A value as it is. */
export class Value {
  constructor(readonly path: SettingPath) {}
}

/** Text put together out of text and values. */
export class Text {
  constructor(readonly parts: readonly (string | Value)[]) {}
}

/** A value as text that is JSON, its keys in their order. */
export class Json {
  constructor(readonly path: SettingPath) {}
}

/** Among a list's items: those of a value. */
export class Spread {
  constructor(readonly path: SettingPath) {}
}

/** A mapping of texts, and what a value has beside it or in its place. */
export class Merged {
  constructor(readonly path: SettingPath, readonly texts: Readonly<Record<string, string | Text>>) {}
}

/** `node` if the condition holds, else `otherwise`; without that its key or item is not there. */
export class When {
  constructor(readonly condition: Condition, readonly node: Template, readonly otherwise?: Template) {}
}

/** Says in the chart what the node is for. */
export class Commented {
  constructor(readonly comment: string, readonly node: Template) {}
}

/** A value that is there and neither empty, false nor 0; or one that is this very text. */
export type Condition = Value | { path: SettingPath; is: string } | { all: readonly Condition[] };

export type Template = null | boolean | number | string | Value | Text | Json | Spread | Merged | When | Commented | readonly Template[] | { readonly [key: string]: Template };
export type Mapping = { readonly [key: string]: Template };

export const value = (path: SettingPath): Value => new Value(path);
export const text = (strings: TemplateStringsArray, ...values: Value[]): Text => new Text(strings.flatMap((part, index) => [part, ...values.slice(index, index + 1)]).filter((part) => part !== ''));
export const when = (condition: Condition, node: Template, otherwise?: Template): When => new When(condition, node, otherwise);
export const is = (path: SettingPath, wanted: string): Condition => ({ path, is: wanted });
export const all = (...conditions: Condition[]): Condition => ({ all: conditions });
export const comment = (words: string, node: Template): Commented => new Commented(words, node);
/** A value that takes its key along when it is empty. */
export const optional = (path: SettingPath): When => when(value(path), value(path));

export function evaluateCondition(condition: Condition, values: Values): boolean {
  if (condition instanceof Value) return isFilled(values[condition.path]);
  if ('all' in condition) return condition.all.every((part) => evaluateCondition(part, values));
  return values[condition.path] === condition.is;
}

/** As Go's templates have it. */
function isFilled(found: unknown): boolean {
  if (typeof found === 'object' && found !== null) return Object.keys(found).length > 0;
  return found !== undefined && found !== null && found !== '' && found !== false && found !== 0;
}

/** @returns plain data; undefined: nothing of it is there */
export function evaluate(template: Template, values: Values): unknown {
  if (template instanceof Value) return structuredClone(values[template.path]);
  if (template instanceof Text) return template.parts.map((part) => (part instanceof Value ? String(values[part.path]) : part)).join('');
  if (template instanceof Json) return json(values[template.path]);
  if (template instanceof Merged) return { ...Object.fromEntries(Object.entries(template.texts).map(([key, node]) => [key, evaluate(node, values)])), ...structuredClone(values[template.path] as object) };
  if (template instanceof Commented) return evaluate(template.node, values);
  if (template instanceof When) {
    const chosen = evaluateCondition(template.condition, values) ? template.node : template.otherwise;
    return chosen === undefined ? undefined : evaluate(chosen, values);
  }
  if (template instanceof Spread) throw new Error(`${template.path}: spread outside of a list`);
  if (isList(template)) {
    return template.flatMap((item) => {
      if (item instanceof Spread) return structuredClone(values[item.path]) as unknown[];
      const found = evaluate(item, values);
      return found === undefined ? [] : [found];
    });
  }
  if (typeof template !== 'object' || template === null) return template;
  return Object.fromEntries(Object.entries(template).map(([key, node]) => [key, evaluate(node, values)] as const).filter(([, found]) => found !== undefined));
}

export function isList(template: Template): template is readonly Template[] {
  return Array.isArray(template);
}

/** As Helm's `toJson` writes it: sorted keys, and no character that HTML knows. */
function json(found: unknown): string {
  const sorted = (item: unknown): unknown => {
    if (Array.isArray(item)) return item.map(sorted);
    if (typeof item !== 'object' || item === null) return item;
    return Object.fromEntries(Object.entries(item).sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, inner]) => [key, sorted(inner)]));
  };
  return JSON.stringify(sorted(found)).replace(/[<>&\u2028\u2029]/g, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`);
}
