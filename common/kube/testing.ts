/** Tables of good and bad objects, each a test of its own. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatError, parseYaml } from './yaml.js';

/** What of it is said, the field within the object, and a part of the message. */
export type BadCase = readonly [what: string, spec: string, field: string, message: RegExp];

export interface SpecCases {
  apiVersion: string;
  kind: string;
  /** `spec` in YAML, on one line or several. */
  good: Readonly<Record<string, string>>;
  bad: readonly BadCase[];
  /** Passes, and says this. */
  warned?: readonly BadCase[];
}

const indent = (text: string): string => text.trim().replace(/^/gm, '  ');

const objectYaml = ({ apiVersion, kind }: SpecCases, spec: string): string => `apiVersion: ${apiVersion}\nkind: ${kind}\nmetadata: {name: x, namespace: shop}\nspec:\n${indent(spec)}\n`;

/** Registers one test a case: a bad one is refused for that field and nothing else, a good one passes without a word. */
export function specCases(cases: SpecCases): void {
  const { kind, good, bad, warned = [] } = cases;
  for (const [what, spec] of Object.entries(good)) {
    test(`${kind}: ${what} passes`, () => {
      const { errors, objects } = parseYaml(objectYaml(cases, spec), 'x.yaml');
      assert.deepEqual(errors.map(formatError), []);
      assert.equal(objects.length, 1);
    });
  }
  for (const [severity, list] of [['error', bad], ['warning', warned]] as const) {
    for (const [what, spec, field, message] of list) {
      test(`${kind}: ${what} is ${severity === 'error' ? 'refused' : 'warned of'}`, () => {
        const { errors, objects } = parseYaml(objectYaml(cases, spec), 'x.yaml');
        const said = errors.map(formatError).join('\n');
        const found = errors.filter((error) => error.field === field && error.severity === severity);
        assert.equal(found.length, 1, said || 'nothing was said');
        assert.match(found[0]!.message, message);
        assert.equal(errors.filter((error) => error.severity === 'error').length, severity === 'error' ? 1 : 0, said);
        assert.equal(objects.length, severity === 'error' ? 0 : 1);
      });
    }
  }
}
