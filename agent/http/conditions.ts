/**
 * Conditions of requests as the kernel can judge them: any combination of tests becomes alternatives, each of which is one rule.
 * What can't be expressed makes them say yes to too many requests (`over`) or to too few (`under`), as the caller needs it: a rule
 * that leads to Envoy may hold too often, one that allows must not.
 */
import { HTTP_CONDITIONS, HTTP_METHODS, HTTP_RULES_EACH, type HttpMethod } from './limits.js';
import type { HeaderTest, HttpRule, PathTest } from './table.js';

export type Condition =
  | boolean
  | { unknown: string }
  | { path: PathTest }
  | { methods: readonly HttpMethod[] }
  /** `isLoose`: it also holds for requests that it is not meant for. */
  | { header: HeaderTest; isLoose?: boolean }
  | { and: readonly Condition[] }
  | { or: readonly Condition[] }
  | { not: Condition };

export type Bound = 'over' | 'under';

/** A rule without a verdict. */
export type Alternative = Omit<HttpRule<unknown>, 'verdict'>;

export interface Alternatives {
  /** One of them has to hold. */
  terms: Alternative[];
  /** What could not be expressed; undefined: they say the very same. */
  inexact: string | undefined;
}

export const ANY_PATH: PathTest = { kind: 'any', value: '', inverted: false };
const ALWAYS: Alternative = { path: ANY_PATH, methods: undefined, headers: [] };

/** @returns undefined when there are more than one list of rules has room for */
export function alternatives(condition: Condition, bound: Bound): Alternatives | undefined {
  const state: { inexact: string | undefined; isTooMuch: boolean } = { inexact: undefined, isTooMuch: false };
  const doubt = (reason: string): Alternative[] => {
    state.inexact ??= reason;
    return bound === 'over' ? [ALWAYS] : [];
  };
  const both = (left: Alternative[], right: Alternative[]): Alternative[] => {
    const result = left.flatMap((a) => right.flatMap((b) => {
      const met = meet(a, b);
      if (typeof met !== 'string') return met ? [met] : [];
      state.inexact ??= met;
      return bound === 'over' ? [a] : [];
    }));
    return limited(result);
  };
  const limited = (terms: Alternative[]): Alternative[] => {
    const different = [...new Map(terms.map((term) => [JSON.stringify(term), term])).values()];
    state.isTooMuch ||= different.length > HTTP_RULES_EACH;
    return state.isTooMuch ? [] : different;
  };
  const expand = (of: Condition, inverted: boolean): Alternative[] => {
    if (typeof of === 'boolean') return of === inverted ? [] : [ALWAYS];
    if ('unknown' in of) return doubt(of.unknown);
    if ('not' in of) return expand(of.not, !inverted);
    if ('path' in of) return [{ ...ALWAYS, path: { ...of.path, inverted: of.path.inverted !== inverted } }];
    if ('methods' in of) {
      const methods = inverted ? HTTP_METHODS.filter((method) => !of.methods.includes(method)) : of.methods;
      return methods.length === 0 ? [] : [{ ...ALWAYS, methods }];
    }
    if ('header' in of) {
      // Turned round, what holds too often holds too seldom.
      if (of.isLoose) {
        if ((bound === 'over') === inverted) return doubt('it tells capital letters of the host from small ones');
        state.inexact ??= 'it tells capital letters of the host from small ones';
      }
      return [{ ...ALWAYS, headers: [{ ...of.header, inverted: of.header.inverted !== inverted }] }];
    }
    const isAnd = 'and' in of;
    const parts = isAnd ? of.and : of.or;
    const expanded = parts.map((part) => expand(part, inverted));
    if (isAnd === inverted) return limited(expanded.flat());
    return expanded.reduce(both, [ALWAYS]);
  };
  const terms = expand(condition, false);
  if (state.isTooMuch) return undefined;
  return { terms: terms.some(isAlways) ? [ALWAYS] : terms, inexact: state.inexact };
}

export function isAlways({ path, methods, headers }: Alternative): boolean {
  return path.kind === 'any' && !path.inverted && methods === undefined && headers.length === 0;
}

/** Both at once; undefined: never; text: why there is no rule for that. */
function meet(a: Alternative, b: Alternative): Alternative | string | undefined {
  const path = meetPaths(a.path, b.path);
  if (path === undefined) return undefined;
  if (typeof path === 'string') return path;
  const methods = a.methods && b.methods ? a.methods.filter((method) => b.methods!.includes(method)) : (a.methods ?? b.methods);
  if (methods?.length === 0) return undefined;
  const headers = [...new Map([...a.headers, ...b.headers].map((header) => [JSON.stringify(header), header])).values()];
  if (headers.length > HTTP_CONDITIONS) return `it looks at more than ${HTTP_CONDITIONS} headers`;
  return { path, methods, headers };
}

const TWO_PATHS = 'it looks at the path more than once';

function meetPaths(a: PathTest, b: PathTest): PathTest | string | undefined {
  if (b.inverted && !a.inverted) return meetPaths(b, a);
  if (isAny(a)) return b;
  if (isAny(b)) return a;
  if (a.kind === 'any' || b.kind === 'any') return undefined;
  if (!a.inverted) {
    if (isWithin(a, b)) return a;
    if (isWithin(b, a)) return b;
    return isApart(a, b) ? undefined : TWO_PATHS;
  }
  const [outside, other] = [{ ...a, inverted: false }, { ...b, inverted: false }];
  if (b.inverted) return isWithin(other, outside) ? a : isWithin(outside, other) ? b : TWO_PATHS;
  if (isWithin(other, outside)) return undefined;
  return isApart(outside, other) ? b : TWO_PATHS;
}

function isAny({ kind, inverted }: PathTest): boolean {
  return kind === 'any' && !inverted;
}

/** Every path of `inner` is one of `outer`. */
function isWithin(inner: PathTest, outer: PathTest): boolean {
  if (inner.kind === 'exact') return pathHolds(outer, inner.value);
  if (outer.kind === 'exact') return false;
  if (outer.kind === 'prefix') return inner.value.startsWith(outer.value);
  return inner.kind === 'separated' ? pathHolds(outer, inner.value) : inner.value.startsWith(`${outer.value}/`);
}

function isApart(a: PathTest, b: PathTest): boolean {
  if (a.kind === 'exact') return !pathHolds(b, a.value);
  if (b.kind === 'exact') return !pathHolds(a, b.value);
  return !a.value.startsWith(b.value) && !b.value.startsWith(a.value);
}

/** @param path without the query */
export function pathHolds({ kind, value, inverted }: PathTest, path: string): boolean {
  const holds = kind === 'any' || (kind === 'exact' ? path === value : path.startsWith(value) && (kind === 'prefix' || path.length === value.length || path[value.length] === '/'));
  return holds !== inverted;
}
