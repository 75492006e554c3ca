/** RFC 6902 patches between two JSON documents: made for admission answers, applied by the lab and by tests. */
export type PatchOperation = { op: 'add' | 'replace'; path: string; value: unknown } | { op: 'remove'; path: string };

const escaped = (key: string): string => key.replaceAll('~', '~0').replaceAll('/', '~1');
const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value);

export function equal(a: unknown, b: unknown): boolean {
  if (a === b) return true;
  if (Array.isArray(a) && Array.isArray(b)) return a.length === b.length && a.every((item, index) => equal(item, b[index]));
  if (!isObject(a) || !isObject(b)) return false;
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((key) => Object.hasOwn(b, key) && equal(a[key], b[key]));
}

/** What makes `after` of `before`; nothing for equal ones. */
export function diff(before: unknown, after: unknown, path = ''): PatchOperation[] {
  if (equal(before, after)) return [];
  if (isObject(before) && isObject(after)) {
    return [...new Set([...Object.keys(before), ...Object.keys(after)])].flatMap((key): PatchOperation[] => {
      const at = `${path}/${escaped(key)}`;
      if (!Object.hasOwn(after, key)) return [{ op: 'remove', path: at }];
      return Object.hasOwn(before, key) ? diff(before[key], after[key], at) : [{ op: 'add', path: at, value: after[key] }];
    });
  }
  if (Array.isArray(before) && Array.isArray(after)) {
    const shared = Math.min(before.length, after.length);
    const changed = before.slice(0, shared).flatMap((item, index) => diff(item, after[index], `${path}/${index}`));
    const removed = before.slice(shared).map((_, index): PatchOperation => ({ op: 'remove', path: `${path}/${before.length - 1 - index}` }));
    const added = after.slice(shared).map((value: unknown, index): PatchOperation => ({ op: 'add', path: `${path}/${shared + index}`, value }));
    return [...changed, ...removed, ...added];
  }
  return [{ op: 'replace', path, value: after }];
}

/** @throws Error naming the operation whose place is not there; the document given is left as it is */
export function applyPatch<T>(document: T, patch: readonly PatchOperation[]): T {
  const root = { document: structuredClone(document) as unknown };
  for (const operation of patch) {
    const keys = ['document', ...operation.path.split('/').slice(1).map((key) => key.replaceAll('~1', '/').replaceAll('~0', '~'))];
    const last = keys.pop() as string;
    let parent: unknown = root;
    for (const key of keys) parent = Object.hasOwn(Object(parent) as object, key) ? (parent as Record<string, unknown>)[key] : undefined;
    if (typeof parent !== 'object' || parent === null) throw new Error(`applying a patch: ${operation.op} ${operation.path}: there is no such place`);
    const present = Object.hasOwn(parent, last);
    if (operation.op !== 'add' && !present) throw new Error(`applying a patch: ${operation.op} ${operation.path}: there is nothing`);
    const value = operation.op === 'remove' ? undefined : structuredClone(operation.value);
    if (Array.isArray(parent)) {
      const index = last === '-' ? parent.length : Number(last);
      parent.splice(index, operation.op === 'add' ? 0 : 1, ...(operation.op === 'remove' ? [] : [value]));
    } else if (operation.op === 'remove') delete (parent as Record<string, unknown>)[last];
    else (parent as Record<string, unknown>)[last] = value;
  }
  return root.document as T;
}
