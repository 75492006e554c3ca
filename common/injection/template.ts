/**
 * Injection templates: YAML that is a part of a pod, with expressions in its scalars. The text is parsed before values are
 * put in, so that no label or annotation can change its structure, which text templates such as Istio's leave to quoting.
 *   ${a.b["c.d/e"]|other.path|"text"}   the first of these that is there and not empty
 *   a scalar that is one expression takes the value as it is, a list among a list's items is spliced in, what is not there
 *   takes its key or item along; other scalars are text with values in it
 *   $when: ${…}   in a mapping: the mapping is there only if this is, and is not "false"
 */
export type Scope = Readonly<Record<string, unknown>>;

const EXPRESSION = /\$\{([^}]*)\}/g;
const STEP = /^(?:\.?([A-Za-z_][\w-]*)|\[(?:"([^"]*)"|(\d+))\])/;

function lookUp(path: string, scope: Scope): unknown {
  let rest = path;
  let value: unknown = scope;
  let first = true;
  while (rest !== '') {
    const [whole, name, quoted, index] = STEP.exec(rest) ?? [];
    if (whole === undefined) throw new Error(`reading the expression ${path}: expected a path such as labels["app"]`);
    const key = name ?? quoted ?? (index as string);
    if (first && !Object.hasOwn(scope, key)) throw new Error(`reading the expression ${path}: there is no ${key}, only ${Object.keys(scope).sort().join(', ')}`);
    first = false;
    value = typeof value === 'object' && value !== null && Object.hasOwn(value, key) ? (value as Record<string, unknown>)[key] : undefined;
    rest = rest.slice(whole.length);
  }
  return value;
}

function evaluate(expression: string, scope: Scope): unknown {
  for (const alternative of expression.split('|').map((part) => part.trim())) {
    const [, literal] = /^"([^"]*)"$/.exec(alternative) ?? [];
    const value = literal ?? lookUp(alternative, scope);
    if (value !== undefined && value !== null && value !== '') return value;
    if (literal !== undefined) return literal;
  }
  return undefined;
}

function isTrue(value: unknown): boolean {
  return value !== undefined && value !== null && value !== '' && value !== false && value !== 'false';
}

/** @throws Error naming the expression that can not be read */
export function render(template: unknown, scope: Scope): unknown {
  if (typeof template === 'string') return renderText(template, scope);
  if (Array.isArray(template)) {
    return template.flatMap((item: unknown) => {
      const value = render(item, scope);
      return value === undefined ? [] : Array.isArray(value) && typeof item === 'string' ? value : [value];
    });
  }
  if (typeof template !== 'object' || template === null) return template;
  const { $when: condition, ...fields } = template as Record<string, unknown>;
  if (condition !== undefined && !isTrue(render(condition, scope))) return undefined;
  const rendered: Record<string, unknown> = {};
  for (const [key, field] of Object.entries(fields)) {
    const value = render(field, scope);
    if (value !== undefined) rendered[key] = value;
  }
  return rendered;
}

function renderText(text: string, scope: Scope): unknown {
  const [, only] = /^\$\{([^}]*)\}$/.exec(text) ?? [];
  if (only !== undefined) return structuredClone(evaluate(only, scope));
  return text.replace(EXPRESSION, (_, expression: string) => {
    const value = evaluate(expression, scope);
    return value === undefined ? '' : typeof value === 'object' ? JSON.stringify(value) : String(value as string | number | boolean);
  });
}
