/** `exportTo`: to which namespaces an object is visible. */

/** `all`, or the namespaces by name; an empty set is visible to nobody. */
export type ExportTo = 'all' | ReadonlySet<string>;

/**
 * @param written the object's field (or annotation, split); `.` is its own namespace, `*` all, `~` none
 * @param fallback the mesh's default, in the same form
 */
export function parseExportTo(written: readonly string[] | undefined, namespace: string, fallback: readonly string[] = ['*']): ExportTo {
  const list = written?.length ? written : fallback;
  if (list.includes('*')) return 'all';
  return new Set(list.filter((item) => item !== '~').map((item) => (item === '.' ? namespace : item)));
}

export function isExportedTo(exportTo: ExportTo, namespace: string): boolean {
  return exportTo === 'all' || exportTo.has(namespace);
}
